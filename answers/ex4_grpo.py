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
    """A reward that needs no model, because the answer can be checked: 1.0 for the right sum, else
    0.0.

    Shapes
        prompt     str, the question as a person sees it, such as "What is 27 + 15?": two numbers in
                   plain digits with " + " between them. A prompt without such a sum, like "Write a
                   short review of the spy film.", gives 0.0, whatever the response
        response   str, what the model wrote
        returns    float (not bool): 1.0 or 0.0

    Formula (an outcome reward as in DeepSeek-AI 2025, "DeepSeek-R1", section 2.2.2: the answer must
    stand in a fixed form, so that it can be checked without doubt)
        1.0 if the response is nothing but the sum in plain digits, else 0.0
    Before you compare, take away white space at both ends, then one full stop at the end, then the
    white space before that full stop. Whatever else is there makes it wrong: words, a sign, a
    leading zero, decimals, white space between digits, digits of another script, two full stops.

    Example
        >>> sum_reward("What is 27 + 15?", " 42. "), sum_reward("What is 27 + 15?", "042")
        (1.0, 0.0)

    Ask yourself
        The policy will find whatever this function pays for. What would it learn if "42" anywhere
        in the response were enough?

    Check it
        pytest -k sum_reward
    """
    question = re.search(r"(\d+) \+ (\d+)", prompt)
    answer = response.strip().removesuffix(".").strip()
    return float(question is not None and answer == str(sum(map(int, question.groups()))))


def group_advantages(rewards, group_size, scale="std", eps=1e-4):
    """How much better than its group a response did: the other answers to the same prompt take the
    place of PPO's value function.

    Shapes
        rewards      float (N*G,): N groups, the G responses to a prompt one after the other
        group_size   int, G
        scale        "std": divide by the group's standard deviation; "none": do not (Dr. GRPO)
        eps          number, added to the standard deviation
        returns      float (N*G,), in the order of the rewards, which stay as they are

    Formula (Shao et al. 2024, "DeepSeekMath", section 4.1.2; without the division: Liu et al. 2025,
    "Understanding R1-Zero-like training", section 3)
        "std"    A_i = (r_i - mean) / (std + eps)
        "none"   A_i = r_i - mean
    with the mean and the standard deviation of the response's own group. The standard deviation is
    the unbiased one: squared deviations are summed and divided by G - 1.
    In a group whose rewards are all equal, and so in every group for G = 1, each advantage is
    exactly 0. Rounding must not spoil that: the mean of eight rewards of 0.1 is not quite 0.1.

    Example (the first group has mean 2 and standard deviation 1; 1 / 1.0001 is 0.9999)
        >>> rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
        >>> group_advantages(rewards, 3)
        tensor([-0.9999,  0.0000,  0.9999,  0.0000,  0.0000,  0.0000])
        >>> group_advantages(rewards, 3, scale="none")
        tensor([-1.,  0.,  1.,  0.,  0.,  0.])

    Ask yourself
        When rewards are laid out as a matrix, is a row a prompt, or is a column? What must a row of
        advantages add up to?

    Check it
        pytest -k group_advantages
    """
    groups = rewards.view(-1, group_size)  # (N, G)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "std" and group_size > 1:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    has_spread = groups.amax(dim=1) > groups.amin(dim=1)  # rounding alone would leave 1e-5 or so
    return torch.where(has_spread.unsqueeze(1), advantages, 0.0).flatten()  # (N*G,)


def informative_groups(rewards, group_size):
    """Which groups have something to learn from: those whose rewards are not all equal. (In the
    others every advantage is 0, and computing their gradient is a waste.)

    Shapes
        rewards      float (N*G,): N groups, the G responses to a prompt one after the other. Any
                     numbers: 0 and 1, scores of a reward model, negative ones
        group_size   int, G
        returns      bool (N,), True for a group to keep

    Formula (the filter of Yu et al. 2025, "DAPO", section 3.2, for rewards of any size)
        keep group n  if and only if  the largest of its rewards differs from the smallest
    The comparison is exact, without a tolerance. For G = 1 no group is kept.

    Example (all wrong, all right, some right)
        >>> informative_groups(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]), 3)
        tensor([False, False,  True])

    Ask yourself
        A group in which every answer is right has a high reward. What does its gradient say? And in
        a group of eight rewards of 0.1, is the computed mean 0.1, to the last digit?

    Check it
        pytest -k informative_groups
    """
    groups = rewards.view(-1, group_size)
    return groups.amax(dim=1) > groups.amin(dim=1)  # (N,) bool


