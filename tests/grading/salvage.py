"""What can be graded of a file that does not load: the functions, imports and constants that parse
by themselves. Nothing of it is run here."""

import ast
import re
import sys
from itertools import pairwise

MAX_BYTES = 64 * 2**10  # four times the largest exercise; parsing takes hundreds of times as much
BEGINS = re.compile(r"(async )?def \w|class \w|from \w|import \w|[A-Za-z_]\w*\s*=[^=]")
INSIDE = (" ", "\t", ")", "]", "}", "#")  # what a line begins with that goes on with a part
PACKAGES = sys.stdlib_module_names | {"torch", "numpy"}


def what_parses(content):
    """-> (the file with empty lines in place of what does not parse, how many functions are left),
    or None where there are none. A line keeps its number, which an error message may name."""
    if len(content) > MAX_BYTES:
        return None
    try:
        lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None
    kept, functions = [""] * len(lines), 0
    begins = [i for i, line in enumerate(lines) if BEGINS.match(line)]
    begins = [next(j for j in range(i, -1, -1) if j == 0 or not lines[j - 1].startswith("@"))
              for i in begins]  # with the decorators
    for begin, end in pairwise([*begins, len(lines)]):
        first = next(i for i in range(begin, end) if not lines[i].startswith("@"))
        outside = next((i for i in range(first + 1, end)
                        if lines[i] and not lines[i].startswith(INSIDE)), end)
        for stop in sorted({end, outside}, reverse=True):
            nodes = parsed("\n".join(lines[begin:stop]))
            if nodes and all(map(is_wanted, nodes)):
                kept[begin:stop] = lines[begin:stop]
                functions += isinstance(nodes[0], ast.FunctionDef)
                break
    return ("\n".join(kept).encode(), functions) if functions else None


def parsed(text):
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def is_wanted(node):
    """A definition, an import of what the exercises may use, or a constant: nothing that does
    something when the file is loaded, because that may be what failed."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                 else [node.module or ""])
        return all(name.split(".")[0] in PACKAGES for name in names)
    if isinstance(node, ast.Assign):
        return all(isinstance(part, (ast.Constant, ast.Tuple, ast.List, ast.Load, ast.UnaryOp,
                                     ast.USub)) for part in ast.walk(node.value))
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))
