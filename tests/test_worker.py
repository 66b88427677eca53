"""The process that runs a student's code: it survives, or is replaced, whatever the code does."""

import io
import sys
import tracemalloc

import pytest
import torch
from checks import FILES, RUNS, client
from checks.client import Worker
from checks.core import judge_run_in_worker, load_answers, report
from channel import MAX_BYTES, pack, receive
from make_exercises import functions, make_stubs
from conftest import ROOT

HOSTILE = '''import os, sys, time, torch

def loops(x):
    while True:
        pass

def is_kept_waiting(x):
    time.sleep(1)
    return x

def sleeps(x):
    time.sleep(10**6)

def dies(x):
    os._exit(0)

def leaves(x):
    sys.exit("done")

def crashes(x):
    import ctypes
    ctypes.string_at(0)

def shouts(x):
    print("4 passed", flush=True)
    os.write(1, b"4 passed")
    os.write(2, b"4 passed")
    return x

def eats_input(x):
    sys.stdin.read()
    return x

def is_big(x):
    return torch.zeros(20_000_000)

def is_odd(x):
    return [{1, 2}, object]

def recurses(x):
    return recurses(x)

def fails(x):
    y = x + 1
    raise ValueError("so it goes")

def todo(x):
    raise NotImplementedError("ex.todo")

def calls_todo(x):
    return todo(x)

def not_implemented_elsewhere(x):
    return torch.nn.Module()(x)

def float_of_numpy(x):
    import numpy

    return numpy.float64(0.5)

def good(x):
    return x + 1
'''


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    (folder / "ex.py").write_text(HOSTILE)
    (folder / "broken.py").write_text("def good(x):\n    return (x\n")
    (folder / "lacking.py").write_text("import torch\nimport no_such_package\n")
    worker = Worker(folder)
    yield worker
    worker.stop()


def ask(worker, function, file="ex", seconds=20):
    return worker.ask({"file": file, "function": function, "inputs": {"x": torch.ones(2)},
                       "grad": []}, seconds)


@pytest.mark.parametrize("function, status, words", [
    ("dies", "crashed", "exit code 0"), *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("leaves", "crashed", "exit code 1"), ("crashes", "crashed", "exit code"),
        ("is_big", "tampered", "bytes"))),  # a new process each, which imports torch
    ("recurses", "raised", "RecursionError"), ("fails", "raised", "so it goes"),
    ("todo", "not_started", ""), ("calls_todo", "blocked", "todo"),
    ("not_implemented_elsewhere", "raised", "NotImplementedError"),
    ("float_of_numpy", "returned", "0.5"),
    ("no_such_function", "missing", "no_such_function")])
def test_what_goes_wrong_has_a_name_and_the_next_call_works(worker, function, status, words):
    outcome = ask(worker, function)
    assert outcome["status"] == status and words in str(outcome), outcome
    assert ask(worker, "good")["output"].tolist() == [2, 2]


@pytest.mark.slow
def test_an_endless_loop_is_ended(worker):
    ask(worker, "good")  # from here on the process is warm
    process = worker.process
    assert ask(worker, "loops", seconds=1)["status"] == "timeout"
    assert process.poll() is not None, "it still runs"
    assert ask(worker, "good")["output"].tolist() == [2, 2]


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read from /proc")


@pytest.mark.slow
@needs_linux
def test_time_in_which_a_process_does_not_compute_is_not_held_against_it(worker, monkeypatch):
    """A busy machine lets a process wait; here it does so itself, for five times the limit."""
    monkeypatch.setattr(client, "PATIENCE", 300)
    ask(worker, "good")
    spent = worker.seconds_spent
    assert ask(worker, "is_kept_waiting", seconds=0.2)["status"] == "returned"
    assert worker.seconds_spent - spent < 0.2, "computing"


@pytest.mark.slow
@needs_linux
def test_computing_is_bounded_by_itself_and_waiting_by_the_clock(worker, monkeypatch):
    """A bound on the clock of two weeks never ends a loop; one of a second ends a sleep."""
    monkeypatch.setattr(client, "PATIENCE", 10**6)
    ask(worker, "good")
    outcome = ask(worker, "loops", seconds=1)
    assert outcome["status"] == "timeout" and "does it loop for ever?" in outcome["message"]
    ask(worker, "good")
    monkeypatch.setattr(client, "PATIENCE", 5)
    outcome = ask(worker, "sleeps", seconds=0.2)
    assert outcome["status"] == "timeout" and "does it sleep" in outcome["message"]


@pytest.mark.parametrize("function", ["shouts", "eats_input"])
def test_printing_and_reading_do_not_disturb(worker, function):
    assert ask(worker, function)["output"].tolist() == [1, 1]


