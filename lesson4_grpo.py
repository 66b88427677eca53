"""Lesson 4: GRPO. The answers get right: a reward that can be checked, and no value function.

What you will see. The fine-tuned model adds two numbers right in two of three samples: it is
unsure, and it learned from people who sometimes slip. Group relative policy optimisation (GRPO)
samples a group of answers to every sum and makes those likelier that did better than their group.
One sample comes most of the way to what the best of eight was before: the model could do it
already, and now it does it reliably.

The formulas
    advantage    A_i = (r_i - mean(r)) / (std(r) + eps) over the G answers to the same prompt
    token loss   max(-A ratio_t, -A clip(ratio_t, 1 - low, 1 + high)) + beta * k3_t,
                 k3 = exp(d) - d - 1 with d = log p_ref - log p: the KL from the reference
    average      over each answer and then the answers (GRPO), over all tokens (DAPO), or a
                 constant (Dr. GRPO)
    pass@k       1 - C(n - c, k) / C(n, k): is one of k samples right? (c of n were)

How to run it
    python lesson4_grpo.py                         offline; runs lesson 1 first where it is missing
    python lesson4_grpo.py --reward sentiment      the word count of lesson 3, without a value head
    python lesson4_grpo.py --reward runs/reward    lesson 2's reward model
    python lesson4_grpo.py --reward my_rewards.py:f   f(prompts=, responses=, ...) -> list of floats
    Dr. GRPO: --average constant --scale none      DAPO: --average token --kl_coef 0

It writes runs/grpo. Before the first update the loss is 0 and its gradient is not: each group's
advantages add up to 0 (the log shows a mean over the epochs). Watch the reward instead.

Then close this file and write the maths yourself, in exercises/ex4_grpo.py: "pytest -k ex4" checks
it, and "python lesson4_grpo.py --exercise" trains with it.
"""

import copy
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Optional

import datasets
import torch
import transformers
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import GenerationConfig, HfArgumentParser, get_linear_schedule_with_warmup
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases):
    return HfArg(default=default, help=help, aliases=list(aliases))


