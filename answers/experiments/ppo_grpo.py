"""PPO against GRPO on the same task with as many samples and steps; group size; clip range.

Shao et al. 2024 ("DeepSeekMath", section 4.1) put the mean of a group in the place of PPO's value
function. Schulman et al. 2017 (section 6.1, table 1) try clip ranges of 0.1, 0.2 and 0.3.

Here: film reviews, the reward model of lesson 2 (6,000 pairs), 30 steps of 64 samples, batches of
32, 4 epochs, learning rate 1e-4. The KL penalties are the lessons': 0.1 in the reward (PPO), 0.4
in the loss (GRPO). One thing stays different: lesson 4 lets its learning rate fall to 0. Gold is
measured, and nothing that is trained looks at it. Arms that end at different KLs are compared with
best-of-n at the same KL, as in experiment 1, and with PPO at --kl_coef 0.3 (experiment 2's).

    python answers/experiments/ppo_grpo.py            five seeds, about 25 minutes on one core
    python answers/experiments/ppo_grpo.py --quick    one seed, four arms
"""

import statistics

from best_of_n import best_of_n, gold_at, sample_reviews
from lab import COLOURS, GOLD, KL, SCORE, Arm, claim, done, draw, end, folder, grpo_arm, interval
from lab import ppo_arm, pyplot, rows, run_arms, save, settings, signed, smooth, table

PPO, GRPO = "PPO", "GRPO, G = 8"


def make_arms(seed, args):
    """{what it is: the arm}; the first of a kind has the defaults."""
    reward = folder(Arm("reward", seed, 2), args)
    ppo = lambda clip: ppo_arm(0.1, seed, f"_clip{clip}", f"--clip_range={clip}")
    grpo = lambda name, *flags: grpo_arm(reward, name, seed, "--ppo_epochs=4", *flags)
    clipped = lambda x: grpo(f"clip{x}", f"--clip_low={x}", f"--clip_high={x}")
    arms = {PPO: ppo_arm(0.1, seed), "PPO, clip 0.05": ppo(0.05),
            "PPO, kl_coef 0.3": ppo_arm(0.3, seed), "PPO, clip 1": ppo(1),
            GRPO: grpo("g8"), "GRPO, clip 0.05": clipped(0.05), "GRPO, clip 1": clipped(1)}
    arms |= {f"GRPO, G = {size}": grpo(f"g{size}", f"--group_size={size}") for size in (2, 4, 16)}
    quick = [PPO, "PPO, clip 0.05", GRPO, "GRPO, G = 2"]
    return {name: arms[name] for name in (quick if args.quick else arms)}


def make_runs(args):
    """{(what it is, seed): rows, with gold and KL in all of them}, and the names"""
    arms = {(name, seed): arm for seed in args.seeds for name, arm in make_arms(seed, args).items()}
    folders, runs = run_arms(list(arms.values()), args), {}
    for key, arm in arms.items():
        place = folders[arm.name, arm.seed]
        runs[key] = rows(place)
        if arm.lesson != 3:
            runs[key] = [a | b for a, b in zip(runs[key], rows(place, "gold.jsonl"))]
    return runs, list(dict.fromkeys(name for name, _ in arms))


def gains(runs, name, base, seeds, tag=GOLD, last=10):
    """The arm minus another one, a seed."""
    return [end(runs[name, seed], tag, last) - end(runs[base, seed], tag, last)
            for seed in seeds]


def print_table(runs, names, seeds):
    lines = []
    for name in names:
        mine = [runs[name, seed] for seed in seeds]
        base = PPO if name.startswith("PPO") else GRPO
        gold = [end(run, GOLD) for run in mine]
        lines.append([name, *(statistics.mean(end(run, tag) for run in mine)
                              for tag in (SCORE, GOLD)), f"{min(gold):.2f} to {max(gold):.2f}",
                      statistics.mean(end(run, GOLD, len(run)) for run in mine),
                      statistics.mean(end(run, KL) for run in mine),
                      f"{statistics.mean(end(run, 'clip/fraction') for run in mine):.4f}",
                      "-" if name == base else interval(gains(runs, name, base, seeds))])
    table(["arm", "score", "gold", "lowest and highest seed", "gold, all steps",
           "KL (nats)", "clip/fraction", "gold minus the default's"], lines)


