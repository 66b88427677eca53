"""What a student sees of pytest: nothing begun, a wrong blank, a loop, a crash."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checks import BLANKS, FILES
from conftest import ROOT
from make_exercises import functions, make_stubs
from test_lessons import finish, in_child, quick_processes, start

USED = in_child, quick_processes  # a fixture, and what a forked process looks up here


def run_pytest(logs, *arguments):
    """pytest, in a process of its own that has the imports done already."""
    command = [Path(pytest.__file__).parent / "__main__.py", *arguments]
    return finish(start(ROOT, command, logs=logs))


@pytest.fixture
def student(tmp_path):
    """A folder of stubs, and a way to fill them in: write(file, {name: body})."""
    class Student:
        folder = tmp_path

        def write(self, file, **bodies):
            text = make_stubs((ROOT / "answers" / f"{file}.py").read_text("utf-8"), file)
            for name, body in bodies.items():
                stub = f'raise NotImplementedError("{file}.{name}")'
                assert stub in text
                text = text.replace(stub, body)
            (tmp_path / f"{file}.py").write_text(text, encoding="utf-8")

        def pytest(self, *arguments):
            return run_pytest(tmp_path, "--lang=en", "-k", *arguments,
                              f"--exercises={tmp_path}", "-o", f"cache_dir={tmp_path / 'cache'}")

    student = Student()
    for file in FILES:
        student.write(file)
    return student


def test_nothing_begun_is_green_and_says_what_is_next(student):
    done = student.pytest("ex2")
    assert done.code == 0, done.out
    assert "0 of 30 done." in done.out
    assert "Next: fill in last_token_index in exercises/ex2_reward.py, then " \
           "pytest -k last_token_index" in done.out
    assert re.search(r"^ex2_reward +\. last_token_index  \. pool_scores ", done.out, re.M)
    assert "6 todo" in done.out and "Error" not in done.out and "passed" not in done.out
    assert done.out.splitlines()[-1].startswith("Next: ")


@pytest.mark.slow
def test_what_the_function_printed_is_shown(student):
    """Its last twenty lines, in the case that is shown; a loop that prints is no flood."""
    body = "for i in range(3000):\n        print('line', i)\n    return chosen * 0"
    student.write("ex2_reward", preference_probability=body)
    seen = student.pytest("preference_probability").out
    assert re.findall(r"line (\d+)$", seen, re.M) == [str(i) for i in range(2980, 3000)]
    assert re.search(r"^  you printed     line 2980$", seen, re.M)


@pytest.mark.slow
def test_what_was_done_before_is_kept(student):
    student.write("ex2_reward", preference_probability=MIXED["preference_probability"])
    assert "1 of 30 done." in student.pytest("preference_probability").out
    student.write("ex1_sft", corpus_perplexity="return batch_losses * nan")
    done = student.pytest("corpus_perplexity").out
    assert "x corpus_perplexity" in done and "preference_probability" not in done
    assert "1 of 30 done." in done
    student.write("ex2_reward", preference_probability="return 0")
    assert "0 of 30 done." in student.pytest("ex2").out


def test_a_selection_of_exercises_collects_nothing_else(tmp_path):
    for selection in (["-k", "ex1 or (ex3 and not training_run)"],
                      ["exercises", "-k", "aggregate_loss"]):
        done = run_pytest(tmp_path, *selection, "--collect-only")
        tests = [line for line in done.out.splitlines() if "::" in line]
        assert tests and all("::test_exercise" in test for test in tests), done.out
    assert len(tests) == 1


@pytest.mark.slow
def test_other_selections_collect_the_courses_own_tests(tmp_path):
    for selection, words in ((["-k", "kl_penalty or entropy"], "test_maths.py"),
                             (["-k", "board"], "test_board.py"),
                             (["tests/test_answers.py"], "[ex1")):
        done = run_pytest(tmp_path, *selection, "--collect-only")
        assert words in done.out, done.out


@pytest.mark.slow
def test_watch_checks_again_when_a_file_is_saved(student):
    watch = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--lang=en", "-k", "preference_probability", "--watch",
         f"--exercises={student.folder}"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,  # and a job in the background would ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    seen = []

    def read_until(words):
        while words not in (line := watch.stdout.readline()):
            assert line, seen
            seen.append(line)

    try:
        read_until("Watching the exercises")
        assert not any("+ preference_probability" in line for line in seen)
        student.write("ex2_reward", preference_probability=MIXED["preference_probability"])
        read_until("+ preference_probability")
    finally:
        os.killpg(watch.pid, signal.SIGINT)
        assert watch.wait(30) == 0
        watch.stdout.close()


MIXED = dict(
    last_token_index="return attention_mask.sum(dim=1) - 1",
    pool_scores="return token_scores[5000]",
    preference_probability="return torch.sigmoid(chosen - rejected)",
    pairwise_loss="return chosen.mean() * 0",
    preference_accuracy="import os\n    os._exit(0)")


@pytest.mark.slow
def test_each_blank_has_a_verdict_of_its_own(student):
    student.write("ex2_reward", **MIXED)
    done = student.pytest("ex2")
    assert done.code == 1
    assert "x last_token_index  x pool_scores  + preference_probability" in done.out
    assert re.search(r"x pairwise_loss\s+x preference_accuracy\s+\. training_run", done.out)
    assert "1 of 30 done." in done.out
    assert "Next: mend last_token_index" in done.out
    assert "ex2_reward.pool_scores: it raises an exception" in done.out
    assert "ex2_reward.preference_accuracy: the process ended" in done.out
    assert "again: pytest -k pairwise_loss" in done.out
    assert "conftest.py" not in done.out and "Traceback" not in done.out, "pytest's internals"


@pytest.mark.slow
def test_an_endless_loop_is_a_verdict_and_the_next_blank_has_its_own(student):
    student.write("ex2_reward", **{**MIXED, "pool_scores": "while True:\n        pass"})
    done = student.pytest("ex2")
    assert "x last_token_index  x pool_scores  + preference_probability" in done.out
    assert "ex2_reward.pool_scores: no answer within" in done.out
    assert "conftest.py" not in done.out and "Traceback" not in done.out, "pytest's internals"


@pytest.mark.slow
@pytest.mark.parametrize("hint", [1, 2, 3])
def test_a_known_mistake_gets_its_hint_and_more_on_request(student, hint):
    student.write("ex2_reward", last_token_index=MIXED["last_token_index"])
    done = student.pytest("last_token_index", f"--hint={hint}")
    report = done.out
    assert "hint: " in report and report.count("?") >= 1
    assert ("formula: " in report, "place: " in report) == (hint >= 2, hint >= 3)
    assert ("yours " in report, "expected " in report) == (True, True)


def telling_lines():
    """The lines of code of all answers, without "return", remarks, and lines like "else:"."""
    lines = set()
    for file in FILES:
        text = (ROOT / "answers" / f"{file}.py").read_text("utf-8")
        for node in functions(text).values():
            for line in text.splitlines()[node.body[1].lineno - 1:node.end_lineno]:
                lines.add(line.split("  #")[0].strip().removeprefix("return "))
    return {line for line in lines if len(line) >= 15}


@pytest.mark.slow
@pytest.mark.parametrize("hint", [1, 2, 3])
def test_the_answer_is_never_printed(student, hint):
    """--hint 3 has all that the lower ones have, and says where the answer is, not what."""
    for file in FILES:
        student.write(file, **{blank.name: "return None" for blank in BLANKS if blank.file == file})
    seen = student.pytest("ex", f"--hint={hint}").out
    lines = telling_lines()
    assert len(lines) >= 80, "too few to tell"
    assert seen.count("again: pytest -k") >= len(BLANKS), "every blank has a report"
    assert [line for line in lines if line in seen] == []


def test_no_hint_is_a_line_of_the_answer():
    """Of all hints, also those that no report above has shown."""
    hints = [text for blank in BLANKS for text in (
        blank.formula, blank.place, *(mistake.said_alone for mistake in blank.mistakes))]
    assert [(line, hint) for line in telling_lines() for hint in hints if line in hint] == []


@pytest.mark.slow
def test_a_stub_that_another_blank_calls_is_named(student):
    student.write("ex2_reward", pool_scores="return token_scores.gather(1, "
                  "last_token_index(attention_mask).unsqueeze(1)).squeeze(1)")
    done = student.pytest("pool_scores")
    assert done.code == 1
    assert "it calls last_token_index, which is still a stub" in done.out
    assert not re.search("^  (case|right so far)", done.out, re.M), "no case is to blame"


@pytest.mark.slow
def test_a_file_that_does_not_load_says_where(student):
    student.write("ex2_reward", pool_scores="return (")
    done = student.pytest("pool_scores")
    assert done.code == 1
    assert "ex2_reward.pool_scores: ex2_reward.py does not load: " in done.out
    assert "SyntaxError" in done.out
    assert not re.search("^  (case|right so far)", done.out, re.M), "no case is to blame"


@pytest.mark.slow
def test_who_is_done_is_sent_to_train(student):
    text = (ROOT / "answers" / "ex2_reward.py").read_text("utf-8")
    (student.folder / "ex2_reward.py").write_text(text, encoding="utf-8")
    done = student.pytest("ex2")
    assert done.code == 0 and "6 of 30 done." in done.out, done.out
    assert "Next: train with them: python lesson2_reward.py --exercise" in done.out
