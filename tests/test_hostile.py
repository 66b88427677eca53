"""Hostile submissions, graded in a cohort beside two honest ones: pytest -m hostile

Each time: the honest ones have the points that they have without company; the hostile one has no
point that it did not earn, and the right statuses; grading ends; no process, no temporary file and
nothing outside the output folder is left. Nothing here can hurt the machine: what would be a danger
without a protection is only run where that protection is in force."""

import csv
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import xml.etree.ElementTree as ElementTree
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grade as command
import pytest
from checks import FILES, client
from checks.client import Nursery
from checks.core import ROOT
from grading import examine, reports, salvage, similarity
from grading.submissions import MAX_ZIP_BYTES, Submission, find_cohort, read, safe
from hostile import LETTERS
from hostile.archives import ARCHIVES, BOMB, NAMES, STUB, archive, many_entries, named
from hostile.harm import HARM
from hostile.lies import LIES
from hostile.spies import SPIES

pytestmark = pytest.mark.hostile
CASE, RUN, SUBMISSION = 2, 6, 10  # seconds of computing
PATIENCE, BOUND = 3, 60  # on the clock: times as many; seconds for a whole cohort
TIMEOUTS = 2  # a file
HONEST = ("a-right", "z-mistake")
MISTAKE = '''
def preference_probability(chosen, rejected):
    return torch.sigmoid(rejected - chosen)
'''


def answers_text(file="ex2_reward"):
    return (ROOT / "answers" / f"{file}.py").read_text("utf-8")


# ---- The grader, watched ------------------------------------------------------------------------


class Grader:
    """The nursery of all tests. It is replaced where a submission hung or ended it."""

    def __init__(self):
        os.environ["GRADER_SECRET"] = "the-secret-of-the-grader"
        self.nursery = Nursery()
        self.answers_runs = command.runs_of_the_answers()
        self.protections = command.protections_here(self.nursery, ROOT / "exercises")
        gc.freeze()  # pytest, run for every JUnit file, collects garbage, which takes long here

    def grade(self, cohort, out, jobs=2):
        """-> ({name: Grade}, seconds). Fails after BOUND seconds, and begins a new nursery."""
        found, begin = [], time.monotonic()

        def work():
            try:
                options = SimpleNamespace(out=out, jobs=jobs, salvage=0)
                found.append(command.grade_cohort(find_cohort(cohort), options,
                                                  self.nursery, self.answers_runs))
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(BOUND)
        if not found or isinstance(found[0], BaseException):
            for _ in range(2):  # the thread may have begun another one
                self.nursery.stop()
                thread.join(BOUND)
            self.nursery = Nursery()
            pytest.fail(f"the batch ended with {found[0]!r}" if found and time.monotonic() - begin
                        < BOUND else f"the batch did not end within {BOUND} seconds")
        return {grade.name: grade for grade in found[0]}, time.monotonic() - begin


@pytest.fixture(scope="session")
def grader():
    grader = Grader()
    yield grader
    grader.nursery.stop()


@pytest.fixture(scope="session")
def alone(grader, tmp_path_factory):
    """What the honest ones get without company."""
    folder = tmp_path_factory.mktemp("alone")
    add_honest(folder / "cohort")
    grades, _ = grader.grade(folder / "cohort", folder / "out")
    assert [grades[name].total() for name in HONEST] == [14, 11]  # 1 the function, 2 the run
    assert [check["name"] for check in grades["z-mistake"].checks if check["mistake"]] == [
        "preference_probability"]
    return grades


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders for a cohort, the output, temporary files and canaries, and short time limits."""
    for name in "cohort", "temporary", "canary":
        (tmp_path / name).mkdir()
    (tmp_path / "canary" / "canary.txt").write_text("tweet")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for name, value in {"CASE_SECONDS": CASE, "RUN_SECONDS": RUN, "SUBMISSION_SECONDS": SUBMISSION,
                        "SUBMISSION_CLOCK": SUBMISSION, "TIMEOUTS_A_FILE": TIMEOUTS}.items():
        monkeypatch.setattr(examine, name, value)
    monkeypatch.setattr(client, "PATIENCE", PATIENCE)
    add_honest(tmp_path / "cohort")
    return tmp_path


def add_honest(cohort):
    for name, more in zip(HONEST, ("", MISTAKE)):
        (cohort / name).mkdir(parents=True)
        (cohort / name / "ex2_reward.py").write_text(answers_text() + more, encoding="utf-8")


# ---- What is left -------------------------------------------------------------------------------


def descendants(pid):
    """All processes below one. An orphan comes to the nursery, so that none escapes."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            parents[int(entry)] = int(fields[1])
        except OSError:
            pass
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def watched(place):
    """{path: what can be seen of it} of all that must stay as it is."""
    seen = {}
    for folder in (place / "canary", place / "cohort", ROOT / "answers", ROOT / "exercises"):
        for path in [folder, *folder.rglob("*")]:
            info = path.lstat()
            if "__pycache__" not in path.parts:
                seen[str(path)] = (info.st_mode, info.st_uid, info.st_size, info.st_mtime_ns,
                                   info.st_nlink)
    return seen


