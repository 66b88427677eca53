"""What is said of a version that is wrong: the known mistakes that it does, what is wrong with it
whatever the function is (reversed, negated, scaled, right but for the padding ...), what the cases
that fail have in common, and a smaller case that fails as well.

It runs only where something is wrong. All of it looks at facets: what came out of a case, taken
apart into what can be right or wrong by itself (the values of one output, its shape, a gradient,
whether the inputs are as they were)."""

import copy
import functools
import itertools
from collections import Counter

import torch
from perform import fresh, perform

from . import core
from .core import THE_RESULT, output_called
from .language import say

MOST = 0.6  # the share of the failing cases that a known mistake has to explain
MORE = 0.7  # the same where the outcomes are yes or no, and many agree by chance: no pairs there
FEW = 0.1  # the share of the cases in which it may be wrong where the student's version is right
STRUCTURE = core.SHAPES, core.RETURNS_NOTHING, core.NO_GRAPH, core.HAS_GRAPH  # these hints
BY_HAND_SIZE = 30  # a case with more numbers is not worked by hand


# ---- Facets -------------------------------------------------------------------------------------


def facets(outcome, expected, case, blank):
    """-> {name: value}. Numbers are flat tensors of float64."""
    if outcome["status"] == "raised":
        return {"error": outcome["type"]}
    left = expected.get("inputs", outcome["inputs"])
    found = {f"input {name}": core.same(value, left.get(name))
             for name, value in outcome["inputs"].items()}
    for name, part in parts(outcome["output"], blank):
        found["kind of " + name] = core.kind(part)
        found["values of " + name] = part
        if isinstance(part, torch.Tensor):
            found["shape of " + name], found["dtype of " + name] = part.shape, part.dtype
            part = part.detach().abs() if part.is_complex() else part.detach()
            found["values of " + name] = part.double().flatten()
        elif isinstance(part, (bool, int, float)):
            found["values of " + name] = torch.tensor([float(part)], dtype=torch.float64)
    for i, flag in enumerate(outcome["has_graph"]):
        found[f"graph {i}"] = flag
    found["gradient"] = core.has_any(outcome["grads"]) or not core.has_any(
        expected.get("grads", {}))
    for name in case.grad:
        grad = outcome["grads"].get(name)
        grad = torch.zeros_like(case.inputs[name]) if grad is None else grad
        found["gradient of " + name] = grad.double().flatten()
    return found


def parts(output, blank):
    """-> [(name, part)] of an output that may be a dictionary, a tuple, or one thing."""
    if isinstance(output, dict):
        return [(f'"{key}"', part) for key, part in output.items()]
    if isinstance(output, tuple):
        names = [output_called(name) for name in blank.outputs]
        return list(zip(names + [say("another output")] * len(output), output))
    return [(output_called(blank.outputs[0]) if blank.outputs else THE_RESULT, output)]


def alike(a, b, blank):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b) or a.shape == b.shape and bool(torch.isclose(
            a, b, rtol=blank.rtol, atol=blank.atol, equal_nan=True).all())
    return type(a) is type(b) and core.same(a, b)


def unlike(a, b, blank):
    """The names of the facets in which two outcomes differ."""
    if "error" in a or "error" in b:
        return {"error"} if a.get("error") != b.get("error") else set()
    return {name for name in a.keys() | b.keys()
            if name not in a or name not in b or not alike(a[name], b[name], blank)}


def units(names):
    """What of a case has to be explained: where values are wrong, their gradient follows them."""
    firm = {name for name in names if not name.startswith("gradient")}
    if any(name.startswith("kind of ") for name in firm):  # a number has no shape
        firm = {name for name in firm if not name.startswith(("shape of", "dtype of", "graph"))}
    return firm or set(names)


# ---- Known mistakes -----------------------------------------------------------------------------


class KnownFacets:
    """The facets of the answer and of the known mistakes: the same, whoever's version is judged."""

    def __init__(self, known):
        self.known = known
        self.right = self.of(known.expected)

    def of(self, outcomes):
        return [facets(*three, self.known.blank)
                for three in zip(outcomes, self.known.expected, self.known.cases)]

    @functools.cached_property
    def theirs(self):
        """For each known mistake the facets of all cases."""
        numbers = range(len(self.known.cases))
        return [self.of([self.known.of_mistake(j, i) for i in numbers])
                for j in range(len(self.known.blank.mistakes))]

    @functools.cached_property
    def off(self):
        """For each known mistake what is wrong with it in each case."""
        return [[unlike(*two, self.known.blank) for two in zip(one, self.right)]
                for one in self.theirs]


