"""The checks of exercise 3, from log-probabilities to advantages (what follows is in
ex3_ppo_losses.py). Mistakes are numbered where a list of pitfalls of the field has them."""

import math

import torch
import torch.nn.functional as F

from . import ex3_ppo_losses
from .core import Blank, Case, Mistake
from .inputs import different, integers, normal, ragged_mask

FILE, PLACE = "ex3_ppo", 'section "The maths" of lesson3_ppo.py, function {}'
log = math.log


# ---- response_logprobs --------------------------------------------------------------------------


def logprobs_cases(seed):
    def case(note, rows, length, size=1.0, draw=0, dtype=torch.float32, **temperature):
        logits = size * normal(rows, length + 1, 7, seed=seed + draw)
        return Case(note, {"logits": logits.to(dtype), "response": integers(
            0, 7, rows, length, seed=seed + draw + 1), **temperature},
            grad=("logits",) if dtype == torch.float32 else ())

    def huge(note, rows, length, draw, **temperature):
        logits = 50.0 * integers(-4, 5, rows, length + 1, 6, seed=seed + draw)
        return Case(note, {"logits": logits, "response": logits[:, :-1].argmin(dim=-1),
                           **temperature})

    by_hand = Case("one row, worked by hand", {
        "logits": torch.tensor([[[1.0, 2.0, 1.0], [1.0, 1.0, 8.0], [4.0, 4.0, 2.0],
                                 [7.0, 1.0, 2.0]]]).log(),
        "response": torch.tensor([[1, 2, 0]])}, grad=("logits",),
        expect=torch.tensor([[log(1 / 2), log(8 / 10), log(4 / 10)]]))
    half = torch.bfloat16
    return [by_hand,
            case("one row", 1, 3),
            case("several rows", 4, 3, draw=10),
            case("as many rows as tokens", 4, 4, draw=20),
            case("one token a row", 3, 1, draw=30),
            case("temperature 0.7", 1, 3, draw=40, temperature=0.7),
            case("temperature 2, several rows", 3, 4, draw=50, temperature=2.0),
            huge("the unlikeliest tokens, logits of size 200", 1, 3, draw=60),
            huge("logits of size 200, several rows", 3, 5, draw=70),
            huge("logits of size 200 at temperature 0.5", 3, 5, draw=80, temperature=0.5),
            case("logits in bfloat16", 2, 4, size=3.0, draw=90, dtype=half),
            case("logits in bfloat16, temperature 0.7", 3, 4, size=3.0, draw=100, dtype=half,
                 temperature=0.7),
            case("logits in bfloat16, temperature 0.7, no gradient", 3, 2, draw=110,
                 dtype=torch.bfloat16, temperature=0.7)]


def slow_logprobs(logits, response, temperature=1.0):
    """log of (exp of the token's logit / sum of the exps), both divided by the largest one."""
    rows = []
    for row, tokens in zip(logits.tolist(), response.tolist()):
        rows.append([])
        for z, token in zip(row, tokens):
            largest = max(z)
            total = sum(math.exp((x - largest) / temperature) for x in z)
            rows[-1].append((z[token] - largest) / temperature - log(total))
    return torch.tensor(rows)


def logprobs_like(positions=slice(None, -1), tokens=slice(None), cast=torch.Tensor.float,
                  scale=torch.div, normalise=lambda z: z.log_softmax(dim=-1),
                  finish=lambda picked, temperature: picked.squeeze(-1).float()):
    """A version of response_logprobs with parts that can be set wrong."""
    def response_logprobs(logits, response, temperature=1.0):
        z = normalise(scale(cast(logits[:, positions]), temperature))
        picked = z.gather(-1, response[:, tokens].unsqueeze(-1))
        return finish(picked, temperature)
    return response_logprobs


def logprobs_by_cross_entropy(logits, response, temperature=1.0):
    z = logits[:, :-1].double().transpose(1, 2) / temperature
    return -F.cross_entropy(z, response, reduction="none").float()


def logprobs_by_logsumexp(logits, response, temperature=1.0):
    z = logits[:, :-1].float() / temperature
    return (z * F.one_hot(response, z.shape[-1])).sum(dim=-1) - z.logsumexp(dim=-1)


