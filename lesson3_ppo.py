"""Lesson 3: PPO. A model writes, a reward model scores, and what scores well becomes likelier.

What you will see. The fine-tuned model of lesson 1 writes film reviews; the reward model of lesson
2 scores them; proximal policy optimisation (PPO) makes high scores likelier. The score rises, and
because this world has a hidden "gold" taste you also see whether the reviews really get better.
Try --kl_coef 0: the score rises further, and the gold reward falls (reward hacking).

The formulas
    reward       r_t = -beta (log p(y_t) - log p_ref(y_t)), plus the score at the last token
    advantage    A_t = sum_l (gamma lam)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t
    policy loss  mean of max(-A_t ratio_t, -A_t clip(ratio_t, 1 - eps, 1 + eps)),
                 ratio_t = p(y_t) / p_old(y_t): the policy now over the policy that sampled
    value loss   half the mean of (V_t - (A_t + V_old_t))^2, clipped as well
p is the policy, the model that learns, and p_ref the reference: a frozen copy of what it began as.
The penalty (beta is --kl_coef) keeps the two close, because only there can the score be trusted.
V_t, from the value head, guesses the rewards still to come; eps is --clip_range. The policy loss
uses advantages that were whitened: mean 0, variance 1.

How to run it
    python lesson3_ppo.py                          offline; makes lessons 1 and 2 where missing
    python lesson3_ppo.py --kl_coef 0 --run_name kl0
    python lesson3_ppo.py --reward sentiment       count good words instead of asking a model
    python lesson1_sft.py --model runs/ppo --chat  talk to the result

It writes runs/ppo. The bar shows the score (reward first), the gold reward and the KL from the
reference.

Then close this file and write the maths yourself, in exercises/ex3_ppo.py: "pytest -k ex3" checks
it, and "python lesson3_ppo.py --exercise" trains with it.
"""

import copy
import inspect
import json
import logging
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
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
from transformers import GenerationConfig, HfArgumentParser
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases):
    return HfArg(default=default, help=help, aliases=list(aliases))


@dataclass
class Config:
    model: str = flag("", "hub name or folder of the policy (default: the tiny world's runs/sft)")
    reward: str = flag("", "a run of lesson 2 (default: runs/reward), or: sentiment")
    data: str = flag("", "JSON file, folder or hub name with the column instruction (and input)")
    run_name: str = flag("ppo", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    steps: int = flag(100, "PPO steps: sample, score, learn")
    num_samples: int = flag(64, "responses a step, over all processes")
    ppo_epochs: int = flag(4, "times that a step's samples are learned from")
    batch_size: int = flag(32, "samples an optimiser step, over all processes")
    micro_batch_size: int = flag(64, "samples a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "default: 1e-4; 1e-6 with --model")
    value_learning_rate: float = flag(1e-3, "of the value head")
    kl_coef: float = flag(0.1, "weight of the KL penalty, beta", "--kl_beta", "--kl-beta")
    kl_in: Literal["reward", "loss", "old"] = flag(
        "reward", "the penalty: k1 to the reference in the reward, k3 to the reference in the "
        "loss, or k3 to the policy that sampled in the loss")
    target_kl: float = flag(0.0, "adapt kl_coef to this KL a response (0: kl_coef is fixed)")
    max_kl: float = flag(0.2, "stop a step's epochs when kl/approx passes this (0: never)")
    clip_range: float = flag(0.2, "no gain outside 1 +- this (a ratio) or old +- this (a value)")
    value_coef: float = flag(0.5, "weight of the value loss")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    gamma: float = flag(1.0, "discount a token")
    lam: float = flag(0.95, "lambda of generalised advantage estimation")
    temperature: float = flag(1.0, "of the sampling, and of every log-probability")
    missing_eos_penalty: float = flag(1.0, "taken off the score of a response without an end")
    max_prompt_length: int = flag(64, "tokens; longer prompts are left out")
    max_new_tokens: int = flag(40, "tokens a response may have")
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
        if self.learning_rate is None:
            self.learning_rate = 1e-6 if self.model else 1e-4


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex3_ppo": "response_logprobs response_mask kl_penalty shape_rewards compute_gae "
                     "masked_whiten ppo_policy_loss ppo_value_loss masked_entropy adaptive_kl_coef"}


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


def shape_rewards(scores, kl, mask, kl_coef):
    """The reward of every token: -kl_coef * KL, and on the last real token the score as well."""
    is_last = (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)) & mask.bool()
    kl_rewards = torch.where(mask.bool(), -kl_coef * kl, 0.0)
    return kl_rewards + torch.where(is_last, scores.unsqueeze(1), 0.0)  # (B, T)