def expected_output(names):
    """What there may be in the output folder."""
    parts = [f"{kind}/{safe(name)}.{end}" for name in names for kind, end in
             (("reports", "md"), ("junit", "xml"), ("state", "json"))]
    return {*parts, *(f"gradescope/{safe(name)}/results.json" for name in names)}


def check_output(out, grades):
    """All of it is there, can be read, and has a modest size; and nothing else is there."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert set(files) == expected_output(grades)
    large = {name: path.stat().st_size for name, path in files.items()
             if path.stat().st_size > 2**19}
    assert not large
    for name, path in files.items():
        if name.endswith(".json"):
            json.loads(path.read_text("utf-8"))
        elif name.endswith(".xml"):
            ElementTree.parse(path)
    for name, grade in grades.items():
        text = files[f"reports/{safe(name)}.md"].read_text("utf-8")
        assert text.count("\n# ") + text.startswith("# ") == 1, "a forged headline"
        assert not set(text) & set(map(chr, {*range(9), *range(11, 32), 127})), "control characters"
    reports.write_csv(list(grades.values()), out / "grades.csv")
    with open(out / "grades.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(grades) and {len(row) for row in rows} == {len(rows[0])}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    summary = reports.summary(list(grades.values()))
    assert not set(summary) & set(map(chr, {*range(10), *range(11, 32), 127}))
    summary.encode("utf-8")


def grade_beside_honest(grader, place, alone, jobs=2):
    """Grade the cohort, and check everything but the hostile one's own points. -> {name: Grade}"""
    before = watched(place)
    grades, seconds = grader.grade(place / "cohort", place / "out", jobs)
    assert watched(place) == before, "something outside the output folder has changed"
    assert list((place / "temporary").iterdir()) == [], "a temporary folder is left"
    assert descendants(grader.nursery.process.pid) == set(), "a process goes on"
    assert grader.nursery.process.poll() is None, "the nursery has ended"
    for name in HONEST:
        assert points_of(grades[name]) == points_of(alone[name]), f"{name} has other points"
    check_output(place / "out", grades)
    return grades


def points_of(grade):
    return [(check["name"], check["status"], check["points"]) for check in grade.checks]


def letters(grade, file):
    marks = {name: letter for letter, name in LETTERS.items()}
    return "".join(marks[check["status"]] for check in grade.checks if check["file"] == file)


def agree(found, wanted):
    return len(found) == len(wanted) and all(
        a == b or b == "*" or (b == "?" and a != "p") for a, b in zip(found, wanted))


def skip_if_dangerous(hostile, grader):
    if hostile.needs not in grader.protections:
        pytest.skip(f"not run without {hostile.needs}, which this system lacks")
    if "syscall" in hostile.code and platform.machine() != "x86_64":
        pytest.skip("calls the kernel by the numbers of x86-64")


def source(hostile, place, grader):
    """The text of a hostile file."""
    base = {"answers": answers_text(hostile.file), "": "import torch\n", "stubs": (
        ROOT / "exercises" / f"{hostile.file}.py").read_text("utf-8")}[hostile.base]
    code = hostile.code.replace("{ANSWERS_TEXT!r}", repr(answers_text(hostile.file)))
    places = {"ANSWERS": ROOT / "answers", "ROOT": ROOT, "CANARY": place / "canary",
              "COHORT": place / "cohort", "OUT": place / "out", "PARENT": os.getpid(),
              "NURSERY": grader.nursery.process.pid, "SECRET": os.environ["GRADER_SECRET"]}
    for name, value in places.items():
        code = code.replace(f"{{{name}}}", str(value))
    return base + code


# ---- The tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", LIES + SPIES + HARM, ids=str)
def test_a_hostile_file(hostile, grader, alone, place):
    skip_if_dangerous(hostile, grader)
    (place / "cohort" / "hostile").mkdir()
    (place / "cohort" / "hostile" / f"{hostile.file}.py").write_text(
        source(hostile, place, grader), encoding="utf-8")
    grade = grade_beside_honest(grader, place, alone)["hostile"]
    assert "the grader failed" not in "; ".join(grade.notes), grade.notes
    text = "\n".join(check["report"] for check in grade.checks)
    found = letters(grade, hostile.file)
    assert agree(found, hostile.statuses), f"{found}, not {hostile.statuses}: {text.strip()[:500]}"
    assert hostile.points in (None, grade.total()), text.strip()[:500]
    assert hostile.says in text


