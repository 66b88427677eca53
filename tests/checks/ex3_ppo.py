"""The checks of exercise 3. Mistakes are numbered where a list of pitfalls of the field has them."""

import math

import torch

from .core import Blank, Case, Mistake
from .inputs import normal, ragged_mask

FILE, PLACE = "ex3_ppo", 'section "The maths" of lesson3_ppo.py, function {}'


# ---- compute_gae --------------------------------------------------------------------------------


def gae_cases(seed):
    def case(note, mask, gamma, lam, expect=None, draw=0):
        rewards, values = (normal(*mask.shape, seed=seed + draw + i) for i in (0, 1))
        return Case(note, {"rewards": rewards, "values": values, "mask": mask, "gamma": gamma,
                           "lam": lam}, expect=expect)

    by_hand = Case("one row without padding, worked by hand", {
        "rewards": torch.tensor([[0.0, 0.0, 1.0]]), "values": torch.tensor([[0.5, 1.0, 1.5]]),
        "mask": torch.ones(1, 3), "gamma": 1.0, "lam": 0.5},
        expect=(torch.tensor([[0.625, 0.25, -0.5]]), torch.tensor([[1.125, 1.25, 1.0]])))
    full, ragged = torch.ones(1, 3), ragged_mask([5, 1, 3, 2, 5])
    return [by_hand,
            case("one row without padding", full, 0.9, 0.8),
            case("one row, lambda 0", full, 0.9, 0.0, draw=10),
            case("one row that ends after two of four tokens", ragged_mask([2, 4])[:1], 0.9, 0.8),
            case("rows that end early, noise at the padding", ragged, 0.9, 0.7, draw=20),
            case("gamma 1, lambda 0.95", ragged, 1.0, 0.95, draw=30),
            case("a row without any token", ragged_mask([4, 0, 2]), 0.5, 0.9, draw=40),
            Case("one row whose inputs carry a graph", case("", full, 0.9, 0.7, draw=50).inputs,
                 grad=("rewards", "values")),
            Case("rows whose inputs carry a graph", case("", ragged, 0.9, 0.7, draw=60).inputs,
                 grad=("rewards", "values"))]


def slow_gae(rewards, values, mask, gamma, lam):
    """A_t as the sum of (gamma lam)^l delta_{t+l} over what is left of the response."""
    rows, length = rewards.shape
    advantages, returns = torch.zeros(rows, length), torch.zeros(rows, length)
    for b in range(rows):
        end = int(mask[b].sum())
        v = [float(values[b, t]) for t in range(end)] + [0.0]
        delta = [float(rewards[b, t]) + gamma * v[t + 1] - v[t] for t in range(end)]
        for t in range(end):
            advantages[b, t] = sum((gamma * lam) ** k * delta[t + k] for k in range(end - t))
            returns[b, t] = advantages[b, t] + v[t]
    return advantages, returns


def gae_like(next_value_mask=True, bootstrap=False, decay=None, with_next=True, detach=True,
             targets=None, discount=None):
    """A version of compute_gae with parts that can be set wrong."""
    def compute_gae(rewards, values, mask, gamma, lam):
        if detach:
            rewards, values = rewards.detach(), values.detach()
        columns, next_advantage = [], 0.0
        for t in reversed(range(rewards.shape[1])):
            last = t == rewards.shape[1] - 1
            own = values[:, t] if bootstrap else torch.zeros_like(values[:, t])
            following = own if last else values[:, t + 1]
            if next_value_mask and not last:
                following = torch.where(mask[:, t + 1].bool(), following, own)
            use = (discount or (lambda gamma, lam: gamma))(gamma, lam) if with_next else 0.0
            delta = rewards[:, t] + use * following - values[:, t]
            factor = gamma * lam if decay is None else decay(gamma, lam)
            carried = next_advantage
            if next_value_mask and not last:
                carried = carried * mask[:, t + 1]
            next_advantage = delta + factor * carried
            columns.insert(0, next_advantage)
        advantages = torch.stack(columns, dim=1) * mask
        returns = (advantages + values if targets is None else targets(advantages, values)) * mask
        return advantages, returns
    return compute_gae


def forward_gae(rewards, values, mask, gamma, lam):
    return tuple(part.flip(1) for part in gae_like()(
        rewards.flip(1), values.flip(1), mask.flip(1), gamma, lam))


def gae_in_place(rewards, values, mask, gamma, lam):
    correct = gae_like()(rewards, values, mask, gamma, lam)
    rewards.mul_(mask).sub_(1.0)
    return correct