class Evidence:
    """The facets of the student's version, of the answer, and of the known mistakes."""

    def __init__(self, known, outcomes, differences):
        self.blank, self.cases, self.differences = known.blank, known.cases, differences
        self.wrong = [i for i, difference in enumerate(differences) if difference]
        self.expected, self.known = known.expected, known.facets
        self.right, self.yours = known.facets.right, known.facets.of(outcomes)
        self.amiss = [unlike(a, b, self.blank) for a, b in zip(self.yours, self.right)]
        self.open = {i: units(self.amiss[i]) for i in self.wrong}
        self.part = False  # is it looked at without some of the facets?
        self.theirs = None  # facets of the known mistakes, where they were needed

    def only(self, keep):
        """The same, of the facets for whose name `keep` gives True; None where none is left."""
        part = copy.copy(self)
        part.open = {i: kept for i, names in self.open.items()
                     if (kept := set(filter(keep, names)))}
        part.wrong, part.part = list(part.open), True
        return part if len(part.wrong) >= 2 else None

    def is_yes_or_no(self):
        """Is there nothing but 0 and 1, few in a case, in all that is expected?"""
        values = [value for i in self.wrong for name, value in self.right[i].items()
                  if name.startswith("values of ")]
        return all(isinstance(value, torch.Tensor) and len(value) <= 5 and bool(
            ((value == 0) | (value == 1)).all()) for value in values)

    def compare_with_mistakes(self):
        """Once, also for parts of the evidence."""
        self.theirs = self.known.theirs
        self.away = [[unlike(yours, theirs, self.blank) for theirs, yours in zip(one, self.yours)]
                     for one in self.theirs]

    def explains(self, j):
        """Of the known mistake number j: -> ({case: the facets that it explains}, the cases in
        which it fails, and those of them in which it is wrong where the student's version is
        right)."""
        explained, fails, against = {}, set(), set()
        for i, (off, away) in enumerate(zip(self.known.off[j], self.away[j])):
            if off:
                fails.add(i)
            beside = away - self.open.get(i, set()) if self.part else set()
            if units(off) & (beside | units(off) - self.amiss[i]) and "error" not in self.amiss[i]:
                against.add(i)
            if i in self.open:
                same = self.open[i] - away if "error" not in away else set()
                if same:
                    explained[i] = same
        return explained, fails, against

    def share(self, explained):
        """Of the failing cases; one that is half explained counts half."""
        return sum(len(names) / len(self.open[i]) for i, names in explained.items()) / len(
            self.open)

    def off(self, mistake):
        """For each case what is wrong with a known mistake."""
        return self.known.off[self.blank.mistakes.index(mistake)]

    def away_from(self, mistake):
        """For each case in what the student's version differs from a known mistake."""
        return self.away[self.blank.mistakes.index(mistake)]

    def explained_by(self, mistake):
        """The failing cases in which a known mistake does by itself what the student's version
        does."""
        off, away = self.off(mistake), self.away_from(mistake)
        return [i for i, names in self.open.items()
                if off[i] and not away[i] & (names | {"error"})]

    def explains_what_is_shown(self, mistake, i):
        """Does it explain, of a case that it explains in part, the output that is spoken of?"""
        return any(name.partition(" of ")[2] in self.differences[i].what
                   for name in self.open[i] - self.away_from(mistake)[i])

    def other_gradients(self, mistake):
        """The failing cases in which a known mistake has another gradient."""
        return [i for i in self.wrong if any(
            name.startswith("gradient") for name in self.away_from(mistake)[i])]


def merged(*several):
    return {i: set().union(*(one.get(i, ()) for one in several))
            for i in set().union(*several)}


def find_mistakes(evidence):
    """-> (mistakes, factor, explained): the known mistake, or the two, that explain most of what is
    wrong; a factor that comes on top of the first, or None. No mistakes: none that is the only
    one to do so."""
    blank, number = evidence.blank, len(evidence.cases)
    if evidence.theirs is None:
        evidence.compare_with_mistakes()
    theirs = evidence.theirs
    found = [evidence.explains(j) for j in range(len(theirs))]
    few = FEW * number
    able = [j for j, (explained, _, against) in enumerate(found)
            if explained and len(against) <= few]
    offers = [(evidence.share(found[j][0]), (j,), None, found[j][0]) for j in able
              if len(found[j][0]) >= 2]
    sums = combined(evidence, theirs) if not evidence.part else {}
    for j, k in {*itertools.combinations(able, 2), *sums} if not evidence.is_yes_or_no() else ():
        both = merged(found[j][0], found[k][0], sums.get((j, k), {}))
        if all(adds(found[a], found[b], both) for a, b in ((j, k), (k, j))) and len(both) >= 2:
            offers.append((evidence.share(both) - 0.01, (j, k), None, both))
    for j, factor, explained in scaled(evidence, theirs) if not evidence.part else ():
        offers.append((evidence.share(explained) - 0.02, (j,), factor, explained))
    best = max((offer[0] for offer in offers), default=0)
    offers = [offer for offer in offers if offer[0] > best - 1e-6]
    enough = MORE if evidence.is_yes_or_no() else MOST
    if best < enough - 0.02:
        return [], None, {}
    certain = set.intersection(*(set(offer[1]) for offer in offers))  # what all of them hold
    if len(offers) > 1 and (not certain or len({offer[2] for offer in offers}) > 1):
        return [], None, {}
    kept = [j for j in offers[0][1] if j in certain]
    explained = offers[0][3] if len(offers) == 1 else found[kept[0]][0]
    if len(offers) > 1 and evidence.share(explained) < enough:
        return [], None, {}
    kept.sort(key=lambda j: -evidence.share(found[j][0]))
    return [blank.mistakes[j] for j in kept], offers[0][2], explained


def adds(one, other, both):
    """Does the first of two mistakes explain what the other does not: in two cases, or wherever it
    shows by itself? And is it never wrong where the student's version is right?"""
    explained, fails, against = one
    more = [i for i in both if both[i] - other[0].get(i, set())]
    alone = fails - other[1]
    return bool(more) and not against and (len(more) >= 2 or bool(alone) and alone <= set(more))


def numbers(evidence, theirs):
    """One flat tensor of the values of all failing cases, or None where they do not line up."""
    flat = []
    for i in evidence.wrong:
        names = [name for name in evidence.right[i] if name.startswith("values of ")]
        for name in names:
            value, right = theirs[i].get(name), evidence.right[i][name]
            if not (isinstance(value, torch.Tensor) and isinstance(right, torch.Tensor)
                    and value.shape == right.shape):
                return None
            flat.append(value)
    return torch.cat(flat) if flat else None


def lined_up(evidence):
    """-> (yours, expected, the case of each number), or None."""
    yours, right = (numbers(evidence, which) for which in (evidence.yours, evidence.right))
    if yours is None or right is None or len(yours) > 20_000:
        return None
    sizes = [sum(len(value) for name, value in evidence.right[i].items()
                 if name.startswith("values of ")) for i in evidence.wrong]
    return yours, right, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def whole_cases(evidence, guess, yours, owner):
    """{case: its facets to explain} where a guess at all numbers is what the student's version
    gives, and where nothing but values is wrong."""
    blank = evidence.blank
    off = ~torch.isclose(guess, yours, rtol=blank.rtol, atol=blank.atol, equal_nan=True)
    bad = set(owner[off].tolist())
    return {i: evidence.open[i] for place, i in enumerate(evidence.wrong) if place not in bad
            and all(name.startswith("values of ") for name in evidence.open[i])}


def combined(evidence, theirs):
    """Two mistakes in one number: what each adds, or the factors of both. -> {(j, k): explained}"""
    line = lined_up(evidence)
    if not line:
        return {}
    yours, right, owner = line
    flats = {j: flat for j, one in enumerate(theirs) if (flat := numbers(evidence, one)) is not None
             and flat.isfinite().all()}
    found = {}
    for j, k in itertools.combinations(flats, 2):
        a, b = flats[j], flats[k]
        product = torch.where(right == 0, a, a * b / torch.where(right == 0, 1.0, right))
        differ = set(owner[(a != right) & (b != right)].tolist())
        for guess in a + b - right, product:
            explained = whole_cases(evidence, guess, yours, owner)
            explained = {i: names for i, names in explained.items()
                         if evidence.wrong.index(i) in differ}
            if len(explained) >= 2:
                found[j, k] = explained
    return found


