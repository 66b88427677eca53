"""The grader with what instructors have (folders, zips, clones, files that are odd by accident) and
what they get: the gradebook, the reports, resuming, and the command's options."""

import ast
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from fnmatch import fnmatchcase
from fractions import Fraction
from types import SimpleNamespace

import grade as command
import pytest
import torch
import yaml
from checks import BLANKS, FILES, RUNS, client
from checks.client import LockedWorker, Nursery
from checks.core import ROOT, Result, compare, load_answers, performed
from grading import examine, gradebook, reports, salvage, similarity
from grading.examine import FULL_POINTS, POINTS, Grade, earned_share
from grading.submissions import Submission, exercise_in, find_cohort, read, safe
from make_exercises import make_stubs

ANSWERS = {file: (ROOT / "answers" / f"{file}.py").read_bytes() for file in FILES}
STUBS = {file: make_stubs(ANSWERS[file].decode(), file).encode() for file in FILES}
FILE = "ex2_reward.py"
ANSWER = ANSWERS["ex2_reward"]
pytestmark = pytest.mark.slow  # a student's pytest does without
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the warm process is Linux's")


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.stop()


@pytest.fixture(scope="module")
def answers_runs():
    return command.runs_of_the_answers()


@pytest.fixture
def run(nursery, answers_runs):
    """A function: grades a cohort's folder. -> {name: Grade}"""
    def grade(cohort, out, one=False):
        found = find_cohort(cohort, one)
        options = SimpleNamespace(out=out, jobs=2, salvage=0)
        return {grade.name: grade for grade in command.grade_cohort(
            found, options, nursery, answers_runs)}
    return grade


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def three_students(folder):
    """A cohort of alice, bob and carol, who have one file, and it is right. -> its folder"""
    return put(folder, {f"{name}/{FILE}": ANSWER for name in ("alice", "bob", "carol")})


def put_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read_one(path):
    return read(path, "alice", FILES)


# ---- What is handed in --------------------------------------------------------------------------

PLACES = ["", "exercises/", "homework/", "alice's clone/exercises/", "作业 1/exercises/",
          "a/b/c/"]


@pytest.mark.parametrize("place", PLACES)
def test_the_files_are_found_wherever_they_are(place, tmp_path):
    files = {f"{place}{file}.py": content for file, content in ANSWERS.items()}
    assert read_one(put(tmp_path / "学生 alice", files)).files == ANSWERS
    assert read_one(put_zip(tmp_path / "学生.zip", files)).files == ANSWERS


def test_a_clone_of_the_repository_is_graded_by_its_exercises(tmp_path):
    clone = put(tmp_path, {f"exercises/{FILE}": STUBS["ex2_reward"], f"answers/{FILE}": ANSWER,
                           f"tests/checks/{FILE}": b"1/0", f"old/{FILE}": b"1/0",
                           f".git/{FILE}": b"1/0", f".venv/lib/{FILE}": b"1/0", FILE: b"1/0"})
    submission = read_one(clone)
    assert submission.files == {"ex2_reward": STUBS["ex2_reward"]}
    assert submission.notes == [f"{FILE} is there 3 times; graded: exercises/{FILE}"]


def test_answers_alone_are_not_handed_in(tmp_path):
    assert read_one(put(tmp_path, {f"answers/{FILE}": ANSWER})).files == {}


def test_a_mac_zip_has_shadows_of_the_files(tmp_path):
    shadows = {f"__MACOSX/._{FILE}": b"\0", f"._{FILE}": b"\0"}
    path = put_zip(tmp_path / "a.zip", {FILE: ANSWER, **shadows})
    assert read_one(path).files == {"ex2_reward": ANSWER} and read_one(path).notes == []


def test_a_cohort_is_folders_and_zips_in_order(tmp_path):
    put(tmp_path, {f"bob/{FILE}": ANSWER, f"Ärger 学/{FILE}": ANSWER, "readme.txt": b"",
                   f".hidden/{FILE}": ANSWER, "empty/notes.txt": b""})
    put_zip(tmp_path / "bob.zip", {FILE: ANSWER})
    put_zip(tmp_path / "ALICE.ZIP", {FILE: ANSWER})
    names = [name for _, name in find_cohort(tmp_path)]
    assert names == ["ALICE", "bob", "bob-zip", "empty", "Ärger 学"]


@pytest.mark.parametrize("files", [{FILE: ANSWER}, {f"exercises/{FILE}": ANSWER}, {"x": b""}])
def test_one_submission_is_a_cohort_of_one(files, tmp_path):
    put(tmp_path / "alice", files)
    assert find_cohort(tmp_path / "alice", one=True) == [(tmp_path / "alice", "alice")]
    path = put_zip(tmp_path / "bob.zip", files)
    assert find_cohort(path) == find_cohort(path, one=True) == [(path, "bob")]


@pytest.mark.parametrize("place", ["exercises/", "exercises/exercises/", "", "alice/exercises/"])
@pytest.mark.parametrize("file", ["ex1_sft.py", FILE])
def test_nothing_that_a_student_hands_in_makes_a_cohort_one_submission(place, file, tmp_path):
    """Neither a student called "exercises" nor a file beside the students' folders."""
    three_students(tmp_path)
    put(tmp_path, {f"{place}{file}": ANSWER})
    names = [name for _, name in find_cohort(tmp_path)]
    assert names == sorted({"alice", "bob", "carol", *place.split("/")[:1]} - {""})


def test_one_submission_without_the_option_is_told_of_it(tmp_path, capsys):
    put(tmp_path, {f"alice/{FILE}": ANSWER, f"bob/exercises/{FILE}": ANSWER})
    with pytest.raises(ValueError, match="add --one"):
        find_cohort(tmp_path / "alice")
    assert find_cohort(tmp_path / "bob") == [(tmp_path / "bob" / "exercises", "exercises")]
    assert "add --one" in capsys.readouterr().out


def test_a_student_who_is_a_link_has_a_row_that_says_so(tmp_path):
    """A link to a folder, to a zip file, to nothing, to itself, and to what may not be read."""
    cohort = put(tmp_path / "cohort", {f"alice/{FILE}": ANSWER})
    put(tmp_path / "other", {FILE: ANSWER})
    put_zip(tmp_path / "other.zip", {FILE: ANSWER})
    links = {"bob": "../other", "carol.zip": "../other.zip", "dave": "../nothing",
             "eve": "eve", "fay": "/root/secret/fay"}
    for name, target in links.items():
        (cohort / name).symlink_to(target)
    submissions = [read(*place, FILES) for place in find_cohort(cohort)]
    assert [each.name for each in submissions] == ["alice", "bob", "carol", "dave", "eve", "fay"]
    assert submissions[0].files and submissions[0].notes == []
    for each in submissions[1:]:
        assert each.files == {} and "it is a link" in each.notes[0]


def test_a_link_that_the_instructor_names_is_followed(tmp_path):
    (tmp_path / "newest").symlink_to(put(tmp_path / "alice", {FILE: ANSWER}))
    (place, name), = find_cohort(tmp_path / "newest", one=True)
    assert name == "alice" and read(place, name, FILES).files == {"ex2_reward": ANSWER}


