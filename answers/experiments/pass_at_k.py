"""Do the pass@k curves cross? What GRPO gains in one try, and what it loses in many.

Yue et al. 2025 ("Does reinforcement learning really incentivize reasoning capacity in LLMs beyond
the base model?", figure 1 and section 3) draw pass@k of a base model and of what reinforcement
learning made of it: the trained model wins at k = 1 and loses at large k. They sample. Here the
probability p of a right answer to each of the 295 held-out sums is known, so that pass@k is the
mean of 1 - (1 - p)^k, without noise, for k = 1 to 1,024, every ten steps of training, and for the
lesson's GRPO with other settings: a clip range that is open above, more KL, no groups left out.

    python answers/experiments/pass_at_k.py            five seeds, about 20 minutes on one core
    python answers/experiments/pass_at_k.py --quick    one seed, two settings, 30 steps
"""

import json
import statistics

import torch
import exact
import lab

USUAL = "the lesson's"
ARMS = {USUAL: [], "clip_high 1": ["--clip_high=1"], "kl_coef 0.1": ["--kl_coef=0.1"],
        "all groups": ["--drop_uninformative=false"]}
SEEDS = {"clip_high 1": 4, "kl_coef 0.1": 2, "all groups": 2}  # the first ones alone, for time
KS = range(1, 1025)


def crossing(before, after):
    """The first k at which `after` is behind -> k, or 1025 where it never is. Curves over KS."""
    return next((k for k, old, new in zip(KS, before, after) if new < old), KS[-1] + 1)


def curve(p):
    return [exact.pass_at(p, k) for k in KS]


def arms(steps, seeds):
    return {(name, seed): lab.Arm(f"exact{steps}_{name.replace(' ', '_').replace(chr(39), '')}",
                                  seed, "exact", [f"--steps={steps}", "--eval_every=10", *flags])
            for name, flags in ARMS.items() for seed in seeds[:SEEDS.get(name)]}


def train(args):
    """-> {arm: [{step: p}], one a seed}: p (295,) of the held-out sums, before, during, after."""
    lab.LESSONS["exact"] = "answers/experiments/exact.py"
    steps = 30 if args.quick else 60
    wanted = arms(steps, args.seeds)
    places = lab.run_arms(list(wanted.values()), args)
    runs = {name: [] for name in ARMS}
    for (name, seed), arm in wanted.items():
        lines = (places[arm.name, seed] / "exact.jsonl").read_text().splitlines()
        runs[name].append({x["step"]: torch.tensor(x["p"]).double()
                           for x in map(json.loads, lines)})
    return runs, steps


def named(name, runs):
    """With the number of seeds, where it is another one."""
    seeds = len(runs[name])
    return name if seeds == len(runs[USUAL]) else f"{name} ({seeds} seeds)"


def draw(runs, curves, steps, args):
    plot = lab.pyplot()
    figure, (left, middle, right) = plot.subplots(1, 3, figsize=(13, 3.8))
    some = [k for k in KS if k & (k - 1) == 0]
    before = [[1 - run[0][k - 1] for k in some] for run in curves[USUAL]]
    lab.draw(left, some, before, lab.COLOURS[-1], "before")
    for name, colour in zip(ARMS, lab.COLOURS):
        after = [[1 - run[steps][k - 1] for k in some] for run in curves[name]]
        lab.draw(left, some, after, colour, named(name, runs))
        times = sorted(curves[name][0])[1:]
        crossings = [[crossing(run[0], run[t]) for t in times] for run in curves[name]]
        lab.draw(middle, times, crossings, colour, name)
    left.set(xscale="log", yscale="log", ylim=(1e-4, 1), xlabel="k (answers)",
             ylabel="1 - pass@k (none of k answers is right)",
             title=f"held-out sums, before and after {steps} steps")
    left.legend()
    middle.set(ylim=(0, 10), xlabel="step", ylabel="first k at which training lost (answers)",
               title="where the curves cross")
    pairs = [(run[0], run[steps]) for run in runs[USUAL]]
    for old, new in pairs:
        right.scatter(old, new, s=5, alpha=0.4, color=lab.COLOURS[0], linewidths=0)
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.set(xlabel="p(right) before", ylabel="p(right) after",
              title="every held-out sum, the lesson's settings")
    lab.save(figure, "pass_at_k", args)


def main():
    args = lab.settings(__doc__)
    for name in ("clip_high 1", "all groups") if args.quick else ():
        del ARMS[name]
    runs, steps = train(args)
    curves = {name: [{t: curve(p) for t, p in run.items()} for run in seeds]
              for name, seeds in runs.items()}
    lines = [["before"] + [statistics.mean(run[0][k - 1] for run in curves[USUAL])
                           for k in (1, 2, 4, 8, 64, 256, 1024)] + ["", ""]]
    for name in ARMS:
        after = [run[steps] for run in curves[name]]
        where = [crossing(run[0], run[steps]) for run in curves[name]]
        lost = statistics.mean((run[steps] < 0.01).double().mean().item() for run in runs[name])
        lines.append([named(name, runs)] + [statistics.mean(x[k - 1] for x in after)
                                for k in (1, 2, 4, 8, 64, 256, 1024)]
                     + [", ".join(map(str, where)), f"{lost:.1%}"])
    header = ["", *(f"pass@{k}" for k in (1, 2, 4, 8, 64, 256, 1024)), "crosses at k, a seed",
              "sums with p < 0.01"]
    lab.table(header, [[f"{x:.3f}" if isinstance(x, float) else x for x in line]
                       for line in lines])
    fates(runs, steps)
    draw(runs, curves, steps, args)
    make_claims(runs, curves, steps)
    lab.done()


def make_claims(runs, curves, steps):
    usual = curves[USUAL]
    for k, sign, what in ((1, 1, "rises"), (64, -1, "falls")):
        gains = [run[steps][k - 1] - run[0][k - 1] for run in usual]
        lab.claim(f"pass@{k} {what}: {lab.interval(gains, 3)}",
                  all(sign * gain > 0 for gain in gains))
    for t in (10, steps):
        where = [crossing(run[0], run[t]) for run in usual]
        lab.claim(f"after {t} steps the curves cross at k = {', '.join(map(str, where))}",
                  all(1 < k <= 16 for k in where))
    for name in list(ARMS)[1:]:
        for k in (1, 64):
            gaps = [a[steps][k - 1] - b[steps][k - 1] for a, b in zip(curves[name], usual)]
            print(f"{name} minus the lesson's, pass@{k}: {lab.interval(gaps, 3)}")
            if (name, k) == ("kl_coef 0.1", 64):
                lab.claim(f"kl_coef 0.1 keeps more of pass@64: {lab.interval(gaps, 3)}",
                          min(gaps) > 0)
    old, new = (torch.cat([run[t] for run in runs[USUAL]]) for t in (0, steps))
    low = old < 0.1
    learned = (new[low] > 0.5).double().mean().item()
    lab.claim(f"of {low.sum()} sums with p < 0.1 before, {learned:.0%} end above 0.5 and "
              f"{(new[low] < old[low]).double().mean():.0%} fall", learned < 0.1)


def fates(runs, steps):
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


if __name__ == "__main__":
    main()
