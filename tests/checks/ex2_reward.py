"""The checks of exercise 2. Mistakes are numbered where a list of pitfalls of the field has
them."""

import math

import torch
import torch.nn.functional as F

from .core import Blank, Case, Mistake
from .inputs import different, integers, normal, ragged_mask

FILE, PLACE = "ex2_reward", 'section "The maths" of lesson2_reward.py, function {}'


def masks(seed):
    """{note: attention mask}: padding on either side and on both, the lengths drawn by chance."""
    a, b, c, d = (integers(2, 6, 3, seed=seed + draw).tolist() for draw in range(4))
    square = different(1, 5, 4, seed=seed + 4).tolist()

    def mask(lengths, side="right"):
        return ragged_mask(lengths, side, torch.int64)

    return {
        "one row, padded on the right": torch.tensor([[1, 1, 0]]),
        "one row, padded on the left": torch.tensor([[0, 1, 1, 1]]),
        "one token": torch.ones(1, 1, dtype=torch.int64),
        "no padding": torch.ones(2, 3, dtype=torch.int64),
        "padded on the right, one row of one token": mask([6, 1, *a]),
        "padded on the left, one row of one token": mask([6, 1, *b], "left"),
        "as many rows as tokens, padded on the right": mask(square),
        "as many rows as tokens, padded on the left": mask(square, "left"),
        "one row, padded on both sides": torch.tensor([[0, 1, 1, 0]]),
        "padded on both sides": torch.cat([mask([6, 1, *c], "left"), mask([1, *d, 6])], dim=1)}


# ---- last_token_index ---------------------------------------------------------------------------


def index_cases(seed):
    by_hand = {"one row, padded on the right": [1], "one row, padded on the left": [3],
               "one row, padded on both sides": [2], "no padding": [2, 2]}
    return [Case(note, {"attention_mask": mask},
                 expect=torch.tensor(by_hand[note]) if note in by_hand else None)
            for note, mask in masks(seed).items()]


def slow_index(attention_mask):
    last = []
    for row in attention_mask.tolist():
        t = len(row) - 1
        while row[t] == 0:
            t -= 1
        last.append(t)
    return torch.tensor(last)


