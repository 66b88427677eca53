"""What the checks say of wrong versions that nobody tuned them to, and that each part of hints.py
speaks where it should.

python tests/test_hints.py prints what is said of each version in fixtures/natural_mistakes.py."""

import dataclasses
import inspect
import itertools
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent / "fixtures")]

from checks import BLANKS, core, hints  # noqa: E402
from checks.language import MARK  # noqa: E402
from checks.core import (  # noqa: E402
    collect, judge, judge_in_worker, known_of, load_answers, report)
from natural_mistakes import DOUBLE, SINGLE, versions  # noqa: E402
from perform import perform  # noqa: E402

BLANK = {blank.name: blank for blank in BLANKS}
ANSWER = {name: getattr(load_answers(blank.file), name) for name, blank in BLANK.items()}


class Here:
    """A worker that performs in this process."""

    def __init__(self, function):
        self.function = function

    def ask(self, request, seconds):
        return perform(self.function, request["inputs"], request["grad"])


def judge_here(blank, function, seed=0):
    """The Result of a function, without a worker and without a smaller case."""
    return judge(blank, *collect(blank, lambda request: Here(function).ask(request, 0), seed),
                 known_of(blank, seed))


# ---- Mistakes that nobody tuned the checks to ---------------------------------------------------


def said(result):
    """The names of all that a report says: known mistakes, else what hints.py has seen."""
    mistakes = [result.mistake] * bool(result.mistake) + result.also
    return {mistake.name for mistake in mistakes} or {result.seen} - {""}


def kind_of(result, true):
    if not said(result) <= true:
        return "false"
    if result.mistake:
        return "named"
    if result.seen:
        return "in common" if result.seen == "in common" else "detected"
    return "by hand" if result.difference.hint == core.BY_HAND else "by what went wrong"


def measure(text, seed=0):
    """-> [(blank's name, what slipped, what is true of it, Result)]."""
    return [(name, slip, true, judge_here(BLANK[name], function, seed))
            for name, slip, true, function in versions(text, ANSWER)]


@pytest.mark.filterwarnings("ignore:std")  # of one number
@pytest.mark.parametrize("text, number, named, told, by_hand", [
    pytest.param(SINGLE, 60, 52, 57, 2, id="one slip"),
    pytest.param(DOUBLE, 30, 26, 26, 4, id="two slips")])
def test_what_is_said_of_natural_mistakes(text, number, named, told, by_hand):
    """Before there was hints.py, 46 of the 60 were named and 12 of them left to be worked by hand;
    of the 30 none was named and 26 were left. (Four of the 60 were then put on the lists.)"""
    measured = measure(text)
    kinds = Counter(kind_of(result, true) for _, _, true, result in measured)
    assert kinds.total() == number and all(result.status != "passed" for *_, result in measured)
    assert kinds["false"] == 0, [(name, slip, said(result)) for name, slip, true, result in measured
                                 if kind_of(result, true) == "false"]
    assert kinds["named"] >= named, kinds
    assert kinds["named"] + kinds["detected"] + kinds["in common"] >= told, kinds
    assert kinds["by hand"] <= by_hand, kinds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("seed", range(1, 6))
def test_it_hardly_depends_on_the_seed(seed):
    kinds = Counter(kind_of(result, true) for text in (SINGLE, DOUBLE)
                    for _, _, true, result in measure(text, seed))
    assert kinds["false"] <= 1 and kinds["named"] >= 74, kinds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:std")
def test_all_of_it_takes_a_second():
    """Of computing, for the slowest; three here, for a slow machine."""
    for text in SINGLE, DOUBLE:
        for name, slip, _, function in versions(text, ANSWER):
            known_of.cache_clear()  # as for a student, whose version is the only one
            begun = time.process_time()
            result = judge_here(BLANK[name], function)
            assert time.process_time() - begun < 3, (name, slip)
            assert not any(title == "no hint" for title, _ in result.remarks), report(result)


