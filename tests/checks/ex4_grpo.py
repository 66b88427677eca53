"""The checks of exercise 4. Mistakes are numbered where a list of pitfalls of the field has
them."""

import itertools
import math
import re

import torch

from .core import Blank, Case, Mistake
from .inputs import integers, normal, ragged_mask

FILE, PLACE = "ex4_grpo", 'section "The maths" of lesson4_grpo.py, function {}'

# Equal rewards whose float32 mean is not quite the same number, for groups of 6 and more.
EQUAL = [0.3, 5.3, -2.6, 5000.3, 0.1]


# ---- sum_reward ---------------------------------------------------------------------------------


def sum_reward_cases(seed):
    a, b = integers(10, 50, 2, seed=seed).tolist()
    total = str(a + b)  # two digits
    wide = "".join(chr(0xFF10 + int(digit)) for digit in total)
    responses = {
        "the sum": total, "one more than the sum": str(a + b + 1), "a full stop": f"{total}.",
        "white space": f" {total}\n", "white space after the full stop": f"\t{total}. \n",
        "white space before the full stop": f"{total} .",
        "a full stop on the next line": f"{total}\n.\n", "nothing": "", "a full stop alone": ".",
        "a sentence": f"The answer is {total}.", "the whole sum": f"{a} + {b} = {total}",
        "two answers": f"{total} or {a + b + 1}", "a digit in front": f"1{total}",
        "a digit behind": f"{total}0", "a leading zero": f"0{total}", "a sign": f"+{total}",
        "decimals": f"{total}.0", "white space between the digits": " ".join(total),
        "a full stop between the digits": ".".join(total), "two full stops": f"{total}..",
        "an ellipsis": f"{total}...", "a tab between the digits": "\t".join(total),
        "a full stop in front": f".{total}", "an underscore": "_".join(total),
        "digits of another script": wide, "a last digit of another script": total[0] + wide[1]}
    cases = [Case("27 + 15", {"prompt": "What is 27 + 15?", "response": "42"}, expect=1.0)]
    cases += [Case(note, {"prompt": f"What is {a} + {b}?", "response": response})
              for note, response in responses.items()]
    others = {"numbers of one digit": ("What is 3 + 4?", "7", 1.0),
              "nought and nought": ("What is 0 + 0?", "0", 1.0),
              "numbers of three digits": ("What is 125 + 990?", "1115", 1.0),
              "a number of four digits": ("What is 1000 + 1?", "1001", 1.0),
              "a prompt without numbers": ("Write a short review of the spy film.", "42", 0.0),
              "a prompt without numbers, and 0": ("Write a review of the circus film.", "0", 0.0),
              "a prompt with two numbers and no sum": ("Name 2 films with 3 pirates.", "5", 0.0),
              "a difference": ("What is 27 - 15?", "42", 0.0),
              "no white space around the plus": ("What is 27+15?", "42", 0.0),
              "white space on one side of the plus": ("What is 27 +15?", "42", 0.0),
              "a plus between words": ("Write a recipe with salt + pepper.", "42", 0.0),
              "numbers in words": ("What is one + two?", "3", 0.0)}
    cases += [Case(note, {"prompt": prompt, "response": response}, expect=expect)
              for note, (prompt, response, expect) in others.items()]
    # As many right sums as wrong ones: always saying 0 must not be worth much.
    for i, (a, b) in enumerate(integers(0, 100, 17, 2, seed=seed + 1).tolist()):
        end = ["", ".", "\n"][i % 3]
        cases.append(Case(f"right sum {i + 1}", {"prompt": f"What is {a} + {b}?",
                                                 "response": f"{a + b}{end}"}))
    return cases


def slow_sum_reward(prompt, response):
    """Of the response nothing may be left but the sum, and a full stop on it or after it."""
    numbers = prompt.removeprefix("What is ").removesuffix("?").split(" + ")
    if len(numbers) != 2 or not "".join(numbers).isdigit():
        return 0.0
    total = str(int(numbers[0]) + int(numbers[1]))
    return float(response.split() in ([total], [total + "."], [total, "."]))


def tidy(response):
    return response.strip().removesuffix(".").strip()


def sum_reward_like(clean=tidy, matches=lambda answer, total: answer == str(total),
                    pattern=r"(\d+) \+ (\d+)"):
    """A version of sum_reward with parts that can be set wrong."""
    def sum_reward(prompt, response):
        question = re.search(pattern, prompt)
        if question is None:
            return 0.0
        return float(matches(clean(response), sum(map(int, question.groups()))))
    return sum_reward


def as_number(convert):
    def matches(answer, total):
        try:
            return convert(answer) == total
        except ValueError:
            return False
    return matches


def number_in(answer, total, which):
    numbers = re.findall(r"\d+", answer)
    return bool(numbers) and numbers[which] == str(total)


def needs_a_sum(prompt, response):
    question = re.search(r"(\d+) \+ (\d+)", prompt)
    return float(tidy(response) == str(sum(map(int, question.groups()))))


def splits_at_the_plus(prompt, response):
    numbers = prompt.removeprefix("What is ").removesuffix("?").split(" + ")
    return float(len(numbers) == 2 and tidy(response) == str(int(numbers[0]) + int(numbers[1])))


def adds_any_numbers(prompt, response):
    return float(tidy(response) == str(sum(map(int, re.findall(r"\d+", prompt)))))


def sum_reward_by_pattern(prompt, response):
    question = re.fullmatch(r"What is (?P<a>[0-9]+) \+ (?P<b>[0-9]+)\?", prompt)
    if not question:
        return 0.0
    total = int(question["a"]) + int(question["b"])
    return 1.0 if re.fullmatch(rf"\s*{total}\s*\.?\s*", response) else 0.0


