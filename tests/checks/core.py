"""What a check is, how two outcomes are compared, and how a known mistake is recognised.

A blank (one function of an exercise) is data: cases, known mistakes, and right but unusual
versions. The student's function and the answer are performed on the same cases. Where the outcomes
differ, the known mistakes are performed as well, and a hint is given if exactly one of them does
what the student's function does on every case, and differs from the answer on two cases or more.
Where none does, hints.py looks for the one or the two that explain most of it, and for what can be
said without knowing the function."""

import functools
import itertools
import math
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Callable

import torch
from perform import perform
from worker import load

from .language import padded, question_of, say, translated, whole

ROOT = Path(__file__).resolve().parent.parent.parent
CASE_SECONDS, RUN_SECONDS = 5, 60
LARGE = 40  # a tensor with more entries is not shown whole

# Hints where no known mistake is recognised, by what has gone wrong.
BY_HAND = say("work the case through by hand, as the docstring's example does.")
SHAPES = say('what comes out, and of which kind, stands in the docstring under "Shapes".')
RETURNS_NOTHING = say("does every way through your function end with a return?")
RAISES = say("call it with these inputs yourself, and look at what goes into the line that fails.")
SHOULD_RAISE = say('which inputs are an error, and which error, stands in the docstring under '
                   '"Shapes".')
NO_GRAPH = say("which of your steps cuts the graph: detach(), item(), torch.tensor(...), "
               "no_grad()?")
HAS_GRAPH = say("no gradient may flow back through this: detach() it, or what it is computed from.")
GRADIENT = say("the values are right, their gradient is not: what on the way detaches, clips or "
               "chooses?")
CHANGED = say("which of your lines writes into an input: x[...] =, x +=, a method with _ at its "
              "end, or append() to a list?")
THE_RESULT = say("the result")


@dataclass
class Case:
    """Inputs of one call, by name and in the order of the signature."""

    note: str  # what is special about it, in a few words
    inputs: dict
    grad: tuple = ()  # the names of the inputs by which the first output is differentiated
    expect: Any = None  # the output worked out by hand, where there is one
    corner: bool = False  # says little by itself: shown only where no other case fails


@dataclass(eq=False)  # one is like no other: it can be a key
class Mistake:
    name: str
    hint: str  # "It agrees where ... | What should ...?": an opening, which may be left out
    function: Callable

    @property
    def said_alone(self):
        """The hint where it is the only mistake."""
        return whole(self.hint)

    @property
    def question(self):
        """The hint beside another mistake: what the opening says would not be true."""
        return question_of(self.hint)


@dataclass(eq=False)  # one is like no other: it can be a key
class Blank:
    """One function to fill in, and everything that checks it."""

    file: str
    name: str
    cases: Callable  # seed -> [Case], the smallest first
    slow: Callable  # the same by the definition: plain loops over Python numbers, in float64
    mistakes: list
    right: dict  # name -> a right but unusual version
    formula: str  # the second hint
    place: str  # the third one
    outputs: tuple = ()  # what its outputs are called, where it returns several
    rtol: float = 1e-4
    atol: float = 1e-5

    def __str__(self):
        return f"{self.file}.{self.name}"


@dataclass
class Difference:
    what: str  # the property that broke
    yours: Any = ""
    expected: Any = ""
    entries: list = field(default_factory=list)  # the first that differ: (index, yours, expected)
    hint: str = BY_HAND


@dataclass
class Result:
    """The verdict on one function. `status`: passed, todo, wrong, crashed, timeout, missing, or
    tampered (what came back is no answer that a worker gives). `mistake` is the known one that
    explains most of it (of two the one that explains the case), `also` are others beside it, and
    `more` is what there is to say of these."""

    blank: Blank
    status: str
    right: list = field(default_factory=list)  # notes of the cases that agree
    total: int = 0
    case: Case = None
    difference: Difference = None
    message: str = ""
    mistake: Mistake = None
    also: list = field(default_factory=list)
    seen: str = ""  # the name of what was recognised without knowing the function
    common: str = ""  # what all failing cases have
    more: list = field(default_factory=list)  # lines after the hint
    hint: str = ""  # instead of the mistake's own or the difference's
    remarks: list = field(default_factory=list)  # (title, text): what else is true of the failures
    finished: bool = True  # all cases were performed
    printed: str = ""  # the end of what the function printed in the case that is shown