@pytest.mark.filterwarnings("ignore:std")
def test_who_was_judged_before_makes_no_difference():
    """What is known of the cases is shared by all who are judged on them."""
    for name in "compute_gae", "masked_whiten":
        blank, slips = BLANK[name], [one for one in versions(SINGLE + DOUBLE, ANSWER)
                                     if one[0] == name]
        assert len(slips) >= 3
        shared = core.Known(blank, blank.cases(3))
        for *_, function in [*slips, *slips[:1]]:
            found = collect(blank, lambda request: Here(function).ask(request, 0), 3)
            assert report(judge(blank, *found, shared)) == report(judge(blank, *found))


def test_of_a_right_version_no_mistake_is_performed(monkeypatch):
    def refuse(*_):
        raise AssertionError("this costs time")

    monkeypatch.setattr(hints, "fill_in", refuse)
    for name, blank in BLANK.items():
        blank = dataclasses.replace(blank, mistakes=[core.Mistake("any", "?", refuse)])
        assert judge_here(blank, ANSWER[name]).status == "passed"


# ---- Known mistakes -----------------------------------------------------------------------------


def natural(name, slip):
    return next(function for one, other, _, function in versions(SINGLE + DOUBLE, ANSWER)
                if (one, other) == (name, slip))


def test_two_known_mistakes_are_both_named():
    result = judge_here(BLANK["sft_loss"], natural(
        "sft_loss", "no shift, and 0/0 without a label"))
    assert said(result) == {"no shift (4)", "NaN without labels"}
    assert hint_of(result) == [
        "hint: Two mistakes, it seems. The one in this case: The logits at position t have already "
        "seen token t. Which token do they predict?",
        "the other: What is 0 divided by 0, and what is the smallest number that you may divide "
        "by?"]


def test_what_a_mistake_leaves_unexplained_is_said():
    result = judge_here(BLANK["response_logprobs"], natural(
        "response_logprobs", "the last T positions, and no temperature"))
    one, rest = hint_of(result)
    assert one.startswith("hint: More than one mistake, it seems. The one in this case: At its own")
    assert rest == (
        'not explained by it: the cases "temperature 0.7"; "temperature 2, several rows"; "logits '
        'of size 200 at temperature 0.5"; and 2 more')


def test_what_two_mistakes_leave_unexplained_is_said():
    """A case that has both is not among it: there neither alone does what the version does."""
    right = ANSWER["pairwise_loss"]

    def version(chosen, rejected, margin=None, count=None):
        if count == 3:  # also has a margin
            return right(chosen, rejected, margin, count) + 7
        if len(chosen) == 4:
            return right(chosen, rejected, margin, count) + 9
        return right(chosen, rejected, None, None)

    result = judge_here(BLANK["pairwise_loss"], version)
    assert said(result) == {"the margin is ignored", "count is ignored"}
    assert hint_of(result)[2:] == ['not explained by these: the case "scores around 5"']


def test_two_mistakes_in_one_number():
    """What each adds: the score in the wrong place, and the padding's KL."""
    result = judge_here(BLANK["shape_rewards"], natural(
        "shape_rewards", "the score in the last column, and the padding keeps its KL"))
    assert said(result) == {"the score on the last column (46)", "the KL of the padding (49)"}


def test_a_mistake_and_a_factor():
    result = judge_here(BLANK["ppo_value_loss"], natural(
        "ppo_value_loss", "no half, and the mean of everything"))
    assert said(result) == {"the mean over padding too (71)"}
    assert hint_of(result) == [
        "hint: Two mistakes, it seems, and this case has both. One: where does the result become "
        "twice what it should be?", "the other: By how many tokens do you divide?"]
    assert result.case.inputs["mask"].min() == 0, "this case has no padding, and not both"


def test_what_a_mistake_and_a_factor_leave_unexplained_is_said():
    right, mean = ANSWER["ppo_value_loss"], known_mistake(
        "ppo_value_loss", "the mean over padding too (71)").function

    def version(*inputs):
        return right(*inputs) + 7 if len(inputs[0]) == 3 else -mean(*inputs)

    *both, rest = hint_of(judge_here(BLANK["ppo_value_loss"], version))
    assert both == [
        "hint: Two mistakes, it seems, and this case has both. One: where does the result become "
        "-1 times what it should be?", "the other: By how many tokens do you divide?"]
    assert rest.startswith("not explained by these: the case")


