"""Goodhart's law, whole: four reward models, and three ways to press them.

Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization": with
d = sqrt(KL from the start), the gold reward gained is d (a - b d) for best-of-n and d (a - b log d)
for RL (equations in section 1), a better reward model peaks higher and later (section 3), and RL
needs more KL than best-of-n for the same gold.

Here: reward models from 100, 300, 1,000 and 6,000 pairs; best-of-n, PPO and GRPO (GRPO for 100 and
6,000 alone), both with --kl_coef 0, so that nothing holds them back. Best-of-n trains nothing: 16 x
512 reviews of the sft model, scored, with the unbiased estimate of the best of n <= 128 of them.
Its KL is measured too: log n - (n - 1) / n is an upper bound (Beirami et al. 2024, theorem 3.1).

    python answers/experiments/goodhart.py            five seeds, about 18 minutes on one core
    python answers/experiments/goodhart.py --quick    one seed, two reward models
"""

import statistics
from pathlib import Path

from best_of_n import best_of_n, gold_at, sample_reviews
from lab import COLOURS, GOLD, KL, SCORE, Arm, at_kl, bootstrap, claim, done, end, interval
from lab import pyplot, rows, run_arms, save, settings, smooth, table

METHODS = ["best-of-n", "PPO", "GRPO"]
GRPO_SIZES = [100, 6000]


def make_runs(sizes, args):
    """{(method, size, seed): the run's log}; best-of-n's has a row for every n."""
    models = {(size, seed): Arm(f"reward{size}", seed, 2, [
        f"--num_pairs={size}", "--batch_size=16", "--steps=60", "--num_held_out=1000"])
        for size in sizes if size < 6000 for seed in args.seeds}
    run_arms(list(models.values()) or [Arm("reward", seed, 2) for seed in args.seeds], args)
    arms = {}
    for size in sizes:
        for seed in args.seeds:
            tail = f"{size}" if size < 6000 else ""
            reward = ["--reward=" + str(Path(args.runs_dir, f"seed{seed}", "reward" + tail))]
            arms["PPO", size, seed] = Arm(f"ppo_kl0_{tail}".strip("_"), seed, 3, [
                "--kl_coef=0", "--steps=30", *(reward if size < 6000 else [])])
            if size in GRPO_SIZES:
                arms["GRPO", size, seed] = Arm(f"grpo_kl0_{size}", seed, "4 gold", reward + [
                    "--kl_coef=0", "--steps=30", "--pass_k=1", "--eval_every=1000"])
    folders = run_arms(list(arms.values()), args)
    runs = {}
    for key, arm in arms.items():
        log = "gold.jsonl" if key[0] == "GRPO" else "metrics.jsonl"
        runs[key] = rows(folders[arm.name, arm.seed], log)
    for seed in args.seeds:
        for size, curve in best_of_n(sizes, seed, args).items():
            runs["best-of-n", size, seed] = curve
    return runs, {key: folders[arm.name, arm.seed] for key, arm in arms.items()}


def sizes_of(method, sizes):
    return [size for size in sizes if method != "GRPO" or size in GRPO_SIZES]


def fit(run, second):
    """Least squares for gold gained = d (a - b second(d)), d being the square root of the KL, RL's
    first five steps aside -> (a, b, R^2)."""
    import numpy
    points = [(row[KL] ** 0.5, row[GOLD] - run[0][GOLD])
              for row in (run if "n" in run[0] else run[5:]) if row[KL] > 0.01]
    d, gained = numpy.array(points).T
    features = numpy.stack([d, -d * second(d)], axis=1)
    (a, b), *_ = numpy.linalg.lstsq(features, gained, rcond=None)
    errors = gained - features @ [a, b]
    return a, b, 1 - (errors ** 2).mean() / gained.var()