@dataclass
class Config:
    model: str = flag("", "hub name or folder of the policy (default: the tiny world's runs/sft)")
    reward: str = flag("sum", "sum, sentiment, a run of lesson 2, or FILE.py:FUNCTION")
    data: str = flag("", "JSON file, folder or hub name with the column instruction (and input)")
    run_name: str = flag("grpo", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    steps: Optional[int] = flag(None, "GRPO steps (90 for sums, else 100)")
    num_samples: Optional[int] = flag(None, "responses a step (512 for sums, else 64)")
    group_size: int = flag(8, "responses to the same prompt, G")
    ppo_epochs: int = flag(3, "times that a step's samples are learned from")
    batch_size: Optional[int] = flag(None, "samples an optimiser step (512 for sums, else 32)")
    micro_batch_size: int = flag(512, "samples a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "4e-4 for sums, else 1e-4; 1e-6 with --model")
    kl_coef: Optional[float] = flag(None, "beta of the KL term (0.01 for sums, else 0.4; 0: no "
                                    "reference model)", "--kl_beta", "--kl-beta")
    clip_low: float = flag(0.2, "no gain from a ratio below 1 - this, where A < 0")
    clip_high: float = flag(0.28, "no gain from a ratio above 1 + this, where A > 0")
    scale: Literal["std", "none"] = flag("std", "divide a group's advantages by its std, or not")
    average: Literal["sequence", "token", "constant"] = flag("sequence", "how the loss is averaged")
    drop_uninformative: bool = flag(True, "leave out groups whose rewards are all the same")
    temperature: float = flag(1.0, "of the sampling, and of every log-probability")
    missing_eos_penalty: Optional[float] = flag(None, "a cut answer pays it (0 for sums, else 1)")
    pass_k: int = flag(8, "the k of pass@k, out of 2k samples")
    eval_every: int = flag(40, "steps between two evaluations (of sums: on held-out ones)")
    max_prompt_length: int = flag(64, "tokens; longer prompts are left out")
    max_new_tokens: Optional[int] = flag(None, "tokens of a response (4 for sums, else 40)")
    save_every: int = flag(50, "steps between checkpoints (0: only on Ctrl-C)")
    seed: int = flag(0, "a CPU run with the same seed repeats exactly")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to compute")
    bf16: bool = flag(False, "bfloat16 autocast; the weights stay in float32")
    resume: bool = flag(False, "go on with an interrupted run")
    exercise: bool = flag(False, "train with your own functions, from exercises/")
    overwrite: bool = flag(False, "replace the earlier run instead of keeping it as <run_name>-1")
    config: str = flag("", "JSON file of settings; what is typed wins")
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        names = "steps num_samples batch_size max_new_tokens missing_eos_penalty kl_coef".split()
        of_sums, of_others = (90, 512, 512, 4, 0.0, 0.01), (100, 64, 32, 40, 1.0, 0.4)
        for name, value in zip(names, of_sums if self.reward == "sum" else of_others):
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.learning_rate is None:
            self.learning_rate = 1e-6 if self.model else 4e-4 if self.reward == "sum" else 1e-4


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex3_ppo": "response_logprobs response_mask kl_penalty masked_entropy",
          "ex4_grpo": "sum_reward group_advantages grpo_token_loss aggregate_loss "
                      "informative_groups pass_at_k"}


def response_logprobs(logits, response, temperature=1.0):
    """log p(token | what came before) of a response's T tokens, from the logits of the last T+1
    positions: a position predicts the token after it, so the very last one is not needed."""
    logprobs = (logits[:, :-1].float() / temperature).log_softmax(dim=-1)  # (B, T, V)
    return logprobs.gather(-1, response.unsqueeze(-1)).squeeze(-1)  # (B, T)


def response_mask(response, eos_ids):
    """1 on the tokens up to and including the first end token, 0 on what follows it."""
    is_end = torch.isin(response, torch.tensor(eos_ids, device=response.device)).long()
    ends_before = is_end.cumsum(dim=1) - is_end
    return (ends_before == 0).float()  # (B, T)


def kl_penalty(logprobs, ref_logprobs, estimator="k1"):
    """Estimates of KL(policy || reference) at tokens that the policy sampled (Schulman 2020,
    "Approximating KL divergence"): k1 and k3 are unbiased, k2 and k3 never negative."""
    log_ratio = ref_logprobs - logprobs
    return {"k1": -log_ratio,
            "k2": 0.5 * log_ratio.square(),
            "k3": torch.expm1(log_ratio) - log_ratio}[estimator]  # (B, T)


def masked_entropy(logits, mask, count=None):
    """The mean over real tokens of H = -sum_v p_v log p_v, in nats."""
    count = mask.sum().clamp(min=1) if count is None else count
    logprobs = logits.float().log_softmax(dim=-1)  # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)  # (B, T)
    return (entropy * mask).sum() / count


def sum_reward(prompt: str, response: str) -> float:
    """1.0 for the right sum in plain digits, else 0.0; white space and a final full stop do not
    matter."""
    question = re.search(r"(\d+) \+ (\d+)", prompt)
    answer = response.strip().removesuffix(".").strip()
    return float(question is not None and answer == str(sum(map(int, question.groups()))))


def group_advantages(rewards, group_size, scale="std", eps=1e-4):
    """How much better than its group a response did (Shao et al. 2024, section 4.1.2): its reward
    minus the group's mean and, with scale "std", over the group's (unbiased) standard deviation;
    Dr. GRPO (Liu et al. 2025) leaves that out. Exactly 0 where a group has no spread."""
    groups = rewards.view(-1, group_size)  # (N, G)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "std" and group_size > 1:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    has_spread = groups.amax(dim=1) > groups.amin(dim=1)  # rounding alone would leave 1e-5 or so
    return torch.where(has_spread.unsqueeze(1), advantages, 0.0).flatten()  # (N*G,)


def informative_groups(rewards, group_size):
    """Which groups have something to learn from: not all rewards are equal (DAPO's filter, Yu et
    al. 2025, section 3.2)."""
    groups = rewards.view(-1, group_size)
    return groups.amax(dim=1) > groups.amin(dim=1)  # (N,) bool


def grpo_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low, clip_high):
    """PPO's clipped loss with one advantage a response, plus kl_coef times the k3 estimate of the
    KL from the reference (Shao et al. 2024, eq. 3 and 4). DAPO raises the upper bound alone."""
    ratio = torch.exp(logprobs - old_logprobs)  # (B, T)
    advantages = advantages.unsqueeze(1)  # (B, 1): the same for all tokens of a response
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.max(-advantages * ratio, -advantages * clipped)
    if kl_coef:
        log_ratio = ref_logprobs - logprobs
        loss = loss + kl_coef * (torch.expm1(log_ratio) - log_ratio)  # k3
    return loss  # (B, T)