def gae_as_a_matrix(rewards, values, mask, gamma, lam):
    """A = D (r + gamma V' - V), with D the upper triangle of powers of gamma lam."""
    rewards, values, mask = (x.detach().double() for x in (rewards, values, mask))
    after = torch.cat([(values * mask)[:, 1:], torch.zeros(len(values), 1).double()], dim=1)
    delta = (rewards + gamma * after - values) * mask
    steps = torch.arange(rewards.shape[1])
    distance = steps - steps.unsqueeze(1)
    powers = torch.where(distance >= 0, (gamma * lam) ** distance.clamp(min=0).double(), 0.0)
    advantages = torch.einsum("ts,bs->bt", powers, delta) * mask
    return advantages.float(), ((advantages + values) * mask).float()


GAE = Blank(
    FILE, "compute_gae", gae_cases, slow_gae,
    formula="delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; returns = A + V",
    place=PLACE.format("compute_gae"),
    mistakes=[
        Mistake("the loop runs forward (51)", "A_t needs A_{t+1}. From which end must the loop "
                "start?", forward_gae),
        Mistake("the padding is not masked (52)", "Rows without padding agree, and the others "
                "differ up to where the mask turns 0. Does your running sum start afresh at the "
                "end of each response, and is V past it 0?", gae_like(next_value_mask=False)),
        Mistake("bootstraps from the last value (53)", "The episode is over after the last token. "
                "What is the value of what comes then?", gae_like(bootstrap=True)),
        Mistake("gamma and lambda swapped (54)", "Which of gamma and lambda discounts V_{t+1} in "
                "delta?", gae_like(discount=lambda gamma, lam: lam)),
        Mistake("lambda left out (55)", "Your advantages are those of lambda = 1. By what does "
                "A_{t+1} shrink on its way to A_t?", gae_like(decay=lambda gamma, lam: gamma)),
        Mistake("delta without V_{t+1} (56)", "delta compares V_t with the reward and what?",
                gae_like(with_next=False)),
        Mistake("returns are the advantages (57)", "The advantages are right. The value function "
                "should learn the whole return: what must be added to A?",
                gae_like(targets=lambda advantages, values: advantages)),
        Mistake("returns subtract the value (57)", "The advantages are right. A = return - V: "
                "which sign has V in the return?",
                gae_like(targets=lambda advantages, values: advantages - values)),
        Mistake("carries a graph (58)", "The numbers are right. Should the policy's loss send "
                "gradients through the advantages into the value head?", gae_like(detach=False)),
        Mistake("edits the rewards (59)", "Your function writes into the rewards that it was "
                "given. Who else still needs them?", gae_in_place)],
    right={"as a matrix product in float64": gae_as_a_matrix})


# ---- ppo_policy_loss ----------------------------------------------------------------------------


def policy_cases(seed):
    def case(note, mask, clip_range=0.2, scale=0.5, draw=0, **count):
        old = -normal(*mask.shape, seed=seed + draw).abs() - 0.1
        new = old + scale * normal(*mask.shape, seed=seed + draw + 1)
        advantages = 2 * normal(*mask.shape, seed=seed + draw + 2) + 0.5
        return Case(note, {"logprobs": new, "old_logprobs": old, "advantages": advantages,
                           "mask": mask, "clip_range": clip_range, **count}, grad=("logprobs",))

    log = math.log
    four = Case("ratios 2 and 0.5 with advantages of both signs, worked by hand", {
        "logprobs": torch.tensor([[log(2), log(0.5), log(2), log(0.5)]]),
        "old_logprobs": torch.zeros(1, 4), "advantages": torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
        "mask": torch.ones(1, 4), "clip_range": 0.2}, grad=("logprobs",),
        # The losses are -1.2 (clipped), -0.5, 2, 0.8 (clipped).
        expect=(torch.tensor(0.275), torch.tensor(0.5)))
    full, ragged = torch.ones(1, 3), ragged_mask([5, 1, 3, 2, 5])
    on_policy = case("ratio 1 everywhere", full)
    on_policy.inputs["logprobs"] = on_policy.inputs["old_logprobs"].clone()
    return [case("one row without padding", full), four, on_policy,
            case("rows that end early, noise at the padding", ragged, draw=10),
            case("ratios far beyond the clip", ragged, scale=2.0, draw=20),
            case("clip range 0.1", ragged, clip_range=0.1, draw=30),
            case("count given", ragged, draw=40, count=37),
            case("count given as a tensor", ragged, draw=50, count=torch.tensor(20.0)),
            case("no real token at all", torch.zeros(2, 3))]