@torch.no_grad()
def compute_gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), from the last token back:
    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}. Past the end both
    V and A are 0. Returns (advantages, returns); the returns, A + V, are what V should learn."""
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = mask[:, t] * (delta + gamma * lam * next_advantage)
        next_value = mask[:, t] * values[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask


def masked_whiten(x, mask, shift_mean=True, eps=1e-8):
    """Scale the real tokens to variance 1 (the unbiased one) and, with shift_mean, to mean 0;
    without, their mean stays what it was."""
    count = mask.sum()
    if count < 2:
        return torch.zeros_like(x)
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1)
    whitened = (x - mean) * torch.rsqrt(variance + eps)
    return (whitened if shift_mean else whitened + mean) * mask


def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    """The clipped objective (Schulman et al. 2017, eq. 7), negated: of the two losses the larger
    counts, whatever the sign of the advantage. Returns (loss, fraction of tokens clipped)."""
    count = mask.sum().clamp(min=1) if count is None else count
    ratio = torch.exp(logprobs - old_logprobs)  # (B, T)
    loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    clip_fraction = ((clipped_loss > loss) * mask).sum() / count
    return (torch.max(loss, clipped_loss) * mask).sum() / count, clip_fraction.detach()


def ppo_value_loss(values, old_values, returns, mask, clip_range, count=None):
    """Half the squared error of the values, which may not gain from moving more than clip_range
    away from the old ones (as in OpenAI's ppo2): the larger of two errors again."""
    count = mask.sum().clamp(min=1) if count is None else count
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    error = torch.max((values - returns).square(), (clipped - returns).square())
    return 0.5 * (error * mask).sum() / count


def masked_entropy(logits, mask, count=None):
    """The mean over real tokens of H = -sum_v p_v log p_v, in nats."""
    count = mask.sum().clamp(min=1) if count is None else count
    logprobs = logits.float().log_softmax(dim=-1)  # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)  # (B, T)
    return (entropy * mask).sum() / count


def adaptive_kl_coef(kl_coef, observed_kl, target_kl, batch_size, horizon):
    """Raise the coefficient when the KL of a response is above its target, lower it when it is
    below, by at most 20% a horizon (Ziegler et al. 2019, section 2.2)."""
    error = min(max(observed_kl / target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / horizon)


# ---- Data: the tiny world's reviews, or prompts of your own -------------------------------------

KINDS = ("pirate space robot ghost family horse school ocean "
         "winter music cooking football dragon train circus spy").split()
PARTS = "story acting script cast music ending camera humour".split()
GOOD = ("wonderful lovely charming gripping brilliant moving "
        "funny superb clever delightful warm fresh").split()
BAD = "boring dull awful clumsy silly weak noisy tedious dreadful cold stale messy".split()
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


def load_prompts(config, tokenizer):
    """A Dataset with instruction and prompt_ids: the file's, or one for every kind of film."""
    if config.data:
        data = read_data(config.data, ["instruction"], 10**6)
    else:
        data = datasets.Dataset.from_dict({"instruction": list(map(review_instruction, KINDS))})
    data = data.map(lambda row: {"prompt_ids": tokenizer.encode(
        format_prompt(row["instruction"], row.get("input") or ""), add_special_tokens=False)})
    data = data.filter(lambda row: len(row["prompt_ids"]) <= config.max_prompt_length)
    return data if len(data) else die("every prompt is longer than --max_prompt_length: raise it")


# ---- Models -------------------------------------------------------------------------------------


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


class CausalLMWithValueHead(torch.nn.Module):
    """Policy and value function: one trunk, two heads. The value head begins at zero and reads the
    last hidden state, which the language model's head reads too."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm
        self.value_head = torch.nn.Linear(lm.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, ids, attention_mask, length):
        """-> logits (B, T+1, V) and values (B, T) for a response of T = `length` tokens. The value
        of a token is that of the state before it: the prompt and the tokens so far."""
        output = response_output(self.lm, ids, attention_mask, length, output_hidden_states=True)
        states = output.hidden_states[-1][:, -length - 1:-1]
        return output.logits, self.value_head(states).squeeze(-1).float()


def response_output(lm, ids, attention_mask, length, **options):
    """The model's output with the logits of the last length + 1 positions. With padding on the
    left, a token's position is the number of real tokens before it, not its column."""
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return lm(ids, attention_mask=attention_mask, position_ids=position_ids,
              logits_to_keep=length + 1, use_cache=False, **options)


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


@dataclass
class Rollout:
    """What a step sampled: a row a response, B rows, T tokens each."""

    ids: torch.Tensor  # (B, P+T) prompt, padded on the left, and response
    attention_mask: torch.Tensor  # (B, P+T)
    response: torch.Tensor  # (B, T)
    mask: torch.Tensor  # (B, T) 1 up to and including the end token
    logprobs: torch.Tensor  # (B, T) by the policy that sampled
    ref_logprobs: torch.Tensor  # (B, T)
    values: torch.Tensor  # (B, T)
    scores: torch.Tensor  # (B,)
    gold: torch.Tensor  # (B,)
    ended: torch.Tensor  # (B,) bool: has an end token
    advantages: torch.Tensor = None  # (B, T)
    returns: torch.Tensor = None  # (B, T)

    def __getitem__(self, rows):
        return Rollout(*(getattr(self, field.name)[rows] for field in fields(self)))


@torch.no_grad()
def sample_responses(policy, reference, score, tokenizer, prompts, config):
    """Answer the prompts (lists of ids), and record what learning will need."""
    ids, prompt_mask, response = generate(
        policy.lm, tokenizer, prompts, config.max_new_tokens, config.temperature)
    ends = policy.lm.generation_config.eos_token_id
    mask = response_mask(response, ends)
    ended = torch.isin(response, torch.tensor(ends, device=ids.device)).any(dim=1)
    ids = torch.cat([ids, response], dim=1)
    attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
    parts = []
    for rows in torch.arange(len(ids)).split(config.micro_batch_size):
        inputs = ids[rows], attention_mask[rows], response.shape[1]
        logits, values = policy(*inputs)
        ref_logits = response_output(reference, *inputs).logits
        parts.append((response_logprobs(logits, response[rows], config.temperature),
                      response_logprobs(ref_logits, response[rows], config.temperature), values))
    # What follows the end token is noise, and 0 times the exp of a large noise would not be 0.
    logprobs, ref_logprobs, values = (torch.cat(part) * mask for part in zip(*parts))
    texts = tokenizer.batch_decode(response, skip_special_tokens=True)
    gold = torch.tensor([gold_utility(text) for text in texts], device=ids.device)
    # A response that was cut off before its end token pays for it.
    scores = score(ids, attention_mask, texts) - config.missing_eos_penalty * (~ended)
    return Rollout(ids, attention_mask, response, mask, logprobs, ref_logprobs, values, scores,
                   gold, ended)


def add_up_gradients(model, accelerator):
    """Every process has divided its loss by the whole batch's count, so the whole batch's gradient
    is the plain sum of theirs."""
    if accelerator.num_processes > 1:
        for weight in model.parameters():
            if weight.requires_grad:
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = accelerator.reduce(grad, reduction="sum")


def summary(rollout, config, accelerator):
    """Means over the responses of all processes."""
    kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1") * rollout.mask
    numbers = {"reward/avg": rollout.scores, "gold/avg": rollout.gold,
               "response/length": rollout.mask.sum(dim=1), "response/truncated": ~rollout.ended,
               "kl/ref_sum": kl.sum(dim=1)}
    if config.data:
        del numbers["gold/avg"]  # only the tiny world knows what is good
    return {name: accelerator.gather(x.float()).mean().item() for name, x in numbers.items()}


def explained_variance(rollout, accelerator):
    """1 - var(returns - values) / var(returns), over the real tokens of all processes: 1 where the
    values predicted the returns, 0 where they did no better than the returns' mean."""
    values, returns, mask = (
        accelerator.gather(accelerator.pad_across_processes(tensor, dim=1))
        for tensor in (rollout.values, rollout.returns, rollout.mask))
    errors, returns = (returns - values)[mask.bool()], returns[mask.bool()]
    return 1 - (errors.var(correction=0) / returns.var(correction=0).clamp(min=1e-8)).item()


def whiten_over_processes(advantages, mask, accelerator):
    """masked_whiten with the mean and variance of the whole batch."""
    rows, columns = mask.shape
    x, m = (accelerator.gather(accelerator.pad_across_processes(tensor, dim=1))
            for tensor in (advantages, mask))
    first = accelerator.process_index * rows
    return masked_whiten(x, m)[first:first + rows, :columns]


def ppo_loss(policy, batch, kl_coef, count, config):
    """The loss of some rows and its parts, as sums divided by `count`."""
    logits, values = policy(batch.ids, batch.attention_mask, batch.response.shape[1])
    logprobs = response_logprobs(logits, batch.response, config.temperature) * batch.mask
    policy_loss, clip_fraction = ppo_policy_loss(
        logprobs, batch.logprobs, batch.advantages, batch.mask, config.clip_range, count)
    value_loss = ppo_value_loss(
        values, batch.values, batch.returns, batch.mask, config.clip_range, count)
    entropy = masked_entropy(logits[:, :-1] / config.temperature, batch.mask, count)
    # k3 and not k1, because k1's gradient is zero on average: as a loss it would do nothing.
    old_kl = (kl_penalty(batch.logprobs, logprobs, "k3") * batch.mask).sum() / count
    ref_kl = (kl_penalty(logprobs, batch.ref_logprobs, "k3") * batch.mask).sum() / count
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    total = loss + kl_coef * {"reward": 0.0, "loss": ref_kl, "old": old_kl}[config.kl_in]
    return total, {"loss/policy": policy_loss, "loss/value": value_loss, "entropy/avg": entropy,
                   "loss/total_no_kl": loss, "loss/total_with_kl": total, "kl/approx": old_kl,
                   "kl/ref": ref_kl, "clip/fraction": clip_fraction}


def ppo_update(policy, optimizer, rollout, kl_coef, config, accelerator):
    """Several epochs of minibatches on one rollout -> stats, averaged over the minibatches."""
    history = []
    for _ in range(config.ppo_epochs):
        order = torch.randperm(len(rollout.ids))
        for rows in order.split(config.batch_size // accelerator.num_processes):
            # All pieces, on all processes, are divided by the tokens of the whole minibatch.
            count = accelerator.reduce(rollout.mask[rows].sum(), reduction="sum").clamp(min=1)
            sums = defaultdict(float)
            for piece in rows.split(config.micro_batch_size):
                with accelerator.autocast():
                    loss, parts = ppo_loss(policy, rollout[piece], kl_coef, count, config)
                loss.backward()
                for name, part in parts.items():
                    sums[name] += part.detach()
            add_up_gradients(policy, accelerator)
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)  # tames odd batches
            optimizer.step()
            optimizer.zero_grad()
            sums = accelerator.reduce(dict(sums), reduction="sum") | {"grad_norm": norm}
            history.append({name: total.item() for name, total in sums.items()})
        if config.max_kl and history[-1]["kl/approx"] > config.max_kl:
            break  # the samples no longer come from a policy like this one
    return {name: sum(stats[name] for stats in history) / len(history) for name in history[0]}


def ppo_step(policy, reference, score, tokenizer, prompts, optimizer, kl_coef, config, accelerator):
    """One iteration of PPO -> stats (a dictionary of numbers)."""
    # 1. Rollout: the policy answers, the reward model scores, the reference is asked as well.
    with accelerator.autocast():
        rollout = sample_responses(policy, reference, score, tokenizer, prompts, config)
    # 2. The reward of every token.
    kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1")
    in_reward = kl_coef if config.kl_in == "reward" else 0.0
    rewards = shape_rewards(rollout.scores, kl, rollout.mask, in_reward)
    # 3. Advantages. The returns belong to the raw ones; only then are these whitened.
    advantages, rollout.returns = compute_gae(
        rewards, rollout.values, rollout.mask, config.gamma, config.lam)
    rollout.advantages = whiten_over_processes(advantages, rollout.mask, accelerator)
    # 4. Learning.
    stats = ppo_update(policy, optimizer, rollout, kl_coef, config, accelerator)
    return {**summary(rollout, config, accelerator), **stats, "kl/coef": kl_coef,
            "value/explained_variance": explained_variance(rollout, accelerator)}


def train_ppo(policy, reference, score, tokenizer, data, folder, config, accelerator):
    """Returns the finished Run."""
    optimizer = torch.optim.AdamW(
        [{"params": policy.lm.parameters(), "lr": config.learning_rate},
         {"params": policy.value_head.parameters(), "lr": config.value_learning_rate}],
        eps=1e-5, weight_decay=0.0)  # eps as in OpenAI's PPO; weights should stay where they are
    run = Run(folder, config, accelerator, policy=policy, optimizer=optimizer)
    for step in run.steps(config.steps):
        dice = random.Random(f"{config.seed} {step}")
        rows = dice.choices(range(len(data)), k=config.num_samples)
        mine = rows[accelerator.process_index::accelerator.num_processes]
        kl_coef = run.extra.get("kl_coef", config.kl_coef)
        stats = ppo_step(policy, reference, score, tokenizer, data[mine]["prompt_ids"], optimizer,
                         kl_coef, config, accelerator)
        if config.target_kl:  # the horizon: ten steps' samples
            run.extra["kl_coef"] = adaptive_kl_coef(kl_coef, stats["kl/ref_sum"], config.target_kl,
                                                    config.num_samples, 10 * config.num_samples)
        run.end_step(step, stats, reward=stats["reward/avg"], kl=stats["kl/ref_sum"],
                     gold=stats.get("gold/avg", "unknown"))
    return run


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    globals().update(load_exercises() if config.exercise else {})
    if not config.temperature:
        die("--temperature must be above 0: the policy has to try different answers")
    if config.target_kl and (config.kl_coef == 0 or config.kl_in == "old"):
        die("--target_kl adapts a penalty to the reference: it needs --kl_coef above 0, and "
            "--kl_in reward or loss")
    if config.num_samples % config.batch_size or config.batch_size % accelerator.num_processes:
        die("--batch_size must divide --num_samples, and the number of processes --batch_size")
    config.reward = config.reward or str(run_folder(config, "reward"))
    if not (config.model or config.reward == "sentiment" or Path(config.reward).is_dir()
            or Path(config.reward) == run_folder(config, "reward")):
        die(f"there is no reward model {config.reward!r}")
    if Path(config.reward) == run_folder(config, "reward"):
        make_missing(Path(config.reward), "lesson2_reward.py", "half a minute", config)
    if not config.model:
        make_missing(run_folder(config, "sft"), "lesson1_sft.py", "a minute", config)
        config.model = str(run_folder(config, "sft"))
    lm, tokenizer = load_causal_lm(config.model)
    data = load_prompts(config, tokenizer)
    policy = CausalLMWithValueHead(lm).to(accelerator.device)
    reference = copy.deepcopy(lm).requires_grad_(False)
    score = load_score(config, tokenizer, accelerator.device)
    folder = open_run(config, accelerator)

    def look():
        """Fresh responses to fixed prompts: means and texts."""
        torch.manual_seed(0)
        prompts = [data[i % len(data)]["prompt_ids"] for i in range(256)]
        with accelerator.autocast():
            rollout = sample_responses(policy, reference, score, tokenizer, prompts, config)
        texts = tokenizer.batch_decode(rollout.response, skip_special_tokens=True)
        return summary(rollout, config, accelerator), texts

    before, texts_before = look()
    run = train_ppo(policy, reference, score, tokenizer, data, folder, config, accelerator)
    after, texts_after = look()
    if run.is_main:
        save_model(policy.lm, tokenizer, folder / "model")
        run.close("reward/avg", before, after, [
            (data[i]["instruction"], {"before": texts_before[i], "after": texts_after[i]})
            for i in range(min(5, len(data)))])
        print("Next: python lesson3_ppo.py --kl_coef 0 --run_name kl0 (reward hacking), "
              "or python lesson4_grpo.py")


if __name__ == "__main__":
    main()
