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
    python lesson2_reward.py --look                 the score after every token
    python lesson2_reward.py --freeze_backbone      train the score head alone
    python lesson2_reward.py --lora_rank 8          an adapter and a score head (needs peft)
    python lesson2_reward.py --model gpt2 --data pairs.jsonl
It writes runs/reward; lesson 3 uses it.

Why: exercises/WHY.md, "Lesson 2", one page: -log sigmoid, why the last token, why only differences
of scores count. Read it first.
How to read it: from "The maths" down to main(), and a flag where you meet it; the loop of main()
has four numbered steps. The lesson ends where Housekeeping begins, at line 462. Then close this
file and write the maths yourself: "pytest -k ex2" checks exercises/ex2_reward.py, and "python
lesson2_reward.py --exercise" trains with it.
"""

import signal
if __name__ == "__main__":  # Ctrl-C while the libraries load: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import logging
import math
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Optional

import huggingface_hub
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import tqdm
from filelock import FileLock
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers import HfArgumentParser, get_cosine_schedule_with_warmup
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases, **metavar):
    """A field of Config; other libraries' names for it; metavar="0..1" is what a number may be."""
    spellings = {form: 1 for alias in aliases for form in (alias, alias.replace("_", "-"))}
    return HfArg(default=default, help=help, aliases=list(spellings), metadata=metavar)


