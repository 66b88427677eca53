"""Lesson 2: a reward model. From comparisons, a model learns which answers people like better.

What you will see. Critics with a hidden taste compare pairs of film reviews, and sometimes err. The
fine-tuned model of lesson 1, with a score in place of its next-token head, learns from the pairs
alone to rank reviews nearly as well as the hidden taste itself does.

The formulas
    Bradley-Terry    P(chosen beats rejected) = sigmoid(s_chosen - s_rejected)
    pairwise loss    L = -mean log sigmoid(s_chosen - s_rejected - margin)
    centering        + c * mean (s_chosen + s_rejected)^2: the loss fixes only differences of
                     scores, and this keeps their level near 0
The score is read at the last real token, where the model has seen the whole answer.

How to run it
    python lesson2_reward.py                        offline; runs lesson 1 first where it is missing
    python lesson2_reward.py --score "The spy film was lovely."
    python lesson2_reward.py --freeze_backbone      train the score head alone
    python lesson2_reward.py --model gpt2 --data pairs.jsonl

It writes runs/reward; lesson 3 uses it.

Then close this file and write the maths yourself, in exercises/ex2_reward.py: "pytest -k ex2"
checks it, and "python lesson2_reward.py --exercise" trains with it.
"""

import inspect
import json
import logging
import math
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Optional

import datasets
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from transformers import get_cosine_schedule_with_warmup
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases):
    return HfArg(default=default, help=help, aliases=list(aliases))