def test_submissions_are_read_one_after_the_other(tmp_path, monkeypatch, answers_runs):
    """Of 30 submissions, only as many as jobs + 2 have been read and not yet graded."""
    for n in range(30):
        put(tmp_path / f"s{n:02}", {FILE: ANSWER})
    log, empty = [], (0, [], [], [])
    real = command.read
    monkeypatch.setattr(command, "read", lambda *args: log.append("read") or real(*args))
    monkeypatch.setattr(examine, "examine", lambda submission, nursery: empty)
    monkeypatch.setattr(examine, "grade", lambda submission, examined, runs: log.append("graded")
                        or Grade(submission.name, "", 0, [], []))
    monkeypatch.setattr(reports, "write_all", lambda grade, out: None)
    options = SimpleNamespace(out=tmp_path / "out", jobs=2, salvage=0)
    command.grade_cohort(find_cohort(tmp_path), options, None, answers_runs)
    waiting = [log[:i].count("read") - log[:i].count("graded") for i in range(len(log) + 1)]
    assert max(waiting) <= 4 and log.count("read") == log.count("graded") == 30


ODD_FILES = {
    "Windows line ends": (ANSWER.replace(b"\n", b"\r\n"), 14, "", ""),
    "old Macintosh line ends": (ANSWER.replace(b"\n", b"\r"), 14, "", ""),
    "a BOM": (b"\xef\xbb\xbf" + ANSWER, 14, "", ""),
    "tabs": (ANSWER.replace(b"    ", b"\t"), 14, "", ""),
    "half done": (STUBS["ex2_reward"] + b"\n\ndef last_token_index(attention_mask):\n"
                  b"    places = torch.arange(attention_mask.shape[1])\n"
                  b"    return (attention_mask * places).argmax(dim=1)\n",
                  3, "not_started", ""),
    "a syntax error": (ANSWER + b"\ndef f(:\n", 0, "crashed", "SyntaxError"),
    "old Python": (ANSWER + b'\nprint "done"\n', 0, "crashed", "SyntaxError"),
    "a merge conflict": (b"<<<<<<< HEAD\n" + ANSWER, 0, "crashed", "SyntaxError"),
    "a package that is not there": (ANSWER + b"\nimport pandas_that_is_not_there\n", 0, "crashed",
                                    "ModuleNotFoundError"),
    "an empty file": (b"", 0, "not_started", ""),
    "the stubs": (STUBS["ex2_reward"], 0, "not_started", "")}


@needs_linux
def test_files_that_are_odd_by_accident(tmp_path, run):
    """All in one cohort: each has its points, the right status and a report that says why."""
    for name, (content, *_) in ODD_FILES.items():
        put(tmp_path / "cohort" / name, {FILE: content})
    put(tmp_path / "cohort" / "a notebook", {"ex2_reward.ipynb": b'{"cells": []}'})
    put(tmp_path / "cohort" / "nothing", {"readme.md": b"# done"})
    grades = run(tmp_path / "cohort", tmp_path / "out")
    for name, (_, points, status, words) in ODD_FILES.items():
        checks = [check for check in grades[name].checks if check["file"] == "ex2_reward"]
        assert grades[name].total() == points, name
        assert status in [check["status"] for check in checks] or status == "", (name, checks)
        assert words in checks[0]["report"], name
    for name, note in ("a notebook", "a notebook: hand in"), ("nothing", ""):
        assert grades[name].total() == 0 and note in "; ".join(grades[name].notes)
        assert {check["status"] for check in grades[name].checks} == {"not_started"}


# ---- Nothing is worth nothing without a word ----------------------------------------------------


@pytest.mark.parametrize("name, file", [
    ("ex3_ppo.py", "ex3_ppo"), ("ex3_ppo (1).py", "ex3_ppo"), ("ex3_ppo(2).py", "ex3_ppo"),
    ("name_123_ex3_ppo.py", "ex3_ppo"), ("name_123_4567_ex3_ppo-2.py", "ex3_ppo"),
    ("Copy of ex3_ppo.py", "ex3_ppo"), ("ex3_ppo - Kopie.py", "ex3_ppo"),
    ("EX3_PPO.PY", "ex3_ppo"), ("ex3-ppo_final2.py", "ex3_ppo"), ("作业ex1_sft.py", "ex1_sft"),
    ("ex3_ppo.py.txt", "ex3_ppo"), ("ex3_ppology.py", None), ("alex3_ppo.py", None),
    ("ex3.py", None), ("ex3_ppo.txt", None), ("ex3_ppo.pyc", None),
    ("ex3_ppo-" * 40 + ".py", None)])
def test_names_that_were_added_to_are_recognised(name, file):
    assert exercise_in(name) == file


def test_a_renamed_file_is_graded_and_said(tmp_path):
    for place in put(tmp_path / "a", {"name_123_ex2_reward.py": ANSWER}), put_zip(
            tmp_path / "b.zip", {"homework/ex2_reward (1).py": ANSWER}):
        submission = read_one(place)
        assert submission.files == {"ex2_reward": ANSWER}
        assert "ex2_reward.py has another name; graded: " in submission.notes[0]


def test_the_right_name_goes_before_others_and_the_newest_copy_before_older_ones(tmp_path):
    older, newest = {"ex2_reward (2).py": b"2", "ex2_reward.py.txt": b"0"}, {
        "ex2_reward (3).py": b"3"}
    submission = read_one(put(tmp_path, {**older, **newest}))
    assert submission.files == {"ex2_reward": b"3"}
    assert "not graded: ex2_reward (2).py, ex2_reward.py.txt" in submission.notes
    submission = read_one(put(tmp_path, {FILE: ANSWER}))
    assert submission.files == {"ex2_reward": ANSWER} and len(submission.notes) == 1
    assert "not graded: " in submission.notes[0]


@pytest.mark.parametrize("files, words", [
    ({}, ["no exercise was found"]), ({"readme.md": b""}, ["no exercise was found"]),
    ({"all.rar": b""}, ["no exercise was found", "not unpacked: all.rar"]),
    ({f"answers/{FILE}": ANSWER}, ["no exercise was found"]),
    ({"homework4.py": b"", FILE: b""}, ["no exercise has this name: homework4.py"]),
    ({"lesson1_sft.py": b"", "exercises/load.py": b"", FILE: b""}, []),
    ({f"{n}.py": b"" for n in range(9)}, ["no exercise was found", "0.py, 1.py, 2.py, and 6 more"]),
    ({f"{file}.py": b"" for file in FILES} | {"mine.py": b""}, [])])
def test_what_is_missing_and_what_is_there_instead_is_said(files, words, tmp_path):
    folder = put(tmp_path / "alice", files)
    folder.mkdir(exist_ok=True)
    for submission in read_one(folder), read_one(put_zip(tmp_path / "alice.zip", files)):
        assert len(submission.notes) == len(words)
        assert all(word in note for word, note in zip(words, submission.notes))


def test_files_as_canvas_names_them_are_a_submission_an_owner(tmp_path):
    put(tmp_path, {"smithalice_12_345_ex1_sft.py": b"1", "smithalice_12_346_ex2_reward-3.py": b"2",
                   "leebob_LATE_7_9_ex1_sft.py": b"3", "leebob_7_9_notes.py": b"",
                   f"carol/{FILE}": ANSWER})
    put_zip(tmp_path / "leebob_7.zip", {})
    submissions = {name: read(place, name, FILES) for place, name in find_cohort(tmp_path)}
    assert set(submissions) == {"carol", "leebob_7", "leebob_7-files", "smithalice_12"}
    assert submissions["smithalice_12"].files == {"ex1_sft": b"1", "ex2_reward": b"2"}
    assert submissions["smithalice_12"].notes == []
    assert submissions["leebob_7-files"].files == {"ex1_sft": b"3"}