def scaled(evidence, theirs):
    """A mistake, and minus, twice or half of it. -> (j, factor, explained)"""
    line = lined_up(evidence)
    if not line:
        return
    yours, right, owner = line
    for j, one in enumerate(theirs):
        flat = numbers(evidence, one)
        if flat is None:
            continue
        for factor in (-1.0, 2.0, 0.5):
            if any(not isinstance(value := one[i].get(name), torch.Tensor)
                   or not alike(factor * value, other, evidence.blank)
                   for i in range(len(evidence.cases)) if i not in evidence.open
                   for name, other in evidence.right[i].items() if name.startswith("values of ")):
                continue  # it would be wrong where the student's version is right
            plain = whole_cases(evidence, factor * right, yours, owner)
            explained = whole_cases(evidence, factor * flat, yours, owner)
            more = explained.keys() - plain.keys()
            if more and plain.keys() <= explained.keys() and len(explained) >= 2:
                yield j, factor, explained


# ---- Whatever the function is -------------------------------------------------------------------


def close(a, b, blank):
    return a.shape == b.shape and bool(torch.isclose(
        a.double(), b.double(), rtol=blank.rtol, atol=blank.atol, equal_nan=True).all())


def mask_of(case, shape):
    """True on real tokens, where the case says which those are."""
    for name in ("mask", "attention_mask"):
        mask = case.inputs.get(name)
        if isinstance(mask, torch.Tensor) and mask.shape == shape:
            return mask.bool()
    return None


def factor_of(yours, right, blank):
    """c with yours = c right, or None."""
    y, e = yours.double().flatten(), right.double().flatten()
    if y.shape != e.shape or not (y.isfinite().all() and e.isfinite().all()) or not e.any():
        return None
    c = float(y @ e / (e @ e))
    return c if close(y, c * e, blank) and abs(c) > 1e-3 else None


def is_reversed(y, e, case, blank):
    dim = min(1, e.ndim - 1)
    return None if e.ndim == 0 or e.shape[dim] < 2 else close(y.flip(dim), e, blank)


def is_reversed_in_rows(y, e, case, blank):
    """Each row's real tokens, in the opposite order."""
    mask = mask_of(case, e.shape)
    if mask is None or mask.all() or y.shape != e.shape:
        return None
    return all(close(y[b][mask[b]].flip(0), e[b][mask[b]], blank) for b in range(len(e)))


def shifted(by):
    def is_shifted(y, e, case, blank):
        dim = min(1, e.ndim - 1)
        if e.ndim == 0 or e.shape[dim] < 3 or y.shape != e.shape:
            return None
        n = e.shape[dim] - 1
        return close(y.narrow(dim, int(by > 0), n), e.narrow(dim, int(by < 0), n), blank)
    return is_shifted


def is_transposed(y, e, case, blank):
    if e.ndim != 2 or e.numel() < 2:
        return None
    return y.ndim == 2 and close(y.T, e, blank) and (y.shape != e.shape or not close(y, e, blank))


def is_right_but_for_padding(y, e, case, blank):
    mask = mask_of(case, e.shape)
    if mask is None or y.shape != e.shape or mask.all() or not mask.any():
        return None
    return close(y[mask], e[mask], blank)


def is_offset(y, e, case, blank):
    if e.numel() < 2 or y.shape != e.shape or not y.is_floating_point():
        return None
    gap = (y - e).double()
    return bool(gap.isfinite().all()) and bool(torch.isclose(
        gap, gap.mean(), rtol=1e-3, atol=4 * blank.atol).all())


def is_like_the_first(which, dim):
    """Right but for the first or the last row or column."""
    def right_but_for(y, e, case, blank):
        if e.ndim <= dim or y.shape != e.shape or e.shape[dim] < 2:
            return None
        n = e.shape[dim] - 1
        return close(y.narrow(dim, int(which == 0), n), e.narrow(dim, int(which == 0), n), blank)
    return right_but_for


def is_right_but_for_last_token(y, e, case, blank):
    mask = mask_of(case, e.shape)
    if mask is None or y.shape != e.shape or not (mask.sum(1) > 1).any():
        return None
    rest = mask & (mask.long().cumsum(1) < mask.sum(1, keepdim=True)) | ~mask
    return close(y[rest], e[rest], blank)


def adds_up_to_one(y, e, case, blank):
    """Softmax over the wrong dimension, where it alone remains."""
    if e.ndim != 1 or len(e) < 2 or not y.is_floating_point():
        return None
    return abs(float(y.sum()) - 1) < 1e-4 < abs(float(e.sum()) - 1)


def is_all_the_same(y, e, case, blank):
    if e.numel() < 2 or (e == e.flatten()[0]).all():
        return None
    return bool((y == y.flatten()[0]).all()) and bool(y.flatten()[0] != 0)


def is_in_another_shape(y, e, case, blank):
    return y.shape != e.shape and y.numel() == e.numel() and close(y.flatten(), e.flatten(), blank)


