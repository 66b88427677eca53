"""Hostile submissions as data: lies.py (what they claim), spies.py (what they look for), harm.py
(what they break), archives.py (what is handed in). tests/test_hostile.py grades each of them."""

from dataclasses import dataclass

LETTERS = {"p": "passed", "w": "wrong", "n": "not_started", "c": "crashed", "t": "timeout",
           "o": "tampered"}


@dataclass
class Hostile:
    """One hostile file. Its code stands below the stubs or the answers, and so has the last word.

    `statuses` has a letter a function, in the order of points.json, the training run last, as
    in LETTERS; ? is anything but passed, and * anything."""

    name: str
    code: str
    statuses: str
    points: float
    base: str = "stubs"  # "answers", "stubs", or "" for nothing
    file: str = "ex2_reward"
    says: str = ""  # stands in one of the reports
    needs: str = "seccomp"  # the protection without which it is not run

    def __str__(self):
        return self.name