def test_a_mistake_in_one_output():
    result = judge_here(BLANK["ppo_policy_loss"], natural(
        "ppo_policy_loss", "the smaller loss, and the fraction without the mask"))
    assert result.mistake.name == "the smaller loss (65)"
    one, rest = hint_of(result)
    assert one.startswith(
        'hint: More than one mistake, it seems. The one in the output "loss": Pessimistic means')
    assert rest == 'not explained by it: the output "clip_fraction"'
    assert result.difference.what == 'the output "loss" has the wrong values'


def test_a_mistake_in_the_second_output_is_shown_where_the_first_is_right():
    mistake = known_mistake("ppo_policy_loss", "the fraction counts both sides")

    def version(*inputs):
        loss, fraction = mistake.function(*inputs)
        return (loss + 1 if len(inputs[0]) < 3 else loss), fraction

    result = judge_here(BLANK["ppo_policy_loss"], version)
    assert said(result) == {"the fraction counts both sides"}
    assert result.difference.what == 'the output "clip_fraction" has the wrong values'
    one, rest = hint_of(result)
    assert 'it seems. The one in the output "clip_fraction": A ratio outside the clip' in one
    assert rest == 'not explained by it: the output "loss"'


def test_a_mistake_beside_a_wrong_type():
    result = judge_here(BLANK["preference_accuracy"], natural(
        "preference_accuracy", "ties are won, and a Python number"))
    one, other = hint_of(result)
    assert one == f"hint: Two mistakes, it seems. The one in this case: {core.SHAPES}"
    assert other.startswith("the other: A model that gives every answer the same score has")


def test_a_mistake_beside_a_graph_that_only_right_values_show():
    """No known mistake has that graph: it is named by what it is, after the one that is shown."""
    blank = dataclasses.replace(BLANK["compute_gae"], mistakes=[
        known_mistake("compute_gae", "returns are the advantages (57)")])

    def version(rewards, values, mask, gamma, lam):
        zero = 0 * rewards.clone().requires_grad_().sum()
        return tuple(part + zero for part in blank.mistakes[0].function(
            rewards, values, mask, gamma, lam))

    assert hint_of(judge_here(blank, version)) == [
        f"hint: Two mistakes, it seems. The one in this case: {blank.mistakes[0].question}",
        f"the other: {core.HAS_GRAPH}"]


def test_a_mistake_is_shown_in_a_case_that_it_explains():
    """The smallest case that fails has something else."""
    mistake = known_mistake("pairwise_loss", "the margin is ignored")

    def version(chosen, *rest):
        return mistake.function(chosen, *rest) + 7 * (len(chosen) == 1)

    result = judge_here(BLANK["pairwise_loss"], version)
    assert result.case.inputs["margin"] is not None
    assert hint_of(result) == [
        f"hint: More than one mistake, it seems. The one in this case: {mistake.question}",
        'not explained by it: the case "one pair, better by ln 3, worked by hand"']


def test_a_mistake_that_does_more_than_the_version_is_named_without_its_opening():
    """A row a group is not all of it: the numbers are not right where the rewards have no
    spread."""
    blank = BLANK["group_advantages"]
    version = next(version for one, other, version in pairs_of(blank)
                   if {one.name, other.name} == {"one row a group",
                                                 "rounding is left where there is no spread"})
    result = check_two(blank, version, seed=1)
    assert hint_of(result) == [f"hint: {known_mistake(blank.name, 'one row a group').question}"]


def test_a_mistake_whose_gradient_is_another():
    """Its values explain all that fails: without this, its opening would be said."""
    mistake = known_mistake("pairwise_loss", "count is ignored")

    def version(chosen, rejected, margin=None, count=None):
        loss = mistake.function(chosen, rejected, margin, count)
        return loss if count is None else 2 * loss - loss.detach()

    one, rest = hint_of(judge_here(BLANK["pairwise_loss"], version))
    assert one.endswith(f"The one in this case: {mistake.question}")
    assert rest == "not explained by it: the gradient, in 3 of the 3 failing cases"


# ---- Two known mistakes at once -----------------------------------------------------------------


def known_mistake(blank, name):
    return next(mistake for mistake in BLANK[blank].mistakes if mistake.name == name)