DETECTORS = {  # name -> (is it so in one case; None: it could not be, what is said)
    "reversed": (is_reversed,
        "{name} is the expected one, in the opposite order. In which order do you walk, in "
        "which do you collect, and what turns the list round in the end?"),
    "reversed in rows": (is_reversed_in_rows,
        "{name} has each row's real entries in the opposite order. Which end of a row do you "
        "begin at?"),
    "transposed": (is_transposed,
        "{name} is the expected one with rows and columns exchanged. Which dimension is "
        "which?"),
    "another shape": (is_in_another_shape,
        "the numbers of {name} are right, their shape is not. Which of your steps adds a "
        "dimension, or removes one too many?"),
    "adds up to 1": (adds_up_to_one,
        "the entries of {name} add up to 1, and should not. Over which dimension is your "
        "softmax or your mean taken?"),
    "all the same": (is_all_the_same,
        "all entries of {name} are the same number, and should not be. Over what do you take "
        "a sum or a mean that should be taken for each?"),
    "too late by one": (shifted(1),
        "{name} is the expected one, one place too late. Which entry belongs to which: that "
        "of its own place, or its neighbour's?"),
    "too early by one": (shifted(-1),
        "{name} is the expected one, one place too early. Which entry belongs to which: that "
        "of its own place, or its neighbour's?"),
    "the padding": (is_right_but_for_padding,
        "{name} is right on all real tokens, and wrong at the padding. What should stand "
        "there?"),
    "the last token": (is_right_but_for_last_token,
        "{name} is right but for each row's last real token. What comes after that one?"),
    "the first row": (is_like_the_first(0, 0),
        "{name} is right but for its first row or entry. What does your code do differently "
        "there?"),
    "the last row": (is_like_the_first(-1, 0),
        "{name} is right but for its last row or entry. What does your code do differently "
        "there?"),
    "the first column": (is_like_the_first(0, 1),
        "{name} is right but for its first column. What does your code do differently there?"),
    "the last column": (is_like_the_first(-1, 1),
        "{name} is right but for its last column. What does your code do differently there?"),
}


def detect(evidence, outcomes):
    """-> (name, what is said), or None. The first output in which something is seen that is so in
    all failing cases but a few, two at least."""
    blank = evidence.blank
    names = dict.fromkeys(name for i in evidence.wrong for name in evidence.right[i]
                          if name.startswith("values of ") and name in evidence.amiss[i])
    for name in names:
        three = [(*two, evidence.cases[i]) for i in evidence.wrong
                 if (two := pair_of(outcomes[i], evidence.expected[i], name, blank))]
        found = detect_in_lists(three) or detect_in_tensors(three, called(name), blank)
        if found:
            return found
    found = without_an_input(evidence, outcomes)
    if found:
        return found
    shapes = [(*two, evidence.cases[i]) for i in evidence.wrong if (two := pair_of(
        outcomes[i], evidence.expected[i], None, blank))]
    return detect_in_tensors(shapes, THE_RESULT, blank) if len(
        shapes) == len(evidence.wrong) else None


def called(facet):
    """'values of the output "loss"' -> what is called so."""
    name = facet.removeprefix("values of ")
    in_quotes = name.removeprefix('the output "').removesuffix('"')
    return output_called(in_quotes) if name == output_called(in_quotes) else name


def without_an_input(evidence, outcomes):
    """An input that the result does not depend on, told by its gradients."""
    for name in dict.fromkeys(name for i in evidence.wrong for name in evidence.cases[i].grad):
        seen = [(outcomes[i]["grads"].get(name), evidence.expected[i]["grads"].get(name))
                for i in evidence.wrong if "grads" in outcomes[i] and evidence.expected[i].get(
                    "grads") and outcomes[i]["grads"] and name in evidence.cases[i].grad]
        seen = [mine for mine, right in seen if right is not None and right.any()]
        others = any(grad is not None and grad.any() for i in evidence.wrong
                     for grad in outcomes[i].get("grads", {}).values())
        if len(seen) >= 2 and others and not any(mine is not None and mine.any() for mine in seen):
            return "no influence", say(
                "yours does not change when {name} does: no gradient reaches it. Where in the "
                "formula does it stand, and where in your code?", name=name)
    return None


def pair_of(outcome, expected, name, blank):
    """The part called `name` of both, if it differs. None: of the only one."""
    if "raised" in (outcome["status"], expected["status"]):
        return None
    yours, right = dict(parts(outcome["output"], blank)), dict(parts(expected["output"], blank))
    key = next(iter(right)) if name is None else name[10:]
    if key not in yours or key not in right or core.kind(yours[key]) != core.kind(right[key]):
        return None
    two = yours[key], right[key]
    if isinstance(two[0], (bool, int, float)):
        two = torch.tensor(float(two[0])), torch.tensor(float(two[1]))
    if isinstance(two[0], torch.Tensor):
        two = two[0].detach(), two[1].detach()
        if two[0].is_complex():
            return None
        return None if close(*two, blank) and two[0].dtype == two[1].dtype else two
    return None if two[0] == two[1] else two


def holds(answers, number):
    """Of one answer a case, None where it could not be: so in nearly all, in half of the cases and
    in two at least."""
    able = [answer for answer in answers if answer is not None]
    return len(able) >= 2 and 2 * len(able) >= number and sum(able) >= 0.9 * len(able)


def detect_in_tensors(three, name, blank):
    three = [one for one in three if isinstance(one[0], torch.Tensor)
             and not close(one[0], one[1], blank)]
    if len(three) < 2:
        return None
    factors = [factor_of(y, e, blank) for y, e, _ in three]
    found = factor_hint(factors, three, name, blank)
    if found:
        return found
    for key, (test, words) in DETECTORS.items():
        free = key in ("transposed", "another shape")
        if holds([(free or y.shape == e.shape) and test(y, e, case, blank)
                  for y, e, case in three], len(three)):
            return key, say(words, name=name)
    if holds([is_offset(y, e, case, blank) for y, e, case in three], len(three)):
        gaps = {f"{float((y - e).double().mean()):.4g}" for y, e, _ in three}
        much = (say("{gap} in every case", gap=gaps.pop()) if len(gaps) == 1
                else say("another one in each case"))
        return "offset", say("{name} is off by one constant in all its entries ({much}). Which "
                             "term is missing, or there twice?", name=name, much=much)
    return None


def factor_hint(factors, three, name, blank):
    known = [c for c in factors if c is not None]
    if len(known) < 2 or len(known) < 0.9 * sum(bool(e.any()) for _, e, _ in three):
        return None
    if all(abs(c - known[0]) <= 1e-3 * abs(known[0]) for c in known):
        if abs(known[0] - 1) < 1e-3:
            return None
        if abs(known[0] + 1) < 1e-3:
            return "negated", say(
                "{name} is exactly -1 times the expected one in every case. Which sign does the "
                "formula have, and where does yours lose it?", name=name)
        return "scaled", say("{name} is {factor} times the expected one in every case. Which "
                             "factor is that?", name=name, factor=f"{known[0]:.5g}")
    several = [c for c, (y, _, _) in zip(factors, three) if c is not None and y.numel() > 1]
    ratio = ratio_of_sizes(factors, three)
    if ratio:
        return "scaled", say("{name} is the expected one times {ratio}, in every case. By what do "
                             "you divide, and by what does the formula?", name=name, ratio=ratio)
    if len(several) >= 2:
        return "scaled", say(
            "{name} is the expected one times a constant, another one in each case ({factors}). "
            "By what do you divide?", name=name,
            factors=", ".join(f"{c:.4g}" for c in several[:3]))
    return None


