"""Lesson 3: PPO. A model writes, a reward model scores, and what scores well becomes likelier.

What you will see. The fine-tuned model of lesson 1 writes film reviews; the reward model of lesson
2 scores them; proximal policy optimisation (PPO) makes high scores likelier. The score rises, and
because this world has a hidden "gold" taste you also see whether the reviews really get better.
Try --kl_coef 0 --steps 100: the score rises further, and the gold reward falls (reward hacking).

The formulas
    reward       r_t = -beta (log p(y_t) - log p_ref(y_t)), plus the score at the last token
    advantage    A_t = sum_l (gamma lam)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t
    policy loss  mean of max(-A_t ratio_t, -A_t clip(ratio_t, 1 - eps, 1 + eps)),
                 ratio_t = p(y_t) / p_old(y_t): the policy now over the policy that sampled
    value loss   half the mean of (V_t - (A_t + V_old_t))^2, V_t kept within eps of V_old_t
p is the policy, the model that learns, and p_ref the reference: the model that it began as.
The penalty (beta is --kl_coef) keeps the two close, because only there can the score be trusted.
V_t, from the value head, guesses the rewards still to come, V_old when it sampled; eps is
--clip_range, gamma and lam are flags. The policy loss uses whitened advantages: mean 0, variance 1.

How to run it
    python lesson3_ppo.py                          offline; makes lessons 1 and 2 where missing
    python lesson3_ppo.py --kl_coef 0 --steps 100 --run_name kl0
    python lesson3_ppo.py --reward sentiment       count good words instead of asking a model
    python lesson3_ppo.py --lora_rank 8            adapters; the reference is no copy (needs peft)
    python lesson1_sft.py --model runs/ppo --chat  talk to the result
It writes runs/ppo. The bar shows the score, a response's KL from the reference, the gold reward.

Why: exercises/WHY.md, "Lesson 3" and "The KL penalty": from the expected reward to ratio, clip,
V and GAE. Begin there. --look shows a step of your run: log p, KL, reward, V, delta, A, ratio.
How to read it: from "The maths" down to main(), the algorithm in five numbered steps, and a flag
where you meet it. The lesson ends where Housekeeping begins, at line 551. Then close this file and
write the maths yourself: "pytest -k ex3" checks exercises/ex3_ppo.py, and "python lesson3_ppo.py
--exercise" trains with it.
"""

import signal
if __name__ == "__main__":  # Ctrl-C while the libraries load: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import copy
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
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Optional

import huggingface_hub
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, tqdm
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoTokenizer, GenerationConfig, HfArgumentParser
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases, **metavar):
    """A field of Config; other libraries' names for it; metavar="0..1" is what a number may be."""
    spellings = {form: 1 for alias in aliases for form in (alias, alias.replace("_", "-"))}
    return HfArg(default=default, help=help, aliases=list(spellings), metadata=metavar)


