"""Is the KL penalty early stopping?

Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization", section 3.6 and
figure 9: with a larger KL penalty the gold reward stops at a smaller KL, but gold as a function of
the KL stays the same curve. Then the penalty gives nothing that stopping earlier would not give.

Here: PPO (lesson 3) with --kl_coef 0, 0.01, 0.05, 0.1 and 0.3, 30 steps each. Every step is a point
(KL of a response from the reference, gold reward), both means over the step's 64 responses. Where
an arm ends (the mean of its last ten steps) is compared with --kl_coef 0 of the same seed when its
KL came there first: that is early stopping by the KL, which looks at no gold. Two more arms: "0
slow" has no penalty and a learning rate of 4e-5 in place of 1e-4; "0.05 old" has --kl_in old, a
penalty for moving away from the policy that sampled.

    python answers/experiments/kl_penalty.py            five seeds, about 20 minutes on one core
    python answers/experiments/kl_penalty.py --quick    one seed, three coefficients
"""

import statistics

from lab import COLOURS, GOLD, KL, SCORE, at_kl, bootstrap, claim, done, draw, draw_paths
from lab import end, interval, ppo_arm, pyplot, rows, run_arms, save, settings, signed, smooth
from lab import table

BINS = [0.5, 1, 2, 4, 8, 16, 32, 64]  # nats a response


def against_stopping(free, run, tag):
    """An arm's end minus --kl_coef 0 stopped at the same KL."""
    stopped = at_kl(free, end(run, KL), tag)
    return None if stopped is None else end(run, tag) - stopped


def against_best_moment(free, run):
    """An arm's end minus the highest smoothed gold of --kl_coef 0, at any step: nobody could stop
    better, because nobody sees the gold. A maximum over noise, it favours --kl_coef 0."""
    return end(run, GOLD) - max(smooth([row[GOLD] for row in free], 5))


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
        pairs = [(runs[0, seed], runs[coef, seed]) for seed in seeds]
        approx = statistics.mean(row["kl/approx"] for _, run in pairs for row in run)
        gains = [[gain for pair in pairs if (gain := against_stopping(*pair, tag)) is not None]
                 for tag in (GOLD, SCORE)] + [[against_best_moment(*pair) for pair in pairs]]
        lines.append([coef, *(statistics.mean(end(run, tag) for _, run in pairs)
                              for tag in (KL, SCORE, GOLD)), f"{approx:.4f}",
                      *(interval(gain) if coef and gain else "-" for gain in gains)])
    table(["kl_coef", "KL at the end (nats)", "score", "gold", "kl/approx", "gold minus kl_coef 0 "
           "stopped at that KL", "score minus the same", "gold minus kl_coef 0 at its best moment"],
          lines)
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
        paths = [[smooth(values, 5)[5:] for values in curves] for curves in (kls, golds)]
        draw_paths(left, *paths, colour, f"kl_coef {coef}")
        steps = range(1, len(golds[0]) + 1)
        draw(right, steps, [smooth(ys, 5) for ys in golds], colour, f"kl_coef {coef}")
    left.set(xlabel="square root of the KL from the reference (nats a response)",
             ylabel="gold reward (mean of 64 responses)", title="every step of every run")
    right.set(xlabel="step", ylabel="gold reward (mean over 5 steps)", title="the same over time")
    left.legend()
    save(figure, "kl_penalty", args)


def make_claims(runs, coefs, args):
    plain = [coef for coef in coefs if not isinstance(coef, str)]
    ends = {coef: statistics.mean(end(runs[coef, seed], KL) for seed in args.seeds)
            for coef in plain}
    claim("a larger kl_coef ends at a smaller KL: "
          + ", ".join(f"{coef}: {kl:.1f}" for coef, kl in ends.items()) + " nats",
          list(ends.values()) == sorted(ends.values(), reverse=True))
    strongest = [(runs[0, seed], runs[0.3, seed]) for seed in args.seeds]
    compared = [("stopped at the same KL", lambda *pair: against_stopping(*pair, GOLD)),
                ("at its best moment", against_best_moment)]
    for what, gain in compared if len(args.seeds) > 1 else compared[:1]:  # the second is small
        gains = [gain(*pair) for pair in strongest]
        claim(f"against the paper: kl_coef 0.3 has more gold than kl_coef 0 {what}: "
              f"{interval(gains)}", bootstrap(gains)[1] > 0)
    for coef in [coef for coef in plain if coef in (0.05, 0.1)]:
        gains = [against_stopping(runs[0, seed], runs[coef, seed], GOLD) for seed in args.seeds]
        claim(f"kl_coef {coef} and kl_coef 0 do not lie on one curve, in any seed: "
              + signed(gains), min(map(abs, gains)) > 0.3)
    worse = {coef: sum(end(run, GOLD) < run[0][GOLD] for (key, _), run in runs.items()
                       if key == coef) for coef in plain}
    claim(f"seeds that end with less gold than they began with, by kl_coef: {worse}; none at 0.3",
          worse[0.3] == 0)


def main():
    args = settings(__doc__)
    coefs = [0, 0.1, 0.3] if args.quick else [0, 0.01, 0.05, 0.1, 0.3]
    arms = {(coef, seed): ppo_arm(coef, seed) for coef in coefs for seed in args.seeds}
    for seed in [] if args.quick else args.seeds:
        arms["0 slow", seed] = ppo_arm(0, seed, "_slow", "--learning_rate=4e-5")
        arms["0.05 old", seed] = ppo_arm(0.05, seed, "_old", "--kl_in=old")
    coefs = list(dict.fromkeys(coef for coef, _ in arms))
    folders = run_arms(list(arms.values()), args)
    runs = {key: rows(folders[arm.name, arm.seed]) for key, arm in arms.items()}
    print_tables(runs, coefs, args.seeds)
    picture(runs, coefs, args.seeds, args)
    make_claims(runs, coefs, args)
    done()


if __name__ == "__main__":
    main()