def sizes_of(case):
    """Numbers by which somebody might divide, with their names."""
    found = {"1": 1.0}
    tensors = [x for x in case.inputs.values() if isinstance(x, torch.Tensor) and x.ndim]
    mask = next((case.inputs[name] for name in ("mask", "attention_mask")
                 if name in case.inputs), None)
    if tensors:
        found["B"] = float(len(tensors[0]))
    if any(x.ndim > 1 for x in tensors):
        found["T"] = float(max(x.shape[1] for x in tensors if x.ndim > 1))
        found["B T"] = found["B"] * found["T"]
    if mask is not None:
        found[say("the number of real tokens")] = float(mask.sum())
    if isinstance(case.inputs.get("labels"), torch.Tensor):
        found[say("the number of labels")] = float((case.inputs["labels"] != -100).sum())
    if case.inputs.get("count") is not None:
        found["count"] = float(case.inputs["count"])
    return {name: value for name, value in found.items() if value}


def ratio_of_sizes(factors, three):
    """"B / T", if that is what all factors are, and if the factors are not all the same."""
    all_sizes = [(c, sizes_of(case)) for c, (_, _, case) in zip(factors, three) if c is not None]
    names = set.intersection(*(set(sizes) for _, sizes in all_sizes))
    fits = [(a, b) for a, b in itertools.permutations(sorted(names), 2) if all(
        abs(c - sizes[a] / sizes[b]) <= 1e-3 * abs(c) for c, sizes in all_sizes)]
    if not fits or len(all_sizes) < 3:
        return None
    return min((a if b == "1" else say("{a} / {b}", a=a, b=b) for a, b in fits), key=len)


def detect_in_lists(three):
    """Of lists and texts."""
    if len(three) < 2 or not all(isinstance(y, (list, str)) for y, _, _ in three):
        return None
    tests = {
        "reversed": (lambda y, e: y == e[::-1], say(
            "it is the expected one, in the opposite order. What turns it round?")),
        "white space": (lambda y, e: isinstance(y, str) and y.split() == e.split(), say(
            "it differs in white space alone: count the spaces and line breaks, with repr(...), "
            "those at the end too.")),
        "cut short": (lambda y, e: len(y) < len(e) and y == e[:len(y)], say(
            "it is the expected one without its end. What is added last?")),
        "goes on": (lambda y, e: len(y) > len(e) and y[:len(e)] == e, say(
            "it begins with all that is expected, and then goes on. What is added there, and "
            "where should it stop?")),
        "begins too late": (lambda y, e: len(y) < len(e) and y == e[-len(y):] and len(y) > 0, say(
            "it is the expected one without its beginning. What comes first?")),
        "another order": (lambda y, e: sorted(map(repr, y)) == sorted(map(repr, e)), say(
            "it holds the right entries in another order. Which comes first?"))}
    for name, (test, words) in tests.items():
        if holds([test(y, e) for y, e, _ in three], len(three)):
            return name, words
    return None


# ---- NaN, and what cases have in common ---------------------------------------------------------


def not_finite(case, difference):
    """Where a number is not finite: what of the inputs may have made it so."""
    tensors = [x for x in case.inputs.values() if isinstance(x, torch.Tensor)]
    real = [x for x in tensors if x.is_floating_point() and x.numel()]
    largest = max((float(x.abs().max()) for x in real), default=0.0)
    mask, labels = mask_of_any(case), case.inputs.get("labels")
    tokens = [float(n) for n in mask.sum(-1).flatten()] if mask is not None else []
    where = (say("the gradient is") if difference.what.startswith("the gradient")
             else say("yours is"))
    if mask is not None and not mask.any() or labels is not None and not (
            labels[:, 1:] != -100).any():
        return "0/0", say("{where} no number where no token counts. What is 0 / 0, and by what do "
                          "you divide there?", where=where)
    if case.inputs.get("group_size") == 1 or sum(tokens) == 1:
        return "0/0", say("{where} no number where there is one number to take a deviation of. "
                          "What is divided by n - 1 when n is 1?", where=where)
    if mask is not None and 0 in tokens:
        return "0/0", say("{where} no number where a row has no token. What is 0 / 0, and by what "
                          "do you divide that row?", where=where)
    if largest >= 80:
        return "exp", say(
            "{where} not finite where the inputs are as large as {largest}: in float32 exp(89) is "
            "inf and exp(-104) is 0. Which of your steps takes exp of something large, the log of "
            "0, or inf / inf, and which function does it in one go?", where=where,
            largest=f"{largest:.4g}")
    return "log", say("{where} not finite. Where does your code take the log or the root of 0 or "
                      "of something negative, or divide by 0?", where=where)


def mask_of_any(case):
    return next((case.inputs[name] for name in ("mask", "attention_mask")
                 if isinstance(case.inputs.get(name), torch.Tensor)), None)


