"""Grades one submission: its code runs in a locked process, which is ended before anything is
computed that is right."""

import functools
import hashlib
import json
import math
import re
import secrets
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

from checks import BLANKS, RUNS
from checks.client import LockedWorker
from checks.core import CASE_SECONDS, ROOT, Result, collect, judge, judge_run, report, same

from .salvage import what_parses

POINTS = json.loads((ROOT / "tests" / "points.json").read_text("utf-8"))
KINDS = json.loads((ROOT / "tests" / "kinds.json").read_text("utf-8"))
FULL_POINTS = sum(sum(points.values()) for points in POINTS.values())
SUBMISSION_SECONDS, RUN_SECONDS, TIMEOUTS_A_FILE = 120, 20, 3  # seconds of computing
SUBMISSION_CLOCK = 300  # seconds on the clock, the last answer's not counted
NOT_TRIED = "not tried: too much time was spent before"
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
    not_loaded: list = field(default_factory=list)  # files of which no function could be called

    def total(self, file=None):
        return round(sum(check["points"] for check in self.checks
                         if file in (None, check["file"])), 2)

    def earned(self):
        """The points without what was changed by hand."""
        return sum(check["earned"] for check in self.checks)


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
            return {"status": "timeout", "message": NOT_TRIED}
        answer = worker.ask(request, min(seconds, left))
        timeouts[request["file"]] += answer["status"] == "timeout"
        return answer

    try:
        for file, content in submission.files.items():
            Path(folder, f"{file}.py").write_bytes(content)
        collected = [collect(blank, ask, seed) for blank in BLANKS]
        for file in salvage(submission, collected, worker):
            collected = [collect(blank, ask, seed) if blank.file == file else parts
                         for blank, parts in zip(BLANKS, collected)]
        ended = {blank.file for blank, (_, _, stopped) in zip(BLANKS, collected) if stopped}
        runs = [{"status": "blocked", "message": "a function"} if run.file in ended else
                ask({"file": run.file, "run": run.file}, RUN_SECONDS) for run in RUNS]
    finally:
        worker.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return seed, worker.protections, collected, runs


def why_not_loaded(collected):
    """{file: message} of the files of which no function could be called at all."""
    found = {}
    for file in POINTS:
        parts = [part for blank, part in zip(BLANKS, collected) if blank.file == file]
        ends = [stopped for _, outcomes, stopped in parts if stopped and not outcomes
                and stopped["status"] in ("not_loaded", "crashed", "timeout", "tampered")]
        if ends and len(ends) == len(parts) and ends[0]["message"] != NOT_TRIED:
            found[file] = ends[0]["message"]
    return found


def salvage(submission, collected, worker):
    """Put what parses in the place of files that do not load. -> those files."""
    saved = {}
    for file, message in why_not_loaded(collected).items() if submission.salvage else ():
        if found := what_parses(submission.files[file]):
            content, functions = found
            worker.stop()  # the next request starts it anew: nothing of the first try is left
            Path(worker.folder, f"{file}.py").write_bytes(content)
            saved[file] = f"{in_a_line(message)}; {functions} functions parse by themselves"
    submission.salvaged = saved
    return list(saved)


def in_a_line(message):
    """A traceback's end without the file's name and the carets."""
    text = re.sub(r'File "[^"\n]*", |\n[ ^~]+(?=\n)', "", message)
    return " ".join(text.split())[:300]


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
    dead = why_not_loaded(collected)
    checks = [as_check(result, submission) for result in results]
    grade = Grade(submission.name, state_of(submission), seed, protections,
                  [*submission.notes, *notes_on_loading(submission, dead)],
                  said_once(checks, dead), any(end["status"] == "timeout" for end in ends),
                  list(dead))
    if not grade.notes and not grade.total():
        begun = any(check["status"] != "not_started" for check in checks)
        grade.notes.append("0 points: " + ("nothing is right" if begun else "nothing is begun"))
    return grade


def notes_on_loading(submission, dead):
    notes = [f"{file}.py does not load: {in_a_line(message)}" for file, message in dead.items()]
    return notes + [f"{file}.py does not load: {why}, and earn {submission.salvage:g} of their "
                    "points" for file, why in submission.salvaged.items() if file not in dead]


def said_once(checks, dead):
    """Why a file does not load stands at its first function alone."""
    told = set()
    for check in checks:
        if check["file"] in told:
            check["report"] = ""
        elif check["file"] in dead:
            told.add(check["file"])
    return checks


def failed(submission, error):
    """The Grade of a submission that the grader itself stumbled over: nothing, and a note."""
    note = f"the grader failed ({type(error).__name__}: {error!s:.200}): look at it yourself"
    results = [Result(part, "crashed", message=note) for part in [*BLANKS, *RUNS]]
    return Grade(submission.name, "", 0, [], [*submission.notes, note],
                 [as_check(result, submission) for result in results])


