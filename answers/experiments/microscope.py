"""The gradient microscope: how far is what GRPO follows from the gradient of the expected reward?

All answers to a sum are enumerated, so that the expected reward J, its gradient in all 544,256
weights, and the mean and the variance of every estimator of that gradient are computed, not
sampled. Nothing is drawn: with rewards 0 and 1 a group of G answers has k right ones with a
binomial probability, and its advantages depend on k alone. The estimators: REINFORCE (Williams
1992), with the batch's or the sum's mean reward as baseline, leave-one-out (Kool et al. 2019;
Ahmadian et al. 2024), GRPO (Shao et al. 2024, section 4.1.2) and GRPO without the standard
deviation (Dr. GRPO, Liu et al. 2025); the loss averaged over each answer, or by a constant. Then
the same samples are used again and again, clipped and not clipped. Last, what GRPO paid for its
accuracy in KL, and what the optimal policy, p_ref exp(r / beta), pays.

The task here is 64 of the training sums, a batch 512 answers (512 / G sums drawn, G answers each).

    python answers/experiments/microscope.py            five seeds, 15 minutes on one core
    python answers/experiments/microscope.py --quick    one seed, 16 sums
"""

import copy
import random
import statistics
from pathlib import Path

import torch
import exact
import lab

BATCH, SIZES, STALE = 512, (2, 4, 8, 16, 32, 64), (0, 1, 2, 4, 8, 16)
BATCHES = "the same batch", "a fresh batch"
lesson = lab.load_lesson(4)