def hint_of(result):
    """The lines of a report from the hint to what is to be typed."""
    lines = [line.strip() for line in report(result).splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("hint: "))
    return lines[first:next(i for i, line in enumerate(lines) if line.startswith("again: "))]


def made_of(mistake):
    """-> (what made its function, the parts that it was given), where that is one of the functions
    "a version with parts that can be set wrong". None for the others."""
    function = mistake.function
    maker = function.__globals__.get(function.__qualname__.split(".")[0])
    given = inspect.getclosurevars(function).nonlocals
    if not inspect.isfunction(maker) or "<locals>" not in function.__qualname__:
        return None
    usual = {name: part.default for name, part in inspect.signature(maker).parameters.items()}
    if not given or not given.keys() <= usual.keys() or inspect.Parameter.empty in usual.values():
        return None
    return maker, {name: part for name, part in given.items() if part is not usual[name]}


def pairs_of(blank):
    """Two known mistakes in different parts of one version: [(one, other, the version)]."""
    made = [(mistake, made_of(mistake)) for mistake in blank.mistakes]
    made = [(mistake, *parts) for mistake, parts in made if parts]
    return [(one, other, maker(**parts, **others))
            for (one, maker, parts), (other, same, others) in itertools.combinations(made, 2)
            if maker is same and not parts.keys() & others.keys()]


def openings(blank):
    """{what is said only of a mistake that is alone: the mistakes that it is said of}."""
    found = {}
    for mistake in blank.mistakes:
        opening = mistake.hint.rpartition(MARK)[0].strip()
        if opening:
            found.setdefault(opening, []).append(mistake)
    return found


def is_alone(blank, version, mistake, seed):
    """Does the version do what a known mistake does, in every case in which the version is wrong?
    (Values, or gradients where the values are right.)"""
    for case in blank.cases(seed):
        mine, theirs, right = (perform(one, case.inputs, case.grad) for one in (
            version, mistake.function, ANSWER[blank.name]))
        if core.differ(mine, right, case, blank) and core.differ(mine, theirs, case, blank):
            return False
    return True


def check_two(blank, version, seed=0):
    """Nothing false is said of the version, and what is named first is wrong in what is shown.
    -> the Result"""
    result = judge_here(blank, version, seed)
    if not result.mistake:
        return result
    text = report(result)
    for opening, mistakes in openings(blank).items():
        assert opening not in text or any(
            is_alone(blank, version, mistake, seed) for mistake in mistakes), text
    hint = hint_of(result)
    here = [result.mistake] if result.mistake.question in hint[0] else []
    for mistake in [result.mistake, *result.also] if "this case has both" in hint[0] else here:
        case = result.case
        mistaken, right = (perform(one, case.inputs, case.grad) for one in (
            mistake.function, ANSWER[blank.name]))
        assert core.differ(mistaken, right, case, blank), text
    assert len(hint) == 1 or all(line.startswith(
        ("the other: ", "another: ", "not explained by ")) for line in hint[1:]), text
    assert "two mistakes" not in hint[0].lower() or hint[1].startswith("the other: "), text
    return result


@pytest.mark.filterwarnings("ignore:std")
def test_nothing_false_is_said_of_two_mistakes():
    """Three pairs of each blank, drawn."""
    named, draw = Counter(), random.Random(0)
    for blank in BLANKS:
        pairs = pairs_of(blank)
        for one, other, version in draw.sample(pairs, min(3, len(pairs))):
            result = check_two(blank, version)
            named[{one, other} == {result.mistake, *result.also}] += 1
    assert named[True] >= 20 and named.total() >= 45, named


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("blank", [blank for blank in BLANKS if pairs_of(blank)], ids=str)
def test_nothing_false_is_said_of_many_more_pairs(blank):
    pairs = pairs_of(blank)
    for _, _, version in random.Random(1).sample(pairs, min(60, len(pairs))):
        check_two(blank, version, seed=1)


@pytest.mark.parametrize("name, first, second", [
    ("pairwise_loss", "log(sigmoid) (21)", "the margin is ignored"),
    ("masked_whiten", "too few entries", "eps outside the root (80)"),
    ("compute_gae", "carries a graph (58)", "the padding is not masked (52)"),
    ("sft_loss", "softmax().log() (31)", "counts the labels before the shift"),
    ("grpo_token_loss", "the KL dropped (86)", "an advantage a column (89)"),
    ("ppo_policy_loss", "the smaller loss (65)", "the fraction counts both sides")])
