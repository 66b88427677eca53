"""Goodhart's law, whole: four reward models, and four ways to press them.

Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization": with
d = sqrt(KL from the start), the gold reward gained is d (a - b d) for best-of-n and d (a - b log d)
for RL (equations in section 1), a better reward model peaks higher and later (section 3), and RL
needs more KL than best-of-n for the same gold.

Here: reward models from 100, 300, 1,000 and 6,000 pairs; best-of-n, SFT on the best of 4 and of 16,
PPO and GRPO, both with --kl_coef 0, so that nothing holds them back. Best-of-n trains nothing: 16 x
512 reviews of the sft model, scored, with the unbiased estimate of the best of n <= 128 of them.
Its KL is measured too: log n - (n - 1) / n is an upper bound (Beirami et al. 2024, theorem 3.1).

    python answers/experiments/goodhart.py            five seeds, 35 minutes, and runs of 2
    python answers/experiments/goodhart.py --quick    one seed, two reward models
"""

import itertools
import re
import statistics

import numpy
from best_of_n import gold_at, sample_reviews
from lab import COLOURS, GOLD, KL, SCORE, at_kl, average, bootstrap, claim, done, draw_paths, end
from lab import interval, pyplot, save, settings, signed, smooth, table
from press import BEST, GRPO, GUARDED, METHODS, PPO, SFT, make_runs


def ends(method, run):
    """The rows that are a run's end, or its ends -> {arm: rows}."""
    if method == SFT:
        return {f"SFT on best-of-{row['n']}": [row] for row in run}
    return {method: run[-1:] if method == BEST else run[-10:]}


def width(method):
    """Of the smoothing: a step of PPO or GRPO has 64 reviews, the others' rows 1,024 or more."""
    return 5 if method in (PPO, GRPO) else 1


def fit(run, second):
    """Least squares for gold gained = d (a - b second(d)), d being the square root of the KL, RL's
    first five steps aside -> (a, b, R^2)."""
    points = [(row[KL] ** 0.5, row[GOLD] - run[0][GOLD])
              for row in (run if "n" in run[0] else run[5:]) if row[KL] > 0.01]
    d, gained = numpy.array(points).T
    features = numpy.stack([d, -d * second(d)], axis=1)
    (a, b), *_ = numpy.linalg.lstsq(features, gained, rcond=None)
    errors = gained - features @ [a, b]
    return a, b, 1 - (errors ** 2).mean() / gained.var()


def print_tables(runs, sizes, seeds):
    lines, fits = [], []
    for method, size in itertools.product(METHODS, sizes):
        mine = [runs[method, size, seed] for seed in seeds]
        highest = statistics.mean(max(smooth([row[GOLD] for row in run], width(method)))
                                  for run in mine)
        for arm in ends(method, mine[0]):
            rows_of_it = [row for run in mine for row in ends(method, run)[arm]]
            lines.append([arm, size, *(statistics.mean(row[tag] for row in rows_of_it)
                                       for tag in (KL, SCORE, GOLD)),
                          "-" if method == SFT else highest])
        if method != SFT:  # two points have no curve
            forms = [[fit(run, second) for run in mine] for second in (lambda d: d, numpy.log)]
            fits.append([method, size, *("{:.2f}, {:.2f}, {:.2f}".format(
                *map(statistics.mean, zip(*form))) for form in forms)])
    table(["method", "pairs", "KL at the end", "score", "gold at the end", "highest gold"], lines)
    print("The means of each seed's a, b and R^2:")
    table(["method", "pairs", "d (a - b d): a, b, R^2", "d (a - b log d): a, b, R^2"], fits)
    table(["n", "log n - (n - 1) / n", *(f"KL, {size} pairs" for size in sizes)], [
        [row["n"], row["bound"], *(statistics.mean(runs[BEST, size, seed][i][KL] for seed in seeds)
                                   for size in sizes)]
        for i, row in enumerate(runs[BEST, sizes[0], seeds[0]]) if i])


def compare(runs, sizes, seeds, n):
    """{(arm, size): gold minus best-of-n's at the same KL, a seed}: of PPO and GRPO when they first
    have the KL of the best of n, of the others at their end."""
    gains = {}
    for size, seed in itertools.product(sizes, seeds):
        best = runs[BEST, size, seed]
        there = best[n.bit_length() - 1]
        for method in (PPO, GRPO):
            gold = at_kl(runs[method, size, seed], there[KL], GOLD)
            gains.setdefault((f"{method} at best-of-{n}'s KL", size), []).extend(
                [] if gold is None else [gold - there[GOLD]])
        others = ends(SFT, runs[SFT, size, seed])
        if size == 6000:
            others |= ends(GUARDED, runs[GUARDED, size, seed])
        for arm, run in others.items():
            gap = end(run, GOLD) - gold_at(best, end(run, KL))
            gains.setdefault((arm, size), []).append(gap)
    table(["arm", "pairs", "gold minus best-of-n's at the same KL", "a seed"],
          [[*key, interval(values) if values else "never there", signed(values)]
           for key, values in sorted(gains.items())])
    return gains


