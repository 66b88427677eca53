"""The benchmark compares equal work, and refuses to compare anything else. TRL is not needed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent / "bench"
COMMAND = ["bench.py", "--size", "tiny", "--steps", "4", "--repeat", "1", "--lessons", "sft"]
pytestmark = pytest.mark.slow


def test_the_lesson_and_the_bare_loop_do_the_same_work(tmp_path):
    command = [sys.executable, BENCH / COMMAND[0], *COMMAND[1:], "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if re.search(r"ours|bare", line)]
    ours, bare = [cells for cells in rows if cells[2].strip() in ("ours", "bare")]
    assert ours[7].strip() == bare[7].strip() == "4"  # optimiser steps
    trained = [cells[8].split("(")[0] for cells in (ours, bare)]  # real tokens; padding may differ
    assert trained[0] == trained[1] and int(trained[0].replace(",", "")) > 4 * 32 * 16
    assert ours[10].strip() == bare[10].strip() == "0"  # generated tokens
    assert "4 GRPO" not in done.stdout
    assert done.stdout.split("\n\n")[1].strip() in (tmp_path / "README.md").read_text("utf-8")


def test_who_does_less_work_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import bench

    run = bench.run

    def run_lazily(contestant, python, job):
        less = {"steps": job["steps"] - 1} if contestant == "bare" else {}
        return run(contestant, python, job | less)

    monkeypatch.setattr(bench, "run", run_lazily)
    monkeypatch.setattr(sys, "argv", COMMAND)
    with pytest.raises(SystemExit, match="unequal work, optimiser steps: {'ours': 4, 'bare': 3}"):
        bench.main()


@pytest.mark.parametrize("name", ["optimiser steps", "trained tokens", "generated tokens"])
def test_what_must_agree(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCH)
    import bench

    equal = {"optimiser steps": 800, "trained tokens": 1000, "generated tokens": 500}
    nearly = equal | {name: int(0.99 * equal[name])}
    bench.check("ppo", {"ours": {"total": equal}, "TRL": {"total": nearly}})
    for less in {name: int(0.97 * equal[name])}, {name: 0}:
        with pytest.raises(SystemExit, match=f"unequal work, {name}"):
            bench.check("ppo", {"ours": {"total": equal}, "TRL": {"total": equal | less}})
