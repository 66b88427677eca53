"""tests/submit.py, which students use: it checks, and packs what the grader accepts, or says in one
line why it does not."""

import os

import pytest
import submit
from checks import FILES
from checks.core import ROOT
from grading.submissions import find_cohort, read
from make_exercises import make_stubs

ANSWERS = {file: (ROOT / "answers" / f"{file}.py").read_bytes() for file in FILES}
STUBS = {file: make_stubs(text.decode(), file).encode() for file, text in ANSWERS.items()}
WRONG = b"\n\ndef preference_probability(chosen, rejected):\n    return chosen - rejected\n"
BROKEN = {**STUBS, "ex4_grpo": STUBS["ex4_grpo"] + b"def f(:\n"}
pytestmark = pytest.mark.slow


@pytest.fixture
def hand_in(tmp_path, monkeypatch, capsys):
    """A function: runs the command on a folder of files. -> (exit code, output, error)"""
    monkeypatch.chdir(tmp_path)

    def run(files, *arguments):
        (tmp_path / "mine").mkdir(exist_ok=True)
        for file, text in files.items():
            (tmp_path / "mine" / f"{file}.py").write_bytes(text)
        code = 0
        try:
            submit.main(["--exercises", "mine", *arguments])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


def packed(path):
    """What the grader finds in an archive."""
    (place, name), = find_cohort(path)
    submission = read(place, name, FILES)
    assert submission.notes == []
    return submission.files


def test_what_is_handed_in_is_checked_and_accepted(hand_in, tmp_path):
    """ex1 is right, ex2 has one mistake, ex3 and ex4 are not begun."""
    files = {**STUBS, "ex1_sft": ANSWERS["ex1_sft"], "ex2_reward": ANSWERS["ex2_reward"] + WRONG}
    code, output, error = hand_in(files)
    lines = output.splitlines()
    assert code == 0 and error == "" and packed(tmp_path / "submission.zip") == files
    assert lines[:2] == ["ex1_sft     6 of 6 done", "ex2_reward  4 of 6 done; wrong: "
                         "preference_probability; to do: training_run"]
    assert lines[3].startswith("ex4_grpo    0 of 7 done; to do: sum_reward, group_advantages, ")
    assert lines[4] == "10 of 30 done."
    assert lines[5].startswith("Next: mend preference_probability in ex2_reward.py")
    assert "submission.zip" in lines[6] and len(lines) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "submission.zip"]


def test_a_file_that_does_not_load_is_handed_in_only_when_that_is_wanted(hand_in, tmp_path):
    (tmp_path / "submission.zip").write_bytes(b"earlier")
    code, output, error = hand_in(BROKEN)
    assert code == 2 and output == "" and error.count("\n") == 1
    assert error.startswith("error: ex4_grpo.py does not load: line ") and "SyntaxError" in error
    assert (tmp_path / "submission.zip").read_bytes() == b"earlier"
    code, output, error = hand_in(BROKEN, "--anyway")
    assert code == 0 and "\nex4_grpo    ex4_grpo.py does not load: line " in output
    assert packed(tmp_path / "submission.zip") == BROKEN


@pytest.mark.parametrize("files, arguments, words", [
    ({}, [], "ex1_sft.py cannot be read"), ({**STUBS, "ex3_ppo": None}, [], "ex3_ppo.py cannot"),
    ({**STUBS, "ex2_reward": b"#" * 2**18 + b"#"}, [], "larger than 256 KB"),
    (STUBS, ["homework.rar"], "no name for a zip file"), (STUBS, ["folder.zip"], "no name"),
    (STUBS, ["absent/x.zip"], "cannot be written"), (STUBS, ["--such"], "--such"),
    (STUBS, ["a.zip", "b.zip"], "b.zip")])
def test_errors_are_one_line_and_nothing_is_written(files, arguments, words, hand_in, tmp_path,
                                                    monkeypatch):
    monkeypatch.setattr(submit, "check_all", lambda contents, anyway: {})
    (tmp_path / "folder.zip").mkdir()
    code, output, error = hand_in({file: text for file, text in files.items() if text}, *arguments)
    assert code == 2 and output == "" and error.count("\n") == 1
    assert error.startswith("error: ") and words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.zip", "mine"]


@pytest.mark.parametrize("broken", ["replace", "writestr"])
def test_an_archive_that_cannot_be_finished_leaves_the_earlier_one(broken, hand_in, tmp_path,
                                                                  monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "submission.zip").write_bytes(b"earlier")
    monkeypatch.setattr(submit, "check_all", lambda contents, anyway: {})
    monkeypatch.setattr(os if broken == "replace" else submit.zipfile.ZipFile, broken, full)
    code, _, error = hand_in(STUBS)
    assert code == 2 and "No space left on device" in error
    assert (tmp_path / "submission.zip").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "submission.zip"]


def test_without_the_answers_it_packs_and_says_that_nothing_was_checked(hand_in, tmp_path,
                                                                      monkeypatch):
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    code, output, _ = hand_in(STUBS)
    assert code == 0 and output.startswith("Not checked: the folder answers/ is not here")
    assert packed(tmp_path / "submission.zip") == STUBS
    assert hand_in(BROKEN)[0] == 2