LOGPROBS = Blank(
    FILE, "response_logprobs", logprobs_cases, slow_logprobs,
    formula="log softmax(z_t / temperature)[y_t] in float32, where z_t is the row of logits one "
    "position before the token y_t",
    place=PLACE.format("response_logprobs"),
    mistakes=[
        Mistake("the token's own position (28)", "At its own position the model has already read "
                "the token. Which position had to guess it?",
                logprobs_like(positions=slice(1, None))),
        Mistake("shifted twice", "T tokens go in, and T-1 numbers come out. | The logits already "
                "begin one position before the response: what else did you cut?",
                logprobs_like(tokens=slice(1, None))),
        Mistake("raw logits (29)", "Does the sum of exp of your numbers over the whole vocabulary "
                "make 1?", logprobs_like(normalise=lambda z: z)),
        Mistake("probabilities (30)", "Your numbers lie between 0 and 1. | In what range are "
                "logarithms of probabilities?", logprobs_like(normalise=lambda z: z.softmax(-1))),
        Mistake("the log of softmax (31)", "It agrees on small logits, and on large ones it is "
                "-inf. | What is softmax of a logit 200 below the best, in float32?",
                logprobs_like(normalise=lambda z: z.softmax(-1).log())),
        Mistake("softmax over the positions (32)", "Over which dimension should the probabilities "
                "sum to 1: the positions or the vocabulary?",
                logprobs_like(normalise=lambda z: z.log_softmax(dim=1))),
        Mistake("squeezes all dimensions (33)", "With several rows and tokens it agrees. | What "
                "becomes of a batch of one row, or of one token, in your last step?",
                logprobs_like(finish=lambda picked, temperature: picked.squeeze().float())),
        Mistake("no temperature (34)", "At temperature 1 it agrees. | From which distribution "
                "were the tokens sampled?", logprobs_like(scale=lambda z, temperature: z)),
        Mistake("multiplied by the temperature", "At temperature 1 it agrees. | Does a high "
                "temperature make a distribution flatter or sharper, and does yours?",
                logprobs_like(scale=torch.mul)),
        Mistake("the temperature comes too late", "At temperature 1 it agrees. | Do your "
                "probabilities still sum to 1 at another temperature?",
                logprobs_like(scale=lambda z, temperature: z, finish=lambda picked, temperature: (
                    picked.squeeze(-1) / temperature))),
        Mistake("computed in half precision", "In float32 it agrees. | In bfloat16 numbers have "
                "three digits: when do you change the dtype?", logprobs_like(cast=lambda z: z)),
        Mistake("the result stays in half precision", "In float32 it agrees. | Which dtype has "
                "the result when the logits are bfloat16?", logprobs_like(
                    cast=lambda z: z, finish=lambda picked, temperature: picked.squeeze(-1))),
        Mistake("the sign of a loss", "Can the logarithm of a probability be positive?",
                logprobs_like(finish=lambda picked, temperature: -picked.squeeze(-1))),
        Mistake("writes into the logits", "Your function divides the logits where they stand. Who "
                "else still needs them?", logprobs_like(scale=torch.Tensor.div_))],
    right={"cross-entropy in float64": logprobs_by_cross_entropy,
           "logsumexp and one-hot": logprobs_by_logsumexp})


# ---- response_mask ------------------------------------------------------------------------------


