"""Pairs of submissions whose code is alike, and submissions that are like the answers, for a human
to look at. It never changes a point: in exercises this short, right answers look alike."""

import ast
import functools
from itertools import combinations

from checks import FILES
from checks.core import ROOT

from .reports import write_table
from .salvage import MAX_BYTES
from .submissions import read

PIECE = 6  # nodes of the syntax tree in a row


class Plain(ast.NodeTransformer):
    """Names of variables and docstrings do not count."""

    def visit_Name(self, node):
        return ast.Name("x", node.ctx)

    def visit_arg(self, node):
        return ast.arg("x")


def pieces(text):
    """The set of runs of PIECE nodes in the functions of a file, a number for each; None where it
    cannot be compared."""
    found = places(text)
    return None if found is None else set(found)


def places(text):
    """{a run of PIECE nodes, as a number: the lines that it is from}; None as above."""
    if len(text) > MAX_BYTES:
        return None
    try:
        return places_of(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def places_of(tree):
    found = {}
    for node in outermost_functions(tree):
        body = node.body[ast.get_docstring(node) is not None:]
        if len(body) == 1 and isinstance(body[0], ast.Raise):
            continue  # a stub
        parts = [part for statement in body for part in ast.walk(statement)]
        flat = [ast.dump(Plain().visit(part), annotate_fields=False)
                if not list(ast.iter_child_nodes(part)) else type(part).__name__ for part in parts]
        lines = [getattr(part, "lineno", None) for part in parts]
        for i in range(len(flat) - PIECE + 1):
            piece = hash((node.name, *flat[i:i + PIECE]))
            found.setdefault(piece, set()).update(filter(None, lines[i:i + PIECE]))
    return found


def lines_in_common(one, other):
    """"12-18, 30": the lines of the first file that are in the second as well."""
    common = places_in(other).keys()
    lines = sorted({line for piece, here in places_in(one).items() if piece in common
                    for line in here})
    begins = [line for line in lines if line - 1 not in lines]
    ends = [line for line in lines if line + 1 not in lines]
    return ", ".join(f"{begin}-{end}" if begin < end else f"{begin}"
                     for begin, end in zip(begins, ends))


places_in = functools.lru_cache(maxsize=256)(places)  # a file is in many pairs


def outermost_functions(node):
    """Those that are in no other function: an inner one is a part of it, and counts once."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from outermost_functions(child)


def alike(a, b):
    """Jaccard's index: common pieces over all pieces."""
    return len(a & b) / len(a | b) if a and b else 0.0


def write_csv(cohort, path):
    """A row a pair and file that is more than half alike, the likest first."""
    texts = {"(answers)": {file: (ROOT / "answers" / f"{file}.py").read_bytes() for file in FILES}}
    for place, name in cohort:
        texts[name] = read(place, name, FILES).files
    known = {name: {file: pieces(text) for file, text in files.items()}
             for name, files in texts.items()}
    for name, files in known.items():
        for file in [file for file, found in files.items() if found is None]:
            print(f"Not compared, being too large or no Python: {file}.py of {name}")
    rows = []
    for (one, files), (other, others) in combinations(known.items(), 2):
        for file in files.keys() & others.keys():
            index = alike(files[file], others[file])
            if index > 0.5:
                both = texts[one][file], texts[other][file]
                rows.append([file, f"{index:.2f}", one, lines_in_common(*both),
                             other, lines_in_common(*both[::-1])])
    rows.sort(key=lambda row: row[1], reverse=True)
    write_table([["file", "alike", "one", "lines of one", "other", "lines of other"], *rows], path)