def aggregate_loss(token_loss, mask, average, max_length=None, count=None):
    """One number from (B, T) losses. "sequence": a mean over each response, then over responses
    (GRPO). "token": over all tokens, so that long responses weigh more (DAPO). "constant": the sum
    over rows x max_length, so that no weight depends on a length (Dr. GRPO)."""
    token_loss = torch.where(mask.bool(), token_loss, 0.0)
    if average == "sequence":
        rows = token_loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (B,)
        return rows.sum() / (len(rows) if count is None else count)
    if average == "token":
        return token_loss.sum() / (mask.sum().clamp(min=1) if count is None else count)
    if average == "constant":
        return token_loss.sum() / (len(mask) * max_length if count is None else count)
    raise ValueError(f"no average is called {average!r}: sequence, token or constant")


def pass_at_k(num_samples, num_correct, k):
    """The chance that at least one of k samples is right, estimated without bias from num_samples
    of which num_correct were (Chen et al. 2021, eq. 1)."""
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


# ---- Data: sums, reviews, or prompts of your own ------------------------------------------------

KINDS = ("pirate space robot ghost family horse school ocean "
         "winter music cooking football dragon train circus spy").split()
GOOD = ("wonderful lovely charming gripping brilliant moving "
        "funny superb clever delightful warm fresh").split()


def sums(held_out):
    """[(a, b)], both below 50. A pair is held out in both orders: who has learned 15 + 27 would
    know 27 + 15."""
    pairs = [(a, b) for a in range(50) for b in range(a, 50)]
    chosen = set(random.Random(0).sample(pairs, 150))
    return [(a, b) for a in range(50) for b in range(50)
            if ((min(a, b), max(a, b)) in chosen) == held_out]


def sentiment_reward(review):
    """A reward that needs no model: how many good words there are, at most 3. (Without a limit a
    policy soon writes nothing else.)"""
    return float(min(3, sum(word in GOOD for word in re.findall(r"\w+", review))))


def review_instruction(kind):
    return f"Write a short review of the {kind} film."


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


def load_grpo_prompts(config, tokenizer):
    """[data, held_out]: Datasets with instruction and prompt_ids. Only sums are held out."""
    if config.data:
        parts = [read_data(config.data, ["instruction"], 10**6)] * 2
    else:
        texts = [list(map(review_instruction, KINDS))] * 2
        if config.reward == "sum":
            texts = [[f"What is {a} + {b}?" for a, b in sums(part)] for part in (False, True)]
        parts = [datasets.Dataset.from_dict({"instruction": part}) for part in texts]
    for i, data in enumerate(parts):
        data = data.map(lambda row: {"prompt_ids": tokenizer.encode(
            format_prompt(row["instruction"], row.get("input") or ""), add_special_tokens=False)})
        parts[i] = data.filter(lambda row: len(row["prompt_ids"]) <= config.max_prompt_length)
        if not len(parts[i]):
            die("every prompt is longer than --max_prompt_length: raise it")
    return parts