def mask_cases(seed):
    def random(note, rows, length, eos_ids, draw):
        return Case(note, {"response": integers(0, 6, rows, length, seed=seed + draw),
                           "eos_ids": eos_ids})

    def rows(note, response, eos_ids, mask=None, ids=None):
        """What counts is which tokens are alike: `ids` has the drawn id of each."""
        ids = different(1, 100, 10, seed=seed + 20) if ids is None else ids
        return Case(note, {"response": ids[torch.tensor(response)],
                           "eos_ids": ids[torch.tensor(eos_ids)].tolist()},
                    expect=None if mask is None else torch.tensor(mask))

    return [rows("the end token is in the middle", [[5, 9, 7]], [9], [[1.0, 1.0, 0.0]]),
            rows("no end token", [[4, 5, 6]], [9], [[1.0, 1.0, 1.0]]),
            rows("the end token is the first", [[9, 5, 6]], [9], [[1.0, 0.0, 0.0]]),
            rows("the end token is the last", [[4, 5, 9]], [9], [[1.0, 1.0, 1.0]]),
            rows("two end tokens with a word between", [[4, 9, 5, 9, 6]], [9],
                 [[1.0, 1.0, 0.0, 0.0, 0.0]]),
            rows("the second of two end tokens", [[4, 8, 5]], [9, 8], [[1.0, 1.0, 0.0]]),
            rows("rows of all kinds", [[4, 5, 6, 9], [9, 1, 9, 1], [4, 9, 9, 9], [4, 5, 6, 7],
                                       [9, 9, 9, 9], [4, 9, 5, 6]], [9]),
            rows("either of two end tokens", [[4, 9, 8, 5], [8, 4, 9, 5], [4, 5, 6, 7],
                                              [4, 8, 8, 1], [5, 6, 9, 9]], [9, 8]),
            rows("one token a row", [[9], [4], [9]], [9]),
            rows("the end token has the id 0", [[3, 0, 0, 0], [2, 1, 0, 5], [0, 0, 0, 0],
                                                [5, 1, 3, 1]], [0],
                 ids=torch.arange(10)),
            random("random ids, as many rows as tokens", 6, 6, [2], draw=0),
            random("random ids, two end tokens", 5, 8, [1, 4], draw=10)]


def slow_mask(response, eos_ids):
    mask = torch.zeros(response.shape)
    for b, tokens in enumerate(response.tolist()):
        for t, token in enumerate(tokens):
            mask[b, t] = 1.0
            if token in eos_ids:
                break
    return mask


def mask_like(keep, dtype=torch.float32, ends=slice(None)):
    """A version of response_mask: `keep` gets a 1 at every end token, and how many came before."""
    def response_mask(response, eos_ids):
        is_end = (response.unsqueeze(-1) == torch.tensor(eos_ids[ends])).any(dim=-1).long()
        return keep(is_end, is_end.cumsum(dim=1) - is_end).to(dtype)
    return response_mask


def right_mask(is_end, before):
    return before == 0


def up_to_the_last(is_end, before):
    later = is_end.flip(1).cumsum(dim=1).flip(1)
    return (later > 0) | (is_end.sum(dim=1, keepdim=True) == 0)


def one_too_many(is_end, before):
    longer = F.pad(before == 0, (1, 0), value=True)
    return longer[:, :-1]


def up_to_argmax(is_end, before):
    return torch.arange(is_end.shape[1]) <= is_end.argmax(dim=1, keepdim=True)


def mask_by_cumprod(response, eos_ids):
    is_word = torch.ones_like(response)
    for eos_id in eos_ids:
        is_word = is_word * (response != eos_id)
    return F.pad(is_word.cumprod(dim=1), (1, 0), value=1)[:, :-1].float()


def mask_by_lengths(response, eos_ids):
    rows = [next((t + 1 for t, token in enumerate(row) if token in eos_ids), len(row))
            for row in response.tolist()]
    return (torch.arange(response.shape[1]) < torch.tensor(rows).unsqueeze(1)).to(torch.float32)