def test_a_folder_with_one_zip_file_is_what_moodle_makes_of_it(tmp_path):
    """Two of them, or a link to one, are for a human."""
    folder = tmp_path / "Alice Smith_4711_assignsubmission_file_"
    folder.mkdir()
    put_zip(folder / "submission.zip", {FILE: ANSWER})
    assert read_one(folder).files == {"ex2_reward": ANSWER} and read_one(folder).notes == []
    put_zip(folder / "older.zip", {FILE: b""})
    assert read_one(folder).files == {}
    assert "not unpacked: older.zip, submission.zip" in read_one(folder).notes[1]
    put_zip(tmp_path / "other.zip", {FILE: ANSWER})
    for name in "older.zip", "submission.zip":
        (folder / name).unlink()
    (folder / "submission.zip").symlink_to("../other.zip")
    assert read_one(folder).files == {} and "not unpacked" in read_one(folder).notes[1]


BROKEN = ANSWER + b"\ndef f(:\n"
FUNCTIONS = ["last_token_index", "pool_scores", "preference_probability", "pairwise_loss",
             "preference_accuracy"]


@pytest.fixture(scope="module")
def unlucky(tmp_path_factory, nursery, answers_runs):
    """A cohort of files that earn nothing as they are, graded without and with salvage.
    -> {share: (folder of the output, {name: Grade})}"""
    folder, found = tmp_path_factory.mktemp("unlucky"), {}
    texts = {"broken": BROKEN, "stubs": STUBS["ex2_reward"], "ends": b"import os; os._exit(0)",
             "half": ANSWER.replace(b"def pairwise_loss(", b"def pairwise_loss((", 1),
             "wrong": b"def pool_scores(*args): return 0"}
    for name, text in texts.items():
        put(folder / "cohort" / name, {FILE: text})
    (folder / "cohort" / "nothing").mkdir()
    for share in 0, 0.5:
        options = SimpleNamespace(out=folder / f"out{share}", jobs=2, salvage=share)
        grades = command.grade_cohort(find_cohort(folder / "cohort"), options, nursery,
                                      answers_runs)
        reports.write_csv(grades, options.out / "grades.csv")
        found[share] = options.out, {grade.name: grade for grade in grades}
    return found


@needs_linux
def test_no_zero_is_silent(unlucky):
    """A note in the table, in the report and in the list at the end of the command."""
    out, grades = unlucky[0]
    line = len(BROKEN.splitlines())
    words = {"broken": f"does not load: line {line} def f(: SyntaxError: invalid syntax",
             "stubs": "0 points: nothing is begun", "nothing": "no exercise was found",
             "ends": "ex2_reward.py does not load: the process ended",
             "half": "ex2_reward.py does not load: line", "wrong": "0 points: nothing is right"}
    with open(out / "grades.csv", newline="", encoding="utf-8-sig") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    listed = reports.by_hand(list(grades.values()), ["bob.tar.gz"]).splitlines()
    assert listed[0] == "Check by hand (7):" and listed[1].startswith("  bob.tar.gz: neither")
    for name, grade in grades.items():
        assert grade.total() == 0 and len(grade.notes) == 1 and words[name] in grade.notes[0]
        assert grade.notes[0] in rows[name]["notes"]
        assert reports.html.escape(grade.notes[0]) in (
            out / "reports" / f"{name}.md").read_text("utf-8")
        assert f"  {name}: {grade.notes[0]}" in listed
    assert reports.by_hand([Grade("alice", "", 0, [], [])], []) == "Check by hand: nobody."


@needs_linux
def test_why_a_file_does_not_load_is_said_once(unlucky):
    out, grades = unlucky[0]
    assert (out / "reports" / "broken.md").read_text("utf-8").count("SyntaxError") == 2  # the note
    assert [bool(check["report"]) for check in grades["broken"].checks if check["file"]
            == "ex2_reward"] == [True] + [False] * 5
    summary = reports.summary(list(grades.values()))
    assert "   3 ex2_reward.py does not load" in summary and "pairwise_loss" not in summary


@needs_linux
def test_salvaged_functions_earn_half_their_points(unlucky):
    """The answers' functions, and a file's training run; and of what does not parse, nothing."""
    out, grades = unlucky[0.5]
    points = {name: [check["points"] for check in grades[name].checks
                     if check["file"] == "ex2_reward"] for name in ("broken", "half")}
    assert points == {"broken": [1.5, 1.5, 0.5, 2, 0.5, 1], "half": [1.5, 1.5, 0.5, 0, 0.5, 0]}
    lost = next(check for check in grades["half"].checks if check["name"] == "pairwise_loss")
    assert lost["status"] == "crashed" and "does not parse" in lost["report"]
    for name, number in ("broken", 5), ("half", 4):
        note = f"{number} functions parse by themselves, and earn 0.5 of their points"
        assert note in grades[name].notes[0]
        assert note in (out / "reports" / f"{name}.md").read_text("utf-8")
        assert note in (out / "grades.csv").read_text("utf-8-sig")
    assert grades["ends"].total() == 0 and len(grades["ends"].notes) == 1


def test_another_share_grades_again(tmp_path):
    submission = read_one(put(tmp_path, {FILE: ANSWER}))
    before = examine.state_of(submission)
    submission.salvage = 0.5
    assert examine.state_of(submission) != before


@pytest.mark.parametrize("text, kept", [
    (BROKEN, FUNCTIONS), (ANSWER + b'\nprint "done"\n', FUNCTIONS), (b"f(:\n" + ANSWER, FUNCTIONS),
    (b"<<<<<<< HEAD\n" + ANSWER, FUNCTIONS), (BROKEN.replace(b"\n", b"\r\n"), FUNCTIONS),
    (ANSWER.replace(b"def pool_scores(", b"def pool_scores((", 1),
     [name for name in FUNCTIONS if name != "pool_scores"]),
    (ANSWER.replace(b"Shapes", b'"""Shapes', 1), FUNCTIONS[1:]),
    (b"def f(\n    a,\n):\n    return a\nf(\n", ["f"]),
    (b"import numpy as np\n@np.vectorize\n@torch.no_grad()\ndef f(a):\n    return a\nf(\n", ["f"]),
    (b"", []), (b"x = 1\n", []), ("def f(): 'ä'".encode("latin-1"), []),
    (b"def f():\n    return " + b"(" * 10**4 + b"\n", []), (b"#" * 2**17 + b"\n" + ANSWER, [])])
def test_what_parses_by_itself_is_kept(text, kept):
    """In its own line, and nothing beside it that does something."""
    found = salvage.what_parses(text)
    assert (found[1] if found else 0) == len(kept)
    if kept:
        tree = ast.parse(found[0])
        assert found[0].count(b"@") == text.count(b"@") and found[0].count(b"numpy") == text.count(
            b"numpy"), "decorators belong to a function, and its file may import numpy"
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert [node.name for node in functions] == kept
        assert {type(node) for node in tree.body} <= {ast.FunctionDef, ast.Import}
        lines = text.decode().splitlines()
        assert all(lines[node.lineno - 1].startswith(f"def {node.name}") for node in functions)


def test_nothing_that_is_kept_does_something_when_it_is_loaded():
    text = (b"import torch, os.path\nimport pandas\nfrom torch import nn\nfrom .x import y\n"
            b"A = -1\nB = [1, (2, 'c')]\nC = f()\nD = A\nE = 1 / 0\nprint(A)\nclass G:\n    x = 1\n"
            b"def f():\n    return 1\nif A:\n    f()\n")
    kept = [line for line in salvage.what_parses(text)[0].decode().splitlines() if line]
    assert kept == ["import torch, os.path", "from torch import nn", "A = -1", "B = [1, (2, 'c')]",
                    "class G:", "    x = 1", "def f():", "    return 1"]