# ---- Models and rewards -------------------------------------------------------------------------


def load_causal_lm(name):
    """(model, tokenizer) from the hub, a folder, or a run of this course; weights in float32, a
    pad token that is no end token, and sampling without a hub's hidden filters."""
    path = Path(name, "model") if Path(name, "model").is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        die(f"cannot load the model {str(name)!r}: {str(error).splitlines()[0]}")
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = ends if isinstance(ends, list) else [ends]
    if ends == [None]:
        die(f"the model {str(name)!r} has no end token: its answers would never stop")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.pad_token_id = tokenizer.pad_token_id
    # `generate` takes from here whatever its caller leaves open: no top_p or penalty may stay.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model.eval(), tokenizer  # eval(): no dropout, and none in training either


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, temperature=1.0):
    """Prompts (lists of ids) -> prompt ids and mask (B, P), padded on the left, and the sampled
    response (B, T). Temperature 0 takes the likeliest token."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    how = {"temperature": temperature} if temperature else {"do_sample": False}
    both = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
    return ids, mask, both[:, ids.shape[1]:]


def response_output(lm, ids, attention_mask, length, **options):
    """The model's output with the logits of the last length + 1 positions. With padding on the
    left, a token's position is the number of real tokens before it, not its column."""
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return lm(ids, attention_mask=attention_mask, position_ids=position_ids,
              logits_to_keep=length + 1, use_cache=False, **options)


def load_grpo_reward(config, tokenizer, device):
    """A function (ids, attention_mask, texts, rows) -> rewards (B,); rows is a dictionary of lists,
    the data set's columns."""
    if config.reward == "sum":
        function = lambda prompts, responses, **columns: list(map(sum_reward, prompts, responses))
    elif ".py:" not in config.reward:
        score = load_score(config, tokenizer, device)
        return lambda ids, mask, texts, rows: score(ids, mask, texts)
    else:
        file, name = config.reward.rsplit(":", 1)
        found = runpy.run_path(file) if Path(file).is_file() else {}
        function = found.get(name) or die(
            f"--reward {config.reward}: there is no file {file}, or no function {name} in it")

    def reward(ids, mask, texts, rows):
        columns = {c: rows[c] for c in rows.keys() - {"prompts", "responses", "prompt_ids"}}
        rewards = function(prompts=rows["instruction"], responses=texts, **columns)
        if rewards is None or len(rewards) != len(texts) or not all(map(math.isfinite, rewards)):
            die(f"{config.reward} returned {rewards!r:.60}, not {len(texts)} finite numbers")
        return torch.tensor(rewards, dtype=torch.float32, device=device)

    return reward


def load_score(config, tokenizer, device):
    """A function (ids, attention_mask, texts) -> scores (B,)."""
    if config.reward == "sentiment":
        return lambda ids, mask, texts: torch.tensor(list(map(sentiment_reward, texts))).to(device)
    path = Path(config.reward, "model") if Path(config.reward).is_dir() else config.reward
    try:
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
        vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
        # Lesson 2 measured these: a score of 1 is one standard deviation above the average.
        mean, std = model.config.score_mean, model.config.score_std
    except (OSError, ValueError, AttributeError) as error:
        die(f"{config.reward!r} is no reward model of lesson 2: {str(error).splitlines()[0]}")
    if vocabulary != tokenizer.get_vocab():
        die(f"{config.reward} and the policy have different tokenizers: train a reward model that "
            "starts from the policy's model (lesson2_reward.py --model ...)")
    model.to(device).eval()

    def score(ids, attention_mask, texts):
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        raw = model(ids, attention_mask=attention_mask, position_ids=position_ids).logits[:, 0]
        return (raw.float() - mean) / std

    return score


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