MASK = Blank(
    FILE, "response_mask", mask_cases, slow_mask,
    formula="mask_t = 1 if none of the tokens before t is an end token, else 0",
    place=PLACE.format("response_mask"),
    mistakes=[
        Mistake("the end token is left out (2)", "Every row with an end is one token short. | "
                "Should the policy learn to stop?",
                mask_like(lambda is_end, before: before + is_end == 0)),
        Mistake("what follows the first end token is kept", "Rows with one end token at their end "
                "agree. | How many end tokens may have come before a token that counts?",
                mask_like(lambda is_end, before: before + is_end <= 1)),
        Mistake("one token too many", "The mask ends one token after the end token. | Do you "
                "count the end tokens before a token, or those before its neighbour?",
                mask_like(one_too_many)),
        Mistake("up to the last end token", "Rows with one end token agree. | Which of several "
                "end tokens ends a response?", mask_like(up_to_the_last)),
        Mistake("masked by id (7)", "Only end tokens are masked. | Are the words that follow an "
                "end token part of the response?", mask_like(lambda is_end, before: is_end == 0)),
        Mistake("one end token only", "With one end token it agrees. | What of the other ids in "
                "eos_ids?", mask_like(right_mask, ends=slice(1))),
        Mistake("a row without an end has one token", "Rows with an end token agree. | What does "
                "your search give in a row where it finds nothing?", mask_like(up_to_argmax)),
        Mistake("a row without an end has no token", "Rows with an end token agree. | Is a "
                "response that was cut off before its end no response?",
                mask_like(lambda is_end, before: (before == 0) & (is_end.sum(1, True) > 0))),
        Mistake("counts down the batch", "With one row every token is kept. | Along which "
                "dimension do you count?",
                mask_like(lambda is_end, before: is_end.cumsum(dim=0) - is_end == 0)),
        *[Mistake(f"a mask of {dtype}", "The zeros and ones are right. | The mask will be "
                  "multiplied with losses: which dtype should it have?",
                  mask_like(right_mask, dtype))
          for dtype in (torch.bool, torch.long)]],
    right={"a product of what is no end token": mask_by_cumprod, "lengths": mask_by_lengths})


# ---- kl_penalty ---------------------------------------------------------------------------------


def kl_cases(seed):
    def case(note, estimator, rows, length, apart, draw):
        policy = -normal(rows, length, seed=seed + draw).abs() - 0.1
        reference = policy + apart * normal(rows, length, seed=seed + draw + 1)
        return Case(f"{estimator}, {note}", {
            "logprobs": policy, "ref_logprobs": reference, "estimator": estimator},
            grad=("logprobs", "ref_logprobs"))

    def by_hand(note, expect, **estimator):
        """All three tokens of a vocabulary."""
        p, p_ref = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
        return Case(f"{note}, worked by hand", {
            "logprobs": p.log(), "ref_logprobs": p_ref.log(), **estimator},
            grad=("logprobs", "ref_logprobs"), expect=torch.tensor([expect]))

    # The KL is 1/2 log 2 - 1/4 log 2 = 1/4 log 2. Weighted by p, k1 and k3 must give it too:
    # 1/2 log 2 - 1/4 log 2, and 1/2 (log 2 - 1/2) + 1/4 (1 - log 2).
    return [by_hand("estimator left out", [log(2), 0.0, -log(2)]),
            by_hand("k1", [log(2), 0.0, -log(2)], estimator="k1"),
            by_hand("k2", [log(2) ** 2 / 2, 0.0, log(2) ** 2 / 2], estimator="k2"),
            by_hand("k3", [log(2) - 0.5, 0.0, 1 - log(2)], estimator="k3"),
            *[case(note, estimator, *rest) for estimator in ("k1", "k2", "k3") for note, *rest in (
                ("equal policies", 1, 3, 0.0, 0), ("policies close together", 2, 4, 0.1, 10),
                ("policies far apart", 4, 4, 3.0, 20))],
            # exp(-200) is 0 in float32.
            *[Case(f"{estimator}, tokens of hardly any probability", {
                "logprobs": torch.tensor([[-200.0, -200.0, -1.0]]),
                "ref_logprobs": torch.tensor([[-200.0, -192.0, -9.0]]), "estimator": estimator},
                grad=("logprobs", "ref_logprobs")) for estimator in ("k1", "k2", "k3")]]


def slow_kl(logprobs, ref_logprobs, estimator="k1"):
    rows = []
    for policy, reference in zip(logprobs.tolist(), ref_logprobs.tolist()):
        ratios = [math.exp(b - a) for a, b in zip(policy, reference)]
        rows.append([{"k1": -log(r), "k2": log(r) ** 2 / 2, "k3": r - 1 - log(r)}[estimator]
                     for r in ratios])
    return torch.tensor(rows)


def kl_like(arrange=lambda new, ref: (new, ref), finish=lambda x, new: x, choose=lambda name: name,
            **wrong):
    """A version of kl_penalty. `wrong` replaces estimators, as functions of log r."""
    def kl_penalty(logprobs, ref_logprobs, estimator="k1"):
        new, ref = arrange(logprobs, ref_logprobs)
        right = {"k1": lambda x: -x, "k2": lambda x: x ** 2 / 2, "k3": lambda x: x.exp() - 1 - x}
        return finish({**right, **wrong}[choose(estimator)](ref - new), logprobs)
    return kl_penalty