@pytest.mark.parametrize("archive", ARCHIVES, ids=str)
def test_a_hostile_archive(archive, grader, alone, place):
    archive.build(place / "cohort")
    grade = grade_beside_honest(grader, place, alone)["hostile"]
    notes = "; ".join(grade.notes)
    assert agree(letters(grade, "ex2_reward"), archive.statuses), (grade.checks, notes)
    assert grade.total() == archive.points and archive.note in notes, notes
    assert all(check["status"] == "not_started" for check in grade.checks
               if check["file"] != "ex2_reward")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_hostile_name(name, grader, alone, place, monkeypatch):
    monkeypatch.setenv("NEIGHBOUR", HONEST[1])
    named(place / "cohort", name)
    grades = grade_beside_honest(grader, place, alone)
    assert sorted(grade.total() for grade in grades.values()) == [11, 14, 14]


def test_names_that_are_one_name_as_files(grader, alone, place):
    for name in "x?", "x:", "X_", "x_-2":
        named(place / "cohort", name)
    grades = grade_beside_honest(grader, place, alone)
    files = {path.name.casefold() for path in (place / "out" / "reports").iterdir()}
    assert len(grades) == len(files) == 6


# ---- Memory of the process that judges ----------------------------------------------------------


def bytes_in(value):
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(bytes_in, value.values()))
    if isinstance(value, (list, tuple)):
        return sys.getsizeof(value) + sum(map(bytes_in, value))
    return value.nbytes if hasattr(value, "nbytes") else sys.getsizeof(value)


