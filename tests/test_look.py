"""--look: the page of a finished run. Its numbers are put together again from one another, or found
by other ways than the page's."""

import html.parser
import json
import re
import runpy
import statistics
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_data import FILES, PAIRS, QUESTIONS, RUNS, each_lesson, type_in, write_rows  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

REWARD = """def f(prompts, responses, **columns):
    return [float(len(set(text)) % 5) for text in responses]
"""
DATA = {1: QUESTIONS, 2: PAIRS, 3: QUESTIONS, 4: QUESTIONS}
FLAGS = {1: dict(steps=1), 2: dict(rm_epochs=1, batch_size=19, micro_batch_size=19),
         3: dict(steps=1, num_samples=8, batch_size=4, reward="rewards.py:f", max_new_tokens=8,
                 kl_coef=0.3, gamma=0.9, lam=0.8, lr=0.01),
         4: dict(steps=1, num_samples=24, batch_size=24, group_size=4, reward="rewards.py:f",
                 max_new_tokens=8, missing_eos_penalty=0)}


class Page(html.parser.HTMLParser):
    """A page's titles of tables, and their rows: {column: text}."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.tables, self.tags, self.cells, self.open = [], [], [], [], None
        self.feed(text)
        for table in self.tables:
            names, *lines = table
            table[:] = [dict(zip(names, line)) for line in lines]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open = tag
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.titles.append("")

    def handle_data(self, text):
        if self.open in ("th", "td"):
            self.tables[-1][-1][-1] += text
        if self.open == "h2":
            self.titles[-1] += text


def numbers(table, column):
    return [float(row[column]) for row in table if row[column]]


@pytest.fixture
def seen(type_in, gpt2, tmp_path):  # noqa: F811
    """seen(lesson's number): a short run and then its --look -> (page, what was printed, run)."""
    def run(number, **flags):
        write_rows(tmp_path / "rows.jsonl", DATA[number])
        (tmp_path / "rewards.py").write_text(REWARD)
        command = f"{FILES[number]} --model {gpt2} --data rows.jsonl"
        done = type_in(command, **FLAGS[number] | flags)
        assert done.code == 0, done.err
        folder = tmp_path / "runs" / Path(gpt2).name / RUNS[number]
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        done = type_in(f"{FILES[number]} --model {gpt2} --look")
        assert done.code in (0, None), done.err
        for path, content in before.items():
            assert path.read_bytes() == content, path
        assert {path for path in folder.rglob("*") if path.is_file()} == {
            *before, folder / "look.html"}
        text = (folder / "look.html").read_text(encoding="utf-8")
        assert "<script" not in text and "http" not in text and "url(" not in text
        page = Page(text)
        for table in page.tables:  # the terminal shows the same
            for row in table:
                assert all(cell in done.out for cell in row.values())
        return page, done.out, folder

    return run


def test_the_loss_of_lesson_1_is_that_of_the_labelled_tokens(seen):
    """From the saved model and the texts alone."""
    page, _, folder = seen(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert 1 <= len(page.tables) <= 3
    for title, table in zip(page.titles, page.tables):
        question, loss = title.split("  (loss ")
        answer = next(row["answer"] for row in QUESTIONS if row["question"] == question)
        prompt = tokenizer.encode(f"### Instruction:\n{question}\n\n### Response:\n")
        ids = prompt + tokenizer.encode(answer) + [tokenizer.eos_token_id]
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).detach()
        own = logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        assert numbers(table, "p(token)") == pytest.approx(own.exp().tolist(), abs=6e-4)
        assert numbers(table, "its p") == pytest.approx(
            logprobs.max(dim=1).values.exp().tolist(), abs=6e-4)
        assert [row["label"] for row in table] == (
            ["-100"] * len(prompt) + [row["token"] for row in table[len(prompt):]])
        assert float(loss.strip(")")) == pytest.approx(
            -own[len(prompt) - 1:].mean().item(), abs=6e-4)


def test_the_last_score_of_lesson_2_is_the_answers(seen, type_in, gpt2):  # noqa: F811
    page, _, folder = seen(2)
    settings = json.loads((folder / "model" / "config.json").read_text())
    assert len(page.tables) == 4  # of two held-out pairs
    for chosen, rejected, title in zip(page.tables[::2], page.tables[1::2], page.titles[::2]):
        shown = "".join(row["token"] for row in chosen).replace("·", " ")
        assert shown.startswith(next(  # the answer alone, and its end token
            pair["chosen"] for pair in PAIRS if pair["prompt"] == title.split(" (chosen")[0]))
        gap = (numbers(chosen, "score so far")[-1] - numbers(rejected, "score so far")[-1])
        chance = torch.sigmoid(torch.tensor(gap * settings["score_std"])).item()
        assert f"{chance:.2f}" == title.split(" = ")[1].strip(")")
    answer = next(pair["chosen"] for pair in PAIRS if pair["prompt"] in page.titles[0])
    prompt = page.titles[0].split(" (chosen")[0]
    done = type_in(f"lesson2_reward.py --model {gpt2} --score '{answer}' --prompt '{prompt}'")
    assert float(done.out.split()[0]) == pytest.approx(
        numbers(page.tables[0], "score so far")[-1], abs=0.006)


def test_the_columns_of_lesson_3_fit_together(seen):
    page, _, _ = seen(3)
    scores, totals = zip(*(map(float, re.findall(r"[+-]\d+\.\d+", x)) for x in page.titles))
    assert len(totals) == 2 and totals[0] > totals[1]
    whitened = []
    for score, total, table in zip(scores, totals, page.tables):
        logp, ref, kl, reward, value, delta, advantage, back, ratio = (
            numbers(table, name) for name in (
                "log p", "log p_ref", "KL", "reward", "V", "delta", "A", "return", "ratio"))
        assert sum(reward) == pytest.approx(total, abs=0.02)  # of two digits, and of three
        last = len(table) - 1
        for t in range(len(table)):
            close = lambda expected: pytest.approx(expected, abs=0.004)  # of three digits
            assert kl[t] == close(logp[t] - ref[t])
            assert reward[t] == close(-0.3 * kl[t] + (score if t == last else 0))
            assert delta[t] == close(
                reward[t] + 0.9 * (value[t + 1] if t < last else 0) - value[t])
            assert advantage[t] == close(
                delta[t] + 0.72 * (advantage[t + 1] if t < last else 0))
            assert back[t] == close(advantage[t] + value[t])
            white = float(table[t]["A whitened"])
            whitened.append((advantage[t], white))
            beyond = ratio[t] > 1.2 if white > 0 else ratio[t] < 0.8
            assert (table[t][""] == "clipped") == beyond
    assert any(x for table in page.tables for x in numbers(table, "V"))  # the head was kept
    assert any(x != 1 for table in page.tables for x in numbers(table, "ratio"))
    assert any(abs(x) > 0.01 for table in page.tables for x in numbers(table, "KL"))
    (low, white_low), (high, white_high) = min(whitened), max(whitened)
    slope = (white_high - white_low) / (high - low)  # whitening moves and stretches, all alike
    assert slope != pytest.approx(1, abs=0.01)
    assert [white for _, white in whitened] == pytest.approx(
        [white_low + slope * (x - low) for x, _ in whitened], abs=0.01)


def test_the_advantages_of_lesson_4_are_those_of_the_groups(seen):
    page, _, _ = seen(4)
    assert len(page.tables) == 3
    for title, table in zip(page.titles, page.tables):
        rewards = numbers(table, "reward")
        spread = statistics.stdev(rewards)
        assert len(rewards) == 4 and ("left out" in title) == (spread == 0)
        expected = [(x - statistics.mean(rewards)) / (spread + 1e-4) for x in rewards]
        assert numbers(table, "A") == pytest.approx(expected, abs=0.001)
        assert all(1 <= int(row["tokens"]) <= 8 and float(row["log p"]) < 0 for row in table)


@pytest.mark.peft
@pytest.mark.parametrize("number", [3, 4])
def test_runs_with_adapters_are_shown_and_trained_further(
        number, type_in, gpt2, tmp_path):  # noqa: F811
    """The saved model has the adapter in its weights: a reward model's adapter does not fit it."""
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "rows.jsonl", QUESTIONS)
    runs = Path("runs", Path(gpt2).name)
    usual = f"{FILES[number]} --data rows.jsonl --reward {runs}/reward --steps 1 --num_samples 8 " \
            f"--batch_size 8 --max_new_tokens 6"
    for command in (f"lesson2_reward.py --model {gpt2} --data pairs.jsonl --lora_rank 2 --steps 2",
                    f"{usual} --model {gpt2} --lora_rank 2",
                    f"{FILES[number]} --model {gpt2} --look",
                    f"{usual} --model {runs}/{RUNS[number]} --run_name further"):
        done = type_in(command)
        assert done.code in (0, None), done.err
    assert (tmp_path / runs / RUNS[number] / "look.html").is_file()
    assert (tmp_path / runs / "further" / "model").is_dir()


