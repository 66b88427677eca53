"""Nothing is lost and nothing is silent: runs that diverge, are killed, damaged or doubled; bad
settings, models and data; functions of users that misbehave.

Every case ends as one clear line and exit code 2 (1 where training had begun), and what was whole
stays whole."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from conftest import load_lesson
from test_lessons import (LESSONS, REPO, RUNS, SMALL, assert_one_line, assert_same_run, begin,
                          chain, finish, flags, in_child, listing, metrics, quick_processes, run,
                          start, succeed, weights, without_bar, write_jsonl)

USED = chain, in_child, quick_processes  # fixtures, and what a forked process looks up here


def assert_stopped(done, *words):
    """Exit code 1 and one clear line: training had begun."""
    assert done.code == 1, (done.code, done.err)
    lines = without_bar(done.err.replace("\nerror", "\n\nerror"))
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    for word in words:
        assert word in lines[0], lines[0]


def wait_for(condition, seconds=120):
    """Waits until the condition holds; fails when it never does."""
    for _ in range(20 * seconds):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happens")


# ---- Numbers that are not finite ----------------------------------------------------------------

SPREAD = """
def f(prompts, responses, **columns):
    return [float(i) for i in range(len(responses))]
"""


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.slow)
                                         for n in (2, 3, 4))])
def test_a_diverging_run_stops_before_it_saves(chain, number):
    """A learning rate of a million: soon a number of the step is infinite or none at all."""
    options = ["--learning_rate=1e6", "--save_every=1", "--steps=40", "--overwrite",
               f"--run_name=diverged{number}"]
    (chain.folder / "spread.py").write_text(SPREAD)
    more = {1: ["--model=runs/base"], 2: ["--rm_epochs=20"], 3: ["--max_kl=0"],
            4: ["--reward=spread.py:f", "--max_new_tokens=4"]}[number]
    done = run(chain.folder, number, *options, *more)
    words = ["diverged"] if number == 4 else ["is not finite", "--resume"]
    assert_stopped(done, "--learning_rate", "--bf16", *words)
    folder = chain.runs / f"diverged{number}"
    assert not (folder / "model").exists()
    for path in folder.glob("checkpoint-*/model.safetensors"):
        assert all(x.isfinite().all() for x in load_file(path).values()), path
    assert all(abs(x) < float("inf") for row in metrics(folder) for x in row.values())


def test_scores_that_are_no_numbers_are_not_saved(chain):
    """What only the last update spoils no step can tell."""
    done = run(chain.folder, 2, "--learning_rate=1e6", "--weight_decay=1e6", "--steps=2",
               "--run_name=spoilt", "--overwrite")
    assert_stopped(done, "not finite", "--learning_rate")
    assert not (chain.runs / "spoilt" / "model").exists()


def test_overwrite_waits_until_training_begins(chain, tmp_path):
    """Lesson 1 opens its run, and finds only then that no prompt is short enough."""
    shutil.copytree(chain.runs, tmp_path / "runs")
    before = weights(chain.runs / "sft")
    done = run(tmp_path, 1, "--max_prompt_length=1", "--overwrite")
    assert done.code != 0 and "--max_prompt_length" in done.err
    assert weights(tmp_path / "runs" / "sft-1") == before


# ---- One run, one process -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_belongs_to_one_process(chain):
    """While a run goes on, no other of its name begins or resumes; killed, it leaves no lock."""
    long = ["--run_name=locked", "--steps=50", "--save_every=2", "--overwrite"]
    first = start(chain.folder, [REPO / LESSONS[2], *flags(SMALL[2]), *long],
                  stop=(signal.SIGSTOP, 3))
    folder = chain.runs / "locked"
    wait_for(lambda: (folder / "checkpoint-2").exists())
    for option in "--resume", "--overwrite", "--seed=1":
        assert_one_line(run(chain.folder, 2, "--run_name=locked", option, small=False), "locked",
                        "in use")
    assert first.is_alive() and json.loads((folder / "config.json").read_text())["seed"] == 0
    os.kill(first.pid, signal.SIGKILL)
    finish(first)
    stopped = run(chain.folder, 2, "--run_name=locked", "--resume", small=False,
                  stop=(signal.SIGINT, 1))
    assert "Interrupted" in stopped.err


@pytest.mark.slow
def test_a_chained_lesson_ends_when_its_parent_is_killed(tmp_path):
    """Two deep: lesson 3 has begun lesson 2, and that lesson 1, when the first of them is killed.
    The last one saves its step and says what was typed."""
    begin(tmp_path, 1, **{**SMALL[1], "steps": 100000, "base_steps": 1, "eval_every": 100000})
    typed = [REPO / LESSONS[3], *flags(SMALL[3])]
    parent = start(tmp_path, typed)
    folder = tmp_path / "runs" / "sft"
    wait_for(lambda: (folder / "metrics.jsonl").is_file() and len(metrics(folder)) > 2)
    assert not list(folder.glob("checkpoint-*"))
    os.kill(parent.pid, signal.SIGKILL)
    done = finish(parent)
    printed = Path(f"{parent.output}.2")
    wait_for(lambda: "Interrupted" in printed.read_text(encoding="utf-8"))
    steps = len(metrics(folder))
    assert (folder / f"checkpoint-{steps}").is_dir()
    wait_for(lambda: printed.read_text(encoding="utf-8").endswith("\n"))
    err = printed.read_text(encoding="utf-8")
    assert f"To go on: python {REPO / LESSONS[3]}" in err, (done.err, err)
    assert "--resume" not in err and "Traceback" not in err
    time.sleep(1)
    assert len(metrics(folder)) == steps  # nobody goes on training


ONE_READER = """
import os, runpy, sys, time
sys.argv, read = sys.argv[1:], os.read

