"""Makes the stubs from the answers: python tests/make_exercises.py

Everything stays as it is in answers/ but for the code of the functions: signature and docstring are
kept, decorators go, and the body becomes raise NotImplementedError. Files in exercises/ that hold
work of their own are not overwritten."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def functions(text):
    """{name: node} of the functions at the top level, in order."""
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def is_stub(node):
    """Is there nothing in it but a docstring and raise NotImplementedError(...)?"""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (len(body) == 1 and isinstance(body[0], ast.Raise) and isinstance(body[0].exc, ast.Call)
            and getattr(body[0].exc.func, "id", "") == "NotImplementedError")


def make_stubs(text, file):
    """The text of an answers file -> the text of its exercise."""
    lines = text.splitlines()
    kept, done = [], 0
    for node in functions(text).values():
        first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
        kept += lines[done:first - 1] + lines[node.lineno - 1:node.body[0].end_lineno]
        kept.append(f'    raise NotImplementedError("{file}.{node.name}")')
        done = node.end_lineno
    return "\n".join(kept + lines[done:]) + "\n"


def main():
    for answers in sorted((ROOT / "answers").glob("ex*.py")):
        target = ROOT / "exercises" / answers.name
        if target.exists() and not all(map(is_stub, functions(target.read_text("utf-8")).values())):
            sys.exit(f"{target} has been worked on: move it away first")
        target.write_text(make_stubs(answers.read_text("utf-8"), answers.stem), encoding="utf-8")
        print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