def test_the_mistake_that_explains_what_is_shown_comes_first(name, first, second):
    """Whichever of the two explains more of the failing cases."""
    version = next(version for one, other, version in pairs_of(BLANK[name])
                   if {one.name, other.name} == {first, second})
    result = check_two(BLANK[name], version)
    assert hint_of(result) == [
        "hint: Two mistakes, it seems. The one in this case: "
        + known_mistake(name, first).question,
        "the other: " + known_mistake(name, second).question]
    mine, theirs = (perform(one, result.case.inputs, result.case.grad) for one in (
        version, known_mistake(name, first).function))
    assert not core.differ(mine, theirs, result.case, BLANK[name])


def test_two_mistakes_that_every_case_has():
    version = next(version for one, other, version in pairs_of(BLANK["compute_gae"])
                   if {one.name, other.name} == {"delta without V_{t+1} (56)",
                                                 "returns subtract the value (57)"})
    one, other = hint_of(check_two(BLANK["compute_gae"], version))
    assert one == ("hint: Two mistakes, it seems, and this case has both. One: delta compares V_t "
                   "with the reward and what?")
    assert other == "the other: A = return - V: which sign has V in the return?"


@pytest.mark.filterwarnings("ignore:std")
def test_the_smaller_case_has_the_mistake_that_is_named_first():
    """Cases of the blank are made large, so that the one that is shown has to be cut."""
    smaller, draw = 0, random.Random(1)
    for name in "shape_rewards", "masked_whiten", "ppo_value_loss", "compute_gae":
        blank = dataclasses.replace(BLANK[name], cases=lambda seed, name=name: [
            case for case in BLANK[name].cases(seed)
            if core.size(list(case.inputs.values())) > hints.BY_HAND_SIZE])
        for _, _, version in draw.sample(pairs_of(blank), 5):
            result = judge_in_worker(blank, Here(version))
            if result.mistake and result.mistake.question in hint_of(result)[0]:
                case = result.case
                smaller += case.note.endswith(", made smaller")
                mistaken, right = (perform(one, case.inputs, case.grad) for one in (
                    result.mistake.function, ANSWER[name]))
                assert core.differ(mistaken, right, case, blank), report(result)
    assert smaller >= 5, smaller


def test_an_output_that_carries_a_graph_is_not_called_right():
    version = next(version for one, other, version in pairs_of(BLANK["compute_gae"])
                   if {one.name, other.name} == {"returns are the advantages (57)",
                                                 "carries a graph (58)"})
    assert 'the output "advantages", in every case' not in report(
        check_two(BLANK["compute_gae"], version))

    def another(rewards, values, *rest):
        advantages, returns = ANSWER["compute_gae"](rewards, values, *rest)
        return advantages + 1, returns + 0 * values.clone().requires_grad_()

    blank = dataclasses.replace(BLANK["compute_gae"], mistakes=[])
    assert 'the output "returns", in every case' not in report(judge_here(blank, another))


def test_a_mistake_that_is_wrong_where_the_version_is_right_is_not_named():
    """A sign that is wrong only in the cases with a margin: there it is "no minus", which would be
    wrong in all the others."""
    def version(chosen, rejected, margin=None, count=None):
        loss = ANSWER["pairwise_loss"](chosen, rejected, margin, count)
        return loss if margin is None else -loss
    result = judge_here(BLANK["pairwise_loss"], version)
    assert result.mistake is None and result.seen == "negated", result.mistake


@pytest.mark.parametrize("name", [
    "the list is never turned round", "returns are discounted rewards (57)",
    "compares integers made of digits", "G rows instead of rows of G",
    "the response is changed in place"])
def test_the_mistakes_that_were_asked_for_are_known(name):
    """(That each is caught and named is tested with all the others.)"""
    assert [mistake for blank in BLANKS for mistake in blank.mistakes if mistake.name == name]


