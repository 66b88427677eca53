"""The benchmark's tables, README and plots."""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

COLOURS = {"ours": "tab:blue", "TRL": "tab:orange", "bare": "tab:gray"}
TITLES = {"sft": "1 SFT", "reward": "2 reward model", "ppo": "3 PPO", "grpo": "4 GRPO"}
TEXT = """# How fast are the lessons?

A benchmark on equal work: the lesson as a student runs it, TRL's trainer with the same settings,
and a bare loop, the shortest honest PyTorch for the same algorithm (`bare.py`). Models and data are
random, made for the purpose; every run is a process of its own, and the contestants take turns.

**How equal work is shown.** In every process the trunk's forward, `generate` and the optimisers'
steps are counted where transformers and PyTorch define them, whoever calls them. The benchmark ends
with an error where the optimiser steps, the trained tokens (real ones that pass forward with a
gradient) or the generated tokens of two contestants differ by more than 2%. Lessons 1 and 2 learn
once from the same rows, with responses of 1/4 to 1 of the length; in lessons 3 and 4 the end token
cannot be sampled, so that all responses have the same length. Padding is each contestant's affair:
the lessons sort a batch and run it in pieces, TRL and the bare loop pad it to its longest row.
"Other" tokens pass forward without a gradient: policy, reference and reward model.

**What is not equal.** TRL's PPO wants a value model of its own, where the lesson has a value head
on the policy's trunk: the tokens that it trains are counted apart. The lessons write a line of
metrics.jsonl a step, and they sample from the model before the first step, which is in their time
to the first step and in their peak memory; TRL's logging, saving and evaluation are off, and so are
its gradient checkpointing and, at float32, its bfloat16, which are on by default. TRL's PPO does
not clip the gradient. Lesson 1 is given `--bucket 1`: by default, with `--data`, it also sorts
among 8 batches, and would have less padding.

**How to read it.** Seconds a step: the median of a run's steps without the first two and the last
(there lesson 1 looks at held-out data), then the median of the runs, and their range. Ours / this:
the lesson's time over this contestant's, from runs side by side; below 1 the lesson is faster.
Memory: the process's peak until the end of the last step (on CUDA what PyTorch allocated), and
before the first one. First step: from the start of the process, imports included. Tokens and steps
are a run's totals; other and generated ones a step's. A step of lesson 3 is 4 epochs of 2
minibatches.

**What the sweep shows.** Sizes "length x vocabulary" are two runs (one from 512 x 160 on), pinned
to one core while now and then the other one worked: read them for growth, not for percents. With
50,257 words the logits are the work. Dividing them by the temperature and leaving out the last
position copy them; the bare loop does neither and is 1.2 to 1.4 times as fast there, which is the
price of formulas that stand in the lesson as they stand in the papers. TRL pays more.

**What the learning plot shows.** The settings of lessons 3 and 4, three seeds, thin lines; while it
was taken the machine's other core worked. PPO and the sums learn two to three times as fast by the
clock as in TRL, with the same rewards a step or better ones. On the word count TRL ends higher (2.8
against 2.3): its reviews grow to three clauses, ours mostly stay at two, at a smaller KL. Our
gradient there agrees with the formula written out a second time (cosine 1.0000, in steps 0 and 12);
what differs in TRL has not been found.

**How to run it.** `python tests/bench/bench.py --help` says it all. Everything here, with TRL in
two virtual environments of its own (1.16, and 1.12, the last that has PPO):

    python tests/bench/bench.py --size tiny small sweep --trl PYTHON --trl-ppo PYTHON \\
        --out tests/bench
    python tests/bench/bench.py --learning --seeds 0 1 2 --runs runs --trl PYTHON \\
        --trl-ppo PYTHON --out tests/bench
    python tests/bench/bench.py --size qwen --device auto --trl PYTHON --trl-ppo PYTHON \\
        --out tests/bench       # on a GPU
"""


def machine(args):
    """The processor, and the versions of each interpreter's packages."""
    import torch
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    code = ("import importlib.util as u, importlib.metadata as m; print(', '.join(p + ' ' + "
            "m.version(p) for p in ('torch', 'transformers', 'trl') if u.find_spec(p)))")
    versions = {name: subprocess.run([python, "-c", code], capture_output=True, text=True).stdout
                for name, python in [("ours and bare", sys.executable), ("TRL", args.trl),
                                     ("TRL's PPO", args.trl_ppo)] if python}
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    return (f"{model}, {os.cpu_count()} cores{gpu}; {threads}, Python "
            f"{platform.python_version()}. " +
            "; ".join(f"{name}: {text.strip()}" for name, text in versions.items()) + ".")