def count(file, size):
    if file == 0:
        print("waits for the end of its input", file=sys.stderr)
        time.sleep(600)
    return read(file, size)

os.read = count
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_chained_lesson_interrupts_itself_only_once(tmp_path):
    """Lesson 1 trains two models in one process. Two readers of its input would interrupt it twice,
    and the second Ctrl-C stops at once, without a checkpoint."""
    script = tmp_path / "one_reader.py"
    script.write_text(ONE_READER)
    done = finish(start(tmp_path, [script, REPO / LESSONS[1], *flags(SMALL[1])],
                        env={"TYPED": "lesson3_ppo.py"}))
    assert done.code == 0, done.err
    assert done.err.count("waits for the end of its input") == 1
    assert (tmp_path / "runs/base/model").is_dir() and (tmp_path / "runs/sft/model").is_dir()


# ---- Settings -----------------------------------------------------------------------------------

NUMBERS = [(number, field.name) for number in LESSONS
           for field in dataclasses.fields(load_lesson(number).Config)
           if field.type in (int, float, Optional[int], Optional[float])]


@pytest.mark.parametrize("number, name", NUMBERS)
def test_every_number_has_a_range(capsys, number, name):
    lesson = load_lesson(number)
    whole = "int" in str(lesson.Config.__dataclass_fields__[name].type)
    for value in ["-1", str(10**12), "nan", "inf", "-inf", "1e400", "x"]:
        with pytest.raises(SystemExit) as ended:
            lesson.read_config([f"--{name}={value}"])
        assert ended.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("error: ") and name in err, err
        assert whole or value == "x" or "must be between" in err


def test_a_tilde_is_the_home_folder(capsys):
    lesson = load_lesson(2)
    config = lesson.read_config(["--data=~/pairs.jsonl", "--runs_dir=~/runs", "--score=a ~ b"])
    assert config.data == str(Path.home() / "pairs.jsonl")
    assert config.runs_dir == str(Path.home() / "runs") and config.score == "a ~ b"


# ---- Models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_model(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    shutil.copytree(chain.runs / "sft" / "model", folder)
    return folder


def without_a_tensor(path):
    tensors = load_file(path)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, path, {"format": "pt"})


