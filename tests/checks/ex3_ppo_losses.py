"""The checks of exercise 3, continued: whitening, the losses, the entropy and the KL controller.
Mistakes are numbered where a list of pitfalls of the field has them."""

import math

import torch

from .core import Blank, Case, Mistake
from .inputs import integers, normal, ragged_mask

FILE, PLACE = "ex3_ppo", 'section "The maths" of lesson3_ppo.py, function {}'
log = math.log


# ---- masked_whiten ------------------------------------------------------------------------------


def whiten_cases(seed):
    def case(note, lengths, draw=0, scale=2.0, mean=5.0, **options):
        mask = ragged_mask(lengths)
        x = mean + scale * normal(*mask.shape, seed=seed + draw) + 30 * (1 - mask)
        return Case(note, {"x": x, "mask": mask, **options})

    def by_hand(note, x, mask, expect, **options):
        return Case(f"{note}, worked by hand", {
            "x": torch.tensor(x), "mask": torch.tensor(mask), **options},
            expect=torch.tensor(expect))

    def far_from_zero(note, mean, rows, mask):
        """Whole numbers: float32 has their sums and their mean to the last digit, not their
        squares. `rows` are the distances from the mean."""
        distances, mask = torch.tensor(rows), torch.tensor(mask)
        variance = (distances.square() * mask).sum() / (mask.sum() - 1)
        return by_hand(note, (mean + distances).tolist(), mask.tolist(),
                       (distances / variance.sqrt() * mask).tolist())

    ragged = [5, 1, 3, 2, 5]
    full, x = [[1.0, 1.0, 1.0]], [[2.0, 4.0, 6.0]]
    return [by_hand("one row without padding", x, full, [[-1.0, 0.0, 1.0]]),
            by_hand("shift_mean False", x, full, [[3.0, 4.0, 5.0]], shift_mean=False),
            by_hand("eps 5", x, full, [[-2 / 3, 0.0, 2 / 3]], shift_mean=True, eps=5.0),
            by_hand("two real entries", [[3.0, 7.0], [5.0, 9.0]], [[1.0, 0.0], [1.0, 0.0]],
                    [[-math.sqrt(0.5), 0.0], [math.sqrt(0.5), 0.0]]),
            by_hand("one real entry in all", [[3.0, 7.0, 7.0]], [[1.0, 0.0, 0.0]],
                    [[0.0, 0.0, 0.0]]),
            by_hand("one real entry in all, shift_mean False", [[3.0, 7.0], [7.0, 7.0]],
                    [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], shift_mean=False),
            by_hand("no real entry", [[3.0, 7.0, 7.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]),
            by_hand("no spread at all", [[5.0, 5.0, 9.0, 9.0], [5.0, 5.0, 9.0, 9.0]],
                    [[1.0, 1.0, 0.0, 0.0]] * 2, [[0.0] * 4] * 2),
            far_from_zero("around 10000", 1e4, [[3.0, -1.0, 1.0, -3.0]], [[1.0] * 4]),
            far_from_zero("around -20000", -2e4, [[2.0, -2.0, 1.0, -1.0, 9.0],
                                                  [3.0, 0.0, -2.0, -1.0, 9.0]],
                          [[1.0, 1.0, 1.0, 1.0, 0.0]] * 2),
            case("rows that end early, noise at the padding", ragged, draw=10),
            case("a row without any entry", [4, 0, 2], draw=20),
            case("two real entries, in two rows of one", [1, 1], draw=70),
            case("shift_mean False, rows that end early", ragged, draw=30, shift_mean=False),
            case("shift_mean False, eps 0.5", [3, 1, 4, 4], draw=40, shift_mean=False, eps=0.5),
            case("nearly no spread", ragged, draw=50, scale=1e-4, mean=0.0),
            case("nearly no spread, two rows", [4, 2], draw=60, scale=1e-4, mean=0.0)]


def slow_whiten(x, mask, shift_mean=True, eps=1e-8):
    real = [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1]) if mask[b, t] == 1]
    result = torch.zeros(x.shape)
    if len(real) < 2:
        return result
    numbers = [float(x[place]) for place in real]
    mean = sum(numbers) / len(numbers)
    variance = sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1)
    for place, number in zip(real, numbers):
        result[place] = (number - mean) / math.sqrt(variance + eps) + (0 if shift_mean else mean)
    return result


def moments(x, mask):
    """Mean and unbiased variance over the real entries."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return mean, ((x - mean).square() * mask).sum() / (n - 1)


def moments_of_squares(x, mask):
    """The variance as a difference of two squares."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return mean, ((x.square() * mask).sum() / n - mean.square()) * n / (n - 1)


def moments_by_row(x, mask):
    n = mask.sum(dim=1, keepdim=True)
    mean = (x * mask).sum(dim=1, keepdim=True) / n.clamp(min=1)
    squares = ((x - mean).square() * mask).sum(dim=1, keepdim=True)
    return mean, squares / (n - 1).clamp(min=1)


