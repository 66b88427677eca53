"""The checks of the exercises are checked: answers agree with slow loops and with numbers worked by
hand, every known mistake is caught and named, and right but unusual versions pass."""

import doctest
import functools
import inspect

import pytest
import torch
from checks import BLANKS, RUNS, core
from checks.core import Blank, collect, compare, judge, known_of, load_answers, report
from perform import perform

# A seed for a student's pytest, and more for pytest -m slow: graders draw a new one every time.
each_seed = pytest.mark.parametrize("seeds", [range(1), pytest.param(
    range(1, 20), marks=pytest.mark.slow)], ids=["one seed", "many seeds"])


def as_id(x):
    """check3.compute-gae: a student's `pytest -k ex3` or `-k compute_gae` does not mean these."""
    if isinstance(x, Blank):
        return f"check{x.file[2]}.{x.name}".replace("_", "-")
    return getattr(x, "name", x)


each_blank = pytest.mark.parametrize("blank", BLANKS, ids=as_id)
each_mistake = pytest.mark.parametrize(
    "blank, mistake", [(blank, mistake) for blank in BLANKS for mistake in blank.mistakes],
    ids=as_id)
each_right = pytest.mark.parametrize(
    "blank, name", [(blank, name) for blank in BLANKS for name in blank.right], ids=as_id)


@functools.cache
def answer(blank):
    return getattr(load_answers(blank.file), blank.name)


def judge_here(blank, function, seed=0):
    """The Result of a function, without a worker."""
    def ask(request):
        return perform(function, request["inputs"], request["grad"])
    return judge(blank, *collect(blank, ask, seed), known_of(blank, seed))


@each_seed
@each_blank
def test_the_answer_agrees_with_the_slow_loop(blank, seeds):
    for seed in seeds:
        for case in blank.cases(seed):
            got = perform(answer(blank), case.inputs, ())
            slow = perform(blank.slow, case.inputs, ())
            if slow["status"] == "raised":
                assert got["status"] == "raised" and got["type"] == slow["type"], case.note
            else:
                found = compare(got["output"], slow["output"], 1e-4, 1e-5)
                assert not found, (case.note, found)


@each_blank
def test_the_answer_gives_the_numbers_worked_by_hand(blank):
    cases = [case for case in blank.cases(0) if case.expect is not None]
    assert cases, "no case with an expectation worked by hand"
    for case in cases:
        found = compare(answer(blank)(*case.inputs.values()), case.expect, 1e-5, 1e-6)
        assert not found, (case.note, found)


@each_blank
def test_gradients_of_the_answer_agree_with_finite_differences_of_the_slow_loop(blank):
    """In float64, one entry at a time. The slow loop must work on the numbers that it is given."""
    for case in blank.cases(0):
        got = perform(answer(blank), case.inputs, case.grad)
        if not any(got.get("has_graph", [])):
            continue
        first = got["output"][0] if isinstance(got["output"], tuple) else got["output"]
        weights = torch.linspace(1, 2, first.numel()).view(first.shape).double()

        def value(inputs):
            output = blank.slow(*inputs.values())
            output = output[0] if isinstance(output, tuple) else output
            return float((output.double() * weights).sum())

        for name in case.grad:
            gradient = got["grads"][name]
            x = case.inputs[name].double()
            step, numbers = 1e-3, torch.zeros_like(x).flatten()
            for i in range(x.numel()):
                up, down = x.flatten().clone(), x.flatten().clone()
                up[i] += step
                down[i] -= step
                numbers[i] = (value({**case.inputs, name: up.view(x.shape)})
                              - value({**case.inputs, name: down.view(x.shape)})) / (2 * step)
            gradient = torch.zeros_like(x) if gradient is None else gradient.double()
            found = compare(gradient.flatten(), numbers, 1e-2, 2e-3)
            assert not found, (case.note, name, found)


