"""Two hundred cases that nobody thought of: command lines, settings files, data files, damaged and
interrupted runs, all drawn from a seed. Exactly three outcomes are accepted:

1. exit code 0 and a whole run, or an answer to --prompt, --chat or --score;
2. one clear line "error: ...", exit code 2 (1 where training had begun), and whatever was whole
   before is still there, byte for byte (an earlier run perhaps as <run_name>-1);
3. interrupted by SIGINT or SIGKILL, at a step or at any file that is written, moved or deleted:
   then --resume ends with the weights of a run that nobody disturbed.

The seed is new in every run and printed. FUZZ_SEED=... repeats it, with -k a single case of it.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import time
import typing
from contextlib import redirect_stderr
from functools import cache
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from conftest import load_lesson
from test_lessons import (LESSONS, REPO, RUNS, SMALL, assert_same_run, chain, finish, flags,
                          in_child, metrics, quick_processes, run, start, succeed, weights)

USED = chain, in_child, quick_processes  # fixtures, and what a forked process looks up here
pytestmark = pytest.mark.slow
SEED = int(os.environ.get("FUZZ_SEED") or time.time())
STEPS = {1: 6, 2: 4, 3: 3, 4: 3}  # of a run with the small settings
lesson = cache(load_lesson)


@pytest.fixture(scope="module", autouse=True)
def printed_seed(request):
    """On the screen, also where nothing fails."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"FUZZ_SEED={SEED}")


@pytest.fixture
def dice(request):
    """Every case has its own, so that it can be repeated alone."""
    print(f"FUZZ_SEED={SEED} pytest -m slow tests/test_fuzz.py -k '{request.node.name}'")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def world(chain, tmp_path):
    """A folder with the five finished runs and some data. It goes afterwards: 200 need 3 GB."""
    folder = tmp_path / "world"
    for name in ["base", *RUNS.values()]:
        shutil.copytree(chain.runs / name, folder / "runs" / name)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD_ROWS))
    (folder / "empty").mkdir()
    yield folder
    shutil.rmtree(folder)


REWARDS = """
def f(prompts, responses, **columns):
    return [float(len(response)) for response in responses]
def bad(prompts, responses, **columns):
    return [float("nan")] * len(responses)
"""
GOOD_ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}.",
              "chosen": f"It is {n}.", "rejected": f"It is {n + 1}."} for n in range(6)]


# ---- The three outcomes -------------------------------------------------------------------------


def contents(folder):
    """{path: digest} of all files but the locks, which are empty and stay."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
            for path in files}


def assert_nothing_lost(folder, before, spared=()):
    """Every file is where it was, or in the folder as which an earlier run is kept; but for the
    runs that may change."""
    def at_home(files):
        return {(re.sub(r"^(runs/\w+)-\d+/", r"\1/", path), digest)
                for path, digest in files.items()}
    lost = [path for path, digest in at_home(before) - at_home(contents(folder))
            if path.split("/")[1:2] not in [[name] for name in spared]]
    assert not lost, sorted(lost)


def complaints(err):
    """The lines of stderr that are no bar. The run's name before a bar may be anything."""
    bar = r".*\d+%\|.*\| \d+/\d+ \[.*\]\s*(\x1b\[A)?"
    return [piece for piece in re.split(r"[\r\n]+", err)
            if piece.strip() and not re.fullmatch(bar, piece)]


def assert_no_remarks(lines, settings):
    """But for one on every checkpoint that is damaged, and where libraries may say something."""
    others = [line for line in lines if not re.match(r".*checkpoint-\d+ is damaged[:,] ", line)]
    assert not others or settings.get("log_level") == "warning", others


def assert_one_error(done, settings={}):
    """One line, whose words someone chose: what escapes from a lesson names a line of its code.
    The exit code tells whether training had begun, as the bar does."""
    *remarks, error = complaints(done.err)
    assert error.startswith("error: ") and len(error) > len("error: ") + 10, done.err
    assert not re.match(r"error: \S*lesson\d_\w+\.py, line \d+ ", error), error
    assert_no_remarks(remarks, settings)
    assert done.code == (1 if "%|" in done.err else 2), (done.code, done.err)


