"""Grades one submission: its code runs in a locked process, which is ended before anything is
computed that is right."""

import functools
import hashlib
import json
import secrets
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from checks import BLANKS, RUNS
from checks.client import LockedWorker
from checks.core import CASE_SECONDS, ROOT, Result, collect, judge, judge_run, report, same

POINTS = json.loads((ROOT / "tests" / "points.json").read_text("utf-8"))
FULL_POINTS = sum(sum(points.values()) for points in POINTS.values())
SUBMISSION_SECONDS, RUN_SECONDS, TIMEOUTS_A_FILE = 120, 20, 3  # seconds of computing
SUBMISSION_CLOCK = 300  # seconds on the clock, the last answer's not counted
STATUSES = {"todo": "not_started", "missing": "not_started"}  # the gradebook's words


@dataclass
class Grade:
    """Everything that is known of a graded submission."""

    name: str
    digest: str
    seed: int
    protections: list
    notes: list
    checks: list = field(default_factory=list)  # one dictionary a check
    late: bool = False  # something took too long

    def total(self, file=None):
        return round(sum(check["points"] for check in self.checks
                         if file in (None, check["file"])), 2)


def examine(submission, nursery=None):
    """Run what was handed in. -> (seed, protections, what came out): nothing is judged yet."""
    seed = secrets.randbelow(2**31 - 10_000)
    folder = tempfile.mkdtemp(prefix="grading-")
    worker = LockedWorker(folder, nursery)
    deadline = time.monotonic() + SUBMISSION_CLOCK
    timeouts = Counter()

    def ask(request, seconds=CASE_SECONDS):
        left = SUBMISSION_SECONDS - worker.seconds_spent
        is_over = left <= 0 or time.monotonic() > deadline
        if is_over or timeouts[request["file"]] >= TIMEOUTS_A_FILE:
            return {"status": "timeout", "message": "not tried: too much time was spent before"}
        answer = worker.ask(request, min(seconds, left))
        timeouts[request["file"]] += answer["status"] == "timeout"
        return answer

    try:
        for file, content in submission.files.items():
            Path(folder, f"{file}.py").write_bytes(content)
        collected = [collect(blank, ask, seed) for blank in BLANKS]
        runs = [ask({"file": run.file, "run": run.file}, RUN_SECONDS) for run in RUNS]
    finally:
        worker.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return seed, worker.protections, collected, runs


def grade(submission, examined, answers_runs):
    """Judge what `examine` found. -> a Grade."""
    seed, protections, collected, runs = examined
    results = [judge(blank, *parts) for blank, parts in zip(BLANKS, collected)]
    for run, outcome in zip(RUNS, runs):
        blanks = [result for result in results if result.blank.file == run.file]
        results.append(judge_run(run, outcome, answers_runs[run.file])
                       if all(result.status == "passed" for result in blanks)
                       else Result(run, "todo"))
    results.sort(key=lambda result: list(POINTS).index(result.blank.file))
    ends = [*(stopped for *_, stopped in collected if stopped), *runs]
    return Grade(submission.name, state_of(submission), seed, protections, list(submission.notes),
                 [as_check(result) for result in results],
                 late=any(end["status"] == "timeout" for end in ends))


def failed(submission, error):
    """The Grade of a submission that the grader itself stumbled over: nothing, and a note."""
    note = f"the grader failed ({type(error).__name__}: {error!s:.200}): look at it yourself"
    results = [Result(part, "crashed", message=note) for part in [*BLANKS, *RUNS]]
    return Grade(submission.name, "", 0, [], [*submission.notes, note],
                 [as_check(result) for result in results])


def state_of(submission):
    """A digest of what was handed in and of the grader: a grade is good while neither changes."""
    return hashlib.sha256((submission.digest() + digest_of_grader()).encode()).hexdigest()


@functools.cache
def digest_of_grader():
    files = sorted(path for folder in ("answers", "tests/checks", "tests/grading", "tests/worker")
                   for path in (ROOT / folder).glob("*.py"))
    content = [path.read_bytes() for path in [*files, ROOT / "tests" / "points.json"]]
    return hashlib.sha256(b"".join(content)).hexdigest()


def as_check(result):
    blank, worth = result.blank, POINTS[result.blank.file][result.blank.name]
    share = earned_share(result)
    return {"file": blank.file, "name": blank.name, "points": round(worth * share, 2), "of": worth,
            "status": STATUSES.get(result.status, result.status),
            "cases": [len(result.right), result.total],
            "mistake": result.mistake.name if result.mistake else "",
            "report": "" if result.status in ("passed", "todo", "missing") else report(result, 3)}


def earned_share(result):
    """Full points where all cases are right, and by cases where more than half are: returning
    nothing but zeros, which is right where there is nothing to average, earns none. Nor does a
    table of the cases that are the same for every seed: those alone earn nothing."""
    if result.status == "passed":
        return 1.0
    performed = result.status in ("wrong", "crashed") and result.finished
    if not performed or 2 * len(result.right) <= result.total:
        return 0.0
    drawn = drawn_cases()[str(result.blank)]
    return min(len(result.right) / result.total, len(drawn & set(result.right)) / len(drawn))


@functools.cache
def drawn_cases():
    """{blank: the notes of its cases whose inputs depend on the seed}"""
    found = {}
    for blank in BLANKS:
        draws = zip(*(blank.cases(seed) for seed in range(5)))
        found[str(blank)] = {cases[0].note for cases in draws if not all(
            same(list(case.inputs.values()), list(cases[0].inputs.values())) for case in cases)}
    return found