def with_nan(path):
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def with_another_shape(path):
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(3, 3)
    save_file(tensors, path, {"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548\n")


def no_settings(path):
    path.write_text("{}")


TENSORS, SETTINGS, TOKENS = "model.safetensors", "config.json", "tokenizer.json"
DAMAGE = [(without_a_tensor, TENSORS, "transformer.h.1.mlp.c_fc.weight"),
          (with_nan, TENSORS, "transformer.h.1.mlp.c_fc.weight"),
          (with_another_shape, TENSORS, "transformer.h.1.mlp.c_fc.weight"),
          *((damage, TENSORS, "safetensors") for damage in (cut, emptied, pointer)),
          *((damage, SETTINGS, SETTINGS) for damage in (cut, emptied, pointer, no_settings)),
          *((damage, TOKENS, TOKENS) for damage in (cut, emptied, pointer, no_settings))]


@pytest.mark.slow
@pytest.mark.parametrize("damage, file, word", DAMAGE)
def test_a_damaged_model_is_refused(whole_model, tmp_path, damage, file, word):
    shutil.copytree(whole_model, tmp_path / "model")
    damage(tmp_path / "model" / file)
    done = run(tmp_path, 1, "--model=model", "--run_name=x", "--steps=1")
    assert_one_line(done, "'model'", word)
    assert not (tmp_path / "runs").exists()


def test_a_damaged_reward_model_is_refused(chain, tmp_path):
    for name in "sft", "reward":
        shutil.copytree(chain.runs / name, tmp_path / "runs" / name)
    with_nan(tmp_path / "runs/reward/model/model.safetensors")
    assert_one_line(run(tmp_path, 3), "reward", "transformer.h.1.mlp.c_fc.weight")
    tensors = load_file(tmp_path / "runs/reward/model/model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "runs/reward/model/model.safetensors", {"format": "pt"})
    assert_one_line(run(tmp_path, 3), "reward", "score.weight")


@pytest.mark.parametrize("number, options", [
    (1, ["--max_prompt_length=500"]), (2, ["--max_prompt_length=500"]),
    (3, ["--max_new_tokens=500"]), (4, ["--max_new_tokens=500"])])
def test_lengths_that_exceed_the_positions_are_said(chain, number, options):
    model = ["--model=runs/base"] if number == 1 else []
    done = run(chain.folder, number, *options, *model, "--run_name=long")
    assert_one_line(done, "512 positions", "--max_prompt_length", "--max_new_tokens")


@pytest.mark.parametrize("number, option", [(1, "--prompt="), (2, "--score=")])
def test_a_text_that_exceeds_the_positions_is_said(chain, number, option):
    done = run(chain.folder, number, option + "zq " * 600, small=False)
    assert_one_line(done, "512 positions", "tokens")


# ---- Checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(chain):
    """A run of lesson 2 that was killed in its fourth step, with the checkpoints 2 and 3."""
    killed = run(chain.folder, 2, "--run_name=kept", "--save_every=1", "--overwrite",
                 stop=(signal.SIGKILL, 4))
    assert killed.code == -signal.SIGKILL
    folder = chain.runs / "kept"
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    return folder


def copy_of(run_folder, name):
    """A run of that name, beside the one that it is a copy of."""
    folder = run_folder.with_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"run_name": name}))
    return folder


CHECKPOINT_FILES = ["model.safetensors", "optimizer.bin", "scheduler.bin"]


@pytest.mark.parametrize("file", [CHECKPOINT_FILES[0], *(
    pytest.param(file, marks=pytest.mark.slow) for file in CHECKPOINT_FILES[1:])])
@pytest.mark.parametrize("damage", [cut, pytest.param(emptied, marks=pytest.mark.slow),
                                    pytest.param(pointer, marks=pytest.mark.slow),
                                    pytest.param(os.remove, marks=pytest.mark.slow)])
def test_the_checkpoint_before_a_damaged_one_is_used(chain, interrupted, file, damage):
    folder = copy_of(interrupted, "damaged")
    damage(folder / "checkpoint-3" / file)
    resumed = succeed(chain.folder, 2, "--run_name=damaged", "--resume")
    assert "checkpoint-3 is damaged" in resumed.err
    assert_same_run(folder, chain.runs / "reward")


def test_without_a_whole_checkpoint_nothing_is_touched(chain, interrupted):
    folder = copy_of(interrupted, "damaged")
    for checkpoint in folder.glob("checkpoint-*"):
        cut(checkpoint / "optimizer.bin")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run(chain.folder, 2, "--run_name=damaged", "--resume")
    assert done.code == 2 and "no checkpoint is whole" in done.err and "Traceback" not in done.err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lines", ["{}\n" * 3, *(pytest.param(x, marks=pytest.mark.slow) for x in (
    "3\n" * 3, '{"step": 2}\n' * 3, ""))])
def test_metrics_that_are_not_those_of_the_steps_are_refused(chain, interrupted, lines):
    folder = copy_of(interrupted, "damaged")
    (folder / "metrics.jsonl").write_text(lines)
    done = run(chain.folder, 2, "--run_name=damaged", "--resume")
    assert done.code == 2 and "checkpoint-3 is damaged, or metrics.jsonl" in done.err
    assert "no checkpoint is whole" in done.err and "Traceback" not in done.err
    assert (folder / "metrics.jsonl").read_text() == lines