def assert_whole(folder, number):
    """The model loads and is finite, as every number in the log is; the samples are there."""
    kind = AutoModelForSequenceClassification if number == 2 else AutoModelForCausalLM
    settings = kind.from_pretrained(folder / "model").config
    if number == 2:
        assert math.isfinite(settings.score_mean) and 0 < settings.score_std < math.inf
    for name, tensor in load_file(folder / "model" / "model.safetensors").items():
        assert tensor.isfinite().all(), name
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and rows
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert (folder / "samples.md").stat().st_size
    assert not list(folder.glob("checkpoint-*")) and not (folder / "unfinished").exists()


def assert_accepted(world, number, settings, done, before):
    """The first or the second outcome, for a run with these settings ({name: value})."""
    print(done.code, done.out[-500:], done.err[-1000:], sep="\n")
    assert "Traceback" not in done.err + done.out
    settings = dict(model="", runs_dir="runs", run_name=RUNS[number]) | settings
    changes = settings.get("resume") or settings.get("overwrite")
    trained = [name for name in (settings["run_name"], "base") if f"{name}: " in done.err]  # a bar
    assert_nothing_lost(world, before, trained if changes else [])
    if done.code:
        return assert_one_error(done, settings)
    assert_no_remarks(complaints(done.err), settings)
    if settings.get("prompt" if number == 1 else "score") or settings.get("chat"):
        assert done.out.endswith("\n")  # the answer of a tiny model may be empty
    else:
        folder = world / lesson(number).run_folder(SimpleNamespace(
            **{"exercise": False, "steps": None} | settings))
        assert_whole(folder, number)
        if settings.get("steps"):
            assert len(metrics(folder)) == int(settings["steps"])


# ---- Settings -----------------------------------------------------------------------------------

TINY = {  # valid sizes (most of them) with which a case takes about a second
    "steps": [1, 2, 3], "base_steps": [1, 2, 4], "rm_epochs": [1, 2], "num_pairs": [1, 2, 40],
    "num_held_out": [1, 2, 30], "num_examples": [1, 3, 50, 300], "num_samples": [1, 4, 8, 16],
    "batch_size": [1, 4, 8, 100], "micro_batch_size": [1, 3, 16], "group_size": [2, 4, 8],
    "ppo_epochs": [1, 2], "pass_k": [1, 2], "eval_every": [1, 2, 100], "bucket": [1, 8],
    "warmup_steps": [0, 1, 10**6], "max_prompt_length": [1, 8, 16, 64, 500], "seed": [0, 1, 10**9],
    "max_new_tokens": [1, 2, 12, 40, 500], "lora_rank": [0, 0, 1, 64], "save_every": [0, 1, 2],
    "run_name": ["new", "sft", "reward", "ppo", "grpo", "base", "a b", "名", ".", "", "..", "a/b",
                 "x" * 300, "sft/model"],
    "runs_dir": ["runs", "./runs", "runs/"], "model": ["", "runs/sft", "runs/base", "runs/reward"],
    "data": ["", "good.jsonl", "nosuch", "rewards.py", "empty", "good.jsonl/x"],
    "reward": ["sentiment", "sum", "runs/reward", "runs/sft", "nosuch", "rewards.py:f",
               "rewards.py:bad", "rewards.py:nosuch", "nosuch.py:f", "rewards.py"],
    "attn_implementation": ["eager", "sdpa", "flash_attention_2", "nosuch", ""],
    "report_to": ["none", "tensorboard", "nosuch", "", "all"],
    "prompt": ["What is 2 + 3?", "Translate into Chinese: | I love tea.", "|", "||", "", "\0", " ",
               "zq " * 600, "🎬" * 40, "<|endoftext|>", "\n"],
    "score": ["The spy film was lovely.", "🎬", "", " ", "zq " * 600, "<|pad|>", "\n"],
    "learning_rate": [0.0, 1e-3, 1.0, 1e3, 1e6], "weight_decay": [0.0, 0.01, 1.0, 1e6],
    "log_level": ["critical", "warning"], "config": [""], "device": ["cpu"],
}
NOT_DRAWN = {"resume", "exercise", "config", "device"}  # other tests have them
BAD_NUMBERS = ["-1", "nan", "inf", "-inf", "1e400", "x", "", "0x10", "1,5", "None", "1" * 5000,
               "10000000000000", "1e3.5", "--", "true"]


