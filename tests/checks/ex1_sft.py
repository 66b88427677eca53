"""The checks of exercise 1. Mistakes are numbered where a list of pitfalls of the field has them."""

BLANKS = []
