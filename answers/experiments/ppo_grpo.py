"""PPO against GRPO on the same task with as many samples and steps; group size; clip range.

Shao et al. 2024 ("DeepSeekMath", section 4.1) put the mean of a group in the place of PPO's value
function. Schulman et al. 2017 (section 6.1, table 1) try clip ranges of 0.1, 0.2 and 0.3.

Here: film reviews, the reward model of lesson 2 (6,000 pairs), 30 steps of 64 samples, batches of
32, 4 epochs, learning rate 1e-4. The KL penalties are the lessons': 0.1 in the reward (PPO), 0.4
in the loss (GRPO). One thing stays different: lesson 4 lets its learning rate fall to 0. Gold is
measured, and nothing that is trained looks at it.

    python answers/experiments/ppo_grpo.py            five seeds, about 20 minutes on one core
    python answers/experiments/ppo_grpo.py --quick    one seed, four arms
"""

import statistics
from pathlib import Path

from lab import COLOURS, Arm, claim, done, draw, interval, pyplot, rows, run_arms, save, settings
from lab import smooth, table

PPO, GRPO = "PPO", "GRPO, G = 8"
GOLD, SCORE, KL = "gold/avg", "reward/avg", "kl/ref_sum"


def make_arms(args):
    """{what it is: (lesson, the run's name, flags)}; the first of a kind has the defaults."""
    ppo, grpo = ["--kl_coef=0.1", "--steps=30"], ["--steps=30", "--ppo_epochs=4"]
    clip = lambda x: [f"--clip_low={x}", f"--clip_high={x}"]
    arms = {PPO: (3, "ppo_kl0.1", ppo),
            "PPO, clip 0.05": (3, "ppo_clip0.05", [*ppo, "--clip_range=0.05"]),
            "PPO, clip 1": (3, "ppo_clip1", [*ppo, "--clip_range=1"]),
            GRPO: ("4 gold", "grpo_g8", grpo),
            "GRPO, clip 0.05": ("4 gold", "grpo_clip0.05", [*grpo, *clip(0.05)]),
            "GRPO, clip 1": ("4 gold", "grpo_clip1", [*grpo, *clip(1)])}
    for size in (2, 4, 16):
        arms[f"GRPO, G = {size}"] = "4 gold", f"grpo_g{size}", [*grpo, f"--group_size={size}"]
    quick = [PPO, "PPO, clip 0.05", GRPO, "GRPO, G = 2"]
    return {name: arms[name] for name in (quick if args.quick else arms)}


def make_runs(arms, args):
    """{(what it is, seed): rows, with gold and KL in all of them}"""
    runs, wanted = {}, {}
    for name, (lesson, run_name, flags) in arms.items():
        for seed in args.seeds:
            more = [] if lesson == 3 else [  # the same reward model; no evaluations on the way
                f"--reward={Path(args.runs_dir, f'seed{seed}', 'reward')}", "--pass_k=1",
                "--eval_every=1000"]
            wanted[name, seed] = Arm(run_name, seed, lesson, [*flags, *more])
    folders = run_arms(list(wanted.values()), args)
    for key, arm in wanted.items():
        place = folders[arm.name, arm.seed]
        runs[key] = rows(place)
        if arm.lesson != 3:
            runs[key] = [a | b for a, b in zip(runs[key], rows(place, "gold.jsonl"))]
    return runs


def mean(run, tag, last=10):
    """Over a run's last steps."""
    return statistics.mean(row[tag] for row in run[-last:])


def print_table(runs, names, seeds):
    lines = []
    for name in names:
        mine = [runs[name, seed] for seed in seeds]
        base = PPO if name.startswith("PPO") else GRPO
        gold = [mean(run, GOLD) for run in mine]
        lines.append([name, *(statistics.mean(mean(run, tag) for run in mine)
                              for tag in (SCORE, GOLD)), f"{min(gold):.2f} to {max(gold):.2f}",
                      statistics.mean(mean(run, GOLD, len(run)) for run in mine),
                      *(statistics.mean(mean(run, tag) for run in mine)
                        for tag in (KL, "clip/fraction")),
                      "-" if name == base else interval(
                          mean(run, GOLD) - mean(runs[base, seed], GOLD)
                          for run, seed in zip(mine, seeds))])
    table(["arm", "score", "gold", "lowest and highest seed", "gold, all steps", "KL (nats)",
           "clip/fraction", "gold minus the default's"], lines)


def picture(runs, names, args):
    figure, panels = pyplot().subplots(1, 3, figsize=(12, 4), sharey=True)
    parts = [("PPO and GRPO", [PPO, GRPO]),
             ("group size", [name for name in names if "G =" in name]),
             ("clip range", [name for name in names if "clip" in name])]
    for panel, (title, group) in zip(panels, parts):
        for name, colour in zip(group, COLOURS):
            curves = [smooth([row[GOLD] for row in runs[name, seed]], 5) for seed in args.seeds]
            draw(panel, range(1, len(curves[0]) + 1), curves, colour, name)
        panel.set(title=title, xlabel="step (64 samples)")
        panel.legend(fontsize=8)
    panels[0].set(ylabel="gold reward (mean over 5 steps)")
    save(figure, "ppo_grpo", args)


def main():
    args = settings(__doc__)
    arms = make_arms(args)
    runs = make_runs(arms, args)
    print_table(runs, list(arms), args.seeds)
    gains = [mean(runs[GRPO, seed], GOLD) - mean(runs[PPO, seed], GOLD) for seed in args.seeds]
    print(f"GRPO minus PPO, gold at the end: {interval(gains)}")
    picture(runs, list(arms), args)
    done()


if __name__ == "__main__":
    main()
