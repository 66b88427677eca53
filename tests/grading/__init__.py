"""The grader: what is handed in (submissions.py), what it is worth (examine.py), what is written
about it (reports.py). grade.py is the command."""