def test_a_run_that_was_killed_between_its_model_and_its_samples_is_finished(chain, interrupted):
    folder = copy_of(interrupted, "nearly")
    (folder / "model").mkdir()
    (folder / "model" / "leftover").write_text("of the killed run")
    succeed(chain.folder, 2, "--run_name=nearly", "--resume")
    assert_same_run(folder, chain.runs / "reward")
    assert (folder / "samples.md").is_file() and not (folder / "model" / "leftover").exists()


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
def f(prompts, responses, **columns):
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(chain):
    """No file may grow beyond 100 kB: a stand-in for a full disk."""
    rewards = chain.folder / "full.py"
    options = ["--reward=full.py:f", "--max_new_tokens=6", "--save_every=2", "--overwrite"]
    rewards.write_text(FULL)
    done = run(chain.folder, 4, *options, "--run_name=full")
    assert_stopped(done, "cannot save checkpoint-2", "MB", "--resume")
    folder = chain.runs / "full"
    assert not list(folder.glob("checkpoint-*")) and not (folder / "model").exists()
    rewards.write_text(FULL.replace("resource.setrlimit", "print"))
    succeed(chain.folder, 4, *options[:-1], "--run_name=full", "--resume")
    succeed(chain.folder, 4, *options, "--run_name=roomy")
    assert_same_run(folder, chain.runs / "roomy")


# ---- Data ---------------------------------------------------------------------------------------

GOOD_ROW = {"instruction": "Say yes.", "output": "yes", "chosen": "yes", "rejected": "no"}


BAD_ROWS = {
    "null": "None", "3": "3", '["a"]': "'a'", '{"instruction": "Hi."': "Expecting ',' delimiter",
    '{"output": "yes"}': "'instruction'", '{"instruction": 3, "output": "yes"}': "'instruction'",
    '{"instruction": "Hi.", "output": ""}': "'output'",
    '{"instruction": "Hi.", "output": null}': "'output'",
    '{"instruction": "Hi.", "output": "yes", "input": 3}': "'input'",
    '{"instruction": "Hi.", "output": "yes", "input": {"a": "b"}}': "'input'",
    '{"messages": []}': "'instruction'", '{"messages": ["a", "b"]}': "attribute 'get'",
}


@pytest.mark.parametrize("bad, word", BAD_ROWS.items())
def test_rows_that_do_not_fit_are_left_out_and_the_first_is_shown(tmp_path, capsys, bad, word):
    """With the line of the file, blank ones counted; where nothing is left it is an error."""
    write_jsonl(tmp_path / "rows.jsonl", [GOOD_ROW, "", bad, GOOD_ROW, bad])
    read = load_lesson(1).read_data
    data = read(str(tmp_path / "rows.jsonl"), ["instruction", "output"], 100)
    out = capsys.readouterr().out
    assert data == [GOOD_ROW] * 2
    assert "2 of 4 rows are left out, as line 3: " in out and word in out, out
    write_jsonl(tmp_path / "rows.jsonl", [bad])
    with pytest.raises(SystemExit) as ended:
        read(str(tmp_path / "rows.jsonl"), ["instruction", "output"], 100)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    place = "row 1: " if bad == '["a"]' else "line 1: "  # alone this is a JSON list
    assert "rows.jsonl has no row" in err and place in err and word in err, err


USER, BOT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}
LAST, GOOD, BAD = ({"role": role, "content": text} for role, text in (
    ("user", "Two\nlines?"), ("assistant", "Good."), ("assistant", "Bad.")))
DIALOGUE = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Two\nlines?\n\nAssistant:"
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Yes?"},
            {"from": "human", "value": "Two\nlines?"}, {"from": "gpt", "value": "Good."}]
