"""The checks of the exercises, for the student's files and for the answers.

The code runs in a process of its own, so that an endless loop or a crash is one failed check. What
is not started yet counts as "todo", and does not fail."""

import pytest
from checks import BLANKS, RUNS
from checks.core import judge_in_worker, judge_run_in_worker, report

each_blank = pytest.mark.parametrize("blank", BLANKS, ids=str)


def settle(result, request):
    """Todo, failed with a report, or passed."""
    request.node.user_properties.append(("exercise", result.status))
    if result.status == "todo":
        pytest.skip("todo")
    if result.status != "passed":
        pytest.fail(report(result, request.config.getoption("hint")), pytrace=False)


@each_blank
def test_exercise(blank, exercises_worker, request):
    settle(judge_in_worker(blank, exercises_worker), request)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_exercise_run(run, exercises_worker, answers_worker, request):
    settle(judge_run_in_worker(run, exercises_worker, answers_worker), request)


@each_blank
def test_answer(blank, answers_worker):
    result = judge_in_worker(blank, answers_worker)
    assert result.status == "passed", report(result)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_run_of_the_answers_is_complete(run, answers_worker):
    outcome = answers_worker.ask({"file": run.file, "run": run.file}, 60)
    assert outcome["status"] == "returned" and len(outcome["steps"]) == 3