def rightmost(mask):
    """The right index."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)


def index_by_loop(attention_mask):
    return torch.stack([row.nonzero().max() for row in attention_mask])


def index_by_maximum(attention_mask):
    positions = torch.arange(attention_mask.shape[1]).expand_as(attention_mask)
    return positions.masked_fill(attention_mask == 0, -1).max(dim=1).values


LAST_TOKEN_INDEX = Blank(
    FILE, "last_token_index", index_cases, slow_index,
    formula="the largest position t with attention_mask[b, t] = 1, for every row b",
    place=PLACE.format("last_token_index"),
    mistakes=[
        Mistake("one too far", "Yours is one more than the expected index everywhere. | At which "
                "number do positions start?", lambda mask: rightmost(mask) + 1),
        Mistake("always the last position (15)", "Rows without padding on the right agree. | What "
                "stands at the last position of a row with padding on the right?",
                lambda mask: torch.full((len(mask),), mask.shape[1] - 1)),
        Mistake("the number of tokens minus 1 (16)", "Rows without padding on the left agree. | A "
                "row of two tokens with padding before them: at which position is the second one?",
                lambda mask: mask.sum(dim=1) - 1),
        Mistake("the number of tokens (17)", "In a row without padding your index lies outside "
                "the row. | At which number do positions start, and at which one do counts?",
                lambda mask: mask.sum(dim=1)),
        Mistake("the first real token", "Yours is the position of each row's first real token. | "
                "Where several entries are largest, which of them does argmax give?",
                lambda mask: mask.argmax(dim=1)),
        Mistake("the place before the first 0", "Rows with padding on the right agree. | What is "
                "before the first 0 where there is no 0, and where the row begins with 0?",
                lambda mask: mask.argmin(dim=1) - 1),
        Mistake("the place before the first 0, modulo T", "Rows with padding on one side agree. | "
                "Where a row has padding on both sides, is the first 0 the one that you want?",
                lambda mask: (mask.argmin(dim=1) - 1) % mask.shape[1]),
        Mistake("counted from the right", "Yours is how far the last real token is from the right "
                "end. | How do you turn a distance from the right end into a position from the "
                "left?",
                lambda mask: mask.flip(1).argmax(dim=1)),
        Mistake("a column", "The numbers are right. | What is the shape (B,) of one number a row, "
                "and what is yours?", lambda mask: rightmost(mask).unsqueeze(1)),
        Mistake("a float index", "The numbers are right. | What dtype must a tensor have to be "
                "used as an index?", lambda mask: rightmost(mask).float())],
    right={"nonzero, row by row": index_by_loop, "the largest position": index_by_maximum})


# ---- pool_scores --------------------------------------------------------------------------------


def pool_cases(seed):
    by_hand = Case("one row, padded on the right, worked by hand", {
        "token_scores": torch.tensor([[0.5, 1.5, 9.0]]),
        "attention_mask": torch.tensor([[1, 1, 0]])}, grad=("token_scores",),
        expect=torch.tensor([1.5]))
    return [by_hand] + [
        Case(note, {"token_scores": 3 * normal(*mask.shape, seed=seed + draw) + 5,
                    "attention_mask": mask}, grad=("token_scores",))
        for draw, (note, mask) in enumerate(masks(seed).items(), start=20)]


def slow_pool(token_scores, attention_mask):
    scores = []
    for row, real in zip(token_scores.tolist(), attention_mask.tolist()):
        scores.append([score for score, is_real in zip(row, real) if is_real][-1])
    return torch.tensor(scores, dtype=token_scores.dtype)


def pool_at(index):
    """A version of pool_scores that reads the scores at index(mask), (B,)."""
    return lambda scores, mask: scores.gather(1, index(mask).unsqueeze(1)).squeeze(1)


def pool_by_loop(token_scores, attention_mask):
    return torch.stack([row[real.bool()][-1] for row, real in zip(token_scores, attention_mask)])


def pool_with_one_hot(token_scores, attention_mask):
    last = F.one_hot(rightmost(attention_mask), token_scores.shape[1]).to(token_scores.dtype)
    return torch.einsum("bt,bt->b", token_scores, last)


POOL_SCORES = Blank(
    FILE, "pool_scores", pool_cases, slow_pool,
    formula="token_scores[b, the position of row b's last real token]",
    place=PLACE.format("pool_scores"),
    mistakes=[
        Mistake("always the last position (15)", "Rows without padding on the right agree. | What "
                "stands at the last position of a row with padding on the right?",
                lambda scores, mask: scores[:, -1]),
        Mistake("at the number of tokens minus 1 (16)", "Rows without padding on the left agree. "
                "| Where is the last real token of a row that begins with padding?",
                pool_at(lambda mask: mask.sum(dim=1) - 1)),
        Mistake("at the number of tokens (17)", "Yours fails in rows without padding, because "
                "position T does not exist. | At which number do positions start?",
                pool_at(lambda mask: mask.sum(dim=1))),
        Mistake("at the first real token", "Yours is the score at each row's first real token. | "
                "How much of the answer has the model read at a row's first real token?",
                pool_at(lambda mask: mask.argmax(dim=1))),
        Mistake("the mean over the real tokens (19)", "Rows of one token agree. | Which tokens' "
                "scores have seen the whole answer?",
                lambda scores, mask: (scores * mask).sum(dim=1) / mask.sum(dim=1)),
        Mistake("the sum over the real tokens", "Rows of one token agree. | How many tokens' "
                "scores should count?", lambda scores, mask: (scores * mask).sum(dim=1)),
        Mistake("the largest score", "Rows of one token agree. | Is the token with the best score "
                "the one that has seen the whole answer?",
                lambda scores, mask: scores.masked_fill(mask == 0, -torch.inf).amax(dim=1)),
        Mistake("a bare squeeze (33)", "With two rows or more it agrees. | Which dimensions does "
                "squeeze() remove when B is 1?",
                lambda scores, mask: scores.gather(1, rightmost(mask).unsqueeze(1)).squeeze()),
        Mistake("a column", "The numbers are right. | What is the shape of one score a row, and "
                "what is yours?",
                lambda scores, mask: scores.gather(1, rightmost(mask).unsqueeze(1))),
        Mistake("every row at every index", "Yours has the shape (B, B): each row is read at "
                "every row's index. | How do you tell each row to use its own index?",
                lambda scores, mask: scores[:, rightmost(mask)]),
        Mistake("no gradient", "The numbers are right. | How does the loss reach the model when "
                "the scores are turned into plain numbers?",
                lambda scores, mask: pool_at(rightmost)(scores.detach(), mask))],
    right={"a loop with a bool mask": pool_by_loop, "one-hot and einsum": pool_with_one_hot})


# ---- preference_probability ---------------------------------------------------------------------


def pairs(number, seed, scale=1.0, shift=0.0):
    """The scores of some pairs."""
    chosen, rejected = (scale * normal(number, seed=seed + i) + shift for i in (0, 1))
    return {"chosen": chosen, "rejected": rejected}


def probability_cases(seed):
    log3 = math.log(3)
    return [Case("one pair, worked by hand", {
                "chosen": torch.tensor([log3]), "rejected": torch.tensor([0.0])},
                expect=torch.tensor([0.75])),
            Case("better, equal and worse by ln 3, worked by hand", {
                "chosen": torch.tensor([2 + log3, 1, -1]),
                "rejected": torch.tensor([2, 1, -1 + log3])},
                expect=torch.tensor([0.75, 0.5, 0.25])),
            Case("random scores", pairs(5, seed)),
            Case("scores around 50", pairs(5, seed + 10, shift=50.0)),
            Case("scores around 200", pairs(3, seed + 20, shift=200.0)),
            Case("scores around -200", pairs(3, seed + 30, shift=-200.0)),
            Case("scores 400 apart, worked by hand", {
                "chosen": torch.tensor([200.0, -200.0]), "rejected": torch.tensor([-200.0, 200.0])},
                expect=torch.tensor([1.0, 0.0]))]


def slow_probability(chosen, rejected):
    """exp(c) / (exp(c) + exp(r)), both divided by the larger one."""
    result = []
    for c, r in zip(chosen.tolist(), rejected.tolist()):
        top = max(c, r)
        result.append(math.exp(c - top) / (math.exp(c - top) + math.exp(r - top)))
    return torch.tensor(result)


PREFERENCE_PROBABILITY = Blank(
    FILE, "preference_probability", probability_cases, slow_probability,
    formula="P(chosen wins) = sigmoid(chosen - rejected)",
    place=PLACE.format("preference_probability"),
    mistakes=[
        Mistake("the sign (20)", "Your probability and the expected one add up to 1. | Which "
                "answer's win is your probability about?",
                lambda chosen, rejected: torch.sigmoid(rejected - chosen)),
        Mistake("no sigmoid", "A probability lies between 0 and 1. What maps a difference of "
                "scores to it?", lambda chosen, rejected: chosen - rejected),
        Mistake("the chosen score alone", "Your result does not depend on the rejected answer. | "
                "When both are excellent, how likely is the chosen one to win?",
                lambda chosen, rejected: torch.sigmoid(chosen)),
        Mistake("softmax over the batch", "Your probabilities add up to 1 over the pairs. | Does "
                "a pair compete with the other pairs?",
                lambda chosen, rejected: (chosen - rejected).softmax(dim=0)),
        Mistake("a ratio of scores", "Add the same number to all scores, and your result changes. "
                "| Of what did Bradley and Terry take the ratio, of scores or of their "
                "exponentials?", lambda chosen, rejected: chosen / (chosen + rejected)),
        Mistake("a ratio of exponentials", "It agrees but for large scores, where yours is no "
                "number. | What is exp(200) in float32, and what depends on the difference alone?",
                lambda chosen, rejected: chosen.exp() / (chosen.exp() + rejected.exp())),
        Mistake("a logarithm", "Yours is negative, the logarithm of the expected one. | Which is "
                "asked for here: the probability or its logarithm?",
                lambda chosen, rejected: F.logsigmoid(chosen - rejected)),
        Mistake("0 or 1", "Yours is 0 or 1. | How sure is the model when two scores are close?",
                lambda chosen, rejected: (chosen > rejected).float()),
        Mistake("a mean", "Yours is the mean of the expected ones. | How many numbers are asked "
                "for, one a pair or one a batch?",
                lambda chosen, rejected: torch.sigmoid(chosen - rejected).mean())],
    right={"softmax of each pair": lambda chosen, rejected: torch.stack(
               [chosen, rejected]).softmax(dim=0)[0],
           "1 / (1 + exp)": lambda chosen, rejected: 1 / (1 + (rejected - chosen).exp())})


# ---- pairwise_loss ------------------------------------------------------------------------------


def loss_cases(seed):
    both, log, log3 = ("chosen", "rejected"), math.log, math.log(3)

    def case(note, number=5, draw=0, scale=1.0, shift=0.0, **options):
        return Case(note, {**pairs(number, seed + draw, scale, shift), **options}, grad=both)

    def by_hand(note, chosen, rejected, expect, **options):
        return Case(note, {"chosen": torch.tensor(chosen), "rejected": torch.tensor(rejected),
                           **options}, grad=both, expect=torch.tensor(expect))

    margins = normal(5, seed=seed + 90).abs() + 0.1
    return [by_hand("one pair, better by ln 3, worked by hand", [log3], [0.0], log(4 / 3)),
            by_hand("better, equal and worse by ln 3, worked by hand", [2 + log3, 1.0, -1.0],
                    [2.0, 1.0, -1.0 + log3], (log(4 / 3) + log(2) + log(4)) / 3),
            by_hand("a margin of ln 3, worked by hand", [log3, 1.0], [0.0, 1.0],
                    (log(2) + log(4)) / 2, margin=log3),
            case("random scores", draw=10),
            case("scores around 5", number=4, draw=20, shift=5.0),
            case("a margin a pair", draw=30, margin=margins),
            by_hand("120 apart, worked by hand", [-60.0, 60.0], [60.0, -60.0], 60.0),
            by_hand("400 apart and a margin a pair, worked by hand", [200.0, -200.0],
                    [-200.0, 200.0], 201.0, margin=torch.tensor([1.0, 2.0])),
            case("count given", draw=40, margin=None, count=8),
            case("count given as a tensor", draw=50, margin=None, count=torch.tensor(20)),
            case("a margin and count", draw=60, margin=0.7, count=3)]


def slow_pairwise_loss(chosen, rejected, margin=None, count=None):
    margins = [0.0 if margin is None else float(margin)] * len(chosen) if (
        not isinstance(margin, torch.Tensor)) else margin.tolist()
    total = 0.0
    for c, r, m in zip(chosen.tolist(), rejected.tolist(), margins):
        short = m - (c - r)  # by how much the pair misses; -log P is log(1 + exp(short))
        top = max(short, 0.0)
        total += top + math.log(math.exp(-top) + math.exp(short - top))
    return torch.tensor(total / (len(chosen) if count is None else float(count)),
                        dtype=chosen.dtype)


def pairwise_like(loss=lambda d: -F.logsigmoid(d), difference=lambda c, r, m: c - r - m,
                  average=lambda x, count: x.sum() / (len(x) if count is None else count)):
    """A version of pairwise_loss with parts that can be set wrong."""
    def pairwise_loss(chosen, rejected, margin=None, count=None):
        margin = 0.0 if margin is None else margin
        return average(loss(difference(chosen, rejected, margin)), count)
    return pairwise_loss


def margin_outside(chosen, rejected, margin=None, count=None):
    losses = -F.logsigmoid(chosen - rejected) + (0.0 if margin is None else margin)
    return losses.sum() / (len(chosen) if count is None else count)


def margin_asked_for_its_truth(chosen, rejected, margin=None, count=None):
    difference = chosen - rejected
    if margin:
        difference = difference - margin
    return pairwise_like()(difference, torch.zeros_like(difference), None, count)


def each_score_alone(chosen, rejected, margin=None, count=None):
    margin = 0.0 if margin is None else margin
    losses = -F.logsigmoid(chosen - margin) - F.logsigmoid(-rejected)
    return losses.sum() / (len(chosen) if count is None else count)


def pairwise_with_cross_entropy(chosen, rejected, margin=None, count=None):
    """Two classes; the right one is the first."""
    logits = torch.stack([chosen - (0.0 if margin is None else margin), rejected], dim=1).double()
    targets = torch.zeros(len(logits), dtype=torch.long)
    count = len(logits) if count is None else float(count)
    return (F.cross_entropy(logits, targets, reduction="sum") / count).float()


PAIRWISE_LOSS = Blank(
    FILE, "pairwise_loss", loss_cases, slow_pairwise_loss,
    formula="-log sigmoid(chosen - rejected - margin), summed over the pairs and divided by count",
    place=PLACE.format("pairwise_loss"),
    mistakes=[
        Mistake("the sign of the difference (20)", "Your loss falls when the rejected answer gets "
                "a better score. | Which of the two answers should win?",
                pairwise_like(difference=lambda c, r, m: r - c - m)),
        Mistake("log(sigmoid) (21)", "It agrees but where the difference is -120, and yours is "
                "not finite there. | What is the sigmoid of -120 in float32, and which function "
                "computes its logarithm in one go?",
                pairwise_like(loss=lambda d: -torch.sigmoid(d).log())),
        Mistake("a small number under the logarithm (22)", "It agrees but where the difference is "
                "-120: yours stops at 18.4 and has no gradient there. | Which function computes "
                "the logarithm of a sigmoid in one go?",
                pairwise_like(loss=lambda d: -(torch.sigmoid(d) + 1e-8).log())),
        Mistake("a sum (23)", "Without count, yours is the expected one times the number of "
                "pairs. | What does count mean when it is None?",
                pairwise_like(average=lambda x, count: x.sum() / (1 if count is None else count))),
        Mistake("the mean inside the logarithm (24)", "One pair alone agrees. | Which comes "
                "first, the mean over the pairs or the logarithm of each pair's sigmoid?",
                pairwise_like(loss=lambda d: d, average=lambda d, count: -F.logsigmoid(
                    d.sum() / (len(d) if count is None else count)))),
        Mistake("the mean inside the logarithm, count ignored (24)", "One pair alone agrees. | "
                "What is the loss of each pair by itself, and by what is their sum divided?",
                pairwise_like(loss=lambda d: d, average=lambda d, _: -F.logsigmoid(d.mean()))),
        Mistake("the margin's sign (25)", "Without a margin it agrees. | Should a pair that must "
                "win by more have a larger loss or a smaller one?",
                pairwise_like(difference=lambda c, r, m: c - r + m)),
        Mistake("the margin is ignored", "Without a margin it agrees. | By how much should the "
                "chosen score win?", pairwise_like(difference=lambda c, r, m: c - r)),
        Mistake("the margin outside the sigmoid", "Without a margin it agrees. | Yours only adds "
                "a number to the loss: what is that number's gradient?", margin_outside),
        Mistake("the margin is asked for its truth", "It agrees with a margin that is one number. "
                "| Is a tensor of five margins true or false, and what does `is not None` ask "
                "instead?", margin_asked_for_its_truth),
        Mistake("a hinge (26)", "Yours has kinks: a tie costs exactly 1, not ln 2. | Which loss "
                "did Bradley and Terry's probability lead to?",
                pairwise_like(loss=lambda d: (1 - d).clamp(min=0))),
        Mistake("no logarithm", "Yours is minus the probability itself. | What is done to a "
                "probability first, so that a pair that is very wrong costs very much?",
                pairwise_like(loss=lambda d: -torch.sigmoid(d))),
        Mistake("no minus", "Yours is the expected loss times -1. | Is the logarithm of a "
                "probability positive or negative?", pairwise_like(loss=F.logsigmoid)),
        Mistake("each score alone", "Add the same number to all scores, and your loss changes. | "
                "Is an answer good by itself here, or better than another one?", each_score_alone),
        Mistake("count is ignored", "Without count it agrees. | When the batch comes in pieces, "
                "who knows how many pairs there are in all of it?",
                pairwise_like(average=lambda x, count: x.mean())),
        Mistake("divides a mean by count", "Without count it agrees. | What have you divided by "
                "before you divide by count?",
                pairwise_like(average=lambda x, count: x.mean() / (1 if count is None else count))),
        Mistake("divides by the number of answers", "Without count, yours is half of the expected "
                "one. | Is the mean over pairs or over answers?",
                pairwise_like(average=lambda x, count: x.sum() / (
                    2 * len(x) if count is None else count)))],
    right={"cross-entropy of two classes in float64": pairwise_with_cross_entropy,
           "softplus": pairwise_like(loss=lambda d: F.softplus(-d)),
           "logaddexp": pairwise_like(loss=lambda d: torch.logaddexp(torch.zeros_like(d), -d))})


# ---- preference_accuracy ------------------------------------------------------------------------


def accuracy_cases(seed):
    def by_hand(note, chosen, rejected, expect, side=0):
        """The same number is added to all scores: a positive one, a negative one, or 0."""
        shift = side * integers(1, 1000, 1, seed=seed + 20) / 8
        return Case(note, {"chosen": torch.tensor(chosen) + shift,
                           "rejected": torch.tensor(rejected) + shift},
                    expect=torch.tensor(expect))

    with_ties = pairs(7, seed + 10)
    with_ties["rejected"][:2] = with_ties["chosen"][:2]
    return [by_hand("one pair", [1.0], [0.0], 1.0),
            by_hand("one tie", [1.0], [1.0], 0.0),
            by_hand("two right, one tie, one wrong", [2.0, 0.5, 1.0, 3.0], [1.0, 0.0, 1.0, 9.0],
                    0.5, side=1),
            by_hand("nothing but ties", [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0.0),
            by_hand("all wrong", [0.0, 1.0], [0.1, 2.0], 0.0, side=1),
            by_hand("negative scores", [-1.0, -3.0, -5.0], [-2.0, -4.0, -1.0], 2 / 3,
                    side=-1),
            by_hand("positive scores, close ones", [5.0, 7.0, 6.0], [5.001, 7.001, 5.999], 1 / 3,
                    side=1),
            Case("random scores", pairs(7, seed)),
            Case("random scores and two ties", with_ties)]


def slow_accuracy(chosen, rejected):
    wins = 0
    for c, r in zip(chosen.tolist(), rejected.tolist()):
        wins += 1 if c > r else 0
    return torch.tensor(wins / len(chosen))


def accuracy_like(success):
    """A version of preference_accuracy with another idea of a pair's success."""
    return lambda chosen, rejected: success(chosen, rejected).float().mean()