def print_tables(runs, sizes, seeds):
    import numpy
    lines, fits = [], []
    for method in METHODS:
        for size in sizes_of(method, sizes):
            mine = [runs[method, size, seed] for seed in seeds]
            last = [run[-1:] if method == "best-of-n" else run[-10:] for run in mine]
            mean = lambda tag: statistics.mean(row[tag] for part in last for row in part)
            lines.append([method, size, mean(KL), mean(SCORE), mean(GOLD), statistics.mean(
                max(smooth([row[GOLD] for row in run], 5 if len(last[0]) > 1 else 1))
                for run in mine)])
            forms = [[fit(run, second) for run in mine] for second in (lambda d: d, numpy.log)]
            fits.append([method, size, *("{:.2f}, {:.2f}, {:.2f}".format(
                *map(statistics.mean, zip(*form))) for form in forms)])
    table(["method", "pairs", "KL at the end", "score", "gold at the end", "highest gold"], lines)
    print("The means of each seed's a, b and R^2:")
    table(["method", "pairs", "d (a - b d): a, b, R^2", "d (a - b log d): a, b, R^2"], fits)
    bounds = [[row["n"], row["bound"], *(statistics.mean(
        runs["best-of-n", size, seed][i][KL] for seed in seeds) for size in sizes)]
        for i, row in enumerate(runs["best-of-n", sizes[-1], seeds[0]])]
    table(["n", "log n - (n - 1) / n", *(f"KL, {size} pairs" for size in sizes)], bounds)


def compare(runs, sizes, seeds, n):
    """Gold of PPO and GRPO when they first reach best-of-n's measured KL, minus best-of-n's."""
    gains, place, lines = {}, n.bit_length() - 1, []
    for method in METHODS[1:]:
        for size in sizes_of(method, sizes):
            gains[method, size] = []
            for seed in seeds:
                best = runs["best-of-n", size, seed][place]
                there = at_kl(runs[method, size, seed], best[KL], GOLD)
                gains[method, size] += [] if there is None else [there - best[GOLD]]
            lines.append([size, method, interval(gains[method, size]) if gains[method, size]
                          else "never there", len(gains[method, size])])
    table(["pairs", "method", f"gold minus best-of-{n}'s at its KL", "seeds"], lines)
    return gains


def with_penalty(seeds, args):
    """PPO with kl_coef 0.1, which is experiment 2's, where it ends (the mean of ten steps), minus
    best-of-n's gold at that KL."""
    arms = [Arm("ppo_kl0.1", seed, 3, ["--kl_coef=0.1", "--steps=30"]) for seed in seeds]
    gains, points, folders = [], [], run_arms(arms, args)
    for seed in seeds:
        kl, gold = (end(rows(folders["ppo_kl0.1", seed]), tag) for tag in (KL, GOLD))
        points.append((kl ** 0.5, gold))
        gains.append(gold - gold_at(best_of_n([6000], seed, args)[6000], kl))
    print(f"6,000 pairs, PPO with kl_coef 0.1 at its end, gold minus best-of-n's at the same KL: "
          f"{interval(gains)}\n")
    return gains, points


def hacked_reviews(folders, sizes, seed, args):
    """One review an arm: the last step's model, or the best scored one of the sample."""
    found, lines = sample_reviews(sizes, seed, args), []
    for size in sizes:
        best = found["scores"][size].flatten().argmax().item()
        lines.append(["best-of-n", size, found["texts"][best]])
        for method in [m for m in METHODS[1:] if (m, size, seed) in folders]:
            text = (folders[method, size, seed] / "samples.md").read_text(encoding="utf-8")
            after = next(line for line in text.splitlines() if line.startswith("- after: "))
            lines.append([method, size, after.removeprefix("- after: ")[1:-1]])
    table(["method", "pairs", f"a review of seed {seed}"], lines)


