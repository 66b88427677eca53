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

import random
import statistics

import torch
import exact
import lab
from estimators import KINDS, SIZES, lesson, logprobs, on_policy
from reused import BATCHES, CLIPS, STALE, stale


def paid(reference, policy, tokenizer, data):
    """What the trained policy has for its KL -> (S, 3): p of the reference, p of the policy, its KL
    from the reference (exact but for the mass left out)."""
    answers = exact.enumerate_answers(lesson, policy, tokenizer, data, 1e-5)
    right = exact.rewards(lesson, answers, data)
    with torch.no_grad():
        ref = logprobs(reference, answers).double().sum(dim=1)
    kl, new = (answers.add_up(answers.prob * x, len(data))
               for x in (answers.prob.log() - ref, right))
    old = exact.right_probability(lesson, reference, tokenizer, data)
    return torch.stack([old, new, kl], dim=1), answers.left_out(len(data)).mean().item()


def least_kl(bought):
    """p_ref exp(r / beta) raises all right answers alike, and no policy with its p has a smaller
    KL: that between two coins -> (S,)."""
    old, new = bought[:, 0], bought[:, 1]
    return (torch.special.xlogy(new, new / old)
            + torch.special.xlogy(1 - new, (1 - new) / (1 - old)))


def look(seed, args):
    """Everything, for one seed -> a dictionary."""
    sums = 16 if args.quick else 64
    reference, tokenizer = exact.load(lesson, lab.folder(lab.Arm("sft", seed, 1), args))
    policy, _ = exact.load(lesson, lab.folder(exact.arm(seed, args), args))
    data, held_out = lesson.load_grpo_prompts(lesson.Config(), tokenizer)
    data = random.Random(0).sample(data, sums)
    answers = exact.enumerate_answers(lesson, reference, tokenizer, data, 1e-3)
    right, rest = exact.rewards(lesson, answers, data), answers.left_out(sums).mean().item()
    bought, unseen = paid(reference, policy, tokenizer, held_out[:32 if args.quick else 100])
    reference.requires_grad_(True)
    results, by_sum = on_policy(reference, answers, right, sums)
    return {"estimators": results, "by sum": by_sum, "bought": bought,
            "reused": stale(reference, tokenizer, answers, right, data, seed),
            "answers a sum": len(answers.row) / sums, "left out": rest, "of the trained": unseen}


def print_tables(found):
    for x in found:
        print(f"{x['answers a sum']:.1f} answers a sum, {x['left out']:.2%} of the mass left out; "
              f"of the trained policy's {x['of the trained']:.2%}")
    mean = lambda read: statistics.mean(read(x) for x in found)
    for i, title in enumerate(("cosine of the mean", "norm of the mean", "cosine of a batch",
                               "signal/noise")):
        lab.table([title, *(f"G = {size}" for size in SIZES)],
                  [[kind, *(f"{mean(lambda x: x['estimators'][kind, size][i]):.4g}"
                            for size in SIZES)] for kind in KINDS])
    columns = list(found[0]["reused"][0])
    lab.table(["updates before", *columns],
              [[n, *(f"{mean(lambda x: x['reused'][n][what]):.3f}" for what in columns)]
               for n in STALE])
    lab.table(["p", "p after", "KL", "least KL for that p"],
              [[f"{x:.3f}" for x in [*bought.mean(dim=0), least_kl(bought).mean()]]
               for bought in (x["bought"] for x in found)])


def picture(found, args):
    plot = lab.pyplot()
    figure, ((a, b), (c, d)) = plot.subplots(2, 2, figsize=(11, 8))
    shown = ("best baseline", "no baseline", "sum's mean", "leave-one-out", "GRPO")
    for kind, colour in zip(shown, lab.COLOURS):
        lab.draw(a, SIZES, [[x["estimators"][kind, size][3] for size in SIZES] for x in found],
                 colour, kind)
    a.set(xscale="log", yscale="log", xlabel="group size G (answers)",
          title="a batch of 512 answers", ylabel="|mean gradient|² / variance")
    a.set_xticks(SIZES, SIZES)
    a.set_xticks([], minor=True)
    a.legend()
    for x in found:
        b.scatter(*x["by sum"], s=8, alpha=0.5, color=lab.COLOURS[0], linewidths=0)
    b.axhline(1, color="black", linewidth=0.8)
    b.set(yscale="log", xlabel="p(right) of the sum", title="what the mean reward as baseline does",
          ylabel="variance with it / without")
    for what, colour in zip((*CLIPS, *BATCHES), lab.COLOURS):
        lab.draw(c, STALE, [[x["reused"][n][what] for n in STALE] for x in found], colour, what)
    c.set(xlabel="updates since the answers were sampled", ylabel="cosine to the true gradient",
          title="the same 512 answers again and again")
    c.legend()
    for bought in (x["bought"] for x in found):
        d.scatter(least_kl(bought), bought[:, 2], s=6, alpha=0.4, color=lab.COLOURS[0],
                  linewidths=0)
    d.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="p_ref exp(r / beta)")
    d.legend()
    d.set(xlabel="least KL with which p can be had (nats)", ylabel="KL that GRPO spent (nats)",
          title="100 held-out sums a seed")
    lab.save(figure, "microscope", args)


def claim_estimators(tables):
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
    lab.claim("of 512 answers, groups of 4 have the most signal with GRPO; from 8 on more prompts "
              "are worth more than larger groups", every(
                  lambda t: t["GRPO", 4][3] > max(t["GRPO", G][3] for G in (2, 16, 32, 64))))


def claim_the_rest(found):
    p, ratio = (torch.cat(x) for x in zip(*(x["by sum"] for x in found)))
    up, down = (x.float().mean().item() for x in (ratio[p > 0.5] > 1, ratio[p < 0.4] < 1))
    lab.claim(f"sum by sum: the baseline raises the variance of {up:.0%} of the sums with p > 0.5 "
              f"and lowers it for {down:.0%} of those with p < 0.4", up > 0.8)
    told = statistics.mean(x["estimators"]["all sums once"] for x in found)
    drawn = statistics.mean(x["reused"][0][what] for x in found for what in BATCHES)
    lab.claim(f"batches that were really drawn agree: cosine {drawn:.3f}, computed {told:.3f}",
              abs(told - drawn) < 0.05)
    stale = {n: statistics.mean(x["reused"][n]["clipped"] for x in found) for n in STALE}
    same, fresh = (statistics.mean(x["reused"][n][what] for x in found for n in STALE[1:])
                   for what in BATCHES)
    lab.claim(f"with the clipped loss the mean keeps its direction for 4 updates (cosine "
              f"{stale[4]:.3f}), and has lost some of it after 16 ({stale[16]:.3f})",
              stale[4] > max(0.9, stale[16]) and (len(found) == 1 or stale[16] < 0.9))
    lab.claim(f"a fresh batch is nearer to the truth ({fresh:.3f}, mean over 1 to 16 updates) than "
              f"the same one again ({same:.3f})", fresh > same)
    bought = torch.cat([x["bought"] for x in found])
    spent, least = bought[:, 2].mean().item(), least_kl(bought).mean().item()
    lab.claim(f"GRPO spent {spent:.3f} nats where {least:.3f} would have done", spent > least)


def main():
    args = lab.settings(__doc__)
    lab.run_arms([exact.arm(seed, args) for seed in args.seeds], args)
    found = [exact.remembered("microscope", seed, args, lambda: look(seed, args))
             for seed in args.seeds]
    print_tables(found)
    picture(found, args)
    claim_estimators([x["estimators"] for x in found])
    claim_the_rest(found)
    lab.done()


if __name__ == "__main__":
    main()