# ---- Comparing ----------------------------------------------------------------------------------


def kind(value):
    return "tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def compare(yours, expected, rtol, atol, where=THE_RESULT, outputs=()):
    """-> None, or the first Difference between two values. `outputs`: what the parts of a tuple
    are called."""
    if kind(yours) != kind(expected):
        what = say("{where} should be of type {kind}", where=where, kind=kind(expected))
        return Difference(what, Shown(yours), Shown(expected),
                          hint=RETURNS_NOTHING if yours is None else SHAPES)
    if isinstance(expected, dict):
        if yours.keys() != expected.keys():
            return Difference(say("{where} should have other keys", where=where),
                              Shown(list(yours)), Shown(list(expected)), hint=SHAPES)
        parts = [(say('{where}["{key}"]', where=where, key=key), yours[key], expected[key])
                 for key in expected]
    elif isinstance(expected, (tuple, list)):
        if len(yours) != len(expected):
            return Difference(say("{where} has the wrong length", where=where), Shown(yours),
                              Shown(expected),
                              hint=SHAPES if isinstance(expected, tuple) else BY_HAND)
        names = [output_called(name) for name in outputs] or [
            say("{where}, entry {i},", where=where, i=i) for i in range(len(expected))]
        parts = list(zip(names, yours, expected))
    elif isinstance(expected, torch.Tensor):
        return compare_tensors(yours, expected, rtol, atol, where)
    elif isinstance(expected, float):
        close = yours == expected or (
            math.isfinite(expected) and abs(yours - expected) <= atol + rtol * abs(expected))
        return None if close else Difference(
            say("{where} has the wrong value", where=where), yours, expected)
    else:
        return None if yours == expected else Difference(
            say("{where} has the wrong value", where=where), Shown(yours), Shown(expected))
    differences = (compare(a, b, rtol, atol, name) for name, a, b in parts)
    found = next((difference for difference in differences if difference), None)
    if found and isinstance(expected, list):  # one entry says little without its neighbours
        found.yours, found.expected = Shown(yours), Shown(expected)
    return found


def output_called(name):
    return say('the output "{name}"', name=name)


def compare_tensors(yours, expected, rtol, atol, where):
    if yours.shape != expected.shape:
        return Difference(say("{where} has the wrong shape", where=where), tuple(yours.shape),
                          tuple(expected.shape), hint=SHAPES)
    if yours.dtype != expected.dtype:
        return Difference(say("{where} has the wrong dtype", where=where), yours.dtype,
                          expected.dtype, hint=SHAPES)
    a, b = yours.double(), expected.double()
    wrong = ~torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    finite = a.isfinite().all() or not b.isfinite().all()
    what = say("{where} has the wrong values" if finite else "{where} is not finite", where=where)
    if expected.ndim == 0:
        return Difference(what, number(yours), number(expected))
    is_large = expected.numel() > LARGE  # three entries then stand for all
    entries = [(place, number(yours[tuple(place)]), number(expected[tuple(place)]))
               for place in wrong.nonzero()[:3 if is_large else 1].tolist()]
    shown = () if is_large else (Shown(yours), Shown(expected))
    return Difference(what, *shown, entries=entries)