SUM_REWARD = Blank(
    FILE, "sum_reward", sum_reward_cases, slow_sum_reward,
    formula="1.0 if the response, without white space at its ends, then one final full stop, then "
    "white space again, is the sum in plain digits; else 0.0",
    place=PLACE.format("sum_reward"),
    mistakes=[
        Mistake("the sum anywhere in the response", "A response that holds the sum among other "
                "things is paid. | What would a policy write that is paid for every number in it?",
                sum_reward_like(matches=lambda answer, total: str(total) in answer)),
        Mistake("the first number in the response", "You read the first number. What of the words "
                "and numbers around it?",
                sum_reward_like(matches=lambda *two: number_in(*two, which=0))),
        Mistake("the last number in the response",
                "You read the last number. What of the words and numbers before it?",
                sum_reward_like(matches=lambda *two: number_in(*two, which=-1))),
        Mistake("compares integers",
                "Python's int() reads more than plain digits: what does it make of \"042\", of "
                '"+42", of "4_2"?', sum_reward_like(matches=as_number(int))),
        Mistake("compares integers made of digits", "Digits alone are not enough: which numbers "
                'does int() make of "063" and of "42" in another script, and is each the answer '
                "in plain digits?", sum_reward_like(
                    matches=lambda answer, total: answer.isdigit() and int(answer) == total)),
        Mistake("compares floats",
                "Python's float() reads more than plain digits: what does it make of \"42.0\", of "
                '"+42"?', sum_reward_like(matches=as_number(float))),
        Mistake("white space counts", 'Should " 42" be worth less than "42"?',
                sum_reward_like(clean=lambda response: response.removesuffix("."))),
        Mistake("the full stop counts", 'Should "42." be worth less than "42"?',
                sum_reward_like(clean=str.strip)),
        Mistake("white space before the full stop counts", 'Once the full stop of "42 ." is gone, '
                "what stands at the end?",
                sum_reward_like(clean=lambda response: response.strip().removesuffix("."))),
        Mistake("all final full stops are taken away",
                "How many full stops may a response end with, and how many do you take away?",
                sum_reward_like(clean=lambda response: response.strip().rstrip(".").strip())),
        Mistake("all full stops are taken away", 'Is "4.2" the number 42?',
                sum_reward_like(clean=lambda response: response.replace(".", "").strip())),
        Mistake("all white space is taken away", 'Is "4 2" the number 42?',
                sum_reward_like(clean=lambda x: "".join(x.split()).removesuffix("."))),
        Mistake("a prompt without a sum crashes",
                "What does your search give for a prompt that is no sum, and what do you do with "
                "it?", needs_a_sum),
        Mistake("a plus between words crashes", "A sum of numbers agrees. | What stands around "
                'the plus of "salt + pepper"?', splits_at_the_plus),
        Mistake("a sum in another form is paid", "A sum has \" + \" between its numbers here, and "
                "your search takes more than that. What does the docstring say of other prompts?",
                sum_reward_like(pattern=r"(\d+)\s*\+\s*(\d+)")),
        Mistake("adds whatever numbers there are", "Does every prompt with numbers in it ask for "
                "their sum?", adds_any_numbers),
        Mistake("reads one digit",
                "Sums of small numbers agree. | How many digits of each number does your pattern "
                "take?", sum_reward_like(pattern=r"(\d) \+ (\d)"))],
    right={"one pattern for the whole response": sum_reward_by_pattern})


# ---- group_advantages ---------------------------------------------------------------------------


def advantage_cases(seed):
    def case(note, rewards, group_size, *more, expect=None):
        names = "rewards", "group_size", "scale", "eps"
        return Case(note, dict(zip(names, (rewards, group_size, *more))), expect=expect,
                    corner=group_size == 1)

    def draw(*shape, shift):
        return 5 + normal(math.prod(shape), seed=seed + shift)

    one = 1 / 1.0001  # a standard deviation of 1, and eps
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    steps = torch.tensor([-1.0, 0.0, 0.0, 1.0])
    equal, sizes = torch.tensor(EQUAL), torch.tensor([1.0, 2.0, 0.5]).repeat_interleave(5)
    return [case("one group of three", draw(1, 3, shift=0), 3),
            case("two groups, worked by hand", rewards, 3,
                 expect=torch.tensor([-one, 0.0, one, 0.0, 0.0, 0.0])),
            case("two groups, scale none, worked by hand", 2 * rewards, 3, "none",
                 expect=torch.tensor([-2.0, 0.0, 2.0, 0.0, 0.0, 0.0])),
            case("as many groups as responses in one", draw(4, 4, shift=10), 4),
            case("three groups of five, around different means", draw(3, 5, shift=20) * sizes, 5,
                 "std"),
            case("scale none", 3 * draw(3, 4, shift=30), 4, "none"),
            case("right and wrong answers, 1 and 0", torch.tensor([0, 1, 1, 1, 0, 0, 1, 0.0]), 4),
            case("right and wrong answers, groups of two", torch.tensor([0, 1, 1, 0, 1, 1.0]), 2),
            case("a spread as small as eps", 1e-4 * normal(12, seed=seed + 40), 4),
            case("a small spread, scale none", 1e-3 * normal(12, seed=seed + 80), 4, "none"),
            case("a small spread around 128, worked by hand", 128 + steps / 4096, 4,
                 expect=steps / (math.sqrt(2 / 3) + 0.4096)),
            case("a small spread around 128, scale none, worked by hand", 128 + steps / 4096, 4,
                 "none", expect=steps / 4096),
            case("eps 0.5", draw(2, 6, shift=50), 6, "std", 0.5),
            case("groups without spread", equal.repeat_interleave(7), 7),
            case("groups without spread, scale none", 1000 * equal.repeat_interleave(7), 7, "none"),
            case("every reward the same", torch.full((22,), 5.3), 11),
            case("every reward the same, scale none", torch.full((14,), 5000.3), 7, "none"),
            case("a large group of equal rewards", torch.full((32,), 4.8), 32),
            case("groups of two", draw(3, 2, shift=90), 2),
            case("groups without spread beside others", torch.cat([
                equal[:2].repeat_interleave(7), draw(2, 7, shift=100)]), 7),
            case("groups of one", draw(3, 1, shift=60), 1),
            case("groups of one, scale none", draw(3, 1, shift=70), 1, "none")]


def slow_advantages(rewards, group_size, scale="std", eps=1e-4):
    numbers = rewards.tolist()
    advantages = []
    for start in range(0, len(numbers), group_size):
        group = numbers[start:start + group_size]
        mean = math.fsum(group) / group_size
        spread = 1.0
        if scale == "std":
            squares = math.fsum((r - mean) ** 2 for r in group)
            spread = math.sqrt(squares / max(group_size - 1, 1)) + eps
        same = all(r == group[0] for r in group)
        advantages += [0.0 if same else (r - mean) / spread for r in group]
    return torch.tensor(advantages)


def unbiased(groups, eps):
    """The divisor for "std". (For groups of one std() gives nan as well, with a warning.)"""
    return groups.std(dim=1, keepdim=True) + eps if groups.shape[1] > 1 else math.nan