ANSWERED = {"instruction": "Two\nlines?", "output": "Good."}
COMPARED = {"instruction": "Two\nlines?", "chosen": "Good.", "rejected": "Bad."}
TURNS = {"earlier": [USER, BOT]}
LAYOUTS = {
    "Alpaca": (ANSWERED, ANSWERED),
    "prompt and completion": ({"prompt": "Two\nlines?", "completion": "Good."}, ANSWERED),
    "prompt and response": ({"prompt": "Two\nlines?", "response": "Good."}, ANSWERED),
    "question and answer": ({"question": "Two\nlines?", "answer": "Good."}, ANSWERED),
    "query and response": ({"query": "Two\nlines?", "response": "Good."}, ANSWERED),
    "messages": ({"messages": [USER, BOT, LAST, GOOD]}, ANSWERED | TURNS),
    "ShareGPT": ({"conversations": SHAREGPT}, ANSWERED | TURNS),
    "prompt and completion as messages": (
        {"prompt": [USER, BOT, LAST], "completion": [GOOD]}, ANSWERED | TURNS),
    "preferences": (
        {"question": "Two\nlines?", "chosen": "Good.", "rejected": "Bad."}, COMPARED),
    "preferences as messages": (
        {"prompt": [USER, BOT, LAST], "chosen": [GOOD], "rejected": [BAD]}, COMPARED | TURNS),
    "the prompt within the preferences": (
        {"chosen": [USER, BOT, LAST, GOOD], "rejected": [USER, BOT, LAST, BAD]}, COMPARED | TURNS),
    # Ultrachat's and others': `prompt` is what the conversation began with, and no more.
    "messages beside their beginning": (
        {"prompt": "Hi.", "messages": [USER, BOT, LAST, GOOD]}, ANSWERED | TURNS),
    "preferences beside their beginning": (
        {"prompt": "Hi.", "chosen": [USER, BOT, LAST, GOOD], "rejected": [USER, BOT, LAST, BAD]},
        COMPARED | TURNS),
    "HH-RLHF": ({"chosen": DIALOGUE + " Good.", "rejected": DIALOGUE + " Bad."}, COMPARED | TURNS),
    "text": ({"text": "Two\nlines?"}, {"instruction": "Two\nlines?"}),
    "a prompt as messages": ({"prompt": [USER, BOT, LAST]}, {"instruction": "Two\nlines?"} | TURNS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_read(layout):
    row, expected = LAYOUTS[layout]
    columns = [name for name in expected if name != "earlier"]
    found = load_lesson(2).standard_row(row, columns)
    assert {name: found[name] for name in expected} == expected
    assert found.get("earlier", []) == expected.get("earlier", [])


def write_files(folder):
    """The same two rows as JSON, JSON lines, CSV, Parquet and text, some of them gzipped."""
    import csv
    import gzip

    import datasets

    rows = [{"question": "What is 1, or 2?", "answer": "3"}, {"question": "谁?", "answer": "四"}]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "a.json").write_text(json.dumps(rows, indent=2))
    (folder / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet(folder / "a.parquet")
    (folder / "folder").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(folder / "folder" / "train.parquet")
    (folder / "a.txt").write_text("What is 1, or 2?\n\n谁?\n", encoding="utf-8")


def test_files_of_all_kinds_are_read(tmp_path):
    write_files(tmp_path)
    read = load_lesson(4).read_data
    for name in "a.json", "a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "folder", "folder::train":
        data = read(str(tmp_path / name), ["instruction", "output"], 10)
        assert [(row["instruction"], row["output"], row["answer"]) for row in data] == [
            ("What is 1, or 2?", "3", "3"), ("谁?", "四", "四")], name
    assert [row["instruction"] for row in read(str(tmp_path / "a.txt"), ["instruction"], 10)] == [
        "What is 1, or 2?", "谁?"]
    assert len(read(str(tmp_path / "a.csv"), ["instruction"], 1)) == 1


TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")


@pytest.fixture
def chat_model(qwen3, tmp_path):
    """A tiny Qwen3 whose tokenizer has a chat template, as Qwen's have."""
    folder = tmp_path / "chat-model"
    shutil.copytree(qwen3, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, "<|im_end|>"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_template_is_used_where_there_is_one(chat_model, capsys):
    lesson = load_lesson(1)
    config = lesson.Config(model=str(chat_model), device="cpu", max_new_tokens=8)
    model, tokenizer = lesson.load_causal_lm(config)
    row = {"instruction": "Two\nlines?", "input": "a <|im_end|>", "earlier": [USER, BOT]}
    ids, = lesson.encode_prompts([row], tokenizer, config)
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nTwo\nlines?\n\na <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert ids.count(tokenizer.eos_token_id) >= 3  # the template's own are tokens
    assert "chat template" in capsys.readouterr().out


def test_a_model_may_be_asked_to_think(chat_model):
    lesson = load_lesson(4)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    for style, end in ("think", "assistant\n"), ("chat", "</think>\n\n"):
        ids, = lesson.encode_prompts(
            [{"instruction": "Hi."}], tokenizer, lesson.Config(prompt_format=style))
        text = tokenizer.decode(ids)
        assert text.endswith(end) and ("<think>" in text) == (style == "chat")


@pytest.mark.parametrize("style, text", [
    ("alpaca", "### Instruction:\nHi.\n\nYes?\n\nTwo\nlines?\n\n### Input:\nx\n\n"
               "### Response:\n"),
    ("plain", "Hi.\n\nYes?\n\nTwo\nlines?\n\nx")])
def test_other_formats_leave_no_template_behind(chat_model, style, text):
    lesson = load_lesson(1)
    config = lesson.Config(model=str(chat_model), device="cpu", prompt_format=style)
    model, tokenizer = lesson.load_causal_lm(config)
    row = {"instruction": "Two\nlines?", "input": "x", "earlier": [USER, BOT]}
    assert tokenizer.decode(lesson.encode_prompts([row], tokenizer, config)[0]) == text
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_rows_that_a_template_refuses_are_left_out(number, chat_model, capsys):
    """As a system's turn by Gemma's."""
    lesson = load_lesson(number)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = ("{% if messages[0].role == 'system' %}"
                               "{{ raise_exception('No system, please!') }}{% endif %}" + TEMPLATE)
    config = lesson.Config(prompt_format="chat", max_prompt_length=200, max_new_tokens=9)
    good = {"instruction": "Hi.", "output": "Ho.", "chosen": "Ho.", "rejected": "No."}
    bad = good | {"earlier": [{"role": "system", "content": "Be nice."}], "output": "never"}

    def read(*rows):
        rows = [dict(row) for row in rows]
        if number == 1:
            return lesson.tokenize_examples(rows, tokenizer, config)
        if number == 2:
            return lesson.tokenize_pairs(rows, tokenizer, config)
        return lesson.add_prompt_ids([rows, [dict(good)]], tokenizer, config)[0]

    assert read(bad, good, bad, good) == read(good, good)
    said = capsys.readouterr().out
    assert "2 of 4 prompts are left out" in said
    assert "No system, please!" in said and "Be nice." in said
    with pytest.raises(SystemExit):
        read(bad, bad)
    assert "the template refuses all prompts: No system, please!" in capsys.readouterr().err


@pytest.mark.slow
def test_a_chat_model_goes_through_all_lessons(chat_model, tmp_path):
    """Messages in, chat template all the way, and the saved model still has it."""
    write_jsonl(tmp_path / "chats.jsonl", [{"messages": [USER, GOOD]}] * 4)
    write_jsonl(tmp_path / "pairs.jsonl", [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}] * 4)
    (tmp_path / "rewards.py").write_text(
        "def f(prompts, responses, **_): return [float(len(x)) for x in responses]\n")
    short = ["--max_new_tokens=8", "--max_prompt_length=100", "--lr=1e-3"]
    succeed(tmp_path, 1, "--model=chat-model", "--data=chats.jsonl", *short)
    sft = "--model=runs/chat-model/sft"
    succeed(tmp_path, 2, sft, "--data=pairs.jsonl", "--num_held_out=1", *short)
    succeed(tmp_path, 3, sft, "--data=chats.jsonl", "--steps=1", *short)
    succeed(tmp_path, 4, sft, "--data=chats.jsonl", "--reward=rewards.py:f", "--steps=1", *short)
    for name in RUNS.values():
        folder = tmp_path / "runs" / "chat-model" / name
        saved = AutoTokenizer.from_pretrained(folder / "model")
        assert saved.chat_template == TEMPLATE and not saved.split_special_tokens, name
        assert json.loads((folder / "config.json").read_text())["prompt_format"] == "chat"
    talk = [sft, "--chat", "--max_new_tokens=8"]
    alone = succeed(tmp_path, 1, *talk, small=False, stdin="And again?\n\n").out
    after = succeed(tmp_path, 1, *talk, small=False, stdin="Hi.\nAnd again?\nHi.\nHi.\n\n").out
    assert alone.splitlines()[:2] == after.splitlines()[:2]  # what the lesson says first
    assert not after.endswith(alone.splitlines()[-1] + "\n")  # it remembers


def test_files_in_another_encoding_are_refused(tmp_path, capsys):
    path = tmp_path / "latin1.jsonl"
    path.write_bytes('{"instruction": "Ça va?", "output": "Oui."}\n'.encode("latin-1"))
    with pytest.raises(SystemExit):
        load_lesson(1).read_data(str(path), ["instruction", "output"], 100)
    assert "utf-8" in capsys.readouterr().err


def test_odd_but_good_rows_are_read_as_they_are(tmp_path, capsys):
    """An input of null or none at all, dates, a name with brackets in it, the prompt's marker."""
    rows = [GOOD_ROW | {"input": None}, GOOD_ROW | {"output": "2024-01-02"},
            GOOD_ROW | {"input": "\n### Response:\nno"}]
    write_jsonl(tmp_path / "data[1].jsonl", rows)
    data = load_lesson(1).read_data(str(tmp_path / "data[1].jsonl"), ["instruction", "output"], 9)
    assert data == rows
    assert "1 of 3 rows" in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 2])