def features(case):
    """What is special about a case's inputs, in words, to be put after "have"."""
    found = set()
    for name, value in case.inputs.items():
        if isinstance(value, torch.Tensor):
            if value.ndim and not value.numel() == 1:
                found.add(say("{name} of dtype {dtype}", name=name, dtype=str(value.dtype)[6:]))
                found.add(say("{name} with one row" if len(value) == 1
                              else "{name} with several rows", name=name))
            if value.is_floating_point() and value.numel():
                found.add(say("large numbers in {name}" if value.abs().max() >= 80
                              else "no large numbers in {name}", name=name))
            if value.ndim > 1 and len(value) == value.shape[1]:
                found.add(say("as many rows as columns"))
        if name in ("count", "margin", "max_length", "ref_logprobs"):
            found.add(say("no {name}" if value is None else "{name} given", name=name))
        if name in ("count", "margin") and value is not None:
            found.add(say("{name} given as a tensor" if core.kind(value) == "tensor"
                          else "{name} given as a number", name=name))
        elif isinstance(value, (bool, int, float)) or isinstance(value, str) and (
                value.isidentifier()):
            found.add(say("{name} = {value}", name=name, value=repr(value)))
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found.add(say("a negative {name}" if value < 0 else "no negative {name}",
                              name=name))
        if isinstance(value, str):
            found.add(say("white space at an end of {name}" if value != value.strip()
                          else "no white space at the ends of {name}", name=name))
        if isinstance(value, list):
            found.add(say("{name} empty" if not value else "several entries in {name}"
                          if len(value) > 1 else "one entry in {name}", name=name))
    mask = mask_of_any(case)
    if mask is not None and mask.ndim == 2:
        found |= features_of_mask(mask.bool())
    labels = case.inputs.get("labels")
    if isinstance(labels, torch.Tensor):
        used = (labels != -100)[:, 1:]
        found.add(say("no label" if not used.any() else "a row without a label"
                      if not used.any(1).all() else "a label in every row"))
        found.add(say("every token labelled" if (labels != -100).all()
                      else "tokens without a label"))
        found.add(say("a label at the first token" if (labels[:, 0] != -100).any()
                      else "no label at the first token"))
    if isinstance(case.inputs.get("group_size"), int):
        groups = case.inputs["rewards"].view(-1, case.inputs["group_size"])
        found.add(say("groups without spread" if (groups.amax(1) == groups.amin(1)).all() else
                      "a group without spread" if (groups.amax(1) == groups.amin(1)).any() else
                      "spread in every group"))
        found.add(say("one group" if len(groups) == 1 else "several groups"))
    return found


def features_of_mask(mask):
    if not mask.any():
        return {say("no real token"), say("a row without a real token")}
    rows = mask[mask.any(1)]
    left, right = bool((~rows[:, 0]).any()), bool((~rows[:, -1]).any())
    return {say("no padding" if mask.all() else "padding"),
            say("several real tokens" if mask.sum() > 1 else "one real token in all"),
            say("a row without a real token" if len(rows) < len(mask)
                else "a real token in each row"),
            say("padding on the left" if left else "no padding on the left"),
            say("padding on the right" if right else "no padding on the right")}


def in_common(cases, wrong):
    """What all failing cases have and the others have not. -> (words, is it in none of the others),
    or None."""
    if len(wrong) < 2 or len(cases) - len(wrong) < max(2, 0.2 * len(cases)):
        return None
    all_features = [features(case) for case in cases]
    shared = set.intersection(*(all_features[i] for i in wrong))
    rest = [i for i in range(len(cases)) if i not in set(wrong)]
    seen = Counter(feature for i in rest for feature in all_features[i])
    best = min(shared, key=lambda one: (seen[one], one.startswith("no "), len(one), one),
               default=None)
    few = best is None or best.startswith("no ") or len(wrong) < 4  # chance finds something
    if best is None or seen[best] > (0 if few else len(rest) / 3):
        return None
    return best, not seen[best]


# ---- A smaller case -----------------------------------------------------------------------------