def number(entry):
    """One entry of a tensor, with the digits that make a difference. (print(tensor) has four.)"""
    value = entry.item()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def differ(yours, expected, case, blank):
    """-> None, or how the outcome of a case differs from the expected one."""
    if yours["status"] != expected["status"] or yours.get("type") != expected.get("type"):
        if "message" in yours:
            got = yours["message"][:2000] + "".join(
                "\n    " + line[:200] for line in yours.get("lines", [])[:5])
        else:
            got = say("it returned {value}", value=show(yours.get("output"))[:2000])
        if expected["status"] == "raised":
            return Difference(say("it should raise a {kind}", kind=expected["type"]), got,
                              hint=SHOULD_RAISE)
        return Difference(say("it raises an exception"), got, hint=RAISES)
    if expected["status"] == "raised":
        return None
    difference = compare(yours["output"], expected["output"], blank.rtol, blank.atol,
                         outputs=blank.outputs)
    if difference:
        return difference
    difference = differ_in_graph(yours["has_graph"], expected["has_graph"], blank)
    if difference:
        return difference
    if has_any(expected["grads"]) and not has_any(yours["grads"]):
        return Difference(say("its graph does not begin at the inputs"), hint=NO_GRAPH)
    if not same(list(yours["inputs"].values()), list(expected["inputs"].values())):
        return Difference(say("it changed its inputs: work on copies"), hint=CHANGED)
    for name in case.grad:
        a, b = yours["grads"].get(name), expected["grads"].get(name)
        nothing = torch.zeros_like(case.inputs[name])  # no gradient is the gradient 0
        found = compare(nothing if a is None else a, nothing if b is None else b, blank.rtol,
                        blank.atol, say("the gradient with respect to {name}", name=name))
        if found:
            found.hint = GRADIENT
            return found
    return None


def differ_in_graph(yours, expected, blank):
    """Flags of the output's tensors, one each. -> None, or the first Difference."""
    names = [output_called(name) for name in blank.outputs] or [THE_RESULT]
    for name, mine, theirs in itertools.zip_longest(names, yours, expected, fillvalue=False):
        if theirs and not mine:
            return Difference(say("no gradient flows through {name}", name=name), hint=NO_GRAPH)
        if mine and not theirs:
            return Difference(say("{name} still carries a graph (requires_grad), and should not",
                                  name=name), hint=HAS_GRAPH)
    return None


def has_any(grads):
    """Did a gradient, be it 0, reach one of the inputs?"""
    return any(grad is not None for grad in grads.values())


def same(a, b):
    """Equal to the last bit, with NaN equal to NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(
            ((a == b) | ((a != a) & (b != b))).all())
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


class Shown:
    """A value, printed as `show` does when somebody reads it: most differences nobody does."""

    def __init__(self, value):
        self.value = value

    def __str__(self):
        return show(self.value)


def show(value):
    """A value as the report prints it."""
    if isinstance(value, torch.Tensor) and value.numel() > LARGE:
        return say("a tensor of shape {shape}", shape=tuple(value.shape))
    if isinstance(value, torch.Tensor):
        return str(value.detach()).replace("\n\n", "\n").replace("\n", "\n" + " " * 18)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {show(item)}" for key, item in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 500 else text[:500] + "..."


# ---- Judging ------------------------------------------------------------------------------------


def load_answers(file):
    """The module answers/<file>.py, a new one at every call: a test may change its own."""
    return load(ROOT / "answers", file)


def performed(function, cases):
    return [perform(function, case.inputs, case.grad) for case in cases]


class Known:
    """What the answer and the known mistakes make of some cases: worked out when it is first asked
    for, and once, however many versions are judged on these cases."""

    def __init__(self, blank, cases):
        self.blank, self.cases, self.mistaken = blank, cases, {}

    @functools.cached_property
    def expected(self):
        return performed(getattr(load_answers(self.blank.file), self.blank.name), self.cases)

    def of_mistake(self, j, i):
        """What the known mistake number j makes of the case number i."""
        if (j, i) not in self.mistaken:
            function, case = self.blank.mistakes[j].function, self.cases[i]
            self.mistaken[j, i] = perform(function, case.inputs, case.grad)
        return self.mistaken[j, i]

    @functools.cached_property
    def facets(self):
        from . import hints  # what is right has no need of them
        return hints.KnownFacets(self)


@functools.lru_cache(maxsize=32)  # all blanks of one seed
def known_of(blank, seed):
    """What is known of a blank's cases: for who judges many versions with one seed."""
    return Known(blank, blank.cases(seed))


def find_mistake(known, outcomes, wrong):
    """The one known mistake that does on every case what the student's function did."""
    blank, cases = known.blank, known.cases
    order = sorted(range(len(cases)), key=lambda i: i not in wrong)  # those that tell come first

    def is_it(j):
        return not any(differ(outcomes[i], known.of_mistake(j, i), cases[i], blank) for i in order)

    found = [j for j in range(len(blank.mistakes)) if is_it(j)] if len(wrong) >= 2 else []
    return blank.mistakes[found[0]] if len(found) == 1 else None