def kl_from_ratios(logprobs, ref_logprobs, estimator="k1"):
    r = logprobs.double().neg().exp() * ref_logprobs.double().exp()
    if estimator == "k1":
        return r.reciprocal().log().float()
    return (r.log().square() / 2 if estimator == "k2" else r - r.log() - 1).float()


KL = Blank(
    FILE, "kl_penalty", kl_cases, slow_kl,
    formula="k1 = -log r; k2 = (log r)^2 / 2; k3 = (r - 1) - log r; with r = p_ref / p",
    place=PLACE.format("kl_penalty"),
    mistakes=[
        Mistake("k1 with the wrong sign (37)", "k1 is exactly -1 times the expected one. | What "
                "should the sign of k1 be where the policy likes a token better than the "
                "reference does?",
                kl_like(k1=lambda x: x)),
        Mistake("the size of k1 (38)", "Your k1 is never negative. | Is the mean still the KL "
                "when k1 is never negative?",
                kl_like(k1=torch.abs)),
        Mistake("k2 without the half (39)", "k2 is exactly twice the expected one. | For policies "
                "that are close the KL is about (log r)^2, times what?", kl_like(k2=torch.square)),
        Mistake("k3 upside down (40)", "Your k3 agrees while the policies are close, and differs "
                "when they are far apart. | Which way round is r?",
                kl_like(k3=lambda x: (-x).exp() - 1 + x)),
        Mistake("k3 without -1 (41)", "What is your k3 where both policies are the same, and what "
                "is the KL of a distribution from itself?", kl_like(k3=lambda x: x.exp() - x)),
        Mistake("k3 negated (42)", "Can your k3 be positive? And can a KL be negative?",
                kl_like(k3=lambda x: x - (x.exp() - 1))),
        Mistake("k3 without the logarithm", "Is your k3 ever negative? What does Schulman's k3 "
                "take off r - 1 so that it never is?", kl_like(k3=lambda x: x.exp() - 1)),
        Mistake("weighted by the probability (43)", "The tokens were drawn from the policy, so "
                "likely ones already come up often. By what do you multiply?",
                kl_like(finish=lambda x, new: x * new.exp())),
        Mistake("policy and reference swapped", "k2 agrees, k1 has the wrong sign and k3 is "
                "upside down. | Which of the two policies sampled the tokens?",
                kl_like(arrange=lambda new, ref: (ref, new))),
        Mistake("always k1", "k1 agrees. | Do the names of the other estimators change anything "
                "in your function?",
                kl_like(choose=lambda name: "k1")),
        Mistake("summed over the tokens", "Which shape is promised: a number a response or a "
                "number a token?", kl_like(finish=lambda x, new: x.sum(dim=1))),
        Mistake("the reference is detached (36)", "The numbers are right. | Is it this function's "
                "business to decide what is constant? (The lesson once puts the policy second.)",
                kl_like(arrange=lambda new, ref: (new, ref.detach()))),
        Mistake("no gradient", "The numbers are right. | If this KL is added to a loss, what does "
                "it change in the policy?", kl_like(finish=lambda x, new: x.detach()))],
    right={"from the ratio, in float64": kl_from_ratios})


# ---- shape_rewards ------------------------------------------------------------------------------