def gradient(lm, loss):
    parts = torch.autograd.grad(loss, list(lm.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


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
    p = torch.zeros(sums).double().index_add(0, answers.row, answers.prob * right)
    lengths = torch.cat([answers.mask.sum(dim=1), torch.tensor([4.0])])
    weights = {name: length_weight(name, lengths) for name in ("constant", "sequence")}
    U = {name: torch.zeros(sums, 2, size) for name in weights}
    Q = {name: torch.zeros(sums, 2).double() for name in weights}
    space = torch.empty(answers.row.bincount().max() + 1, size)
    for i in range(sums):
        here = (answers.row == i).nonzero().flatten()
        grads = space[:len(here) + 1]
        for j, one in enumerate(here):
            grads[j] = gradient(lm, logprobs(lm, answers, one[None]).sum())
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
    expectation of the squared norm of a group's gradient (S,). Given how many are right, a group's
    answers are drawn one independently of the other."""
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


KINDS = {"no baseline": "constant", "batch's mean": "constant", "sum's mean": "constant",
         "best baseline": "constant", "leave-one-out": "constant", "Dr. GRPO": "constant",
         "GRPO, by a constant": "constant", "GRPO": "sequence"}


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


def stale(lm, tokenizer, answers, right, data, seed):
    """One batch of 512, learned from 16 times with the lesson's update (Dr. GRPO). -> {n: {what:
    cosine to the gradient of J at the weights after n updates}}, and J itself."""
    config = lesson.Config(num_samples=8 * len(data), batch_size=8 * len(data), steps=1,
                           ppo_epochs=1, kl_coef=0, scale="none", average="constant", seed=seed)
    accelerator, policy = lesson.Accelerator(cpu=True), copy.deepcopy(lm)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    reward = lesson.load_rewards(config, lesson.REWARDS, tokenizer, policy)
    torch.manual_seed(seed)

    def sample():
        rollout = lesson.sample_groups(policy, reward, tokenizer, data, range(len(data)), config,
                                       accelerator)
        rollout.advantages = lesson.group_advantages(rollout.rewards, 8, "none")
        rollout.logprobs = lesson.all_logprobs(lambda *x: lesson.response_logits(policy, *x),
                                               rollout, config, accelerator)
        return rollout

    def batch_gradient(rollout):
        loss, _ = lesson.grpo_loss(policy, rollout, {"constant": 4 * len(rollout.ids), "token": 1},
                                   config)
        return -gradient(policy, loss)

    first, results = sample(), {}
    with torch.no_grad():
        old = logprobs(policy, answers)
    p = torch.zeros(len(data)).double().index_add(0, answers.row, answers.prob * right)
    A = (right - p[answers.row]) * 7 / 8  # E[advantage | right or wrong] in groups of 8
    sums = lambda x: torch.zeros(len(data)).double().index_add(0, answers.row, x.double())
    for update in range(STALE[-1] + 1):
        if update in STALE:
            new = logprobs(policy, answers)
            chance = new.double().sum(dim=1).exp()
            J = (chance * right).sum() / len(data)
            # What was not enumerated is one more wrong answer of each sum, of one token.
            rests = [torch.nn.functional.pad((1 - sums(x)).log().float()[:, None], (0, 3))
                     for x in (chance, answers.prob)]
            both = torch.cat([new, rests[0]]), torch.cat([old, rests[1]])
            prob = torch.cat([answers.prob, 1 - sums(answers.prob)])
            every = torch.cat([A, -p * 7 / 8])
            truth, found = gradient(policy, J), {}
            for name, low, high in (("clipped", 0.2, 0.28), ("not clipped", 1e9, 1e9)):
                loss = lesson.grpo_token_loss(*both, both[1], every, 0, low, high).sum(dim=1)
                found[name] = gradient(policy, -(prob * loss).sum())
            found["the same batch"] = batch_gradient(first)
            found["a fresh batch"] = batch_gradient(sample())
            results[update] = {name: torch.cosine_similarity(x, truth, dim=0).item()
                               for name, x in found.items()} | {"J": J.item()}
        lesson.grpo_update(policy, optimizer, first, config, accelerator)
    return results


def paid(reference, policy, tokenizer, data):
    """What the trained policy has for its KL -> (S, 3): p of the reference, p of the policy, its KL
    from the reference (exact but for the mass left out)."""
    answers = exact.enumerate_answers(lesson, policy, tokenizer, data, 1e-5)
    right = exact.rewards(lesson, answers, data)
    with torch.no_grad():
        ref = logprobs(reference, answers).double().sum(dim=1)
    sums = lambda x: torch.zeros(len(data)).double().index_add(0, answers.row, x)
    kl, new = sums(answers.prob * (answers.prob.log() - ref)), sums(answers.prob * right)
    old = exact.right_probability(lesson, reference, tokenizer, data)
    return torch.stack([old, new, kl], dim=1), answers.left_out(len(data)).mean().item()


def least_kl(bought):
    """p_ref exp(r / beta) raises all right answers alike, and no policy with its p has a smaller
    KL: that between two coins -> (S,)."""
    old, new = bought[:, 0], bought[:, 1]
    return (torch.special.xlogy(new, new / old)
            + torch.special.xlogy(1 - new, (1 - new) / (1 - old)))


def look(seed, args, arm):
    """Everything, for one seed."""
    sums = 16 if args.quick else 64
    reference, tokenizer = exact.load(lesson, lab.folder(lab.Arm("sft", seed, 1), args))
    policy, _ = exact.load(lesson, lab.folder(arm, args))
    data, held_out = lesson.load_grpo_prompts(lesson.Config(), tokenizer)
    data = random.Random(0).sample(data, sums)
    answers = exact.enumerate_answers(lesson, reference, tokenizer, data, 1e-3)
    right, rest = exact.rewards(lesson, answers, data), answers.left_out(sums).mean().item()
    bought, unseen = paid(reference, policy, tokenizer, held_out[:32 if args.quick else 100])
    reference.requires_grad_(True)
    results, by_sum = on_policy(reference, answers, right, sums)
    reused = stale(reference, tokenizer, answers, right, data, seed)
    return results, by_sum, reused, bought, (len(answers.row) / sums, rest, unseen)


def tables(found):
    mean = lambda read: statistics.mean(read(x) for x in found)
    for i, title in ((0, "cosine of the mean"), (1, "norm of the mean"), (2, "cosine of a batch"),
                     (3, "signal/noise")):
        lab.table([title, *(f"G = {size}" for size in SIZES)],
                  [[kind, *(f"{mean(lambda x: x[0][kind, size][i]):.4g}" for size in SIZES)]
                   for kind in KINDS])
    lab.table(["updates before", *found[0][2][0]],
              [[n, *(f"{mean(lambda x: x[2][n][what]):.3f}" for what in found[0][2][0])]
               for n in STALE])
    lab.table(["p", "p after", "KL", "least KL for that p"],
              [[f"{x:.3f}" for x in [*bought[:, :3].mean(dim=0), least_kl(bought).mean()]]
               for *_, bought, _ in found])


def picture(found, args):
    plot = lab.pyplot()
    figure, ((a, b), (c, d)) = plot.subplots(2, 2, figsize=(11, 8))
    shown = ("best baseline", "no baseline", "sum's mean", "leave-one-out", "GRPO")
    for kind, colour in zip(shown, lab.COLOURS):
        lab.draw(a, SIZES, [[x[0][kind, size][3] for size in SIZES] for x in found], colour, kind)
    a.set(xscale="log", yscale="log", xlabel="group size G (answers)",
          title="a batch of 512 answers", ylabel="|mean gradient|² / variance")
    a.set_xticks(SIZES, SIZES)
    a.set_xticks([], minor=True)
    a.legend()
    for _, (p, ratio), *_ in found:
        b.scatter(p, ratio, s=8, alpha=0.5, color=lab.COLOURS[0], linewidths=0)
    b.axhline(1, color="black", linewidth=0.8)
    b.set(yscale="log", xlabel="p(right) of the sum", title="what the mean reward as baseline does",
          ylabel="variance with it / without")
    for what, colour in zip(list(found[0][2][0])[:-1], lab.COLOURS):
        lab.draw(c, STALE, [[x[2][n][what] for n in STALE] for x in found], colour, what)
    c.set(xlabel="updates since the answers were sampled", ylabel="cosine to the true gradient",
          title="the same 512 answers again and again")
    c.legend()
    for *_, bought, _ in found:
        d.scatter(least_kl(bought), bought[:, 2], s=6, alpha=0.4, color=lab.COLOURS[0],
                  linewidths=0)
    d.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="p_ref exp(r / beta)")
    d.legend()
    d.set(xlabel="least KL with which p can be had (nats)", ylabel="KL that GRPO spent (nats)",
          title="100 held-out sums a seed")
    lab.save(figure, "microscope", args)


def main():
    args = lab.settings(__doc__)
    lab.LESSONS["exact"] = "answers/experiments/exact.py"
    steps = 30 if args.quick else 60  # the GRPO run of pass_at_k.py
    flags = [f"--steps={steps}", "--eval_every=10"]
    arm = lambda seed: lab.Arm(f"exact{steps}_the_lessons", seed, "exact", flags)
    lab.run_arms([arm(seed) for seed in args.seeds], args)
    found = []
    for seed in args.seeds:
        file = Path(args.runs_dir, f"seed{seed}", f"microscope{'_quick' * args.quick}.pt")
        found.append(exact.remembered(file, lambda: look(seed, args, arm(seed))))
        many, rest, unseen = found[-1][-1]
        print(f"seed {seed}: {many:.1f} answers a sum, {rest:.2%} of the mass left out; of the "
              f"trained policy's {unseen:.2%}", flush=True)
    tables(found)
    picture(found, args)
    make_claims(found)
    lab.done()


def make_claims(found):
    tables = [x[0] for x in found]
    every = lambda test: all(test(t) for t in tables)
    unbiased = ("no baseline", "batch's mean", "sum's mean", "best baseline", "leave-one-out")
    lab.claim("any baseline, and leave-one-out: the mean is the true gradient (cosine and norm "
              "within 0.001)", every(lambda t: all(abs(x - 1) < 1e-3 for kind in unbiased
                                                   for G in SIZES for x in t[kind, G][:2])))
    lab.claim("Dr. GRPO: the true direction, (G - 1) / G of the norm", every(lambda t: all(
        t["Dr. GRPO", G][0] > 0.999 and abs(t["Dr. GRPO", G][1] - 1 + 1 / G) < 1e-3
        for G in SIZES)))
    std = "GRPO, by a constant"
    lab.claim("the standard deviation does not turn the mean at G = 2 (it is the same number in "
              "every group that counts), and more the larger G is", every(
                  lambda t: t[std, 2][0] > 0.9999 and t[std, 64][0] <= t[std, 4][0]))
    worst = min(t["GRPO", G][0] for t in tables for G in SIZES)
    lab.claim(f"but it turns it little: GRPO's mean has a cosine of at least {worst:.4f}",
              worst > 0.98)
    loss = [t["no baseline", 8][3] / t["sum's mean", 8][3] for t in tables]
    lab.claim(f"the mean reward as baseline makes the gradient noisier here: signal/noise without "
              f"one is {min(loss):.2f} to {max(loss):.2f} times as large (G = 8)",
              min(loss) > 1.2)
    p, ratio = (torch.cat(x) for x in zip(*(x[1] for x in found)))
    up, down = ((x).float().mean().item() for x in (ratio[p > 0.5] > 1, ratio[p < 0.4] < 1))
    lab.claim(f"sum by sum: the baseline raises the variance of {up:.0%} of the sums with p > 0.5 "
              f"and lowers it for {down:.0%} of those with p < 0.4", up > 0.8)
    lab.claim("of 512 answers, groups of 4 have the most signal with GRPO; from 8 on more prompts "
              "are worth more than larger groups", every(
                  lambda t: t["GRPO", 4][3] > max(t["GRPO", G][3] for G in (2, 16, 32, 64))))
    told = statistics.mean(t["all sums once"] for t in tables)
    drawn = statistics.mean(x[2][0][what] for x in found for what in BATCHES)
    lab.claim(f"batches that were really drawn agree: cosine {drawn:.3f}, computed {told:.3f}",
              abs(told - drawn) < 0.05)
    stale = {n: statistics.mean(x[2][n]["clipped"] for x in found) for n in STALE}
    same, fresh = (statistics.mean(x[2][n][what] for x in found for n in STALE[1:])
                   for what in BATCHES)
    lab.claim(f"with the clipped loss the mean keeps its direction for 4 updates (cosine "
              f"{stale[4]:.3f}), and has lost some of it after 16 ({stale[16]:.3f})",
              stale[4] > max(0.9, stale[16]) and (len(found) == 1 or stale[16] < 0.9))
    lab.claim(f"a fresh batch is nearer to the truth ({fresh:.3f}, mean over 1 to 16 updates) than "
              f"the same one again ({same:.3f})", fresh > same)
    bought = torch.cat([x[3] for x in found])
    spent, least = bought[:, 2].mean().item(), least_kl(bought).mean().item()
    lab.claim(f"GRPO spent {spent:.3f} nats where {least:.3f} would have done", spent > least)


if __name__ == "__main__":
    main()
