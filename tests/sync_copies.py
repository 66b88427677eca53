"""What two lessons both need stands in both, the same to the letter. Edit it in one lesson, then

    python tests/sync_copies.py lesson3_ppo.py             carry its copies to the other lessons
    python tests/sync_copies.py lesson3_ppo.py Run start   only these
    python tests/sync_copies.py --check                    list the copies that differ; exit code 1

A copy is a function, a class or a constant at the top level of at least two lessons. Only what is
already there is replaced. The last lines of the docstrings ("at line N") are put right as well."""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(ROOT.glob("lesson[1-4]_*.py"))
OWN = {"Config", "BLANKS", "REWARDS", "Rollout", "main"}  # each lesson has its own
HOUSEKEEPING = "# ---- Housekeeping"


def places(text):
    """{name: (first line, last line)} of what is defined at the top level, counted from 1, with
    decorators."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target)
                     if isinstance(name, ast.Name)]
        else:
            names = []
        first = min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", [])])
        found |= {name: (first, node.end_lineno) for name in names}
    return found


def definitions(path):
    """{name: text} of the functions, classes and constants at the top level."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    return {name: "\n".join(lines[first - 1:last]) for name, (first, last) in places(text).items()}


def differing():
    """{name: [lessons]} of the copies that are not all the same."""
    texts = {}
    for path in LESSONS:
        for name, text in definitions(path).items():
            texts.setdefault(name, {})[path.name] = text
    return {name: sorted(by_lesson) for name, by_lesson in texts.items()
            if name not in OWN and len(set(by_lesson.values())) > 1}


def housekeeping_line(text):
    """The number of the line at which Housekeeping begins."""
    return next(number for number, line in enumerate(text.splitlines(), start=1)
                if line.startswith(HOUSEKEEPING))


def carry(source, names):
    """Replace the other lessons' copies by those of `source`."""
    wanted = {name: text for name, text in definitions(source).items()
              if name not in OWN and (not names or name in names)}
    for path in LESSONS:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        here = sorted(places(text).items(), key=lambda item: item[1], reverse=True)
        for name, (first, last) in here:
            if path != source and name in wanted:
                lines[first - 1:last] = wanted[name].splitlines()
        new = "\n".join(lines) + "\n"
        new = re.sub(r"(Housekeeping begins, at line) \d+", rf"\1 {housekeeping_line(new)}", new)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.name} is new")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson", nargs="?", help="the lesson that was edited")
    parser.add_argument("names", nargs="*", help="what to carry (default: all copies)")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.lesson:
        source = ROOT / Path(arguments.lesson).name
        if source not in LESSONS:
            parser.error(f"{source.name} is no lesson")
        carry(source, arguments.names)
    elif not arguments.check:
        parser.error("which lesson was edited? Or --check")
    if arguments.check:
        for name, lessons in differing().items():
            print(f"{name} differs: {', '.join(lessons)}")
        sys.exit(1 if differing() else 0)


if __name__ == "__main__":
    main()