def advantages_like(divisor=unbiased, baseline=lambda groups: groups.mean(dim=1, keepdim=True),
                    exact_zeros=True, scales=("std",), interleaved=False, flat=True,
                    exchanged=False):
    """A version of group_advantages with parts that can be set wrong."""
    def group_advantages(rewards, group_size, scale="std", eps=1e-4):
        groups = rewards.view(group_size, -1).T if interleaved else rewards.view(-1, group_size)
        groups = rewards.view(group_size, -1) if exchanged else groups
        advantages = groups - baseline(groups)
        if scale in scales:
            advantages = advantages / divisor(groups, eps)
        if exact_zeros:
            spread = groups.amax(dim=1, keepdim=True) > groups.amin(dim=1, keepdim=True)
            advantages = torch.where(spread, advantages, 0.0)
        advantages = advantages.T if interleaved else advantages
        return advantages.flatten() if flat else advantages
    return group_advantages


def advantage_mistakes(name, question, **parts):
    """With and without the exact zeros, which are easily left out as well."""
    return [Mistake(name, question, advantages_like(**parts)),
            Mistake(f"{name}, and no exact zeros", question,
                    advantages_like(exact_zeros=False, **parts))]


def advantages_in_place(rewards, group_size, scale="std", eps=1e-4):
    correct = advantages_like()(rewards, group_size, scale, eps)
    rewards.view(-1, group_size).sub_(rewards.view(-1, group_size).mean(dim=1, keepdim=True) + 1)
    return correct


def zeros_where_the_std_is_zero(rewards, group_size, scale="std", eps=1e-4):
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    variance = advantages.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)
    if scale == "std":
        advantages = advantages / (variance.sqrt() + eps)
    return torch.where(variance == 0, 0.0, advantages).flatten()


def zeros_where_rewards_are_close(rewards, group_size, scale="std", eps=1e-4):
    groups = rewards.view(-1, group_size)
    near = torch.isclose(groups, groups[:, :1]).all(dim=1, keepdim=True).expand(groups.shape)
    advantages = advantages_like()(rewards, group_size, scale, eps)
    return torch.where(near.flatten(), 0.0, advantages)


def biased(groups, eps):
    return groups.std(dim=1, keepdim=True, unbiased=False) + eps


def mean_of_the_others(groups):
    size = groups.shape[1]
    return (groups.sum(dim=1, keepdim=True) - groups) / max(size - 1, 1)


def advantages_by_loop(rewards, group_size, scale="std", eps=1e-4):
    parts = []
    for group in rewards.double().split(group_size):
        part = group - group.mean()
        if torch.equal(group, group[0].expand_as(group)):
            part = torch.zeros_like(group)
        elif scale == "std":
            part = part / (part.square().sum().div(group_size - 1).sqrt() + eps)
        parts.append(part)
    return torch.cat(parts).float()


ADVANTAGES = Blank(
    FILE, "group_advantages", advantage_cases, slow_advantages,
    formula="\"std\": A = (r - mean) / (std + eps), \"none\": A = r - mean, with each group's own "
    "mean and unbiased std; exactly 0 where all rewards of a group are equal",
    place=PLACE.format("group_advantages"),
    mistakes=[
        Mistake("rounding is left where there is no spread",
                "Groups with some spread agree. | In a group without spread the mean may be off "
                "in its last digit, and eps is small: what makes the advantage exactly 0?",
                advantages_like(
                    exact_zeros=False, divisor=lambda groups, eps: unbiased(
                        groups, eps) if groups.shape[1] > 1 else 1.0)),
        Mistake("asks whether the standard deviation is 0",
                "Groups with some spread agree. | Is the standard deviation of equal rewards "
                "exactly 0 as a computer computes it, for every size of a group? Which question "
                "about the rewards can be answered without rounding?", zeros_where_the_std_is_zero),
        Mistake("zeros where the rewards are nearly equal",
                "Groups of a large spread agree, and so do those without any. | Should rewards "
                "that differ a little count as equal?", zeros_where_rewards_are_close),
        Mistake("no exact zeros, and a group of one is not a number",
                "Larger groups with some spread agree. | In a group without spread the mean may "
                "be off in its last digit. And how many numbers does an unbiased standard "
                "deviation need?",
                advantages_like(exact_zeros=False)),
        *advantage_mistakes(
            "eps inside the root (80)",
            "A large spread agrees, a spread about as small as eps does not. | Is eps added to "
            "the standard deviation or to the variance?",
            divisor=lambda groups, eps: (unbiased(groups, 0) ** 2 + eps) ** 0.5),
        *advantage_mistakes(
            "the groups are interleaved (81)",
            "The advantages of a prompt's own responses do not add up to 0. | Which responses "
            "stand next to one another in the rewards?", interleaved=True),
        *advantage_mistakes(
            "G rows instead of rows of G", "As many groups as responses in one agree. | Which of "
            "the two numbers of view(...) says how long a row is, and how long must a row be to "
            "hold one prompt's responses?", exchanged=True),
        *advantage_mistakes(
            "the batch's mean and std (82)", "One group alone agrees. | With whom is a response "
            "compared?", baseline=torch.mean, divisor=lambda groups, eps: groups.std() + eps),
        *advantage_mistakes(
            "the batch's std (82)", "One group alone agrees, and so does scale none. | Over which "
            "rewards is the standard deviation taken?",
            divisor=lambda groups, eps: groups.std() + eps),
        *advantage_mistakes(
            "the biased std (83)", "Each advantage is sqrt(G / (G - 1)) times the expected one. | "
            "By what is the sum of squares divided in your standard deviation?", divisor=biased),
        *advantage_mistakes(
            "no eps (84)",
            "A large spread nearly agrees. | What keeps a small spread from blowing its "
            "advantages up?",
            divisor=lambda groups, eps: unbiased(groups, 0)),
        *advantage_mistakes(
            "not centred (85)",
            "With rewards around 5 all your advantages are positive. | Better than what must a "
            "response be?", baseline=lambda groups: 0.0),
        *advantage_mistakes(
            "the mean of the others (90)",
            "Without a division you are off by the factor G / (G - 1): that is RLOO's baseline. | "
            "Does GRPO leave a response out of its own mean?",
            baseline=mean_of_the_others),
        *advantage_mistakes(
            "never divided (90)", "Scale none agrees. | What does scale std ask for?", scales=()),
        *advantage_mistakes(
            "always divided (93)", "Scale std agrees. | What does Dr. GRPO leave out?",
            scales=("std", "none")),
        *advantage_mistakes(
            "divided by the variance (64)",
            "Twice the rewards should give the same advantages. What do yours do?",
            divisor=lambda groups, eps: unbiased(groups, 0) ** 2 + eps),
        *advantage_mistakes(
            "one row a group", "The numbers are right. | Which shape went in, and which should "
            "come out?", flat=False),
        Mistake("edits the rewards (59)",
                "Your function writes into the rewards that it was given. Who else still needs "
                "them?", advantages_in_place)],
    right={"a loop over the groups in float64": advantages_by_loop})