def test_the_summary_has_no_numbers_of_a_list_that_nobody_has():
    check = {**passed_check(), "status": "wrong", "mistake": "no eps (84), and no exact zeros"}
    text = reports.summary([Grade("alice", "", 0, [], [], [check])])
    assert "ex1_sft.f: no eps, and no exact zeros" in text
    for mistake in (mistake for blank in BLANKS for mistake in blank.mistakes):
        assert not re.search(r"\(\d+\)", reports.without_number(mistake.name)), mistake.name


# ---- Points -------------------------------------------------------------------------------------


def test_the_points_are_a_hundred_and_every_check_has_some():
    assert FULL_POINTS == sum(sum(points.values()) for points in POINTS.values()) == 100
    assert {(file, name) for file in POINTS for name in POINTS[file]} == {
        (check.file, check.name) for check in [*BLANKS, *RUNS]}


KINDS_OF_CASES = {"fixed": set("abcdefghij"), "drawn": set("tuvwxyz"), "rare": {"k"}}


@pytest.mark.parametrize("status, right, share", [
    ("passed", "abcdefghijtuvwxyzk", 1), ("wrong", "abcdefghituvwxyzk", (9 / 10 + 1 + 1) / 3),
    ("wrong", "abcdefghijtuvwxyk", (6 / 7 + 1) / 2), ("wrong", "tuvwxyzk", 2 / 3),
    ("wrong", "abcdefghijtuvwxyz", 0), ("wrong", "abcdefghijk", 0), ("wrong", "abcdefghij", 0),
    ("wrong", "ak", 0), ("wrong", "", 0), ("crashed", "abcdefghijtuvwxyk", (6 / 7 + 1) / 2),
    ("timeout", "abcdefghijtuvwxy", 0), ("tampered", "abcdefghijtuvwxy", 0), ("todo", "", 0),
    ("missing", "", 0)])
def test_partial_credit_is_by_kinds_of_cases(status, right, share, monkeypatch):
    """Ten that are the same for every seed, seven that are drawn, and one that is drawn and alone
    of its kind. In the fifth row the last one is wrong: two thirds of all, half of the drawn."""
    monkeypatch.setattr(examine, "cases_by_kind", lambda: {str(BLANKS[0]): KINDS_OF_CASES})
    monkeypatch.setattr(examine, "drawn_cases", lambda: {str(BLANKS[0]): set("tuvwxyzk")})
    result = Result(BLANKS[0], status, list(right), 18)
    assert earned_share(result) == pytest.approx(share)
    result.finished = False  # ended before the last case
    assert earned_share(result) == (1 if status == "passed" else 0)


@pytest.mark.parametrize("worth, share, points", [
    (3, "1", 3), (3, "16/17", 2.5), (100, "999/1000", 99.5), (1, "51/100", 0.5), (1, "9/10", 0.5),
    (8, "3/4", 6), (3, "3/4", 2.5), (2, "2/3", 1.5), (2, "3/5", 1), (7, "0", 0)])
def test_points_are_halves_and_all_of_them_for_what_is_right_alone(worth, share, points):
    """The nearest half; a quarter and three quarters go up."""
    assert examine.in_halves(worth, Fraction(share)) == points


def test_every_case_has_a_kind_and_no_pattern_is_for_nothing():
    """For every seed the same, because a case is known by its note."""
    assert set(examine.KINDS) == set(map(str, BLANKS))
    for blank in BLANKS:
        kinds = examine.cases_by_kind()[str(blank)]
        assert len(kinds) >= 2 and all(kinds.values()), blank
        for seed in range(3):
            assert set().union(*kinds.values()) == {case.note for case in blank.cases(seed)}, blank
        for kind, patterns in examine.KINDS[str(blank)].items():
            for pattern in patterns:
                assert any(fnmatchcase(note, pattern) for note in kinds[kind]), (blank, pattern)


def test_a_mistake_costs_its_kind_however_many_cases_were_written_of_it():
    """Rows with padding on both sides are wrong: two of ten cases, one of four kinds, and of the
    drawn ones, which all have padding, one of three."""
    def wrong(attention_mask):
        last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(dim=1)
        return last - ((attention_mask[:, 0] == 0) & (attention_mask[:, -1] == 0)).long()

    blank = next(blank for blank in BLANKS if blank.name == "last_token_index")
    cases = blank.cases(5)
    result = examine.judge(blank, cases, performed(wrong, cases), None)
    check = examine.as_check(result, Submission("alice"))
    assert check["cases"] == [8, 10] and "padding on both sides 0 of 2; " in check["report"]
    assert check["of"] == 3 and check["points"] == 2


@pytest.mark.parametrize("value", [5.0, -1e308, float("-inf"), float("nan")])
def test_no_number_is_close_to_infinity(value):
    assert compare(value, float("inf"), 1e-4, 1e-5) and compare(float("inf"), value, 1e-4, 1e-5)


def test_a_table_of_the_cases_that_are_always_the_same_earns_nothing():
    """A file that knows the outcomes of all cases of four seeds by heart, and no maths."""
    for blank in BLANKS:
        answer = getattr(load_answers(blank.file), blank.name)
        known = [(case, outcome) for seed in range(4) for case, outcome in zip(
            blank.cases(seed), performed(answer, blank.cases(seed)))]
        cases = blank.cases(1234)
        outcomes = [next((outcome for case, outcome in known if list(
            map(str, case.inputs.items())) == list(map(str, asked.inputs.items()))),
            {"status": "raised", "type": "KeyError", "lines": [], "message": "unknown"})
            for asked in cases]
        result = examine.judge(blank, cases, outcomes, None)
        assert earned_share(result) == 0, (blank, result.right)


def test_every_blank_has_cases_that_are_drawn():
    few = {name: len(notes) for name, notes in examine.drawn_cases().items() if len(notes) < 4}
    assert not few and set(examine.drawn_cases()) == set(map(str, BLANKS))


@needs_linux
def test_every_submission_has_a_seed_of_its_own(graded):
    """What one process saw says nothing of what the next will be asked."""
    seeds = [grade.seed for grade in graded[1].values()]
    assert len(set(seeds)) == len(seeds) == 3


@pytest.mark.parametrize("constant", [0.0, 1.0, True, "", None])
def test_a_constant_earns_nothing(constant):
    from perform import perform

    for blank in BLANKS:
        cases = blank.cases(7)
        outcomes = [perform(lambda *args: constant, case.inputs, case.grad) for case in cases]
        result = examine.judge(blank, cases, outcomes, None)
        assert earned_share(result) == 0, blank


# ---- What is written ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory, nursery, answers_runs):
    """A cohort: alice is right, =bob has a known mistake, 学生 has begun nothing."""
    folder = tmp_path_factory.mktemp("graded")
    mistake = (b"\n\ndef preference_probability(chosen, rejected):\n"
               b"    return torch.sigmoid(rejected - chosen)\n")
    put(folder / "cohort" / "alice", {f"{file}.py": text for file, text in ANSWERS.items()})
    put(folder / "cohort" / "=bob", {FILE: ANSWER + mistake})
    put(folder / "cohort" / "学生 3", {})
    (folder / "cohort" / "学生 3").mkdir()
    options = SimpleNamespace(out=folder / "out", jobs=2, salvage=0)
    grades = command.grade_cohort(find_cohort(folder / "cohort"), options, nursery,
                                  answers_runs)
    reports.write_csv(grades, folder / "out" / "grades.csv")
    return folder / "out", {grade.name: grade for grade in grades}