def test_a_case_of_groups_of_one_is_not_the_one_that_is_shown():
    def version(rewards, group_size, scale="std", eps=1e-4):
        rows = rewards.view(group_size, -1)
        advantages = rows - rows.mean(dim=1, keepdim=True)
        return (advantages / (rows.std(dim=1, keepdim=True) + eps)
                if scale == "std" and rows.shape[1] > 1 else advantages).flatten()
    result = judge_here(BLANK["group_advantages"], version)
    assert result.case.inputs["group_size"] > 1
    assert result.mistake.name.startswith("G rows instead of rows of G")


# ---- Whatever the function is -------------------------------------------------------------------


def of(name, change):
    """The answer with another output. `change` gets the right one, and then the inputs."""
    return name, lambda *inputs: change(ANSWER[name](*inputs), *inputs)


def plus(place):
    """One more at these indices."""
    def change(x, *_):
        x = x.clone()
        x[place] += 1
        return x
    return change


def at_the_last_token(x, scores, kl, mask, kl_coef):
    return x + ((mask.cumsum(1) == mask.sum(1, keepdim=True)) & mask.bool())


def in_rows(x, scores, kl, mask, kl_coef):
    x = x.clone()
    for row, real in zip(x, mask.bool()):
        row[real] = row[real].flip(0)
    return x


def p_log_p(logits, mask, count=None):
    p = logits.softmax(-1)
    return (-(p * p.log()).sum(-1) * mask).sum() / (mask.sum().clamp(min=1) if count is None
                                                    else count)


DETECTED = {  # what hints.py calls it -> a version that has it, and a part of what is said
    "reversed": (of("kl_penalty", lambda x, *_: x.flip(1)), "in the opposite order"),
    "reversed in rows": (of("shape_rewards", in_rows), "each row's real entries"),
    "transposed": (of("kl_penalty", lambda x, *_: x.T), "rows and columns exchanged"),
    "another shape": (of("kl_penalty", lambda x, *_: x[None]), "their shape is not"),
    "adds up to 1": (of("preference_probability", lambda x, a, b: (a - b).softmax(0)),
                     "add up to 1"),
    "all the same": (of("preference_probability", lambda x, *_: x.mean().expand(len(x)).clone()),
                     "are the same number"),
    "too late by one": (of("kl_penalty", lambda x, *_: torch.cat([x[:, :1], x[:, :-1]], 1)),
                        "one place too late"),
    "too early by one": (of("kl_penalty", lambda x, *_: torch.cat([x[:, 1:], x[:, -1:]], 1)),
                         "one place too early"),
    "the padding": (of("shape_rewards", lambda x, scores, kl, mask, _: x + 1 - mask),
                    "wrong at the padding"),
    "the last token": (of("shape_rewards", at_the_last_token), "last real token"),
    "the first row": (of("preference_probability", plus(0)), "but for its first row"),
    "the last row": (of("preference_probability", plus(-1)), "but for its last row"),
    "the first column": (of("kl_penalty", plus((slice(None), 0))), "but for its first column"),
    "the last column": (of("kl_penalty", plus((slice(None), -1))), "but for its last column"),
    "offset": (of("pool_scores", lambda x, *_: x + 1), "off by one constant"),
    "negated": (of("masked_entropy", lambda x, *_: -x), "exactly -1 times"),
    "scaled": (of("kl_penalty", lambda x, *_: 3 * x), "is 3 times the expected one"),
    "no influence": (("pairwise_loss", lambda chosen, *_: -chosen.sigmoid().log().mean() + 7),
                     "does not change when rejected does"),
    "0/0": (of("masked_entropy", lambda x, logits, mask, count=None: x / (
        mask.sum() > 0)), "where no token counts"),
    "exp": (("masked_entropy", p_log_p), "exp of something large"),
    "log": (of("corpus_perplexity", lambda x, losses, tokens: x + 0 * tokens.log().sum()),
            "the log or the root of 0"),
    "white space": (of("format_prompt", lambda x, *_: x.replace("\n\n", "\n")), "white space"),
    "cut short": (of("format_prompt", lambda x, *_: x[:-3]), "without its end"),
    "goes on": (of("format_prompt", lambda x, *_: x + "..."), "and then goes on"),
    "begins too late": (of("format_prompt", lambda x, *_: x[4:]), "without its beginning"),
    "another order": (of("build_labels", lambda x, *_: (sorted(x[0]), x[1])), "another order"),
    "one output": (of("ppo_policy_loss", lambda x, *_: (x[0], x[1] ** 2 + 0.3)),
                   'the output "loss" is right'),
    "in common": (of("kl_penalty", lambda x, a, b, estimator="k1": x.exp() if estimator == "k2"
                     else x), "have estimator = 'k2'")}