def collect(blank, ask, seed=0):
    """Perform all cases: -> (cases, outcomes, stopped). `ask(request)` performs one, in another
    process; `stopped` is the answer that ended it before the last case, or None. Nothing here knows
    what is right."""
    cases, outcomes = blank.cases(seed), []
    for case in cases:
        outcome = ask({"file": blank.file, "function": blank.name, "inputs": case.inputs,
                       "grad": list(case.grad)})
        if outcome["status"] == "not_started":  # in one case, or a stub?
            outcome = {"status": "raised", "type": "NotImplementedError", "lines": [],
                       "message": "NotImplementedError", "not_started": True}
        if outcome["status"] not in ("returned", "raised"):
            return cases, outcomes, outcome
        outcomes.append(outcome)
    if all(outcome.get("not_started") for outcome in outcomes):
        return cases, [], {"status": "not_started"}
    return cases, outcomes, None


def size(value):
    """How many numbers there are in an input; a text counts as one."""
    if isinstance(value, (list, tuple)):
        return sum(map(size, value))
    return value.numel() if isinstance(value, torch.Tensor) else 1


def show_case(result, numbers, cases, outcomes, differences):
    """Show the one of these wrong cases that says most: values before gradients, and the smallest.
    -> its number"""
    shown = min(numbers, key=lambda i: (differences[i].hint == GRADIENT, cases[i].corner,
                                        size(list(cases[i].inputs.values()))))
    result.case, result.difference = cases[shown], differences[shown]
    result.printed = outcomes[shown].get("printed", "")
    return shown


def judge(blank, cases, outcomes, stopped, known=None):
    """What `collect` found -> the Result. `known`: what is Known of these cases, where many
    versions are judged on them."""
    if stopped and stopped["status"] == "not_started" and not outcomes:
        return Result(blank, "todo", total=len(cases))
    known = known or Known(blank, cases)
    differences = [differ(*three, blank) for three in zip(outcomes, known.expected, cases)]
    result = Result(blank, "passed", total=len(cases), finished=not stopped, right=[
        case.note for case, difference in zip(cases, differences) if not difference])
    wrong = [i for i, difference in enumerate(differences) if difference
             and not (stopped and outcomes[i].get("not_started"))]  # what stopped it says more
    if wrong:
        shown = show_case(result, wrong, cases, outcomes, differences)
        result.status = "wrong"
        if not stopped:
            result.mistake = find_mistake(known, outcomes, wrong)
            if not result.mistake:
                from . import hints
                hints.fill_in(result, known, outcomes, differences)
        if outcomes[shown]["status"] == "raised" and not result.mistake:
            result.status = "crashed"
    elif stopped:
        result.status = "crashed"
        result.message = stopped.get("message") or say("it raised NotImplementedError")
        if stopped["status"] not in ("missing", "not_loaded", "blocked"):  # no case is to blame
            result.case = cases[len(outcomes)]
        if stopped["status"] in ("timeout", "missing", "tampered"):
            result.status = stopped["status"]
        if stopped["status"] == "not_loaded":
            result.message = say("{file}.py does not load: {error}", file=blank.file,
                                 error=result.message)
        if stopped["status"] == "blocked":
            result.message = say("it calls {name}, which is still a stub: fill that in first",
                                 name=result.message)
    return result


def judge_in_worker(blank, worker, seed=0):
    def ask(request):
        return worker.ask(request, CASE_SECONDS)

    result = judge(blank, *collect(blank, ask, seed), known_of(blank, seed))
    if result.status == "wrong" and result.finished:
        from . import hints
        hints.ask_more(result, ask, seed)
    return result


# ---- Training runs ------------------------------------------------------------------------------


@dataclass
class Run:
    """A short training run of a tiny GPT-2 with the functions of one file."""

    file: str
    name: str = "training_run"
    rtol: float = 1e-3
    atol: float = 1e-4

    def __str__(self):
        return f"{self.file}.{self.name}"


def judge_run_in_worker(run, worker, answers):
    """Train with the student's functions and with the answers, in two processes side by side."""
    request = {"file": run.file, "run": run.file}
    worker.send(request)
    answers.send(request)
    return judge_run(run, worker.wait(RUN_SECONDS), answers.wait(RUN_SECONDS))