@needs_linux
def test_the_gradebook_opens_as_a_table(graded):
    out, grades = graded
    with open(out / "grades.csv", newline="", encoding="utf-8-sig") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"alice", "'=bob", "学生 3"}
    assert {name: float(row["total"]) for name, row in rows.items()} == {
        "alice": 100, "'=bob": 11, "学生 3": 0}
    for row in rows.values():
        assert float(row["total"]) == sum(float(row[file]) for file in FILES)
        assert row["of"] == "100"
        for file in FILES:  # a column a function
            assert float(row[file]) == sum(float(row[f"{file}.{name}"]) for name in POINTS[file])
    assert rows["'=bob"]["ex2_reward.pairwise_loss"] == "4"
    assert rows["'=bob"]["ex2_reward.preference_probability"] == "0"
    assert (out / "grades.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # or Excel misreads 学


@needs_linux
def test_the_markdown_report_says_what_went_wrong(graded):
    out, grades = graded
    text = (out / "reports" / "=bob.md").read_text("utf-8")
    assert text.startswith("# =bob: 11 of 100 points\n")
    assert "| ex2_reward | preference_probability | wrong |" in text and "    hint: " in text
    assert "| ex2_reward | training_run | waits until all functions are right |" in text
    assert "| ex1_sft | format_prompt | not started |" in text
    assert f"Seed of the cases: {grades['=bob'].seed}." in text
    assert "Protections in force: " in text and "Not covered without a container" in text
    assert "hint" not in (out / "reports" / "alice.md").read_text("utf-8")


@needs_linux
def test_the_junit_file_has_a_test_a_check(graded):
    out, _ = graded
    counts = {}
    for name in "alice", "=bob", "学生 3":
        suite = ElementTree.parse(out / "junit" / f"{name}.xml").getroot().find("testsuite")
        counts[name] = tuple(int(suite.get(kind)) for kind in (
            "tests", "failures", "errors", "skipped"))
    assert counts == {"alice": (30, 0, 0, 0), "=bob": (30, 1, 0, 25), "学生 3": (30, 0, 0, 30)}


TEST_FIELDS = {"name": str, "score": (int, float), "max_score": (int, float), "output": str,
               "output_format": str, "status": str, "visibility": str}


@needs_linux
def test_gradescopes_file_has_the_documented_fields(graded):
    out, grades = graded
    for name in "alice", "=bob", "学生 3":
        results = json.loads((out / "gradescope" / name / "results.json").read_text("utf-8"))
        assert results["visibility"] == "visible" and results["stdout_visibility"] == "hidden"
        assert results["score"] == round(sum(test["score"] for test in results["tests"]), 2)
        for test in results["tests"]:
            assert set(test) == set(TEST_FIELDS)
            assert all(isinstance(test[key], kind) for key, kind in TEST_FIELDS.items())
            assert test["status"] in ("passed", "failed") and test["output_format"] == "text"
            assert 0 <= test["score"] <= test["max_score"]


@needs_linux
def test_the_summary_has_the_distribution_and_the_mistakes(graded):
    _, grades = graded
    text = reports.summary(list(grades.values()))
    assert "3 graded. Points of 100: lowest 0, median 11, highest 100." in text
    assert "ex2_reward.preference_probability: " in text  # a known mistake, by its name
    assert " 90-100%    1 " in text and "  0-10 %    1 " in text


@pytest.mark.parametrize("write", [
    lambda path: reports.write_csv([Grade("alice", "", 0, [], [])], path),
    lambda path: similarity.write_csv([], path)], ids=["grades", "similarity"])
def test_a_table_that_cannot_be_finished_leaves_the_earlier_one(write, tmp_path, monkeypatch):
    """The last thing that happens is that the new file takes the old one's place."""
    def no_power(*paths):
        raise OSError("the power went")

    table = tmp_path / "table.csv"
    table.write_text("earlier")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_power)
        with pytest.raises(OSError, match="the power went"):
            write(table)
    assert table.read_text() == "earlier"
    write(table)
    assert table.read_bytes().startswith(b"\xef\xbb\xbf") and b"\r\r" not in table.read_bytes()


def test_cells_are_no_formulas():
    for text in "=1", "+1", "-1", "@x", "\t=1", "\r=1":
        assert reports.for_spreadsheet(text) == "'" + text
    assert reports.for_spreadsheet("alice") == "alice"


@pytest.mark.parametrize("name", ["..", ". .", "a/b\\c", "a\0b", "a\nb", "C:x", "\x1b[2J", "\ud800",
                                  "n" * 255, "学" * 85, "\u202e", "", "a|b"])
def test_names_are_safe_as_names_of_files(name):
    name = safe(name)
    assert name and name.isprintable() and not set(name) & set("/\\:*?\"<>|")
    assert not name.startswith(".") and len(f"{name}.json.tmp".encode()) <= 255


# ---- The course's gradebook ---------------------------------------------------------------------

HEAD = "student,function,points,reason\n"


def right_grade(name):
    """All points, without having been graded."""
    return Grade(name, "", 0, [], [], [
        {**passed_check(function), "file": file, "points": worth, "earned": worth, "of": worth}
        for file, functions in POINTS.items() for function, worth in functions.items()])


@needs_linux
def test_points_are_changed_by_hand_with_a_reason_and_back(tmp_path, run, monkeypatch):
    """Also in a run that finds everybody graded, and the seed stays."""
    cohort, out, written = three_students(tmp_path / "cohort"), tmp_path / "out", []
    path = put(out, {"overrides.csv": (HEAD + "bob,ex2_reward.pool_scores,0.5,copied\n").encode()}
               ) / "overrides.csv"
    real = reports.write_all
    monkeypatch.setattr(gradebook, "write_all",
                        lambda grade, out: written.append(grade.name) or real(grade, out))
    seeds = []
    for round in range(3):
        grades = run(cohort, out)
        changes = gradebook.read_overrides(path, list(grades)) if round < 2 else {}
        gradebook.override(grades.values(), changes, out)
        reports.write_csv(list(grades.values()), out / "grades.csv")
        points = 11.5 if round < 2 else 14
        seeds.append(grades["bob"].seed)
        assert [grade.total() for grade in grades.values()] == [14, points, 14]
        words = "ex2_reward.pool_scores: 0.5 by hand instead of 3: copied"
        for file in "reports/bob.md", "gradescope/bob/results.json", "grades.csv":
            assert (words in (out / file).read_text("utf-8-sig")) == (round < 2), file
        assert f"bob: {points:g} of 100" in (out / "reports" / "bob.md").read_text("utf-8")
        scores = json.loads((out / "gradescope" / "bob" / "results.json").read_text("utf-8"))
        assert scores["score"] == points
        assert written == [["bob"], ["bob"], ["bob", "bob"]][round]
    assert len(set(seeds)) == 1


@pytest.mark.parametrize("row, words", [
    ("bbo,ex2_reward.pool_scores,1,x", "line 2: no submission is called 'bbo'"),
    ("bob,pool_scores,1,x", "no column of grades.csv"), ("bob,ex2_reward,1,x", "no column"),
    ("bob,ex2_reward.pool_scores,4,x", "0 to 3"), ("bob,ex2_reward.pool_scores,-1,x", "0 to 3"),
    ("bob,ex2_reward.pool_scores,many,x", "0 to 3"), ("bob,ex2_reward.pool_scores,nan,x", "0 to 3"),
    ("bob,ex2_reward.pool_scores,1,", "needs a reason"), ("bob", "no column"),
    ("bob,ex2_reward.pool_scores,1,x\nbob,ex2_reward.pool_scores,2,y", "line 3: it is there twice"),
    ("bob,ex2_reward.pool_scores,1,\xff", "cannot be read")])