def test_special_tokens_in_a_text_are_text(chain, number):
    """A text that spells the end token has no end token in it, and decodes as it was."""
    lesson = load_lesson(number)
    config = lesson.Config(model=str(chain.runs / "sft"), device="cpu")
    text = "Stop.<|endoftext|>Go on.<|pad|>"
    if number == 1:
        _, tokenizer = lesson.load_causal_lm(config)
        row, = lesson.tokenize_examples([{"instruction": text, "output": text}], tokenizer, config)
        ids = row["input_ids"]
    else:
        _, tokenizer = lesson.make_reward_model(config)
        row, = lesson.tokenize_pairs(
            [{"instruction": text, "chosen": text, "rejected": "No."}], tokenizer, config)
        ids = row["chosen_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids[:-1]).count(text) == 2
    assert tokenizer.decode(ids).endswith(text + tokenizer.eos_token)


@pytest.mark.parametrize("rows, options, words", [
    ([GOOD_ROW | {"rejected": "yes"}] * 2, [], ["1 are equal", "0 have a prompt"]),
    ([GOOD_ROW] * 2, ["--max_prompt_length=3"], ["1 have a prompt", "0 are equal"]),
    ([GOOD_ROW | {"chosen": "no, never"}] * 2, ["--max_new_tokens=1"], ["1 are equal"])])
def test_the_reason_for_which_no_pair_is_left_is_the_true_one(chain, rows, options, words):
    write_jsonl(chain.folder / "equal.jsonl", rows)
    done = run(chain.folder, 2, "--data=equal.jsonl", "--run_name=equal", *options)
    assert done.code == 2
    assert all(word in done.err.splitlines()[-1] for word in ["no pair is left", *words]), done.err


# ---- A user's functions -------------------------------------------------------------------------

REWARDS = """
import sys
def leaves(prompts, responses, **_): sys.exit(0)
def texts(prompts, responses, **_): return ["1.0"] * len(responses)
def nested(prompts, responses, **_): return [[1.0]] * len(responses)
def unreal(prompts, responses, **_): return [1j] * len(responses)
def huge(prompts, responses, **_): return [1e300] * len(responses)
def short(prompts, responses, **_): return [1.0]
def one(prompts, responses, **_): return 1.0
def lazy(prompts, responses, **_): return (float(len(r)) for r in responses)
def tensor(prompts, responses, **_):
    import torch
    return torch.tensor([len(r) for r in responses])
"""


@pytest.mark.parametrize("name", ["texts", "nested", "huge", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("unreal", "short", "one"))])
def test_rewards_that_are_no_list_of_numbers_are_refused(chain, name):
    (chain.folder / "odd.py").write_text(REWARDS)
    done = run(chain.folder, 4, f"--reward=odd.py:{name}", "--run_name=odd")
    assert_one_line(done, f"odd.py:{name} returned", "finite numbers")