def grpo_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low, clip_high):
    """The loss of every token: PPO's clipped loss with one advantage a response, plus a penalty for
    going far from the reference model.

    Shapes
        logprobs       float (B, T), log-probabilities of the sampled tokens under the policy now;
                       -200 happens, and there the probability itself is 0 in float32
        old_logprobs   float (B, T), the same under the policy that sampled them
        ref_logprobs   float (B, T), the same under the reference model; not looked at where kl_coef
                       is 0, and may be None there
        advantages     float (B,), one a response
        kl_coef        number, beta
        clip_low       number: the ratio's lower bound is 1 - clip_low
        clip_high      number: the ratio's upper bound is 1 + clip_high
        returns        float (B, T), the loss of each token. Nothing is masked or averaged here:
                       that is the task of aggregate_loss

    Formula (Shao et al. 2024, "DeepSeekMath", eq. 3 and 4, negated because optimisers minimise; two
    different bounds: Yu et al. 2025, "DAPO", section 3.1, "Clip-Higher")
        ratio_t = exp(logprobs_t - old_logprobs_t)
        d_t     = ref_logprobs_t - logprobs_t
        k3_t    = exp(d_t) - d_t - 1, an estimate of the KL from the reference, never negative
        loss_t  = max(-A ratio_t, -A clip(ratio_t, 1 - clip_low, 1 + clip_high)) + beta k3_t
    The gradient with respect to logprobs flows through the ratio and through k3. (k3's is the KL's
    own near the reference alone: exercises/WHY.md, "The KL penalty".)

    Example (one response, the ratio is 2 and 0.5; only the first one is clipped, to 1.28)
        >>> logprobs, old_logprobs = torch.tensor([[2.0, 0.5]]).log(), torch.zeros(1, 2)
        >>> grpo_token_loss(logprobs, old_logprobs, None, torch.tensor([1.0]), 0.0, 0.2, 0.28)
        tensor([[-1.2800, -0.5000]])

        The reference gives each token twice the probability: k3 = 2 - log 2 - 1 = 0.3069.
        >>> ref_logprobs, advantages = logprobs + math.log(2), torch.tensor([1.0])
        >>> grpo_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, 0.1, 0.2, 0.28)
        tensor([[-1.2493, -0.4693]])

    Ask yourself
        The advantages have shape (B,) and the ratios (B, T). What does broadcasting do with that if
        B and T are both 4?

    Check it
        pytest -k grpo_token_loss
    """
    ratio = torch.exp(logprobs - old_logprobs)  # (B, T)
    advantages = advantages.unsqueeze(1)  # (B, 1): the same for all tokens of a response
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.max(-advantages * ratio, -advantages * clipped)
    if kl_coef:
        log_ratio = ref_logprobs - logprobs
        loss = loss + kl_coef * (torch.expm1(log_ratio) - log_ratio)  # k3
    return loss  # (B, T)


def aggregate_loss(token_loss, mask, average, max_length=None, count=None):
    """One number from the losses of all tokens, in one of three ways. They differ in how much a
    token of a long response weighs.

    Shapes
        token_loss   float (B, T)
        mask         float (B, T), the padding on either side; a row may have no token at all
        average      "sequence", "token" or "constant"; anything else raises a ValueError
        max_length   int, the most tokens that a response may have (not T, the longest one's). Only
                     "constant" looks at it, and only where count is None
        count        what to divide by, a number or a tensor; None: see the formula
        returns      float scalar. 0, still with a graph, where there is no token

    Formula (all sums over real tokens only)
        "sequence"   sum over rows of (the row's sum / the row's tokens) / count,
                     count: the number of rows, B (GRPO: Shao et al. 2024, "DeepSeekMath", eq. 3)
        "token"      sum / count,
                     count: the number of tokens, at least 1 (Yu et al. 2025, "DAPO", section 3.3)
        "constant"   sum / count,
                     count: B * max_length (Dr. GRPO: Liu et al. 2025, "Understanding R1-Zero-like
                     training", section 3)
    A row without tokens adds 0 to "sequence" and counts as a row. The finite
    numbers at the padding must not matter.

    Example (two tokens and one; the 9 is padding)
        >>> token_loss = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
        >>> mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> aggregate_loss(token_loss, mask, "sequence")  # (2 + 5) / 2
        tensor(3.5000)
        >>> aggregate_loss(token_loss, mask, "token")  # 9 / 3
        tensor(3.)
        >>> aggregate_loss(token_loss, mask, "constant", max_length=10)  # 9 / 20
        tensor(0.4500)

    Ask yourself
        A batch is cut into two pieces, and the losses of the pieces are added. By what must each
        piece be divided for the sum to be the loss of the whole batch?

    Check it
        pytest -k aggregate_loss
    """
    token_loss = torch.where(mask.bool(), token_loss, 0.0)
    if average == "sequence":
        means = token_loss.sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (B,)
        return means.sum() / (len(means) if count is None else count)
    if average == "token":
        return token_loss.sum() / (mask.sum().clamp(min=1) if count is None else count)
    if average == "constant":
        return token_loss.sum() / (len(mask) * max_length if count is None else count)
    raise ValueError(f"no average is called {average!r}: sequence, token or constant")


def pass_at_k(num_samples, num_correct, k):
    """The chance that at least one of k samples is right, estimated without bias from more samples
    than k.

    Shapes
        num_samples   int, n: how many samples there were, from one to thousands
        num_correct   int, c: how many of them were right, from 0 to n
        k             int, at least 1; a ValueError where k > num_samples
        returns       float (not int)

    Formula (Chen et al. 2021, "Evaluating large language models trained on code", eq. 1)
        pass@k = 1 - C(n - c, k) / C(n, k)
    C(n, k) is the number of ways to choose k of n things, and 0 where k > n: of all choices of k
    samples, the share with a right one among them.

    Example (one of four is right; of the 6 pairs, 3 have it)
        >>> pass_at_k(4, 1, 2)
        0.5

    Ask yourself
        You have n samples and draw k of them. Can the same sample be drawn twice? And how large are
        C(2000, 1000) and the largest float?

    Check it
        pytest -k pass_at_k
    """
    if k > num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
