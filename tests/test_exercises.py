"""The checks of the exercises, for the student's files.

The code runs in a process of its own, so that an endless loop or a crash is one failed check. What
is not started yet counts as "todo", and does not fail."""

import pytest
from checks import BLANKS, RUNS
from checks.core import Result, judge_in_worker, judge_run_in_worker, report

each_blank = pytest.mark.parametrize("blank", BLANKS, ids=str)
statuses = {}  # of the blanks judged so far: (file, name) -> status


def settle(result, request):
    """Todo, failed with a report, or passed."""
    statuses[result.blank.file, result.blank.name] = result.status
    request.node.user_properties.append(("exercise", result.status))
    if result.status == "todo":
        pytest.skip("todo")
    if result.status != "passed":
        options = request.config.getoption
        pytest.fail(report(result, options("hint"), options("lang")), pytrace=False)


@each_blank
def test_exercise(blank, exercises_worker, request):
    settle(judge_in_worker(blank, exercises_worker), request)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_exercise_run(run, exercises_worker, answers_worker, request):
    """It waits for functions that their own checks found wrong, and would only say so again."""
    of_file = {status for (file, _), status in statuses.items() if file == run.file}
    if of_file <= {"passed"}:
        settle(judge_run_in_worker(run, exercises_worker, answers_worker), request)
    else:
        settle(Result(run, "todo"), request)