@pytest.mark.parametrize("name", ["lazy", "tensor"])
def test_rewards_may_come_as_a_generator_or_a_tensor(chain, name):
    (chain.folder / "odd.py").write_text(REWARDS)
    succeed(chain.folder, 4, f"--reward=odd.py:{name}", "--run_name=odd", "--steps=1",
            "--overwrite", "--max_new_tokens=6")


def test_sys_exit_in_a_users_file_is_said(chain):
    (chain.folder / "odd.py").write_text(REWARDS)
    done = run(chain.folder, 4, "--reward=odd.py:leaves", "--run_name=odd")
    assert_one_line(done, "odd.py, line 3", "SystemExit")
    (chain.folder / "leaving.py").write_text("import sys\nsys.exit()\n")
    done = run(chain.folder, 4, "--reward=leaving.py:f", "--run_name=odd")
    assert_one_line(done, "leaving.py, line 2", "SystemExit")


@pytest.fixture
def student(tmp_path):
    """A copy of lesson 3 and of the answers as exercises, to change."""
    shutil.copy(REPO / LESSONS[3], tmp_path)
    shutil.copytree(REPO / "exercises", tmp_path / "exercises")
    shutil.copy(REPO / "answers" / "ex3_ppo.py", tmp_path / "exercises")
    return tmp_path