def test_a_change_that_cannot_be_meant_is_an_error_before_grading(row, words, tmp_path, quick,
                                                                 monkeypatch, capsys):
    three_students(tmp_path / "cohort")
    monkeypatch.setattr(command, "grade_cohort", None)  # would be called
    put(tmp_path, {"out/overrides.csv": (HEAD + row).encode("latin-1")})
    assert main(tmp_path / "cohort", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "overrides.csv" in error and words in error


CANVAS_ROSTER = ("\ufeffStudent,ID,SIS User ID,SIS Login ID,Section,Essay (7)\n"
                 "    Points Possible,,,,,10\n"
                 '"Smith, Alice",12345,S1,asmith,Monday,9\n"Lee, Bo",678,S2,blee,Monday,\n'
                 '"Lee, Bo",679,S3,blee2,Monday,\n"Ng, Cy",99,S4,cng,Monday,\n')
MOODLE_ROSTER = ("First name;Surname;ID number;Email address\nAlice;Smith;S1;alice@x.org\n"
                 "Zoë;Öz;S2;zoe@x.org\n")


@pytest.mark.parametrize("roster, name, who", [
    (CANVAS_ROSTER, "smithalice_12345_99_rlhf", "12345"), (CANVAS_ROSTER, "smithalice", "12345"),
    (CANVAS_ROSTER, "Alice Smith", "12345"), (CANVAS_ROSTER, "alice_smith", "12345"),
    (CANVAS_ROSTER, "rlhf-asmith", "12345"), (CANVAS_ROSTER, "S1", "12345"),
    (CANVAS_ROSTER, "leebo_LATE_679_12345_rlhf", "679"), (CANVAS_ROSTER, "blee", "678"),
    (CANVAS_ROSTER, "leebo_12345", None), (CANVAS_ROSTER, "leebo", None),
    (CANVAS_ROSTER, "somebody", None), (CANVAS_ROSTER, "123456", None),
    (CANVAS_ROSTER, "912345", None),
    (MOODLE_ROSTER, "Alice Smith_4711_assignsubmission_file_", "S1"),
    # A person's id is another one's name, or a number of Moodle's own.
    ("Username,First name,Last name\nsmith,John,Smith\nasmith2,Anna,Smith\n",
     "Anna Smith_50101_assignsubmission_file_", None),
    ("ID number,Full name\n50030,Bo Lee\nS2,Anna Smith\n",
     "Anna Smith_50030_assignsubmission_file_", None),
    ("ID number,Full name\nS1,Bo Lee\nS2,Jose\u0301 Mu\u0308ller\n", "José Müller", "S2"),
    (MOODLE_ROSTER, "zoe@x.org", "S2"), (MOODLE_ROSTER, "Zoë Öz_4_assignsubmission_file_", "S2"),
    ("identifier,github_username,name\nAlice Smith,octo-cat,\nBo,cat,\n", "rlhf-octo-cat", None),
    ("identifier,github_username,name\nS1,octo-cat,Alice\nS2,bo,\n", "rlhf-octo-cat", "S1"),
    ("Identifier,Full name,Email address\nParticipant 4711,Alice Smith,a@x.org\n",
     "Alice Smith_4711_assignsubmission_file_", "Participant 4711")])
def test_a_submission_finds_its_row_in_the_roster(roster, name, who, tmp_path):
    (tmp_path / "roster.csv").write_text(roster, encoding="utf-8")
    people = gradebook.read_roster(tmp_path / "roster.csv")
    found, notes, missing = gradebook.join(people, [name])
    assert (name in found) == (who is not None) == (name not in notes)
    assert len(missing) == len(people) - len(found)
    if who is not None:
        assert who in (found[name].shown_id(), found[name].row.get("id"))


def gradebook_of(tmp_path, kind, roster, names):
    """write_tables() of right grades. -> (rows of the file to import, rows of grades.csv, missing,
    grades)"""
    (tmp_path / "roster.csv").write_text(roster, encoding="utf-8")
    people = gradebook.read_roster(tmp_path / "roster.csv")
    gradebook.check_columns(people, kind, "roster.csv")
    grades = [right_grade(name) for name in names]
    options = SimpleNamespace(out=tmp_path, format=kind, assignment="RLHF (4)", similarity=False)
    missing = command.write_tables(grades, people, [], options)
    tables = []
    for name in f"{kind}.csv", "grades.csv":
        with open(tmp_path / name, newline="", encoding="utf-8-sig") as file:
            tables.append(list(csv.reader(file)))
    return *tables, missing, grades


def test_canvas_gets_its_five_columns_and_the_points_possible(tmp_path):
    """Bo Lee has two rows and Alice two submissions: both are for a human, and have no row."""
    names = ["cng_99_7_x", "leebo", "smithalice_12345_4_a", "smithalice_12345_5_b"]
    table, gradebook_, missing, grades = gradebook_of(tmp_path, "canvas", CANVAS_ROSTER, names)
    assert table == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "RLHF (4)"],
        ["    Points Possible", "", "", "", "", "100"],
        ["Ng, Cy", "99", "S4", "cng", "Monday", "100"]]
    assert (tmp_path / "canvas.csv").read_bytes().startswith(b"Student,")  # no BOM
    assert missing == ["Lee, Bo", "Lee, Bo"]
    rows = {row[0]: dict(zip(gradebook_[0], row)) for row in gradebook_[1:]}
    assert [row[1:3] for row in gradebook_[1:3]] == [["Lee, Bo", "S2"], ["Lee, Bo", "S3"]]
    assert rows["cng_99_7_x"]["name"] == "Ng, Cy" and rows["cng_99_7_x"]["id"] == "S4"
    assert "nothing was handed in" in gradebook_[1] and {len(row) for row in gradebook_} == {
        len(gradebook_[0])}
    text = reports.by_hand(grades, [], missing)
    assert "Lee, Bo: in the roster, and nothing was handed in" in text and "  cng" not in text
    assert "leebo: whose it is does not follow" in text and "(in the roster: Lee, Bo, Lee" in text
    assert "Smith, Alice has handed in smithalice_12345_5_b as well" in text


def test_moodle_gets_the_columns_that_name_a_user(tmp_path):
    names = ["Alice Smith_4_assignsubmission_file_", "Zoë Öz_5_assignsubmission_file_"]
    table, *_ = gradebook_of(tmp_path, "moodle", MOODLE_ROSTER, names)
    assert table == [["Email address", "ID number", "RLHF (4)"], ["alice@x.org", "S1", "100"],
                     ["zoe@x.org", "S2", "100"]]


@pytest.mark.parametrize("kind, roster, words", [
    ("canvas", None, "--roster"), ("canvas", "Name,Email\nA,b\n", "no columns Student and ID"),
    ("moodle", "Name,Mail\nA,b\n", "no column Email address, ID number"),
    ("moodle", "a,b\n1,2\n", "names nobody"), ("moodle", "", "names nobody"),
    ("moodle", "Name\n\xff", "cannot be read")])