# ---- informative_groups -------------------------------------------------------------------------


def informative_cases(seed):
    def case(note, rewards, group_size, expect=None):
        return Case(note, {"rewards": rewards, "group_size": group_size},
                    expect=None if expect is None else torch.tensor(expect), corner=group_size == 1)

    def draw(*shape, shift, scale=1.0):
        return scale * normal(*shape, seed=seed + shift)

    mixed = 5 + draw(4, 4, shift=10)
    mixed[2] = mixed[2, 0]
    ends = draw(3, 5, shift=20)
    ends[:, -1] = ends[:, 0]
    tiny = draw(3, 4, shift=30, scale=1e-9)
    plus = draw(2, 1, shift=40).abs() * torch.tensor([1.0, -1.0, 1.0, -1.0])
    return [case("one group of three", torch.tensor([0.0, 1.0, 0.0]), 3, [True]),
            case("one group of three, all right", torch.ones(3), 3, [False]),
            case("all wrong, all right, some right",
                 torch.tensor([0, 0, 0, 1, 1, 1, 0, 1, 1.0]), 3, [False, False, True]),
            case("rewards around 5, one group equal", mixed.flatten(), 4),
            case("negative rewards", -mixed.flatten().abs(), 4),
            case("groups that begin and end with the same reward", ends.flatten(), 5),
            case("rewards 1 and -1", torch.tensor([1, -1, 1, -1, -1, -1, -1, -1.0]), 4,
                 [True, False]),
            case("groups of mean 0", plus.flatten(), 4),
            case("a tiny spread", tiny.flatten(), 4),
            case("a tiny spread, groups of six", torch.cat([tiny.flatten(), torch.zeros(6)]), 6),
            case("equal rewards", torch.tensor(EQUAL).repeat_interleave(7), 7),
            case("one group of equal rewards", torch.full((7,), 5.3), 7),
            case("one large group of equal rewards", torch.full((13,), 0.3), 13),
            *[case(f"equal rewards in float64, groups of {size}", torch.tensor(
                EQUAL, dtype=torch.float64).repeat_interleave(size), size) for size in (3, 6, 7)],
            case("groups of one", draw(3, shift=50), 1)]


def slow_informative(rewards, group_size):
    numbers = rewards.tolist()
    groups = [numbers[i:i + group_size] for i in range(0, len(numbers), group_size)]
    return torch.tensor([len(set(group)) > 1 for group in groups])


def informative_like(keep, interleaved=False):
    """A version of informative_groups that keeps the groups (N, G) for which keep gives True."""
    def informative_groups(rewards, group_size):
        return keep(rewards.view(group_size, -1).T if interleaved else rewards.view(-1, group_size))
    return informative_groups


def has_spread(groups):
    return groups.amax(dim=1) > groups.amin(dim=1)


INFORMATIVE = Blank(
    FILE, "informative_groups", informative_cases, slow_informative,
    formula="a group is kept if and only if its largest reward differs from its smallest",
    place=PLACE.format("informative_groups"),
    mistakes=[
        Mistake("the other way round", "Every flag is the opposite of the expected one. | Does "
                "True mean to keep a group or to drop it?",
                informative_like(lambda groups: ~has_spread(groups))),
        Mistake("keeps groups that are all right (92)",
                "A group of equal rewards, none of them 0, is kept. | What are the advantages of "
                "a group of equal rewards?",
                informative_like(lambda groups: (groups != 0).any(dim=1))),
        Mistake("keeps groups whose mean is not 0 (92)",
                "Is a mean of 0 the same as no spread? Think of the rewards 1 and -1.",
                informative_like(lambda groups: groups.mean(dim=1) != 0)),
        Mistake("keeps groups with a right answer (92)",
                "A group in which all are right is kept, and one of different negative rewards is "
                "not. | What does a group teach by?",
                informative_like(lambda groups: groups.amax(dim=1) > 0)),
        Mistake("takes rewards to be 0 or 1",
                "Rewards of 0 and 1 agree. | What if the rewards are scores of a reward model?",
                informative_like(
                    lambda groups: (groups.mean(dim=1) > 0) & (groups.mean(dim=1) < 1))),
        Mistake("counts the rewards of 1", "Rewards of 0 and 1 agree. | What if the rewards are "
                "scores of a reward model, and none of them is 1?", informative_like(
                    lambda groups: ((groups == 1).sum(dim=1) % groups.shape[1]) != 0)),
        Mistake("compares with the mean",
                "Groups of equal rewards are kept, but only for some values and sizes. | Is the "
                "mean of equal numbers that number, to its last digit?",
                informative_like(lambda groups: (groups != groups.mean(
                    dim=1, keepdim=True)).any(dim=1))),
        Mistake("compares with the mean, as Python's sum() computes it",
                "In float32 it agrees, because Python computes with more digits than that. In "
                "float64 it does not. | What is (0.1 + 0.1 + 0.1) / 3?",
                informative_like(lambda groups: torch.tensor(
                    [any(reward != sum(group) / len(group) for reward in group)
                     for group in groups.tolist()]))),
        Mistake("asks for a standard deviation above 0",
                "One group of equal rewards is kept. | Is the standard deviation that torch "
                "computes for equal rewards exactly 0?",
                informative_like(
                    lambda groups: groups.std(dim=1, unbiased=False) > 0)),
        Mistake("a tolerance", "A group with a tiny spread is dropped. | At which spread does the "
                "definition begin to call rewards equal?",
                informative_like(lambda groups: groups.amax(dim=1) - groups.amin(dim=1) > 1e-6)),
        Mistake("compares the first with the last",
                "Groups that begin and end with the same reward are dropped. | What of the "
                "rewards between the first and the last?",
                informative_like(lambda groups: groups[:, 0] != groups[:, -1])),
        Mistake("the groups are interleaved (81)",
                "One group alone agrees. | Which responses stand next to one another in the "
                "rewards?",
                informative_like(has_spread, interleaved=True)),
        Mistake("a flag a response", "Is there a flag for every group, or for every response?",
                informative_like(lambda groups: has_spread(groups).repeat_interleave(
                    groups.shape[1])))],
    right={"any response unlike the first": informative_like(
        lambda groups: (groups != groups[:, :1]).any(dim=1))})


# ---- grpo_token_loss ----------------------------------------------------------------------------


def off_the_edges(log_ratio):
    """To the nearest of ..., -0.07, 0.03, 0.13, ...: no ratio within 1% of an edge of the clip."""
    return (log_ratio / 0.1).round() * 0.1 + 0.03