@dataclass
class Rollout:
    """What a step sampled: a row a response, B rows of T tokens, the G answers to a prompt in a
    row."""

    ids: torch.Tensor  # (B, P+T) prompt, padded on the left, and response
    attention_mask: torch.Tensor  # (B, P+T)
    response: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T) 1 up to and including the end token
    logprobs: torch.Tensor  # (B, T) by the policy that sampled
    ref_logprobs: torch.Tensor  # (B, T)
    rewards: torch.Tensor  # (B,)
    ended: torch.Tensor  # (B,) bool: has an end token
    advantages: torch.Tensor  # (B,)

    def __getitem__(self, rows):
        return Rollout(*(getattr(self, field.name)[rows] for field in fields(self)))


def all_logprobs(lm, ids, attention_mask, response, config):
    """response_logprobs of many rows, in pieces that fit into memory."""
    logprobs = []
    for rows in torch.arange(len(ids)).split(config.micro_batch_size):
        output = response_output(lm, ids[rows], attention_mask[rows], response.shape[1])
        logprobs.append(response_logprobs(output.logits, response[rows], config.temperature))
    return torch.cat(logprobs)  # (B, T)


@torch.no_grad()
def sample_groups(policy, reference, reward, tokenizer, data, rows, config):
    """G answers to the prompt of each row. A group is a row, not a text: equal prompts in two rows
    are two groups."""
    batch = data[[row for row in rows for _ in range(config.group_size)]]
    ids, prompt_mask, response = generate(
        policy, tokenizer, batch["prompt_ids"], config.max_new_tokens, config.temperature)
    ends = policy.generation_config.eos_token_id
    mask = response_mask(response, ends)
    ended = torch.isin(response, torch.tensor(ends, device=ids.device)).any(dim=1)
    ids = torch.cat([ids, response], dim=1)
    attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
    # `* mask`: what follows the end token is noise, and 0 times the exp of a large noise is not 0.
    logprobs = all_logprobs(policy, ids, attention_mask, response, config) * mask
    ref_logprobs = logprobs  # where there is no reference, and no KL from it is added or shown
    if reference:
        ref_logprobs = all_logprobs(reference, ids, attention_mask, response, config) * mask
    texts = tokenizer.batch_decode(response, skip_special_tokens=True)
    rewards = reward(ids, attention_mask, texts, batch) - config.missing_eos_penalty * (~ended)
    advantages = group_advantages(rewards, config.group_size, config.scale)
    return Rollout(ids, attention_mask, response, mask, logprobs, ref_logprobs, rewards, ended,
                   advantages)


def grpo_loss(policy, batch, counts, config):
    """The loss of some rows and its parts, each divided by what the whole minibatch has of it."""
    length = batch.response.shape[1]
    logits = response_output(policy, batch.ids, batch.attention_mask, length).logits
    logprobs = response_logprobs(logits, batch.response, config.temperature) * batch.mask
    token_loss = grpo_token_loss(logprobs, batch.logprobs, batch.ref_logprobs, batch.advantages,
                                 config.kl_coef, config.clip_low, config.clip_high)
    loss = aggregate_loss(token_loss, batch.mask, config.average, config.max_new_tokens,
                          counts[config.average])
    with torch.no_grad():
        ratio, up = torch.exp(logprobs - batch.logprobs), batch.advantages.unsqueeze(1) > 0
        clipped = torch.where(up, ratio > 1 + config.clip_high, ratio < 1 - config.clip_low)
        parts = {"clip/fraction": clipped & (batch.advantages.unsqueeze(1) != 0),
                 "kl/approx": kl_penalty(batch.logprobs, logprobs, "k3"),
                 "kl/ref": kl_penalty(logprobs, batch.ref_logprobs, "k3")}
        parts = {name: (x * batch.mask).sum() / counts["token"] for name, x in parts.items()}
        entropy = masked_entropy(logits[:, :-1] / config.temperature, batch.mask, counts["token"])
    return loss, {"loss/grpo": loss.detach(), "entropy/avg": entropy, **parts}