def cut_rows(case, rows):
    """The case with some of its rows, or None where it has none to leave out."""
    group = case.inputs.get("group_size")
    tensors = {name: x for name, x in case.inputs.items() if isinstance(x, torch.Tensor) and x.ndim}
    lengths = {len(x) // group if group else len(x) for x in tensors.values()}
    if "examples" in case.inputs:
        kept = [case.inputs["examples"][i] for i in rows if i < len(case.inputs["examples"])]
        return with_inputs(case, {"examples": kept}) if kept else None
    if len(lengths) != 1 or max(rows) >= min(lengths) or not tensors:
        return None
    pick = torch.tensor(rows)
    return with_inputs(case, {
        name: x.view(-1, group)[pick].flatten() if group else x[pick]
        for name, x in tensors.items()})


def cut_time(case, by):
    """The case without its last `by` tokens, or None."""
    tensors = {name: x for name, x in case.inputs.items()
               if isinstance(x, torch.Tensor) and x.ndim > 1}
    if not tensors or min(x.shape[1] for x in tensors.values()) <= by:
        return None
    return with_inputs(case, {name: x[:, :-by] for name, x in tensors.items()})


def with_inputs(case, changed):
    inputs = {name: fresh(changed.get(name, value)) for name, value in case.inputs.items()}
    return core.Case(f"{case.note}, made smaller", inputs, case.grad)


def smaller(blank, case, differs):
    """A part of the case on which `differs(case)` gives a Difference as well. -> (case,
    difference), or None. Parts that the answer and the slow loop see differently are no cases."""
    tensors = [x for x in case.inputs.values() if isinstance(x, torch.Tensor) and x.ndim]
    number = len(case.inputs.get("examples") or (tensors[0] if tensors else ()))
    best = None
    for rows in [[i] for i in range(min(number, 8))] + [[0, 1], [1, 2], [0, 1, 2]]:
        part = cut_rows(case, rows)
        found = part and differs(part)
        if found:
            best = part, found
            break
    width = max((x.shape[1] for x in tensors if x.ndim > 1), default=1)
    for by in reversed(range(1, width)):
        part = cut_time(best[0] if best else case, by)
        found = part and differs(part)
        if found:
            part.note = f"{case.note}, made smaller"
            return part, found
    return best


def make_smaller(result, ask):
    """Show a smaller case instead of one that cannot be worked by hand. `ask(request)` performs a
    request, as in collect."""
    blank, case = result.blank, result.case
    if core.size(list(case.inputs.values())) <= BY_HAND_SIZE:
        return
    answer = getattr(core.load_answers(blank.file), blank.name)

    def is_mistaken(part):
        """Is the mistake that is named first wrong there?"""
        two = [perform(one, part.inputs, part.grad) for one in (result.mistake.function, answer)]
        return bool(core.differ(*two, part, blank))

    needs_mistake = result.mistake and is_mistaken(case)

    def differs(part):
        expected, slow = (perform(one, part.inputs, ()) for one in (answer, blank.slow))
        if "returned" != expected["status"] or slow["status"] != "returned" or core.compare(
                expected["output"], slow["output"], 1e-4, 1e-5):
            return None
        outcome = ask({"file": blank.file, "function": blank.name, "inputs": part.inputs,
                       "grad": list(part.grad)})
        found = core.differ(outcome, perform(answer, part.inputs, part.grad), part, blank)
        same = found and found.hint == result.difference.hint
        return found if same and (not needs_mistake or is_mistaken(part)) else None

    found = smaller(blank, case, differs)
    if found:
        result.case, result.difference = found
        if result.common and result.common not in features(result.case):
            forget_what_is_common(result)


def forget_what_is_common(result):
    """It fails without that as well: the cases had it by chance."""
    result.remarks = [one for one in result.remarks if one[0] != say("in common")]
    if result.seen == "in common":
        result.seen = result.hint = ""


# ---- What an input does -------------------------------------------------------------------------


def another(value):
    """A value a little different, or None."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value + torch.linspace(0.1, 0.3, value.numel(), dtype=value.dtype).view(value.shape)
    if isinstance(value, float):
        return 1.1 * value + 0.013
    if isinstance(value, int) and not isinstance(value, bool):
        return value + max(value // 2, 1)
    return None


def find_unused(result, ask, seed):
    """An input that could be anything: in two cases or more the answer changes with it, and in none
    of these the student's version does. Masks are left as they are."""
    blank = result.blank
    if result.mistake or result.seen not in ("", "in common") or result.hint == "" and (
            result.difference.hint != core.BY_HAND):
        return
    answer, cases, known = getattr(core.load_answers(blank.file), blank.name), blank.cases(seed), {}

    def yours(inputs):
        return ask({"file": blank.file, "function": blank.name, "inputs": inputs, "grad": []})

    def changes(i, name):
        """-> does the student's version change, where the answer does (else None)?"""
        value = cases[i].inputs[name]
        changed = None if name in ("mask", "group_size", "k") else another(value)
        if changed is None:
            return None
        inputs = {**cases[i].inputs, name: changed}
        two = [perform(answer, one, ()) for one in (cases[i].inputs, inputs)]
        if any(one["status"] != "returned" for one in two) or not core.compare(
                two[1]["output"], two[0]["output"], blank.rtol, blank.atol):
            return None
        if i not in known:
            known[i] = yours(cases[i].inputs)
        now = yours(inputs)
        return "returned" not in (known[i]["status"], now["status"]) or not core.same(
            known[i].get("output"), now.get("output"))

    for name in cases[0].inputs:
        number = 0
        for i in range(len(cases)):
            change = changes(i, name) if name in cases[i].inputs else None
            if change:
                break
            number += change is not None
        else:
            if number >= 2:
                result.seen = "no influence"
                result.hint = say(
                    "yours does not change when {name} does, in {number} cases where it should. "
                    "Where in the formula does it stand, and where in your code?", name=name,
                    number=number)
                return


def no_hint(error):
    return say("no hint"), say("the hints failed: {kind}: {error}", kind=type(error).__name__,
                               error=error)


def ask_more(result, ask, seed):
    """What can be found out only by asking the student's version again. It stops at the first
    call that does not come back."""
    def ask_once_more(request):
        outcome = ask(request)
        if outcome["status"] not in ("returned", "raised"):
            raise TimeoutError(outcome["status"])
        return outcome

    try:
        find_unused(result, ask_once_more, seed)
        make_smaller(result, ask_once_more)
    except TimeoutError:
        pass
    except Exception as error:
        result.remarks.append(no_hint(error))


# ---- All of it ----------------------------------------------------------------------------------


def fill_in(result, *what):
    """What there is to say of a version that is not exactly one known mistake. Whatever came back
    from a student's function, the verdict does not depend on this."""
    try:
        describe(result, *what)
    except Exception as error:
        result.remarks.append(no_hint(error))


def describe(result, known, outcomes, differences):
    cases, shown = known.cases, result.difference
    evidence = Evidence(known, outcomes, differences)
    wrong = evidence.wrong
    common = in_common(cases, wrong)
    if common:
        words = ("{all} have {what}, and no other case has" if common[1] else "{all} have {what}")
        result.remarks.append((say("in common"), say(words, all=all_of(wrong), what=common[0])))
        result.common = common[0]
    by_gradient = sum(difference.hint == core.GRADIENT for difference in differences if difference)
    if by_gradient and shown.hint != core.GRADIENT:
        result.remarks.append((say("gradients"), say(
            "in {part} of the {all} failing cases the values are right, and their gradient is not",
            part=by_gradient, all=len(wrong))))
    good = right_outputs(evidence)
    if good:
        result.remarks.append((say("right"), say("{outputs}, in every case", outputs=both(good))))
    if len(wrong) >= 2 and name_mistakes(result, evidence, lambda numbers: core.show_case(
            result, numbers, cases, outcomes, differences)):
        return
    if shown.what.endswith("is not finite"):
        result.seen, result.hint = not_finite(result.case, shown)
        return
    found = detect(evidence, outcomes) if shown.hint in (core.BY_HAND, core.SHAPES) else None
    if found:
        result.seen, words = found
        result.hint = words
    elif shown.hint == core.BY_HAND and common:
        result.seen = "in common"
        result.hint = say("{all} have {what}. What does your code do there, and what would you do "
                          "by hand?", all=all_of(wrong), what=common[0])
    elif shown.hint == core.BY_HAND and good:
        result.seen = "one output"
        words = ("{outputs} is right. What goes into the other one alone?" if len(good) == 1 else
                 "{outputs} are right. What goes into the other one alone?")
        result.hint = say(words, outputs=both(good))


def right_outputs(evidence):
    """The outputs that are right in every case, where the failing cases have another one with wrong
    values."""
    several = [name for name, _ in parts(
        evidence.expected[evidence.wrong[0]].get("output"), evidence.blank)]
    if any("error" in names for names in evidence.amiss) or not all(any(
            facet.startswith("values of ") for facet in names) for names in evidence.open.values()):
        return []
    amiss = set().union(*evidence.amiss)
    return [name for number, name in enumerate(several) if not any(
        facet.endswith(name) or facet == f"graph {number}"
        or number == 0 and facet.startswith("gradient")  # which is the first output's
        for facet in amiss)]


def all_of(wrong):
    return (say("both failing cases") if len(wrong) == 2
            else say("all {number} failing cases", number=len(wrong)))


def both(outputs):
    return functools.reduce(lambda a, b: say("{a} and {b}", a=a, b=b), outputs)


def name_mistakes(result, evidence, show):
    """Fill in the known mistakes that explain most of it. -> were there any? `show(numbers)` shows
    the one of these cases that says most: it should be one that the first mistake explains."""
    mistakes, factor, explained = find_mistakes(evidence)
    if not mistakes:
        return name_beside_structure(result, evidence, show) or name_in_one_output(
            result, evidence, show)
    if factor:
        name_with_factor(result, evidence, mistakes[0], factor, explained, show)
    elif len(mistakes) == 2:
        name_two(result, evidence, mistakes, show)
    else:
        name_one(result, evidence, mistakes[0], explained, show)
    several = len(mistakes) > 1 or bool(factor)
    result.more += cases_not_explained(evidence, explained, mistakes, several)
    return True


def name_with_factor(result, evidence, mistake, factor, explained, show):
    """The factor is in every failing case, the mistake not in all of them."""
    show([i for i in explained if evidence.off(mistake)[i]])
    times = {-1.0: say("-1 times"), 2.0: say("twice"), 0.5: say("half of")}[factor]
    result.mistake, result.seen = mistake, "scaled"
    result.hint = say("Two mistakes, it seems, and this case has both. One: where does the result "
                      "become {times} what it should be?", times=times)
    result.more = [say("the other: {question}", question=mistake.question)]


def name_one(result, evidence, mistake, explained, show):
    """With its opening, where the version does nothing else in the failing cases."""
    result.mistake = mistake
    whole = [i for i in evidence.wrong if explained.get(i) == evidence.open[i]]
    is_all = len(whole) == len(evidence.wrong)
    gradients = evidence.other_gradients(mistake) if is_all else []
    if gradients or not is_all:
        show(whole or list(explained))
        result.hint = say("More than one mistake, it seems. The one in this case: {question}",
                          question=mistake.question)
    elif any(evidence.away_from(mistake)[i] for i in evidence.wrong):
        result.hint = mistake.question
    if gradients:
        result.more = [not_explained(False, say(
            "the gradient, in {part} of the {all} failing cases", part=len(gradients),
            all=len(evidence.wrong)))]


def name_two(result, evidence, mistakes, show):
    """Where one of the two explains a case by itself, that case is shown, and this one is named
    first. Otherwise the first is the one that explains what is shown."""
    by = {i: mistake for mistake in reversed(mistakes) for i in evidence.explained_by(mistake)}
    two = [i for i in evidence.wrong if all(evidence.off(mistake)[i] for mistake in mistakes)]
    if by:
        first = by[show(list(by))]
        words = "Two mistakes, it seems. The one in this case: {question}"
    else:
        shown = show(two or [i for i in evidence.wrong if evidence.off(mistakes[0])[i]])
        first = max(mistakes, key=lambda mistake: evidence.explains_what_is_shown(mistake, shown))
        words = ("Two mistakes, it seems, and this case has both. One: {question}" if two else
                 "Two mistakes, it seems. One: {question}")
    result.mistake, result.also = first, [one for one in mistakes if one is not first]
    result.hint = say(words, question=first.question)
    result.more = [say("the other: {question}", question=one.question) for one in result.also]


def name_beside_structure(result, evidence, show):
    """Known mistakes beside a kind, shape, dtype or graph that is wrong in every failing case."""
    structure = set.intersection(*evidence.open.values())
    structure = {name for name in structure if name.startswith(("kind", "shape", "dtype", "graph"))}
    rest = evidence.only(lambda name: name not in structure) if structure else None
    mistakes, _, explained = find_mistakes(rest) if rest else ([], None, {})
    if not mistakes:
        return False
    result.mistake, result.also = mistakes[0], mistakes[1:]
    of_structure = [i for i in evidence.wrong if evidence.differences[i].hint in STRUCTURE]
    if of_structure:
        show(of_structure)
        questions = [result.difference.hint, *(one.question for one in mistakes)]
    else:  # it is seen only where the values are right
        show(rest.explained_by(mistakes[0]) or rest.wrong)
        has_graph = any(evidence.yours[i].get(name) is True for i in evidence.wrong
                        for name in structure)
        questions = [one.question for one in mistakes]
        questions.insert(1, core.HAS_GRAPH if has_graph else core.NO_GRAPH)
    words = ("Two mistakes, it seems. The one in this case: {question}" if len(questions) == 2 else
             "Three mistakes, it seems. The one in this case: {question}")
    result.hint = say(words, question=questions[0])
    words = "the other: {question}" if len(questions) == 2 else "another: {question}"
    result.more = [say(words, question=question) for question in questions[1:]]
    result.more += cases_not_explained(rest, explained, mistakes, True)
    return True


def name_in_one_output(result, evidence, show):
    """Known mistakes in one of several outputs, where something else is wrong as well."""
    for name in evidence.blank.outputs:
        part = evidence.only(lambda facet: f'"{name}"' in facet)
        mistakes, _, explained = find_mistakes(part) if part else ([], None, {})
        if mistakes:
            break
    else:
        return False
    result.mistake, *result.also = mistakes
    able = part.explained_by(mistakes[0]) or part.wrong
    show([i for i in able if f'"{name}"' in part.differences[i].what] or able)
    result.hint = say('More than one mistake, it seems. The one in the output "{name}": {question}',
                      name=name, question=mistakes[0].question)
    result.more = [say("another: {question}", question=one.question) for one in result.also]
    result.more += cases_not_explained(part, explained, mistakes, bool(result.also))
    others = [output_called(other) for other in evidence.blank.outputs if other != name and any(
        f'"{other}"' in facet for names in evidence.amiss for facet in names)]
    result.more.append(not_explained(
        bool(result.also), both(others) if others else say("what else is wrong")))
    return True


def not_explained(several, rest):
    words = "not explained by these: {rest}" if several else "not explained by it: {rest}"
    return say(words, rest=rest)


def cases_not_explained(evidence, explained, mistakes, several):
    """-> a line about the cases that the named mistakes do not explain, or none. A case that has
    two of them is left out: how they work together there, nobody knows."""
    rest = [say('"{name}"', name=evidence.cases[i].note) for i in evidence.wrong
            if explained.get(i) != evidence.open[i] and not (
                len(mistakes) > 1 and all(evidence.off(one)[i] for one in mistakes))]
    if not rest:
        return []
    words = "the case {notes}" if len(rest) == 1 else "the cases {notes}"
    return [not_explained(several, say(words, notes=core.a_few(rest)))]