def test_an_exception_comes_with_the_students_lines(worker):
    number = HOSTILE.splitlines().index('    raise ValueError("so it goes")') + 1
    assert ask(worker, "fails")["lines"] == [f'line {number}: raise ValueError("so it goes")']


def test_odd_objects_are_named_not_sent(worker):
    a_set, a_class = ask(worker, "is_odd")["output"]
    assert (a_set.name, a_class.name) == ("builtins.set", "builtins.type")


def test_a_file_that_does_not_load_says_why(worker):
    outcome = ask(worker, "good", file="broken")
    assert outcome["status"] == "not_loaded" and "SyntaxError" in outcome["message"]
    outcome = ask(worker, "good", file="lacking")
    assert outcome["status"] == "not_loaded"
    assert outcome["message"] == ("ModuleNotFoundError: No module named 'no_such_package'\n"
                                  "    line 2: import no_such_package")
    assert ask(worker, "good", file="absent")["status"] == "missing"


MANY = {"empty lists": [[]] * 60_000, "numbers": [0] * 80_000, "tuples": [()] * 15_000,
        "dictionaries": [{}] * 16_000, "empty tensors": [torch.zeros(0)] * 3000}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY)
def test_what_would_be_much_in_memory_is_refused_before_it_is_read(kind):
    """A quarter of a megabyte becomes four in memory, and there are hundreds of answers."""
    content = pack({"output": MANY[kind]})
    assert len(content) < MAX_BYTES, "short enough to be read"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a message of [0-9]+ values"):
            receive(io.BytesIO(content))
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content)
    finally:
        tracemalloc.stop()


# ---- Training runs ------------------------------------------------------------------------------


class Here:
    """A worker's stand-in that trains in this process, with some functions replaced."""

    def __init__(self, file, **functions):
        from runs import train

        self.module = load_answers(file)
        vars(self.module).update(functions)
        self.train = train

    def send(self, request):
        self.outcome = self.train(self.module, request["run"])

    def wait(self, seconds):
        return self.outcome


def spoiled(function):
    """The same function, with a first result that is a little off."""
    def wrong(*args):
        output = function(*args)
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, str):
            first = first + " "
        elif isinstance(first, dict):
            first = {name: value.roll(1, dims=1) for name, value in first.items()}
        elif isinstance(first, list):
            first = first[::-1]
        elif isinstance(first, float):
            first = first * 0.7 + 0.01
        elif first.dtype == torch.bool:
            first = ~first
        elif first.dtype == torch.long:
            first = (first - 1).clamp(min=0)
        else:
            first = first * 0.7 + 0.01
        return (first, *output[1:]) if isinstance(output, tuple) else first
    return wrong


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"run{run.file[2]}")
def test_a_run_with_the_answers_agrees_with_itself(run):
    result = judge_run_in_worker(run, Here(run.file), Here(run.file))
    assert result.status == "passed", report(result)


@pytest.mark.slow
@pytest.mark.parametrize("run, name", [
    (run, name) for run in RUNS
    for name in functions((ROOT / "answers" / f"{run.file}.py").read_text("utf-8"))],
    ids=lambda x: x.replace("_", "-") if isinstance(x, str) else f"run{x.file[2]}")
def test_a_run_needs_every_function(run, name):
    wrong = spoiled(getattr(load_answers(run.file), name))
    result = judge_run_in_worker(run, Here(run.file, **{name: wrong}), Here(run.file))
    assert result.status == "wrong", result
    assert result.difference.what.startswith("in step 1 of a training run, ")


def test_a_run_names_the_first_step_and_quantity_that_differ():
    calls = []

    def late(*args):
        calls.append(args)
        loss = load_answers("ex2_reward").pairwise_loss(*args)
        return loss * 2 if len(calls) == 2 else loss

    student, answers = Here("ex2_reward", pairwise_loss=late), Here("ex2_reward")
    result = judge_run_in_worker(RUNS[1], student, answers)
    assert result.difference.what == 'in step 2 of a training run, "loss" has the wrong values'


@pytest.mark.slow
def test_a_run_that_meets_a_stub_is_todo_and_one_that_fails_says_where(tmp_path):
    for file in FILES:
        text = (ROOT / "answers" / f"{file}.py").read_text("utf-8")
        (tmp_path / f"{file}.py").write_text(make_stubs(text, file))
    answers, student = Worker(ROOT / "answers"), Worker(tmp_path)
    try:
        assert judge_run_in_worker(RUNS[0], student, answers).status == "todo"
        text = (ROOT / "answers" / "ex2_reward.py").read_text("utf-8")
        text = text.replace("return torch.sigmoid(chosen - rejected)", "return chosen.no_such")
        (tmp_path / "ex2_reward.py").write_text(text)
        result = judge_run_in_worker(RUNS[1], student, answers)
        assert result.status == "crashed" and "no_such" in report(result)
    finally:
        student.stop()
        answers.stop()
