"""Loads the filled-in functions for `python lessonN.py --exercise`."""

import functools
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import torch


def load_exercises(blanks):
    """{file: "names of its blanks"} -> {name: function} of the files beside this one. A stub is
    left out: there the lesson's own function stays. Raises ImportError for a file that does not
    load or that has no such function."""
    found = {}
    for file, names in blanks.items():
        path = Path(__file__).with_name(f"{file}.py")
        try:
            functions = runpy.run_path(str(path))
            found |= {name: functions[name] for name in names.split()}
        except (Exception, SystemExit) as error:  # whatever is wrong with the file
            what = f"{type(error).__name__}: {error}"
            raise ImportError(f"cannot load {path}: {what}") from None
        for name in names.split():
            if not callable(found[name]):
                raise ImportError(f"{path}: {name} is {found[name]!r:.60}, no function")
    stubs = [name for name, function in found.items() if is_stub(function)]
    mine = {name: checked(name, found[name]) for name in found if name not in stubs}
    print(f"Your functions: {', '.join(mine) or 'none yet'}.\n"
          f"The lesson's, because yours are stubs: {', '.join(stubs) or 'none'}.", flush=True)
    wrong = failing(list(mine))
    if wrong:
        print(f"Training with them, although their checks fail: {', '.join(wrong)} (pytest -k "
              f"{wrong[0]}).", flush=True)
    return mine


def failing(names):
    """Which of these functions fail their checks; none where the course's tests are not there."""
    here = Path(__file__).parent
    if not names or not (here.parent / "tests" / "test_exercises.py").is_file():
        return []
    done = subprocess.run([sys.executable, "-m", "pytest", "-k", " or ".join(names), "-p",
                           "no:cacheprovider", "--lang=en", f"--exercises={here}"], cwd=here.parent,
                          stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8")
    return [name for name in names if re.search(rf"(^| )x {name}\b", done.stdout, re.M)]


def is_stub(function):
    """Does it do nothing but raise NotImplementedError?"""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and code.co_names == ("NotImplementedError",)


def checked(name, function):
    """The same function. What it raises says its name; and it raises ArithmeticError where it makes
    NaN or infinity out of finite numbers: a run would otherwise end later, and elsewhere."""

    @functools.wraps(function)
    def call(*inputs, **named):
        try:
            result = function(*inputs, **named)
        except Exception as error:
            error.args = (f"{error} (in your {name}: pytest -k {name})",)
            raise
        if not is_finite(result) and is_finite([*inputs, *named.values()]):
            raise ArithmeticError(f"your {name} returned NaN or infinity: pytest -k {name}")
        return result

    return call


def is_finite(x):
    """Are all numbers in here finite?"""
    if isinstance(x, (list, tuple)):
        return all(map(is_finite, x))
    if isinstance(x, torch.Tensor):
        return bool(x.isfinite().all())
    return not isinstance(x, float) or abs(x) < float("inf")
