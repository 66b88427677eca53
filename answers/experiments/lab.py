"""What the experiments share: paired runs of the lessons, tables, bootstrap, pictures, claims.

An experiment asks for arms, which are runs of a lesson as a command. All arms of a seed begin with
the same fine-tuned model and reward model (<runs_dir>/seed<k>/sft and reward), so that arms can be
compared seed by seed. An arm that is finished is not run again.
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

PICTURES = Path(__file__).resolve().parent
ROOT = PICTURES.parents[1]
LESSONS = {1: "lesson1_sft.py", 2: "lesson2_reward.py", 3: "lesson3_ppo.py", 4: "lesson4_grpo.py"}
# Okabe and Ito's colours, which colour-blind readers can tell apart; the last one is black.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
KL, GOLD, SCORE = "kl/ref_sum", "gold/avg", "reward/avg"  # a response's, in a run's log
claims = []


def settings(description):
    """The command line that all experiments have."""
    has_mask = hasattr(os, "sched_getaffinity")  # Linux: the cores that we may use
    cores = len(os.sched_getaffinity(0)) if has_mask else os.cpu_count()
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="one seed, smaller sizes")
    parser.add_argument("--runs_dir", default=str(ROOT / "runs" / "lab"))
    parser.add_argument("--jobs", type=int, default=cores, help="arms at a time, a core each")
    args = parser.parse_args()
    args.seeds = args.seeds[:1] if args.quick else args.seeds
    pyplot()  # rather now than after an hour of runs
    return args


@dataclass
class Arm:
    """A run of a lesson, written to <runs_dir>/seed<seed>/<name>."""

    name: str
    seed: int
    lesson: int  # or a script beside this one that runs a lesson with a function exchanged
    flags: list = field(default_factory=list)


def ppo_arm(kl_coef, seed, name="", *flags):
    """Lesson 3 with 30 steps, the penalty and the flags; the rest is its defaults."""
    return Arm(f"ppo_kl{kl_coef}{name}", seed, 3,
               [f"--kl_coef={kl_coef}", "--steps=30", *flags])


def grpo_arm(reward, name, seed, *flags):
    """Lesson 4 on reviews, 30 steps, with gold logged beside it and no evaluations on the way."""
    return Arm(f"grpo_{name}", seed, "grpo_gold.py", [
        f"--reward={reward}", "--steps=30", "--pass_k=1", "--eval_every=1000", *flags])


def run_arms(arms, args):
    """Run what is not finished, args.jobs at a time -> {(name, seed): folder}."""
    seeds = sorted({arm.seed for arm in arms})
    chain = [[Arm("sft", seed, 1) for seed in seeds], [Arm("reward", seed, 2) for seed in seeds]]
    for group in [*chain, arms]:
        with ThreadPoolExecutor(args.jobs) as pool:
            for seconds, arm in pool.map(lambda arm: (run_arm(arm, args), arm), group):
                if seconds:
                    print(f"seed {arm.seed} {arm.name}: {seconds:.0f} s", flush=True)
    return {(arm.name, arm.seed): folder(arm, args) for arm in arms}


def folder(arm, args):
    return Path(args.runs_dir, f"seed{arm.seed}", arm.name)


def run_arm(arm, args):
    """-> the seconds that it took; 0 where it was finished already, with the same flags."""
    place, started = folder(arm, args), time.time()
    script = LESSONS.get(arm.lesson, f"answers/experiments/{arm.lesson}")
    wanted = {"lesson": script, "flags": arm.flags}
    note = place / "lab.json"  # config.json could not tell a flag left out from a flag's default
    if (place / "samples.md").is_file() and note.is_file():
        if json.loads(note.read_text()) == wanted:
            return 0
    command = [sys.executable, str(ROOT / script), f"--seed={arm.seed}",
               f"--runs_dir={place.parent}", f"--run_name={arm.name}", "--overwrite",
               "--device=cpu", *arm.flags]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"})
    if result.returncode:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        print(f"error: {' '.join(command[1:])}: {' '.join(last)}", file=sys.stderr, flush=True)
        os._exit(1)  # the other arms are not worth waiting for
    note.write_text(json.dumps(wanted))
    return time.time() - started


def rows(place, log="metrics.jsonl"):
    """A run's log: a dictionary a step."""
    lines = Path(place, log).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def load_lesson(n):
    """A lesson as a module: its maths and its world, of which there is no second copy."""
    name = LESSONS[n].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / LESSONS[n])
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.transformers.utils.logging.set_verbosity_error()
    module.transformers.utils.logging.disable_progress_bar()
    return module