@dataclass
class Config:
    model: str = flag("", "hub name or folder (default: runs/sft)", "--model_name_or_path")
    reward: str = flag("", "run of lesson 2 (default: runs/reward), sentiment, CLASSIFIER:LABEL or "
                       "FILE.py:FUNCTION; several with weights: NAME=1,NAME=0.5")
    data: str = flag("", "prompts: a file, a folder, or on the hub NAME:CONFIG:SPLIT")
    eval_data: str = flag("", "prompts to evaluate on (default: a twentieth of --data)")
    against: str = flag("", "whose answers to win against (default: the model at the start)")
    columns: str = flag("", "what --data calls its columns, such as instruction=task,input=context")
    run_name: str = flag("ppo", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    steps: int = flag(50, "PPO steps: sample, score, learn (0: evaluate only)", metavar="0..1e6")
    num_samples: int = flag(64, "responses a step, over all processes")
    ppo_epochs: int = flag(4, "times that a step's samples are learned from", "--num_ppo_epochs")
    batch_size: int = flag(32, "samples an optimiser step, over all processes")
    micro_batch_size: int = flag(16, "samples a training pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "1e-4; 1e-6 with --model; LoRA: tenfold", "--lr")
    value_learning_rate: float = flag(1e-3, "of the value head")
    kl_coef: float = flag(0.1, "weight of the KL penalty, beta", "--kl_beta", "--beta")
    kl_in: Literal["reward", "loss", "old"] = flag("reward", "the penalty: k1 to the reference in "
        "the reward, k3 to the reference in the loss, or k3 to the policy that sampled in the loss")
    target_kl: float = flag(0.0, "adapt kl_coef to this KL a response (0: kl_coef is fixed)")
    max_kl: float = flag(0.2, "end a step's epochs when kl/approx passes this (0: never)")
    clip_range: float = flag(0.2, "of ratios (1 +- this) and values (old +- this)", "--cliprange")
    value_coef: float = flag(0.5, "weight of the value loss", "--vf_coef")
    entropy_coef: float = flag(0.0, "weight of the entropy bonus")
    gamma: float = flag(1.0, "discount a token", metavar="0..1")
    lam: float = flag(0.95, "lambda of generalised advantage estimation", metavar="0..1")
    temperature: float = flag(1.0, "of sampling and all log-probabilities", metavar="0.01..100")
    missing_eos_penalty: float = flag(1.0, "taken off the score of a response without an end")
    prompt_format: Literal["auto", "chat", "think", "alpaca", "plain"] = flag("auto", "layout")
    max_prompt_length: Optional[int] = flag(None, "longer prompts are left out (64; --data 512)")
    max_new_tokens: Optional[int] = flag(None, "of a response (40; data: 256)", "--response_length")
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
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        if not self.data:  # real data: up to 512 + 256, as the model has positions
            self.max_prompt_length = self.max_prompt_length or 64
            self.max_new_tokens = self.max_new_tokens or 40
        if self.learning_rate is None:
            self.learning_rate = (1e-6 if self.model else 1e-4) * (10 if self.lora_rank else 1)
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if self.num_samples % self.batch_size or self.batch_size % processes:
            die("--batch_size must divide --num_samples, and the number of processes --batch_size")
        if self.target_kl and (self.kl_coef == 0 or self.kl_in == "old"):
            die("--target_kl adapts --kl_coef, which must be above 0, with --kl_in reward or loss")


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex3_ppo": "response_logprobs response_mask kl_penalty shape_rewards compute_gae "
                     "masked_whiten ppo_policy_loss ppo_value_loss masked_entropy adaptive_kl_coef"}


def response_logprobs(logits, response, temperature=1.0):
    """log p(token | what came before) of a response's T tokens, from the logits of the last T+1
    positions: a position predicts the token after it, so the very last one is not needed."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no half precision
    logprobs = (logits[:, :-1] / temperature).log_softmax(dim=-1)  # (B, T, V)
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
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no half precision
    logprobs = logits.log_softmax(dim=-1)  # (B, T, V)
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
    """How many good words there are, at most 3, or a policy would soon write nothing else."""
    return float(min(3, sum(word in GOOD for word in re.findall(r"\w+", review))))


REWARDS = {"sentiment": lambda responses, **columns: list(map(sentiment_reward, responses))}


def format_prompt(instruction: str, input: str = "") -> str:
    """What the model sees before it answers: Alpaca's layout (Taori et al., 2023), shortened."""
    context = f"### Input:\n{input}\n\n" if input else ""
    return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"


def load_prompts(config, tokenizer):
    """[data, held_out]: rows with instruction and prompt_ids. Of the reviews none are held out."""
    both = [[{"instruction": f"Write a short review of the {kind} film."} for kind in KINDS]] * 2
    if config.data:
        both = load_data(config, ["instruction"])
    return add_prompt_ids(both, tokenizer, config)


# ---- Models -------------------------------------------------------------------------------------


@torch.no_grad()
def generate(lm, tokenizer, prompts, max_new_tokens, temperature=1.0, width=None, size=256):
    """Prompts (lists of ids) -> prompt ids and mask (B, P), padded on the left, and the sampled
    response (B, T), `size` rows at a time. Temperature 0 takes the likeliest token."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt",
                          padding="max_length" if width else True, max_length=width).to(lm.device)
    how = {"temperature": temperature} if temperature else {"do_sample": False}
    response = []
    for ids, mask in zip(batch["input_ids"].split(size), batch["attention_mask"].split(size)):
        both = lm.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
        response += both[:, ids.shape[1]:]
    response = pad_sequence(response, batch_first=True, padding_value=tokenizer.pad_token_id)
    return batch["input_ids"], batch["attention_mask"], response


class CausalLMWithValueHead(torch.nn.Module):
    """Policy and value function: one trunk, two heads. The value head begins at zero and reads what
    the language model's head reads, the last hidden state: a hook hands it over."""

    def __init__(self, lm):
        super().__init__()
        self.lm, lm_head = lm, lm.get_output_embeddings()
        self.value_head = torch.nn.Linear(lm_head.in_features, 1, device=lm.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        lm_head.register_forward_pre_hook(lambda _, inputs: setattr(self, "states", inputs[0]))

    def forward(self, ids, attention_mask, length):
        """-> logits (B, T+1, V) and values (B, T) for a response of T = `length` tokens. The value
        of a token is that of the state before it: the prompt and the tokens so far."""
        logits = response_logits(self.lm, ids, attention_mask, length)
        states, self.states = self.states[:, :-1], None
        return logits, self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1).float()


def response_logits(lm, ids, attention_mask, length):
    """The logits of the last length + 1 positions. With padding on the left, a token's position is
    the number of real tokens before it, not its column."""
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return lm(ids, attention_mask=attention_mask, position_ids=position_ids,
              logits_to_keep=length + 1, use_cache=False).logits  # (B, length + 1, V)


def make_reference(lm, config):
    """The model that training begins with, as a function (ids, attention_mask, length) -> logits: a
    frozen copy or, with LoRA, the same weights with the adapter off."""
    if config.lora_rank:  # as a decorator: the adapter is off while the function runs
        return lm.disable_adapter()(lambda *inputs: response_logits(lm, *inputs))
    frozen = copy.deepcopy(lm).requires_grad_(False).to(getattr(torch, config.dtype))
    return lambda *inputs: response_logits(frozen, *inputs)


# ---- The algorithm: the parts of a step in the order in which they run, and then main -----------


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
        """These rows, without the last columns if none of them has a token there."""
        parts = {name: x[rows] for name, x in vars(self).items() if x is not None}
        empty = self.mask.shape[1] - int(parts["mask"].sum(dim=1).max())
        return Rollout(**{name: x[:, :x.shape[1] - empty] if x.dim() == 2 else x
                          for name, x in parts.items()})


@torch.no_grad()
def sample_responses(policy, reference, reward, tokenizer, rows, config, accelerator):
    """Answer the rows' prompts, and record what learning will need. Every process answers its
    share and gets everybody's: from here on the formulas are those of a single process."""
    lm, width = policy.lm, max(len(row["prompt_ids"]) for row in rows)
    with accelerator.split_between_processes(rows) as mine, accelerator.autocast():
        prompts = [row["prompt_ids"] for row in mine]
        ids, prompt_mask, response = generate(
            lm, tokenizer, prompts, config.max_new_tokens, config.temperature, width,
            size=16 * config.micro_batch_size)  # without gradients more fit into memory
        ends = lm.generation_config.eos_token_id
        mask = response_mask(response, ends)
        ended = torch.isin(response, torch.tensor(ends, device=ids.device)).any(dim=1)
        ids = torch.cat([ids, response], dim=1)
        attention_mask = torch.cat([prompt_mask, mask.long()], dim=1)
        parts = []
        for piece in torch.arange(len(ids)).split(config.micro_batch_size):
            inputs = ids[piece], attention_mask[piece], response.shape[1]
            logits, values = policy(*inputs)
            parts.append((
                response_logprobs(logits, response[piece], config.temperature),
                response_logprobs(reference(*inputs), response[piece], config.temperature), values))
        # What follows the end token is noise: its exp may be infinite, and 0 * inf is nan, not 0.
        logprobs, ref_logprobs, values = (torch.cat(part) * mask for part in zip(*parts))
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        gold = torch.tensor([gold_utility(text) for text in texts], device=ids.device)
        # A response that was cut off before its end token pays for it.
        scores = reward(ids, attention_mask, texts, mine) - config.missing_eos_penalty * ~ended
    share = dict(ids=ids, attention_mask=attention_mask, response=response, mask=mask,
                 logprobs=logprobs, ref_logprobs=ref_logprobs, values=values, scores=scores,
                 gold=gold, ended=ended)
    return Rollout(**accelerator.gather(accelerator.pad_across_processes(share, dim=1)))


def ppo_loss(policy, batch, kl_coef, count, config):
    """The loss of some rows (Schulman et al. 2017, eq. 9) and its parts, sums over `count`."""
    logits, values = policy(batch.ids, batch.attention_mask, batch.response.shape[1])
    logprobs = response_logprobs(logits, batch.response, config.temperature) * batch.mask
    policy_loss, clip_fraction = ppo_policy_loss(
        logprobs, batch.logprobs, batch.advantages, batch.mask, config.clip_range, count)
    value_loss = ppo_value_loss(
        values, batch.values, batch.returns, batch.mask, config.clip_range, count)
    entropy = -logprobs.detach().sum() / count  # estimated, as a number to show
    if config.entropy_coef:
        entropy = masked_entropy(logits[:, :-1] / config.temperature, batch.mask, count)
    # k3 and not k1, because k1's gradient is zero on average: as a loss it would do nothing. (Far
    # from the reference k2's is the true one: exercises/WHY.md.) In old_kl who sampled is first.
    old_kl = (kl_penalty(batch.logprobs, logprobs, "k3") * batch.mask).sum() / count
    ref_kl = (kl_penalty(logprobs, batch.ref_logprobs, "k3") * batch.mask).sum() / count
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    total = loss + kl_coef * {"reward": 0.0, "loss": ref_kl, "old": old_kl}[config.kl_in]
    return total, {"loss/policy": policy_loss, "loss/value": value_loss, "entropy/avg": entropy,
                   "loss/total_no_kl": loss, "loss/total_with_kl": total, "kl/approx": old_kl,
                   "kl/ref": ref_kl, "clip/fraction": clip_fraction}


def ppo_update(policy, optimizer, rollout, kl_coef, config, accelerator):
    """Several epochs of minibatches on one rollout -> stats, averaged over the minibatches."""
    history, processes = [], accelerator.num_processes
    policy.train(config.gradient_checkpointing)  # only there: nothing should be random
    for _ in range(config.ppo_epochs):
        order = broadcast(torch.randperm(len(rollout.ids)).to(accelerator.device))
        for rows in order.split(config.batch_size):
            # All pieces, on all processes, are divided by the tokens of the whole minibatch.
            lengths, sums = rollout.mask[rows].sum(dim=1), defaultdict(float)
            count, rows = lengths.sum(), rows[lengths.argsort(stable=True)]  # similar ones together
            for piece in rows.split(config.micro_batch_size * processes):
                mine = rollout[piece[accelerator.process_index::processes]]
                loss, parts = ppo_loss(policy, mine, kl_coef, count, config)
                accelerator.backward(loss * processes)  # the processes' mean, made a sum
                for name, part in parts.items():
                    sums[name] += part.detach()
            norm = accelerator.clip_grad_norm_(policy.parameters(), 1.0)  # tames odd batches
            optimizer.step()
            optimizer.zero_grad()
            sums = accelerator.reduce(dict(sums)) | {"grad_norm": norm}
            history.append({name: total.item() for name, total in sums.items()})
        if config.max_kl and history[-1]["kl/approx"] > config.max_kl:
            break  # the samples no longer come from a policy like this one
    policy.eval()
    return {name: sum(stats[name] for stats in history) / len(history) for name in history[0]}


def describe(rollout, config):
    """Means over the responses."""
    kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1") * rollout.mask
    numbers = {"reward/avg": rollout.scores, "gold/avg": rollout.gold,
               "response/length": rollout.mask.sum(dim=1), "response/truncated": ~rollout.ended,
               "kl/ref_sum": kl.sum(dim=1)}
    if config.data:
        del numbers["gold/avg"]  # only the tiny world knows what is good
    return {name: x.float().mean().item() for name, x in numbers.items()}


def explained_variance(rollout):
    """1 where the values predicted the returns, 0 where they did no better than their mean."""
    real = rollout.mask.bool()
    errors, returns = (rollout.returns - rollout.values)[real], rollout.returns[real]
    return 1 - (errors.var(correction=0) / returns.var(correction=0).clamp(min=1e-8)).item()


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    globals().update(load_exercises() if config.exercise else {})
    functions = make_inputs(config)
    lm, tokenizer = load_causal_lm(config)
    lm.to(accelerator.device)
    data, held_out = load_prompts(config, tokenizer)
    reference = make_reference(lm, config)
    reward = load_rewards(config, functions, tokenizer, lm)  # lesson 2's have mean 0, variance 1
    policy = CausalLMWithValueHead(lm)
    optimizer = torch.optim.Adam(
        [{"params": lm.parameters(), "lr": config.learning_rate},
         {"params": policy.value_head.parameters(), "lr": config.value_learning_rate}],
        eps=1e-5, fused=True)  # eps as in OpenAI's PPO
    learner, optimizer = accelerator.prepare(policy, optimizer)  # the policy on all processes

    def evaluate(model=policy):
        """Fresh responses to the held-out prompts: numbers, what each is worth, and the texts."""
        torch.manual_seed(accelerator.process_index)
        n = config.num_samples * (1 if config.data else 4)
        if config.steps == 0:  # all of them, as far as the processes can share them out
            n = max(n, len(held_out) // accelerator.num_processes * accelerator.num_processes)
        rows = [held_out[i % len(held_out)] for i in range(n)]
        rollout = sample_responses(model, reference, reward, tokenizer, rows, config, accelerator)
        response = rollout.response.where(rollout.mask > 0, tokenizer.pad_token_id)
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        return describe(rollout, config), rollout.scores if config.data else rollout.gold, texts

    print("The model answers, before the first step ...", flush=True)
    before, worth_before, texts_before = first = evaluate()
    rivals = worth_before if not config.against else evaluate(
        CausalLMWithValueHead(load_rival(config, tokenizer)))[1]
    run = Run(config, accelerator)
    for step in run.steps(config.steps):
        # 1. Rollout: the policy answers, the reward model scores, the reference is asked as well.
        rng = random.Random(f"{config.seed} {step}")
        rows = rng.choices(data, k=config.num_samples)
        rollout = sample_responses(policy, reference, reward, tokenizer, rows, config, accelerator)

        # 2. The reward of every token.
        kl_coef = config.kl_coef
        if config.target_kl and run.rows:  # the steps so far; the horizon is ten steps' responses
            kl_coef = adaptive_kl_coef(run.rows[-1]["kl/coef"], run.rows[-1]["kl/ref_sum"],
                                       config.target_kl, config.num_samples,
                                       10 * config.num_samples)
        kl = kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1")
        rewards = shape_rewards(
            rollout.scores, kl, rollout.mask, kl_coef if config.kl_in == "reward" else 0.0)

        # 3. Advantages, and returns A + V for the values to learn. Then A is whitened.
        advantages, rollout.returns = compute_gae(
            rewards, rollout.values, rollout.mask, config.gamma, config.lam)
        rollout.advantages = masked_whiten(advantages, rollout.mask)

        # 4. Learning: several epochs of the clipped losses.
        learned = ppo_update(learner, optimizer, rollout, kl_coef, config, accelerator)

        # 5. What happened.
        stats = {**describe(rollout, config), **learned, "kl/coef": kl_coef,
                 "value/explained_variance": explained_variance(rollout)}
        run.end_step(step, stats, reward=stats["reward/avg"], kl=stats["kl/ref_sum"],
                     gold=stats.get("gold/avg", "unknown"))
        log_samples(run, step, rows, rollout, tokenizer)

    after, worth_after, texts_after = evaluate() if config.steps else first
    before = before | win_rate(worth_before, rivals)  # how often an answer beats the rival's
    after = after | win_rate(worth_after, rivals)
    run.save_model(lm, tokenizer, value_head=policy.value_head)
    run.close("reward/avg", before, after, [
        (row["instruction"], {"before": old, "after": new})
        for row, old, new in zip(held_out[:5], texts_before, texts_after)],
        "python lesson3_ppo.py --kl_coef 0 --steps 100 --run_name kl0 (reward hacking), or python "
        "lesson4_grpo.py" if run.folder == Path("runs/ppo")
        else f"python lesson1_sft.py --model {run.folder} --chat")


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


def make_inputs(config):
    """Where the usual --model and --reward are missing, lessons 1 and 2 make them. -> {name of a
    reward that is no run of lesson 2: function}, first, because much may be wrong with them."""
    usual = run_folder(config, "reward")
    config.reward = config.reward or str(usual)
    names = split_rewards(config.reward)
    functions = {name: REWARDS.get(name) or load_function(name, config) for name in names
                 if Path(name) != usual and not Path(name, "model").is_dir()}
    if str(usual) in names:
        make_missing(usual, "lesson2_reward.py", "half a minute", config)
    if not config.model:
        make_missing(run_folder(config, "sft"), "lesson1_sft.py", "a minute", config)
        config.model = str(run_folder(config, "sft"))
    return functions


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


def load_causal_lm(config):
    """(model, tokenizer) of --model, with an adapter to train where there is --lora_rank."""
    model, tokenizer, ends = from_pretrained(AutoModelForCausalLM, config.model, config)
    special = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config.update(**special)
    model.generation_config_to_save = model.generation_config
    # `generate` takes from here whatever its caller leaves open: no top_p or penalty may stay.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special)
    return add_adapter(model, config, "CAUSAL_LM"), tokenizer


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


def add_prompt_ids(parts, tokenizer, config):
    """The parts of the data, every row with its prompt_ids. Too long ones are left out."""
    longest = config.max_prompt_length
    for part in parts:
        for row, ids in zip(part, encode_prompts(part, tokenizer, config)):
            row["prompt_ids"] = ids
            if config.prompt_format == "plain":  # a text to go on with: its beginning is enough
                row["prompt_ids"] = ids[:longest]
                row["instruction"] = tokenizer.decode(ids[:longest], skip_special_tokens=True)
    rows = sum(parts, [])
    parts = [[row for row in part if len(row["prompt_ids"]) <= longest] for part in parts]
    left = len(rows) - sum(map(len, parts))
    if left:
        print(f"{left} of {len(rows)} prompts are longer than --max_prompt_length {longest}.")
    return parts if all(parts) else die("too few prompts are left: raise --max_prompt_length")


def load_rival(config, tokenizer):
    """The model of --against, which has to read the same token ids."""
    reach_hub(config.against)
    lm, its_own = load_causal_lm(
        replace(config, model=config.against, lora_rank=0, load_in_4bit=False))
    if its_own.get_vocab() != tokenizer.get_vocab():
        die(f"--against {config.against} and the policy have different tokenizers")
    return lm.to(PartialState().device)


def split_rewards(rewards):
    """"a=0.5,b" -> {"a": 0.5, "b": 1.0}"""
    with blame(f"--reward {rewards}: a weight is a number, as in NAME=0.5"):
        pairs = [part.strip().partition("=") for part in rewards.split(",")]
        return {name: float(weight or 1) for name, _, weight in pairs}


def load_rewards(config, functions, tokenizer, lm, only=()):
    """--reward as a function (ids, attention_mask, texts, rows) -> rewards (B,), for answers to
    these rows of the data: the sum of its parts, each times its weight, or of `only` these."""
    weights = dict.fromkeys(only, 1.0) or split_rewards(config.reward)
    scores = {name: load_score(name, config, tokenizer, lm) for name in weights.keys() - functions}
    return lambda *batch: sum(weight * (
        scores[name](*batch) if name in scores else call_reward(name, functions[name], *batch))
        for name, weight in weights.items())


def call_reward(name, function, ids, attention_mask, texts, rows):
    """What a reward function says of these answers, (B,). None is 0: it does not apply."""
    columns = {column: [copy.deepcopy(row.get(column)) for row in rows]
               for column in set().union(*rows) - {"prompt_ids"}}
    columns |= {"prompts": columns["instruction"], "responses": texts, "completions": texts}
    rewards = function(**columns)
    with blame(f"{name} returned {rewards!r:.60}, not {len(texts)} finite numbers"):
        values = [0.0 if value is None else value for value in rewards]
        values = torch.tensor(values, dtype=torch.float32, device=ids.device)
        if values.shape != ids.shape[:1] or not values.isfinite().all():
            raise ValueError("too few, too many, or not finite in float32")
    return values


def load_function(name, config):
    """FILE.py:FUNCTION, or CLASSIFIER:LABEL as one: of a pair or, in the plain format, a text."""
    source, _, label = name.partition(":")
    with blame(f"--reward {name} ({', '.join(REWARDS)}, FILE.py:FUNCTION or CLASSIFIER:LABEL)"):
        if source.endswith(".py"):
            return runpy.run_path(source)[label]
        reach_hub(source)
        judge = transformers.pipeline("text-classification", source, top_k=None, truncation=True)
        labels = list(judge.model.config.label2id)
        if label not in labels and (label or len(labels) > 1):
            raise ValueError(f"the classifier's labels are {labels}: say {source}:{labels[-1]}")

    def classify(prompts, responses, **columns):
        texts = [a + b if config.prompt_format == "plain" else {"text": a, "text_pair": b}
                 for a, b in zip(prompts, responses)]
        return [{x["label"]: x["score"] for x in scores}[label or labels[0]]
                for scores in judge(texts, function_to_apply="none")]

    return classify


def load_score(name, config, tokenizer, lm):
    """A run of lesson 2 as a function (ids, attention_mask, ...) -> scores (B,), of mean 0 and
    variance 1 on its held-out pairs. With LoRA, one that began as the policy did and was trained
    with LoRA is a second adapter of lm, and no second model."""
    path, adapter = Path(name, "model"), Path(name, "adapter")
    with blame(f"{name!r} is no reward model of lesson 2"):
        settings = AutoConfig.from_pretrained(path)
        mean, std = settings.score_mean, settings.score_std
        vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
    if vocabulary != tokenizer.get_vocab():
        die(f"{name} and the policy have different tokenizers: train a reward model that "
            "starts from the policy's model (lesson2_reward.py --model ...)")
    shared = config.lora_rank and adapter.is_dir() and settings.fingerprint == lm.config.fingerprint
    if shared:
        lm.load_adapter(adapter, "reward")
        head = load_file(adapter / "adapter_model.safetensors")["base_model.model.score.weight"]
        trunk = lm.get_base_model().base_model
    else:
        model = from_pretrained(AutoModelForSequenceClassification, name,
                                replace(config, load_in_4bit=False))[0]
        model.to(lm.device, getattr(torch, config.dtype))
        trunk, head = model.base_model, model.score.weight.detach()

    def score(ids, attention_mask, *_):
        places = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if shared:
            lm.set_adapter("reward", inference_mode=True)
        states = trunk(ids, attention_mask=attention_mask, position_ids=places, use_cache=False)[0]
        if shared:
            lm.set_adapter("default")
        with torch.autocast(ids.device.type, enabled=False):  # bfloat16 would make ties
            scores = torch.nn.functional.linear(states.float(), head.float()).squeeze(-1)
        last = places.argmax(dim=1, keepdim=True)  # the first column of the highest place
        return (scores.gather(1, last).squeeze(1) - mean) / std  # (B,)

    return score


def win_rate(rewards, others):
    """How often an answer gets more than the other one to its prompt: a tie is half. Rewards are
    (prompts,) or, with n answers to each, (n, prompts)."""
    wins = (rewards > others).float() + 0.5 * (rewards == others).float()
    wins = wins.view(-1, wins.shape[-1]).mean(dim=0)  # (prompts,)
    error = (wins.var(correction=0).item() / max(len(wins) - 1, 1)) ** 0.5  # the standard error
    return {"win_rate": wins.mean().item(), "win_rate/error": error}


def log_samples(run, step, rows, rollout, tokenizer):
    """Every ten steps a few of its prompts and answers, for the trackers (TensorBoard: Text)."""
    if step % 10 == 1:
        lengths = rollout.mask.sum(dim=1).long().tolist()
        texts = [tokenizer.decode(ids[:n], skip_special_tokens=True)
                 for ids, n in zip(rollout.response[:8], lengths)]
        lines = [f"- {row['instruction']} **{text}**" for row, text in zip(rows, texts)]
        run.accelerator.log({"samples/step": "\n".join(lines)}, step)


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
