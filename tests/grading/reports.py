"""What an instructor reads: grades.csv, a Markdown report a student, JUnit XML, Gradescope's
results.json, and the summary on the terminal."""

import csv
import html
import io
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from .examine import FULL_POINTS, POINTS

HERE = Path(__file__).resolve().parent
UNCOVERED = ("Not covered without a container: copies of the public answers, faults of the kernel, "
             "and, without landlock, files that the grading user can read.")


def write_atomically(path, text, encoding="utf-8"):
    """Whoever is interrupted leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(text, encoding=encoding, newline="")
    os.replace(fresh, path)


def write_table(rows, path, encoding="utf-8-sig"):
    """Rows of cells as CSV. (Excel needs the BOM.)"""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_atomically(path, text.getvalue(), encoding)


def clean(text):
    """Without control characters and broken encodings; they would speak to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def for_spreadsheet(text):
    """A cell that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def write_csv(grades, path, people=None, missing=()):
    """A row a submission. With a roster, people is {submission: Person}, there are names and ids,
    and who has handed in nothing has a row as well."""
    checks = [f"{file}.{name}" for file in POINTS for name in POINTS[file]]
    head = ["student", *(["name", "id"] if people is not None else []), *POINTS, "total", "of",
            "statuses", "protections", "notes", *checks]
    rows = [[for_spreadsheet(cell) for cell in ["", person.name, person.shown_id()]]
            + [""] * (len(head) - 4 - len(checks)) + ["nothing was handed in"] + [""] * len(checks)
            for person in missing]
    for grade in grades:
        counts = Counter(check["status"] for check in grade.checks)
        points = {f"{check['file']}.{check['name']}": check["points"] for check in grade.checks}
        person = people.get(grade.name) if people else None
        who = [person.name, person.shown_id()] if person else ["", ""]
        rows.append([*map(for_spreadsheet, [grade.name, *(who if people is not None else [])]),
                     *(f"{grade.total(file):g}" for file in POINTS), f"{grade.total():g}",
                     FULL_POINTS, "; ".join(f"{n} {name}" for name, n in sorted(counts.items())),
                     " ".join(grade.protections) or "none",
                     for_spreadsheet("; ".join([*grade.notes, *changed_by_hand(grade)])),
                     *(f"{points[name]:g}" if name in points else "" for name in checks)])
    write_table([head, *rows], path)


def changed_by_hand(grade):
    """What overrides.csv says of this submission, a line a function."""
    return [f"{check['file']}.{check['name']}: {check['points']:g} by hand instead of "
            f"{check['earned']:g}: {check['reason']}" for check in grade.checks if check["reason"]]


def markdown(grade):
    """The report for one student. What comes from the student's code stands in indented blocks."""
    lines = [f"# {html.escape(grade.name)}: {grade.total():g} of {FULL_POINTS} points", ""]
    if notes := [*grade.notes, *changed_by_hand(grade)]:
        lines += [*(f"- {html.escape(note)}" for note in notes), ""]
    lines += ["| exercise | function | status | cases right | points |", "| --- " * 5 + "|"]
    for check in grade.checks:
        right, total = check["cases"]
        cases = f"{right} of {total}" if total else ""
        status = check["status"].replace("_", " ")
        if check["name"] == "training_run" and status == "not started":
            status = "waits until all functions are right"
        lines.append(f"| {check['file']} | {check['name']} | {status} | {cases} | "
                     f"{check['points']:g} of {check['of']} |")
    for check in grade.checks:
        if check["report"]:
            lines += ["", f"## {check['file']}.{check['name']}", ""]
            lines += ["    " + line for line in check["report"].splitlines()]
    lines += ["", f"Seed of the cases: {grade.seed}. Protections in force: "
              f"{', '.join(grade.protections) or 'none'}. {UNCOVERED}", ""]
    return "\n".join(lines)


def gradescope(grade):
    """Gradescope's results.json (gradescope-autograders.readthedocs.io, "Autograder output")."""
    tests = [{"name": f"{check['file']}.{check['name']}", "score": check["points"],
              "max_score": check["of"], "output_format": "text",
              "output": check["report"] or check["status"].replace("_", " "),
              "status": "passed" if check["status"] == "passed" else "failed",
              "visibility": "visible"} for check in grade.checks]
    return {"score": grade.total(), "output_format": "text", "visibility": "visible",
            "output": "\n".join([*grade.notes, *changed_by_hand(grade)]),
            "stdout_visibility": "hidden", "tests": tests}