@each_seed
@each_blank
def test_the_answer_passes_and_leaves_its_inputs_alone(blank, seeds):
    for seed in seeds:
        result = judge_here(blank, answer(blank), seed)
        assert result.status == "passed", report(result)
        for case in blank.cases(seed):
            outcome = perform(answer(blank), case.inputs, case.grad)
            for name, value in outcome.get("inputs", {}).items():
                assert not compare(value, case.inputs[name], 0, 0), (case.note, name)


@each_blank
def test_a_blank_has_two_mistakes_and_an_unusual_right_version(blank):
    assert len(blank.mistakes) >= 2 and blank.right
    assert len({mistake.name for mistake in blank.mistakes}) == len(blank.mistakes)
    assert len({case.note for case in blank.cases(0)}) == len(blank.cases(0))


@functools.lru_cache(maxsize=1000)  # more than there are
def judged(blank, mistake, seed):
    """The Result of a known mistake. Two tests look at it."""
    return judge_here(blank, mistake.function, seed)


@each_seed
@each_mistake
def test_a_known_mistake_is_caught_and_named(blank, mistake, seeds):
    for seed in seeds:
        result = judged(blank, mistake, seed)
        assert result.status == "wrong"
        assert result.mistake is mistake, (result.mistake, result.difference)
        assert mistake.said_alone in report(result)


@each_seed
@each_right
def test_a_right_but_unusual_version_passes(blank, name, seeds):
    for seed in seeds:
        result = judge_here(blank, blank.right[name], seed)
        assert result.status == "passed", report(result)


def spoil(value):
    """Something that is nearly the value, and that nobody would return by mistake."""
    if isinstance(value, str):
        return value + "!"
    if isinstance(value, list):
        return value + [0]
    if isinstance(value, dict):
        return {**value, "more": 0}
    if isinstance(value, float) or value.is_floating_point():
        return value + 0.37
    value = value.clone()
    value.view(-1)[0] = ~value.view(-1)[0] if value.dtype == torch.bool else 77
    return value


@each_blank
def test_an_unknown_mistake_gets_no_hint_of_a_known_one(blank):
    """A known mistake that is a little off in other ways is none of the known ones."""
    def off(function):
        def wrong(*inputs):
            output = function(*inputs)
            first = output[0] if isinstance(output, tuple) else output
            changed = spoil(first)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed
        return wrong

    result = judge_here(blank, off(answer(blank)))
    assert result.status == "wrong" and result.mistake is None
    assert report(result).count("hint:") == 1


# ---- What a report says -------------------------------------------------------------------------


def blank_called(name):
    return next(blank for blank in BLANKS if blank.name == name)


def changed(function, change):
    """The function with another output. `change` gets the right one, and then the inputs."""
    return lambda *inputs: change(function(*inputs), *inputs)


def raises(*inputs):
    raise KeyError("so it goes")


def writes(output, mask):
    mask.add_(1)
    return output


HINTS = {  # what becomes of the right output, what the report says of it, and the hint
    "another value": ("pool_scores", lambda x, *_: x + 1, "has the wrong values", core.BY_HAND),
    "another text": ("format_prompt", lambda x, *_: x + "!", "has the wrong value", core.BY_HAND),
    "a list too long": ("build_labels", lambda x, *_: (x[0] + [1], x[1]),
                        'the output "input_ids" has the wrong length', core.BY_HAND),
    "another shape": ("pool_scores", lambda x, *_: x[:, None], "the wrong shape", core.SHAPES),
    "another dtype": ("pool_scores", lambda x, *_: x.double(), "the wrong dtype", core.SHAPES),
    "a list": ("pool_scores", lambda x, *_: x.tolist(), "should be of type tensor", core.SHAPES),
    "nothing": ("pool_scores", lambda *_: None, "should be of type tensor", core.RETURNS_NOTHING),
    "one output of two": ("compute_gae", lambda x, *_: x[0], "of type tuple", core.SHAPES),
    "an output too many": ("compute_gae", lambda x, *_: (*x, 1), "wrong length", core.SHAPES),
    "another key": ("pad_batch", lambda x, *_: {**x, "ids": 1}, "other keys", core.SHAPES),
    "an exception": ("pool_scores", raises, "it raises an exception", core.RAISES),
    "no graph": ("pool_scores", lambda x, *_: x.detach(), "no gradient", core.NO_GRAPH),
    "another gradient": ("pool_scores", lambda x, *_: x + (x - x.detach()),
                         "the gradient with respect to token_scores", core.GRADIENT),
    "a graph": ("compute_gae", lambda x, *_: (x[0].requires_grad_(), x[1]), "a graph",
                core.HAS_GRAPH),
    "changed inputs": ("last_token_index", writes, "it changed its inputs", core.CHANGED)}