@each_lesson
def test_without_a_run_there_is_one_line(number, type_in):  # noqa: F811
    done = type_in(f"{FILES[number]} --look")
    assert done.code == 2 and done.err.count("\n") == 1 and f"runs/{RUNS[number]}" in done.err


def test_a_run_that_is_not_finished_is_said(type_in, tmp_path):  # noqa: F811
    (tmp_path / "runs" / "ppo").mkdir(parents=True)
    (tmp_path / "runs" / "ppo" / "config.json").write_text("{}")
    done = type_in("lesson3_ppo.py --look")
    assert done.code == 2 and "run python lesson3_ppo.py first" in done.err


def test_a_cell_is_shown_as_text_on_one_line():
    look = runpy.run_path(str(ROOT / "exercises" / "look.py"))
    table = look["Table"]("answers", ["answer"], [["<b>1</b>\n2\x07"]])
    text = look["page"]("title", {}, [table])
    assert "<b>" not in text and Page(text).tables == [[{"answer": "<b>1</b>⏎2\ufffd"}]]


def test_a_text_is_shown_as_text(seen, monkeypatch):
    rows = [{"question": "<b>&amp;", "answer": "<script>1</script>"} for _ in range(40)]
    monkeypatch.setitem(DATA, 1, rows)
    page, _, _ = seen(1)
    assert page.titles[0].startswith("<b>&amp;") and "b" not in page.tags
