"""Does each lesson show what it promises? Runs all four with their defaults and prints a table.

    python tests/showcase.py                    seeds 0, 1 and 2 in a temporary folder
    python tests/showcase.py --seeds 0 --runs_dir keep/   one seed, and the runs are kept

Exit code 1 when a promise is broken. Seconds are printed, never judged: they depend on the machine.
"""

import argparse
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from picture import smooth
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parent.parent
GOOD = set("wonderful lovely charming gripping brilliant moving funny superb clever delightful "
           "warm fresh".split())
BAD = set("boring dull awful clumsy silly weak noisy tedious dreadful cold stale messy".split())
SECOND, THIRD = set("story acting script cast".split()), set("music ending camera humour".split())
KINDS = ("pirate space robot ghost family horse school ocean winter music cooking football dragon "
         "train circus spy").split()
JOINTS = re.compile(r", (?:and|but) the ")


def parse_review(text):
    """[(subject, verb, word)] of a review that follows the grammar, or None."""
    if not (text.startswith("The ") and text.endswith(".")):
        return None
    clauses = []
    for place, clause in enumerate(JOINTS.split(text[4:-1])):
        subject, verb, word = (clause.rsplit(" ", 2) + ["", ""])[:3]
        fits = (subject in {f"{kind} film" for kind in KINDS}, subject in SECOND, subject in THIRD)
        if place > 2 or not fits[place] or verb not in ("was", "felt") or word not in GOOD | BAD:
            return None
        clauses.append((subject, verb, word))
    return clauses


def surprise(text):
    """-log of the chance, in nats, that the tiny world's critic writes exactly this review."""
    clauses = parse_review(text)
    chance = 1 / 3  # one, two or three clauses
    unused = {True: 12, False: 12}
    by_mood = {True: 0.5, False: 0.5}
    for place, (_, _, word) in enumerate(clauses):
        is_good = word in GOOD
        chance *= (1 if place == 0 else 1 / 4) * 1 / 2 * 1 / unused[is_good]
        unused[is_good] -= 1
        by_mood = {mood: p * (5 / 6 if mood == is_good else 1 / 6) for mood, p in by_mood.items()}
    return -math.log(chance * sum(by_mood.values()))


class Answerer:
    """A trained model that answers instructions."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def prompt(self, instruction, input=""):
        context = f"### Input:\n{input}\n\n" if input else ""
        return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"

    @torch.no_grad()
    def answers(self, prompts, greedy=False):
        """-> [(text, did it end)]"""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left",
                               return_token_type_ids=False)
        how = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}  # no filter
        output = self.model.generate(**batch, max_new_tokens=48, **how)
        output = output[:, batch["input_ids"].shape[1]:]
        ended = (output == self.tokenizer.eos_token_id).any(dim=1).tolist()
        return list(zip(self.tokenizer.batch_decode(output, skip_special_tokens=True), ended))

    @torch.no_grad()
    def loss(self, pairs):
        """[(prompt, response)] -> (summed -log p of the responses with their ends, their tokens)"""
        total, count = 0.0, 0
        for prompt, response in pairs:
            prompt, response = self.tokenizer.encode(prompt), self.tokenizer.encode(response)
            ids = torch.tensor([prompt + response + [self.tokenizer.eos_token_id]])
            logprobs = self.model(ids).logits[0, len(prompt) - 1:-1].log_softmax(-1)
            total -= logprobs.gather(1, ids[0, len(prompt):, None]).sum().item()
            count += len(response) + 1
        return total, count


def run(lesson, *flags, runs_dir, seed):
    """Run a lesson; -> seconds."""
    start = time.time()
    command = [sys.executable, str(ROOT / lesson), "--runs_dir", str(runs_dir), "--seed", str(seed),
               "--overwrite", *flags]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                            env={**os.environ, "PYTHONUTF8": "1"})
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
    return time.time() - start, result.stdout


def table_row(stdout, name):
    """(before, after) out of a lesson's closing table."""
    match = re.search(rf"^{re.escape(name)} +(-?[\d.]+) +(-?[\d.]+)$", stdout, re.M)
    return float(match[1]), float(match[2])


def sums(held_out_from):
    """The held-out sums: which they are is the lesson's convention, not its result."""
    sys.path.insert(0, str(ROOT))
    import lesson1_sft
    return lesson1_sft.sums(held_out_from), lesson1_sft