def fields_of(number):
    return [field for field in dataclasses.fields(lesson(number).Config)
            if field.name not in NOT_DRAWN]


def kind_of(field):
    """int, float, bool, str, or the choices of a Literal."""
    kinds = typing.get_args(field.type) or [field.type]
    return next(iter(kinds)) if typing.get_origin(field.type) is not typing.Literal else kinds


def range_of(field):
    usual = "1..1e6" if kind_of(field) is int else "0..1e6"
    return tuple(map(float, field.metadata.get("metavar", usual).split("..")))


def draw_valid(dice, field):
    kind = kind_of(field)
    if field.name in TINY:
        return dice.choice(TINY[field.name])
    if kind is bool:
        return dice.random() < 0.5
    if isinstance(kind, tuple):
        return dice.choice(kind)
    low, high = range_of(field)
    return dice.choice([low, high, min(high, max(low, dice.choice([1e-5, 0.01, 0.5, 1.0, 30.0])))])


def draw_value(dice, field, odds=0.08):
    """A valid value of the field, or now and then none at all."""
    if dice.random() > odds:
        return draw_valid(dice, field)
    kind = kind_of(field)
    return dice.choice(BAD_NUMBERS if kind in (int, float) else ["maybe", "--", "Float32", "-"])


def draw_settings(dice, number, most=6, odds=0.08):
    fields = dice.sample(fields_of(number), dice.randint(0, most))
    settings = {field.name: draw_value(dice, field, odds) for field in fields}
    if number == 3 and "reward" in settings and "nosuch" in str(settings.get("model")):
        del settings["model"]  # it would have lesson 2 made for it first
    return settings


def typed(dice, settings):
    """The flags, some of them with dashes for underscores, in any order."""
    names = dice.sample(list(settings), len(settings))
    spell = lambda name: name.replace("_", "-") if dice.random() < 0.2 else name
    return [f"--{spell(name)}={settings[name]}" for name in names]


ODD_WORDS = ["--nosuch=1", "word", "--steps", "--batch=3", "--", "-", "", "-x", "--seed=1=2",
             "--=1", "--overwrite=maybe", "--run_name"]
ODD_JSON = ["", "null", "3", "[]", "[1, 2]", '"steps"', "{", '{"steps": }', '{"nosuch": 1}',
            '{"steps": [1]}', '{"steps": {"a": 1}}', '{"seed": NaN}', '{"bf16": null}',
            '{"help": ""}', '{"": 1}', '{"config": "settings.json"}', "[" * 10**5,
            '{"steps": 1, "steps": 2}', '{"run_name": "a\\u0000b"}', '{"run_name": "\\ud800"}',
            '{"data": "a\\u0000b"}', '{"steps": 1.5}', '{"steps": true}', '{"seed": ' + "9" * 5000
            + "}", '{"learning_rate": -Infinity}', "steps: 3", '{"batch size": 3}']


def write_settings(dice, folder, settings):
    """settings.json, in one of three as nobody should write it -> its flag."""
    file, text = folder / "settings.json", json.dumps(settings)
    if dice.random() < 0.3:
        text = dice.choice(ODD_JSON + [text[:dice.randint(0, len(text))]])
    encoding = dice.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig", "utf-32"])
    file.write_bytes(text.encode(encoding))
    return f"--config={file.name if dice.random() < 0.95 else dice.choice(['nosuch', '.'])}"