def whiten_like(stats=moments, scale=lambda variance, eps: (variance + eps).rsqrt(),
                apply=lambda x, mean, f, shift: (x - mean) * f + (not shift) * mean,
                clean=lambda x, mask: x * mask, least=2):
    """A version of masked_whiten with parts that can be set wrong."""
    def masked_whiten(x, mask, shift_mean=True, eps=1e-8):
        if mask.sum() < least:
            return torch.zeros_like(x)
        mean, variance = stats(x, mask)
        return clean(apply(x, mean, scale(variance, eps), shift_mean), mask)
    return masked_whiten


def whiten_about_zero(x, mask, shift_mean=True, eps=1e-8):
    """Without shift_mean the variance is the mean square."""
    mean, variance = moments(x, mask)
    if not shift_mean:
        variance = (x.square() * mask).sum() / (mask.sum() - 1)
    return whiten_like(stats=lambda x, mask: (mean, variance))(x, mask, shift_mean, eps)


def whiten_chosen_entries(x, mask, shift_mean=True, eps=1e-8):
    real, result = mask.bool(), torch.zeros_like(x)
    if real.sum() > 1:
        chosen = x[real].double()
        scaled = (chosen - chosen.mean()) / (chosen.var() + eps).sqrt()
        result[real] = (scaled if shift_mean else scaled + chosen.mean()).float()
    return result


WHITEN = Blank(
    FILE, "masked_whiten", whiten_cases, slow_whiten,
    formula="(x - mean) / sqrt(var + eps), mean and unbiased var over the real entries; without "
    "shift_mean + mean; 0 off the mask, and everywhere when there are fewer than two",
    place=PLACE.format("masked_whiten"),
    mistakes=[
        Mistake("the padding counts (60)", "Without padding it agrees. | Which numbers belong to "
                "the mean and the variance?", whiten_like(lambda x, mask: (x.mean(), x.var()))),
        Mistake("the padding counts as zeros (60)", "Without padding it agrees. | You multiply by "
                "the mask: by how many entries do you divide?",
                whiten_like(lambda x, mask: ((x * mask).mean(), (x * mask).var()))),
        Mistake("the padding counts in the variance (60)", "The mean is right. | Whose squares do "
                "you add up?", whiten_like(lambda x, mask: (
                    moments(x, mask)[0],
                    (x - moments(x, mask)[0]).square().sum() / (mask.sum() - 1)))),
        Mistake("the biased variance (61)", "But for eps, every entry is sqrt(n / (n - 1)) times "
                "the expected one. | Which of the two variances do you divide by?",
                whiten_like(lambda x, mask: (
                    moments(x, mask)[0], moments(x, mask)[1] * (mask.sum() - 1) / mask.sum()))),
        Mistake("the mean is never removed (62)", "With shift_mean False it agrees. | What should "
                "the mean be when shift_mean is True?",
                whiten_like(apply=lambda x, mean, f, shift: (x - mean) * f + mean)),
        Mistake("the mean is always removed (62)", "With shift_mean True it agrees. | What does "
                "your function do when shift_mean is False?",
                whiten_like(apply=lambda x, mean, f, shift: (x - mean) * f)),
        Mistake("x itself is scaled (62)", "With shift_mean True it agrees. | With shift_mean "
                "False the mean stays what it was: is the mean scaled in yours?",
                whiten_like(apply=lambda x, mean, f, shift: (x - shift * mean) * f)),
        Mistake("the mean square for the variance", "With shift_mean True it agrees. | Is a "
                "variance about 0 or about the mean?", whiten_about_zero),
        Mistake("the mean of the squares minus the square of the mean", "Small numbers agree. | "
                "float32 has seven digits: how many of them are left when two squares of 10000 "
                "are subtracted?", whiten_like(moments_of_squares)),
        Mistake("each row by itself (63)", "A single row agrees. | Over what are mean and "
                "variance taken: a row or the batch?", whiten_like(moments_by_row)),
        Mistake("divided by the variance (64)", "Is the variance of your result 1? Which power of "
                "the variance must a number be divided by?",
                whiten_like(scale=lambda variance, eps: 1 / (variance + eps))),
        Mistake("eps outside the root (80)", "It agrees where eps is negligible. | Is eps added "
                "to the variance or to its root?",
                whiten_like(scale=lambda variance, eps: 1 / (variance.sqrt() + eps))),
        Mistake("an eps of its own", "With the default eps it agrees. | Do you use the eps that "
                "is given?", whiten_like(scale=lambda variance, eps: (variance + 1e-8).rsqrt())),
        Mistake("the padding is not 0", "Real entries agree. | What should stand where the mask "
                "is 0?", whiten_like(clean=lambda x, mask: x)),
        Mistake("too few entries", "It agrees where there is something to whiten. | What is the "
                "variance of a single number, with n - 1 below?", whiten_like(least=0)),
        Mistake("one entry counts as enough", "It agrees where there is something to whiten. | "
                "From how many entries on is there an unbiased variance?", whiten_like(least=1))],
    right={"chosen entries in float64, the shift last": whiten_chosen_entries,
           "two passes in float32": whiten_like()})


# ---- Averages -----------------------------------------------------------------------------------


def average(x, mask, count):
    return (x * mask).sum() / (mask.sum().clamp(min=1) if count is None else count)


def average_by(own):
    """An average that divides by a number of its own when none is given."""
    return lambda x, mask, count: (x * mask).sum() / (own(mask) if count is None else count)


