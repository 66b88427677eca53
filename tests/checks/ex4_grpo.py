"""The checks of exercise 4. Mistakes are numbered where a list of pitfalls of the field has them."""

BLANKS = []
