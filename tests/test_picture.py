"""The README's picture: what it draws is what the runs logged."""

import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from picture import read_curves


def write_run(folder, values):
    folder.mkdir()
    lines = [json.dumps({"step": i, "reward/avg": value}) for i, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_curves_are_means_over_ten_steps(tmp_path):
    run = write_run(tmp_path / "ppo", [1.0] * 10 + [2.0, 3.0])
    assert read_curves([run], ["reward/avg"]) == [
        {"reward/avg": pytest.approx([1.0, 1.1, 1.3])}]


@pytest.mark.parametrize("values, tag, words", [
    (None, "reward/avg", "no run"), ([1.0] * 9, "reward/avg", "fewer than 10"),
    ([1.0] * 12, "gold/avg", "gold/avg"), (["x"] * 12, "reward/avg", "cannot be drawn")])
def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, values, tag, words):
    folder = tmp_path / "ppo"
    if values:
        write_run(folder, values)
    with pytest.raises(SystemExit) as stopped:
        read_curves([folder], [tag])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and words in message and message.count("\n") == 1


def test_the_picture_is_drawn_or_says_what_it_needs(tmp_path):
    runs = [write_run(tmp_path / name, [float(i) for i in range(20)]) for name in ("ppo", "kl0")]
    done = subprocess.run([sys.executable, ROOT / "tests/picture.py", *runs, "--out", "p.svg"],
                          cwd=tmp_path, capture_output=True, text=True)
    if importlib.util.find_spec("matplotlib"):
        assert done.returncode == 0, done.stderr
        assert "<svg" in (tmp_path / "p.svg").read_text()
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "pip install matplotlib" in done.stderr and not (tmp_path / "p.svg").exists()