def picture(runs, sizes, points, args):
    figure, panels = pyplot().subplots(1, len(sizes), figsize=(3.6 * len(sizes), 4), sharey=True,
                                       sharex=True)
    for panel, size in zip(panels, sizes):
        for method, colour in zip(METHODS, COLOURS):
            if size not in sizes_of(method, sizes):
                continue
            mine = [runs[method, size, seed] for seed in args.seeds]
            width = 1 if method == "best-of-n" else 5
            for tag, style in ((GOLD, "-"), (SCORE, ":")):
                curves = [[smooth(ys, width) for ys in (
                    [max(row[KL], 0) ** 0.5 for row in run], [row[tag] for row in run])]
                    for run in mine]
                for x, y in curves if tag == GOLD else []:
                    panel.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
                x, y = ([statistics.mean(values) for values in zip(*(c[i] for c in curves))]
                        for i in (0, 1))
                panel.plot(x, y, style, color=colour, linewidth=2.2 if tag == GOLD else 1.2,
                           label=f"{method}, " + ("gold" if tag == GOLD else "score"))
        panel.set(title=f"reward model from {size:,} pairs", xlabel="sqrt(KL), nats a response")
    panels[-1].scatter(*zip(*points), s=14, color="black", label="PPO, kl_coef 0.1, its end")
    panels[-1].legend(handles=panels[-1].get_legend_handles_labels()[0][-1:], fontsize=8)
    panels[0].set(ylabel="gold reward, and score (standard deviations)")
    panels[0].legend(fontsize=8)
    save(figure, "goodhart", args)


def make_claims(runs, sizes, gains, guarded, seeds):
    for size in sizes[:-1]:
        more = [runs["best-of-n", sizes[-1], seed][-1][GOLD]
                - runs["best-of-n", size, seed][-1][GOLD] for seed in seeds]
        # 300 pairs are no clear loser: over five seeds the interval of the difference touches 0.
        text, bound = ("on average more", 0) if size == 300 else ("more", 1)
        claim(f"best-of-n with the largest n: 6000 pairs give {text} gold than {size}: "
              f"{interval(more)}", bootstrap(more)[bound] > 0)
    runs_of = lambda method, size: [runs[method, size, seed] for seed in seeds]
    quality = {size: [fit(run, lambda d: d)[2] for run in runs_of("best-of-n", size)]
               for size in sizes}
    worst = min(statistics.mean(seeds_of_it) for seeds_of_it in quality.values())
    lowest = min(min(seeds_of_it) for seeds_of_it in quality.values())
    claim(f"best-of-n follows d (a - b d): mean R^2 at least {worst:.2f} for each reward model, "
          f"{lowest:.2f} in the worst seed", worst > 0.9 and lowest > 0.8)
    gap = max(abs(row[KL] - row["bound"]) for size in sizes
              for run in runs_of("best-of-n", size) for row in run)
    claim(f"here the KL of best-of-n is its bound, within {gap:.2f} nats: no review is likely",
          gap < 0.2)
    sure = sizes if len(seeds) > 1 else sizes[-1:]  # one seed may come out either way
    for size in sure:
        text = f"{size} pairs, --kl_coef 0: PPO has less gold than best-of-n at the same KL"
        claim(f"{text}: {interval(gains['PPO', size])}", bootstrap(gains["PPO", size])[2] < 0)
    for size in sure:
        change = {tag: [end(run, tag) - best[-1][tag]
                        for run, best in zip(runs_of("PPO", size), runs_of("best-of-n", size))]
                  for tag in (SCORE, GOLD)}
        claim(f"{size} pairs, PPO's end minus the best of the largest n: score "
              f"{interval(change[SCORE])}, gold {interval(change[GOLD])}",
              bootstrap(change[GOLD])[2] < 0)
    print("with_penalty, seed by seed:", ", ".join(f"{gain:+.2f}" for gain in guarded))
    nearer = [a > b for a, b in zip(guarded, gains["PPO", 6000])]
    claim(f"with kl_coef 0.1 PPO is nearer to best-of-n in {sum(nearer)} of {len(nearer)} seeds: "
          f"{interval(guarded)}", sum(nearer) > len(nearer) / 2)


def main():
    args = settings(__doc__)
    sizes = [100, 6000] if args.quick else [100, 300, 1000, 6000]
    runs, folders = make_runs(sizes, args)
    print_tables(runs, sizes, args.seeds)
    gains = compare(runs, sizes, args.seeds, 8 if args.quick else 32)
    guarded, points = with_penalty(args.seeds, args)
    hacked_reviews(folders, sizes, args.seeds[0], args)
    picture(runs, sizes, points, args)
    make_claims(runs, sizes, gains, guarded, args.seeds)
    done()


if __name__ == "__main__":
    main()
