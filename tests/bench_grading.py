"""How long does grading take? python tests/bench_grading.py [--submissions 100]

Makes a cohort of ordinary submissions (each blank is right, not begun, or wrong), grades it as
tests/grade.py does, and then grades ten of it with workers that start cold, for comparison."""

import argparse
import ast
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from checks import FILES  # noqa: E402
from checks.client import Nursery  # noqa: E402
from checks.core import ROOT  # noqa: E402
from grade import grade_cohort, runs_of_the_answers  # noqa: E402
from grading.submissions import find_cohort  # noqa: E402
from make_exercises import functions, make_stubs  # noqa: E402


def homework(file, dice):
    """A file in which every function is right (6 of 10), a stub (2), or does something else (2)."""
    right = (ROOT / "answers" / f"{file}.py").read_text("utf-8")
    stub = make_stubs(right, file)
    nodes, lines = functions(right), right.splitlines()
    text = stub
    for name, node in nodes.items():
        mark, fate = f'raise NotImplementedError("{file}.{name}")', dice.random()
        body = lines[node.body[1].lineno - 1:node.end_lineno]
        if fate < 0.6:
            text = text.replace("    " + mark, "\n".join(body))
        elif fate < 0.8:
            text = text.replace(mark, f"return {node.args.args[0].arg}")
    ast.parse(text)
    return text


def make_cohort(folder, size):
    dice = random.Random(0)
    for number in range(size):
        student = folder / f"student{number:03}"
        student.mkdir()
        for file in FILES:
            (student / f"{file}.py").write_text(homework(file, dice), encoding="utf-8")


def timed(cohort, out, jobs, nursery, answers_runs):
    begun = time.perf_counter()
    options = SimpleNamespace(out=out, jobs=jobs, salvage=0)
    grades = grade_cohort(cohort, options, nursery, answers_runs)
    return time.perf_counter() - begun, grades


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=100)
    size = parser.parse_args().submissions
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        cohort_folder = Path(folder, "cohort")
        cohort_folder.mkdir()
        make_cohort(cohort_folder, size)
        cohort = find_cohort(cohort_folder)
        begun, answers_runs, nursery = time.perf_counter(), runs_of_the_answers(), Nursery()
        start = time.perf_counter() - begun
        jobs = os.cpu_count()
        warm, grades = timed(cohort, Path(folder, "warm"), jobs, nursery, answers_runs)
        ten_warm, _ = timed(cohort[:10], Path(folder, "ten-warm"), jobs, nursery, answers_runs)
        nursery.stop()
        ten_cold, _ = timed(cohort[:10], Path(folder, "ten-cold"), jobs, None, answers_runs)
    points = [grade.total() for grade in grades]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{size} submissions (points {min(points):g} to {max(points):g}) with {jobs} jobs: "
          f"{warm:.0f} s after a start of {start:.0f} s; largest memory {memory:.0f} MB")
    print(f"ten: warm {ten_warm:.1f} s, cold {ten_cold:.1f} s, ratio {ten_cold / ten_warm:.1f}")


if __name__ == "__main__":
    main()