def grpo_update(policy, optimizer, rollout, config, accelerator):
    """Several epochs of minibatches on the kept groups -> stats, averaged over the minibatches."""
    history, names = [], ["loss/grpo", "entropy/avg", "clip/fraction", "kl/approx", "kl/ref"]
    for _ in range(config.ppo_epochs):
        order = torch.randperm(len(rollout.ids))
        for rows in order.tensor_split(config.num_samples // config.batch_size):
            # All pieces, on all processes, are divided by the whole minibatch's counts.
            size = torch.stack([torch.tensor(len(rows)).to(rollout.mask), rollout.mask[rows].sum()])
            num_rows, num_tokens = accelerator.reduce(size, reduction="sum").clamp(min=1)
            counts = {"sequence": num_rows, "token": num_tokens,
                      "constant": num_rows * config.max_new_tokens}
            totals = {name: torch.zeros((), device=accelerator.device) for name in names}
            for piece in filter(len, rows.split(config.micro_batch_size)):  # rows may be none
                with accelerator.autocast():
                    loss, parts = grpo_loss(policy, rollout[piece], counts, config)
                loss.backward()
                for name, part in parts.items():
                    totals[name] += part
            add_up_gradients(policy, accelerator)
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)  # tames odd batches
            optimizer.step()
            optimizer.zero_grad()
            totals = accelerator.reduce(totals, reduction="sum") | {"grad_norm": norm}
            history.append({name: total.item() for name, total in totals.items()})
    shown = [name for name in history[0] if config.kl_coef or name != "kl/ref"]
    return {name: sum(stats[name] for stats in history) / len(history) for name in shown}


def grpo_step(policy, reference, reward, tokenizer, data, rows, optimizer, config, accelerator):
    """One iteration of GRPO -> stats (a dictionary of numbers)."""
    # 1. Rollout: G answers a prompt, their rewards, and how they compare within their group.
    with accelerator.autocast():
        rollout = sample_groups(policy, reference, reward, tokenizer, data, rows, config)
    useful = informative_groups(rollout.rewards, config.group_size)
    means = {"reward/avg": rollout.rewards, "advantage/mean": rollout.advantages,
             "reward/std": rollout.rewards.view(-1, config.group_size).std(dim=1),
             "group/zero_std": ~useful, "response/truncated": ~rollout.ended,
             "response/length": rollout.mask.sum(dim=1)}
    stats = {name: accelerator.gather(x.float()).mean().item() for name, x in means.items()}
    # 2. Groups without spread have advantage 0: nothing but the KL term would act on them.
    if config.drop_uninformative and 0 < stats["group/zero_std"] < 1:
        rollout = rollout[useful.repeat_interleave(config.group_size)]
    # 3. Learning.
    return {**stats, **grpo_update(policy, optimizer, rollout, config, accelerator)}


@torch.no_grad()
def evaluate(policy, reward, tokenizer, data, config):
    """-> numbers, and one sampled text a prompt. For sums: accuracy greedy, sampled, and pass@k."""
    batch, n, results = data[:300], 2 * config.pass_k, []
    torch.manual_seed(config.seed)
    for temperature in [0.0] + [config.temperature] * n:  # one at a time: n at once need memory
        ids, prompt_mask, response = generate(
            policy, tokenizer, batch["prompt_ids"], config.max_new_tokens, temperature)
        mask = response_mask(response, policy.generation_config.eos_token_id).long()
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        results.append(reward(torch.cat([ids, response], dim=1),
                              torch.cat([prompt_mask, mask], dim=1), texts, batch))
    greedy, sampled = results[0].mean().item(), torch.stack(results[1:]).mean().item()
    if config.reward != "sum":
        return {"reward/greedy": greedy, "reward/sampled": sampled}, texts
    passed = [pass_at_k(n, int(correct), config.pass_k) for correct in sum(results[1:])]
    return {"accuracy/greedy": greedy, "accuracy/sampled": sampled,
            "accuracy/pass@k": sum(passed) / len(passed)}, texts