def token_loss_cases(seed):
    def case(note, rows, length, kl_coef, *clip, draw, scale=0.5, low=0.0, reference=True):
        def noise(i):
            return normal(rows, length, seed=seed + draw + i)

        old = low - noise(0).abs() - 0.1
        new = old + off_the_edges(scale * noise(1))
        ref = new + scale * noise(2) if reference else None
        advantages = 2 * normal(rows, seed=seed + draw + 3)
        return Case(note, {"logprobs": new, "old_logprobs": old, "ref_logprobs": ref,
                           "advantages": advantages, "kl_coef": kl_coef,
                           **dict(zip(("clip_low", "clip_high"), clip))}, grad=("logprobs",))

    log, k3 = math.log, 1 - math.log(2)  # k3 of d = log 2 is 2 - log 2 - 1
    ratios = torch.tensor([[log(2), log(0.5)]]).expand(2, 2).clone()
    four = Case("ratios 2 and 0.5 with advantages of both signs, worked by hand", {
        "logprobs": ratios, "old_logprobs": torch.zeros(2, 2), "ref_logprobs": ratios + log(2),
        "advantages": torch.tensor([1.0, -1.0]), "kl_coef": 0.1, "clip_low": 0.2,
        "clip_high": 0.28}, grad=("logprobs",),
        # clipped, not, not, clipped
        expect=torch.tensor([[-1.28, -0.5], [2.0, 0.8]]) + 0.1 * k3)
    on_policy = case("ratio 1 everywhere", 2, 3, 0.3, 0.2, 0.28, draw=10)
    on_policy.inputs["logprobs"] = on_policy.inputs["old_logprobs"].clone()
    return [case("one response, no KL, no reference", 1, 3, 0.0, 0.2, 0.2, draw=0, reference=False),
            case("one response", 1, 3, 0.3, 0.2, 0.2, draw=20), four, on_policy,
            case("as many responses as tokens", 4, 4, 0.3, 0.2, 0.28, draw=30),
            case("five responses of three tokens", 5, 3, 0.3, 0.2, 0.28, draw=40),
            case("no KL, no reference", 5, 3, 0.0, 0.2, 0.28, draw=50, reference=False),
            case("no KL, with a reference", 3, 3, 0, 0.2, 0.28, draw=60),
            case("ratios far beyond the clip", 6, 4, 0.3, 0.2, 0.28, draw=70, scale=1.5),
            case("clip_low 0.3, clip_high 0.1", 6, 5, 1.0, 0.3, 0.1, draw=80),
            case("log-probs around -200", 3, 5, 0.3, 0.2, 0.28, draw=90, low=-200.0),
            case("log-probs around -200, no reference", 2, 2, 0.0, 0.2, 0.28, draw=100, low=-200.0,
                 reference=False)]


def slow_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low, clip_high):
    losses = torch.zeros_like(logprobs)
    for b, t in itertools.product(range(logprobs.shape[0]), range(logprobs.shape[1])):
        new, advantage = float(logprobs[b, t]), float(advantages[b])
        ratio = math.exp(new - float(old_logprobs[b, t]))
        bounded = min(max(ratio, 1 - clip_low), 1 + clip_high)
        losses[b, t] = -min(advantage * ratio, advantage * bounded)
        if kl_coef != 0:
            d = float(ref_logprobs[b, t]) - new
            losses[b, t] += kl_coef * (math.exp(d) - d - 1)
    return losses


def k3_of(d):
    return torch.expm1(d) - d


def token_loss_like(ratio=lambda new, old, ref: torch.exp(new - old), choose=torch.max, sign=-1.0,
                    bound=lambda r, low, high: r.clamp(1 - low, 1 + high),
                    kl=lambda new, ref: k3_of(ref - new), weight=lambda kl_coef: kl_coef,
                    spread=lambda advantages: advantages.unsqueeze(1), always=False,
                    finish=lambda loss: loss):
    """A version of grpo_token_loss with parts that can be set wrong."""
    def grpo_token_loss(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low,
                        clip_high):
        r = ratio(logprobs, old_logprobs, ref_logprobs)
        advantages = spread(advantages)
        loss = choose(sign * advantages * r, sign * advantages * bound(r, clip_low, clip_high))
        if kl_coef or always:
            loss = loss + weight(kl_coef) * kl(logprobs, ref_logprobs)
        return finish(loss)
    return grpo_token_loss


def clips_the_log_ratio(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low,
                        clip_high):
    def bound(ratio, low, high):
        return (logprobs - old_logprobs).clamp(-low, high).exp()
    return token_loss_like(bound=bound)(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef,
                                        clip_low, clip_high)


def token_loss_by_cases(logprobs, old_logprobs, ref_logprobs, advantages, kl_coef, clip_low,
                        clip_high):
    """In float64, the branches written out: only a gain beyond the clip is cut off."""
    new, old = logprobs.double(), old_logprobs.double()
    a = advantages.double()[:, None].expand_as(new)
    ratio = (new - old).exp()
    ratio = torch.where((a > 0) & (ratio > 1 + clip_high), 1 + clip_high, ratio)
    ratio = torch.where((a < 0) & (ratio < 1 - clip_low), 1 - clip_low, ratio)
    loss = -torch.einsum("bt,bt->bt", a, ratio)
    if kl_coef != 0:
        difference = ref_logprobs.double() - new
        loss = loss + kl_coef * (difference.exp() - 1 - difference)
    return loss.to(logprobs.dtype)