def end(run, tag, last=10):
    """The mean over a run's last steps."""
    return statistics.mean(row[tag] for row in run[-last:])


def smooth(values, width=10):
    """Means of `width` values around each (fewer at the two ends)."""
    half = width // 2
    return [statistics.mean(values[max(0, i - half):i + width - half]) for i in range(len(values))]


def at_kl(run, kl, tag):
    """The smoothed `tag` of a run when its smoothed KL first reaches `kl` (None: it never does).
    The first five steps are left out: PPO's KL may jump in them and come back."""
    kls, values = (smooth([row[name] for row in run], 5)[5:] for name in ("kl/ref_sum", tag))
    reached = [i for i, x in enumerate(kls) if x >= kl]
    return values[reached[0]] if reached else None


def bootstrap(differences, draws=10_000):
    """Paired differences, one a seed -> (mean, low, high): the 95% percentile interval over seeds
    drawn again with replacement. With five seeds it is rather too narrow than too wide."""
    dice, values = random.Random(0), list(differences)
    means = sorted(statistics.mean(dice.choices(values, k=len(values))) for _ in range(draws))
    return statistics.mean(values), means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def interval(differences, digits=2):
    """The same as a text: mean [low, high]."""
    return "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(*bootstrap(differences), n=digits)


def signed(values, digits=2):
    """A number a seed, as a text."""
    return ", ".join(f"{x:+.{digits}f}" for x in values)


def table(header, lines):
    """A Markdown table, printed and returned; numbers with two decimals."""
    shown = [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *shown])
    print(f"\n{text}\n", flush=True)
    return text


def pyplot():
    """matplotlib's, set so that the same numbers give the same file."""
    try:
        import matplotlib
    except ImportError:
        print("error: the picture needs matplotlib: pip install matplotlib", file=sys.stderr)
        sys.exit(2)
    matplotlib.use("svg")
    matplotlib.rcParams.update({
        "svg.hashsalt": "the same picture from the same numbers", "svg.fonttype": "none",
        "figure.constrained_layout.use": True, "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot
    return pyplot


def average(curves):
    """The seeds' curves -> their mean, point by point."""
    return [statistics.mean(points) for points in zip(*curves)]


def draw(axes, x, curves, colour, label):
    """Every seed's curve as a thin line, and their mean as a thick one."""
    draw_paths(axes, [x] * len(curves), curves, colour, label)


def draw_paths(axes, xs, ys, colour, label):
    """The same where every seed has an x of its own, such as its KL."""
    for x, y in zip(xs, ys):
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
    axes.plot(average(xs), average(ys), color=colour, linewidth=2.2, label=label)


def save(figure, name, args):
    """<name>.svg beside the scripts; with one seed alone among the runs."""
    file = (PICTURES if len(args.seeds) > 1 else Path(args.runs_dir)) / f"{name}.svg"
    figure.savefig(file, metadata={"Date": None})
    print(f"wrote {file}")


def claim(text, holds):
    """What this experiment says came out, with its numbers in the text."""
    claims.append((text, bool(holds)))


def done():
    """Print every claim, and end with exit code 1 where one does not hold."""
    for text, holds in claims:
        print(f"{'yes' if holds else 'NO '}  {text}")
    sys.exit(0 if all(holds for _, holds in claims) else 1)