def train_grpo(policy, reference, reward, tokenizer, data, held_out, folder, config, accelerator):
    """Returns the finished Run."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, config.steps)
    run = Run(folder, config, accelerator, policy=policy, optimizer=optimizer, schedule=schedule)
    for step in run.steps(config.steps):
        dice = random.Random(f"{config.seed} {step}")
        rows = dice.choices(range(len(data)), k=config.num_samples // config.group_size)
        mine = rows[accelerator.process_index::accelerator.num_processes]
        stats = grpo_step(
            policy, reference, reward, tokenizer, data, mine, optimizer, config, accelerator)
        schedule.step()
        if step % config.eval_every == 0 and step < config.steps:
            stats |= evaluate(policy, reward, tokenizer, held_out, config)[0]
        run.end_step(step, stats, reward=stats["reward/avg"], kl=stats.get("kl/ref", "unknown"),
                     same=f"{stats['group/zero_std']:.0%}")
    return run


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    globals().update(load_exercises() if config.exercise else {})
    if not config.temperature or config.group_size < 2:
        die("--temperature must be above 0 and --group_size at least 2: answers to the same prompt "
            "are compared")
    a_group_each = config.group_size * accelerator.num_processes
    if config.num_samples % a_group_each or config.num_samples % config.batch_size:
        die(f"--num_samples {config.num_samples} must be a multiple of --batch_size, and of "
            f"{a_group_each}: --group_size {config.group_size} times the number of processes")
    source = Path(config.reward.rsplit(":", 1)[0] if ".py:" in config.reward else config.reward)
    if not (config.model or config.reward in ("sum", "sentiment") or source.exists()
            or source == run_folder(config, "reward")):
        die(f"--reward {config.reward}: there is no {source}")
    if not config.model:
        make_missing(run_folder(config, "sft"), "lesson1_sft.py", "a minute", config)
        config.model = str(run_folder(config, "sft"))
    if Path(config.reward) == run_folder(config, "reward"):
        make_missing(Path(config.reward), "lesson2_reward.py", "half a minute", config)
    policy, tokenizer = load_causal_lm(config.model)
    policy.to(accelerator.device)
    reference = copy.deepcopy(policy).requires_grad_(False) if config.kl_coef else None
    data, held_out = load_grpo_prompts(config, tokenizer)
    reward = load_grpo_reward(config, tokenizer, accelerator.device)
    before, texts_before = evaluate(policy, reward, tokenizer, held_out, config)
    folder = open_run(config, accelerator)
    run = train_grpo(
        policy, reference, reward, tokenizer, data, held_out, folder, config, accelerator)
    after, texts_after = evaluate(policy, reward, tokenizer, held_out, config)
    if run.is_main:
        save_model(policy, tokenizer, folder / "model")
        run.close("reward/avg", before, after, [
            (held_out[i]["instruction"], {"before": texts_before[i], "after": texts_after[i]})
            for i in range(0, len(texts_before), len(texts_before) // 6 or 1)])
        if config.reward == "sum":
            gap = before["accuracy/pass@k"] - before["accuracy/sampled"]
            way = (after["accuracy/sampled"] - before["accuracy/sampled"]) / max(gap, 1e-9)
            print(f"One sample is now right {after['accuracy/sampled']:.0%} of the time. That is "
                  f"{way:.0%} of the way to the first model's pass@{config.pass_k}.")
            if way >= 0.5:
                print("GRPO mostly made reliable what it could already do in one of several tries.")
        print("Next: python lesson4_grpo.py --reward sentiment --run_name grpo_words")


if __name__ == "__main__":
    main()