def reward_cases(seed):
    def case(note, lengths, kl_coef=0.3, draw=0):
        mask = ragged_mask(lengths)
        kl = normal(*mask.shape, seed=seed + draw) + 20 * (1 - mask)
        scores = 5 + normal(len(lengths), seed=seed + draw + 1)
        return Case(note, {"scores": scores, "kl": kl, "mask": mask, "kl_coef": kl_coef})

    def by_hand(note, scores, kl, mask, expect):
        return Case(f"{note}, worked by hand", {
            "scores": torch.tensor(scores), "kl": torch.tensor(kl), "mask": torch.tensor(mask),
            "kl_coef": 0.1}, expect=torch.tensor(expect))

    return [by_hand("one row without padding", [1.0], [[1.0, 2.0, 3.0]], [[1.0, 1.0, 1.0]],
                    [[-0.1, -0.2, 0.7]]),
            by_hand("one row of one token", [2.0], [[4.0, 9.0, 9.0]], [[1.0, 0.0, 0.0]],
                    [[1.6, 0.0, 0.0]]),
            by_hand("one row without any token", [3.0], [[4.0, 9.0, 9.0]], [[0.0, 0.0, 0.0]],
                    [[0.0, 0.0, 0.0]]),
            case("rows that end early, noise at the padding", [4, 1, 2]),
            case("as many rows as tokens", [5, 1, 3, 2, 5], draw=10),
            case("a row without any token", [4, 0, 2], draw=20),
            case("one token a row, and a row without any", [1, 0, 1, 1], draw=30),
            case("kl_coef 0", [3, 5, 1], kl_coef=0.0, draw=40),
            case("kl_coef 2, rows of the same length", [3, 3], kl_coef=2.0, draw=50)]


def slow_rewards(scores, kl, mask, kl_coef):
    rewards = torch.zeros(kl.shape)
    for b in range(kl.shape[0]):
        real = [t for t in range(kl.shape[1]) if mask[b, t] == 1]
        for t in real:
            rewards[b, t] = -kl_coef * float(kl[b, t]) + (float(scores[b]) if t == real[-1] else 0)
    return rewards


def last_of(mask):
    """1 on each row's last real token. (All the padding is on the right.)"""
    return mask - F.pad(mask[:, 1:], (0, 1))


def at(index):
    """The scores at one index a row."""
    def place(scores, mask):
        placed = torch.zeros_like(mask)
        placed[torch.arange(len(mask)), index(mask.sum(dim=1).long())] = scores
        return placed
    return place


def rewards_like(sign=-1.0, penalty=lambda kl, mask: kl * mask,
                 place=lambda scores, mask: last_of(mask) * scores.unsqueeze(1), keep=1.0):
    """A version of shape_rewards. `keep`: how much of its KL the last token keeps."""
    def shape_rewards(scores, kl, mask, kl_coef):
        penalties = sign * kl_coef * penalty(kl, mask)
        return torch.where(last_of(mask) > 0, keep * penalties, penalties) + place(scores, mask)
    return shape_rewards


def rewards_in_place(scores, kl, mask, kl_coef):
    kl.mul_(mask).mul_(-kl_coef)
    return kl.add_(last_of(mask) * scores.unsqueeze(1))