@dataclass
class Config:
    model: str = flag("", "hub name or folder to start from (default: the tiny world's runs/sft)")
    data: str = flag("", "JSON file, folder or hub name; columns instruction, chosen, rejected")
    run_name: str = flag("reward", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    rm_epochs: int = flag(1, "times that every pair is learned from")
    steps: Optional[int] = flag(None, "optimiser steps (default: as many as the epochs have)")
    num_pairs: int = flag(6000, "pairs to learn from, at most")
    num_held_out: int = flag(4000, "pairs to measure on, at most")
    batch_size: int = flag(64, "pairs an optimiser step, over all processes")
    micro_batch_size: int = flag(64, "pairs a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "peak (default: 5e-4; 1e-5 with --model)")
    warmup_steps: int = flag(10, "steps over which the learning rate rises to its peak")
    weight_decay: float = flag(0.01, "of AdamW")
    freeze_backbone: bool = flag(False, "train the score head alone")
    margin: float = flag(0.0, "by how much a chosen score should exceed the rejected one")
    center_coef: float = flag(0.01, "weight of the term that keeps scores around 0")
    max_prompt_length: int = flag(64, "tokens; pairs with longer prompts are left out")
    max_new_tokens: int = flag(48, "tokens of an answer; longer ones are cut")
    save_every: int = flag(50, "steps between checkpoints (0: only on Ctrl-C)")
    seed: int = flag(0, "a CPU run with the same seed repeats exactly")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to compute")
    bf16: bool = flag(False, "bfloat16 autocast; the weights stay in float32")
    resume: bool = flag(False, "go on with an interrupted run")
    exercise: bool = flag(False, "train with your own functions, from exercises/")
    overwrite: bool = flag(False, "replace the earlier run instead of keeping it as <run_name>-1")
    config: str = flag("", "JSON file of settings; what is typed wins")
    score: str = flag("", "score this answer with the trained model, and train nothing")
    prompt: str = flag("Write a short review of the spy film.", "what the scored answer answers")
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 1e-5 if self.model else 5e-4


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex2_reward": "last_token_index pool_scores preference_probability pairwise_loss "
                        "preference_accuracy"}


def last_token_index(attention_mask):
    """The position of each row's last real token, whichever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask).argmax(dim=1)  # (B, T) -> (B,)


def pool_scores(token_scores, attention_mask):
    """The score at each row's last real token: the only one that has seen the whole answer."""
    last = last_token_index(attention_mask).unsqueeze(1)  # (B, 1)
    return token_scores.gather(1, last).squeeze(1)  # (B, T) -> (B,)


def preference_probability(chosen, rejected):
    """How likely the chosen answer is to win (Bradley and Terry, 1952)."""
    return torch.sigmoid(chosen - rejected)  # (B,)


def pairwise_loss(chosen, rejected, margin=None, count=None):
    """-log P(chosen wins), summed and divided by `count` (default: the number of pairs). A margin
    asks the chosen score to win by that much (Touvron et al., 2023, eq. 2)."""
    difference = chosen - rejected  # (B,)
    if margin is not None:
        difference = difference - margin
    return -F.logsigmoid(difference).sum() / (len(chosen) if count is None else count)


def preference_accuracy(chosen, rejected):
    """How often the chosen answer has the higher score. A tie is no success."""
    return (chosen > rejected).float().mean()


# ---- Data: critics with a hidden taste compare reviews ------------------------------------------

KINDS = ("pirate space robot ghost family horse school ocean "
         "winter music cooking football dragon train circus spy").split()
PARTS = "story acting script cast music ending camera humour".split()
GOOD = ("wonderful lovely charming gripping brilliant moving "
        "funny superb clever delightful warm fresh").split()
BAD = "boring dull awful clumsy silly weak noisy tedious dreadful cold stale messy".split()

def review_instruction(kind):
    return f"Write a short review of the {kind} film."


def write_review(kind, rng):
    """One to three clauses with a hidden mood: a happy critic's clause is good 5 times out of 6,
    an unhappy one's bad as often."""
    mood_is_good = rng.random() < 0.5
    good, bad = rng.sample(GOOD, 3), rng.sample(BAD, 3)
    subjects = [f"{kind} film", rng.choice(PARTS[:4]), rng.choice(PARTS[4:])]
    text, previous = "", None
    for subject in subjects[:rng.choice([1, 2, 3])]:
        is_good = mood_is_good if rng.random() < 5 / 6 else not mood_is_good
        start = "The" if not text else ", and the" if is_good == previous else ", but the"
        word = (good if is_good else bad).pop()
        text += f"{start} {subject} {rng.choice(['was', 'felt'])} {word}"
        previous = is_good
    return text + "."


CLAUSE = (rf"he (?:(?:{'|'.join(KINDS)}) film|{'|'.join(PARTS)}) "
          rf"(?:was|felt) (?:{'|'.join(GOOD + BAD)})")
WHOLE_REVIEW = re.compile(rf"T{CLAUSE}(?:, (?:and|but) t{CLAUSE})*\.")


def gold_utility(review):
    """The hidden taste: good words minus bad ones, at most 3; half a point off for every repeated
    word, one for a broken sentence. Lesson 2's labels come from it; no training may look at it."""
    words = re.findall(r"\w+", review)
    telling = [word for word in words if word in GOOD + BAD + PARTS]
    sentiment = sum(word in GOOD for word in words) - sum(word in BAD for word in words)
    repeated = len(telling) - len(set(telling))
    return min(sentiment, 3) - 0.5 * repeated - (WHOLE_REVIEW.fullmatch(review) is None)


def build_synthetic_preference_dataset(num_pairs, seed):
    """Pairs of reviews with a noisy verdict. A Dataset with the columns instruction, chosen,
    rejected, and the hidden gold_chosen and gold_rejected, which only the evaluation may see."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < num_pairs:
        kind = rng.choice(KINDS)
        chosen, rejected = write_review(kind, rng), write_review(kind, rng)
        difference = torch.tensor(gold_utility(chosen) - gold_utility(rejected))
        if rng.random() > torch.sigmoid(difference):  # the critic prefers the other one
            chosen, rejected = rejected, chosen
        if chosen != rejected:
            rows.append({"instruction": review_instruction(kind), "chosen": chosen,
                         "rejected": rejected, "gold_chosen": gold_utility(chosen),
                         "gold_rejected": gold_utility(rejected)})
    return datasets.Dataset.from_list(rows)


def format_prompt(instruction: str, input: str = "") -> str:
    """The text that the model sees before it answers: Alpaca's layout (Taori et al., 2023) without
    its preamble."""
    context = f"### Input:\n{input}\n\n" if input else ""
    return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"


def read_data(name, columns, size):
    """A Dataset from a .json or .jsonl file, a folder or the hub, with texts in these columns."""
    try:
        source = {"path": "json", "data_files": name} if Path(name).is_file() else {"path": name}
        data = datasets.load_dataset(**source, split="train")
    except Exception as error:  # whatever the reader raises is a fault of the file or of the name
        reason = str(error.__cause__ or "") or str(error) or "there is nothing in it"
        die(f"cannot read the data {name!r}: {reason.splitlines()[0]}")
    data = data.select(range(min(size, len(data))))
    for column in columns:
        values = data[column] if column in data.column_names else [None]
        for line, value in enumerate(values, start=1):
            if not isinstance(value, str):
                die(f"{name}, line {line}: the column {column!r} is missing or holds no text")
    return data


def tokenize_pairs(data, tokenizer, config):
    """Adds the columns chosen_ids and rejected_ids: prompt, answer and end token. Pairs that are
    equal once they are cut to length teach nothing and are left out."""

    def row(example):
        prompt = format_prompt(example["instruction"], example.get("input") or "")
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        ids = {"prompt_length": len(prompt_ids)}
        for name in "chosen", "rejected":
            answer = tokenizer.encode(example[name], add_special_tokens=False)
            answer = (answer + [tokenizer.eos_token_id])[:config.max_new_tokens]
            ids[f"{name}_ids"] = prompt_ids + answer
        return ids

    rows = data.map(row).filter(lambda row: row["prompt_length"] <= config.max_prompt_length
                                and row["chosen_ids"] != row["rejected_ids"])
    if len(rows) < len(data):
        print(f"Left out: {len(data) - len(rows)} of {len(data)} pairs, which are equal or have a "
              f"prompt of more than --max_prompt_length {config.max_prompt_length} tokens.")
    return rows if len(rows) else die("no pair is left: raise --max_prompt_length")


# ---- Models -------------------------------------------------------------------------------------


def load_reward_model(name):
    """(model, tokenizer): a transformer with a head of one output, the score. Made from a language
    model it gets a new head; the head of a trained reward model is kept."""
    path = Path(name, "model") if Path(name, "model").is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, dtype=torch.float32)
    except (OSError, ValueError) as error:
        die(f"cannot load the model {str(name)!r}: {str(error).splitlines()[0]}")
    if tokenizer.eos_token_id is None:
        die(f"the model {str(name)!r} has no end token: the end of an answer could not be scored")
    # transformers scores the last token that is not the pad token, so that must be no end token.
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer  # eval(): no dropout, and none in training either


def score_answers(model, tokenizer, ids):
    """Lists of token ids -> scores (B,)."""
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    batch = batch.to(model.device)
    states = model.base_model(**batch).last_hidden_state  # (B, T, hidden size)
    token_scores = model.score(states).squeeze(-1).float()  # (B, T)
    return pool_scores(token_scores, batch["attention_mask"])


# ---- Housekeeping: the same in every lesson, and nothing to do with learning --------------------

FREE_TO_CHANGE = "resume overwrite config device save_every log_level runs_dir micro_batch_size"
MAY_BE_0 = {"warmup_steps", "save_every", "seed"}


def die(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def stop(*_):
    sys.exit("\nInterrupted. A run that has a checkpoint goes on with --resume.")


def load_exercises():
    """{name: function} of the student's files. A stub is left out: there the lesson's own stays."""
    found = {}
    for file, names in BLANKS.items():
        path = Path(__file__).with_name("exercises") / f"{file}.py"
        try:
            student = runpy.run_path(str(path))
            found |= {name: student[name] for name in names.split()}
        except Exception as error:  # whatever is wrong with the file
            die(f"cannot load {path}: {type(error).__name__}: {error}")
    stubs = [name for name, function in found.items()
             if inspect.unwrap(function).__code__.co_names == ("NotImplementedError",)]
    mine = {name: found[name] for name in found if name not in stubs}
    print(f"Your functions: {', '.join(mine) or 'none yet'}.\n"
          f"The lesson's, because yours are stubs: {', '.join(stubs) or 'none'}.")
    return mine


def read_config(arguments):
    """The command line as a Config. The settings of --config, or of the run to resume, are read as
    if they had been typed first: what is typed later wins."""
    parser = HfArgumentParser(Config, allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.error = die
    config, saved = Config(**vars(parser.parse_args(arguments))), {}
    file = run_folder(config) / "config.json" if config.resume else Path(config.config)
    if file != Path():
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            earlier = [f"--{name}={value}" for name, value in saved.items() if value is not None]
        except (OSError, ValueError, AttributeError) as error:
            die(f"cannot read settings from {file}: {error}")
        config = Config(**vars(parser.parse_args(earlier + arguments)))
    for name, value in vars(config).items():
        if config.resume and name not in FREE_TO_CHANGE.split() and saved.get(name) != value:
            die(f"{file.parent} was begun with --{name} {saved.get(name)}, not {value}: leave that "
                "flag out, or begin a run of another --run_name")
        least = 1 if type(value) is int and name not in MAY_BE_0 else 0
        if type(value) in (int, float) and value < least:
            die(f"--{name} must be at least {least}, not {value}")
    return config


def start(config):
    """Quiet libraries, the seed, and an Accelerator: device, processes and precision."""
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(encoding="utf-8", errors="replace")
    for library in "transformers", "datasets", "huggingface_hub":
        logging.getLogger(library).setLevel(config.log_level.upper())
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.manual_seed(config.seed)
    signal.signal(signal.SIGINT, stop)
    accelerator = Accelerator(cpu=config.device == "cpu",
                              mixed_precision="bf16" if config.bf16 else "no")
    if config.device not in ("auto", accelerator.device.type):
        die(f"--device {config.device} is not there: this machine has {accelerator.device.type}")
    return accelerator


def run_folder(config, run_name=None):
    """<runs_dir>/<run_name>. Runs that began with another model than the tiny one have the last
    part of that model's name in between, so that stages of different models do not mix."""
    root, model = Path(config.runs_dir).resolve(), Path(config.model)
    is_run = config.model and model.resolve().is_relative_to(root)
    family = model.resolve().relative_to(root).parent if is_run else model.name
    return Path(config.runs_dir, family, run_name or config.run_name)


def open_run(config, accelerator):
    """Make the run's folder with config.json; an earlier run is kept as <run_name>-1 and so on."""
    folder = run_folder(config)
    if config.resume and (folder / "model").is_dir():
        die(f"{folder} is finished: there is nothing to resume")
    if config.resume or not accelerator.is_main_process:
        return folder
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if Path(config.model).resolve() == folder.resolve():
                die(f"{folder} is --model and would be replaced: choose another --run_name")
            if not (folder / "config.json").is_file():
                die(f"{folder} holds files that no lesson wrote: choose another --run_name")
            number = next(n for n in range(1, 10**6) if not Path(f"{folder}-{n}").exists())
            shutil.rmtree(folder) if config.overwrite else folder.rename(f"{folder}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=2))
    except OSError as error:
        die(f"cannot write to {folder}: {error.strerror}")
    return folder


def save_model(model, tokenizer, folder):
    """Written beside its place and moved there whole."""
    fresh = folder.with_name(folder.name + ".tmp")
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


class Run:
    """A run's folder: metrics.jsonl, TensorBoard, checkpoints, and what Ctrl-C does. A checkpoint
    holds the `parts` (model, optimizer, ...), the metrics, and numbers in `extra`. Where there is
    one, the run goes on from it."""

    def __init__(self, folder, config, accelerator, **parts):
        self.folder, self.config, self.parts, self.interrupted = folder, config, parts, False
        self.is_main, self.step, self.rows, self.extra = accelerator.is_main_process, 0, [], {}
        self.process_index = accelerator.process_index
        accelerator.wait_for_everyone()
        if (folder / "latest").is_file():
            saved = torch.load(folder / (folder / "latest").read_text() / "state.pt", "cpu")
            self.step, self.rows, self.extra = saved["step"], saved["rows"], saved["extra"]
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        if self.is_main:  # lines from after the checkpoint go: their steps come again
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))
            self.writer = SummaryWriter(str(folder), purge_step=self.step + 1)

    def steps(self, total):
        """The numbers of the steps to come, with a bar. Each step has a seed of its own, so that a
        resumed run draws what it would have drawn."""
        signal.signal(signal.SIGINT, self.interrupt)
        self.bar = tqdm(range(self.step + 1, total + 1), initial=self.step, total=total,
                        desc=self.config.run_name, disable=not self.is_main)
        for step in self.bar:
            torch.manual_seed((self.config.seed * 10**6 + step) * 1000 + self.process_index)
            yield step
        signal.signal(signal.SIGINT, stop)

    def interrupt(self, *_):
        """Ctrl-C: the step is finished and saved first. A second Ctrl-C stops at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, stop)

    def end_step(self, step, stats, **shown):
        """Log the step, show some numbers beside the bar, and save a checkpoint when it is time, or
        when Ctrl-C was pressed."""
        self.bar.set_postfix(shown)
        self.rows.append({"step": step, **stats})
        if self.is_main:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
            for name, value in stats.items():
                self.writer.add_scalar(name, value, step)
            if self.interrupted or self.config.save_every and step % self.config.save_every == 0:
                self.save_checkpoint(step)
        if self.interrupted:
            sys.exit(f"\nInterrupted: step {step} is saved in {self.folder}. To go on: python "
                     f"{shlex.join(sys.argv)}{'' if '--resume' in sys.argv else ' --resume'}")

    def save_checkpoint(self, step):
        """checkpoint-<step>/ first, then the pointer to it, in one go: an interrupted save leaves
        the checkpoint before it in force."""
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        states.update(step=step, rows=self.rows, extra=self.extra)
        torch.save(states, folder / "state.pt")
        (self.folder / "latest.tmp").write_text(folder.name)
        os.replace(self.folder / "latest.tmp", self.folder / "latest")
        for other in set(self.folder.glob("checkpoint-*")) - {folder}:
            shutil.rmtree(other)

    def close(self, curve, before, after, samples):
        """The closing table, one curve in characters, and samples: [(title, {label: text})]."""
        print(f"\n{'':<36}{'before':>10}{'after':>10}")
        for name in before:
            print(f"{name:<36}{before[name]:>10.3f}{after[name]:>10.3f}")
        values = torch.tensor([row[curve] for row in self.rows]).nan_to_num()
        means = torch.stack([part.mean() for part in values.tensor_split(min(60, len(values)))])
        heights = (7.99 * (means - means.min()) / (means.max() - means.min() + 1e-9)).int()
        marks = "".join("▁▂▃▄▅▆▇█"[height] for height in heights)
        print(f"\n{curve}: {means[0]:.2f} {marks} {means[-1]:.2f}\n")
        text = ""
        for title, texts in samples:
            text += f"**{title}**\n" + "".join(f"- {name}: {texts[name]!r}\n" for name in texts)
        print(text.replace("**", ""))
        (self.folder / "samples.md").write_text(text, encoding="utf-8")
        self.writer.add_text("samples", text, self.rows[-1]["step"])
        results = {f"final/{name}": value for name, value in after.items()}
        self.writer.add_hparams(asdict(self.config), results, run_name=".")
        self.writer.close()
        print(f"Written to {self.folder}: model/, metrics.jsonl, samples.md. "
              f"Curves: tensorboard --logdir {self.config.runs_dir}")


def make_missing(folder, lesson, duration, config):
    """Where an input is missing, the lesson that makes it runs first, as a process of its own."""
    if (folder / "model").is_dir():
        return
    if config.data or int(os.environ.get("WORLD_SIZE", 1)) > 1:  # what data? which process?
        die(f"{folder} is missing: run python {lesson} first (with the same --model, if any)")
    print(f"{folder} is missing: {lesson} makes it now, in about {duration}.", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(lesson)),
               f"--runs_dir={config.runs_dir}", f"--device={config.device}"]
    command += ["--resume"] if (folder / "config.json").is_file() else [f"--seed={config.seed}"]
    command += [f"--model={config.model}"] if config.model else []
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child too, and it saves
    if child.wait():
        sys.exit(child.returncode)
    signal.signal(signal.SIGINT, stop)


# ---- The loop -----------------------------------------------------------------------------------


def add_up_gradients(model, accelerator):
    """Every process has divided its loss by the whole batch's count, so the whole batch's gradient
    is the plain sum of theirs."""
    if accelerator.num_processes > 1:
        for weight in model.parameters():
            if weight.requires_grad:
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = accelerator.reduce(grad, reduction="sum")


@torch.no_grad()
def score_pairs(model, tokenizer, data, config, accelerator):
    """-> (chosen, rejected) scores of all pairs, each (N,)."""
    both = []
    for name in "chosen_ids", "rejected_ids":
        ids = data[name]
        with accelerator.autocast():
            scores = [score_answers(model, tokenizer, ids[i:i + 2 * config.micro_batch_size])
                      for i in range(0, len(ids), 2 * config.micro_batch_size)]
        both.append(torch.cat(scores).cpu())
    return both


def measure(chosen, rejected, data):
    """Scores of held-out pairs -> numbers to report."""
    scores = torch.cat([chosen, rejected])
    numbers = {"loss/held_out": pairwise_loss(chosen, rejected).item(),
               "accuracy": preference_accuracy(chosen, rejected).item(),
               "score/mean": scores.mean().item(), "score/std": scores.std().item()}
    if "gold_chosen" in data.column_names:
        gold = torch.tensor([data["gold_chosen"], data["gold_rejected"]])
        # Equal gold: whichever the ranking prefers, it is right half the time.
        best = (gold[0] > gold[1]).float() + 0.5 * (gold[0] == gold[1]).float()
        numbers["accuracy/best_possible"] = best.mean().item()
        both = torch.stack([scores, gold.flatten()])
        numbers["correlation/gold"] = torch.corrcoef(both)[0, 1].item()
    return numbers


def calibration_table(chosen, rejected):
    """Does a pair to which the model gives 80% come out that way in 80% of cases? The better-scored
    answer of every pair is the favourite; the table says how often it was the chosen one."""
    probability = preference_probability(chosen, rejected)
    favourite, won = torch.maximum(probability, 1 - probability), (probability > 0.5).float()
    print("\nCalibration: favourite's chance    pairs   predicted  observed")
    for low in torch.arange(0.5, 1.0, 0.1).tolist():
        here = (favourite >= low) & (favourite < low + 0.1 + 1e-6 * (low > 0.85))
        if here.any():
            print(f"    {low:>14.0%} to {low + 0.1:>4.0%}     {here.sum():>9}"
                  f"{favourite[here].mean():>12.1%}{won[here].mean():>10.1%}")


def train_reward_model(model, tokenizer, data, folder, config, accelerator):
    """Returns the finished Run."""
    if config.freeze_backbone:
        model.requires_grad_(False).score.requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = math.ceil(len(data) / config.batch_size)
    steps = config.steps or config.rm_epochs * per_epoch
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, steps)
    run = Run(folder, config, accelerator, model=model, optimizer=optimizer, schedule=schedule)
    for step in run.steps(steps):
        # 1. The batch. Every epoch has an order of its own.
        epoch, place = divmod(step - 1, per_epoch)
        order = random.Random(f"{config.seed} {epoch}").sample(range(len(data)), len(data))
        rows = order[place * config.batch_size:(place + 1) * config.batch_size]
        mine = rows[accelerator.process_index::accelerator.num_processes]

        # 2. The gradient, in pieces that fit. Each is divided by the size of the whole batch.
        sums = torch.zeros(3, device=accelerator.device)
        for start in range(0, len(mine), config.micro_batch_size):
            piece = data[mine[start:start + config.micro_batch_size]]
            with accelerator.autocast():
                both = piece["chosen_ids"] + piece["rejected_ids"]
                chosen, rejected = score_answers(model, tokenizer, both).chunk(2)
            loss = pairwise_loss(chosen, rejected, config.margin, count=len(rows))
            center = (chosen + rejected).square().sum() / len(rows)
            (loss + config.center_coef * center).backward()
            right = (chosen > rejected).sum() / len(rows)
            sums += torch.stack([loss, center, right]).detach()
        add_up_gradients(model, accelerator)

        # 3. The step.
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)  # tames odd batches
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss, center, accuracy = accelerator.reduce(sums, reduction="sum").tolist()
        stats = {"accuracy/train": accuracy, "loss/pairwise": loss, "loss/center": center,
                 "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]}
        run.end_step(step, stats, accuracy=accuracy, loss=loss)
    return run


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    globals().update(load_exercises() if config.exercise else {})
    if config.prompt != Config.prompt and not config.score:
        die("--prompt says what a scored answer answers: it needs --score")
    if config.score:
        if not (run_folder(config) / "model").is_dir():
            die(f"{run_folder(config)} is missing: run python lesson2_reward.py first")
        model, tokenizer = load_reward_model(run_folder(config))
        prompt = tokenizer.encode(format_prompt(config.prompt), add_special_tokens=False)
        answer = tokenizer.encode(config.score, add_special_tokens=False)
        with torch.no_grad():
            raw = score_answers(model, tokenizer, [prompt + answer + [tokenizer.eos_token_id]])
        score = (raw.item() - model.config.score_mean) / model.config.score_std
        return print(f"{score:+.2f} standard deviations from an average answer")
    if not config.model:
        make_missing(run_folder(config, "sft"), "lesson1_sft.py", "a minute", config)
        config.model = str(run_folder(config, "sft"))
    if config.data:
        data = read_data(config.data, ["instruction", "chosen", "rejected"], 10**6)
        if len(data) < 2:
            die(f"{config.data} needs at least two rows: some are held out")
        held_out_size = min(config.num_held_out, max(1, len(data) // 10))
        data, held_out = data.train_test_split(test_size=held_out_size, seed=0).values()
        data = data.select(range(min(len(data), config.num_pairs)))
    else:
        data = build_synthetic_preference_dataset(config.num_pairs, f"train {config.seed}")
        held_out = build_synthetic_preference_dataset(config.num_held_out, "held out")
    model, tokenizer = load_reward_model(config.model)
    model.to(accelerator.device)
    data, held_out = (tokenize_pairs(part, tokenizer, config) for part in (data, held_out))
    folder = open_run(config, accelerator)
    before = measure(*score_pairs(model, tokenizer, held_out, config, accelerator), held_out)
    run = train_reward_model(model, tokenizer, data, folder, config, accelerator)
    chosen, rejected = score_pairs(model, tokenizer, held_out, config, accelerator)
    after = measure(chosen, rejected, held_out)
    # Lesson 3 divides by these, so that a reward of 1 is one standard deviation of the scores.
    model.config.score_mean, model.config.score_std = after["score/mean"], after["score/std"]
    if run.is_main:
        save_model(model, tokenizer, folder / "model")
        calibration_table(chosen, rejected)
        shown = held_out.select(range(min(5, len(held_out))))
        samples = [(row["instruction"], {f"chosen {a:+.2f}": row["chosen"],
                                         f"rejected {b:+.2f}": row["rejected"]})
                   for row, a, b in zip(shown, chosen, rejected)]
        run.close("accuracy/train", before, after, samples)
        print('Next: python lesson2_reward.py --score "The spy film was lovely.", '
              "or python lesson3_ppo.py")


if __name__ == "__main__":
    main()