def print_against_best_of_n(runs, names, args):
    """Gold at the end minus best-of-n's at the same KL: arms that end at different KLs."""
    curves = {seed: best_of_n([6000], seed, args)[6000] for seed in args.seeds}
    lines = []
    for name in names:
        gaps = [end(runs[name, seed], GOLD) - gold_at(curves[seed], end(runs[name, seed], KL))
                for seed in args.seeds]
        lines.append([name, interval(gaps), signed(gaps)])
    table(["arm", "gold minus best-of-n's at the same KL", "a seed"], lines)
    shares = []
    for seed in args.seeds:
        scores = sample_reviews([6000], seed, args)["scores"][6000]  # (16 prompts, N)
        within = scores.var(dim=1).mean()
        between = scores.mean(dim=1).var() - within / scores.shape[1]
        shares.append(f"{between / (between + within):.1%}")
    print("Share of the prompts in the scores' variance (sft model), a seed:", ", ".join(shares))


def picture(runs, names, args):
    figure, panels = pyplot().subplots(1, 3, figsize=(12, 4), sharey=True)
    parts = [("PPO and GRPO", [PPO, GRPO, "PPO, kl_coef 0.3"]),
             ("group size", [name for name in names if "G =" in name]),
             ("clip range", [PPO, GRPO, *(name for name in names if "clip" in name)])]
    for panel, (title, group) in zip(panels, parts):
        for name, colour in zip([name for name in group if name in names], COLOURS):
            curves = [smooth([row[GOLD] for row in runs[name, seed]], 5) for seed in args.seeds]
            draw(panel, range(1, len(curves[0]) + 1), curves, colour, name)
        panel.set(title=title, xlabel="step (64 samples)")
        panel.legend(fontsize=8)
    panels[0].set(ylabel="gold reward (mean over 5 steps)")
    save(figure, "ppo_grpo", args)


def make_claims(runs, names, seeds):
    change = lambda name, base, tag: gains(runs, name, base, seeds, tag)
    score, gold, kl = (change(GRPO, PPO, tag) for tag in (SCORE, GOLD, KL))
    claim(f"GRPO (G = 8) ends with a lower score than PPO, {interval(score)}, at a smaller KL, "
          f"{interval(kl)}, in every seed", max(score) < 0 and max(kl) < 0)
    fewer = sum(gain < 0 for gain in gold)
    claim(f"GRPO's gold is lower in {fewer} of {len(gold)} seeds: {interval(gold)}",
          fewer > len(gold) / 2)
    score, gold, kl = (change("PPO, clip 0.05", PPO, tag) for tag in (SCORE, GOLD, KL))
    claim(f"PPO, clip 0.05 against 0.2: score {interval(score)}, KL {interval(kl)}, both lower in "
          f"every seed; gold {interval(gold)}", max(score) < 0 and max(kl) < 0)
    score, gold, kl = (change("GRPO, G = 2", GRPO, tag) for tag in (SCORE, GOLD, KL))
    claim(f"G = 2 against 8: score {interval(score)}, KL {interval(kl)}, both lower in every seed; "
          f"gold {interval(gold)}", max(score) < 0 and max(kl) < 0)
    if "PPO, clip 1" not in names:
        return
    gold = change("GRPO, G = 4", GRPO, GOLD)
    claim(f"G = 4 against 8: gold is lower in every seed: {interval(gold)}", max(gold) < 0)
    for name, base in (("PPO, clip 1", PPO), ("GRPO, clip 1", GRPO)):
        gold = change(name, base, GOLD)
        claim(f"{name}: nothing is clipped, and gold is lower in every seed: "
              f"{interval(gold)}", max(gold) < 0 and all(
                  end(runs[name, seed], "clip/fraction") < 1e-3 for seed in seeds))


def main():
    args = settings(__doc__)
    runs, names = make_runs(args)
    print_table(runs, names, args.seeds)
    for tag in (SCORE, GOLD, KL):
        gap = interval(gains(runs, GRPO, PPO, args.seeds, tag))
        print(f"GRPO minus PPO, {tag} at the end: {gap}")
    if not args.quick:
        print_against_best_of_n(runs, names, args)
    picture(runs, names, args)
    make_claims(runs, names, args.seeds)
    done()


if __name__ == "__main__":
    main()
