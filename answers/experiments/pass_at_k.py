"""Do the pass@k curves cross? What GRPO gains in one try, and what it loses in many.

Yue et al. 2025 ("Does reinforcement learning really incentivize reasoning capacity in LLMs beyond
the base model?", figure 1 and section 3) draw pass@k of a base model and of what reinforcement
learning made of it: the trained model wins at k = 1 and loses at large k. They sample. Here the
probability p of a right answer to each of the 295 held-out sums is known, so that pass@k is the
mean of 1 - (1 - p)^k, without noise, for k = 1 to 1,024, every ten steps of training, and for the
lesson's GRPO with other settings: a clip range that is open above, more KL, no groups left out.

    python answers/experiments/pass_at_k.py            five seeds, about 27 minutes on one core
    python answers/experiments/pass_at_k.py --quick    one seed, two settings, 30 steps
"""

import statistics

import torch
import exact
import lab

USUAL = "the lesson's"
FLAGS = {USUAL: [], "clip_high 1": ["--clip_high=1"], "kl_coef 0.1": ["--kl_coef=0.1"],
         "all groups": ["--drop_uninformative=false"]}
KS, SHOWN = range(1, 1025), (1, 2, 4, 8, 64, 256, 1024)


def train(names, args):
    """-> {name: [{step: p}], one a seed}: p (295,) of the held-out sums, before, during, after."""
    arms = {name: [exact.arm(seed, args, name.replace(" ", "_").replace("'", ""), FLAGS[name])
                   for seed in args.seeds] for name in names}
    lab.run_arms([arm for some in arms.values() for arm in some], args)
    read = lambda arm: {row["step"]: torch.tensor(row["p"]).double()
                        for row in lab.rows(lab.folder(arm, args), "exact.jsonl")}
    return {name: [read(arm) for arm in some] for name, some in arms.items()}


def crossing(before, after):
    """The first k at which `after` is behind -> k, or 1025 where it never is. Curves over KS."""
    return next((k for k, old, new in zip(KS, before, after) if new < old), KS[-1] + 1)


def print_table(runs, curves, steps):
    """pass@k before and after, where the curves cross, and how many sums are lost."""
    means = lambda name, step: [f"{statistics.mean(run[step][k - 1] for run in curves[name]):.3f}"
                                for k in SHOWN]
    lines = [["before", *means(USUAL, 0), "", ""]]
    for name in runs:
        lost = torch.cat([run[steps] for run in runs[name]]) < 0.01
        lines.append([name, *means(name, steps), crossings(curves[name], steps),
                      f"{lost.double().mean():.1%}"])
    lab.table(["", *(f"pass@{k}" for k in SHOWN), "crosses at k, a seed", "sums with p < 0.01"],
              lines)


def crossings(seeds, step):
    return ", ".join(str(crossing(run[0], run[step])) for run in seeds)


def print_fates(runs, steps):
    """What became of the sums, by their probability before training (the lesson's settings)."""
    old, new = (torch.cat([run[t] for run in runs[USUAL]]) for t in (0, steps))
    edges, lines = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1), []
    for low, high in zip(edges, edges[1:]):
        here = (old >= low) & (old < high)
        if here.any():
            part = new[here]
            lines.append([f"{low} to {high}", here.sum().item(), part.mean().item(),
                          *(f"{x.double().mean():.0%}" for x in
                            (part < 0.01, part < old[here], part > 0.5))])
    lab.table(["p before", "sums", "mean p after", "p < 0.01", "fell", "p > 0.5"], lines)


def picture(runs, curves, steps, args):
    figure, (left, middle, right) = lab.pyplot().subplots(1, 3, figsize=(13, 3.8))
    some = [2 ** i for i in range(11)]
    missed = lambda name, step: [[1 - run[step][k - 1] for k in some] for run in curves[name]]
    lab.draw(left, some, missed(USUAL, 0), lab.COLOURS[-1], "before")
    for name, colour in zip(runs, lab.COLOURS):
        lab.draw(left, some, missed(name, steps), colour, name)
        times = range(10, steps + 1, 10)
        where = [[crossing(run[0], run[t]) for t in times] for run in curves[name]]
        lab.draw(middle, times, where, colour, name)
    left.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel="k (answers)",
             ylabel="1 - pass@k (none of k answers is right)",
             title=f"held-out sums, before and after {steps} steps")
    left.legend()
    middle.set(ylim=(0, 10), xlabel="step", ylabel="first k at which training lost (answers)",
               title="where the curves cross")
    for run in runs[USUAL]:
        right.scatter(run[0], run[steps], s=5, alpha=0.4, color=lab.COLOURS[0], linewidths=0)
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.set(xlabel="p(right) before", ylabel="p(right) after",
              title="every held-out sum, the lesson's settings")
    lab.save(figure, "pass_at_k", args)


def make_claims(runs, curves, steps):
    usual = curves[USUAL]
    for k, sign, what in ((1, 1, "rises"), (64, -1, "falls")):
        gains = [run[steps][k - 1] - run[0][k - 1] for run in usual]
        lab.claim(f"pass@{k} {what}: {lab.interval(gains, 3)}",
                  all(sign * gain > 0 for gain in gains))
    for t in (10, steps):
        lab.claim(f"after {t} steps the curves cross at k = {crossings(usual, t)}",
                  all(1 < crossing(run[0], run[t]) <= 16 for run in usual))
    for name in list(runs)[1:]:
        for k in (1, 64):
            gaps = [a[steps][k - 1] - b[steps][k - 1] for a, b in zip(curves[name], usual)]
            print(f"{name} minus the lesson's, pass@{k}: {lab.interval(gaps, 3)}, a seed: "
                  + lab.signed(gaps, 3))
            if (name, k) == ("kl_coef 0.1", 64):
                lab.claim(f"kl_coef 0.1 keeps more of pass@64: {lab.interval(gaps, 3)}",
                          min(gaps) > 0)
    old, new = (torch.cat([run[t] for run in runs[USUAL]]) for t in (0, steps))
    low = old < 0.1
    learned = (new[low] > 0.5).double().mean().item()
    lab.claim(f"of {low.sum()} sums with p < 0.1 before, {learned:.0%} end above 0.5 and "
              f"{(new[low] < old[low]).double().mean():.0%} fall", learned < 0.1)


def main():
    args = lab.settings(__doc__)
    runs = train([USUAL, "kl_coef 0.1"] if args.quick else FLAGS, args)
    steps = max(runs[USUAL][0])
    curves = {name: [{t: [exact.pass_at(p, k) for k in KS] for t, p in run.items()}
                     for run in seeds] for name, seeds in runs.items()}
    print_table(runs, curves, steps)
    print_fates(runs, steps)
    picture(runs, curves, steps, args)
    make_claims(runs, curves, steps)
    lab.done()


if __name__ == "__main__":
    main()