def assert_settings_hold(config):
    """What was accepted has the types and the ranges that the fields promise."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kind_of(field)
        if isinstance(kind, tuple):
            assert value in kind, field.name
        elif value is not None:
            assert type(value) is kind, field.name
            low, high = range_of(field) if kind in (int, float) else (0, 0)
            assert kind not in (int, float) or low <= value <= high, field.name


@pytest.mark.parametrize("case", range(54))
def test_settings_are_understood_or_refused(tmp_path, monkeypatch, dice, case):
    """Reads them, and no more: in this process."""
    monkeypatch.chdir(tmp_path)
    number = dice.choice(list(LESSONS))
    settings = draw_settings(dice, number, most=9, odds=0.1)
    arguments = typed(dice, settings)
    if dice.random() < 0.4:
        arguments.append(write_settings(dice, tmp_path, draw_settings(dice, number)))
    if dice.random() < 0.15:
        arguments.insert(dice.randint(0, len(arguments)), dice.choice(ODD_WORDS))
    print(LESSONS[number], arguments)
    err = io.StringIO()
    try:
        with redirect_stderr(err):
            assert_settings_hold(lesson(number).read_config(arguments))
    except SystemExit as ended:
        assert_one_error(SimpleNamespace(code=ended.code, err=err.getvalue()))


@pytest.mark.parametrize("case", range(40))
def test_a_command_ends_well(world, dice, case):
    number = dice.choice(list(LESSONS))
    settings = draw_settings(dice, number, most=12, odds=0.02)
    settings |= {"overwrite": True} if dice.random() < 0.3 else {}
    settings |= {"learning_rate": 1e6, "weight_decay": 1e6} if dice.random() < 0.2 else {}
    arguments = [word.replace("\0", "") for word in typed(dice, settings)]  # as the system does
    from_file = dice.random() < 0.2
    if from_file:
        arguments = [write_settings(dice, world, settings)]
    print(LESSONS[number], arguments, settings)
    before = contents(world)
    done = run(world, number, *arguments, stdin=dice.choice(["", "Hello?\n\n", "What is 2 + 3?"]))
    if from_file and done.code == 0:  # it may hold other settings by now; what is typed wins
        assert arguments == ["--config=settings.json"]
        settings = json.loads((world / "settings.json").read_text()) | SMALL[number]
    assert_accepted(world, number, settings, done, before)


# ---- Data ---------------------------------------------------------------------------------------

COLUMNS = {1: ["instruction", "output"], 2: ["instruction", "chosen", "rejected"],
           3: ["instruction"], 4: ["instruction"]}
ODD_TEXTS = ["", " ", "\n", "\0", "a\0b", "🎬" * 9, "我爱苹果。", "\ud83d", "<|endoftext|>", "<|pad|>",
             "### Response:\n", "\u2028x\u2029", "\r", "\x1b[2J", "\x85", "A" * 200_000,
             "zq " * 3000, "'\"\\", "%s {x} {0}", "\ufeff", "é" + "\u0301" * 500]
ODD_VALUES = [None, 3, 2.5, True, [], ["a"], {}, {"a": {"b": []}}, 10**400]
ODD_LINES = ["null", "3", '"text"', "[]", "{}", "{", "}", "[", '{"instruction": "cut', "\0", "NaN",
             '{"instruction": "a" "output": "b"}', "[" * 10**5, '{"a": ' * 10**4, "//", "'x'",
             '{"instruction": ' + "9" * 5000 + "}", "\ufeff{}", "<html>"]
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "cp1252", "utf-7"]


def draw_row(dice, number, odds):
    columns = COLUMNS[number] + ["input", "other"][:dice.randint(0, 2)]
    row = {column: f"{column} {dice.random():.3f}" for column in columns}
    for column in columns:
        if dice.random() < odds:
            row[column] = dice.choice(ODD_TEXTS)
        elif dice.random() < odds / 8:
            row[column] = dice.choice(ODD_VALUES)
        elif dice.random() < odds / 20:
            del row[column]
    return row


def draw_data(dice, number):
    """The bytes of a data file: lines or a list, odd rows among the good ones, damaged perhaps."""
    odds = dice.choice([0, 0.3, 0.7])
    rows = [draw_row(dice, number, odds) for _ in range(dice.choice([0, 1, 2, 3, 8, 8, 30]))]
    lines = [json.dumps(row, ensure_ascii=dice.random() < 0.5) for row in rows]
    if dice.random() < 0.2:
        lines.insert(dice.randint(0, len(lines)), dice.choice(ODD_LINES))
    text = dice.choice(["\n", "\n", "\r\n", "\n\n \n", "\r"]).join(lines)
    if dice.random() < 0.3:
        text = json.dumps(rows, indent=dice.choice([None, 2]))
    if dice.random() < 0.1:
        text = text[:dice.randint(0, len(text))]
    encoding = dice.choice(["utf-8"] * 20 + ENCODINGS)
    data = text.encode(encoding, errors="surrogatepass" if encoding == "utf-8" else "replace")
    return data if dice.random() < 0.95 else dice.randbytes(dice.choice([1, 100, 10**5]))


@pytest.mark.parametrize("case", range(40))
def test_a_data_file_is_used_or_refused(world, dice, case):
    number = dice.choice(list(LESSONS))
    name = dice.choice(["data.jsonl", "data.json", "data", "d [1].jsonl", "数据.jsonl", "data.csv"])
    (world / name).write_bytes(draw_data(dice, number))
    settings = {"data": name, "steps": dice.randint(1, 2)}
    settings |= {"model": "runs/sft"} if dice.random() < 0.3 else {}
    settings |= {"overwrite": True} if dice.random() < 0.2 else {}
    settings |= {"max_prompt_length": 400} if dice.random() < 0.3 else {}
    if number > 2:
        own = ["rewards.py:f"] if number == 4 else []
        settings["reward"] = dice.choice(["sentiment", "runs/reward", *own])
    print(LESSONS[number], flags(settings), (world / name).read_bytes()[:1000])
    before = contents(world)
    assert_accepted(world, number, settings, run(world, number, *flags(settings)), before)


# ---- Damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(chain, tmp_path_factory):
    """A function: lesson -> the folder of its run "fuzz", killed in its last step."""
    @cache
    def make(number):
        folder = tmp_path_factory.mktemp(f"interrupted{number}") / "world"
        for name in "base", "sft", "reward":
            shutil.copytree(chain.runs / name, folder / "runs" / name)
        killed = run(folder, number, "--run_name=fuzz", "--save_every=1",
                     stop=(signal.SIGKILL, STEPS[number]))
        assert killed.code == -signal.SIGKILL
        return folder / "runs" / "fuzz"
    return make


def damage(dice, path):
    """Cuts, empties, replaces or removes the file."""
    data = path.read_bytes()
    damaged = dice.choice([
        data[:dice.randint(0, len(data))], data[:-1], b"", None, dice.choice([
            dice.randbytes(len(data)), b"\0" * len(data), b"{}", b"[]", b"null", b"3", b"\xe9",
            b"version https://git-lfs.github.com/spec/v1\n"])])
    path.unlink() if damaged is None else path.write_bytes(damaged)
    print("damaged:", path, f"{len(data)} bytes", "removed" if damaged is None else damaged[-60:])


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file()
                  and "tfevents" not in path.name)


@pytest.mark.parametrize("case", range(26))
def test_a_damaged_run_is_finished_or_refused(world, interrupted, dice, case):
    """One or two files of an interrupted run. If it can be finished, it ends as if nothing had
    been; and it can where a checkpoint and what lies around it are whole."""
    number = dice.choice(list(LESSONS))
    folder = world / "runs" / "fuzz"
    shutil.copytree(interrupted(number), folder)
    paths = dice.sample(files_of(folder), dice.choice([1, 1, 2]))
    for path in paths:
        damage(dice, path)
    how = dice.choice([{"resume": True}] * 4 + [{}, {"overwrite": True}])
    settings = {"run_name": "fuzz"} | how
    print(LESSONS[number], settings)
    before = contents(world)
    done = run(world, number, *flags(settings))
    assert_accepted(world, number, settings, done, before)
    in_one_checkpoint = paths[0].parent == paths[-1].parent != folder
    if done.code == 0 or in_one_checkpoint:
        assert_same_run(folder, world / "runs" / RUNS[number])


@pytest.mark.parametrize("case", range(20))
def test_a_damaged_input_is_used_or_refused(world, dice, case):
    """A file of a finished run that the lesson reads, asks or would replace."""
    number = dice.choice(list(LESSONS))
    name = dice.choice({1: ["base", "sft"], 2: ["sft", "reward"], 3: ["sft", "reward", "ppo"],
                        4: ["sft", "grpo"]}[number])
    files = files_of(world / "runs" / name)
    damage(dice, dice.choice(files + [world / "runs" / name / "model" / "model.safetensors"] * 4))
    asked = {1: [{"prompt": "What is 2 + 3?"}], 2: [{"score": "Fine."}]}.get(number, [])
    settings = dice.choice([{}, {"overwrite": True}, {"run_name": "new"}, *asked * 2])
    print(LESSONS[number], settings)
    before = contents(world)
    assert_accepted(world, number, settings, run(world, number, *flags(settings)), before)


# ---- Interrupts ---------------------------------------------------------------------------------

SIGNAL_AT_A_FILE = """
import os, runpy, signal, sys
counted, left, number, sys.argv = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4:]