class Checks:
    """Hands the judged checks of one submission to pytest."""

    def __init__(self, checks):
        self.checks = checks

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("check", self.checks, ids=lambda c: f"{c['file']}.{c['name']}")


def write_junit(grade, path):
    """pytest, with nothing but the project's own file and fixed arguments, writes the XML: no
    submission's folder is ever an argument, a root or a place that it imports from. Nor is a
    student's name: pytest takes the name of the XML file for a text with variables like $USER."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder, "junit.xml")
        run_pytest(Checks(grade.checks), xml)
        write_atomically(path, xml.read_text("utf-8"))


def run_pytest(checks, xml):
    options = os.environ.pop("PYTEST_ADDOPTS", None)
    without = ("cacheprovider", "terminal", "unraisableexception", "threadexception", "logging")
    code = pytest.main(
        [str(HERE / "as_tests.py"), "-c", str(HERE / "pytest.ini"), "--rootdir", str(HERE),
         "--noconftest", "--assert=plain", "--capture=no",  # nothing is computed or printed there
         *(f"-pno:{plugin}" for plugin in without), f"--junitxml={xml}"],
        plugins=[checks])
    if options is not None:
        os.environ["PYTEST_ADDOPTS"] = options
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")


def write_all(grade, out):
    """Everything about one submission. The state comes last: it says that the rest is there."""
    name = grade.name
    grade.notes = [clean(note).replace("\n", " ") for note in grade.notes]
    for check in grade.checks:
        check["report"] = clean(check["report"])
    write_atomically(out / "reports" / f"{name}.md", markdown(grade))
    write_atomically(out / "gradescope" / name / "results.json",
                     json.dumps(gradescope(grade), indent=2))
    write_junit(grade, out / "junit" / f"{name}.xml")
    write_atomically(out / "state" / f"{name}.json", json.dumps(vars(grade)))


def summary(grades):
    """The distribution, the blanks that went wrong most, and the commonest named mistakes."""
    totals = sorted(grade.total() for grade in grades)
    middle = (totals[(len(totals) - 1) // 2] + totals[len(totals) // 2]) / 2
    lines = [f"{len(grades)} graded. Points of {FULL_POINTS}: lowest {totals[0]:g}, "
             f"median {middle:g}, highest {totals[-1]:g}."]
    for low in range(0, 100, 10):
        here = sum(low <= 100 * total / FULL_POINTS < low + 10
                   or (low == 90 and total == FULL_POINTS) for total in totals)
        bar = "#" * round(40 * here / len(totals))
        lines.append(f"  {low:>3}-{low + 10:<3}% {here:>4} {bar}")
    wrong, mistakes = Counter(), Counter()
    for grade in grades:
        wrong.update(f"{file}.py does not load" for file in grade.not_loaded)
        for check in grade.checks:
            name = f"{check['file']}.{check['name']}"
            if (check["status"] not in ("passed", "not_started")
                    and check["file"] not in grade.not_loaded):
                wrong[name] += 1
            if check["mistake"]:
                mistakes[f"{name}: {without_number(check['mistake'])}"] += 1
    for title, counter in ("Most often wrong", wrong), ("Commonest known mistakes", mistakes):
        lines += [f"{title}:" if counter else f"{title}: none"]
        lines += [f"  {n:>4} {name}" for name, n in counter.most_common(5)]
    return "\n".join(lines)


def without_number(mistake):
    """A known mistake's name, without its number in a list that nobody else has."""
    return re.sub(r" \(\d+\)", "", mistake)


def by_hand(grades, left_out, missing=()):
    """Who has to be looked at, and why, a line each: whatever has a note, ran into a time limit or
    was tampered with, what in the cohort's folder is nobody's submission, and who is missing."""
    lines = [f"  {name}: neither a folder nor a zip file, and not graded" for name in left_out]
    lines += [f"  {clean(name)}: in the roster, and nothing was handed in" for name in missing]
    for grade in grades:
        odd = Counter(check["status"] for check in grade.checks
                      if check["status"] in ("tampered", "timeout")
                      and check["file"] not in grade.not_loaded)
        reasons = [*grade.notes, *(f"{n} x {status}" for status, n in odd.items())]
        if reasons:
            lines.append(f"  {grade.name}: {'; '.join(reasons)}")
    return "\n".join([f"Check by hand ({len(lines)}):" if lines else "Check by hand: nobody.",
                      *lines])
