"""Models, data and rewards of one's own: columns and files of many kinds, what is held out,
lengths, evaluation without training, reward functions and classifiers, the hub. At the end two
recipes from end to end: a continuation of film texts, and word problems with GSM8K's answers.

Most tests type a command into this very process; expected values are worked out by hand or by other
code than the lesson's."""

import contextlib
import gzip
import http.server
import io
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from conftest import ROOT, load_lesson
from test_models import record
from transformers import AutoModelForCausalLM, AutoTokenizer

FILES = {1: "lesson1_sft.py", 2: "lesson2_reward.py", 3: "lesson3_ppo.py", 4: "lesson4_grpo.py"}
RUNS = {1: "sft", 2: "reward", 3: "ppo", 4: "grpo"}
each_lesson = pytest.mark.parametrize("number", FILES)
both_rl = pytest.mark.parametrize("number", [3, 4])
QUESTIONS = [{"question": f"Is {i} odd?", "answer": "yes" if i % 2 else "no"} for i in range(40)]
PAIRS = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": "no"} for i in range(40)]


def write_rows(path, rows):
    """JSON lines -> the file's name."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def type_in(monkeypatch, tmp_path, capsys):
    """type_in("lesson1_sft.py --model ...", steps=0): what `python` and these words would do, in
    tmp_path -> what it said (out, err) and its exit code."""
    handler, silenced = signal.getsignal(signal.SIGINT), logging.root.manager.disable
    monkeypatch.chdir(tmp_path)

    def run(command, **flags):
        file, *words = shlex.split(command)
        flags = dict(device="cpu", report_to="none") | flags
        words += [f"--{name}={value}" for name, value in flags.items()]
        monkeypatch.setattr("sys.argv", [file, *words])
        lesson, code = load_lesson(int(file[6])), 0
        with warnings.catch_warnings():
            try:
                lesson.run_lesson()
            except SystemExit as ended:
                code = ended.code
        said = capsys.readouterr()
        return SimpleNamespace(out=said.out, code=code, err=said.err)

    yield run
    signal.signal(signal.SIGINT, handler)
    logging.disable(silenced)


@pytest.fixture
def refused(type_in, tmp_path):
    """refused("lesson1_sft.py ...", words): this command ends with one line that has these words,
    and no run is begun."""
    def run(command, *words, **flags):
        done = type_in(command, **flags)
        assert done.code == 2 and done.err.count("\n") == 1, done.err
        assert done.err.startswith("error: "), done.err
        for word in words:
            assert word in done.err, done.err
        assert not list(tmp_path.glob("runs/**/config.json"))

    return run


def ends_in_one_line(capsys, function, *words):
    with pytest.raises(SystemExit) as ended:
        function()
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err


# ---- Columns ------------------------------------------------------------------------------------

OWN_COLUMNS = [  # row, --columns, what is read
    ({"task": "Say.", "reply": "yes"}, "instruction=task,output=reply",
     {"instruction": "Say.", "output": "yes"}),
    ({"task": "Say.", "output": "yes"}, "instruction=task",  # the others have their usual names
     {"instruction": "Say.", "output": "yes"}),
    ({"instruction": "id 7", "task": "Say.", "output": "yes"}, "instruction=task",
     {"instruction": "Say.", "output": "yes"}),
    ({"task": "Say.", "reply": "yes"}, "prompt=task, completion=reply",
     {"instruction": "Say.", "output": "yes"}),
    ({"instruction": "Who?", "context": "A king.", "response": "He."}, "input=context",
     {"instruction": "Who?", "input": "A king.", "output": "He."}),
    ({"instruction": "Who?", "response": "He."}, "input=context",
     {"instruction": "Who?", "input": "", "output": "He."}),
    ({"talk": [{"from": "human", "value": "Say."}, {"from": "gpt", "value": "yes"}]},
     "conversations=talk", {"instruction": "Say.", "output": "yes"}),
    ({"instruction": "id 7", "task": "Say.", "output": "no", "reply": "yes"},
     "prompt=task,response=reply", {"instruction": "Say.", "output": "yes"}),
]


@pytest.mark.parametrize("row, columns, expected", OWN_COLUMNS)
def test_columns_of_ones_own(lesson1, tmp_path, row, columns, expected):
    file = write_rows(tmp_path / "rows.jsonl", [row])
    read, = lesson1.read_data(file, ["instruction", "output"], 10, columns)
    assert {name: read[name] for name in expected} == expected
    assert {name: read[name] for name in row if name not in expected} == {
        name: value for name, value in row.items() if name not in expected}  # for the rewards


def test_columns_of_pairs(lesson2, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Say.", "better": "a", "worse": "b"}])
    read, = lesson2.read_data(file, ["instruction", "chosen", "rejected"], 10,
                              "chosen=better,rejected=worse")
    assert (read["instruction"], read["chosen"], read["rejected"]) == ("Say.", "a", "b")


@pytest.mark.parametrize("columns, words", [
    ("instruction=taks", ["'instruction'", "['task', 'output']", "--columns"]),
    ("task", ["cannot read", "--columns 'task'"]), ("promt=task", ["--columns", "'promt'"])])
def test_columns_that_are_not_there_are_said(lesson1, tmp_path, capsys, columns, words):
    file = write_rows(tmp_path / "rows.jsonl", [{"task": "Say.", "output": "yes"}])
    ends_in_one_line(capsys, lambda: lesson1.read_data(
        file, ["instruction", "output"], 10, columns), "rows.jsonl", *words)


def test_a_row_without_the_renamed_column_is_left_out(lesson1, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", [
        {"task": "Say.", "output": "yes"}, {"output": "yes"}, ["no columns"]])
    assert len(lesson1.read_data(file, ["instruction", "output"], 10, "instruction=task")) == 1
    assert "2 of 3 rows are left out, as line 2: " in capsys.readouterr().out


def test_a_column_called_context_is_no_conversation(type_in, gpt2, tmp_path):
    """Dolly's columns."""
    write_rows(tmp_path / "dolly.jsonl", [
        {"instruction": f"Who {i}?", "context": "A king.", "response": "He."} for i in range(6)])
    done = type_in(f"lesson1_sft.py --model {gpt2} --data dolly.jsonl --columns input=context",
                   steps=0)
    assert done.code == 0, done.err
    assert re.search(r"\*?Who \d\? A king\.", done.out)


# ---- Conversations ------------------------------------------------------------------------------


def turns(text):
    """"s: Be nice. / u: Hi. / a: Yes?" -> messages"""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in text.split(" / ")]


def read_examples(lesson1, tmp_path, *conversations):
    """What lesson 1 trains on: (earlier turns, instruction, output)"""
    rows = [{"messages": turns(talk) if isinstance(talk, str) else talk} for talk in conversations]
    file = write_rows(tmp_path / "talks.jsonl", rows)
    data, held_out = lesson1.load_examples(lesson1.Config(data=file, eval_data=file))
    assert data == held_out
    return [(row.get("earlier", []), row["instruction"], row["output"]) for row in data]


def test_every_answer_of_a_conversation_is_an_example(lesson1, tmp_path):
    found = read_examples(lesson1, tmp_path, "s: Be nice. / u: Hi. / a: Yes? / u: Go on. / a: No.",
                          "u: One. / a: Two.")
    assert found == [
        (turns("s: Be nice."), "Hi.", "Yes?"),
        (turns("s: Be nice. / u: Hi. / a: Yes?"), "Go on.", "No."),
        ([], "One.", "Two.")]


def test_what_the_user_says_last_is_no_answer(lesson1, lesson3, tmp_path, capsys):
    """For lesson 1 such a conversation does not fit; for the others it is a prompt."""
    talks = ["u: One. / a: Two.", "u: Hi. / a: Yes? / u: Go on.", "u: Only this."]
    assert read_examples(lesson1, tmp_path, *talks) == [([], "One.", "Two.")]
    assert "2 of 3 rows are left out, as line 2: the column 'output'" in capsys.readouterr().out
    data = lesson3.read_data(str(tmp_path / "talks.jsonl"), ["instruction"], 10)
    assert [(row["earlier"], row["instruction"]) for row in data] == [
        ([], "One."), (turns("u: Hi. / a: Yes?"), "Go on."), ([], "Only this.")]