@pytest.mark.parametrize("broken", HINTS)
def test_the_hint_fits_what_is_wrong(broken):
    """"Work it through by hand" is for values: it tells nobody what is wrong with a dtype."""
    name, change, words, hint = HINTS[broken]
    blank = blank_called(name)
    result = judge_here(blank, changed(answer(blank), change))
    result.mistake, result.hint = None, ""  # some of these are known, or seen by hints.py
    text = report(result)
    assert words in text.splitlines()[0] and f"\n  hint: {hint}\n" in text, text
    assert text.count("hint:") == 1


def test_the_hint_where_an_error_is_due():
    blank = blank_called("pass_at_k")
    result = judge_here(blank, lambda n, c, k: answer(blank)(n, c, k) if k <= n else 0.25)
    assert result.difference.what == "it should raise a ValueError" and not result.mistake
    assert not result.hint
    assert f"hint: {core.SHOULD_RAISE}" in report(result)


def numbers_in(value):
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(map(numbers_in, value)) if isinstance(value, (list, tuple)) else 1


@each_blank
def test_the_case_that_is_shown_is_the_smallest_that_fails(blank):
    """Of equally small ones, the first. One whose values differ comes before one whose gradients
    alone do."""
    known = known_of(blank, 0)
    for j, mistake in enumerate(blank.mistakes):
        result = judged(blank, mistake, 0)
        wrong = [i for i, case in enumerate(known.cases) if case.note not in result.right]
        by_values = [i for i in wrong if core.differ(
            known.of_mistake(j, i), known.expected[i], known.cases[i], blank
        ).hint != core.GRADIENT]
        failing = [known.cases[i] for i in by_values or wrong]
        sizes = [(case.corner, numbers_in(list(case.inputs.values()))) for case in failing]
        assert result.case.note == failing[sizes.index(min(sizes))].note, mistake.name


def test_what_is_right_is_said_in_a_line_of_modest_length():
    assert core.a_few([]) == "" and core.a_few(["a", "b", "c"]) == "a; b; c"
    assert core.a_few(list("abcde")) == "a; b; c; and 2 more"


def test_of_a_large_tensor_the_first_entries_that_differ_are_shown():
    expected = torch.arange(60.0).view(6, 10)
    yours = expected.clone()
    yours[[0, 2, 3, 5], [1, 9, 0, 0]] += 0.25
    found = compare(yours, expected, 1e-4, 1e-5)
    assert (found.yours, found.expected) == ("", ""), "shapes, which agree"
    assert found.entries == [([0, 1], "1.25", "1"), ([2, 9], "29.25", "29"),
                             ([3, 0], "30.25", "30")]
    text = report(core.Result(RUNS[0], "wrong", difference=found))
    assert "\n  differs at index [2, 9]: yours 29.25, expected 29\n" in text


@pytest.mark.parametrize("expected", [torch.tensor(0.05), torch.tensor([0.05, 10.0])])
def test_numbers_that_differ_are_not_shown_as_the_same(expected):
    """print() rounds both to 0.0500."""
    text = report(core.Result(RUNS[0], "wrong", difference=compare(
        expected + 2e-5, expected, 1e-4, 1e-5)))
    assert "0.05002" in text and "0.05\n" in text


