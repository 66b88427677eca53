"""The same checks as pytest -k ex: they are in tests/test_exercises.py."""

from test_exercises import test_exercise, test_exercise_run  # noqa: F401
