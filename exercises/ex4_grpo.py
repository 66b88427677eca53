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
    raise NotImplementedError("ex4_grpo.sum_reward")


def group_advantages(rewards, group_size, scale="std", eps=1e-4):
    """How much better than its group a response did (Shao et al. 2024, section 4.1.2): its reward
    minus the group's mean and, with scale "std", over the group's (unbiased) standard deviation;
    Dr. GRPO (Liu et al. 2025) leaves that out. Exactly 0 where a group has no spread."""
    raise NotImplementedError("ex4_grpo.group_advantages")


def informative_groups(rewards, group_size):
    """Which groups have something to learn from: not all rewards are equal (DAPO's filter, Yu et
    al. 2025, section 3.2)."""
    raise NotImplementedError("ex4_grpo.informative_groups")


def grpo_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low, clip_high):
    """PPO's clipped loss with one advantage a response, plus kl_coef times the k3 estimate of the
    KL from the reference (Shao et al. 2024, eq. 3 and 4). DAPO raises the upper bound alone."""
    raise NotImplementedError("ex4_grpo.grpo_token_loss")


def aggregate_loss(token_loss, mask, average, max_length=None, count=None):
    """One number from (B, T) losses. "sequence": a mean over each response, then over responses
    (GRPO). "token": over all tokens, so that long responses weigh more (DAPO). "constant": the sum
    over rows x max_length, so that no weight depends on a length (Dr. GRPO)."""
    raise NotImplementedError("ex4_grpo.aggregate_loss")


def pass_at_k(num_samples, num_correct, k):
    """The chance that at least one of k samples is right, estimated without bias from num_samples
    of which num_correct were (Chen et al. 2021, eq. 1)."""
    raise NotImplementedError("ex4_grpo.pass_at_k")