def rewards_by_loops(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl.double() * mask
    for row, score, length in zip(rewards, scores, mask.sum(dim=1).int().tolist()):
        if length:
            row[length - 1] += score
    return rewards.float()


REWARDS = Blank(
    FILE, "shape_rewards", reward_cases, slow_rewards,
    formula="r_t = -beta KL_t on real tokens, plus the score on the last of them",
    place=PLACE.format("shape_rewards"),
    mistakes=[
        Mistake("the penalty is a bonus (45)", "The score arrives where it should. | Does a token "
                "with a large KL lose or gain?", rewards_like(sign=1.0)),
        Mistake("the score on the last column (46)", "Rows without padding agree. | In a short "
                "row, what stands in the last column?", rewards_like(place=at(lambda n: -1))),
        Mistake("the score on every token (47)", "How much would a response of ten tokens earn in "
                "all?", rewards_like(place=lambda scores, mask: mask * scores.unsqueeze(1))),
        Mistake("the score on the padding too", "Rows without padding agree. | Where in a short "
                "row does the sum so far equal the whole sum: on the last token only?",
                rewards_like(place=lambda scores, mask: (1 - mask + last_of(mask)) * (
                    scores.unsqueeze(1)))),
        Mistake("all of the KL on the last token (48)", "A row's total agrees. | Which token "
                "should pay for which KL?", rewards_like(penalty=lambda kl, mask: (
                    last_of(mask) * (kl * mask).sum(dim=1, keepdim=True)))),
        Mistake("the KL of the padding (49)", "Rows without padding agree. | What should the "
                "reward be where the mask is 0?", rewards_like(penalty=lambda kl, mask: kl)),
        Mistake("the score replaces the KL (50)", "All tokens but the last agree. | What of the "
                "last token's own KL?", rewards_like(keep=0.0)),
        Mistake("scores along the tokens (89)", "Scores are (B,) and rewards (B, T). To which "
                "dimension of the rewards does PyTorch line up a (B,)?",
                rewards_like(place=lambda scores, mask: last_of(mask) * scores)),
        Mistake("one place too far (17)", "Counts start at 1. At which index is the last of n "
                "tokens?", rewards_like(place=at(lambda n: n))),
        *[Mistake(f"a row without tokens is scored at its {name} place", "Rows with a token "
                  "agree. | Where does the score go when there are no tokens, and should it go "
                  "anywhere?",
                  rewards_like(place=at(index))) for name, index in (
                      ("last", lambda n: n - 1), ("first", lambda n: (n - 1).clamp(min=0)))],
        Mistake("no score", "The penalties are right. | Where does the score come in?",
                rewards_like(place=lambda scores, mask: 0.0)),
        Mistake("writes into the KL", "Your function changes the KL that it was given. Who else "
                "still needs it?", rewards_in_place)],
    right={"a loop over the rows, in float64": rewards_by_loops})


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


def never_turned_round(rewards, values, mask, gamma, lam):
    advantages = gae_like()(rewards, values, mask, gamma, lam)[0].flip(1)
    return advantages, (advantages + values.detach()) * mask


def returns_of_rewards(rewards, values, mask, gamma, lam):
    correct = gae_like()(rewards, values, mask, gamma, lam)[0]
    nothing = torch.zeros_like(values)
    return correct, gae_like()(rewards, nothing, mask, gamma, 1.0)[0]


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
    formula="delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; "
    "returns = A + V",
    place=PLACE.format("compute_gae"), outputs=("advantages", "returns"),
    mistakes=[
        Mistake("the loop runs forward (51)", "A_t needs A_{t+1}. From which end must the loop "
                "start?", forward_gae),
        Mistake("the list is never turned round", "Your advantages are the expected ones, the "
                "last token's first. | The loop collects the advantages from the end: in which "
                "order do they lie in the list, and what turns it round?", never_turned_round),
        Mistake("returns are discounted rewards (57)", "The advantages are right. Yours is the "
                "sum of the rewards to come, which is A + V for lambda 1 alone. | What does the "
                "formula add to A?", returns_of_rewards),
        Mistake("the padding is not masked (52)", "Rows without padding agree, and the others "
                "differ up to where the mask turns 0. | Does your running sum start afresh at the "
                "end of each response, and is V past it 0?", gae_like(next_value_mask=False)),
        Mistake("bootstraps from the last value (53)", "The episode is over after the last token. "
                "What is the value of what comes then?", gae_like(bootstrap=True)),
        Mistake("gamma and lambda swapped (54)", "Which of gamma and lambda discounts V_{t+1} in "
                "delta?", gae_like(discount=lambda gamma, lam: lam)),
        Mistake("lambda left out (55)", "Your advantages are those of lambda = 1. | By what does "
                "A_{t+1} shrink on its way to A_t?", gae_like(decay=lambda gamma, lam: gamma)),
        Mistake("delta without V_{t+1} (56)", "delta compares V_t with the reward and what?",
                gae_like(with_next=False)),
        Mistake("returns are the advantages (57)", "The advantages are right. | The value "
                "function should learn the whole return: what must be added to A?",
                gae_like(targets=lambda advantages, values: advantages)),
        Mistake("returns subtract the value (57)", "The advantages are right. | A = return - V: "
                "which sign has V in the return?",
                gae_like(targets=lambda advantages, values: advantages - values)),
        Mistake("carries a graph (58)", "The numbers are right. | Should the policy's loss send "
                "gradients through the advantages into the value head?", gae_like(detach=False)),
        Mistake("edits the rewards (59)", "Your function writes into the rewards that it was "
                "given. Who else still needs them?", gae_in_place)],
    right={"as a matrix product in float64": gae_as_a_matrix})


BLANKS = [LOGPROBS, MASK, KL, REWARDS, GAE] + ex3_ppo_losses.BLANKS