def mean_of_rows(x, mask, count):
    if count is not None:
        return average(x, mask, count)
    return ((x * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def average_or(zero):
    """The right average, and where there is no real token a 0 that was computed from nothing."""
    return lambda x, mask, count: average(x, mask, count) if mask.any() else zero()


def average_mistakes(version):
    """What goes wrong with averages. `version(average=...)` makes the function."""
    return [
        Mistake("the mean over padding too (71)", "Without padding it agrees. | By how many "
                "tokens do you divide?", version(average=average_by(torch.Tensor.numel))),
        Mistake("a sum", "Twice as many tokens would give twice your result. | Is it a sum or a "
                "mean?", version(average=lambda x, mask, count: (x * mask).sum())),
        Mistake("divided by the rows", "Is it a mean over tokens or over responses? By how many do "
                "you divide?", version(average=average_by(len))),
        Mistake("a mean of the rows' means (71)", "Rows of equal length agree. | Does a token of "
                "a short row weigh as much as one of a long row?", version(average=mean_of_rows)),
        Mistake("the padding is added up", "Without padding it agrees. | You divide by the real "
                "tokens: are they alone in the sum?",
                version(average=lambda x, mask, count: average(x, mask * 0 + 1, (
                    mask.sum().clamp(min=1) if count is None else count)))),
        Mistake("count is ignored", "Without a count it agrees. | By what do you divide when a "
                "count is given?", version(average=lambda x, mask, count: average(x, mask, None))),
        Mistake("0 divided by 0", "It agrees where there are real tokens. | By how many do you "
                "divide where there are no real tokens?",
                version(average=average_by(torch.Tensor.sum))),
        Mistake("0 without a graph", "The values are right. | Where there is no real token, what "
                "does loss.backward() do with your 0?",
                version(average=average_or(lambda: torch.zeros(())))),
        Mistake("a new 0 with a graph of its own", "The values are right, and backward() works. | "
                "Where there is no real token, from what is your 0 computed: does its graph lead "
                "back to the inputs?",
                version(average=average_or(lambda: torch.zeros(()).requires_grad_())))]


def on_grid(x):
    """In steps of 1/8, which no bound of a clip is near to: rounding decides nothing."""
    return (8 * x).round() / 8


# ---- ppo_policy_loss ----------------------------------------------------------------------------


def hardly_probable():
    """exp(-200) is 0 in float32, and 0 / 0 no ratio."""
    return Case("a token of hardly any probability", {
        "logprobs": torch.tensor([[-200.0, -0.5]]), "old_logprobs": torch.tensor([[-200.1, -0.6]]),
        "advantages": torch.tensor([[1.0, 2.0]]), "mask": torch.ones(1, 2), "clip_range": 0.2},
        grad=("logprobs",))


def policy_cases(seed):
    def case(note, mask, clip_range=0.2, scale=0.5, draw=0, **count):
        old = -normal(*mask.shape, seed=seed + draw).abs() - 0.1
        move = on_grid(scale * normal(*mask.shape, seed=seed + draw + 1))
        advantages = 2 * normal(*mask.shape, seed=seed + draw + 2) + 0.5
        # Whatever the seed: one token that is clipped, and one that is not, far outside the clip.
        move[0, :2], advantages[0, :2] = 1.0, torch.tensor([1.5, -1.5])
        return Case(note, {"logprobs": old + move, "old_logprobs": old, "advantages": advantages,
                           "mask": mask, "clip_range": clip_range, **count}, grad=("logprobs",))

    four = Case("ratios 2 and 0.5 with advantages of both signs, worked by hand", {
        "logprobs": torch.tensor([[log(2), log(0.5), log(2), log(0.5)]]),
        "old_logprobs": torch.zeros(1, 4), "advantages": torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
        "mask": torch.ones(1, 4), "clip_range": 0.2}, grad=("logprobs",),
        # The losses are -1.2 (clipped), -0.5, 2, 0.8 (clipped).
        expect=(torch.tensor(0.275), torch.tensor(0.5)))
    full, ragged = torch.ones(1, 3), ragged_mask([5, 1, 3, 2, 5])
    only_one = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    on_policy = case("ratio 1 everywhere", full)
    on_policy.inputs["logprobs"] = on_policy.inputs["old_logprobs"].clone()
    return [case("one row without padding", full), four, on_policy,
            hardly_probable(),
            case("rows that end early, noise at the padding", ragged, draw=10),
            case("ratios far beyond the clip", ragged, scale=2.0, draw=20),
            case("clip range 0.1", ragged, clip_range=0.1, draw=30),
            case("a row without any token", ragged_mask([4, 0, 2]), scale=1.0, draw=60),
            case("count given", ragged, draw=40, count=37),
            case("count given as a tensor", ragged, scale=1.0, draw=50, count=torch.tensor(20.0)),
            case("one real token in all", only_one, draw=80),
            case("one row of one real token", only_one[:1], draw=90),
            case("no real token at all", torch.zeros(2, 3)),
            case("one row without any token", torch.zeros(1, 3), draw=70)]


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


def policy_loss_like(ratio=lambda new, old: torch.exp(new - old), choose=torch.max, sign=-1.0,
                     bound=lambda ratio, eps: ratio.clamp(1 - eps, 1 + eps), average=average,
                     is_clipped=lambda loss, clipped, ratio, bounded: clipped > loss,
                     average_clipped=None):
    """A version of ppo_policy_loss with parts that can be set wrong."""
    def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
        r = ratio(logprobs, old_logprobs)
        bounded = bound(r, clip_range)
        loss, clipped = sign * advantages * r, sign * advantages * bounded
        fraction = (average_clipped or average)(
            is_clipped(loss, clipped, r, bounded).float(), mask, count)
        return average(choose(loss, clipped), mask, count), fraction
    return ppo_policy_loss


def log_ratio_clamped(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    def bound(ratio, eps):
        return (logprobs - old_logprobs).clamp(-eps, eps).exp()
    return policy_loss_like(bound=bound)(
        logprobs, old_logprobs, advantages, mask, clip_range, count)


def policy_loss_by_cases(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    """The branches written out: only a gain beyond the clip is cut off."""
    ratio = (logprobs - old_logprobs).exp()
    too_high, too_low = ratio > 1 + clip_range, ratio < 1 - clip_range
    cut = ((advantages > 0) & too_high) | ((advantages < 0) & too_low)
    edge = torch.where(advantages > 0, 1 + clip_range, 1 - clip_range)
    objective = advantages * torch.where(cut, edge, ratio)
    real = mask.bool()
    count = max(int(real.sum()), 1) if count is None else count
    return -objective[real].sum() / count, cut[real].sum().float() / count


POLICY_LOSS = Blank(
    FILE, "ppo_policy_loss", policy_cases, slow_policy_loss,
    formula="max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)) with ratio = exp(new - old), summed "
    "over the real tokens and divided by count",
    place=PLACE.format("ppo_policy_loss"), outputs=("loss", "clip_fraction"),
    mistakes=[
        Mistake("the smaller loss (65)", "At ratio 1 it agrees. | Pessimistic means that the "
                "larger of the two losses counts: which one do you take?",
                policy_loss_like(choose=torch.min)),
        Mistake("the clipped term alone (66)", "Inside the clip it agrees. | When the ratio is 2 "
                "and the advantage negative, who pulls it back?",
                policy_loss_like(choose=lambda loss, clipped: clipped)),
        Mistake("no clip (67)", "Inside the clip it agrees. | What keeps a large ratio from "
                "paying?",
                policy_loss_like(choose=lambda loss, clipped: loss)),
        Mistake("the ratio upside down (68)", "At ratio 1 the value is right and the gradient is "
                "exactly -1 times the expected one. | Which way round is the ratio?",
                policy_loss_like(ratio=lambda new, old: torch.exp(old - new))),
        Mistake("the ratio is not exponentiated (69)", "A ratio of probabilities is 1 where they "
                "are equal. What is a difference of log-probabilities there?",
                policy_loss_like(ratio=lambda new, old: new - old)),
        Mistake("the objective's sign (70)", "The paper maximises an objective; an optimiser "
                "minimises a loss. What is the sign of yours?",
                policy_loss_like(sign=1.0, choose=torch.min)),
        Mistake("old log-probs are the current ones (72)", "Where the policy has moved, your "
                "ratio is still 1. | Which policy sampled?",
                policy_loss_like(ratio=lambda new, old: torch.exp(new - new))),
        Mistake("the log-ratio is clipped (73)", "Close to the clip range, not quite on it: are 1 "
                "- eps and 1 + eps bounds of the ratio or of its logarithm?", log_ratio_clamped),
        Mistake("the fraction counts both sides", "The loss is right. | A ratio outside the clip "
                "counts only where the clipped term decides: when does it not?",
                policy_loss_like(is_clipped=lambda loss, clipped, r, bounded: r != bounded)),
        Mistake("the fraction counts ties", "The loss is right. | Inside the clip the two terms "
                "are equal: is such a token clipped?",
                policy_loss_like(is_clipped=lambda loss, clipped, r, bounded: clipped >= loss)),
        Mistake("the fraction carries a graph", "The numbers are right. | The fraction is only "
                "looked at: what does it keep in memory as long as it has a graph?",
                policy_loss_like(is_clipped=lambda loss, clipped, r, bounded: (
                    (clipped - loss).sign().clamp(min=0)))),
        Mistake("the fraction ignores count", "The loss is right. | By what do you divide the "
                "number of clipped tokens?", policy_loss_like(
                    average_clipped=lambda x, mask, count: average(x, mask, None))),
        *average_mistakes(policy_loss_like)],
    right={"written as cases": policy_loss_by_cases})


# ---- ppo_value_loss -----------------------------------------------------------------------------


def value_cases(seed):
    def case(note, mask, clip_range=0.2, moved=0.5, draw=0, **count):
        old, move, error = (on_grid(scale * normal(*mask.shape, seed=seed + draw + i))
                            for i, scale in enumerate((1.0, moved, 1.0)))
        old = old + 5
        # Whatever the seed: one value that jumps to its return, and one that jumps away from it.
        error[0, :2] = torch.tensor([1.0, -1.0])
        if moved:
            move[0, :2] = 1.0
        return Case(note, {"values": old + move, "old_values": old, "returns": old + error,
                           "mask": mask, "clip_range": clip_range, **count}, grad=("values",))

    # From 0 the values moved to 1, 1 and -1 (that is 0.2, 0.2 and -0.2), and to 0.1. The larger
    # squares are those of 0.2 - 1, 1 - (-1), -1 - 2 and 0.1 - 1.
    by_hand = Case("moves in both directions, worked by hand", {
        "values": torch.tensor([[1.0, 1.0, -1.0, 0.1]]), "old_values": torch.zeros(1, 4),
        "returns": torch.tensor([[1.0, -1.0, 2.0, 1.0]]), "mask": torch.ones(1, 4),
        "clip_range": 0.2}, grad=("values",),
        expect=torch.tensor((0.64 + 4.0 + 9.0 + 0.81) / 2 / 4))
    full, ragged = torch.ones(1, 3), ragged_mask([5, 1, 3, 2, 5])
    only_one = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    return [case("one row without padding", full), by_hand,
            case("values that have not moved", full, moved=0.0, draw=10),
            case("rows that end early, noise at the padding", ragged, draw=20),
            case("values far beyond the clip", ragged, moved=2.0, draw=30),
            case("clip range 0.1", ragged, clip_range=0.1, draw=40),
            case("a row without any token", ragged_mask([4, 0, 2]), moved=1.0, draw=50),
            case("count given", ragged, draw=60, count=37),
            case("count given as a tensor", ragged, moved=1.0, draw=70, count=torch.tensor(20.0)),
            case("one real token in all", only_one, draw=100),
            case("one row of one real token", only_one[:1], draw=110),
            case("no real token at all", torch.zeros(2, 3), draw=80),
            case("one row without any token", torch.zeros(1, 3), draw=90)]


def slow_value_loss(values, old_values, returns, mask, clip_range, count=None):
    total, tokens = 0.0, 0
    for b, t in [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1])]:
        if mask[b, t] == 0:
            continue
        tokens += 1
        new, old, wanted = (float(x[b, t]) for x in (values, old_values, returns))
        bounded = min(max(new, old - clip_range), old + clip_range)
        total += max((new - wanted) ** 2, (bounded - wanted) ** 2) / 2
    return torch.tensor(total / (max(tokens, 1) if count is None else float(count)))


def value_loss_like(choose=torch.max, half=0.5, average=average,
                    bound=lambda new, old, returns, eps: old + (new - old).clamp(-eps, eps)):
    """A version of ppo_value_loss with parts that can be set wrong."""
    def ppo_value_loss(values, old_values, returns, mask, clip_range, count=None):
        bounded = bound(values, old_values, returns, clip_range)
        loss = choose((values - returns).square(), (bounded - returns).square())
        return half * average(loss, mask, count)
    return ppo_value_loss


def value_loss_by_cases(values, old_values, returns, mask, clip_range, count=None):
    """Moved too far: the clipped error counts where it is the larger one, and it is a constant."""
    low, high = old_values - clip_range, old_values + clip_range
    edge = torch.minimum(torch.maximum(values.detach(), low), high)
    free, stuck = (values - returns).double(), (edge - returns).double()
    error = torch.where(stuck.abs() > free.abs() + 1e-6, stuck, free)[mask.bool()]
    return (torch.dot(error, error) / 2 / (max(len(error), 1) if count is None else count)).float()


VALUE_LOSS = Blank(
    FILE, "ppo_value_loss", value_cases, slow_value_loss,
    formula="1/2 max((V - R)^2, (clipped - R)^2) with clipped = old + clip(V - old, -eps, eps), "
    "summed over the real tokens and divided by count",
    place=PLACE.format("ppo_value_loss"),
    mistakes=[
        Mistake("the smaller error (74)", "Inside the clip it agrees. | Pessimistic means that "
                "the larger of the two errors counts: which one do you take?",
                value_loss_like(choose=torch.min)),
        Mistake("the half is missing (75)", "Value and gradient are exactly twice the expected "
                "ones. | Which factor belongs to a squared error here?", value_loss_like(half=1.0)),
        Mistake("the value itself is clipped (76)", "Where are your clipped values, whatever the "
                "old ones are? What should be at most eps: a value or a change?",
                value_loss_like(bound=lambda new, old, returns, eps: new.clamp(-eps, eps))),
        Mistake("the clip starts from the new value", "Your clipped value is eps away from the new "
                "one. From which of the two may it be eps away?",
                value_loss_like(bound=lambda new, old, returns, eps: (
                    new + (old - new).clamp(-eps, eps)))),
        Mistake("the clip is a share of the old value", "The policy's ratio is near 1, so its "
                "bounds are 1 - eps and 1 + eps. Is the value's change a ratio too?",
                value_loss_like(bound=lambda new, old, returns, eps: (
                    new.clamp(old * (1 - eps), old * (1 + eps))))),
        Mistake("only the change is compared", "What does your clipped term hold besides the "
                "change of the value?", value_loss_like(
                    bound=lambda new, old, returns, eps: (new - old).clamp(-eps, eps))),
        Mistake("the clipped error alone", "Inside the clip it agrees. | When a value has jumped "
                "far in the wrong direction, what brings it back?",
                value_loss_like(choose=lambda free, clipped: clipped)),
        Mistake("no clip, or one around the return (76)", "Inside the clip it agrees. | What "
                "keeps a value from gaining by a jump: is it bound to anything but the return?",
                value_loss_like(choose=lambda free, clipped: free)),
        Mistake("the mean of both errors", "Inside the clip it agrees. | Do both errors count, or "
                "one of them?", value_loss_like(choose=lambda free, clipped: (free + clipped) / 2)),
        *average_mistakes(value_loss_like)],
    right={"written as cases, in float64": value_loss_by_cases})


# ---- masked_entropy -----------------------------------------------------------------------------


def entropy_cases(seed):
    def case(note, mask, size=1.5, mean=0, draw=0, dtype=torch.float32, vocabulary=6, **count):
        logits = mean + size * normal(*mask.shape, vocabulary, seed=seed + draw)
        return Case(note, {"logits": logits.to(dtype), "mask": mask, **count},
                    grad=("logits",) if dtype == torch.float32 else ())

    def huge(note, mask, draw):
        logits = 200.0 * integers(-1, 2, *mask.shape, 5, seed=seed + draw)
        logits[0, 0] = torch.tensor([200.0, -200.0, 0.0, -200.0, 200.0])
        return Case(note, {"logits": logits, "mask": mask}, grad=("logits",))

    def equal(note, mask, vocabulary):
        """Neither log 3 nor log 6 is near to a number that bfloat16 has."""
        return Case(note, {"logits": torch.full((*mask.shape, vocabulary), 2.5).bfloat16(),
                           "mask": mask}, expect=torch.tensor(log(vocabulary)))

    def unlikely(note, p, vocabulary):
        """One token, and all the others with the probability p each."""
        rest = vocabulary - 1
        probabilities = torch.tensor([[[1 - rest * p] + [p] * rest]], dtype=torch.float64)
        return Case(f"{note}, worked by hand", {
            "logits": probabilities.log().float(), "mask": torch.ones(1, 1)}, grad=("logits",),
            expect=torch.tensor(-(1 - rest * p) * math.log1p(-rest * p) - rest * p * log(p)))

    by_hand = Case("probabilities of 1/2, 1/3 and 1/4, worked by hand", {
        "logits": torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0], [3.0, 6.0, 3.0]]]).log(),
        "mask": torch.ones(1, 3)}, grad=("logits",),
        expect=torch.tensor((1.5 * log(2) + log(3) + 1.5 * log(2)) / 3))
    sure = Case("a sure policy and one that halts between two, worked by hand", {
        "logits": torch.tensor([[[300.0, 0.0, 0.0], [-200.0, 200.0, 200.0]]]),
        "mask": torch.ones(1, 2)}, grad=("logits",), expect=torch.tensor(log(2) / 2))
    full, ragged = torch.ones(1, 3), ragged_mask([5, 1, 3, 2, 5])
    return [by_hand, sure, case("one row without padding", full),
            case("rows that end early, noise at the padding", ragged, draw=10),
            case("a row without any token", ragged_mask([4, 0, 2]), draw=20, vocabulary=4),
            case("logits around 100", ragged_mask([3, 2]), mean=100, draw=120),
            unlikely("nineteen tokens of one in ten thousand", 1e-4, 20),
            unlikely("thirty-nine tokens of one in a million", 1e-6, 40),
            huge("logits of size 200", full, draw=30),
            huge("logits of size 200, rows that end early", ragged, draw=40),
            equal("equal logits in bfloat16", full, 6),
            equal("equal logits in bfloat16, rows that end early", ragged, 3),
            case("logits in bfloat16", ragged, size=2.0, draw=60, dtype=torch.bfloat16),
            case("logits in bfloat16, no gradient", ragged, draw=70, dtype=torch.bfloat16),
            case("count given", ragged, draw=80, count=37),
            case("count given as a tensor", ragged, draw=90, count=torch.tensor(20.0)),
            case("no real token at all", torch.zeros(2, 3), draw=100),
            case("one row without any token", torch.zeros(1, 3), draw=110)]