TOKEN_LOSS = Blank(
    FILE, "grpo_token_loss", token_loss_cases, slow_token_loss,
    formula="max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) + kl_coef (exp(d) - d - 1) "
    "with ratio = exp(new - old) and d = ref - new",
    place=PLACE.format("grpo_token_loss"),
    mistakes=[
        Mistake("the smaller loss (65)",
                "At ratio 1 it agrees. | Pessimistic means that the larger of the two losses "
                "counts: which one do you take?", token_loss_like(choose=torch.min)),
        Mistake("the clipped term alone (66)",
                "Inside the clip it agrees. | When the ratio is 2 and the advantage negative, who "
                "pulls it back?",
                token_loss_like(choose=lambda loss, clipped: clipped)),
        Mistake("no clip (67)", "Inside the clip it agrees. | What keeps a large ratio from "
                "paying?",
                token_loss_like(choose=lambda loss, clipped: loss)),
        Mistake("the ratio upside down (68)",
                "At ratio 1 the value is right and the gradient of the clipped loss is negated. | "
                "Which way round is the ratio?",
                token_loss_like(ratio=lambda new, old, ref: torch.exp(old - new))),
        Mistake("the ratio is not exponentiated (69)",
                "A ratio of probabilities is 1 where they are equal. What is a difference of "
                "log-probabilities there?",
                token_loss_like(ratio=lambda new, old, ref: new - old)),
        Mistake("the objective's sign (70)",
                "The paper maximises an objective; an optimiser minimises a loss. What is the sign "
                "of the advantage's term in yours?",
                token_loss_like(sign=1.0, choose=torch.min)),
        Mistake("old log-probs are the current ones (72)",
                "Where the policy has moved, your ratio is still 1, and no gradient flows through "
                "it. | Which policy sampled?",
                token_loss_like(ratio=lambda new, old, ref: torch.exp(new - new))),
        Mistake("old log-probs are the current ones, detached (72)",
                "Where the policy has moved, your ratio is still 1. | Which policy sampled?",
                token_loss_like(ratio=lambda new, old, ref: torch.exp(new - new.detach()))),
        Mistake("the log-ratio is clipped (73)",
                "Close to the clip range, not quite on it: are the two edges bounds of the ratio "
                "or of its logarithm?", clips_the_log_ratio),
        Mistake("a quotient of probabilities",
                "At log-probs of -200 it is not a number. | How large is exp(-200) in float32, "
                "and which difference could you take before exp?",
                token_loss_like(ratio=lambda new, old, ref: new.exp() / old.exp())),
        Mistake("the KL subtracted (86)",
                "Without KL it agrees. | Is being far from the reference a gain or a loss?",
                token_loss_like(weight=lambda kl_coef: -kl_coef)),
        Mistake("the KL reversed (86)",
                "Close to the reference it nearly agrees. | Is d the reference minus the policy, "
                "or the other way round?",
                token_loss_like(kl=lambda new, ref: k3_of(new - ref))),
        Mistake("the KL dropped (86)", "Without KL it agrees. | What pulls the policy back to the "
                "reference?", token_loss_like(weight=lambda kl_coef: 0.0)),
        Mistake("the KL not weighted",
                "Where kl_coef is 0 or 1 it agrees. | How much does the KL count?",
                token_loss_like(weight=lambda kl_coef: 1.0)),
        Mistake("k1 for k3", "Without KL it agrees. | May the estimate of equation 4 be negative?",
                token_loss_like(kl=lambda new, ref: new - ref)),
        Mistake("k2 for k3",
                "Close to the reference it nearly agrees. | Is the estimate of equation 4 "
                "symmetric?",
                token_loss_like(kl=lambda new, ref: 0.5 * (new - ref).square())),
        Mistake("k3 without the -1 (41)", "What is your KL where policy and reference agree?",
                token_loss_like(kl=lambda new, ref: k3_of(ref - new) + 1)),
        Mistake("no gradient through the KL",
                "The numbers are right. | How does the KL term move the policy?",
                token_loss_like(kl=lambda new, ref: k3_of(ref - new).detach())),
        Mistake("the reference sampled (87)",
                "Which of the other two log-probabilities belong to the policy that sampled the "
                "tokens?",
                token_loss_like(ratio=lambda new, old, ref: torch.exp(new - ref))),
        Mistake("the reference is always needed",
                "With a reference it agrees. | What is there to compute where kl_coef is 0?",
                token_loss_like(always=True)),
        Mistake("an advantage a column (89)", "One response alone agrees. | Along which of the "
                "two dimensions does (B,) broadcast against (B, T)?",
                token_loss_like(spread=lambda advantages: advantages)),
        Mistake("clip_high ignored (91)",
                "Where both ranges are 0.2 it agrees. | Which bound is clip_high for?",
                token_loss_like(bound=lambda r, low, high: r.clamp(1 - low, 1 + low))),
        Mistake("clip_low ignored (91)",
                "Where both ranges are 0.2 it agrees. | Which bound is clip_low for?",
                token_loss_like(bound=lambda r, low, high: r.clamp(1 - high, 1 + high))),
        Mistake("the ranges swapped (91)",
                "Where both ranges are 0.2 it agrees. | Which of the two bounds is above 1?",
                token_loss_like(bound=lambda r, low, high: r.clamp(1 - high, 1 + low))),
        Mistake("the ranges are taken for the bounds", "Does a ratio of 1 lie between your bounds?",
                token_loss_like(bound=lambda r, low, high: r.clamp(low, high))),
        Mistake("averaged already", "Which shape should come out? Who does the averaging?",
                token_loss_like(finish=torch.mean))],
    right={"the branches written out in float64": token_loss_by_cases})


# ---- aggregate_loss -----------------------------------------------------------------------------


def aggregate_cases(seed):
    def case(note, mask, average, *more, draw=0):
        losses = 1 + normal(*mask.shape, seed=seed + draw)
        return Case(note, {"token_loss": losses, "mask": mask, "average": average,
                           **dict(zip(("max_length", "count"), more))}, grad=("token_loss",))

    def by_hand(average, expect, *more):
        made = case(f"{average}, worked by hand", ragged_mask([2, 1]), average, *more)
        made.inputs["token_loss"] = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
        made.expect = torch.tensor(expect)
        return made

    ragged, square = ragged_mask([5, 1, 3]), ragged_mask([4, 1, 3, 2])
    empty_row, left = ragged_mask([4, 0, 2, 1, 0]), ragged_mask([0, 5, 1], side="left")
    only_one = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    cases = [case("sequence, one row of two tokens out of three", torch.tensor([[1.0, 1.0, 0.0]]),
                  "sequence"),
             by_hand("sequence", 3.5), by_hand("token", 3.0), by_hand("constant", 0.45, 10)]
    for i, (average, count) in enumerate({"sequence": 7, "token": 23, "constant": 96}.items()):
        draw, own = 100 * i, 12 if average == "constant" else None
        cases += [
            case(f"{average}, rows of different lengths", ragged, average, own, draw=draw + 10),
            case(f"{average}, as many rows as tokens", square, average, 12, draw=draw + 20),
            case(f"{average}, rows without a token", empty_row, average, 12, draw=draw + 30),
            case(f"{average}, padding on the left", left, average, 12, draw=draw + 40),
            case(f"{average}, count given", ragged, average, 12, count, draw=draw + 50),
            case(f"{average}, count a tensor, rows without a token", empty_row, average, None,
                 torch.tensor(11.0), draw=draw + 60),
            case(f"{average}, one token in all", only_one, average, 12, draw=draw + 70),
            case(f"{average}, one row of one token", only_one[:1], average, 12, draw=draw + 75),
            case(f"{average}, one row without a token", torch.zeros(1, 3), average, 12,
                 draw=draw + 80),
            case(f"{average}, no token at all", torch.zeros(2, 3), average, 12, draw=draw + 90)]
    return cases + [case(f'"{name}", an average that does not exist', ragged, name, 12)
                    for name in ("median", "batch", "tokens")]