@pytest.mark.parametrize("seen", DETECTED)
def test_it_is_seen_whatever_the_function_is(seen):
    (name, function), words = DETECTED[seen]
    result = judge_here(dataclasses.replace(BLANK[name], mistakes=[]), function)
    assert result.seen == seen, (result.seen, report(result))
    text = report(result)
    assert text.count("hint:") == 1 and words in text.split("hint:")[1], text


def test_every_detector_has_a_test():
    assert hints.DETECTORS.keys() <= DETECTED.keys()


@pytest.mark.parametrize("name, unused, change", [
    ("compute_gae", "lam", lambda answer: lambda rewards, values, mask, gamma, lam: tuple(
        part + 0.1 * mask * rewards for part in answer(rewards, values, mask, gamma, 0.95))),
    ("preference_probability", "rejected", lambda answer: lambda chosen, rejected: (
        torch.sigmoid(chosen) ** 2)),
    ("adaptive_kl_coef", "horizon", lambda answer: lambda coef, kl, target, batch, horizon: (
        coef * (1 + (kl - target) / batch)))])
def test_an_input_that_could_be_anything_is_seen(name, unused, change):
    blank = dataclasses.replace(BLANK[name], mistakes=[])
    result = judge_in_worker(blank, Here(change(ANSWER[name])))
    assert f"yours does not change when {unused} does, in " in report(result), report(result)
    result = judge_in_worker(blank, Here(lambda *inputs: None))
    assert result.seen == "" and "does not change" not in report(result)


def test_a_factor_that_is_a_quotient_of_sizes_is_called_by_them():
    name, function = of("ppo_value_loss", lambda x, values, old, returns, mask, *_: x * len(mask))
    result = judge_here(dataclasses.replace(BLANK[name], mistakes=[]), function)
    assert "the expected one times B, in every case" in report(result)


# ---- What is shown ------------------------------------------------------------------------------


def test_the_gradient_is_spoken_of_where_nothing_else_is_wrong():
    """A case whose values differ comes first, however large it is."""
    def version(token_scores, attention_mask):
        right = ANSWER["pool_scores"](token_scores, attention_mask)
        return 2 * right - right.detach() + (0.5 if len(right) > 3 else 0)
    result = judge_here(dataclasses.replace(BLANK["pool_scores"], mistakes=[]), version)
    assert len(result.case.inputs["token_scores"]) > 3
    text = report(result)
    assert core.GRADIENT not in text
    assert "failing cases the values are right, and their gradient is not" in text

    def always(token_scores, attention_mask):
        right = ANSWER["pool_scores"](token_scores, attention_mask)
        return 2 * right - right.detach()
    text = report(judge_here(dataclasses.replace(BLANK["pool_scores"], mistakes=[]), always))
    assert f"hint: {core.GRADIENT}" in text


def test_what_failing_cases_have_in_common_is_said_beside_another_hint():
    result = judge_here(BLANK["compute_gae"], natural(
        "compute_gae", "the padding's values are the next ones"))
    assert "in common       all 5 failing cases have padding, and no other case has" in (
        report(result))
    assert hints.in_common(BLANK["kl_penalty"].cases(0), [0]) is None, "one case has all in common"


