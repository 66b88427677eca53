"""What the checks say of wrong versions that nobody tuned them to.

python tests/test_hints.py prints what is said of each version in fixtures/natural_mistakes.py."""

import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent / "fixtures")]

from checks import BLANKS, core  # noqa: E402
from checks.core import collect, judge, load_answers  # noqa: E402
from natural_mistakes import DOUBLE, SINGLE, versions  # noqa: E402
from perform import perform  # noqa: E402


def judge_here(blank, function, seed=0):
    """The Result of a function, without a worker."""
    def ask(request):
        return perform(function, request["inputs"], request["grad"])
    return judge(blank, *collect(blank, ask, seed))


def kind_of(result):
    if result.mistake:
        return "named"
    return "by hand" if result.difference.hint == core.BY_HAND else "by what went wrong"


def measure(text, seed=0):
    """-> [(blank's name, what slipped, Result)]."""
    blanks = {blank.name: blank for blank in BLANKS}
    answers = {name: getattr(load_answers(blank.file), name) for name, blank in blanks.items()}
    return [(name, slip, judge_here(blanks[name], function, seed))
            for name, slip, function in versions(text, answers)]


if __name__ == "__main__":
    for text in SINGLE, DOUBLE:
        kinds = Counter()
        for name, slip, result in measure(text):
            kinds[kind_of(result)] += 1
            hint = result.mistake.name if result.mistake else result.difference.hint
            print(f"{name}: {slip}\n    {kind_of(result)}: {hint}")
        print(kinds)
