"""The README's picture: what it draws is what the runs logged. Those of WHY.md: what is stored is
what the functions give today."""

import importlib.util
import json
import re

import pytest
from conftest import ROOT
from picture import read_curves
from test_lessons import finish, in_child, quick_processes, start

USED = in_child, quick_processes  # a fixture, and what a forked process looks up here


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
    done = finish(start(tmp_path, [ROOT / "tests/picture.py", *runs, "--out", "p.svg"]))
    if importlib.util.find_spec("matplotlib"):
        assert done.code == 0, done.err
        assert "<svg" in (tmp_path / "p.svg").read_text()
    else:
        assert done.code == 2 and done.err.count("\n") == 1
        assert "pip install matplotlib" in done.err and not (tmp_path / "p.svg").exists()


def parts(svg):
    """A picture's numbers, and all the rest of it."""
    return [float(x) for x in re.findall(r"-?\d+\.\d+", svg)], re.sub(r"-?\d+\.\d+", "x", svg)


def test_the_pictures_of_why_are_drawn_or_say_what_they_need(tmp_path):
    """By the release of matplotlib that drew what is stored, they are the same."""
    done = finish(start(tmp_path, [ROOT / "tests/why_pictures.py", "--out", tmp_path]))
    if not importlib.util.find_spec("matplotlib"):
        assert done.code == 2 and done.err.count("\n") == 1
        assert "pip install matplotlib" in done.err and not list(tmp_path.iterdir())
        return
    assert done.code == 0, done.err
    stored = sorted((ROOT / "tests/pictures").glob("why_*.svg"))
    assert [path.name for path in stored] == sorted(path.name for path in tmp_path.iterdir())
    for path in stored:
        old, new = (file.read_text() for file in (path, tmp_path / path.name))
        if re.search(r"Matplotlib v[\d.]+", old)[0] == re.search(r"Matplotlib v[\d.]+", new)[0]:
            numbers, rest = parts(new)
            assert parts(old)[1] == rest, path.name
            assert parts(old)[0] == pytest.approx(numbers, abs=0.01), path.name