def slow_aggregate(token_loss, mask, average, max_length=None, count=None):
    rows = [[float(loss) for loss, real in zip(*row) if real == 1] for row in zip(token_loss, mask)]
    if average == "sequence":
        total = math.fsum(math.fsum(row) / len(row) for row in rows if row)
        own = len(rows)
    elif average == "token":
        total = math.fsum(sum(rows, []))
        own = max(len(sum(rows, [])), 1)
    elif average == "constant":
        total = math.fsum(sum(rows, []))
        own = len(rows) * (max_length or 0)
    else:
        raise ValueError(average)
    return torch.tensor(total / float(own if count is None else count), dtype=token_loss.dtype)


def own_unless(count, own):
    return own if count is None else count


def by_sequence(losses, mask, max_length, count, least=1, rows=len):
    means = losses.sum(dim=1) / mask.sum(dim=1).clamp(min=least)
    return means.sum() / own_unless(count, rows(mask))


def by_token(losses, mask, max_length, count, least=1):
    return losses.sum() / own_unless(count, mask.sum().clamp(min=least))


def by_constant(losses, mask, max_length, count):
    return losses.sum() / (len(mask) * max_length if count is None else count)


def only_real(losses, mask):
    return torch.where(mask.bool(), losses, 0.0)


def aggregate_like(real=only_real, sequence=by_sequence, token=by_token, constant=by_constant):
    """A version of aggregate_loss with parts that can be set wrong."""
    def aggregate_loss(token_loss, mask, average, max_length=None, count=None):
        ways = {"sequence": sequence, "token": token, "constant": constant}
        if average not in ways:
            raise ValueError(average)
        return ways[average](real(token_loss, mask), mask, max_length, count)
    return aggregate_loss


def zero_from_nothing(zero):
    """A version that returns a 0 of its own where there is no token."""
    def aggregate_loss(token_loss, mask, *rest):
        return aggregate_like()(token_loss, mask, *rest) if mask.any() else zero()
    return aggregate_loss


def without_count(way):
    return lambda losses, mask, max_length, count: way(losses, mask, max_length, None)


def divided_twice(way):
    return lambda losses, mask, max_length, count: (
        way(losses, mask, max_length, None) / own_unless(count, 1))


def aggregate_by_weights(token_loss, mask, average, max_length=None, count=None):
    """The sum of weight x loss over the real tokens, in float64."""
    real, lengths = mask > 0, mask.double().sum(dim=1, keepdim=True).expand(mask.shape)
    if average not in ("sequence", "token", "constant"):
        raise ValueError(average)
    if count is None:
        count = {"sequence": mask.shape[0], "token": max(int(real.sum()), 1),
                 "constant": mask.shape[0] * (max_length or 0)}[average]
    weights = 1 / lengths[real] if average == "sequence" else torch.ones_like(lengths[real])
    return ((token_loss[real].double() * weights).sum() / count).to(token_loss.dtype)


AGGREGATE = Blank(
    FILE, "aggregate_loss", aggregate_cases, slow_aggregate,
    formula='"sequence": sum over rows of (sum of the row / its tokens) / count, count: B; '
    '"token": sum / count, count: the tokens; "constant": sum / count, count: B max_length',
    place=PLACE.format("aggregate_loss"),
    mistakes=[
        Mistake("the padding is summed too",
                "Rows without padding agree. | What does the mask do in your sum?",
                aggregate_like(real=lambda losses, mask: losses)),
        Mistake(
            "sequence is averaged over tokens (88)",
            "In a sequence average, does each row weigh the same, or each token?",
            aggregate_like(sequence=by_token)),
        Mistake(
            "token is averaged over rows first (88)",
            "In a token average, does a token of a short row weigh as much as one of a long row?",
            aggregate_like(token=by_sequence)),
        Mistake(
            "constant divides by the tokens (93)",
            "In a constant average, may the length of a response change the weight of its tokens?",
            aggregate_like(constant=by_token)),
        Mistake(
            "constant divides each row by its tokens (93)",
            "In a constant average, may the length of a response change the weight of its tokens?",
            aggregate_like(constant=by_sequence)),
        Mistake(
            "constant divides by T (88)",
            "T is the longest response of this batch. Is that a constant of the training?",
            aggregate_like(constant=lambda losses, mask, max_length, count: by_constant(
                losses, mask, mask.shape[1], count))),
        Mistake(
            "constant forgets the rows",
            "Twice the same rows should give the same constant average. What does yours do?",
            aggregate_like(constant=lambda losses, mask, max_length, count: by_constant(
                losses, mask[:1], max_length, count))),
        Mistake(
            "constant multiplies the count by max_length", "Without count it agrees. | When count "
            "is given, is max_length in it already?",
            aggregate_like(constant=lambda losses, mask, max_length, count: losses.sum() / (
                own_unless(count, len(mask)) * max_length))),
        Mistake(
            "sequence divides each row by T (71)",
            "Rows without padding agree. | By how many tokens do you divide a row's sum?",
            aggregate_like(sequence=lambda losses, mask, max_length, count: by_sequence(
                losses, torch.ones_like(mask), max_length, count))),
        Mistake(
            "token divides by all positions (71)",
            "Rows without padding agree. | How many tokens are real?",
            aggregate_like(token=lambda losses, mask, max_length, count: by_token(
                losses, torch.ones_like(mask), max_length, count))),
        Mistake(
            "rows without tokens are not counted",
            "Without empty rows it agrees. | Does a row without tokens count as a row?",
            aggregate_like(sequence=lambda *inputs: by_sequence(
                *inputs, rows=lambda mask: (mask.sum(dim=1) > 0).sum().clamp(min=1)))),
        Mistake(
            "an empty row is not a number",
            "Without empty rows it agrees. | How many tokens does an empty row have, and what is "
            "0 / 0?",
            aggregate_like(sequence=lambda *inputs: by_sequence(*inputs, least=0))),
        Mistake(
            "nothing at all is not a number", "With a token in every row it agrees. | By what do "
            "you divide where there is no token at all?",
            aggregate_like(sequence=lambda *inputs: by_sequence(*inputs, least=0),
                           token=lambda *inputs: by_token(*inputs, least=0))),
        Mistake(
            "0 without a graph", "The values are right. | Where there is no token, what does "
            "loss.backward() do with your 0?", zero_from_nothing(lambda: torch.zeros(()))),
        Mistake(
            "a new 0 with a graph of its own", "The values are right, and backward() works. | "
            "Where there is no token, from what is your 0 computed: does its graph lead back to "
            "the token losses?", zero_from_nothing(lambda: torch.zeros(()).requires_grad_())),
        Mistake(
            "count is ignored", "Without count it agrees. | Who calls this function with a part "
            "of a batch, and by what must the part be divided?",
            aggregate_like(sequence=without_count(by_sequence), token=without_count(by_token),
                           constant=without_count(by_constant))),
        Mistake(
            "divides twice",
            "Without count it agrees. | When count is given, do you still divide by a number of "
            "your own?",
            aggregate_like(sequence=divided_twice(by_sequence), token=divided_twice(by_token),
                           constant=divided_twice(by_constant)))],
    right={"a weight a token, in float64": aggregate_by_weights,
           "multiplied by the mask": aggregate_like(real=torch.mul)})


