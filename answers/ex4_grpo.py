"""Exercise 4: the maths of GRPO, six blanks, in the order of lesson4_grpo.py.

N prompts have G answers each: B = N*G responses, the G answers to a prompt one after the other. T
is the longest response's length in tokens. A mask is 1.0 on a response's tokens up to and including
its end token, and 0.0 on the padding that follows. Functions that average take `count`, the number
to divide by; None means: count for yourself. (The lessons pass the count of the whole batch, so
that a batch may be cut into pieces.)
"""

import math
import re

import torch


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