def slow_entropy(logits, mask, count=None):
    total, tokens = 0.0, 0
    for z, real in zip(logits.flatten(0, 1).tolist(), mask.flatten().tolist()):
        if real:
            tokens += 1
            exps = [math.exp(x - max(z)) for x in z]
            probabilities = [x / sum(exps) for x in exps]
            total += sum(p * log(1 / p) for p in probabilities if p > 0)
    return torch.tensor(total / (max(tokens, 1) if count is None else float(count)))


def entropy_of(logits, dim=-1):
    logprobs = logits.log_softmax(dim=dim)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def entropy_from_softmax(logits, small=0.0):
    p = logits.softmax(dim=-1)
    return -(p * (p + small).log()).sum(dim=-1)


def entropy_with_where(logits):
    p = logits.softmax(dim=-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(dim=-1)


def entropy_like(entropy=entropy_of, cast=torch.Tensor.float, average=average):
    """A version of masked_entropy with parts that can be set wrong."""
    def masked_entropy(logits, mask, count=None):
        return average(entropy(cast(logits)).float(), mask, count)
    return masked_entropy


def entropy_by_logsumexp(logits, mask, count=None):
    z = logits.double()
    entropy = z.logsumexp(dim=-1) - torch.einsum("btv,btv->bt", z.softmax(dim=-1), z)
    count = max(float(mask.sum()), 1) if count is None else count
    return ((entropy * mask).sum() / count).float()


def entropy_by_torch(logits, mask, count=None):
    entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
    return average(entropy, mask, count)


ENTROPY = Blank(
    FILE, "masked_entropy", entropy_cases, slow_entropy,
    formula="H_t = -sum_v p_v log p_v with p = softmax(logits_t), summed over the real tokens and "
    "divided by count",
    place=PLACE.format("masked_entropy"),
    mistakes=[
        Mistake("the log of softmax (77)", "It agrees on small logits. | In float32 softmax can "
                "be exactly 0: what is 0 times its logarithm?", entropy_like(entropy_from_softmax)),
        *[Mistake(f"{small} under the logarithm (22)", "It agrees on large probabilities. | What "
                  "is added to a probability of a millionth, and how much larger does that make "
                  "it?",
                  entropy_like(lambda z, small=small: entropy_from_softmax(z, small)))
          for small in (1e-5, 1e-6)],
        Mistake("NaN in the gradient (77)", "The value is right everywhere, and the gradient is "
                "NaN where a probability is 0. | Does torch.where keep a NaN out of the backward "
                "pass?", entropy_like(entropy_with_where)),
        Mistake("the sign (78)", "Every value is exactly -1 times the expected one. | Can an "
                "entropy be negative?", entropy_like(lambda z: -entropy_of(z))),
        Mistake("the mean over the vocabulary (78)", "Every value is the expected one divided by "
                "V. | What is the entropy of four equally likely tokens?",
                entropy_like(lambda z: entropy_of(z) / z.shape[-1])),
        Mistake("bits", "Every value is 1.4427 times the expected one. | What is the base of your "
                "logarithm?", entropy_like(lambda z: entropy_of(z) / log(2))),
        Mistake("logits for log-probabilities", "Add 1 to all logits: the probabilities stay, and "
                "your result changes. | What is a log-probability besides the logit?",
                entropy_like(lambda z: -(z.softmax(dim=-1) * z).sum(dim=-1))),
        Mistake("softmax over the positions (32)", "Over which dimension should the probabilities "
                "sum to 1: the positions or the vocabulary?",
                entropy_like(lambda z: entropy_of(z, dim=1))),
        Mistake("the surprise at the likeliest token", "Where all tokens are equally likely it "
                "agrees. | Which tokens belong to the expectation?",
                entropy_like(lambda z: -z.log_softmax(dim=-1).amax(dim=-1))),
        Mistake("computed in half precision", "In float32 it agrees. | In bfloat16 numbers have "
                "three digits: when do you change the dtype?", entropy_like(cast=lambda z: z)),
        Mistake("no gradient", "The value is right. | If the entropy is added to a loss as a "
                "bonus, what does it change?", entropy_like(lambda z: entropy_of(z.detach()))),
        *average_mistakes(entropy_like)],
    right={"logsumexp minus the mean logit, in float64": entropy_by_logsumexp,
           "logsumexp minus the mean logit, in float32": entropy_like(
               lambda z: z.logsumexp(dim=-1) - (z.softmax(dim=-1) * z).sum(dim=-1)),
           "torch.distributions": entropy_by_torch})


# ---- adaptive_kl_coef ---------------------------------------------------------------------------


def coef_cases(seed):
    names = "kl_coef", "observed_kl", "target_kl", "batch_size", "horizon"

    def case(note, *numbers, expect=None):
        return Case(note, dict(zip(names, numbers)), expect=expect)

    def by_hand(note, *numbers, draw, expect):
        """A coefficient that is some times as large has a new one that is as many times larger."""
        times = 1 + normal(1, seed=seed + draw).abs().item()
        return case(note, times * numbers[0], *numbers[1:], expect=times * expect)

    def random(note, apart, draw):
        coef, target, off = normal(3, seed=seed + draw).abs().tolist()
        target = 1 + target
        return case(note, 1 + coef, target * (1 + apart * (0.1 + off)), target, 50, 100)

    return [case("the KL is 10% above its target", 0.5, 6.6, 6.0, 64, 640, expect=0.505),
            by_hand("the KL is 10% below its target", 0.5, 5.4, 6.0, 64, 640, draw=20,
                    expect=0.495),
            by_hand("the KL is on its target", 0.5, 6.0, 6.0, 64, 640, draw=21, expect=0.5),
            by_hand("the KL is twice its target", 0.5, 12.0, 6.0, 64, 640, draw=22, expect=0.51),
            by_hand("the KL is 0", 0.5, 0.0, 6.0, 64, 640, draw=23, expect=0.49),
            by_hand("the estimate of the KL is negative", 2.0, -9.0, 6.0, 32, 64, draw=24,
                    expect=1.8),
            by_hand("a small target", 1.0, 0.0115, 0.01, 20, 40, draw=25, expect=1.075),
            by_hand("a batch as large as the horizon", 2.0, 9.0, 3.0, 32, 32, draw=26, expect=2.4),
            by_hand("a batch larger than the horizon", 1.0, 9.0, 3.0, 80, 20, draw=27, expect=1.8),
            by_hand("a horizon of one response", 1.0, 3.3, 3.0, 2, 1, draw=28, expect=1.2),
            random("random numbers, above the target", 0.2, draw=0),
            random("random numbers, below the target", -0.2, draw=10)]


def slow_coef(kl_coef, observed_kl, target_kl, batch_size, horizon):
    share = batch_size / horizon
    if observed_kl > 1.2 * target_kl:
        return kl_coef + kl_coef * 0.2 * share
    if observed_kl < 0.8 * target_kl:
        return kl_coef - kl_coef * 0.2 * share
    return kl_coef + kl_coef * (observed_kl - target_kl) / target_kl * share


def clip(x, low=-0.2, high=0.2):
    return min(max(x, low), high)


def coef_like(error=lambda observed, target: clip(observed / target - 1),
              share=lambda batch_size, horizon: batch_size / horizon,
              change=lambda coef, x: coef * (1 + x)):
    """A version of adaptive_kl_coef with parts that can be set wrong."""
    def adaptive_kl_coef(kl_coef, observed_kl, target_kl, batch_size, horizon):
        return change(kl_coef, error(observed_kl, target_kl) * share(batch_size, horizon))
    return adaptive_kl_coef


def relative(observed, target):
    return observed / target - 1


def doubled_or_halved(kl_coef, observed_kl, target_kl, batch_size, horizon):
    if observed_kl > 1.5 * target_kl:
        return kl_coef * 2
    return kl_coef / 2 if observed_kl < target_kl / 1.5 else kl_coef


def coef_in_tensors(kl_coef, observed_kl, target_kl, batch_size, horizon):
    error = torch.tensor((observed_kl - target_kl) / target_kl).double().clamp(-0.2, 0.2)
    return (torch.addcmul(torch.tensor(1.0), error, torch.tensor(batch_size / horizon))
            * kl_coef).item()


KL_COEF = Blank(
    FILE, "adaptive_kl_coef", coef_cases, slow_coef,
    formula="beta (1 + error batch_size / horizon) with error = clip(observed_kl / target_kl - 1, "
    "-0.2, 0.2)",
    place=PLACE.format("adaptive_kl_coef"),
    mistakes=[
        Mistake("the sign of the error (79)", "The KL is above its target: the policy is too far "
                "away. Should the penalty fall then, as yours does?",
                coef_like(lambda observed, target: clip(1 - observed / target))),
        Mistake("the error is not clipped (79)", "Near the target it agrees. | By how much may "
                "one strange batch change the coefficient?", coef_like(relative)),
        Mistake("clipped from above only", "Above the target it agrees. | How far down may the "
                "error go?",
                coef_like(lambda observed, target: min(relative(observed, target), 0.2))),
        Mistake("clipped from below only", "Below the target it agrees. | How far up may the "
                "error go?",
                coef_like(lambda observed, target: max(relative(observed, target), -0.2))),
        Mistake("the horizon is ignored (79)", "The change is right in direction and too fast. | "
                "What are batch_size and horizon for?",
                coef_like(share=lambda batch, horizon: 1.0)),
        Mistake("the batch size is ignored", "The change is too slow. | After a horizon of "
                "responses, not of steps, the error counts in full: how many responses had the "
                "step?", coef_like(share=lambda batch, horizon: 1 / horizon)),
        Mistake("batch size and horizon swapped", "A longer horizon should make the change slower. "
                "What does it do in yours?",
                coef_like(share=lambda batch, horizon: horizon / batch)),
        Mistake("the error is absolute", "Is an error of 1 large when the target is 6, and when it "
                "is 0.01? Against what is it measured?",
                coef_like(lambda observed, target: clip(observed - target))),
        Mistake("the error is relative to the observed KL", "On the target it agrees. | How large "
                "is your error when the KL is 0: relative to what?",
                coef_like(lambda observed, target: clip(
                    (observed - target) / observed))),
        Mistake("the whole change is clipped", "With a long horizon and near the target it "
                "agrees. | What lies between -0.2 and 0.2: the error, or the error times "
                "batch_size / horizon?",
                coef_like(relative, change=lambda coef, x: coef * (1 + clip(x)))),
        Mistake("the change is added", "At a coefficient of 1 it agrees. | Should 0.01 and 10 "
                "change by the same amount, or by the same share?",
                coef_like(change=lambda coef, x: coef + x)),
        Mistake("only the change is returned", "On the target your result is 0. | What should the "
                "coefficient be when the KL is on its target?",
                coef_like(change=lambda coef, x: coef * x)),
        Mistake("an exponential", "For small changes it agrees. | Is the change 1 + x or exp(x)?",
                coef_like(change=lambda coef, x: coef * math.exp(x))),
        Mistake("doubled or halved", "That is the rule of the PPO paper (section 4). What does "
                "Ziegler's do with a KL that is 10% off?", doubled_or_halved)],
    right={"in tensors of float64": coef_in_tensors})


BLANKS = [WHITEN, POLICY_LOSS, VALUE_LOSS, ENTROPY, KL_COEF]
