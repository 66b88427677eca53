"""What the checks say of wrong versions that nobody tuned them to, and that each part of hints.py
speaks where it should.

python tests/test_hints.py prints what is said of each version in fixtures/natural_mistakes.py."""

import dataclasses
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent / "fixtures")]

from checks import BLANKS, core, hints  # noqa: E402
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
    text = report(result)
    assert "hint: more than one thing is wrong, it seems. If it were the only one: The log" in text
    assert "\n  and perhaps: It agrees but for batches where no label counts." in text


def test_what_a_mistake_leaves_unexplained_is_said():
    result = judge_here(BLANK["response_logprobs"], natural(
        "response_logprobs", "the last T positions, and no temperature"))
    assert "left over       this would explain 8 of the 13 failing cases; not: temperature" in (
        report(result))


def test_two_mistakes_in_one_number():
    """What each adds: the score in the wrong place, and the padding's KL."""
    result = judge_here(BLANK["shape_rewards"], natural(
        "shape_rewards", "the score in the last column, and the padding keeps its KL"))
    assert said(result) == {"the score on the last column (46)", "the KL of the padding (49)"}


def test_a_mistake_and_a_factor():
    result = judge_here(BLANK["ppo_value_loss"], natural(
        "ppo_value_loss", "no half, and the mean of everything"))
    assert said(result) == {"the mean over padding too (71)"}
    assert "on top of it    yours is twice what that mistake gives" in report(result)


def test_a_mistake_in_one_output():
    result = judge_here(BLANK["ppo_policy_loss"], natural(
        "ppo_policy_loss", "the smaller loss, and the fraction without the mask"))
    assert result.mistake.name == "the smaller loss (65)"
    assert 'hint: as far as "loss" goes: ' in report(result)


def test_a_mistake_beside_a_wrong_type():
    result = judge_here(BLANK["preference_accuracy"], natural(
        "preference_accuracy", "ties are won, and a Python number"))
    text = report(result)
    assert f"hint: {core.SHAPES}\n  and perhaps: Without ties it agrees." in text


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