@each_blank
def test_several_outputs_have_the_names_of_the_docstring(blank):
    output = answer(blank)(*blank.cases(0)[0].inputs.values())
    if isinstance(output, tuple):
        assert len(blank.outputs) == len(output)
        assert f"({', '.join(blank.outputs)}):" in inspect.getdoc(answer(blank))
        result = judge_here(blank, changed(answer(blank), lambda x, *_: (*x[:-1], spoil(x[-1]))))
        assert f'the output "{blank.outputs[-1]}"' in report(result)
    else:
        assert blank.outputs == ()


def test_of_a_list_all_is_shown():
    found = compare([5, 6, 7], [5, -100, 7], 0, 0)
    assert (str(found.yours), str(found.expected)) == ("[5, 6, 7]", "[5, -100, 7]")
    assert found.what == "the result, entry 1, has the wrong value"


# ---- Docstrings ---------------------------------------------------------------------------------


@each_blank
def test_the_worked_example_in_the_docstring_is_right(blank):
    module = load_answers(blank.file)
    examples = doctest.DocTestFinder().find(getattr(module, blank.name), globs=vars(module))
    assert sum(len(example.examples) for example in examples) >= 1
    failures = []
    runner = doctest.DocTestRunner(verbose=False)
    for example in examples:
        runner.run(example, out=failures.append)
    assert not failures, "".join(failures)


@each_blank
def test_a_docstring_teaches(blank):
    text = inspect.getdoc(answer(blank))
    for part in "Shapes", "Formula", "Example", "Ask yourself", "Check it":
        assert f"\n{part}" in text, part
    assert f"pytest -k {blank.name}" in text


def trivial(blank):
    """Functions that do nothing."""
    def zeros(*inputs):
        output = answer(blank)(*inputs)
        parts = output if isinstance(output, tuple) else (output,)
        parts = [torch.zeros_like(x) if isinstance(x, torch.Tensor) else type(x)() for x in parts]
        return tuple(parts) if isinstance(output, tuple) else parts[0]

    return {"nothing": lambda *inputs: None, "zeros": zeros, "0.0": lambda *inputs: 0.0,
            "1.0": lambda *inputs: 1.0, "the first input": lambda *inputs: inputs[0],
            "the second input": lambda *inputs: inputs[1]}


@each_blank
def test_a_function_that_does_nothing_is_wrong_in_half_of_the_cases(blank):
    """The grader gives points by cases only above that."""
    for name, function in trivial(blank).items():
        result = judge_here(blank, function)
        assert 2 * len(result.right) <= result.total, (name, result.right)


def test_a_stub_raises_in_every_case():
    """A begun function that raises NotImplementedError in some is judged by the others."""
    blank = next(blank for blank in BLANKS if blank.name == "kl_penalty")
    answer = load_answers("ex3_ppo").kl_penalty

    def without_k3(logprobs, ref_logprobs, estimator="k1"):
        if estimator == "k3":
            raise NotImplementedError("later")
        return answer(logprobs, ref_logprobs, estimator)

    def stub(*inputs):
        raise NotImplementedError

    k3 = sum("k3" in case.inputs.values() for case in blank.cases(0))
    for function, status, right in (without_k3, "crashed", -k3), (stub, "todo", None):
        found = collect(blank, lambda request: perform(
            function, request["inputs"], request["grad"]))
        result = judge(blank, *found)
        assert result.status == status
        assert len(result.right) == (0 if right is None else result.total + right)


def test_what_ends_the_cases_says_more_than_a_stub():
    """A function that raises NotImplementedError in its first case and hangs in its second."""
    blank = next(blank for blank in BLANKS if blank.name == "kl_penalty")
    answers = iter([{"status": "not_started"}, {"status": "timeout", "message": "it hangs"}])
    cases, outcomes, stopped = collect(blank, lambda request: next(answers))
    result = judge(blank, cases, outcomes, stopped)
    assert result.status == "timeout" and result.message == "it hangs"
    assert result.case is cases[1]
