"""The checks of the exercises, for the answers: each passes, and trains to the end."""

import pytest
from checks import BLANKS, RUNS
from checks.core import judge_in_worker, report


@pytest.mark.parametrize("blank", BLANKS, ids=str)
def test_answer(blank, answers_worker):
    result = judge_in_worker(blank, answers_worker)
    assert result.status == "passed", report(result)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_run_of_the_answers_is_complete(run, answers_worker):
    outcome = answers_worker.ask({"file": run.file, "run": run.file}, 60)
    assert outcome["status"] == "returned" and len(outcome["steps"]) == 3