@dataclass
class Config:
    model: str = flag("", "hub name or folder (default: runs/sft)", "--model_name_or_path")
    data: str = flag("", "pairs: a file, a folder, or on the hub NAME:CONFIG:SPLIT")
    eval_data: str = flag("", "pairs to evaluate on (default: a twentieth of --data)")
    columns: str = flag("", "what --data calls its columns, such as chosen=better,rejected=worse")
    run_name: str = flag("reward", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    rm_epochs: int = flag(1, "times that every pair is learned from", "--num_train_epochs",
                          "--epochs")
    steps: Optional[int] = flag(None, "optimiser steps (default: rm_epochs; 0: evaluate only)",
                                metavar="0..1e6")
    num_pairs: int = flag(6000, "pairs to learn from, at most")
    num_held_out: int = flag(4000, "pairs to measure on, at most")
    batch_size: int = flag(64, "pairs an optimiser step, over all processes")
    micro_batch_size: int = flag(16, "pairs a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "5e-4; 1e-5 with --model; LoRA: tenfold", "--lr")
    warmup_steps: int = flag(10, "steps until the learning rate is at its peak", metavar="0..1e6")
    weight_decay: float = flag(0.01, "of AdamW")
    freeze_backbone: bool = flag(False, "train the score head alone")
    margin: float = flag(0.0, "by how much a chosen score should exceed the rejected one")
    center_coef: float = flag(0.01, "weight of the term that keeps scores around 0",
                              "--center_rewards_coefficient")
    prompt_format: Literal["auto", "chat", "think", "alpaca", "plain"] = flag("auto", "layout")
    max_prompt_length: Optional[int] = flag(None, "longer ones are left out (64; --data 512)")
    max_new_tokens: Optional[int] = flag(None, "of an answer; longer ones are cut (48; --data 256)")
    lora_rank: int = flag(0, "train adapters of this rank alone (0: all weights)", metavar="0..999")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights that are not trained")
    load_in_4bit: bool = flag(False, "keep those in 4 bits: QLoRA (needs peft, bitsandbytes)")
    bf16: bool = flag(False, "bfloat16 autocast; what is trained stays in float32")
    gradient_checkpointing: bool = flag(False, "compute activations twice, and keep few of them")
    attn_implementation: Optional[str] = flag(None, "such as eager, sdpa or flash_attention_2")
    trust_remote_code: bool = flag(False, "run the code that --model brings along")
    device: Literal["auto", "cpu"] = flag("auto", "auto: CUDA or MPS where there is one")
    save_every: int = flag(50, "steps between checkpoints (0: only on Ctrl-C)", metavar="0..1e6")
    report_to: str = flag("tensorboard", "or wandb, trackio, ..., what accelerate knows; or: none")
    seed: int = flag(0, "a CPU run with the same seed repeats exactly", metavar="0..1e9")
    resume: bool = flag(False, "go on with an interrupted run")
    exercise: bool = flag(False, "train with your own functions, from exercises/")
    overwrite: bool = flag(False, "replace the earlier run instead of keeping it as <run_name>-1")
    config: str = flag("", "JSON file of settings; what is typed wins")
    score: str = flag("", "score this answer with the trained model, and train nothing")
    prompt: str = flag("Write a short review of the spy film.", "what the scored answer answers")
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        if not self.data:  # real data: up to 512 + 256, as the model has positions
            self.max_prompt_length = self.max_prompt_length or 64
            self.max_new_tokens = self.max_new_tokens or 48
        if self.learning_rate is None:
            self.learning_rate = (1e-5 if self.model else 5e-4) * (10 if self.lora_rank else 1)
        if self.prompt != Config.prompt and not self.score:
            die("--prompt says what a scored answer answers: it needs --score")
        if self.freeze_backbone and self.lora_rank:
            die("--freeze_backbone trains the head alone: an adapter (--lora_rank) would be idle")


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
    """Pairs of reviews with a noisy verdict: rows with the columns instruction, chosen,
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
    return rows


def format_prompt(instruction: str, input: str = "") -> str:
    """What the model sees before it answers: Alpaca's layout (Taori et al., 2023), shortened."""
    context = f"### Input:\n{input}\n\n" if input else ""
    return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"


def tokenize_pairs(data, tokenizer, config):
    """Gives every row its chosen_ids and rejected_ids: prompt, answer and end token. Pairs that are
    equal once they are cut to length teach nothing and are left out."""
    prompts = encode_prompts(data, tokenizer, config)
    for name in "chosen", "rejected":
        answers = tokenizer([row[name] for row in data], add_special_tokens=False)["input_ids"]
        for row, prompt, answer in zip(data, prompts, answers):
            answer = (answer + [tokenizer.eos_token_id])[:config.max_new_tokens]
            row[f"{name}_ids"] = prompt + answer
    long = sum(len(prompt) > config.max_prompt_length for prompt in prompts)
    rows = [row for row, prompt in zip(data, prompts)
            if len(prompt) <= config.max_prompt_length and row["chosen_ids"] != row["rejected_ids"]]
    why = (f"{long} have a prompt of more than --max_prompt_length {config.max_prompt_length} "
           f"tokens, and {len(data) - len(rows) - long} are equal in the first --max_new_tokens "
           f"{config.max_new_tokens} of their answers")
    if len(rows) < len(data):
        print(f"Left out: {len(data) - len(rows)} of {len(data)} pairs. {why}.")
    return rows or die(f"no pair is left: {why}")


# ---- Models -------------------------------------------------------------------------------------


class RewardModel(torch.nn.Module):
    """A transformer with a head of one output, the score, in place of its next-token head. Made
    from a language model it gets a new head; the head of a trained reward model is kept."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        """(B, T), padded on the right -> scores (B,)"""
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        # The padding needs no mask: it is on the right, and nobody looks to the right.
        states = model.base_model(input_ids, use_cache=False).last_hidden_state
        with torch.autocast(states.device.type, enabled=False):  # bfloat16 would make ties
            return pool_scores(model.score(states.float()).squeeze(-1), attention_mask)


def make_reward_model(config):
    """(RewardModel, tokenizer) of --model."""
    kind = AutoModelForSequenceClassification
    model, tokenizer, _ = from_pretrained(kind, config.model, config, num_labels=1)
    if not hasattr(model, "score"):
        die(f"{config.model} is no causal language model: it has no head that could score")
    return RewardModel(add_adapter(model, config, "SEQ_CLS")), tokenizer


def score_answers(model, tokenizer, ids):
    """Lists of token ids -> scores (B,)."""
    batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    return model(**batch.to(next(model.parameters()).device))


# ---- The algorithm: the parts of a step, and then main ------------------------------------------


def my_pieces(rows, size, accelerator):
    """(rows, weight) of this process's pieces of a minibatch, of at most `size` rows. In a backward
    pass the processes wait for one another: one without a row takes another's, with weight 0."""
    n = accelerator.num_processes
    for start in range(0, len(rows), size * n):
        piece = rows[start:start + size * n]
        mine = piece[accelerator.process_index::n]
        yield (mine, 1) if len(mine) else (piece[:1], 0)


@torch.no_grad()
def score_pairs(model, tokenizer, data, config, accelerator):
    """-> (chosen, rejected) scores of all pairs, each (N,)."""
    ids = [row[name] for name in ("chosen_ids", "rejected_ids") for row in data]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    scores, size = torch.zeros(len(ids)), 2 * config.micro_batch_size
    for rows in [order[i:i + size] for i in range(0, len(ids), size)]:
        with accelerator.autocast():
            scores[rows] = score_answers(model, tokenizer, [ids[i] for i in rows]).cpu()
    return scores.chunk(2)


def measure(chosen, rejected, data):
    """Scores of held-out pairs -> numbers to report."""
    scores = torch.cat([chosen, rejected])
    off = sum(n * abs(predicted - observed)  # the expected calibration error, of five rows
              for _, _, n, predicted, observed in calibration(chosen, rejected)) / len(chosen)
    numbers = {"loss/held_out": pairwise_loss(chosen, rejected).item(),
               "accuracy": preference_accuracy(chosen, rejected).item(), "calibration/error": off,
               "score/mean": scores.mean().item(), "score/std": scores.std().item()}
    if "gold_chosen" in data[0]:
        gold = torch.tensor([[row["gold_chosen"], row["gold_rejected"]] for row in data]).T
        # Equal gold: whichever the ranking prefers, it is right half the time.
        best = (gold[0] > gold[1]).float() + 0.5 * (gold[0] == gold[1]).float()
        numbers["accuracy/best_possible"] = best.mean().item()
        both = torch.stack([scores, gold.flatten()])
        numbers["correlation/gold"] = torch.corrcoef(both)[0, 1].item()
    return numbers


def calibration(chosen, rejected):
    """Does a pair to which the model gives 80% come out that way in 80% of cases? The better-scored
    answer of every pair is the favourite. -> rows (chance from, to, pairs, predicted, observed):
    how often it was the chosen one."""
    probability, rows = preference_probability(chosen, rejected), []
    favourite, won = torch.maximum(probability, 1 - probability), (probability > 0.5).float()
    for low in torch.arange(0.5, 1.0, 0.1).tolist():
        here = (favourite >= low) & (favourite < low + 0.1 + 1e-6 * (low > 0.85))
        if here.any():
            rows.append((low, low + 0.1, here.sum().item(), favourite[here].mean().item(),
                         won[here].mean().item()))
    return rows


def score_one(config):
    """--score: how one answer compares with the average, for the trained model."""
    if not (run_folder(config) / "model").is_dir():
        die(f"{run_folder(config)} is missing: run python lesson2_reward.py first")
    config.model = str(run_folder(config))
    model, tokenizer = make_reward_model(config)
    model.to(PartialState().device)
    prompt = encode_prompts([{"instruction": config.prompt}], tokenizer, config)[0]
    answer = tokenizer.encode(config.score, add_special_tokens=False)
    ids = prompt + answer + [tokenizer.eos_token_id]
    positions = getattr(model.model.config, "max_position_embeddings", len(ids))
    if len(ids) > positions:
        die(f"{len(ids)} tokens are more than the {positions} positions of {config.model}")
    with torch.no_grad():
        raw = score_answers(model, tokenizer, [ids])
    score = (raw.item() - model.model.config.score_mean) / model.model.config.score_std
    print(f"{score:+.2f} standard deviations from an average answer")


def load_pairs(config):
    """(training, held-out) rows."""
    if not config.data:
        return (build_synthetic_preference_dataset(config.num_pairs, f"train {config.seed}"),
                build_synthetic_preference_dataset(config.num_held_out, "held out"))
    data, held_out = load_data(config, ["instruction", "chosen", "rejected"])
    if len(data) > config.num_pairs:
        print(f"{config.data}: {config.num_pairs} of {len(data)} pairs are used (--num_pairs).")
    return data[:config.num_pairs], held_out[:config.num_held_out if config.steps != 0 else None]


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    globals().update(load_exercises() if config.exercise else {})
    if config.score:
        return score_one(config)
    if not config.model:
        make_missing(run_folder(config, "sft"), "lesson1_sft.py", "a minute", config)
        config.model = str(run_folder(config, "sft"))
    parts = load_pairs(config)
    model, tokenizer = make_reward_model(config)
    data, held_out = (tokenize_pairs(part, tokenizer, config) for part in parts)
    if config.freeze_backbone:
        model.requires_grad_(False).model.score.requires_grad_(True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    per_epoch = math.ceil(len(data) / config.batch_size)
    steps = config.rm_epochs * per_epoch if config.steps is None else config.steps
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, steps)
    # The learner is the model, wrapped so that several processes share their gradients.
    learner, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    run = Run(config, accelerator)
    before = measure(*score_pairs(model, tokenizer, held_out, config, accelerator), held_out)
    for step in run.steps(steps):
        # 1. The batch. Every epoch has an order of its own.
        epoch, place = divmod(step - 1, per_epoch)
        order = random.Random(f"{config.seed} {epoch}").sample(data, len(data))
        batch = order[place * config.batch_size:(place + 1) * config.batch_size]
        # Sorted, so that the pieces have little padding.
        batch.sort(key=lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])))

        # 2. The gradient, in pieces that fit. Each is divided by the size of the whole batch.
        learner.train(config.gradient_checkpointing)  # only there: nothing should be random
        sums = torch.zeros(3, device=accelerator.device)
        for piece, weight in my_pieces(batch, config.micro_batch_size, accelerator):
            both = [row[name] for name in ("chosen_ids", "rejected_ids") for row in piece]
            chosen, rejected = score_answers(learner, tokenizer, both).chunk(2)
            loss = pairwise_loss(chosen, rejected, config.margin, count=len(batch))
            center = (chosen + rejected).square().sum() / len(batch)
            total = loss + config.center_coef * center
            # The gradient will be a mean over processes: times their number, a sum.
            accelerator.backward(total * weight * accelerator.num_processes)
            right = (chosen > rejected).sum() / len(batch)
            sums += weight * torch.stack([loss, center, right]).detach()

        # 3. The step.
        norm = accelerator.clip_grad_norm_(weights, 1.0)  # tames odd batches
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        learner.eval()

        # 4. What happened.
        loss, center, accuracy = accelerator.reduce(sums).tolist()
        stats = {"accuracy/train": accuracy, "loss/pairwise": loss, "loss/center": center,
                 "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]}
        run.end_step(step, stats, accuracy=accuracy, loss=loss)

    chosen, rejected = score_pairs(model, tokenizer, held_out, config, accelerator)
    after = measure(chosen, rejected, held_out)
    if not math.isfinite(after["score/std"]):
        die("the scores are not finite at the end: begin again with a lower --learning_rate")
    # Lesson 3 divides by these, so that a reward of 1 is one standard deviation of the scores.
    settings, mean, std = model.model.config, after["score/mean"], after["score/std"]
    settings.score_mean, settings.score_std = mean, std
    run.save_model(model.model, tokenizer)
    print("\nCalibration: favourite's chance    pairs   predicted  observed")
    for low, high, n, predicted, observed in calibration(chosen, rejected):
        print(f"    {low:>14.0%} to {high:>4.0%}     {n:>9}{predicted:>12.1%}{observed:>10.1%}")
    samples = [(row["instruction"], {f"chosen {(a - mean) / std:+.2f}": row["chosen"],
                                     f"rejected {(b - mean) / std:+.2f}": row["rejected"]})
               for row, a, b in zip(held_out[:5], chosen, rejected)]
    this, ppo = "", ""  # the flags that name this run, where it is not the usual one
    if run.folder != Path("runs/reward"):
        this = f"--model {config.model} --run_name {config.run_name} "
        ppo = f" --model {config.model} --reward {run.folder}"
    run.close("accuracy/train", before, after, samples, f"python lesson2_reward.py {this}"
              f'--score "The spy film was lovely.", or python lesson3_ppo.py{ppo}')


# ---- Housekeeping: the lesson is over; none of this has to do with learning ---------------------

FREE_TO_CHANGE = ("resume overwrite config device save_every log_level runs_dir micro_batch_size "
                  "report_to gradient_checkpointing").split()


def die(message):
    """One line, and exit code 2 or, where training had begun, 1."""
    print("\n" * Run.begun + "error: " + " ".join(message.split())[:600], file=sys.stderr)
    sys.exit(1 if Run.begun else 2)


@contextmanager
def blame(what):
    """What goes wrong in here ends the program with one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        die(f"{what}: {type(error).__name__}: {error.__cause__ or error}")


def run_lesson():
    """main(), and one line for whatever escapes from it."""
    if "TYPED" in os.environ:  # see make_missing
        threading.Thread(target=lambda: os.read(0, 1) or signal.raise_signal(signal.SIGINT),
                         daemon=True).start()
    try:
        main()
        PartialState().destroy_process_group()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. A run that has a checkpoint goes on with --resume.")
    except (Exception, SystemExit) as error:
        libraries = str(Path(os.__file__).parent), str(Path(torch.__file__).parents[1])
        place = [frame for frame in traceback.extract_tb(error.__traceback__)
                 if not frame.filename.startswith(libraries)][-1]  # this file, or the user's
        if isinstance(error, SystemExit) and place.filename == __file__:
            raise
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            die("out of memory: lower --micro_batch_size (the result stays the same), then "
                "--max_new_tokens and the samples a step, or try --bf16 and --lora_rank 8")
        if "probability tensor" in str(error):  # torch.multinomial's words
            die("the model has diverged and cannot be sampled from: begin again, with a lower "
                "--learning_rate or without --bf16")
        if logging.root.manager.disable < logging.INFO:  # --log_level info
            traceback.print_exc()
        die(f"{place.filename}, line {place.lineno} (more with --log_level info): "
            f"{type(error).__name__}: {error.__cause__ or error}")
    finally:  # nothing but the end can be interrupted from here on
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_config(arguments):
    """The command line; the settings of --config, or of the run to resume, come before it."""
    parser = HfArgumentParser(Config, allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.error = die
    parser.add_argument("--look", action="store_true", help="show a batch of the finished run, "
                        "token by token, as a table and a page, and train nothing")
    arguments = [word.replace("=~/", f"={Path.home()}/", 1) for word in arguments]
    typed, saved = parser.parse_args(arguments), {}
    of_run = typed.resume or typed.look
    file = run_folder(typed) / "config.json" if of_run else Path(typed.config)
    if of_run or typed.config:
        with blame(f"cannot read settings from {file} (is there such a run?)"):
            saved = dict(json.loads(file.read_text(encoding="utf-8")), lesson=None)  # no setting
            earlier = [f"--{name}={value}" for name, value in saved.items() if value is not None]
        typed = parser.parse_args(earlier + arguments)
    look = vars(typed).pop("look")
    for name, value in vars(typed).items():
        if isinstance(value, list):  # of --name=--
            die(f"--{name} needs a value")
        if type(value) in (int, float):
            usual = "1..1e6" if type(value) is int else "0..1e6"
            low, high = Config.__dataclass_fields__[name].metadata.get("metavar", usual).split("..")
            if not float(low) <= value <= float(high):  # nan never is
                die(f"--{name} must be between {low} and {high}, not {value}")
        if typed.resume and name not in FREE_TO_CHANGE and saved.get(name) != value:
            die(f"{file.parent} was begun with --{name} {saved.get(name)}, not {value!r}")
    if typed.load_in_4bit and not typed.lora_rank:
        die("--load_in_4bit needs --lora_rank: what is in 4 bits cannot be trained")
    if (typed.eval_data or typed.columns) and not typed.data:
        die("--eval_data and --columns need --data")
    config = Config(**vars(typed))
    if look:
        page = Path(__file__).with_name("exercises") / "look.py"
        sys.exit(runpy.run_path(str(page))["look"](globals(), config))
    return config


def load_exercises():
    """{name: function}: the student's, where they are no stubs."""
    loader = Path(__file__).with_name("exercises") / "load.py"
    with blame("--exercise"):
        return runpy.run_path(str(loader))["load_exercises"](BLANKS)


# The columns that a row may have instead; the first one that it has counts.
NAMES = {"instruction": "instruction prompt question query text", "input": "input",
         "output": "output completion response answer messages conversations",
         "chosen": "chosen", "rejected": "rejected"}
ROLES = dict(system="system", user="user", human="user", assistant="assistant", gpt="assistant",
             chatgpt="assistant", bot="assistant", model="assistant")  # another is a row's end


def load_data(config, columns, size=10**6):
    """[training, held-out] rows: held out is --eval_data or, of --data, a twentieth."""
    data = read_data(config.data, columns, size, config.columns)
    if config.eval_data:
        return [data, read_data(config.eval_data, columns, size, config.columns)]
    if len(data) < 2:
        die(f"{config.data} needs at least two rows: some are held out (or say --eval_data)")
    random.Random(0).shuffle(data)
    n = math.ceil(len(data) / 20)
    return [data[n:], data[:n]]


def read_data(name, columns, size, renamed=""):
    """Rows with texts in these columns. Those that do not fit are left out, counted and shown."""
    data, odd, found = [], [], []
    with blame(f"cannot read the data {name!r} with --columns {renamed!r}"):
        usual = {name: column for column, names in NAMES.items() for name in names.split()}
        pairs = [pair.strip().split("=") for pair in renamed.split(",") if pair]
        theirs = {usual[name]: their for name, their in pairs}
        for number, (place, row) in enumerate(read_rows(name)):
            if number == size:
                print(f"{name}: no more than the first {size} rows are read.")
                break
            try:
                if isinstance(row, dict):
                    found, view = list(row), {x: row.get(theirs[x]) or "" for x in theirs}
                    gone = (NAMES.keys() & theirs.values()) - theirs.keys()  # has another name now
                    row = {x: row[x] for x in found if x not in gone} | view
                data.append(row | standard_row(row, columns))
            except (ValueError, TypeError, AttributeError) as error:
                odd.append(f"{place}: {error}")
    if not data:
        die(f"{name} has no row with texts for {' and '.join(columns)} ({''.join(odd[:1])}). Its "
            f"columns are {found}: see --columns. Understood are, in place of {NAMES}")
    unread = [x for x in found if x not in usual and x not in theirs.values()]
    if unread:
        print(f"{name}: prompts and answers hold nothing of the columns {', '.join(unread)}.")
    if odd:
        print(f"{name}: {len(odd)} of {len(odd) + len(data)} rows are left out, as {odd[0]}")
    marked = sum("### Response:" in f"{row['instruction']} {row.get('input')}" for row in data)
    if marked:
        print(f"{name}: {marked} of {len(data)} rows hold the prompt's own marker, ### Response:")
    return data


def read_rows(name):
    """(its place, row) of JSON, JSON lines, CSV, text (.gz too); Parquet, a folder, the hub."""
    import csv, gzip
    path, suffix = Path(name), Path(name.removesuffix(".gz")).suffix.lower()
    if not path.is_file() or suffix == ".parquet":
        import datasets  # only here, because it takes its time
        where, subset, split = (name, "", "") if path.exists() else f"{name}::".split(":")[:3]
        source = {"path": "parquet", "data_files": name} if path.is_file() else {
            "path": where, "name": subset or None}
        rows = datasets.load_dataset(**source, split=split or "train")
        yield from ((f"row {i}", row) for i, row in enumerate(rows, start=1))
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        if suffix in (".csv", ".tsv"):
            comma = "," if suffix == ".csv" else "\t"
            csv.field_size_limit(10**9)
            reader = csv.DictReader(file, delimiter=comma, strict=True)
            for row in reader:
                line = f"line {reader.line_num}"
                yield line, ValueError("more cells than columns") if None in row else row
        whole = file.read()
    if suffix != ".txt" and whole.lstrip().startswith("["):
        yield from ((f"row {i}", row) for i, row in enumerate(json.loads(whole), start=1))
        return
    for line, text in enumerate(whole.split("\n"), start=1):
        try:
            if text.strip():
                row = {"text": text.strip()} if suffix == ".txt" else json.loads(text)
                yield f"line {line}", row
        except ValueError as error:
            yield f"line {line}", error


def standard_row(row, columns):
    """A row as Alpaca, TRL, ShareGPT or HH-RLHF have it -> with texts in `columns`. Of messages the
    last one is the text, if it answers; those before it are the prompt: its last turn, earlier."""
    if not isinstance(row, dict):
        raise ValueError(f"no row with columns: {row!r:.80}")
    texts = {column: row[name] for column, names in NAMES.items()
             for name in reversed(names.split()) if row.get(name) is not None}
    has_prompt = "instruction" in texts
    for column in "output", "chosen", "rejected":
        turns = texts.get(column)
        if column != "output" and not has_prompt and isinstance(turns, str):  # a whole dialogue
            turns = [{"role": who, "content": text.strip()} for who, text in re.findall(
                r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", turns, re.DOTALL)]
        if turns and isinstance(turns, list):
            turns = [*map(as_turn, turns)]
            answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
            begins = turns and turns[0]["role"] != "assistant"  # the prompt is here, and all of it
            if column == "rejected" and begins and texts.get("instruction") != turns:
                raise ValueError("the prompts of 'chosen' and 'rejected' differ")
            texts |= {column: answer} | ({"instruction": turns} if begins else {})
    if texts.get("instruction") and isinstance(texts["instruction"], list):
        *texts["earlier"], last = map(as_turn, texts["instruction"])
        texts["instruction"] = last["content"]
    for column in columns + ["input"] * ("input" in texts):
        text, as_table = texts.get(column), r"""\[\{['"](role|content|from|value)['"]:"""
        if not isinstance(text, str) or not text.strip() and column != "input" or re.match(
                as_table, text):  # messages that somebody has written into a cell
            raise ValueError(f"the column {column!r} is missing, empty or holds no text")
        texts[column].encode()  # half a character raises a ValueError
    return texts


def as_turn(turn):
    """A message of TRL's or ShareGPT's kind -> its role and its text."""
    role = str(turn.get("role") or turn.get("from")).lower()
    text = turn.get("content", turn.get("value"))
    if role not in ROLES or not isinstance(text, str):
        raise ValueError(f"a turn of {role!r} with {text!r:.40} is none of a user or an assistant")
    return {"role": ROLES[role], "content": text}


def make_missing(folder, lesson, duration, config):
    """Where an input is missing, the lesson that makes it runs first, as a process of its own."""
    if (folder / "model").is_dir():
        return
    if config.data or int(os.environ.get("WORLD_SIZE", 1)) > 1:  # what data? which process?
        die(f"{folder} is missing: run python {lesson} first (with the same --model, if any)")
    print(f"{folder} is missing: {lesson} makes it now, in about {duration}.", flush=True)
    begun = (folder / "config.json").is_file()
    command = [sys.executable, Path(__file__).with_name(lesson), f"--runs_dir={config.runs_dir}",
               f"--device={config.device}", "--resume" if begun else f"--seed={config.seed}"]
    # Who is told what was TYPED is in a chain: its input ends when the chain's first lesson dies.
    child = subprocess.Popen(command + [f"--model={config.model}"] * bool(config.model),
                             env={"TYPED": shlex.join(sys.argv)} | os.environ,
                             stdin=None if "TYPED" in os.environ else subprocess.PIPE)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child too, and it saves
    if child.wait():
        sys.exit(child.returncode)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def encode_prompts(data, tokenizer, config):
    """The token ids of every row's prompt: in the tokenizer's chat template where it has one, else
    in Alpaca's layout, or as --prompt_format says. A row may have earlier turns. Rows that the
    template refuses are taken out of `data`."""
    if config.prompt_format == "auto" and tokenizer.chat_template:
        print("Prompts are written in the tokenizer's chat template (see --prompt_format).")
        config.prompt_format = "chat"
    if config.prompt_format in ("chat", "think"):
        prompts, kept, refused = [], [], ""
        for row in data:
            text = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
            turns = [*row.get("earlier", []), {"role": "user", "content": text}]
            try:
                prompts.append(tokenizer.apply_chat_template(
                    turns, enable_thinking=config.prompt_format == "think", return_dict=False,
                    add_generation_prompt=True, tokenizer_kwargs={"split_special_tokens": False}))
                kept.append(row)
            except Exception as error:  # whatever a template may raise
                refused = refused or f"{error}, of {turns!r:.150}"
        if refused:
            print(f"{len(data) - len(kept)} of {len(data)} prompts are left out: the chat template "
                  f"refuses them, as {refused}")
        data[:] = kept
        return prompts or die(f"--prompt_format chat: the template refuses all prompts: {refused}")
    tokenizer.chat_template = None  # the model will not have learned it
    layout = format_prompt
    if config.prompt_format == "plain":
        layout = lambda *texts: "\n\n".join(filter(None, texts))
    prompts = tokenizer([layout("\n\n".join([
        *(turn["content"] for turn in row.get("earlier", [])), row["instruction"]]),
        row.get("input") or "") for row in data])["input_ids"]
    ends = [tokenizer.eos_token_id]  # some tokenizers add it to every text
    return [ids[:-1] if ids[-1:] == ends else ids for ids in prompts]


def from_pretrained(kind, name, config, **options):
    """(model, tokenizer, end tokens) from the hub, a folder or a run, with a pad token that is no
    end token. An adapter that it comes with is merged into its weights."""
    path = Path(name, "model") if Path(name, "model").is_dir() else name
    if Path(config.runs_dir) in Path(name).parents and not Path(name).exists():
        die(f"there is no run {name}: run the lesson that makes it first")
    with blame(f"cannot load the tokenizer of {str(name)!r} (tokenizer.json or the like)"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        tokenizer.split_special_tokens = True  # what looks like an end token in a text is text
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with blame(f"cannot load the model {str(name)!r} (config.json, *.safetensors)"):
        adapter = transformers.utils.find_adapter_config_file(str(path))
        base = json.loads(Path(adapter).read_text())["base_model_name_or_path"] if adapter else path
        if adapter and config.load_in_4bit:
            raise ValueError("4 bits cannot take up an adapter: merge it into the weights first")
        model = load_weights(kind, base, config, options)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            torch.manual_seed(config.seed)  # the new rows are the same in every lesson
            model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
        if adapter:
            import peft
            settings = peft.PeftConfig.from_pretrained(path)
            settings.task_type = None  # a policy's adapter may become a reward model's weights
            model = peft.PeftModel.from_pretrained(model, path, config=settings).merge_and_unload()
            model.requires_grad_(True).was_adapter = True
    model.config.pad_token_id = tokenizer.pad_token_id
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval(), tokenizer, end_tokens(model, tokenizer, config, name)


def load_weights(kind, base, config, options):
    """A model that is whole and finite: in float32, because bfloat16 would lose small steps, and
    without dropout, because a policy has to agree with itself. Under an adapter the weights are in
    --dtype or, in large matrices, in 4 bits (QLoRA: Dettmers et al. 2023)."""
    options["trust_remote_code"] = config.trust_remote_code
    settings = AutoConfig.from_pretrained(base, **options).to_dict()
    if "MaskedLM" in str(settings["architectures"]):
        die(f"{base} fills gaps and sees what comes after them: it cannot write")
    options |= {key: type(x)(0) for key, x in settings.items() if x and any(
        part in key for part in ("drop", "jitter", "output_router_logits"))}
    if settings.get("activation_function") == "gelu_new":  # GPT-2's, and the same function:
        options["activation_function"] = "gelu_pytorch_tanh"  # it is faster
    if config.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16" if config.bf16 else config.dtype)
    model, report = kind.from_pretrained(
        base, dtype=config.dtype if config.lora_rank else "float32", output_loading_info=True,
        attn_implementation=config.attn_implementation, ignore_mismatched_sizes=True, **options)
    new = {"score.weight"} if "num_labels" in options else set()  # lesson 2's head
    bad = [*report["missing_keys"] - new, *report["mismatched_keys"]]
    for weight in bad or [x for x, w in model.named_parameters() if not w.isfinite().all()]:
        raise ValueError(f"{weight} is missing, has another shape, or is not finite")
    for layer in model.modules() if config.load_in_4bit else []:
        layer.support_avx512bf16_for_cpu = False  # what is fast there has no gradient
    return model


def end_tokens(model, tokenizer, config, name):
    """The ids with which an answer ends. It has to fit into the model's positions, too."""
    positions = getattr(model.config, "max_position_embeddings", 10**6)
    config.max_new_tokens = config.max_new_tokens or min(256, positions // 3)
    config.max_prompt_length = config.max_prompt_length or min(
        512, positions - config.max_new_tokens)
    length = config.max_prompt_length + config.max_new_tokens
    if length > positions:
        die(f"--max_prompt_length + --max_new_tokens is {length}; {name} has {positions} positions")
    ends = (getattr(model, "generation_config", None) or model.config).eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if tokenizer.eos_token is None and not ends:
        die(f"the model {str(name)!r} has no end token: its answers would never stop")
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.eos_token_id not in ends:  # labels end with it, so generation has to stop there
        print(f"{name}: an answer ends with {tokenizer.eos_token!r}, as the tokenizer says.")
        ends = [tokenizer.eos_token_id, *ends]
    return ends


def add_adapter(model, config, task):
    """LoRA (Hu et al. 2021): every linear layer W becomes W + 32/r B A with A and B of rank r. W is
    frozen, and B is 0 at first. For 32 and the tenfold learning rate see Schulman et al. 2025."""
    if not config.lora_rank:
        return model
    with blame("--lora_rank needs one more package (pip install peft)"):
        import peft
    # What tells one base model from another, for adapters that want to share one.
    total = sum(weight.double().abs().sum().item() for weight in model.base_model.parameters())
    model.config.fingerprint = f"{total:.10g}"
    torch.manual_seed(config.seed)  # whatever was drawn before, the adapter begins the same
    conv1d = any(type(layer).__name__ == "Conv1D" for layer in model.modules())  # GPT-2 stores W.T
    return peft.get_peft_model(model, peft.LoraConfig(
        task_type=task, r=config.lora_rank, lora_alpha=32, target_modules="all-linear",
        fan_in_fan_out=conv1d))


def start(config):
    """Quiet libraries, the seed, and an Accelerator: device, processes, precision, tracker."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    logging.disable(getattr(logging, config.log_level.upper()) - 1)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", module="peft")  # of GPT-2's transposed weights
    warnings.filterwarnings("error", message=".*log_with")  # a tracker that is not installed
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # of downloads
    reach_hub(config.model, config.data, config.eval_data)
    torch.manual_seed(config.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
    tracker = None if config.report_to == "none" else config.report_to
    with blame("cannot start"):
        if {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ):
            raise ValueError("the lessons have data parallelism, but no FSDP and no DeepSpeed")
        accelerator = Accelerator(
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision="bf16" if config.bf16 else "no", step_scheduler_with_optimizer=False,
            log_with=tracker, project_dir=run_folder(config).parent)
        accelerator.gradient_accumulation_steps = 1  # whatever the launcher says: see the losses
        if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
            raise ValueError("the processes do not find each other: try --device cpu")
        accelerator.wait_for_everyone()  # nobody leaves while others are still looking for it
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")
    return accelerator


def reach_hub(*names):
    """Where a name is no path, the hub answers within seconds, or only its cache counts."""
    hub = huggingface_hub.constants
    if hub.HF_HUB_OFFLINE or all(not name or Path(name).exists() for name in names):
        return
    try:
        huggingface_hub.get_session().head(hub.ENDPOINT, timeout=5)
    except Exception as error:
        print(f"{hub.ENDPOINT} does not answer ({error}): what was downloaded before has to do, as "
              "with HF_HUB_OFFLINE=1. HF_ENDPOINT names another hub; without --model and --data "
              "the lessons need none.", file=sys.stderr)
        hub.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"


def run_folder(config, run_name=None):
    """<runs_dir>/<run_name>, with the name of a model other than the tiny one in between."""
    root, model = Path(config.runs_dir).resolve(), Path(config.model)
    is_run = config.model and model.resolve().is_relative_to(root)
    family = model.resolve().relative_to(root).parent if is_run else model.name
    mine = "_mine" * (config.exercise and config.run_name == Config.run_name)
    name = config.run_name + mine + "-eval" * (config.steps == 0)
    return Path(config.runs_dir, family, run_name or name)


def in_characters(values):
    """A curve of at most 60 characters, between its first and its last height."""
    values = torch.tensor(values).nan_to_num()
    means = torch.stack([part.mean() for part in values.tensor_split(min(60, len(values)))])
    heights = (7.99 * (means - means.min()) / (means.max() - means.min() + 1e-9)).int()
    return f"{means[0]:.2f} {''.join('▁▂▃▄▅▆▇█'[height] for height in heights)} {means[-1]:.2f}"


class Run:
    """A run's folder: config.json, metrics.jsonl, checkpoints, curves. An earlier run of the same
    name is kept as <run_name>-1 and so on; with --resume it goes on from its last checkpoint."""

    begun = False  # training has

    def __init__(self, config, accelerator):
        self.config, self.accelerator, self.folder = config, accelerator, run_folder(config)
        self.is_main, self.earlier = accelerator.is_main_process, None
        folder, file, lesson = self.folder, self.folder / "config.json", Path(__file__).name
        if config.resume and (folder / "samples.md").is_file():  # it is written last
            die(f"{folder} is finished: there is nothing to resume")
        if self.is_main:
            with blame(f"{folder} is in use, or cannot be written to"):
                earlier = not config.resume and folder.is_dir() and any(folder.iterdir())
                if earlier:
                    if Path(config.model).resolve() == folder.resolve():
                        die(f"{folder} is --model and would be replaced: take another --run_name")
                    saved = json.loads(file.read_text()) if file.is_file() else {}
                    if "run_name" not in saved or saved.get("lesson", lesson) != lesson:
                        die(f"{folder} is no run of this lesson: take another --run_name")
                self.lock = FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)
                self.lock.acquire(timeout=0)  # the system releases it when this process ends
                if earlier:
                    n = next(n for n in range(1, 10**6) if not Path(f"{folder}-{n}").exists())
                    self.earlier = folder.rename(f"{folder}-{n}")
                folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder / "unfinished", ignore_errors=True)
                if not config.resume:
                    file.write_text(json.dumps({"lesson": lesson, **asdict(config)}, indent=2))
        accelerator.register_save_state_pre_hook(self.leave_out_frozen)
        accelerator.wait_for_everyone()

    def leave_out_frozen(self, models, states, _):
        """What an adapter leaves as it was is in --model, and need not be in a checkpoint."""
        for model, state in zip(models, states) if self.config.lora_rank else []:
            trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
            for name in state.keys() - trained:
                del state[name]

    def checkpoints(self):
        return sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))

    def steps(self, total):
        """The steps still to come, with a bar. Each has a seed of its own, so that a resumed run
        draws what it would have drawn."""
        rows = []
        for checkpoint in reversed(self.checkpoints()):  # the last one that is whole
            try:
                log = (self.folder / "metrics.jsonl").read_text().splitlines()
                steps = range(1, int(checkpoint.name[11:]) + 1)
                rows = [json.loads(line) for line in log[:len(steps)]]
                if [row["step"] for row in rows] != list(steps):
                    raise ValueError("metrics.jsonl lacks steps")
                self.accelerator.load_state(checkpoint, strict=not self.config.lora_rank)
                break
            except Exception as error:
                print(f"{checkpoint} is damaged, or metrics.jsonl: {error!r:.200}", file=sys.stderr)
                if checkpoint == self.checkpoints()[0]:
                    die("no checkpoint is whole: begin again, without --resume")
        self.rows, done, Run.begun = rows, len(rows), True
        if self.earlier and self.config.overwrite:  # not before: much may have gone wrong until now
            shutil.rmtree(self.earlier)
        with self.whole("metrics.jsonl") as log:  # what comes after the checkpoint is done again
            if self.is_main:
                log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.log = open(self.folder / "metrics.jsonl" if self.is_main else os.devnull, "a")
        curves = {"tensorboard": {"purge_step": done + 1}}
        self.accelerator.init_trackers(self.folder.name, init_kwargs=curves)
        signal.signal(signal.SIGINT, self.interrupt)
        name, process = self.config.run_name, self.accelerator.process_index
        self.bar = tqdm(range(done + 1, total + 1), initial=done, total=total, desc=name,
                        disable=not total)
        for step in self.bar:
            torch.manual_seed((self.config.seed * 10**6 + step) * 1000 + process)
            yield step
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(self, *_):
        """Ctrl-C: the step is finished and saved first. A second Ctrl-C stops at once."""
        self.accelerator.set_trigger()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_step(self, step, stats, **shown):
        """Log the step, and save a checkpoint when it is time or when Ctrl-C was pressed."""
        wrong = ", ".join(name for name in stats if not torch.tensor(stats[name]).isfinite())
        if wrong:
            die(f"step {step}: {wrong} is not finite. Begin again with a lower --learning_rate or "
                "without --bf16. Or was it the reward? Once it is mended, --resume goes on from "
                f"{(self.checkpoints() or ['the start'])[-1]}")
        self.bar.set_postfix(shown)
        self.rows.append({"step": step, **stats})
        print(json.dumps(self.rows[-1]), file=self.log, flush=True)
        self.accelerator.log(stats, step)
        interrupted = self.accelerator.check_trigger()  # on any of the processes
        if interrupted or self.config.save_every and step % self.config.save_every == 0:
            with self.whole(f"checkpoint-{step}") as folder:
                self.accelerator.save_state(folder)
            for old in self.checkpoints()[:-2] if self.is_main else []:
                shutil.rmtree(old)
        if interrupted:
            again = os.environ.get("TYPED") or shlex.join(  # a chain goes on by itself
                sys.argv + ["--resume"] * ("--resume" not in sys.argv))
            sys.exit(f"\nInterrupted: step {step} is saved in {self.folder}. To go on: python "
                     f"{again}" if self.is_main else 1)

    @contextmanager
    def whole(self, name):
        """A folder or file to write, which gets its name when it is whole."""
        numbers = sum(x.numel() for model in self.accelerator._models for x in model.parameters())
        with blame(f"cannot save {name} ({numbers * 12e-6:.0f} MB at most; --resume goes on)"):
            yield self.folder / "unfinished"
            self.accelerator.wait_for_everyone()
            if self.is_main:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / "unfinished").replace(self.folder / name)
            self.accelerator.wait_for_everyone()

    def save_model(self, model, tokenizer, **heads):
        """model/ loads with from_pretrained. Of an adapter there is also adapter/, for peft."""
        if self.config.steps == 0:  # there is nothing new
            return
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                die(f"{name} is not finite at the end: begin again with a lower --learning_rate")
        generation = getattr(model, "generation_config_to_save", None)
        with self.whole("model") as folder:
            if not self.is_main:
                return
            if hasattr(model, "merge_and_unload"):
                if not hasattr(model, "was_adapter"):  # else its base is in no folder
                    model.save_pretrained(self.folder / "adapter", selected_adapters=["default"],
                                          save_embedding_layers=False)  # they were not trained
                    tokenizer.save_pretrained(self.folder / "adapter")
                model = self.merged(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            for name, head in heads.items():
                save_file(head.state_dict(), folder / f"{name}.safetensors")
            if generation:
                generation.to_json_file(folder / "generation_config.json")

    def merged(self, model):
        """The model and its adapter as one: 4 bits could not hold the sum, so it is made with the
        weights as they were."""
        if not self.config.load_in_4bit:
            return model.merge_and_unload()
        trained = model.get_base_model()
        whole, *_ = from_pretrained(type(trained), self.folder / "adapter", replace(
            self.config, load_in_4bit=False), num_labels=trained.config.num_labels)
        del trained.config.quantization_config
        whole.config = trained.config
        return whole

    def close(self, curve, before, after, samples, commands):
        """The closing table, one curve in characters, samples: [(title, {label: text})], and what
        to type next."""
        print(f"\n{'':<36}{'before':>10}{'after':>10}")
        for name in before:
            print(f"{name:<36}{before[name]:>10.3f}{after[name]:>10.3f}")
        lessons = self.folder.name.removesuffix("_mine")
        mine = ", your functions" if self.folder.name != lessons else ""
        runs = {curve + mine: self.rows} if self.rows else {}
        log = self.folder.with_name(lessons) / "metrics.jsonl"
        if mine and log.is_file():  # how the lesson's own run went
            runs[f"{curve}, the lesson's"] = list(map(json.loads, log.read_text().splitlines()))
        for name, rows in runs.items():
            print(f"\n{name}: {in_characters([row[curve] for row in rows])}")
        text = ""
        for title, texts in samples:
            text += f"\n**{title}**\n\n" + "".join(f"- {name}: {texts[name]!r}\n" for name in texts)
        print(text.replace("**", ""))
        self.accelerator.log({"samples": text}, len(self.rows))
        if self.is_main:
            numbers = json.dumps({"before": before, "after": after}, indent=2)
            (self.folder / "eval.json").write_text(numbers)
            (self.folder / "samples.md").write_text(text, encoding="utf-8")
            for checkpoint in self.checkpoints():
                shutil.rmtree(checkpoint)
        if self.config.steps == 0:
            print(f"Nothing was trained. Written to {self.folder}: eval.json, samples.md.")
        else:
            print(f"Written to {self.folder}: model/, metrics.jsonl, eval.json, samples.md.")
        if self.config.prompt_format in ("think", "alpaca", "plain"):
            commands = commands.replace("--model", f"--prompt_format {self.config.prompt_format} "
                                                   "--model")
        if self.config.steps != 0 and "TYPED" not in os.environ:  # a chain goes on by itself
            tags = "%7C".join(name for name in {curve: 0, **before} if name in self.rows[-1])
            curves = (f"Curves: tensorboard --logdir {self.config.runs_dir} and then "
                      f"http://localhost:6006/?tagFilter={tags}#timeseries\n")
            print("Look inside, token by token: the same command with --look\n"
                  + curves * (self.config.report_to == "tensorboard") + f"Next: {commands}")
        for tracker in self.accelerator.trackers:
            tracker.finish()


if __name__ == "__main__":
    run_lesson()
