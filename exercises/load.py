"""Loads the filled-in functions for `python lessonN.py --exercise`."""

import inspect
import runpy
import sys
from pathlib import Path


def load_exercises(blanks):
    """{file: "names of its blanks"} -> {name: function} of the files beside this one. A stub is
    left out: there the lesson's own function stays. A file that does not load ends the program
    with one line and exit code 2."""
    found = {}
    for file, names in blanks.items():
        path = Path(__file__).with_name(f"{file}.py")
        try:
            functions = runpy.run_path(str(path))
            found |= {name: functions[name] for name in names.split()}
        except Exception as error:  # whatever is wrong with the file
            print(f"error: cannot load {path}: {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(2)
    stubs = [name for name, function in found.items()
             if inspect.unwrap(function).__code__.co_names == ("NotImplementedError",)]
    mine = {name: found[name] for name in found if name not in stubs}
    print(f"Your functions: {', '.join(mine) or 'none yet'}.\n"
          f"The lesson's, because yours are stubs: {', '.join(stubs) or 'none'}.")
    return mine
