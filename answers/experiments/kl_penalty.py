"""Is the KL penalty early stopping?

Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization", section 3.6 and
figure 9: with a larger KL penalty the gold reward stops at a smaller KL, but gold as a function of
the KL stays the same curve. Then the penalty gives nothing that stopping earlier would not give.

Here: PPO (lesson 3) with --kl_coef 0, 0.01, 0.05, 0.1 and 0.3, 30 steps each. Every step is a point
(KL of a response from the reference, gold reward), both means over the step's 64 responses. Where
an arm ends (the mean of its last ten steps) is compared with --kl_coef 0 of the same seed when its
KL came there first: that is early stopping by the KL, which looks at no gold. A sixth arm, "0
slow", has no penalty either and a learning rate of 4e-5 in place of 1e-4.

    python answers/experiments/kl_penalty.py            five seeds, about 20 minutes on one core
    python answers/experiments/kl_penalty.py --quick    one seed, three coefficients
"""

import statistics

from lab import COLOURS, Arm, at_kl, bootstrap, claim, done, draw, interval, pyplot, rows
from lab import run_arms, save, settings, smooth, table

KL, GOLD, SCORE = "kl/ref_sum", "gold/avg", "reward/avg"
BINS = [0.5, 1, 2, 4, 8, 16, 32, 64]  # nats a response


def end(run, tag):
    """The mean of a run's last ten steps."""
    return statistics.mean(row[tag] for row in run[-10:])


def against_stopping(free, run, tag):
    """An arm's end minus --kl_coef 0 stopped at the same KL."""
    stopped = at_kl(free, end(run, KL), tag)
    return None if stopped is None else end(run, tag) - stopped


def gold_in_bins(run):
    """{bin: mean gold} of the steps whose KL is in the bin, without the first five."""
    found = {}
    for low, high in zip(BINS, BINS[1:]):
        here = [row[GOLD] for row in run[5:] if low <= row[KL] < high]
        if len(here) >= 2:
            found[f"{low:g} to {high:g}"] = statistics.mean(here)
    return found


def print_tables(runs, coefs, seeds):
    lines = []
    for coef in coefs:
        mine, free = [runs[coef, seed] for seed in seeds], [runs[0, seed] for seed in seeds]
        line = [coef, *(statistics.mean(end(run, tag) for run in mine) for tag in (
            KL, SCORE, GOLD))]
        line.append(statistics.mean(statistics.mean(row["kl/approx"] for row in run)
                                    for run in mine))
        line[-1] = f"{line[-1]:.4f}"
        for tag in (GOLD, SCORE):
            gains = [against_stopping(a, b, tag) for a, b in zip(free, mine)]
            gains = [gain for gain in gains if gain is not None]
            line.append(interval(gains) + f", n = {len(gains)}" if coef and gains else "-")
        lines.append(line)
    table(["kl_coef", "KL at the end (nats)", "score", "gold", "kl/approx", "gold minus stopped "
           "kl_coef 0 at that KL", "score minus the same"], lines)
    bins = {key: gold_in_bins(run) for key, run in runs.items()}
    names = [f"{low:g} to {high:g}" for low, high in zip(BINS, BINS[1:])]
    lines = []
    for coef in coefs:
        cells = [[bins[coef, seed][name] for seed in seeds if name in bins[coef, seed]]
                 for name in names]
        lines.append([coef, *(f"{statistics.mean(x):.2f} ({len(x)})" if x else "-" for x in cells)])
    table(["gold at a KL of", *names], lines)


def picture(runs, coefs, seeds, args):
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2])
    for coef, colour in zip(coefs, COLOURS):
        mine = [runs[coef, seed] for seed in seeds]
        kls = [[max(row[KL], 0) ** 0.5 for row in run] for run in mine]
        golds = [[row[GOLD] for row in run] for run in mine]
        for x, y in zip(kls, golds):
            left.scatter(x, y, s=5, color=colour, alpha=0.35, linewidths=0)
            left.plot(smooth(x, 5)[5:], smooth(y, 5)[5:], color=colour, linewidth=0.6, alpha=0.5)
        mean = [[statistics.mean(values) for values in zip(*curves)] for curves in (kls, golds)]
        left.plot(smooth(mean[0], 5)[5:], smooth(mean[1], 5)[5:], color=colour, linewidth=2.2,
                  label=f"kl_coef {coef}")
        steps = range(1, len(golds[0]) + 1)
        draw(right, steps, [smooth(ys, 5) for ys in golds], colour, f"kl_coef {coef}")
    left.set(xlabel="square root of the KL from the reference (nats a response)",
             ylabel="gold reward (mean of 64 responses)", title="every step of every run")
    right.set(xlabel="step", ylabel="gold reward (mean over 5 steps)", title="the same over time")
    left.legend()
    save(figure, "kl_penalty", args)


def main():
    args = settings(__doc__)
    coefs = [0, 0.05, 0.3] if args.quick else [0, 0.01, 0.05, 0.1, 0.3, "0 slow"]
    flags = {coef: [f"--kl_coef={coef}", "--steps=30"] for coef in coefs}
    flags["0 slow"] = ["--kl_coef=0", "--steps=30", "--learning_rate=4e-5"]
    arms = {(coef, seed): Arm(f"ppo_kl{coef}".replace(" ", "_"), seed, 3, flags[coef])
            for seed in args.seeds for coef in coefs}
    folders = run_arms(list(arms.values()), args)
    runs = {key: rows(folders[arm.name, arm.seed]) for key, arm in arms.items()}
    print_tables(runs, coefs, args.seeds)
    picture(runs, coefs, args.seeds, args)
    make_claims(runs, coefs, args)
    done()


def make_claims(runs, coefs, args):
    plain = [coef for coef in coefs if coef != "0 slow"]
    ends = {coef: statistics.mean(end(runs[coef, seed], KL) for seed in args.seeds)
            for coef in plain}
    claim("a larger kl_coef ends at a smaller KL: "
          + ", ".join(f"{coef}: {kl:.1f}" for coef, kl in ends.items()) + " nats",
          list(ends.values()) == sorted(ends.values(), reverse=True))
    for coef in coefs[1:]:
        gains = [against_stopping(runs[0, seed], runs[coef, seed], GOLD) for seed in args.seeds]
        gains = [gain for gain in gains if gain is not None]
        if coef != 0.01:
            claim(f"against the paper: kl_coef {coef} has more gold than kl_coef 0 stopped at its "
                  f"KL: {interval(gains)}", bootstrap(gains)[1] > 0)


if __name__ == "__main__":
    main()
