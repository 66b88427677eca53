"""The estimators of GRPO's gradient, their mean and their variance: experiment 4's maths, exact.

With rewards 0 and 1 a group of G answers has k right ones with a binomial probability, and its
advantages depend on k alone. Given k, the answers are drawn one independently of the other, the
right ones from the right answers. So all that is needed of a sum is, for its right and for its
wrong answers, the mean gradient of their log-probability (U) and its mean squared norm (Q).
"""

import torch
import exact
import lab

lesson = lab.load_lesson(4)
BATCH, SIZES = 512, (2, 4, 8, 16, 32, 64)
# The estimators, and the lesson's average over an answer's tokens that each has.
KINDS = {"no baseline": "constant", "batch's mean": "constant", "sum's mean": "constant",
         "best baseline": "constant", "leave-one-out": "constant", "Dr. GRPO": "constant",
         "GRPO, by a constant": "constant", "GRPO": "sequence"}


def logprobs(lm, answers, rows=slice(None)):
    """-> (n, T), 0 after the end token."""
    response, mask = answers.response[rows], answers.mask[rows]
    logits = lesson.response_logits(lm, answers.ids[rows], answers.attention_mask[rows], 4)
    return lesson.response_logprobs(logits, response) * mask


def length_weight(average, lengths):
    """The weight that the lesson's average gives to a token, by the answer's length (N,) -> (N,)"""
    mask = (torch.arange(4) < lengths[:, None]).float()
    losses = torch.ones_like(mask, requires_grad=True)
    loss = lesson.aggregate_loss(losses, mask, average, 4, count=1)
    return torch.autograd.grad(loss, losses)[0][:, 0]


def half_sums(lm, answers, right, sums):
    """Of every sum: the probability of a right answer p (S,), and for each average and r = 0
    (wrong) and 1 (right) U = E[1{r} w grad log p(y)], (S, 2, D), and Q = E[1{r} w^2 |grad|^2],
    (S, 2), w being the weight that the average gives to an answer of that length."""
    size = sum(x.numel() for x in lm.parameters())
    p = answers.add_up(answers.prob * right, sums)
    lengths = torch.cat([answers.mask.sum(dim=1), torch.tensor([4.0])])
    weights = {name: length_weight(name, lengths) for name in ("constant", "sequence")}
    U = {name: torch.zeros(sums, 2, size) for name in weights}
    Q = {name: torch.zeros(sums, 2).double() for name in weights}
    space = torch.empty(answers.row.bincount().max() + 1, size)
    for i in range(sums):
        here = (answers.row == i).nonzero().flatten()
        grads = space[:len(here) + 1]
        for j, one in enumerate(here):
            grads[j] = exact.gradient(lm, logprobs(lm, answers, one[None]).sum())
        prob, is_right = answers.prob[here], right[here].long()
        # What was not enumerated is one more wrong answer: the scores' mean is 0, which gives its
        # own; its squared norm is taken to be that of the rarer half of what was enumerated.
        rest, squares = 1 - prob.sum(), (grads[:-1] ** 2).sum(dim=1).double()
        rare = squares[prob <= prob.median()].mean()
        grads[-1] = -(prob.float() @ grads[:-1]) / rest
        squares = torch.cat([squares, rare[None]])
        prob, is_right = torch.cat([prob, rest[None]]), torch.cat([is_right, torch.tensor([0])])
        for name, weight in weights.items():
            weight = weight[torch.cat([here, torch.tensor([-1])])]
            for r in (0, 1):
                U[name][i, r] = (prob * weight * (is_right == r)).float() @ grads
                Q[name][i, r] = (prob * weight * weight * squares * (is_right == r)).sum()
    return p, U, Q


def advantages(kind, size, p, mean, best):
    """The advantage of a wrong and of a right answer in a group with k right ones, (G+1, 2)."""
    baseline = {"no baseline": 0.0, "batch's mean": mean, "sum's mean": p, "best baseline": best}
    if kind in baseline:
        return torch.tensor([0.0, 1.0]).double().expand(size + 1, 2) - baseline[kind]
    rewards = torch.stack([(torch.arange(size) < k).float() for k in range(size + 1)])  # (G+1, G)
    scaled = lesson.group_advantages(
        rewards.flatten(), size, "std" if kind.startswith("GRPO") else "none")
    scaled = scaled * size / (size - 1) if kind == "leave-one-out" else scaled
    return scaled.view(size + 1, size)[:, [-1, 0]].double()  # the last is wrong, the first right


def moments(kind, size, p, U, Q):
    """Of every sum: the weights (S, 2) with which its U make the mean gradient of a group, and the
    expectation of the squared norm of a group's gradient (S,)."""
    counts, first, second = torch.arange(size + 1).double(), [], []
    P = torch.stack([1 - p, p], dim=1)  # (S, 2)
    dots = torch.stack([u @ u.T for u in U]).double() / P[:, :, None] / P[:, None, :]
    n = torch.stack([size - counts, counts], dim=1)  # (G+1, 2) how many are wrong, right
    for i, chance in enumerate(p):
        best = (Q[i, 1] / Q[i].sum()).item()  # E[|grad|^2 r] / E[|grad|^2]: the least variance
        A = advantages(kind, size, chance.item(), p.mean().item(), best)  # (G+1, 2)
        binomial = torch.distributions.Binomial(size, chance).log_prob(counts).exp()
        own = (n * A * A) @ (Q[i] / P[i] - dots[i].diagonal())
        pairs = torch.einsum("kr,rs,ks->k", n * A, dots[i], n * A)
        # Two answers that are both right are not the same one: n (n - 1) pairs, not n^2.
        first.append(binomial @ (n * A) / size / P[i])
        second.append(binomial @ (own + pairs) / size ** 2)
    return torch.stack(first), torch.stack(second)


def on_policy(lm, answers, right, sums):
    """-> {(kind, G): cosine of the mean to the truth, norm of the mean over the truth's, cosine of
    a batch's gradient to the truth, |mean|^2 / variance of a batch}; and of every sum p and the
    variance with the sum's mean as baseline over the variance without one."""
    p, U, Q = half_sums(lm, answers, right, sums)
    truth, results = U["constant"][:, 1].mean(dim=0), {}
    for kind, average in KINDS.items():
        for size in SIZES:
            weights, squares = moments(kind, size, p, U[average], Q[average])
            mean = torch.einsum("sr,srd->d", weights.float(), U[average]) / sums
            signal = (mean @ mean).item()
            noise = (squares.mean().item() - signal) * size / BATCH
            inner = (mean @ truth / truth.norm()).item()
            dots = torch.stack([u @ u.T for u in U[average]]).double()
            own = squares - torch.einsum("sr,srt,st->s", weights, dots, weights)  # a sum's variance
            if (kind, size) == ("Dr. GRPO", 8):
                results["all sums once"] = inner / (signal + own.mean().item() / sums) ** 0.5
            results[kind, size] = (inner / signal ** 0.5, (signal ** 0.5 / truth.norm()).item(),
                                   inner / (signal + noise) ** 0.5, signal / noise)
    squares = [moments(kind, 1, p, U["constant"], Q["constant"])[1]
               - U["constant"][:, 1].double().square().sum(dim=1) for kind in
               ("no baseline", "sum's mean")]
    return results, (p, squares[1] / squares[0])