def tick(what):
    global left
    left -= what == counted
    if left == 0 and what == counted:
        os.kill(os.getpid(), number)

def count(event, arguments):
    if event == "open":
        path, mode = map(str, arguments[:2])
        if mode[:1] in "wax" and "__pycache__" not in path:
            tick("files")
    elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        tick("files")

import torch  # its files are written by C++, which audits nothing
save = torch.save
torch.save = lambda *arguments, **options: (tick("saves"), save(*arguments, **options))
sys.addaudithook(count)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interrupt(dice, world, number, steps, options):
    """Starts the run and sends it SIGINT or SIGKILL: in a step, or as it writes, moves or deletes
    its n-th file, which may be before the first step or after the last, or within a checkpoint."""
    which = dice.choice([signal.SIGINT, signal.SIGKILL, signal.SIGKILL])
    where = dice.choice(["step", "files", "files", "saves", "saves"])
    if where == "step":
        stop = which, dice.randint(1, steps)
        print(LESSONS[number], options, "stop", stop)
        return run(world, number, *options, stop=stop)
    script = world.parent / "signal_at_a_file.py"
    script.write_text(SIGNAL_AT_A_FILE)
    at = dice.randint(1, 60 if where == "files" else 6)
    print(LESSONS[number], options, "signal", which, where, at)
    lesson_command = [REPO / LESSONS[number], *flags(SMALL[number]), *options]
    return finish(start(world, [script, where, at, int(which), *lesson_command]))


