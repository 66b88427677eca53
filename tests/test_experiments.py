"""The experiments of answers/experiments, with --quick: one seed, smaller sizes. Each ends with
exit code 1 when one of its claims does not hold."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "answers" / "experiments"
SHEET, ANSWER = (ROOT.joinpath(folder, "EXPERIMENTS.md").read_text("utf-8")
                 for folder in ("exercises", "answers"))
SCRIPTS = re.findall(r"\(experiments/(\w+)\.svg\)", ANSWER)  # a section shows its script's picture


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
    titles = re.findall(r"^## (\d+\. .*)$", SHEET, re.M)
    assert titles == re.findall(r"^## (\d+\. .*)$", ANSWER, re.M) and len(titles) == len(SCRIPTS)
    for name in SCRIPTS:
        assert f"answers/experiments/{name}.py" in SHEET and (FOLDER / f"{name}.svg").is_file()
    assert set(SCRIPTS) == {file.stem for file in FOLDER.glob("*.py")
                            if "settings(__doc__)" in file.read_text("utf-8")}
    assert not re.search("TABLES|VERDICT|TIME_|@@|[A-Z]{3,}_TEXT|OLDROW", SHEET + ANSWER)


def in_the_laboratory(code):
    """A few lines of Python among the scripts."""
    return subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True,
                          encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})


@pytest.mark.parametrize("second, code, word", [(True, 0, "yes"), (False, 1, "NO ")])
def test_an_experiment_fails_when_a_claim_does_not_hold(second, code, word):
    done = in_the_laboratory(f"import lab; lab.claim('one', True); lab.claim('two', {second}); "
                             "lab.done()")
    assert done.returncode == code and done.stdout == f"yes  one\n{word}  two\n"


def test_an_arm_is_run_again_only_when_its_flags_change(tmp_path):
    """The lesson is a script of one line, which counts how often it was run."""
    script = tmp_path / "count.py"
    script.write_text("import os, sys; place = sys.argv[2][11:] + '/' + sys.argv[3][11:]; "
                      "os.makedirs(place, exist_ok=True); "
                      "open(place + '/samples.md', 'a').write('x')")
    done = in_the_laboratory(
        f"import types, lab; lab.LESSONS[1] = {str(script)!r}\n"
        f"args = types.SimpleNamespace(runs_dir={str(tmp_path)!r})\n"
        "for flags in (['a'], ['a'], ['b']): lab.run_arm(lab.Arm('it', 7, 1, flags), args)")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seed7" / "it" / "samples.md").read_text() == "xx"


@pytest.mark.slow
def test_lesson_1_learns_from_the_best_scored_review_of_every_group(tmp_path):
    """Eight reviews a film, groups of four: scores that say which two must be picked."""
    (tmp_path / "seed0").mkdir()
    done = in_the_laboratory(f"""
import types, torch, press
scores = torch.tensor([0, 3, 1, 2, 9, 5, 8, 7.0]).repeat(16, 1)
scores[15] = -scores[15]
texts = [f"film {{film}} review {{i}}" for film in range(16) for i in range(8)]
press.sample_reviews = lambda *_: {{"scores": {{100: scores}}, "texts": texts}}
args = types.SimpleNamespace(runs_dir={str(tmp_path)!r})
print(press.picked_reviews(100, 4, 0, args).read_text())""")
    rows = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(rows) == 32, done.stderr
    assert [row["output"] for row in rows[:2]] == ["film 0 review 1", "film 0 review 4"]
    assert [row["output"] for row in rows[-2:]] == ["film 15 review 0", "film 15 review 5"]
    assert rows[0]["instruction"] == "Write a short review of the pirate film."
    assert rows[-1]["instruction"] == "Write a short review of the spy film."