def spread(values, form):
    """Median (lowest to highest)."""
    low, middle, high = (format(f(values), form) for f in (min, statistics.median, max))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def table(results):
    rows = ["| Lesson | | Seconds a step | Ours / this | Peak MB (before) | First step, s | "
            "Optimiser steps | Trained tokens (padded) | Other a step | Generated a step |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    for lesson, contestants in results.items():
        for who, runs in contestants.items():
            ratios = [ours["median"] / this["median"]
                      for ours, this in zip(contestants["ours"], runs)]
            last, middle = runs[-1], lambda name: statistics.median(x[name] for x in runs)
            total, a_step = last["total"], last["a_step"]
            trained = f"{total['trained tokens']:,} ({total['trained tokens, padded']:,})"
            if "value model trained tokens" in total:
                trained += f", value model {total['value model trained tokens']:,}"
            other = sum(n for name, n in a_step.items() if name.endswith("other tokens"))
            cells = [TITLES[lesson] if who == "ours" else "", who,
                     spread([x["median"] for x in runs], ".4f"),
                     "" if who == "ours" else spread(ratios, ".2f"),
                     f"{middle('peak'):.0f} ({middle('peak_before'):.0f})",
                     f"{middle('first'):.1f}", str(total["optimiser steps"]), trained,
                     f"{other:,.0f}", f"{a_step.get('generated tokens', 0):,.0f}"]
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def learning_table(curves):
    """The mean reward of the last tenth of the steps, and the seconds that it took to get there."""
    rows = ["| Learning | | Last rewards | Seconds |", "|---|---|---|---|"]
    for title, contestants in curves.items():
        for who, runs in contestants.items():
            last = [statistics.mean(y for _, y in run[-max(1, len(run) // 10):]) for run in runs]
            seconds = spread([run[-1][0] for run in runs], ".1f")
            rows.append(f"| {title} | {who} | {spread(last, '.2f')} | {seconds} |")
    return "\n".join(rows) + "\n"


def write(folder, results):
    """README.md and the plots."""
    text = TEXT
    sizes = {name: x for name, x in results.items() if name != "learning"}
    if sizes:
        text += "\n![Seconds a step](speed.svg)\n"
    for name, x in sizes.items():
        settings = ", ".join(f"{key} {value}" for key, value in x["settings"].items())
        text += f"\n## {name}\n\n{x['machine']}\n{settings}.\n\n{table(x['results'])}"
    if "learning" in results:
        x = results["learning"]
        text += (f"\n## Rewards by the clock\n\n{x['machine']}\nFrom the same model of lesson 1, "
                 "with the lessons' settings; a line a seed. Lesson 4 drops the groups whose "
                 "rewards are all equal, lesson 3 ends a step's epochs at --max_kl and has a rate "
                 "of its own for the value head: TRL has none of these.\n\n"
                 f"![Reward by the clock](learning.svg)\n\n{learning_table(x['results'])}")
    (folder / "README.md").write_text(text, "utf-8")
    try:
        import matplotlib
    except ImportError:
        print("no plot: it needs one more package (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    if sizes:
        plot_speed(folder / "speed.svg", {name: x["results"] for name, x in sizes.items()})
    if "learning" in results:
        plot_learning(folder / "learning.svg", results["learning"]["results"])


def save(figure, file):
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def plot_speed(file, sizes):
    """A panel a lesson: at each size the contestants' time over the lesson's, and its seconds."""
    import matplotlib.pyplot as plt
    lessons = [lesson for lesson in TITLES if any(lesson in x for x in sizes.values())]
    figure, panels = plt.subplots(1, len(lessons), squeeze=False, sharey=True, figsize=(
        1.5 + 2.8 * len(lessons), 1.5 + 0.6 * len(sizes)))
    for panel, lesson in zip(panels[0], lessons):
        for k, who in enumerate(COLOURS):
            for i, x in enumerate(sizes.values()):
                if who in x.get(lesson, {}):
                    seconds, ours = ([run["median"] for run in x[lesson][name]]
                                     for name in (who, "ours"))
                    ratios = sorted(a / b for a, b in zip(seconds, ours))
                    middle, place = statistics.median(ratios), i + 0.27 * (k - 1)
                    panel.barh(place, middle, 0.25, color=COLOURS[who])
                    panel.plot([ratios[0], ratios[-1]], [place] * 2, color="black", linewidth=1)
                    panel.text(0.03, place, f"{statistics.median(seconds):.3g} s", fontsize=7,
                               va="center", color="white")
        panel.set(xlabel="time (ours: 1)", title=TITLES[lesson])
    panels[0][0].set_yticks(range(len(sizes)), sizes)
    panels[0][0].invert_yaxis()
    panels[0][-1].legend([plt.Rectangle((0, 0), 1, 1, color=x) for x in COLOURS.values()], COLOURS,
                         loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    save(figure, file)


def plot_learning(file, curves):
    """A panel a task, a thin line a seed."""
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, len(curves), squeeze=False, figsize=(4 * len(curves), 3.2))
    for panel, (title, contestants) in zip(panels[0], curves.items()):
        for who, runs in contestants.items():
            for i, run in enumerate(runs):
                panel.plot(*zip(*run), color=COLOURS[who], linewidth=0.8,
                           label=who if i == 0 else None)
        panel.set(title=title, xlabel="seconds since the first step", ylabel="mean reward")
    panels[0][-1].legend()
    save(figure, file)


if __name__ == "__main__":  # python tests/bench/report.py FOLDER: README and plots once more
    target = Path(sys.argv[1])
    write(target, json.loads((target / "results.json").read_text("utf-8")))
