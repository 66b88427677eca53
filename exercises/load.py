"""Loads the filled-in functions for `python lessonN.py --exercise`."""

import functools
import inspect
import runpy
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
          f"The lesson's, because yours are stubs: {', '.join(stubs) or 'none'}.")
    return mine


def is_stub(function):
    """Does it do nothing but raise NotImplementedError?"""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and code.co_names == ("NotImplementedError",)


def checked(name, function):
    """The same function. It raises ArithmeticError, with its name, where it makes NaN or infinity
    out of finite numbers: a run would otherwise end later, and elsewhere."""

    @functools.wraps(function)
    def call(*inputs, **named):
        result = function(*inputs, **named)
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