def test_a_roster_that_does_not_do_is_an_error_before_grading(kind, roster, words, tmp_path, quick,
                                                             monkeypatch, capsys):
    three_students(tmp_path / "cohort")
    monkeypatch.setattr(command, "grade_cohort", None)
    more = []
    if roster is not None:
        (tmp_path / "roster.csv").write_bytes(roster.encode("latin-1"))
        more = ["--roster", tmp_path / "roster.csv"]
    assert main(tmp_path / "cohort", "--out", tmp_path / "out", "--format", kind, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and not (tmp_path / "out").exists()


def test_the_command_joins_and_says_who_is_missing(tmp_path, quick, capsys):
    put(tmp_path, {f"cohort/14/{FILE}": ANSWER})
    (tmp_path / "roster.csv").write_text("Name,ID number\nAlice,14\nBob,15\n")
    command.main([str(tmp_path / "cohort"), "--out", str(tmp_path / "out"), "--format", "moodle",
                  "--roster", str(tmp_path / "roster.csv")])
    assert capsys.readouterr().out.endswith(
        "Check by hand (1):\n  Bob: in the roster, and nothing was handed in\n")
    assert (tmp_path / "out" / "moodle.csv").read_text() == "ID number,RLHF exercises\n14,14\n"


# ---- Grading again ------------------------------------------------------------------------------


@needs_linux
def test_nobody_is_graded_twice_and_who_changed_is(tmp_path, run, monkeypatch):
    cohort, out, asked = three_students(tmp_path / "cohort"), tmp_path / "out", []
    real = examine.examine
    monkeypatch.setattr(examine, "examine",
                        lambda submission, nursery: asked.append(submission.name)
                        or real(submission, nursery))
    first = run(cohort, out)
    assert sorted(asked) == ["alice", "bob", "carol"]
    asked.clear()
    assert run(cohort, out) == first and asked == []
    put(cohort / "bob", {FILE: STUBS["ex2_reward"]})
    (out / "state" / "carol.json").write_text('{"name": "car')  # the power went
    again = run(cohort, out)
    assert sorted(asked) == ["bob", "carol"]
    assert [grade.total() for grade in again.values()] == [14, 0, 14]


@needs_linux
def test_an_interrupted_run_goes_on(tmp_path, run, monkeypatch):
    cohort, out, written = three_students(tmp_path / "cohort"), tmp_path / "out", []
    real = reports.write_all

    def interrupted(grade, out):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(grade.name)
        real(grade, out)

    with monkeypatch.context() as patch:
        patch.setattr(reports, "write_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(cohort, out)
    seed = json.loads((out / "state" / "alice.json").read_text())["seed"]
    grades = run(cohort, out)
    assert grades["alice"].seed == seed and {grade.total() for grade in grades.values()} == {14}


@needs_linux
def test_the_computing_of_a_locked_worker_is_counted(nursery, tmp_path, monkeypatch):
    """It computes in a child of the process that the warm one has started."""
    monkeypatch.setattr(client, "PATIENCE", 60)
    put(tmp_path, {FILE: b"while True: pass"})
    worker = LockedWorker(tmp_path, nursery)
    answer = worker.ask({"file": "ex2_reward", "function": "f", "inputs": {}, "grad": []}, 1)
    assert answer["message"] == "no answer within 1 seconds of computing: does it loop for ever?"


LATE = {"status": "timeout", "message": "no answer"}


@pytest.fixture
def slow_beside_others(monkeypatch):
    """examine() with a machine on which bob's last function is too late, as often as `times` says.
    -> a list of who begins and ends."""
    log, real = SimpleNamespace(times=1, events=[]), examine.examine

    def examined(submission, nursery):
        log.events.append(f"{submission.name} begins")
        seed, protections, collected, runs = real(submission, nursery)
        log.events.append(f"{submission.name} ends")
        if submission.name == "bob" and log.times > 0:
            log.times -= 1
            number = next(i for i, blank in enumerate(BLANKS) if blank.name == "pool_scores")
            cases, outcomes, _ = collected[number]
            collected[number] = cases, outcomes[:-1], LATE
        return seed, protections, collected, runs

    monkeypatch.setattr(examine, "examine", examined)
    return log


@needs_linux
def test_a_timeout_is_tried_once_more_alone_at_the_end(tmp_path, run, slow_beside_others):
    cohort, out = three_students(tmp_path / "cohort"), tmp_path / "out"
    grades = run(cohort, out)
    assert [grade.total() for grade in grades.values()] == [14, 14, 14]
    assert slow_beside_others.events[-2:] == ["bob begins", "bob ends"]
    assert slow_beside_others.events.count("bob begins") == 2 and len(
        slow_beside_others.events) == 8, "one of them more, when the three had ended"
    assert "bob: 14 of 100" in (out / "reports" / "bob.md").read_text("utf-8")
    slow_beside_others.events.clear()
    assert run(cohort, out) == grades and slow_beside_others.events == []


@needs_linux
def test_the_same_command_tries_timeouts_again(tmp_path, run, slow_beside_others):
    """Twice too late in the first run. The second one tries him alone, and nobody else."""
    cohort, out = three_students(tmp_path / "cohort"), tmp_path / "out"
    slow_beside_others.times = 2
    first = run(cohort, out)
    assert first["bob"].late and [grade.total() for grade in first.values()] == [14, 9, 14]
    slow_beside_others.events.clear()
    assert run(cohort, out)["bob"].total() == 14
    assert slow_beside_others.events == ["bob begins", "bob ends"]


@needs_linux
def test_a_second_try_never_costs_points(tmp_path, run, slow_beside_others, monkeypatch):
    cohort, out = three_students(tmp_path / "cohort"), tmp_path / "out"
    first, real = [], examine.grade

    def worse(submission, examined, answers_runs):
        grade = real(submission, examined, answers_runs)
        if submission.name == "bob":
            grade.checks = grade.checks if not first else []
            first.append(grade)
        return grade

    monkeypatch.setattr(examine, "grade", worse)
    assert run(cohort, out)["bob"].total() == 9 and len(first) == 2
    assert "bob: 9 of 100" in (out / "reports" / "bob.md").read_text("utf-8")


@needs_linux
def test_points_changed_by_hand_do_not_decide_which_try_is_better(tmp_path, run,
                                                                  slow_beside_others):
    """Bob's 9 points, too late twice, were raised to 14. The next try, which is in time, counts."""
    cohort, out = three_students(tmp_path / "cohort"), tmp_path / "out"
    slow_beside_others.times = 2
    raised = {"bob": {("ex2_reward", "pool_scores"): (3, "the server was slow"),
                      ("ex2_reward", "training_run"): (2, "as well")}}
    first = run(cohort, out)
    gradebook.override(first.values(), raised, out)
    assert first["bob"].total() == 14 and first["bob"].earned() == 9
    again = run(cohort, out)
    assert again["bob"].earned() == 14 and not again["bob"].late


def test_a_changed_grader_grades_again(tmp_path, monkeypatch):
    submission = read_one(put(tmp_path, {FILE: ANSWER}))
    before = examine.state_of(submission)
    monkeypatch.setattr(examine, "digest_of_grader", lambda: "another one")
    assert examine.state_of(submission) != before


# ---- The command --------------------------------------------------------------------------------


def main(*arguments):
    """The command in this process. -> its exit code"""
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize("arguments, words", [
    (["absent"], "there is no absent"), ([], "required"), (["empty"], "holds no folder"),
    (["cohort", "--jobs", "0"], "--jobs"), (["cohort", "--jobs", "x"], "--jobs"),
    (["cohort", "--out", "cohort/alice"], "one of the submissions"),
    (["cohort", "--out", "a file"], "a file"), (["cohort", "--such", "thing"], "--such"),
    (["cohort", "--pass_mark", "many"], "--pass_mark"), (["cohort", "--salvage", "2"], "--salvage"),
    (["--salvage", "cohort"], "--salvage")])
def test_bad_arguments_give_one_line_and_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    put(tmp_path, {f"cohort/alice/{FILE}": ANSWER, "a file": b""})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and words in error


def test_strict_refuses_a_system_without_the_first_tier(tmp_path, monkeypatch, capsys):
    put(tmp_path, {f"cohort/alice/{FILE}": ANSWER})
    monkeypatch.setattr(command, "protections_here", lambda *args: ["limits", "seccomp"])
    monkeypatch.setattr(command, "Nursery", lambda: None)
    assert main(tmp_path / "cohort", "--out", tmp_path / "out", "--strict") == 2
    assert "--strict" in capsys.readouterr().err and not (tmp_path / "out" / "grades.csv").exists()


@needs_linux
def test_the_command_ends_with_1_below_the_pass_mark(tmp_path):
    put(tmp_path, {f"alice/{FILE}": ANSWER})
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "grade.py"), "alice", "--one",
         "--pass_mark", "14.5"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "1 graded. Points of 100: lowest 14" in done.stdout
    assert "Protections in force: " in done.stdout and (tmp_path / "out" / "grades.csv").exists()


@pytest.fixture
def quick(monkeypatch, answers_runs):
    """The command with empty grades: a submission has as many points as its name says."""
    monkeypatch.setattr(command, "Nursery", lambda: SimpleNamespace(stop=lambda: None))
    monkeypatch.setattr(command, "protections_here", lambda *args: ["landlock", "seccomp"])
    monkeypatch.setattr(command, "runs_of_the_answers", lambda: answers_runs)
    monkeypatch.setattr(command, "grade_cohort", lambda cohort, *args: [
        Grade(name, "", 0, [], [], [{"file": "ex1_sft", "name": "f", "status": "passed",
                                     "points": float(name), "earned": float(name),
                                     "reason": "", "mistake": ""}])
        for _, name in cohort])


@pytest.mark.parametrize("names, mark, code", [
    (["60"], "60", 0), (["59.99"], "60", 1), (["80", "59"], "60", 1), (["0"], "0", 0),
    (["0"], "nan", 2), (["50"], "-1", 0)])
def test_the_pass_mark(names, mark, code, tmp_path, quick):
    for name in names:
        put(tmp_path, {f"cohort/{name}/{FILE}": ANSWER})
    assert main(tmp_path / "cohort", "--out", tmp_path / "out", "--pass_mark", mark) == code


def test_the_output_may_lie_in_the_cohort(tmp_path, quick):
    """The second run does not take it for a submission."""
    put(tmp_path, {f"14/{FILE}": STUBS["ex2_reward"]})
    for _ in range(2):
        command.main([str(tmp_path), "--out", str(tmp_path / "out")])
        with open(tmp_path / "out" / "grades.csv", encoding="utf-8-sig") as file:
            assert [row["student"] for row in csv.DictReader(file)] == ["14"]


def test_a_file_that_is_no_zip_is_no_submission(tmp_path, quick, capsys):
    """`grade.py alice/ex1_sft.py` says what it wants instead."""
    put(tmp_path, {f"14/{FILE}": ANSWER})
    assert main(tmp_path / "14" / FILE, "--out", tmp_path / "out") == 2


def test_what_is_no_submission_is_named(tmp_path, quick, capsys):
    """A student whose file is no folder and no zip is left out, and that is said."""
    put(tmp_path, {f"cohort/14/{FILE}": ANSWER, "cohort/bob.tar.gz": b"x", f"cohort/{FILE}": b""})
    (tmp_path / "cohort" / "carol.txt").symlink_to("bob.tar.gz")
    command.main([str(tmp_path / "cohort"), "--out", str(tmp_path / "out")])
    assert f"zip files: bob.tar.gz, carol.txt, {FILE}\n" in capsys.readouterr().out


def workflow():
    """The one in INSTRUCTORS.md, as a dictionary."""
    text = (ROOT / "tests" / "INSTRUCTORS.md").read_text("utf-8")
    return yaml.load(re.search(r"```yaml\n(.*?)```", text, re.S)[1], yaml.BaseLoader)


def test_no_student_can_edit_or_start_the_workflow_that_grades():
    """It runs in a repository of its own, when the instructor or the clock says so."""
    assert set(workflow()["on"]) <= {"workflow_dispatch", "schedule"}
    assert workflow()["permissions"] == {"contents": "read"}


def test_the_workflow_has_a_token_in_one_step_and_grades_in_another():
    steps = workflow()["jobs"]["grade"]["steps"]
    whole = str(workflow())
    with_secret = [step for step in steps if "secrets." in str(step)]
    grading = [step for step in steps if "grade.py" in str(step)]
    assert len(with_secret) == len(grading) == 1 and with_secret != grading
    assert whole.count("secrets.") == 1 and "secrets." in str(with_secret[0]["env"])
    checkout = next(step for step in steps if "checkout" in step.get("uses", ""))
    assert checkout["with"]["persist-credentials"] == "false"
    words = shlex.split(grading[0]["run"])
    assert words[:2] == ["python", "course/tests/grade.py"]
    options = command.parse(words[2:])
    assert options.strict and not options.one and str(options.roster) == "course/roster.csv"


def test_similarity_finds_a_copy_with_other_names(tmp_path):
    copy = ANSWER.replace(b"attention_mask", b"m").replace(b"rejected", b"r")
    for name, text in ("alice", ANSWER), ("bob", copy), ("carol", STUBS["ex2_reward"]):
        put(tmp_path / name, {FILE: text})
    similarity.write_csv(find_cohort(tmp_path), tmp_path / "s.csv")
    with open(tmp_path / "s.csv", newline="", encoding="utf-8-sig") as file:
        pairs = {(row["one"], row["other"]) for row in csv.DictReader(file)}
    assert pairs == {("(answers)", "alice"), ("(answers)", "bob"), ("alice", "bob")}


def test_similarity_says_which_lines(tmp_path):
    """Bob's file has alice's second function, and one of his own."""
    first = b"def a(x):\n    return [y * y for y in x if y > 3 and y < 9]\n\n\n"
    second = (b"def b(x, z):\n    for y in x:\n        z = z + y * 2 - 1\n    z = (x[0] +\n"
              b"         x[1] / z)\n    return z\n")
    third = b"\n\ndef c(x):\n    return {1: x.f(2)}\n"
    put(tmp_path, {f"alice/{FILE}": first + second, f"bob/{FILE}": b"# mine\n" + second + third})
    similarity.write_csv(find_cohort(tmp_path), tmp_path / "s.csv")
    with open(tmp_path / "s.csv", newline="", encoding="utf-8-sig") as file:
        row, = csv.DictReader(file)
    assert (row["one"], row["other"]) == ("alice", "bob")
    assert (row["lines of one"], row["lines of other"]) == ("6-10", "3-7")
    assert similarity.lines_in_common(first, third) == ""


def passed_check(name="f"):
    return {"file": "ex1_sft", "name": name, "points": 1, "of": 1, "status": "passed",
            "earned": 1, "reason": "", "cases": [1, 1], "mistake": "", "report": ""}


def test_nothing_of_the_environment_changes_the_grading(tmp_path, monkeypatch, answers_runs):
    """pytest does not obey PYTEST_ADDOPTS while it writes the JUnit file."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k no_such_test")
    reports.write_junit(Grade("alice", "", 0, [], [], [passed_check()]), tmp_path / "alice.xml")
    assert 'tests="1"' in (tmp_path / "alice.xml").read_text() and os.environ["PYTEST_ADDOPTS"]


@pytest.mark.parametrize("name", ["$NEIGHBOUR", "${NEIGHBOUR}", "%NEIGHBOUR%"])
def test_a_name_is_no_variable(name, tmp_path, monkeypatch):
    """Each has a file, with the checks of nobody else in it."""
    monkeypatch.setenv("NEIGHBOUR", "alice")
    for student in "alice", name:
        grade = Grade(student, "", 0, [], [], [passed_check(f"of-{student}")])
        reports.write_all(grade, tmp_path)
    for student in "alice", name:
        text = (tmp_path / "junit" / f"{student}.xml").read_text()
        assert f"[ex1_sft.of-{student}]" in text