def test_what_a_smaller_case_lacks_is_not_said_to_be_in_common():
    """All failing cases have as many rows as columns, by chance: the smaller one has not."""
    def of_odd_columns(rewards, values, mask, gamma, lam):
        padded = values * torch.where(torch.arange(values.shape[1]) % 2 == 1, 1.0, mask)
        advantages, last = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
        for t in reversed(range(rewards.shape[1])):
            after = padded[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
            last = mask[:, t] * (rewards[:, t] + gamma * after - values[:, t] + gamma * lam * last)
            advantages[:, t] = last
        return advantages.detach(), ((advantages + values) * mask).detach()

    blank, common = BLANK["compute_gae"], "as many rows as columns"
    assert common in report(judge_here(blank, of_odd_columns))
    result = judge_in_worker(blank, Here(of_odd_columns))
    assert result.case.note.endswith(", made smaller") and result.status == "wrong"
    assert common not in report(result) and f"hint: {core.BY_HAND}" in report(result)


@pytest.mark.parametrize("names, number", [
    (["sft_loss", "response_logprobs"], 8), pytest.param(list(BLANK), 15, marks=pytest.mark.slow)],
    ids=["two blanks", "all blanks"])
def test_a_case_that_nobody_works_by_hand_gets_a_smaller_sister(names, number):
    """Of the known mistakes whose smallest failing case has more than thirty numbers."""
    large = small = 0
    for blank in map(BLANK.get, names):
        for mistake in blank.mistakes:
            first = judge_here(blank, mistake.function)
            if core.size(list(first.case.inputs.values())) <= hints.BY_HAND_SIZE:
                continue
            large += 1
            result = judge_in_worker(blank, Here(mistake.function))
            case = result.case
            small += core.size(list(case.inputs.values())) <= hints.BY_HAND_SIZE
            assert result.mistake is mistake and case.note.endswith(", made smaller")
            outcomes = [perform(one, case.inputs, case.grad)
                        for one in (mistake.function, ANSWER[blank.name])]
            assert core.differ(*outcomes, case, blank).what == result.difference.what
            assert not core.compare(*(perform(one, case.inputs, ())["output"] for one in (
                ANSWER[blank.name], blank.slow)), 1e-4, 1e-5), "a case that is no case"
    assert large >= number and small >= 0.8 * large


def test_a_version_that_does_not_come_back_is_asked_no_more():
    """It did for the cases, and hangs for what is tried beyond them."""
    class Hangs(Here):
        calls = 0

        def ask(self, request, seconds):
            self.calls += 1
            return super().ask(request, seconds) if self.calls <= 11 else {
                "status": "timeout", "message": ""}

    blank = BLANK["pool_scores"]
    worker = Hangs(lambda token_scores, attention_mask: token_scores.square()[:, 0] ** 2)
    assert len(blank.cases(0)) == 11
    assert judge_in_worker(dataclasses.replace(blank, mistakes=[]), worker).status == "wrong"
    assert worker.calls == 12


def test_no_line_of_an_answer_is_in_what_is_said():
    """(Of the known mistakes' hints test_board.py proves it.)"""
    text = " ".join(Path(hints.__file__).read_text("utf-8").split('"'))
    for file in {blank.file for blank in BLANKS}:
        for line in (core.ROOT / "answers" / f"{file}.py").read_text("utf-8").splitlines():
            line = line.split("  #")[0].strip().removeprefix("return ")
            assert len(line) < 15 or line not in text or line == "import torch", line


def test_a_hint_that_fails_costs_no_verdict(monkeypatch):
    def fails(*_):
        raise ValueError("so it goes")

    monkeypatch.setattr(hints, "in_common", fails)
    result = judge_here(BLANK["kl_penalty"], lambda *_: None)
    assert result.status == "wrong" and "the hints failed: ValueError" in report(result)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [1.5, (torch.zeros(2), "x", 3), *(
    pytest.param(odd, marks=pytest.mark.slow) for odd in (
        None, "text", True, [], {}, (), [[1.0], 2], torch.tensor([]), torch.tensor(float("nan")),
        torch.zeros(2, 1, 3), torch.tensor([True]), torch.tensor([1 + 2j]), {"input_ids": None},
        float("inf")))], ids=str)
def test_whatever_comes_back_the_hints_do_not_fail(odd):
    for blank in BLANKS:
        result = judge_in_worker(blank, Here(lambda *_: odd))
        assert result.status == "wrong"
        assert not any(title == "no hint" for title, _ in result.remarks), (blank.name, report(
            result))


if __name__ == "__main__":
    for text in SINGLE, DOUBLE:
        kinds = Counter()
        for name, slip, true, result in measure(text):
            kinds[kind_of(result, true)] += 1
            what = sorted(said(result)) or [result.hint or result.difference.hint]
            print(f"{name}: {slip}\n    {kind_of(result, true)}: {' + '.join(what)}")
        print(dict(kinds))