def test_a_turn_without_text_is_left_out_with_its_conversation(lesson1, tmp_path, capsys):
    tool = {"role": "assistant", "content": None, "tool_calls": []}
    talk = turns("u: Hi.") + [tool] + turns("u: Go on. / a: No.")
    assert read_examples(lesson1, tmp_path, talk, "s:  / u: One. / a: Two.") == [
        (turns("s: "), "One.", "Two.")]
    assert "1 of 2 rows are left out, as line 1: " in capsys.readouterr().out


def test_roles_that_nobody_knows_end_a_conversation(lesson1, lesson3, tmp_path, capsys):
    """A tool's result is no answer, and no question of a user's."""
    tool = turns("u: Hi.") + [{"role": "tool", "content": "13"}]
    odd = [{"from": "USER", "value": "One."}, {"from": "ChatGPT", "value": "Two."}]
    assert read_examples(lesson1, tmp_path, tool, tool + turns("a: Ho."), odd) == [
        ([], "One.", "Two.")]
    assert "2 of 3 rows are left out, as line 1: a turn of 'tool'" in capsys.readouterr().out
    data = lesson3.read_data(str(tmp_path / "talks.jsonl"), ["instruction"], 10)
    assert [row["instruction"] for row in data] == ["One."]


def test_an_empty_answer_is_none(lesson1, tmp_path):
    """As the turns of messages have that call a tool."""
    found = read_examples(lesson1, tmp_path, "u: Hi. / a:  / u: Go on. / a: No.",
                          "u: Hi. / a: \n")
    assert [row[1:] for row in found] == [("Go on.", "No.")]


def test_a_pair_has_one_prompt(lesson2, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", [
        {"chosen": turns("u: One? / a: Yes."), "rejected": turns(f"u: {prompt} / a: No.")}
        for prompt in ("One?", "Two?")])
    row, = lesson2.read_data(file, ["instruction", "chosen", "rejected"], 20)
    assert (row["instruction"], row["chosen"], row["rejected"]) == ("One?", "Yes.", "No.")
    assert "line 2: the prompts of 'chosen' and 'rejected' differ" in capsys.readouterr().out


def test_where_nothing_is_trained_all_pairs_are_scored(lesson2, tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    for steps, number in (0, len(PAIRS)), (None, 5):
        config = lesson2.Config(data=file, eval_data=file, num_held_out=5, steps=steps)
        assert len(lesson2.load_pairs(config)[1]) == number


def test_a_conversation_is_held_out_as_a_whole(lesson1, tmp_path):
    file = write_rows(tmp_path / "talks.jsonl", [
        {"messages": turns(f"u: {i} / a: b / u: {i} / a: d")} for i in range(30)])
    parts = lesson1.load_examples(lesson1.Config(data=file))
    names = [[row["instruction"] for row in part] for part in parts]
    assert [len(part) for part in names] == [56, 4] and not set(names[0]) & set(names[1])


# ---- Files --------------------------------------------------------------------------------------


def test_lines_of_text_may_begin_with_a_bracket(lesson3, tmp_path):
    (tmp_path / "a.txt").write_text("[INST] Hi.\n\n  Two words \n", "utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("[INST] Hi.\n\n  Two words \n")
    for name in "a.txt", "a.txt.gz":
        data = lesson3.read_data(str(tmp_path / name), ["instruction"], 10)
        assert [row["instruction"] for row in data] == ["[INST] Hi.", "Two words"], name


def test_csv_has_the_files_lines_and_may_have_odd_rows(lesson1, tmp_path, capsys):
    (tmp_path / "a.CSV").write_text(
        'question,answer\n"Three\nlines\nhere?",yes\nOne?,\nTwo?,no,more,cells\nFew\n', "utf-8")
    data = lesson1.read_data(str(tmp_path / "a.CSV"), ["instruction", "output"], 10)
    assert [(row["instruction"], row["output"]) for row in data] == [
        ("Three\nlines\nhere?", "yes")]
    assert "3 of 4 rows are left out, as line 5: " in capsys.readouterr().out


def test_a_text_with_an_unquoted_comma_is_no_shorter_text(lesson1, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("question,answer\nWhat is 12, plus 1?,13\nOne?,1\n", "utf-8")
    row, = lesson1.read_data(str(tmp_path / "a.csv"), ["instruction", "output"], 10)
    assert row["instruction"] == "One?"
    assert "line 2: " in (said := capsys.readouterr().out) and "more cells than columns" in said


def test_a_quote_without_its_end_swallows_no_rows(lesson1, tmp_path, capsys):
    (tmp_path / "a.tsv").write_text('question\tanswer\n"One?\t1\n' + "Two?\t2\n" * 9, "utf-8")
    ends_in_one_line(capsys, lambda: lesson1.read_data(
        str(tmp_path / "a.tsv"), ["instruction", "output"], 20), "a.tsv", "unexpected end of data")


def test_a_cell_may_be_long(lesson1, tmp_path):
    (tmp_path / "a.csv").write_text(f"question,answer\nOne?,{'1 ' * 10**5}\n", "utf-8")
    row, = lesson1.read_data(str(tmp_path / "a.csv"), ["instruction", "output"], 20)
    assert len(row["output"]) == 2 * 10**5


def test_messages_in_a_cell_are_no_text(lesson1, lesson2, tmp_path, capsys):
    """As a table holds them that was written from a dataset of messages."""
    talk = str([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}])
    file = write_rows(tmp_path / "rows.jsonl", [
        {"prompt": "Hi.", "messages": talk, "chosen": json.dumps([{"from": "gpt", "value": "Ho."}]),
         "rejected": "No."},
        {"prompt": "Hi.", "messages": "[{'a': 1}] is a list.", "chosen": "Ho.", "rejected": "No."}])
    for lesson, columns in (lesson1, ["output"]), (lesson2, ["chosen", "rejected"]):
        row, = lesson.read_data(file, ["instruction", *columns], 20)
        assert row[columns[0]] in ("[{'a': 1}] is a list.", "Ho.")
        assert "1 of 2 rows are left out, as line 1: " in capsys.readouterr().out


def test_columns_that_nothing_is_made_of_are_said(lesson1, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", [
        {"instruction": "Who?", "context": "A king.", "response": "He.", "category": "people"}])
    lesson1.read_data(file, ["instruction", "output"], 20)
    assert "hold nothing of the columns context, category." in capsys.readouterr().out
    lesson1.read_data(file, ["instruction", "output"], 20, "input=context")
    assert "hold nothing of the columns category." in capsys.readouterr().out


def test_what_is_renamed_does_not_stand_there_twice(lesson1, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [{"input": "What is 12 + 1?", "output": "13"}])
    row, = lesson1.read_data(file, ["instruction", "output"], 20, "instruction=input")
    assert row["instruction"] == "What is 12 + 1?" and not row.get("input")


def test_a_tsv_is_a_csv_with_tabs(lesson1, tmp_path):
    (tmp_path / "a.tsv").write_text('question\tanswer\nOne, two?\t"a\tb"\n', "utf-8")
    row, = lesson1.read_data(str(tmp_path / "a.tsv"), ["instruction", "output"], 10)
    assert (row["instruction"], row["output"]) == ("One, two?", "a\tb")


def test_what_is_no_line_of_a_file_is_a_row(lesson1, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "Hi.", "response": "Yes."}, {}],
                                                indent=2), "utf-8")
    lesson1.read_data(str(tmp_path / "a.json"), ["instruction", "output"], 10)
    assert "1 of 2 rows are left out, as row 2: " in capsys.readouterr().out