def run_student(folder, chain, *options):
    return run_lesson_3(folder, chain, "--exercise", *options)


def run_lesson_3(folder, chain, *options):
    runs = [f"--model={chain.runs / 'sft'}", "--reward=sentiment", *options]
    return finish(start(folder, [folder / LESSONS[3], *flags(SMALL[3]), *runs]))


@pytest.mark.parametrize("text, words", [
    ("import sys\nsys.exit()\n", ["ex3_ppo.py", "SystemExit"]),
    ("compute_gae = None\n", ["compute_gae", "None"])])
def test_a_students_file_that_does_not_load_is_said(student, chain, text, words):
    with open(student / "exercises" / "ex3_ppo.py", "a") as file:
        file.write(text)
    assert_one_line(run_student(student, chain), *words)


@pytest.mark.slow
def test_a_blank_may_be_any_callable_and_nan_is_named(student, chain):
    path = student / "exercises" / "ex3_ppo.py"
    text = path.read_text()
    path.write_text(text + """
import functools
masked_whiten = functools.partial(masked_whiten, eps=1e-8)
class Entropy:
    def __call__(self, logits, mask, count=None):
        return (logits.sum(dim=-1) * mask).sum() * 0
masked_entropy = Entropy()
""")
    done = run_student(student, chain)
    assert done.code == 0 and "Your functions: response_logprobs" in done.out, done.err
    path.write_text(text + """
def compute_gae(rewards, values, mask, gamma, lam):
    return rewards / 0, values
""")
    done = run_student(student, chain, "--overwrite")
    assert_stopped(done, "compute_gae", "NaN or infinity", "pytest -k compute_gae")


@pytest.mark.slow
def test_functions_that_fail_their_checks_are_named_and_the_lessons_curve_is_shown(student, chain):
    """The run has a name of its own, and its curve stands beside that of the lesson's run."""
    for name in "tests", "answers", "pyproject.toml":
        (student / name).symlink_to(REPO / name)
    with open(student / "exercises" / "ex3_ppo.py", "a") as file:
        file.write("\ndef compute_gae(rewards, values, mask, gamma, lam):\n"
                   "    return rewards, rewards + values\n"
                   "def adaptive_kl_coef(*numbers):\n    return [][1]\n")
    runs = f"--runs_dir={student / 'runs'}"
    assert run_lesson_3(student, chain, runs).code == 0
    done = run_student(student, chain, runs)
    assert done.code == 0, done.err
    assert "although their checks fail: compute_gae, adaptive_kl_coef (pytest" in done.out
    mine, lessons = re.findall(r"^reward/avg, .*$", done.out, re.M)
    assert mine.startswith("reward/avg, your functions: ")
    assert lessons.startswith("reward/avg, the lesson's: ")
    assert {"ppo", "ppo_mine"} <= {path.name for path in (student / "runs" / "sft").iterdir()}
    done = run_student(student, chain, runs, "--target_kl=1", "--steps=2")
    assert_stopped(done, "ex3_ppo.py, line", "IndexError", "your adaptive_kl_coef", "pytest -k")


# ---- Folders, and Ctrl-C ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number, name", [(3, "reward"), (4, "ppo"), (1, "sft/model"), (2, "base")])
def test_a_folder_of_another_lesson_is_not_moved(chain, number, name):
    before = listing(chain.runs)
    done = run(chain.folder, number, f"--run_name={name}", "--overwrite")
    assert_one_line(done, "no run of this lesson", name)
    assert listing(chain.runs) == before


def test_a_run_of_an_older_version_is_kept_like_any_other(chain, tmp_path):
    """It has other settings, and does not say which lesson wrote it."""
    shutil.copytree(chain.runs, tmp_path / "runs")
    file = tmp_path / "runs" / "reward" / "config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("lesson") == LESSONS[2]
    file.write_text(json.dumps(saved | {"of_old": 1}))
    succeed(tmp_path, 2, "--steps=1")
    assert weights(tmp_path / "runs" / "reward-1") == weights(chain.runs / "reward")


@pytest.mark.parametrize("name", ["base", *RUNS.values()])
def test_a_finished_run_holds_no_checkpoints(chain, name):
    assert not list((chain.runs / name).glob("checkpoint-*"))
    assert (chain.runs / name / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 2.5, 4.0])
def test_ctrl_c_while_the_libraries_load_shows_no_traceback(tmp_path, seconds):
    process = subprocess.Popen([sys.executable, REPO / LESSONS[3], *flags(SMALL[3])], text=True,
                               cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "Traceback" not in err, err