def finished_after(world, number, options, folder):
    """Resumes the run until it is whole. What has its final name is whole already: no checkpoint
    is called damaged. Before its settings are written there is nothing to resume."""
    begun = (folder / "config.json").is_file()
    whole = (folder / "samples.md").is_file()
    done = run(world, number, *options, "--resume" if begun else "--overwrite")
    print(done.code, done.err[-1000:])
    if begun and whole:
        return assert_one_error(done)
    assert done.code == 0 and not complaints(done.err), done.err


@pytest.mark.parametrize("case", range(20))
def test_an_interrupted_run_ends_as_if_nothing_had_been(chain, world, dice, case):
    number = dice.choice(list(LESSONS))
    name = dice.choice(["new", RUNS[number]])
    steps, spared = STEPS[number], {name}
    if number == 1 and dice.random() < 0.5:
        shutil.rmtree(world / "runs" / "base")
        steps += 4
    before = contents(world)
    options = [f"--run_name={name}", f"--save_every={dice.choice([0, 1, 1, 2])}"]
    folder = world / "runs" / name
    done = interrupt(dice, world, number, steps, options)
    print(done.code, done.err[-1000:])
    while (done.code and dice.random() < 0.5 and (folder / "config.json").is_file()
           and not (folder / "samples.md").is_file()):
        done = interrupt(dice, world, number, steps, [*options, "--resume"])
        print(done.code, done.err[-1000:])
        assert "damaged" not in done.err
    assert "Traceback" not in done.err
    if done.code:
        finished_after(world, number, options, folder)
    assert_nothing_lost(world, before, spared)
    assert_same_run(folder, chain.runs / RUNS[number])
    if contents(world) == before:  # killed before it had begun: the finished run of before stays
        assert done.code and (folder / "samples.md").is_file()
    else:
        assert weights(world / "runs" / "base") == weights(chain.runs / "base")