def judge_run(run, yours, expected):
    """What both runs recorded has to agree, step by step."""
    if yours["status"] in ("not_started", "blocked"):
        return Result(run, "todo", message=say("{name} is still a stub", name=yours.get("message")))
    if yours["status"] in ("timeout", "missing", "tampered"):
        return Result(run, yours["status"], message=yours["message"])
    for number, (mine, theirs) in enumerate(zip(yours.get("steps", []), expected["steps"]), 1):
        for quantity in theirs:
            found = compare(mine.get(quantity), theirs[quantity], run.rtol, run.atol,
                            say('"{name}"', name=quantity))
            if found:
                found.what = say("in step {number} of a training run, {what}", number=number,
                                 what=found.what)
                return Result(run, "wrong", difference=found)
    if yours["status"] != "returned":
        error = "\n    ".join([yours["message"], *yours.get("lines", [])])
        return Result(run, "crashed", message=say("the training run stopped: {error}", error=error))
    if len(yours["steps"]) != len(expected["steps"]):
        return Result(run, "tampered", message=say("the training run has not all of its steps"))
    return Result(run, "passed")


# ---- Reporting ----------------------------------------------------------------------------------


def listed(texts):
    if not texts:
        return ""
    return reduce(lambda some, one: say("{some}; {one}", some=some, one=one), texts)


def a_few(notes):
    """The first three of a list, and how many more there are."""
    more = [say("and {number} more", number=len(notes) - 3)] if len(notes) > 3 else []
    return listed(notes[:3] + more)


def first_hint(result):
    """A question, where there is one."""
    if result.hint or result.mistake:
        return result.hint or result.mistake.said_alone
    if isinstance(result.blank, Run):
        return say("do the single functions pass? See pytest -k {file}", file=result.blank.file)
    return result.difference.hint if result.difference else ""


def last_lines(blank, hint):
    """The formula, the place, and what to type."""
    if isinstance(blank, Run):
        return [say('again: pytest -k "{file} and {name}"', file=blank.file, name=blank.name)]
    lines = [say("formula: {formula}", formula=blank.formula)] if hint >= 2 else []
    lines += [say("place: {place}", place=blank.place)] if hint >= 3 else []
    more = say("   (more help: --hint {next})", next=hint + 1) if hint < 3 else ""
    return lines + [say("again: pytest -k {name}{more}", name=blank.name, more=more)]


def report(result, hint=1, language="en"):
    """What the student reads. hint: 1 a question, 2 the formula as well, 3 the place as well."""
    difference, case = result.difference, result.case

    def say_it(text):
        return translated(text, language)

    def row(title, text):
        return f"  {padded(title, 15)} {text}"

    lines = [f"{result.blank}: {say_it(difference.what if difference else result.message)}"]
    if case:
        lines.append(row(say_it(say("case")), say_it(case.note)))
        lines += [row(name, say_it(show(value))) for name, value in case.inputs.items()]
    if difference and difference.yours != "":
        lines.append(row(say_it(say("yours")), say_it(difference.yours)))
    if difference and difference.expected != "":
        lines.append(row(say_it(say("expected")), say_it(difference.expected)))
    texts = [say("differs at index {index}: yours {yours}, expected {expected}", index=index,
                 yours=yours, expected=expected)
             for index, yours, expected in (difference.entries if difference else ())]
    if case:
        few = say(" ({notes})", notes=a_few(result.right)) if result.right else ""
        texts.append(say("right so far: {right} of {total} cases{few}", right=len(result.right),
                         total=result.total, few=few))
    lines += [f"  {say_it(text)}" for text in texts]
    lines += [row(say_it(title), say_it(text)) for title, text in result.remarks]
    lines += [row("" if i else say_it(say("you printed")), text)
              for i, text in enumerate(result.printed.splitlines()[-20:])]
    question = first_hint(result)
    texts = [say("hint: {question}", question=question)] if question else []
    texts += result.more + last_lines(result.blank, hint)
    return "\n".join(lines + [f"  {say_it(text)}" for text in texts])