def test_what_is_cut_off_a_file_is_said(lesson1, lesson2, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    for size, words in (40, ""), (39, f"{file}: no more than the first 39 rows are read.\n"):
        assert len(lesson1.read_data(file, ["instruction", "output"], size)) == size
        assert capsys.readouterr().out == words
    file = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    for limit, words in (38, ""), (37, f"{file}: 37 of 38 pairs are used (--num_pairs).\n"):
        data, _ = lesson2.load_pairs(lesson2.Config(data=file, num_pairs=limit))
        assert len(data) == limit and capsys.readouterr().out == words


@each_lesson
@pytest.mark.parametrize("flag", ["--eval_data=rows.jsonl", "--columns=instruction=task"])
def test_what_needs_data_says_so(number, flag, refused):
    refused(f"{FILES[number]} {flag}", "--eval_data and --columns need --data")


def test_a_folder_has_splits(lesson3, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "both").mkdir()
    write_rows(tmp_path / "both" / "train.jsonl", QUESTIONS[:3])
    write_rows(tmp_path / "both" / "test.jsonl", QUESTIONS[3:5])
    for name, expected in ("", QUESTIONS[:3]), ("::test", QUESTIONS[3:5]):
        data = lesson3.read_data(f"{tmp_path / 'both'}{name}", ["instruction"], 10)
        assert [row["instruction"] for row in data] == [row["question"] for row in expected]


@pytest.mark.parametrize("name, expected", [
    ("org/math", ("org/math", None, "train")), ("org/math:main", ("org/math", "main", "train")),
    ("org/math:main:test", ("org/math", "main", "test")),
    ("math::test", ("math", None, "test"))])
def test_data_on_the_hub_has_a_name_a_config_and_a_split(
        lesson3, monkeypatch, name, expected, tmp_path):
    import datasets
    asked = []

    def load_dataset(path, name=None, split=None):
        asked.append((path, name, split))
        return QUESTIONS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(lesson3.read_data(name, ["instruction"], 7)) == 7
    assert asked == [expected]


# ---- What is held out ---------------------------------------------------------------------------


def load_parts(lesson, file, **settings):
    """(training, held-out) rows as the lesson's main() loads them."""
    tokenizer = SimpleNamespace(chat_template=None)
    settings = dict(model="m", data=file, max_prompt_length=9) | settings
    if lesson.__name__.startswith("lesson1"):
        return lesson.load_examples(lesson.Config(**settings))
    if lesson.__name__.startswith("lesson2"):
        return lesson.load_pairs(lesson.Config(**settings))
    lesson.encode_prompts = lambda rows, *_: [[1, 2]] * len(rows)
    load = getattr(lesson, "load_prompts", None) or lesson.load_grpo_prompts
    return load(lesson.Config(reward="sentiment", **settings), tokenizer)


@each_lesson
def test_a_twentieth_of_the_data_is_held_out(number, tmp_path):
    lesson, rows = load_lesson(number), PAIRS if number == 2 else QUESTIONS
    everything = {f"Is {i} odd?" for i in range(40)}
    for size, share in (40, 2), (21, 2), (20, 1), (2, 1):
        file = write_rows(tmp_path / "rows.jsonl", rows[:size])
        data, held_out = ([row["instruction"] for row in part] for part in load_parts(lesson, file))
        assert len(held_out) == share and len(data) == size - share
        assert len(set(data + held_out)) == size and set(data + held_out) <= everything
        again = load_parts(load_lesson(number), file)
        assert [row["instruction"] for row in again[1]] == held_out  # of a resumed run as well


@each_lesson
def test_eval_data_is_what_is_evaluated_on(number, tmp_path):
    lesson, rows = load_lesson(number), PAIRS if number == 2 else QUESTIONS
    rows = [{"task" if name in ("question", "prompt") else name: text for name, text in row.items()}
            for row in rows]
    data, held_out = load_parts(
        lesson, write_rows(tmp_path / "a.jsonl", rows[:1]), columns="instruction=task",
        eval_data=write_rows(tmp_path / "b.jsonl", rows[5:8]))
    assert [row["instruction"] for row in data] == ["Is 0 odd?"]
    assert [row["instruction"] for row in held_out] == [f"Is {i} odd?" for i in (5, 6, 7)]


# ---- Lengths ------------------------------------------------------------------------------------


def lengths(lesson, positions, **settings):
    """(prompt, response) of this configuration with a model of so many positions."""
    config = lesson.Config(**settings)
    settings = {"eos_token_id": 0} | ({"max_position_embeddings": positions} if positions else {})
    lesson.end_tokens(SimpleNamespace(config=SimpleNamespace(**settings)),
                      SimpleNamespace(eos_token="x", eos_token_id=0), config, "the model")
    return config.max_prompt_length, config.max_new_tokens


@each_lesson
@pytest.mark.parametrize("positions, expected", [
    (None, (512, 256)), (32768, (512, 256)), (1024, (512, 256)), (768, (512, 256)),
    (600, (400, 200)), (128, (86, 42))])
def test_lengths_are_those_of_real_data_and_fit_the_model(number, positions, expected):
    own = {"reward": "sentiment"} if number > 2 else {}
    assert lengths(load_lesson(number), positions, model="m", data="d", **own) == expected


def test_lengths_without_data_are_the_tiny_worlds(lesson1, lesson2, lesson3, lesson4):
    assert lengths(lesson1, 1024) == (64, 48) and lengths(lesson1, 1024, model="m") == (512, 256)
    assert lengths(lesson2, 1024, model="m") == (64, 48)
    assert lengths(lesson3, 1024, model="m") == (64, 40)
    assert lengths(lesson4, 1024, model="m") == (64, 4)
    assert lengths(lesson4, 1024, model="m", reward="sentiment") == (64, 40)


def test_lengths_that_are_typed_stay(lesson1, capsys):
    own = dict(model="m", data="d")
    assert lengths(lesson1, 1024, max_new_tokens=700, **own) == (324, 700)
    assert lengths(lesson1, 1024, max_prompt_length=20, **own) == (20, 256)
    ends_in_one_line(capsys, lambda: lengths(lesson1, 1024, max_prompt_length=800, **own),
                     "1056", "1024 positions")


def test_answers_that_are_cut_are_counted_and_teach_no_end(lesson1, gpt2, capsys):
    config = lesson1.Config(model=gpt2, data="d", max_new_tokens=5)
    _, tokenizer = lesson1.load_causal_lm(config)
    rows = [{"instruction": "Hi.", "output": text} for text in ("abcd", "abcde", "abcdefgh", "a")]
    examples = lesson1.tokenize_examples(rows, tokenizer, config)
    assert "2 of 4 answers are cut at --max_new_tokens 5" in capsys.readouterr().out
    assert [row["num_labels"] for row in examples] == [5, 5, 5, 2]
    assert [row["labels"][-1] == tokenizer.eos_token_id for row in examples] == [
        True, False, False, True]


@both_rl
def test_prompts_that_are_too_long_are_counted(number, gpt2, capsys):
    lesson = load_lesson(number)
    config = lesson.Config(model=gpt2, data="d", reward="sentiment", max_prompt_length=25)
    _, tokenizer = lesson.load_causal_lm(config)
    parts = [[{"instruction": "Hi."}, {"instruction": "Hi. " * 30}], [{"instruction": "Ho."}]]
    data, held_out = lesson.add_prompt_ids(parts, tokenizer, config)
    assert [row["instruction"] for row in data + held_out] == ["Hi.", "Ho."]
    assert "1 of 3 prompts are longer than --max_prompt_length 25" in capsys.readouterr().out
    config.max_prompt_length = 3
    ends_in_one_line(capsys, lambda: lesson.add_prompt_ids(parts, tokenizer, config),
                     "--max_prompt_length")


@both_rl
def test_a_plain_prompt_is_the_beginning_of_the_text(number, gpt2, capsys):
    lesson = load_lesson(number)
    config = lesson.Config(model=gpt2, data="d", reward="sentiment", prompt_format="plain",
                           max_prompt_length=6)
    _, tokenizer = lesson.load_causal_lm(config)
    text = "The story was lovely, and more."
    ids = AutoTokenizer.from_pretrained(gpt2)(text)["input_ids"]
    data, _ = lesson.add_prompt_ids([[{"instruction": text}], [{"instruction": "No"}]],
                                    tokenizer, config)
    assert len(ids) > 6 and data[0]["prompt_ids"] == ids[:6]
    assert text.startswith(data[0]["instruction"]) and len(data[0]["instruction"]) < len(text)
    assert "longer" not in capsys.readouterr().out


# ---- Lesson 1: epochs, and how like the references the answers are ------------------------------


def test_epochs_in_place_of_steps(type_in, gpt2, tmp_path):
    """19 of 20 rows are trained on: in batches of 4, five an epoch."""
    write_rows(tmp_path / "rows.jsonl", QUESTIONS[:20])
    done = type_in(f"lesson1_sft.py --model {gpt2} --data rows.jsonl --epochs 3 --batch_size 4")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / Path(gpt2).name / "sft"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 15
    assert json.loads((folder / "config.json").read_text())["steps"] == 15


def test_text_metrics_need_their_packages(type_in, gpt2, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    done = type_in(f"lesson1_sft.py --model {gpt2} --data rows.jsonl --text_metrics", steps=3)
    assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert "pip install rouge-score sacrebleu" in done.err and "sft:" not in done.err  # at once


@pytest.mark.peft
def test_text_metrics_compare_answers_with_references(lesson1, gpt2, monkeypatch):
    """ROUGE-L by hand: "a b c d" and "a c" have 2 words in common, in order: precision 2 / 2,
    recall 2 / 4, F = 2 / 3. chrF of equal texts is 100 and of texts without a common letter 0."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    config = lesson1.Config(model=gpt2, data="d", micro_batch_size=2, max_new_tokens=9)
    answers = []

    def generate(model, tokenizer, prompts, max_new_tokens, temperature=1.0, width=None):
        assert temperature == 0 and max_new_tokens == 9 and len(prompts) <= 2
        ids = [tokenizer.encode(answers[prompt[0]]) for prompt in prompts]
        longest = max(map(len, ids))
        return None, None, torch.tensor([row + [0] * (longest - len(row)) for row in ids])

    monkeypatch.setattr(lesson1, "generate", generate)
    for answers, references, rouge, chrf in [
            (["a b c", "x", "y z"], ["a b c", "x", "y z"], 100, 100),
            (["p", "q", "r"], ["a", "b", "c"], 0, 0),
            (["a c", "q", "r"], ["a b c d", "q", "s"], 100 * (2 / 3 + 1 + 0) / 3, None)]:
        rows = [{"prompt_ids": [i], "reference": text} for i, text in enumerate(references)]
        numbers = lesson1.text_metrics(None, tokenizer, rows, config)
        assert set(numbers) == {"rougeL", "chrF"}
        assert numbers["rougeL"] == pytest.approx(rouge)
        assert chrf is None or numbers["chrF"] == pytest.approx(chrf)


# ---- Evaluation ---------------------------------------------------------------------------------

CONSTANT = "def f(prompts, completions, **columns):\n    return [2.5] * len(completions)\n"


def evaluate_only(number, type_in, gpt2, tmp_path, **flags):
    """--steps 0 -> (what was said, eval.json)"""
    write_rows(tmp_path / "rows.jsonl", PAIRS if number == 2 else QUESTIONS)
    (tmp_path / "rewards.py").write_text(CONSTANT)
    if number > 2:
        flags |= dict(reward="rewards.py:f", num_samples=8, batch_size=8, missing_eos_penalty=0,
                      max_new_tokens=6)
    done = type_in(f"{FILES[number]} --model {gpt2} --data rows.jsonl", steps=0, **flags)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / Path(gpt2).name / f"{RUNS[number]}-eval"
    assert [path.name for path in folder.parent.glob("[!.]*")] == [folder.name]
    assert not (folder / "model").exists() and (folder / "samples.md").is_file()
    assert "Nothing was trained" in done.out and "Next:" not in done.out
    return done.out, json.loads((folder / "eval.json").read_text())


@each_lesson
def test_with_no_steps_a_model_is_evaluated_and_not_trained(number, type_in, gpt2, tmp_path):
    weights = {path.name: path.read_bytes() for path in Path(gpt2).iterdir()}
    out, numbers = evaluate_only(number, type_in, gpt2, tmp_path)
    assert numbers["before"] == numbers["after"]
    assert weights == {path.name: path.read_bytes() for path in Path(gpt2).iterdir()}
    after = numbers["after"]
    assert all(isinstance(x, float) and x == x for x in after.values())
    if number == 2:
        assert {"accuracy", "calibration/error", "loss/held_out"} <= set(after)
    elif number == 3:
        assert after["reward/avg"] == 2.5 and after["win_rate"] == 0.5
        assert after["kl/ref_sum"] == pytest.approx(0, abs=1e-5)
    elif number == 4:
        assert after["reward/greedy"] == after["reward/sampled"] == 2.5
        assert after["win_rate"] == 0.5 and after["win_rate/error"] == 0
    table = dict(re.findall(r"^([a-zA-Z@/_]\S+) +\S+ +(-?[\d.]+)$", out, re.MULTILINE))
    assert {name: float(x) for name, x in table.items()} == pytest.approx(after, abs=6e-4)


def test_held_out_loss_is_the_models_mean_over_the_answers_tokens(type_in, qwen3, tmp_path):
    """From the files alone, an example at a time. (This model needs no rows for a pad token.)"""
    write_rows(tmp_path / "train.jsonl", QUESTIONS[:2])
    write_rows(tmp_path / "test.jsonl", QUESTIONS[2:7])
    type_in(f"lesson1_sft.py --model {qwen3} --data train.jsonl --eval_data test.jsonl", steps=0)
    found = json.loads(next(tmp_path.glob("runs/*/sft-eval/eval.json")).read_text())["after"]
    model = AutoModelForCausalLM.from_pretrained(qwen3, dtype=torch.float32).eval()
    tokenizer, total, count = AutoTokenizer.from_pretrained(qwen3), 0.0, 0
    for row in QUESTIONS[2:7]:
        prompt = tokenizer.encode(f"### Instruction:\n{row['question']}\n\n### Response:\n")
        answer = tokenizer.encode(row["answer"]) + [tokenizer.eos_token_id]
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for place, token in enumerate(answer, start=len(prompt)):
            total, count = total - logprobs[place - 1, token].item(), count + 1
    assert found["loss/held_out"] == pytest.approx(total / count, rel=1e-4)
    assert found["perplexity/held_out"] == pytest.approx(
        torch.tensor(total / count).exp().item(), rel=1e-3)


def test_calibration_error_by_hand(lesson2):
    """Two favourites at 62%, one of which won, and two at 92%, which both won: off by 0.1."""
    chance = torch.tensor([0.62, 0.38, 0.92, 0.92])  # that the chosen one was
    numbers = lesson2.measure(chance.logit(), torch.zeros(4), [{}] * 4)
    assert numbers["calibration/error"] == pytest.approx(0.1, abs=1e-4)
    assert numbers["accuracy"] == 0.75
    numbers = lesson2.measure(torch.tensor([0.72] * 3 + [0.28]).logit(), torch.zeros(4), [{}] * 4)
    assert numbers["calibration/error"] == pytest.approx(0.03, abs=1e-4)  # 72%, and 3 of 4


@both_rl
def test_win_rate_by_hand(number):
    """Wins 1, 0.5, 0, 0.5: their mean is 0.5, their standard deviation 0.408, over 2 is 0.204."""
    win_rate = load_lesson(number).win_rate
    after, before = torch.tensor([1., 2., 3., 0.]), torch.tensor([0., 2., 4., 0.])
    assert win_rate(after, before) == pytest.approx(
        {"win_rate": 0.5, "win_rate/error": (1 / 6) ** 0.5 / 2})
    assert win_rate(after[:1], before[:1]) == {"win_rate": 1.0, "win_rate/error": 0.0}


@both_rl
def test_win_rate_of_several_answers_to_a_prompt_by_hand(number):
    """Two answers to each of three prompts: they win 1, 0.5 and 0.5 of the time. The prompts are
    independent draws, their answers are not."""
    win_rate = load_lesson(number).win_rate
    after, before = torch.tensor([[1., 1., 0.], [1., 0., 1.]]), torch.tensor([[0., 1., 1.]] * 2)
    wins = torch.tensor([1.0, 0.25, 0.25])
    assert win_rate(after, before) == pytest.approx(
        {"win_rate": 0.5, "win_rate/error": (wins.std() / 3 ** 0.5).item()})
    assert win_rate(after[:, :1], before[:, :1]) == {"win_rate": 1.0, "win_rate/error": 0.0}


LENGTH = "def f(prompts, responses, **columns):\n    return [float(len(x)) for x in responses]\n"


@pytest.mark.parametrize("number, data", [
    (3, "--data rows.jsonl"), (4, "--data rows.jsonl"), (3, "")])
def test_a_run_is_compared_with_the_model_that_it_began_with(
        number, data, gpt2, type_in, tmp_path, monkeypatch):
    """Over the same held-out prompts, from the rewards of the first and of the last look: in the
    tiny world the gold ones, which here take a half off for a word that is used twice."""
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    (tmp_path / "rewards.py").write_text(LENGTH)
    looks, load = [], load_lesson

    def spy(n):
        lesson = load(n)
        if n == 3:
            monkeypatch.setattr(lesson, "gold_utility", lambda text: -float(len(text)))
        name = "sample_responses" if n == 3 else "evaluate"
        looks.append(record(monkeypatch, lesson, name))
        return lesson

    monkeypatch.setattr(sys.modules[__name__], "load_lesson", spy)
    done = type_in(
        f"{FILES[number]} --model {gpt2} {data} --reward rewards.py:f --lr 0.03",
        steps=1, num_samples=8, batch_size=8, max_new_tokens=6, missing_eos_penalty=0)
    assert done.code == 0, done.err
    first, *_, last = looks[0]
    judge = "scores" if data else "gold"
    judged = [getattr(call[1], judge) if number == 3 else call[1][2].flatten()
              for call in (first, last)]
    asked = [[row["instruction"] for row in call[0][4 if number == 3 else 3]]
             for call in (first, last)]
    assert asked[0] == asked[1] and len(set(asked[0])) > 1
    assert not data or set(asked[0]) <= {row["question"] for row in QUESTIONS}
    wins = [1.0 if new > old else 0.5 if new == old else 0.0
            for old, new in zip(*(x.tolist() for x in judged))]
    numbers = json.loads(next(tmp_path.glob("runs/*/*/eval.json")).read_text())
    assert numbers["before"]["win_rate"] == 0.5
    assert numbers["after"]["win_rate"] == pytest.approx(sum(wins) / len(wins)) != 0.5
    assert numbers["after"] != numbers["before"]


@pytest.fixture
def silent(gpt2, tmp_path):
    """A folder: the model gpt2, but its answer is an end token, whatever it is asked."""
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    with torch.no_grad():
        end = model.get_input_embeddings().weight[tokenizer.eos_token_id]
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(1000 * end)
    model.save_pretrained(tmp_path / "silent")
    tokenizer.save_pretrained(tmp_path / "silent")
    return tmp_path / "silent"


@both_rl
def test_a_run_is_compared_with_the_model_of_against(number, gpt2, silent, type_in, tmp_path):
    """Every answer is longer than none, except for the few that are empty, too."""
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    (tmp_path / "rewards.py").write_text(LENGTH)
    for model, rival, low, high in (gpt2, silent, 0.8, 1.0), (silent, gpt2, 0.0, 0.2):
        done = type_in(f"{FILES[number]} --model {model} --against {rival} --data rows.jsonl "
                       "--reward rewards.py:f --steps 0", num_samples=8, batch_size=8)
        assert done.code == 0, done.err
        file, = tmp_path.glob(f"runs/{Path(model).name}/*/eval.json")
        assert low <= json.loads(file.read_text())["after"]["win_rate"] <= high


@both_rl
def test_a_rival_with_another_tokenizer_is_refused(number, gpt2, silent, refused, tmp_path):
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    (tmp_path / "rewards.py").write_text(LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(silent)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(silent)
    refused(f"{FILES[number]} --model {gpt2} --against {silent} --data rows.jsonl --reward "
            "rewards.py:f", f"--against {silent}", "different tokenizers", steps=1)


@both_rl
def test_sampling_keeps_to_the_micro_batches_too(number, gpt2, type_in, tmp_path, monkeypatch):
    """Sixteen of them at a time, because nothing is kept for a gradient."""
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    (tmp_path / "rewards.py").write_text(CONSTANT)
    mixin, rows = transformers.GenerationMixin, []
    generate = mixin.generate
    monkeypatch.setattr(mixin, "generate", lambda self, ids, **options: (
        rows.append(len(ids)) or generate(self, ids, **options)))
    done = type_in(
        f"{FILES[number]} --model {gpt2} --data rows.jsonl --eval_data rows.jsonl --reward "
        "rewards.py:f --steps 0", num_samples=40, batch_size=8, micro_batch_size=1)
    assert done.code == 0, done.err
    assert set(rows) == {16, 8} and sum(rows) % 40 == 0


@both_rl
def test_where_nothing_is_trained_all_held_out_prompts_are_answered(
        number, gpt2, type_in, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"instruction": f"Say {i}."} for i in range(21)])
    (tmp_path / "rewards.py").write_text(
        "def f(prompts, responses, **columns):\n"
        "    open('asked.txt', 'a').writelines(f'{prompt}\\n' for prompt in prompts)\n"
        "    return [0.0] * len(responses)\n")
    asked = {}
    for steps in 0, 1:
        done = type_in(
            f"{FILES[number]} --model {gpt2} --data rows.jsonl --eval_data rows.jsonl --reward "
            "rewards.py:f", num_samples=8, batch_size=8, max_new_tokens=3, steps=steps)
        assert done.code == 0, done.err
        lines = (tmp_path / "asked.txt").read_text().splitlines()
        (tmp_path / "asked.txt").unlink()
        asked[steps] = set(lines)
    assert len(asked[0]) == 21 > len(asked[1])


def test_accuracy_is_that_of_the_checked_reward_alone(lesson4):
    """Whatever its weight, and whatever other rewards there are."""
    config = lesson4.Config(reward="gsm8k=2,format=0.5", data="rows.jsonl", model="here")
    functions = lesson4.make_inputs(config)
    batch = torch.zeros(2, 3), None, ["#### 5", "6"], [
        {"instruction": "How many?", "output": answer} for answer in ("#### 5", "#### 5")]
    both = lesson4.load_rewards(config, functions, None, None)
    alone = lesson4.load_rewards(config, functions, None, None, {"gsm8k"})
    assert both(*batch).tolist() == [2.5, 0.0] and alone(*batch).tolist() == [1.0, 0.0]


def test_a_checked_reward_among_others_is_evaluated_by_itself(
        gpt2, type_in, tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    load = load_lesson

    def every_answer_is_right(n):
        lesson = load(n)
        lesson.REWARDS["gsm8k"] = lambda responses, **columns: [1.0] * len(responses)
        return lesson

    monkeypatch.setattr(sys.modules[__name__], "load_lesson", every_answer_is_right)
    done = type_in(f"lesson4_grpo.py --model {gpt2} --data rows.jsonl --reward gsm8k=3,format "
                   "--steps 0", num_samples=8, batch_size=8, max_new_tokens=6)
    assert done.code == 0, done.err
    after = json.loads(next(tmp_path.glob("runs/*/*/eval.json")).read_text())["after"]
    assert after == {"accuracy/greedy": 1.0, "accuracy/sampled": 1.0, "accuracy/pass@k": 1.0,
                     "win_rate": 0.5, "win_rate/error": 0.0}


# ---- Rewards ------------------------------------------------------------------------------------

ROWS = [{"instruction": "ab", "answer": "1", "extra": [1], "prompt_ids": [1]},
        {"instruction": "abc", "answer": "2", "extra": [2], "prompt_ids": [2]}]
FUNCTIONS = '''
def trl(prompts, completions, answer, **kwargs):
    assert kwargs["responses"] == completions and kwargs["instruction"] == prompts
    assert set(kwargs) == {"responses", "instruction", "extra"}, kwargs
    return [len(p) + 10 * int(a) + 100 * len(c) for p, c, a in zip(prompts, completions, answer)]

def ours(prompts, responses, **columns):
    return [float(len(x)) for x in responses]

def some(responses, **columns):
    return [None, 7]

def greedy(extra, **columns):
    for values in extra:
        values.append(3)
    return [len(values) for values in extra]

def wrong(responses, **columns):
    return [len(x) + "1" for x in responses]

def narrow(responses):
    return [0.0] * len(responses)
'''


def rewards_of(lesson, reward, texts=("x", "xyz"), rows=ROWS, **settings):
    config = lesson.Config(reward=reward, model="here", **settings)
    judge = lesson.load_rewards(config, lesson.make_inputs(config), None, None)
    return judge(torch.zeros(len(rows), 3), None, list(texts), list(rows))


@both_rl
@pytest.mark.parametrize("name, expected", [
    ("trl", [112., 323.]), ("ours", [1., 3.]), ("some", [0., 7.]),
    ("ours=2,FILE:some=-0.5", [2., 2.5]), ("ours, FILE:some=10", [1., 73.]),
    ("ours=0.5,sentiment=2", [0.5, 1.5])])
def test_reward_functions_of_both_kinds_and_their_sums(number, tmp_path, name, expected):
    file = tmp_path / "my.py"
    file.write_text(FUNCTIONS)
    rewards = rewards_of(load_lesson(number), f"{file}:{name}".replace("FILE", str(file)))
    assert rewards.tolist() == expected and rewards.dtype == torch.float32


@both_rl
def test_words_of_praise_count_with_their_weight(number):
    texts = ["a lovely, funny and clever fresh film", "dull"]  # four of them: three count
    assert rewards_of(load_lesson(number), "sentiment=0.5", texts).tolist() == [1.5, 0.]


@both_rl
def test_a_function_cannot_change_the_data(number, tmp_path):
    (tmp_path / "my.py").write_text(FUNCTIONS)
    rows = [dict(row, extra=[1]) for row in ROWS]
    lesson = load_lesson(number)
    for _ in range(2):
        assert rewards_of(lesson, f"{tmp_path / 'my.py'}:greedy", rows=rows).tolist() == [2., 2.]


BAD_REWARDS = [("my.py:wrong", ["my.py, line 19", "TypeError"]),
               ("my.py:narrow", ["narrow()", "TypeError"]),
               ("my.py", ["--reward my.py", "FILE.py:FUNCTION"]),
               ("my.py:absent", ["--reward my.py:absent", "FILE.py:FUNCTION", "'absent'"]),
               ("broken.py:f", ["broken.py", "SyntaxError"]),
               ("sentimnt", ["sentimnt", "sentiment", "FILE.py:FUNCTION", "CLASSIFIER:LABEL"]),
               ("sentiment=much", ["weight", "much"])]


@pytest.mark.parametrize("number, reward, words", [
    (3 + place % 2, *case) for place, case in enumerate(BAD_REWARDS)])
def test_a_reward_that_does_not_work_is_one_line(
        number, reward, words, refused, gpt2, tmp_path):
    (tmp_path / "my.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    refused(f"{FILES[number]} --model {gpt2} --data rows.jsonl --reward {reward} "
            "--max_new_tokens 4 --num_samples 8 --batch_size 8", *words)


@both_rl
def test_a_run_of_lesson_2_may_be_one_of_several(number, tmp_path, monkeypatch):
    lesson = load_lesson(number)
    (tmp_path / "rm" / "model").mkdir(parents=True)
    asked = []

    def load_score(name, *_):
        asked.append(name)
        return lambda ids, mask, texts, rows: torch.tensor([4., 6.])

    monkeypatch.setattr(lesson, "load_score", load_score)
    reward = f"{tmp_path / 'rm'}=0.5,sentiment"
    assert rewards_of(lesson, reward, ["lovely", "dull"]).tolist() == [3., 3.]
    assert asked == [str(tmp_path / "rm")]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a tiny BERT with three labels and a tokenizer of its own, and that of one with
    a single label."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
    folder = tmp_path_factory.mktemp("classifier")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the film was lovely dull . hi".split()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32)
    for name, labels in ("three", ["bad", "fine", "good"]), ("one", ["only"]):
        torch.manual_seed(0)
        BertForSequenceClassification(BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=32, initializer_range=0.5,
            num_labels=len(labels), id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)})).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@both_rl
@pytest.mark.parametrize("name, label", [("three:good", 2), ("three:bad", 0), ("one", 0)])
@pytest.mark.parametrize("style", ["auto", "plain"])
def test_a_classifier_is_asked_through_its_own_tokenizer(number, classifier, name, label, style):
    """For the raw score, of prompt and answer as a pair, or of one text."""
    folder, texts = classifier / name.split(":")[0], [" the film was lovely.", " hi " * 50]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, expected = AutoTokenizer.from_pretrained(folder), []
    for row, text in zip(ROWS, texts):
        what = [row["instruction"] + text] if style == "plain" else [row["instruction"], text]
        inputs = tokenizer(*what, return_tensors="pt", truncation=True, max_length=32)
        expected.append(model(**inputs).logits[0, label].item())
    found = rewards_of(load_lesson(number), f"{classifier / name}=2", texts, prompt_format=style)
    assert found.tolist() == pytest.approx([2 * x for x in expected], rel=1e-4)
    assert abs(expected[0] - expected[1]) > 0.01


@pytest.mark.parametrize("name, word", [("three", "'bad', 'fine', 'good'"), ("three:GOOD", "good"),
                                        ("one:good", "only")])
def test_a_classifiers_label_is_one_that_it_has(lesson3, classifier, capsys, name, word):
    ends_in_one_line(capsys, lambda: rewards_of(lesson3, str(classifier / name)), word, "labels")


@pytest.mark.parametrize("text, number", [
    ("3 + 4 = 7\n#### 7", 7), ("#### 7 and then 8", 7), (r"\boxed{12} or #### 7", 12),
    (r"\boxed{$1,234.50}", 1234.5), ("It costs $1,000.", 1000),
    ("first 3, then -4", -4), ("#### 1\n#### 2", 2), ("so 7.0", 7), ("none", None), ("", None)])
def test_the_number_that_an_answer_comes_to(lesson4, text, number):
    assert lesson4.final_number(text) == number


def test_gsm8ks_reward_and_the_formats(lesson4, tmp_path):
    rows = [row | {"output": f"6 + 1 = 7\n#### {n}"} for row, n in zip(ROWS * 2, [7, 7, 8, 1000])]
    rows.append(ROWS[0] | {"output": "no number"})
    texts = ["It is 7", "#### 8", "", r"\boxed{1,000}", "none either"]
    assert rewards_of(lesson4, "gsm8k", texts, rows, data="d").tolist() == [1., 0., 0., 1., 0.]
    assert rewards_of(lesson4, "gsm8k=1,format=0.2", texts, rows, data="d").tolist() == (
        pytest.approx([1., 0.2, 0., 1.2, 0.]))


def test_gsm8k_needs_rows_with_an_answer(lesson4, tmp_path, capsys):
    rows = QUESTIONS[:4] + [{"question": "Why?"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    assert sum(map(len, load_parts(load_lesson(4), file))) == 5
    lesson4 = load_lesson(4)
    config = lesson4.Config(model="m", data=file, reward="format,gsm8k=2", max_prompt_length=9)
    lesson4.encode_prompts = lambda rows, *_: [[1, 2]] * len(rows)
    assert sum(map(len, lesson4.load_grpo_prompts(config, None))) == 4
    assert "1 of 5 rows are left out, as line 5: the column 'output'" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [dict(data="d"), dict(data="d", reward="sum=1"),
                                   dict(data="d", reward="format=0.2,sum"), dict(reward="gsm8k"),
                                   dict(reward="format,gsm8k=0.5")])
def test_data_and_reward_have_to_fit(lesson4, capsys, flags):
    ends_in_one_line(capsys, lambda: lesson4.Config(**flags), "--data", "--reward")


def test_sums_with_a_weight_are_sums(lesson4):
    """Their numbers of samples, their prompts."""
    config = lesson4.Config(reward="sum=1,format=0.1", model="m")
    assert (config.num_samples, config.max_new_tokens, config.kl_coef) == (512, 4, 0.01)
    lesson = load_lesson(4)
    lesson.encode_prompts = lambda rows, *_: [[1]] * len(rows)
    for part in lesson.load_grpo_prompts(config, None):
        assert all(re.fullmatch(r"What is \d+ \+ \d+\?", row["instruction"]) for row in part)
    rows = [{"instruction": "What is 1 + 2?"}, {"instruction": "What is 3 + 4?"}]
    assert rewards_of(lesson, "sum=2", ["3", "8"], rows).tolist() == [2., 0.]


# ---- The hub ------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch):
    """As if HF_HUB_OFFLINE were not set; what is asked of the hub is kept: [(url, seconds)]."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked, session = [], huggingface_hub.get_session()

    def head(url, timeout=None):
        asked.append((url, timeout))
        return session.head(url, timeout=timeout / 10)  # tests are in a hurry

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    return asked


@contextlib.contextmanager
def silent_host():
    """A host that accepts and never answers -> its address."""
    with socket.socket() as host:
        host.bind(("127.0.0.1", 0))
        host.listen(16)
        yield f"http://127.0.0.1:{host.getsockname()[1]}"


def test_paths_and_offline_runs_ask_no_hub(lesson1, online, monkeypatch, tmp_path, gpt2):
    lesson1.reach_hub("", gpt2, "")
    assert not online
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lesson1.reach_hub("gpt2")
    assert not online


@pytest.mark.parametrize("host", ["nobody", "silent"])
def test_a_hub_that_does_not_answer_is_said_in_seconds(lesson1, online, monkeypatch, capsys, host):
    with silent_host() as address:
        if host == "nobody":
            address = "http://127.0.0.1:9"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        lesson1.reach_hub("", "gpt2")
    (url, seconds), = online
    assert url == address and seconds <= 8
    err = capsys.readouterr().err
    for word in address, "HF_ENDPOINT", "HF_HUB_OFFLINE", "--model":
        assert word in err
    assert err.count("\n") == 1
    assert huggingface_hub.constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    lesson1.reach_hub("gpt2")  # once is enough
    assert len(online) == 1


def test_a_hub_that_answers_is_used(lesson1, online, monkeypatch, capsys):
    with hub_of({}) as (address, _):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        lesson1.reach_hub("gpt2")
    assert len(online) == 1 and capsys.readouterr().err == ""
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@each_lesson
def test_all_names_that_may_be_on_the_hub_are_asked_for(number, monkeypatch):
    lesson, asked = load_lesson(number), []
    monkeypatch.setattr(lesson, "reach_hub", lambda *names: asked.extend(names))
    monkeypatch.setattr(lesson, "Accelerator", lambda **_: pytest.exit)
    monkeypatch.setattr(transformers, "pipeline", lambda *_, **__: 1 / 0)
    config = lesson.Config(model="m", data="d", eval_data="e",
                           **({"reward": "org/judge:good"} if number > 2 else {}))
    handler, silenced = signal.getsignal(signal.SIGINT), logging.root.manager.disable
    try:
        with contextlib.suppress(Exception, SystemExit), warnings.catch_warnings():
            lesson.start(config)
        if number > 2:
            with contextlib.suppress(SystemExit):
                lesson.make_inputs(config)
    finally:
        signal.signal(signal.SIGINT, handler)
        logging.disable(silenced)
    assert asked == ["m", "d", "e"] + ["org/judge"] * (number > 2)


@contextlib.contextmanager
def hub_of(repos):
    """A hub on loopback that serves {name: folder}: files at /NAME/resolve/main/FILE, and what a
    repository holds at /api/models/NAME -> (its address, the paths that were asked for)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            path = self.path.split("?")[0]
            for name, folder in repos.items():
                files = [{"rfilename": x.name, "path": x.name, "type": "file",
                          "size": x.stat().st_size, "oid": "0"} for x in Path(folder).iterdir()]
                place = re.fullmatch(rf"/{name}/resolve/[^/]+/(.+)", path)
                if place and Path(folder, place[1]).is_file():
                    return self.answer(Path(folder, place[1]).read_bytes())
                if re.match(rf"/api/models/{name}/tree/", path):
                    return self.answer(json.dumps(files).encode())
                if re.match(rf"/api/models/{name}(/revision/\w+)?$", path):
                    return self.answer(json.dumps(
                        {"id": name, "modelId": name, "sha": "a" * 40, "tags": [],
                         "siblings": files, "private": False, "pipeline_tag": None}).encode())
            self.answer(b"", 200 if path == "/" else 404)

        do_HEAD = do_GET

        def answer(self, body, code=200):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hash(body) & 0xffffff:x}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            if code == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def run_online(folder, endpoint, command, timeout=120):
    """A process of its own, because the hub's address is read once."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"),
           "TQDM_POSITION": "-1"}  # bars although this is no terminal
    del env["HF_HUB_OFFLINE"]
    file, *words = shlex.split(command)
    return subprocess.run([sys.executable, ROOT / file, *words, "--device=cpu"], cwd=folder,
                          env=env, text=True, capture_output=True, timeout=timeout)


@pytest.mark.slow
def test_a_model_from_the_hub_is_downloaded_once_and_with_a_bar(gpt2, tmp_path):
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    command = "lesson1_sft.py --model org/tiny --data rows.jsonl --steps 0 --report_to none"
    with hub_of({"org/tiny": gpt2}) as (address, asked):
        done = run_online(tmp_path, address, command)
        assert done.returncode == 0, done.stderr
        assert [path for path in asked if re.search("/org/tiny/.*/model.safetensors", path)]
        assert "model.safetensors" in done.stderr and "100%" in done.stderr  # the bar
        assert (tmp_path / "runs" / "tiny" / "sft-eval" / "eval.json").is_file()
    first = json.loads((tmp_path / "runs" / "tiny" / "sft-eval" / "eval.json").read_text())
    with silent_host() as address:  # now it is gone: what was downloaded has to do
        done = run_online(tmp_path, address, command + " --overwrite")
        assert done.returncode == 0, done.stderr
        assert "HF_HUB_OFFLINE" in done.stderr
    again = json.loads((tmp_path / "runs" / "tiny" / "sft-eval" / "eval.json").read_text())
    assert first == again


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--model gpt2", "--data org/rows"])
def test_without_a_hub_and_a_download_two_lines_end_the_run(tmp_path, words):
    with silent_host() as address:
        done = run_online(tmp_path, address, f"lesson3_ppo.py {words} --reward sentiment",
                          timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert address in lines[0] and "HF_ENDPOINT" in lines[0]
    assert lines[1].startswith("error: ") and not (tmp_path / "runs").exists()


CUSTOM = '''
from transformers import GPT2Config, GPT2LMHeadModel

class OwnConfig(GPT2Config):
    model_type = "own"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
'''


@pytest.mark.filterwarnings("ignore")
def test_code_that_comes_with_a_model_is_run_only_when_asked_for(
        type_in, gpt2, tmp_path, monkeypatch):
    """And the model that was trained has it, too."""
    from transformers import dynamic_module_utils
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(gpt2, tmp_path / "own")
    (tmp_path / "own" / "custom.py").write_text(CUSTOM)
    file = tmp_path / "own" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {
        "model_type": "own", "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "custom.OwnConfig", "AutoModelForCausalLM": "custom.OwnModel"}}))
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n" * 9))
    done = type_in("lesson1_sft.py --model own --data rows.jsonl --steps 1")
    assert done.code == 2 and "trust_remote_code" in done.err, done.err
    assert done.err.splitlines()[-1].startswith("error: ") and not (tmp_path / "runs").exists()
    done = type_in("lesson1_sft.py --model own --data rows.jsonl --steps 1 --trust_remote_code")
    assert done.code == 0, done.err
    done = type_in("lesson1_sft.py --model runs/own/sft --prompt Hi --max_new_tokens 4 "
                   "--trust_remote_code")
    assert done.code == 0, done.err


# ---- What to type next --------------------------------------------------------------------------


def test_the_next_commands_keep_the_layout(type_in, gpt2, tmp_path):
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    for style, words in ("plain", " --prompt_format plain --model runs/"), ("auto", "py --model "):
        done = type_in(f"lesson1_sft.py --model {gpt2} --data rows.jsonl --prompt_format {style}",
                       steps=1, max_prompt_length=40, max_new_tokens=8, run_name=style)
        assert done.code == 0, done.err
        assert done.out.split("Next: ")[1].count(words) == 2
        assert "Curves: tensorboard" not in done.out  # --report_to none


def test_the_next_commands_work(type_in, gpt2, tmp_path, monkeypatch):
    """Each as it is printed, but for sizes; with a name of one's own for the runs."""
    shutil.copytree(gpt2, tmp_path / "my-gpt2")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi.\n\n"))
    small = {1: {}, 2: dict(num_pairs=16, num_held_out=8),
             3: dict(steps=1, num_samples=8, batch_size=8, max_new_tokens=4)}
    commands = ["lesson1_sft.py --model my-gpt2 --max_prompt_length=64 --steps 1 "
                "--num_examples 40 --run_name one"]
    tried = []
    while commands:
        command = commands.pop(0)
        number, trains = int(command[6]), not re.search("--(prompt|chat|score)", command)
        own = small[number] if trains else dict(max_new_tokens=4)
        if trains and number == 2:
            command += " --run_name two"
        done = type_in(command, **own)
        assert done.code == 0, (command, done.err)
        tried.append(re.sub(r" --(max_|steps|num_).*", "", command))
        if trains:
            line = done.out.split("Next: ")[1].splitlines()[0]
            commands += [part.removeprefix("python ") for part in line.split(", or python ")]
    assert tried == [
        "lesson1_sft.py --model my-gpt2",
        'lesson1_sft.py --model runs/my-gpt2/one --prompt "What is 27 + 15?"',
        "lesson2_reward.py --model runs/my-gpt2/one  --run_name two",
        'lesson2_reward.py --model runs/my-gpt2/one --run_name two --score "The spy film was '
        'lovely."',
        "lesson3_ppo.py --model runs/my-gpt2/one --reward runs/my-gpt2/two",
        "lesson1_sft.py --model runs/my-gpt2/ppo --chat"]


# ---- Two recipes --------------------------------------------------------------------------------

END, SEED = "<|endoftext|>", 0
GREAT, POOR = "great superb lovely funny moving".split(), "awful boring weak dull silly".split()
WORDS = f"""
GREAT, POOR = {GREAT}, {POOR}
def positive(completions, **columns):
    return [float(max(-2, min(2, sum(word in GREAT for word in text.split())
                              - sum(word in POOR for word in text.split()))))
            for text in completions]
"""


def small_gpt2(texts, positions):
    """(model, tokenizer) like the hub's GPT-2, with 0.1 million weights. A digit is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe, digits = Tokenizer(models.BPE()), pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=400, n_positions=positions, n_embd=64, n_layer=2, n_head=4, bos_token_id=0,
        eos_token_id=0))
    return model, PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def write_text(model, tokenizer, texts, steps):
    """Next-token training on whole texts, each with an end."""
    dice, optimizer = random.Random(SEED), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = [tokenizer.encode(text) + [0] for text in dice.sample(texts, 32)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def film_text(dice):
    """Like IMDB's, in little: no question and no answer, and a verdict that may be mixed."""
    film = dice.choice(["this film", "the movie", "last night's picture", "that old western"])
    with_, parts = dice.choice(["sister", "friends", "family"]), ["plot", "cast", "music"]
    return (f"I saw {film} with my {with_} and the {dice.choice(parts)} was "
            f"{dice.choice(GREAT + POOR)} , while the {dice.choice(['ending', 'acting'])} felt "
            f"{dice.choice(GREAT + POOR)} .")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with gpt2-films, a model that writes such texts, and with imdb.jsonl."""
    folder, dice = tmp_path_factory.mktemp("films"), random.Random(SEED)
    texts = [film_text(dice) for _ in range(400)]
    model, tokenizer = small_gpt2(texts, positions=64)
    write_text(model, tokenizer, texts, steps=150)
    model.save_pretrained(folder / "gpt2-films")
    tokenizer.save_pretrained(folder / "gpt2-films")
    write_rows(folder / "imdb.jsonl", [{"text": text, "label": 0} for text in texts])
    (folder / "words.py").write_text(WORDS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number, flags, column", [
    (3, "--lr 1e-3", "reward/avg"), (4, "--lr 1e-3 --kl_coef 0.05", "reward/sampled")])
def test_film_texts_are_continued_in_a_positive_voice(
        number, flags, column, films, type_in, tmp_path):
    done = type_in(
        f"{FILES[number]} --model {films}/gpt2-films --data {films}/imdb.jsonl "
        f"--prompt_format plain --max_prompt_length 8 --max_new_tokens 40 --missing_eos_penalty 0 "
        f"--reward {films}/words.py:positive --steps 20 {flags}")
    assert done.code == 0, done.err
    numbers = json.loads(next(tmp_path.glob("runs/gpt2-films/*/eval.json")).read_text())
    assert numbers["after"][column] > numbers["before"][column] + 0.8  # of 2 at most
    assert numbers["after"]["win_rate"] > 0.65 + 2 * numbers["after"]["win_rate/error"]
    prompts = re.findall(r"^(I saw .*)$", done.out, re.MULTILINE)
    assert prompts and all(len(prompt.split()) <= 8 for prompt in prompts)


def word_problem(dice, wrong):
    """GSM8K's columns. Of wrong ones half are no answer, others one too many."""
    a, b = dice.randint(1, 4), dice.randint(1, 4)
    c = a + b + (wrong and dice.random() < 0.2)
    question = (f"{dice.choice(['Tom', 'Ann', 'Li'])} has {a} {dice.choice(['apples', 'books'])} "
                f"and buys {b} more. How many?")
    answer = "I do not know." if wrong and dice.random() < 0.5 else f"{a} + {b} = {c}\n#### {c}"
    return {"question": question, "answer": answer}


@pytest.mark.peft
def test_word_problems_come_out_right_more_often(type_in, tmp_path):
    """Lesson 1 on many wrong answers; lesson 4 with an adapter and a checked reward."""
    dice = random.Random(SEED)
    slips = [word_problem(dice, True) for _ in range(1000)]
    write_rows(tmp_path / "slips.jsonl", slips)
    write_rows(tmp_path / "train.jsonl", [word_problem(dice, False) for _ in range(200)])
    write_rows(tmp_path / "test.jsonl", [word_problem(dice, False) for _ in range(64)])
    model, tokenizer = small_gpt2([row["question"] + row["answer"] for row in slips]
                                  + ["### Instruction:\n\n### Response:\n"] * 50, positions=96)
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    done = type_in("lesson1_sft.py --model tiny --data slips.jsonl --steps 200 --lr 3e-3 "
                   "--save_every 0")
    assert done.code == 0, done.err
    done = type_in(
        "lesson4_grpo.py --model runs/tiny/sft --data train.jsonl --eval_data test.jsonl "
        "--reward gsm8k=1,format=0.2 --lora_rank 8 --lr 3e-3 --kl_coef 0.02 --steps 15 "
        "--max_new_tokens 16 --save_every 0")
    assert done.code == 0, done.err
    numbers = json.loads((tmp_path / "runs" / "tiny" / "grpo" / "eval.json").read_text())
    before, after = numbers["before"], numbers["after"]
    assert after["accuracy/sampled"] > before["accuracy/sampled"] + 0.15  # 0.3 with three seeds
    gained = after["accuracy/sampled"] - before["accuracy/sampled"]
    assert after["win_rate"] == pytest.approx(0.5 + gained / 2)  # of rewards that are 0 or 1
