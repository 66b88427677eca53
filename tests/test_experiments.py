"""The experiments of answers/experiments, with --quick: one seed, smaller sizes. Each ends with
exit code 1 when one of its claims does not hold."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "answers" / "experiments"
SCRIPTS = ["kl_penalty", "goodhart", "microscope", "pass_at_k", "kl_estimators", "ppo_grpo"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder of runs: what two experiments both need is made once."""
    return tmp_path_factory.mktemp("lab")


@pytest.mark.lab
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_experiment_claims_what_comes_out(runs, name):
    pytest.importorskip("matplotlib", reason="pip install matplotlib==3.11.2")
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--quick", f"--runs_dir={runs}"],
        capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    claims = re.findall(r"^(yes|NO )  ", done.stdout, re.M)
    assert claims and set(claims) == {"yes"}
    assert "| --- |" in done.stdout
    assert (runs / f"{name}.svg").stat().st_size > 5000


def test_every_experiment_has_its_sheet_its_answer_and_its_picture():
    sheet, answer = (folder.joinpath("EXPERIMENTS.md").read_text("utf-8")
                     for folder in (ROOT / "exercises", ROOT / "answers"))
    titles = re.findall(r"^## (\d\. .*)$", sheet, re.M)
    assert titles == re.findall(r"^## (\d\. .*)$", answer, re.M) and len(titles) == len(SCRIPTS)
    for name in SCRIPTS:
        assert f"answers/experiments/{name}.py" in sheet
        assert f"(experiments/{name}.svg)" in answer and (FOLDER / f"{name}.svg").is_file()
    assert not re.search("TABLES|VERDICT|TIME_|@@|[A-Z]{3,}_TEXT|OLDROW", sheet + answer)