def hacked_reviews(folders, sizes, seed, args):
    """One review an arm: the last step's model, or the best scored one of the sample."""
    found, lines = sample_reviews(sizes, seed, args), []
    for size in sizes:
        best = found["scores"][size].flatten().argmax().item()
        lines.append([BEST, size, found["texts"][best]])
        for method in METHODS[1:]:
            text = (folders[method, size, seed] / "samples.md").read_text(encoding="utf-8")
            review = re.search("^- (?:after|tuned): (.*)$", text, re.M).group(1)
            lines.append([method, size, review[1:-1]])
    table(["method", "pairs", f"a review of seed {seed}"], lines)


def picture(runs, sizes, args):
    figure, panels = pyplot().subplots(1, len(sizes), figsize=(3.6 * len(sizes), 4), sharey=True,
                                       sharex=True)
    for panel, size in zip(panels, sizes):
        for method, colour in zip(METHODS, COLOURS):
            mine = [runs[method, size, seed] for seed in args.seeds]
            d = [smooth([max(row[KL], 0) ** 0.5 for row in run], width(method)) for run in mine]
            gold, score = ([smooth([row[tag] for row in run], width(method)) for run in mine]
                           for tag in (GOLD, SCORE))
            draw_paths(panel, d, gold, colour, f"{method}, gold")
            panel.plot(average(d), average(score), ":", color=colour, linewidth=1.2,
                       label=f"{method}, score")
        panel.set(title=f"reward model from {size:,} pairs", xlabel="sqrt(KL), nats a response")
    points = [[end(runs[GUARDED, 6000, seed], tag) for tag in (KL, GOLD)] for seed in args.seeds]
    guarded = panels[-1].scatter(*zip(*((kl ** 0.5, gold) for kl, gold in points)), s=14,
                                 color="black", label=f"{GUARDED}, its end")
    panels[-1].legend(handles=[guarded], fontsize=8)
    panels[0].set(ylabel="gold reward, and score (standard deviations)")
    panels[0].legend(fontsize=8)
    save(figure, "goodhart", args)


def make_claims(runs, sizes, gains, seeds, n):
    for size in sizes[:-1]:
        more = [runs[BEST, 6000, seed][-1][GOLD] - runs[BEST, size, seed][-1][GOLD]
                for seed in seeds]
        # 300 pairs are no clear loser: over five seeds the interval of the difference touches 0.
        text, bound = ("on average more", 0) if size == 300 else ("more", 1)
        claim(f"best-of-n with the largest n: 6000 pairs give {text} gold than {size}: "
              f"{interval(more)}", bootstrap(more)[bound] > 0)
    quality = [[fit(runs[BEST, size, seed], lambda d: d)[2] for seed in seeds] for size in sizes]
    worst, lowest = min(map(statistics.mean, quality)), min(map(min, quality))
    claim(f"best-of-n follows d (a - b d): mean R^2 at least {worst:.2f} for each reward model, "
          f"{lowest:.2f} in the worst seed", worst > 0.9 and lowest > 0.8)
    gap = max(abs(row[KL] - row["bound"]) for size in sizes for seed in seeds
              for row in runs[BEST, size, seed])
    claim(f"here the KL of best-of-n is its bound, within {gap:.2f} nats: no review is likely",
          gap < 0.2)
    far = f"PPO at best-of-{n}'s KL"
    for size in sizes if len(seeds) > 1 else sizes[-1:]:  # one seed may come out either way
        claim(f"{size} pairs, --kl_coef 0: PPO has less gold than best-of-n at the same KL: "
              f"{interval(gains[far, size])}", bootstrap(gains[far, size])[2] < 0)
        change = {tag: [end(runs[PPO, size, seed], tag) - runs[BEST, size, seed][-1][tag]
                        for seed in seeds] for tag in (SCORE, GOLD)}
        claim(f"{size} pairs, PPO's end minus the best of the largest n: score "
              f"{interval(change[SCORE])}, gold {interval(change[GOLD])}",
              bootstrap(change[GOLD])[2] < 0)
    for size in sizes:
        gaps = gains["SFT on best-of-16", size]
        claim(f"{size} pairs: SFT on the best of 16 stays within 0.3 of best-of-n's gold at its "
              f"KL: {interval(gaps)}", abs(statistics.mean(gaps)) < 0.3)
    nearer = [a > b for a, b in zip(gains[GUARDED, 6000], gains[far, 6000])]
    claim(f"with kl_coef 0.1 PPO is nearer to best-of-n in {sum(nearer)} of {len(nearer)} seeds: "
          f"{interval(gains[GUARDED, 6000])}", sum(nearer) > len(nearer) / 2)


def main():
    args = settings(__doc__)
    sizes, n = ([100, 6000], 8) if args.quick else ([100, 300, 1000, 6000], 32)
    runs, folders = make_runs(sizes, args)
    print_tables(runs, sizes, args.seeds)
    gains = compare(runs, sizes, args.seeds, n)
    hacked_reviews(folders, sizes, args.seeds[0], args)
    picture(runs, sizes, args)
    make_claims(runs, sizes, gains, args.seeds, n)
    done()


if __name__ == "__main__":
    main()