def slow_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    total, clipped, tokens = 0.0, 0, 0
    for b, t in [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1])]:
        if mask[b, t] == 0:
            continue
        tokens += 1
        ratio = math.exp(float(logprobs[b, t]) - float(old_logprobs[b, t]))
        advantage = float(advantages[b, t])
        bounded = min(max(ratio, 1 - clip_range), 1 + clip_range)
        total += -min(advantage * ratio, advantage * bounded)
        clipped += advantage * bounded < advantage * ratio
    count = max(tokens, 1) if count is None else float(count)
    return torch.tensor(total / count), torch.tensor(clipped / count)


def policy_loss_like(ratio=None, choose=torch.max, sign=-1.0, average=None, detach_fraction=True,
                     bound=None):
    """A version of ppo_policy_loss with parts that can be set wrong."""
    def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
        r = (ratio or (lambda new, old: torch.exp(new - old)))(logprobs, old_logprobs)
        loss = sign * advantages * r
        bounded = (bound or (lambda r, eps: r.clamp(1 - eps, 1 + eps)))(r, clip_range)
        clipped = sign * advantages * bounded
        fraction = ((clipped > loss) * mask).sum()
        if average:
            return average(choose(loss, clipped), mask), average((clipped > loss).float(), mask)
        count = mask.sum().clamp(min=1) if count is None else count
        return (choose(loss, clipped) * mask).sum() / count, fraction / count
    return ppo_policy_loss


def log_ratio_clamped(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    def bound(ratio, eps):
        return (logprobs - old_logprobs).clamp(-eps, eps).exp()
    return policy_loss_like(bound=bound)(
        logprobs, old_logprobs, advantages, mask, clip_range, count)


def policy_loss_by_cases(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    """The branches written out: only a gain beyond the clip is cut off."""
    ratio = (logprobs - old_logprobs).exp()
    cut = ((advantages > 0) & (ratio > 1 + clip_range)) | ((advantages < 0) & (ratio < 1 - clip_range))
    edge = torch.where(advantages > 0, 1 + clip_range, 1 - clip_range)
    objective = advantages * torch.where(cut, edge, ratio)
    real = mask.bool()
    count = max(int(real.sum()), 1) if count is None else count
    return -objective[real].sum() / count, cut[real].sum().float() / count


POLICY_LOSS = Blank(
    FILE, "ppo_policy_loss", policy_cases, slow_policy_loss,
    formula="max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) with ratio = exp(new - old), summed over "
    "the real tokens and divided by count",
    place=PLACE.format("ppo_policy_loss"),
    mistakes=[
        Mistake("the smaller loss (65)", "At ratio 1 it agrees. Pessimistic means that the larger "
                "of the two losses counts: which one do you take?",
                policy_loss_like(choose=torch.min)),
        Mistake("the clipped term alone (66)", "Inside the clip it agrees. When the ratio is 2 and "
                "the advantage negative, who pulls it back?",
                policy_loss_like(choose=lambda loss, clipped: clipped)),
        Mistake("no clip (67)", "Inside the clip it agrees. What keeps a large ratio from paying?",
                policy_loss_like(choose=lambda loss, clipped: loss)),
        Mistake("the ratio upside down (68)", "At ratio 1 the value is right and the gradient is "
                "exactly -1 times the expected one. Which way round is the ratio?",
                policy_loss_like(ratio=lambda new, old: torch.exp(old - new))),
        Mistake("the ratio is not exponentiated (69)", "A ratio of probabilities is 1 where they "
                "are equal. What is a difference of log-probabilities there?",
                policy_loss_like(ratio=lambda new, old: new - old)),
        Mistake("the objective's sign (70)", "The paper maximises an objective; an optimiser "
                "minimises a loss. What is the sign of yours?",
                policy_loss_like(sign=1.0, choose=torch.min)),
        Mistake("the mean over padding too (71)", "Without padding it agrees. By how many tokens "
                "do you divide?", policy_loss_like(average=lambda x, mask: (x * mask).mean())),
        Mistake("a mean of the rows' means (71)", "Rows of equal length agree. Does a token of a "
                "short row weigh as much as one of a long row?",
                policy_loss_like(average=lambda x, mask: (
                    (x * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean())),
        Mistake("old log-probs are the current ones (72)", "Where the policy has moved, your ratio "
                "is still 1. Which policy sampled?",
                policy_loss_like(ratio=lambda new, old: torch.exp(new - new))),
        Mistake("the log-ratio is clipped (73)", "Close to the clip range, not quite on it: are 1 - "
                "eps and 1 + eps bounds of the ratio or of its logarithm?", log_ratio_clamped)],
    right={"written as cases": policy_loss_by_cases})


BLANKS = [GAE, POLICY_LOSS]