# ---- pass_at_k ----------------------------------------------------------------------------------


def pass_cases(seed):
    def case(note, num_samples, num_correct, k, expect=None):
        return Case(note, {"num_samples": num_samples, "num_correct": num_correct, "k": k},
                    expect=expect)

    def draw(low, high, shift):
        return int(integers(low, high, 1, seed=seed + shift))

    return [case("one of two right, k = 1", 2, 1, 1, 0.5),
            case("one of four right, k = 2", 4, 1, 2, 0.5),
            case("three of five right, k = 2", 5, 3, 2, 0.9),
            case("none right", draw(6, 100, 0), 0, 3, 0.0),
            case("all right", 8, 8, 2, 1.0),
            case("k = 1", draw(16, 60, 7), draw(2, 15, 1), 1),
            case("k is the number of samples, one right", 7, 1, 7, 1.0),
            case("k is the number of samples, none right", 7, 0, 7, 0.0),
            case("too few wrong ones to fill k", 60, draw(55, 60, 2), draw(6, 30, 8), 1.0),
            case("dozens of samples, k = 8", draw(16, 60, 9), draw(2, 6, 3), 8),
            case("dozens of samples, k = 3", draw(12, 60, 10), draw(3, 7, 4), 3),
            case("two thousand samples, k = 1000", 2000, 1, 1000, 0.5),
            case("thousands of samples", 3000, draw(2, 5, 5), draw(1400, 1600, 11)),
            case("more than there are, none right", 4, 0, 5),
            case("more than there are, some right", draw(4, 60, 6), 2, 60),
            case("more than there are, all right", 3, 3, 4)]


def slow_pass_at_k(num_samples, num_correct, k):
    """One minus the chance that k samples, drawn one after the other, are all wrong."""
    if k > num_samples:
        raise ValueError
    all_wrong = 1.0
    for drawn in range(k):
        all_wrong *= max(num_samples - num_correct - drawn, 0) / (num_samples - drawn)
    return 1.0 - all_wrong


def pass_like(estimate, too_few=None):
    """A version of pass_at_k with another estimate, or another answer to k > num_samples."""
    def pass_at_k(num_samples, num_correct, k):
        if k > num_samples and too_few is None:
            raise ValueError(k)
        if k > num_samples:
            return too_few(num_samples, num_correct, k)
        return estimate(num_samples, num_correct, k)
    return pass_at_k


def unbiased_pass(n, c, k):
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def comb_of_floats(n, k):
    """n! / (k! (n - k)!) with a division that makes a float."""
    return math.factorial(n) / (math.factorial(k) * math.factorial(n - k)) if k <= n else 0.0


def pass_by_logarithms(num_samples, num_correct, k):
    """Chen et al. give their code as a product; sums of logarithms do it as well."""
    if k > num_samples:
        raise ValueError("too few samples")
    wrong = num_samples - num_correct
    if wrong < k:
        return 1.0
    terms = (math.log1p(-k / i) for i in range(wrong + 1, num_samples + 1))
    return -math.expm1(math.fsum(terms))


PASS_AT_K = Blank(
    FILE, "pass_at_k", pass_cases, slow_pass_at_k,
    formula="1 - C(n - c, k) / C(n, k), with n samples of which c are right",
    place=PLACE.format("pass_at_k"),
    mistakes=[
        Mistake("draws with replacement",
                "For k = 1 it agrees. | Can the same sample be drawn twice?",
                pass_like(lambda n, c, k: 1.0 - (1.0 - c / n) ** k)),
        Mistake("the share of right samples", "For k = 1 it agrees. | What does k change?",
                pass_like(lambda n, c, k: c / n)),
        Mistake("k times the share of right samples",
                "For k = 1 it agrees. | May chances be added up when several samples can be right "
                "at once?", pass_like(lambda n, c, k: min(1.0, k * c / n))),
        Mistake("all of k are right",
                "For k = 1 it agrees. | Must all of the k samples be right, or one?",
                pass_like(lambda n, c, k: math.comb(c, k) / math.comb(n, k))),
        Mistake("the chance that none is right",
                "Your value and the expected one add up to 1. | Which of two opposite events is "
                "pass@k?",
                pass_like(lambda n, c, k: math.comb(n - c, k) / math.comb(n, k))),
        Mistake("exactly one is right",
                "With one right sample it agrees. | At least one right sample, or exactly one?",
                pass_like(lambda n, c, k: c * math.comb(n - c, k - 1) / math.comb(n, k))),
        Mistake("yes or no",
                "Where the chance is 0 or 1 it agrees. | Does one right sample among n make sure "
                "that k of them have it?", pass_like(lambda n, c, k: float(c > 0))),
        Mistake("C(n, k) as a float",
                "With few samples it agrees. | How many digits has C(2000, 1000), and what is the "
                "largest float?",
                pass_like(lambda n, c, k: 1.0 - comb_of_floats(n - c, k) / comb_of_floats(n, k))),
        Mistake("divides by 0 where k > num_samples",
                "What is C(n, k) for k > n, and which error was promised there?",
                pass_like(unbiased_pass, unbiased_pass)),
        Mistake("sure of it where k > num_samples",
                "Can pass@5 be estimated from 4 samples? What should the function do?",
                pass_like(unbiased_pass, lambda n, c, k: 1.0)),
        Mistake("uses fewer samples where k > num_samples",
                "Can pass@5 be estimated from 4 samples? What should the function do?",
                pass_like(unbiased_pass, lambda n, c, k: unbiased_pass(n, c, n)))],
    right={"by logarithms": pass_by_logarithms})


BLANKS = [SUM_REWARD, ADVANTAGES, INFORMATIVE, TOKEN_LOSS, AGGREGATE, PASS_AT_K]