@pytest.mark.parametrize("answer", ["torch.zeros(2**21)", "[[] for _ in range(60_000)]"])
def test_large_answers_do_not_fill_the_judges_memory(answer, grader, place):
    """Eleven calls, 8 MB or 4 MB each."""
    code = f"def pool_scores(*args): return {answer}\n"
    submission = Submission("hostile", {"ex2_reward": (answers_text() + code).encode()})
    _, _, collected, _ = examine.examine(submission, grader.nursery)
    assert sum(bytes_in(outcomes) for _, outcomes, _ in collected) < 2**25


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_bomb_is_not_unpacked_in_memory(method, tmp_path):
    """64 MB of line ends. (bzip2 makes 300 KB of 4 GB, which one call would unpack.)"""
    bomb = archive(tmp_path, [("ex2_reward.py", BOMB)], method)
    tracemalloc.start()
    try:
        submission = read(bomb, "hostile", FILES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert submission.files == {} and submission.notes and peak < 2**24, peak


def test_the_list_of_a_million_files_is_not_read(tmp_path):
    """zipfile would make 700 MB of it."""
    path = many_entries(tmp_path, 10**6)
    assert path.stat().st_size < MAX_ZIP_BYTES, "small enough to be opened"
    tracemalloc.start()
    try:
        submission = read(path, "hostile", FILES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert submission.files == {} and submission.notes and peak < 2**24, peak


# ---- Fewer protections --------------------------------------------------------------------------


@pytest.fixture
def weaker(monkeypatch, tmp_path):
    """A function: a nursery on a system that lacks some protections."""
    nurseries = []

    def make(*lacking):
        folder = tmp_path / "worker"
        shutil.copytree(client.WORKERS, folder)
        text, loop = (folder / "jail.py").read_text("utf-8"), "    for name, restrict in parts"
        assert loop in text
        text = text.replace(loop, f"    for name in {lacking}:\n        del parts[name]\n{loop}")
        (folder / "jail.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(client, "WORKERS", folder)
        nurseries.append(Nursery())
        return nurseries[-1]

    yield make
    for nursery in nurseries:
        nursery.stop()


@pytest.mark.parametrize("lacking, name", [
    (("namespaces",), "sends signals"),
    (("namespaces",), "makes itself and the warm process slow"),
    (("namespaces",), "watches folders for the names of others"),
    (("namespaces", "landlock"), "sends signals"), (("seccomp",), "writes files"),
    (("landlock",), "sends signals")], ids=str)
def test_a_system_with_fewer_protections(lacking, name, weaker, grader, alone, place, monkeypatch):
    """What remains still holds, and the report says what it was."""
    hostile = next(spy for spy in SPIES if spy.name == name)
    monkeypatch.setattr(grader, "nursery", weaker(*lacking))
    (place / "cohort" / "hostile").mkdir()
    (place / "cohort" / "hostile" / "ex2_reward.py").write_text(
        source(hostile, place, grader), encoding="utf-8")
    grade = grade_beside_honest(grader, place, alone)["hostile"]
    assert grade.total() == 14, "\n".join(check["report"] for check in grade.checks)[:500]
    assert not set(lacking) & set(grade.protections)


# ---- The command --------------------------------------------------------------------------------


def test_the_command_grades_a_cohort_with_hostile_files(grader, place):
    """From end to end, in a process of its own, in a folder with files that would be imported."""
    cohort = place / "cohort"
    codes = {"exits": "import os; os._exit(0)", "loops": "while True: pass",
             "prints": "print('100 of 100')", "stubs": ""}
    for name, code in codes.items():
        (cohort / name).mkdir()
        (cohort / name / "ex2_reward.py").write_text(STUB.decode() + code, encoding="utf-8")
    for shadow in "conftest.py", "sitecustomize.py", "json.py", "torch.py", "pytest.py":
        (cohort / shadow).write_text(f"open({str(place / 'canary' / 'imported')!r}, 'w')")
    (cohort / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    before = watched(place)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "grade.py"), ".", "--out", str(place / "out"),
         "--similarity"], cwd=cohort, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    with open(place / "out" / "grades.csv", newline="", encoding="utf-8-sig") as file:
        totals = {row["student"]: float(row["total"]) for row in csv.DictReader(file)}
    assert totals == {"a-right": 14, "z-mistake": 11, **dict.fromkeys(codes, 0)}
    assert watched(place) == before and "6 graded" in done.stdout


def test_similarity_survives_files_that_are_hard_to_parse(tmp_path, capsys):
    """A number of 20000 digits, brackets, a deep tree, zero bytes, and no UTF-8 at all."""
    texts = {"digits": b"def f():\n    return 0x" + b"f" * 20_000, "brackets": b"(" * 10**5,
             "minus": b"x = " + b"-" * 10**5 + b"1", "dots": b"x = a" + b".a" * 10**5,
             "zero": b"\0", "latin": b"# \xff\n'\xff'"}
    cohort = []
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "ex2_reward.py").write_bytes(text)
        cohort.append((tmp_path / name, name))
    similarity.write_csv(cohort, tmp_path / "similarity.csv")
    assert (tmp_path / "similarity.csv").exists()
    seen = capsys.readouterr().out
    assert all(f"ex2_reward.py of {name}\n" in seen for name in texts)


LONG = 2**16 - 100
HARD = {"minus": b"x = " + b"-" * LONG + b"1", "dots": b"x = a" + b".a" * (LONG // 2 - 2),
        "brackets": b"def f(): return " + b"(" * LONG, "sum": b"x = 1" + b"+1" * (LONG // 2 - 2),
        "calls": b"def f(): return " + b"f(" * 3000 + b")" * 3000, "zero": b"def f(): 0\0\n",
        "latin": b"def f(): '\xff'", "definitions": b"def f(:\n" * (LONG // 8),
        "one definition": b"def f(\n" + b"x\n" * (LONG // 2 - 4), "large": b"#" * 2**17}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_salvage_survives_files_that_are_hard_to_parse(text):
    """In a thread, as in the grader, whose stack is smaller; and in modest memory."""
    with ThreadPoolExecutor(1) as pool:
        tracemalloc.start()
        try:
            found = pool.submit(salvage.what_parses, text).result(BOUND)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found is None and peak < 2**26, peak


def test_salvage_runs_nothing_of_a_file_in_the_judging_process(grader, place):
    """What would be run when a file is loaded, or by a decorator or a default, says where it is."""
    code = (f"import os\nopen({str(place / 'canary' / 'ran')!r}, 'w')\n"
            "def f(x=os.kill(os.getpid(), 9)):\n    pass\n" + answers_text() + "def g(:\n")
    (place / "cohort" / "hostile").mkdir()
    (place / "cohort" / "hostile" / "ex2_reward.py").write_text(code, encoding="utf-8")
    options = SimpleNamespace(out=place / "out", jobs=2, salvage=0.5)
    grades = {grade.name: grade for grade in command.grade_cohort(
        find_cohort(place / "cohort"), options, grader.nursery, grader.answers_runs)}
    assert [grades[name].total() for name in HONEST] == [14, 11]
    assert grades["hostile"].total() == 0 and len(grades["hostile"].notes) == 1
    assert "does not load" in grades["hostile"].notes[0]
    assert sorted(path.name for path in (place / "canary").iterdir()) == ["canary.txt"]


def nested(number, statements):
    """Functions inside one another, with statements in the innermost, all different."""
    lines = [" " * i + f"def f{i}():" for i in range(number)]
    return "\n".join(lines + [" " * number + f"x = {i} + y" for i in range(statements)]).encode()


def bytes_for(text):
    tracemalloc.start()
    try:
        return similarity.pieces(text), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_similarity_counts_an_inner_function_once():
    """Ninety functions inside one another would cost ninety times as much."""
    one, memory = bytes_for(nested(1, 300))
    many, more = bytes_for(nested(90, 300))
    assert len(one) > 1000 and len(many) < 2 * len(one) and more < 4 * memory


def test_similarity_does_not_parse_a_large_file():
    found, memory = bytes_for(nested(1, 15_000))
    assert found is None and memory < 2**20