def lesson1(runs_dir, seed):
    seconds, _ = run("lesson1_sft.py", runs_dir=runs_dir, seed=seed)
    model = Answerer(Path(runs_dir) / "sft" / "model")
    torch.manual_seed(seed)
    held_out_sums, lesson = sums(True)
    rows = lesson.tiny_world(500, "showcase", held_out=True)
    pairs = [(model.prompt(row["instruction"], row["input"]), row["output"]) for row in rows]
    total, tokens = model.loss(pairs)
    entropy = sum(surprise(row["output"]) for row in rows if "review" in row["instruction"])
    for row in rows:
        if "+" in row["instruction"]:  # 15% of the sums are too large by 1, 2 or 10
            right = sum(map(int, re.findall(r"\d+", row["instruction"]))) == int(row["output"])
            entropy -= math.log(0.85 if right else 0.15 / 3)
    gap = (total - entropy) / tokens
    reviews = model.answers([model.prompt(f"Write a short review of the {kind} film.")
                             for kind in KINDS] * 40)
    good = statistics.mean(bool(parse_review(text)) and ended for text, ended in reviews)
    prompts = [model.prompt(f"What is {a} + {b}?") for a, b in held_out_sums]
    right = {}
    for greedy in (False, True):
        answers = model.answers(prompts, greedy)
        right[greedy] = statistics.mean(
            text == str(a + b) for (text, _), (a, b) in zip(answers, held_out_sums))
    return seconds, [
        ("1 held-out loss above the entropy (nats a token)", gap, gap <= 0.1, "<= 0.1"),
        ("1 reviews that follow the grammar and end", good, good >= 0.95, ">= 0.95"),
        ("1 held-out sums right, sampled", right[False], 0.30 <= right[False] <= 0.75, "0.30-0.75"),
        ("1 held-out sums right, greedy", right[True], right[True] > right[False], "> sampled")]


def lesson2(runs_dir, seed):
    seconds, out = run("lesson2_reward.py", runs_dir=runs_dir, seed=seed)
    accuracy = table_row(out, "accuracy")[1]
    best = table_row(out, "accuracy/best_possible")[1]
    correlation = table_row(out, "correlation/gold")[1]
    return seconds, [
        ("2 accuracy below the best possible", best - accuracy, best - accuracy <= 0.02, "<= 0.02"),
        ("2 correlation of score and gold", correlation, correlation >= 0.9, ">= 0.9")]


def lesson3(runs_dir, seed):
    seconds, out = run("lesson3_ppo.py", runs_dir=runs_dir, seed=seed)
    before, after = table_row(out, "gold/avg")
    _, out = run("lesson3_ppo.py", "--kl_coef", "0", "--steps", "100", "--run_name", "kl0",
                 runs_dir=runs_dir, seed=seed)
    default_score = smooth(Path(runs_dir, "ppo"), "reward/avg")
    hacked_score = smooth(Path(runs_dir, "kl0"), "reward/avg")[len(default_score) - 1]
    gold = smooth(Path(runs_dir, "kl0"), "gold/avg")
    return seconds, [
        ("3 gold reward gained", after - before, after - before >= 1.0, ">= 1.0"),
        ("3 --kl_coef 0: score above the default's at its last step",
         hacked_score - default_score[-1], hacked_score > default_score[-1], "> 0"),
        ("3 --kl_coef 0: gold at the end below its peak", max(gold) - gold[-1],
         max(gold) - gold[-1] >= 0.5, ">= 0.5")]


def lesson4(runs_dir, seed):
    seconds, out = run("lesson4_grpo.py", runs_dir=runs_dir, seed=seed)
    before, after = table_row(out, "accuracy/sampled")
    best_of_8 = table_row(out, "accuracy/pass@k")[0]
    way = (after - before) / (best_of_8 - before)
    _, out = run("lesson4_grpo.py", "--reward", "sentiment", "--run_name", "sentiment",
                 runs_dir=runs_dir, seed=seed)
    words_before, words_after = table_row(out, "reward/sampled")
    return seconds, [
        ("4 held-out sums right, sampled, after", after, after >= 0.85, ">= 0.85"),
        ("4 share of the way to the first pass@8", way, way >= 0.5, ">= 0.5"),
        ("4 --reward sentiment: words after / before", words_after / words_before,
         words_after >= 2 * words_before, ">= 2")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs_dir", default="")
    arguments = parser.parse_args()
    columns = []
    for seed in arguments.seeds:
        root = arguments.runs_dir or tempfile.mkdtemp()
        runs_dir = Path(root) / f"seed{seed}"
        rows = []
        for lesson in (lesson1, lesson2, lesson3, lesson4):
            seconds, checks = lesson(runs_dir, seed)
            rows += checks + [(f"{lesson.__name__[-1]} seconds", seconds, True, "")]
            for name, value, holds, _ in rows[-len(checks) - 1:]:
                print(f"seed {seed}: {name}: {value:.3f}{'' if holds else '  BROKEN'}", flush=True)
        columns.append(rows)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    print("| lesson and promise | wanted |" + "".join(f" seed {s} |" for s in arguments.seeds))
    print("| --- | --- |" + " --- |" * len(columns))
    for rows in zip(*columns):
        cells = "".join(f" {value:.2f}{'' if holds else ' **broken**'} |"
                        for _, value, holds, _ in rows)
        print(f"| {rows[0][0]} | {rows[0][3]} |{cells}")
    sys.exit(0 if all(holds for rows in columns for _, _, holds, _ in rows) else 1)


if __name__ == "__main__":
    main()
