"""Curves of several runs side by side, drawn from their metrics.jsonl: the README's picture.

    python tests/picture.py runs/ppo runs/kl0 --tags reward/avg gold/avg --out picture.svg

Needs matplotlib (pip install matplotlib), as why_pictures.py does and nothing else in the course.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path


def die(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def smooth(folder, tag, width=10):
    """The means of `width` steps in a row, from the run's first such window to its last."""
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line)[tag] for line in lines]
    return [statistics.mean(values[i:i + width]) for i in range(len(values) - width + 1)]


def read_curves(folders, tags, width=10):
    """[{tag: smoothed values}], one dictionary a run."""
    curves = []
    for folder in folders:
        try:
            curves.append({tag: smooth(folder, tag, width) for tag in tags})
        except OSError:
            die(f"there is no run in {folder}: it has no metrics.jsonl")
        except (KeyError, ValueError, TypeError) as error:
            die(f"{folder}/metrics.jsonl cannot be drawn: {type(error).__name__}: {error}")
        if not all(curves[-1].values()):
            die(f"{folder} has fewer than {width} steps")
    return curves


def start_drawing():
    """matplotlib's pyplot, set so that the same numbers give the same file."""
    try:
        import matplotlib
    except ImportError:
        die("the picture needs matplotlib: pip install matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "the same picture from the same numbers"
    from matplotlib import pyplot

    return pyplot


def draw(folders, curves, out, width=10):
    """A panel a run, a line a tag, the same scale in all panels."""
    pyplot = start_drawing()
    figure, panels = pyplot.subplots(1, len(folders), figsize=(4.5 * len(folders), 3), sharey=True,
                                     squeeze=False, layout="constrained")
    for panel, folder, lines in zip(panels[0], folders, curves):
        for tag, values in lines.items():
            panel.plot(range(width, width + len(values)), values, label=tag, linewidth=2)
        panel.set(title=Path(folder).name, xlabel="step")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(out, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--tags", nargs="+", default=["reward/avg"], help="the curves to draw")
    parser.add_argument("--out", default="picture.svg", help="the file to write, .svg")
    args = parser.parse_args()
    draw(args.runs, read_curves(args.runs, args.tags), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