def state_of(submission):
    """A digest of what was handed in and of the grader: a grade is good while neither changes."""
    return hashlib.sha256((submission.digest() + digest_of_grader()).encode()).hexdigest()


@functools.cache
def digest_of_grader():
    files = sorted(path for folder in ("answers", "tests/checks", "tests/grading", "tests/worker")
                   for path in (ROOT / folder).glob("*.py"))
    tables = [ROOT / "tests" / "points.json", ROOT / "tests" / "kinds.json"]
    content = [path.read_bytes() for path in [*files, *tables]]
    return hashlib.sha256(b"".join(content)).hexdigest()


def as_check(result, submission):
    """The row of a function or a training run. In a salvaged file it earns a part of its points,
    and what is not there has not been left out, but does not parse."""
    blank, worth = result.blank, POINTS[result.blank.file][result.blank.name]
    is_salvaged = blank.file in submission.salvaged
    if is_salvaged and result.status == "missing":
        result.status, result.message = "crashed", "it does not parse"
    share = earned_share(result) * (Fraction(submission.salvage) if is_salvaged else 1)
    points = in_halves(worth, share)
    return {"file": blank.file, "name": blank.name, "of": worth, "points": points,
            "earned": points, "reason": "",  # overrides.csv may change the points
            "status": STATUSES.get(result.status, result.status),
            "cases": [len(result.right), result.total],
            "mistake": result.mistake.name if result.mistake else "", "report": told(result)}


def told(result):
    """What the student reads: the case that breaks, the hint, and where partial points are from."""
    if result.status in ("passed", "todo", "missing"):
        return ""
    kinds = [f"{kind} {right} of {total}" for kind, (right, total) in right_by_kind(result).items()]
    line = (f"\n  right by kind of case, each of which weighs the same: {'; '.join(kinds)}"
            f"\n  counted: {float(earned_share(result)):.0%} (half or less is nothing; cases that "
            "everybody has the same of count no more than others)")
    return report(result, 3) + line * bool(kinds)


def in_halves(worth, share):
    """The nearest half of a point; less than all of them where not everything is right."""
    if share == 1:
        return worth
    return min(math.floor(2 * worth * share + Fraction(1, 2)), 2 * worth - 1) / 2


def earned_share(result):
    """1 where all cases are right. Else each kind of cases weighs the same, however many were
    written of it, and the share counts where it is more than half: returning nothing but zeros,
    which is right where there is nothing to average, earns none. Nor does a table of the cases that
    are the same for every seed: the share of the others is not exceeded."""
    if result.status == "passed":
        return Fraction(1)
    if result.status not in ("wrong", "crashed") or not result.finished or not result.right:
        return Fraction(0)
    kinds, drawn = cases_by_kind()[str(result.blank)], drawn_cases()[str(result.blank)]
    of_drawn = [notes & drawn for notes in kinds.values() if notes & drawn]
    share = min(mean_share(kinds.values(), result.right), mean_share(of_drawn, result.right))
    return share if share > Fraction(1, 2) else Fraction(0)


def mean_share(kinds, right):
    """The mean over the kinds, sets of notes, of the share that is right."""
    return sum(Fraction(len(notes & set(right)), len(notes)) for notes in kinds) / len(kinds)


def right_by_kind(result):
    """{kind: [right, all]} of the cases of a blank, where not all of them or none are right."""
    if not 0 < len(result.right) < result.total:
        return {}
    return {kind: [len(notes & set(result.right)), len(notes)]
            for kind, notes in cases_by_kind()[str(result.blank)].items()}


@functools.cache
def cases_by_kind():
    """{blank: {kind: the notes of its cases}}: tests/kinds.json has patterns of the notes, of which
    the first that fits counts."""
    found = {}
    for blank in BLANKS:
        kinds = KINDS[str(blank)]
        found[str(blank)] = {kind: set() for kind in kinds}
        for case in blank.cases(0):
            kind = next(kind for kind, patterns in kinds.items()
                        if any(fnmatchcase(case.note, pattern) for pattern in patterns))
            found[str(blank)][kind].add(case.note)
    return found


@functools.cache
def drawn_cases():
    """{blank: the notes of its cases whose inputs depend on the seed}"""
    found = {}
    for blank in BLANKS:
        draws = zip(*(blank.cases(seed) for seed in range(5)))
        found[str(blank)] = {cases[0].note for cases in draws if not all(
            same(list(case.inputs.values()), list(cases[0].inputs.values())) for case in cases)}
    return found