PREFERENCE_ACCURACY = Blank(
    FILE, "preference_accuracy", accuracy_cases, slow_accuracy,
    formula="the number of pairs with chosen > rejected / the number of pairs",
    place=PLACE.format("preference_accuracy"),
    mistakes=[
        Mistake("a tie is right (27)", "Without ties it agrees. | A model that gives every answer "
                "the same score has learned nothing: what accuracy should it have?",
                accuracy_like(lambda chosen, rejected: chosen >= rejected)),
        Mistake("a tie is half right", "Without ties it agrees. | What does a tie count for here?",
                accuracy_like(lambda chosen, rejected: (chosen > rejected).float()
                              + 0.5 * (chosen == rejected))),
        Mistake("the rejected answer wins", "Yours counts the pairs that the model has wrong. | "
                "Which score should be the higher one?",
                accuracy_like(lambda chosen, rejected: chosen < rejected)),
        Mistake("a number of pairs", "Yours is a count. | By what must a number of pairs be "
                "divided?",
                lambda chosen, rejected: (chosen > rejected).float().sum()),
        Mistake("percent", "Yours is the expected one times 100. | What is all of it: 1 or 100?",
                lambda chosen, rejected: 100 * (chosen > rejected).float().mean()),
        Mistake("the mean probability", "Yours is how sure the model is. | How is a pair counted "
                "when it is won with 51%?",
                accuracy_like(lambda chosen, rejected: torch.sigmoid(chosen - rejected))),
        Mistake("right minus wrong", "Yours is below 0 where most pairs are wrong. | What does a "
                "wrong pair add to the number of right ones?",
                accuracy_like(lambda chosen, rejected: (chosen - rejected).sign())),
        Mistake("a positive score is right", "Add 100 to all scores, and your accuracy is 1. | "
                "What is the chosen score to be compared with?",
                accuracy_like(lambda chosen, rejected: chosen > 0)),
        Mistake("the means are compared", "Yours is 0 or 1. | What is compared first: the two "
                "scores of each pair, or the means?",
                accuracy_like(lambda chosen, rejected: chosen.mean() > rejected.mean())),
        Mistake("every chosen with every rejected", "One pair alone agrees. | How many "
                "comparisons do you make: B, or B times B?",
                accuracy_like(lambda chosen, rejected: chosen.unsqueeze(1) > rejected)),
        Mistake("one result a pair", "Your entries are right, one a pair. | How many numbers are "
                "asked for?", lambda chosen, rejected: (chosen > rejected).float())],
    right={"signs": lambda chosen, rejected: (chosen - rejected).sign().clamp(min=0).mean(),
           "a count and a division": lambda chosen, rejected: torch.tensor(
               int((chosen > rejected).sum()) / len(chosen))})


BLANKS = [LAST_TOKEN_INDEX, POOL_SCORES, PREFERENCE_PROBABILITY, PAIRWISE_LOSS, PREFERENCE_ACCURACY]
