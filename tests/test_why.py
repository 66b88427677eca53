"""The numbers of exercises/WHY.md. Every table after a mark <!-- example NAME --> is computed here,
with the functions of answers/ and by hand, and so is every decimal number between the tables."""

import itertools
import math
import re

import pytest
import torch
from checks.core import load
from conftest import ROOT

if not (ROOT / "answers").is_dir():
    pytest.skip("there are no answers here to compute with", allow_module_level=True)
TEXT = (ROOT / "exercises" / "WHY.md").read_text(encoding="utf-8")
ex1, ex2, ex3, ex4 = (load(ROOT / "answers", name)
                      for name in ("ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"))
NUMBER = r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.])-?\d+(?:\.\d+)?(?:/\d+)?(?!\w)"
log = math.log
f64 = {"dtype": torch.float64}
EXAMPLES = {}  # name -> function that returns the table's numbers, a list a row


def example(function):
    EXAMPLES[function.__name__.replace("_", " ")] = function
    return function


def tensor(*rows):
    return torch.tensor(rows, **f64)


def same(computed, by_hand):
    """The two agree -> one of them, as lists of Python numbers."""
    computed, by_hand = (x.tolist() if torch.is_tensor(x) else list(x) for x in (computed, by_hand))
    assert computed == pytest.approx(by_hand, abs=1e-9)
    return by_hand


def slopes(function, *at):
    """The gradient of a function of one tensor, at these numbers."""
    x = tensor(*at).requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


# ---- Lesson 1 -----------------------------------------------------------------------------------


@example
def likelihood():
    """Tokens 1 and 2, then the end token 3; 0 is the prompt's."""
    right, wrong = [1 / 2, 1 / 4, 1 / 2], [0.1]
    rows = [[0.7, 0.1, 0.1, 0.1]]  # position 0 predicts a token without a label
    for token, p in zip((1, 2, 3), right):
        rows.append([p if i == token else (1 - p) / 3 for i in range(4)])
    logits = tensor(rows + [wrong * 4]).log()  # the end token's own position predicts nothing
    ids, labels = ex1.build_labels([0, 0], [1, 2], 3, 10)
    loss = ex1.sft_loss(logits, torch.tensor([labels])).item()
    assert loss == pytest.approx(4 / 3 * log(2)) and len(ids) == 5
    perplexity = ex1.corpus_perplexity(tensor(loss), torch.tensor([3])).item()
    assert perplexity == pytest.approx(16 ** (1 / 3)) == pytest.approx((1 / 16) ** (-1 / 3))
    surprise = [ex1.sft_loss(logits, torch.tensor([[-100] * (t + 1) + [token] + [-100] * (3 - t)]))
                for t, token in ((1, 1), (2, 2), (3, 3))]
    losses = same(torch.stack(surprise), [log(2), 2 * log(2), log(2)])
    return [[0], *([t + 1, p, loss] for t, (p, loss) in enumerate(zip(right, losses)))]


@example
def slopes_of_the_loss():
    p = [1 / 4, 1 / 2, 1 / 4]
    labels = torch.tensor([[-100, 0]])
    found = slopes(lambda z: ex1.sft_loss(torch.stack([z, z]).unsqueeze(0), labels), *map(log, p))
    return [p, same(found, [p[0] - 1, p[1], p[2]])]


EXAMPLES["slopes"] = EXAMPLES.pop("slopes of the loss")


# ---- Lesson 2 -----------------------------------------------------------------------------------


@example
def pairs():
    rows = []
    for difference, chance in (log(3), 3 / 4), (0.0, 1 / 2), (-log(3), 1 / 4):
        other = tensor(7.0)
        found = [ex2.preference_probability(other + difference, other).item(),
                 ex2.pairwise_loss(other + difference, other).item(),
                 slopes(lambda s: ex2.pairwise_loss(s, other), 7 + difference).item()]
        rows.append([difference, *same(found, [chance, -log(chance), chance - 1])])
    return rows


@example
def last_token():
    scores = tensor([0.5, 1.5, 9.0], [0.5, -0.5, -1.0])
    pooled = ex2.pool_scores(scores, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    return [row + [score] for row, score in zip(scores.tolist(), same(pooled, [1.5, -1.0]))]


@example
def four_votes():
    rows = []
    for a, b in (log(3), 0), (log(3) + 100, 100), (2 * log(3), 0), (0, 0):
        votes = lambda s: (s[[0, 0, 0, 1]], s[[1, 1, 1, 0]])  # chosen, rejected
        chance = math.exp(a - b) / (1 + math.exp(a - b))
        mean = ex2.pairwise_loss(*votes(tensor(a, b))).item()
        slope = slopes(lambda s: ex2.pairwise_loss(*votes(s), count=1), a, b)[0].item()
        by_hand = -(3 * log(chance) + log(1 - chance)) / 4, -3 * (1 - chance) + chance
        rows.append([a, b, chance, *same([mean, slope], by_hand)])
    return rows


# ---- Lesson 3 -----------------------------------------------------------------------------------

P, R = [1 / 2, 1 / 4, 1 / 4], [1.0, 2.0, 4.0]  # the model with three answers, and their rewards


def sample_gradient(answer, weight, p=P):
    """weight x the gradient of log p(answer): what PPO's first update does with one sample."""
    def objective(z):
        logprobs = ex3.response_logprobs(z.repeat(1, 2, 1), torch.tensor([[answer]]))
        advantages, mask = tensor([weight]), tensor([1.0])
        return -ex3.ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)[0]

    by_hand = [weight * ((j == answer) - p[j]) for j in range(3)]
    return same(slopes(objective, *map(log, p)), by_hand)


def mean_gradient(weights, p=P):
    parts = [sample_gradient(k, weights[k], p) for k in range(3)]
    return [sum(p[k] * parts[k][j] for k in range(3)) for j in range(3)]


def variance(rewards, baseline):
    weights = [r - baseline for r in rewards]
    mean = mean_gradient(weights)
    return sum(P[k] * (x - m) ** 2 for k in range(3)
               for x, m in zip(sample_gradient(k, weights[k]), mean))


def best_baseline():
    """Where the variance, a parabola in the baseline, is lowest."""
    size = [sum(x * x for x in sample_gradient(k, 1)) for k in range(3)]
    best = sum(p * s * r for p, s, r in zip(P, size, R)) / sum(p * s for p, s in zip(P, size))
    assert variance(R, best - 0.1) > variance(R, best) < variance(R, best + 0.1)
    return best


@example
def three_answers():
    expected = sum(p * r for p, r in zip(P, R))
    found = slopes(lambda z: (z.softmax(0) * tensor(*R)).sum(), *map(log, P))
    by_hand = [p * (r - expected) for p, r in zip(P, R)]
    assert expected == 2 and by_hand == pytest.approx(mean_gradient(R))
    return [P, R, [p * r for p, r in zip(P, R)], same(found, by_hand)]


@example
def baseline():
    rows = [[P[k], *sample_gradient(k, R[k]), *sample_gradient(k, R[k] - 2)] for k in range(3)]
    return rows + [mean_gradient(R) + mean_gradient([r - 2 for r in R])]


@example
def variances():
    more = [r + 10 for r in R]
    return [[*r, b, variance(r, b)] for r, b in ((R, 0), (R, 2), (more, 0), (more, 12))]


EXAMPLES["variance"] = EXAMPLES.pop("variances")


@example
def ratio():
    new = [1 / 4, 1 / 4, 1 / 2]
    old_logprobs, advantages = tensor(P).log(), tensor(R)
    ratios = [q / p for p, q in zip(P, new)]
    weighted = -ex3.ppo_policy_loss(  # each answer as often as it is drawn
        tensor(new).log(), old_logprobs, advantages, tensor(P), 10.0, count=1)[0].item()
    parts = [p * x * r for p, x, r in zip(P, ratios, R)]
    direct = [q * r for q, r in zip(new, R)]
    assert weighted == pytest.approx(sum(parts)) == pytest.approx(sum(direct))
    return [ratios, parts + [sum(parts)], direct + [sum(direct)]]


@example
def clip():
    rows = []
    for advantage, at, loss, slope in ((1, 1.5, -1.2, 0), (1, 0.5, -0.5, -1),
                                       (-1, 1.5, 1.5, 1), (-1, 0.5, 0.8, 0)):
        one = lambda x: ex3.ppo_policy_loss(
            x.log().unsqueeze(0), tensor([0.0]), tensor([advantage]), tensor([1.0]), 0.2)[0]
        other = lambda x: ex4.grpo_token_loss(
            x.log().unsqueeze(0), tensor([0.0]), None, tensor(advantage), 0, 0.2, 0.2).sum()
        for function in one, other:
            same([function(tensor(at)), slopes(function, at).item()], [loss, slope])
        rows.append([advantage, at, loss, slope])
    return rows


@example
def gae():
    rewards, values = [0.0, 0.0, 0.0, 1.0], [0.25, 0.5, 0.75, 0.5]
    delta = [r + v_next - v for r, v, v_next in zip(rewards, values, values[1:] + [0.0])]
    rows, returns = [[1, 2, 3, 4], rewards, values, delta], []
    for lam in 0, 0.5, 1:
        found = ex3.compute_gae(tensor(rewards), tensor(values), torch.ones(1, 4, **f64), 1.0, lam)
        advantages = [sum(lam ** (later - t) * delta[later] for later in range(t, 4))
                      for t in range(4)]
        rows.append(same(found[0][0], advantages))
        returns.append(same(found[1][0], [a + v for a, v in zip(advantages, values)]))
    assert [1 - v for v in values] == rows[-1]  # lambda 1: the return minus V
    return rows[1:] + [returns[0], returns[2]]


# ---- Lesson 4 -----------------------------------------------------------------------------------


@example
def own_reward():
    rewards = [1.0, 0.0, 0.0, 0.0]
    found = ex4.group_advantages(tensor(*rewards), 4, scale="none")
    others = [r - (sum(rewards) - r) / 3 for r in rewards]
    return [rewards, same(found, [r - 1 / 4 for r in rewards]), same(found * 4 / 3, others)]


@example
def easy_and_hard():
    rows = []
    for right in 1, 4, 7, 8:
        share, rewards = right / 8, tensor(*([1.0] * right + [0.0] * (8 - right)))
        std = math.sqrt(share * (1 - share) * 8 / 7)
        bare = [1 - share, -share]
        scaled = [a / (std + 1e-4) for a in bare]
        ends = [0, -1] if right < 8 else [0]
        for scale, by_hand in ("std", scaled), ("none", bare):
            same(ex4.group_advantages(rewards, 8, scale)[ends], by_hand[:len(ends)])
        assert rewards.std().item() == pytest.approx(std)
        rows.append([right, std, *scaled[:len(ends)], *bare[:len(ends)]])
    return rows


@example
def averages():
    mask = torch.zeros(2, 8, **f64)
    mask[0, :2] = mask[1] = 1
    rows = []
    for average, by_hand in (("sequence", [1 / 4, 1 / 16]), ("token", [1 / 10, 1 / 10]),
                             ("constant", [1 / 20, 1 / 20])):
        found = torch.autograd.functional.jacobian(
            lambda loss: ex4.aggregate_loss(loss, mask, average, max_length=10), mask)
        assert not found[0, 2:].any()
        a, b = same(found[:, 0], by_hand)
        rows.append([a, b, 2 * a, 8 * b])
    return rows


@example
def clip_high():
    rows = []
    for old in 0.01, 0.5, 0.9:
        bounds = []
        for clip_high in 0.2, 0.28:
            bound = old * (1 + clip_high)
            loss = lambda p: ex4.grpo_token_loss(p.log().unsqueeze(0), tensor([old]).log(), None,
                                                 tensor(1.0), 0, 0.2, clip_high).sum()
            assert slopes(loss, bound * 0.999) < 0 and slopes(loss, bound * 1.001) == 0
            bounds.append(bound)
        rows.append([old, *bounds])
    return rows


# ---- The KL penalty -----------------------------------------------------------------------------

Q = [1 / 4, 1 / 4, 1 / 2]  # the reference


def estimates(p, q):
    """{"k1": of every token, ...}"""
    by_hand = {"k1": [log(a / b) for a, b in zip(p, q)],
               "k2": [log(a / b) ** 2 / 2 for a, b in zip(p, q)],
               "k3": [b / a - 1 - log(b / a) for a, b in zip(p, q)]}
    return {name: same(ex3.kl_penalty(tensor(p).log(), tensor(q).log(), name)[0], by_hand[name])
            for name in by_hand}


def mean(numbers, p=P):
    return sum(a * b for a, b in zip(numbers, p))


def spread(numbers, p=P):
    return math.sqrt(mean([(x - mean(numbers, p)) ** 2 for x in numbers], p))


@example
def estimators():
    r = [q / p for p, q in zip(P, Q)]
    less = [x - 1 for x in r]
    return [P, Q, r + [mean(r)], less + [mean(less)],
            *(x + [mean(x)] for x in estimates(P, Q).values())]


EXAMPLES["estimates"] = EXAMPLES.pop("estimators")
RARE = [0.999, 0.001]


@example
def tail():
    found = estimates(RARE, [0.5, 0.5])
    parts = [p * x for p, x in zip(RARE, found["k3"])]
    return [found["k1"] + [mean(found["k1"], RARE)], found["k3"] + [mean(found["k3"], RARE)],
            parts + [sum(parts)]]


@example
def one_token():
    return [[q, p, q / p, *(estimates([p], [q])[name][0] for name in ("k1", "k3"))]
            for q, p in ((0.9952, 0.0381), (0.9952, 0.000298))]


@example
def gradients():
    kl = mean(estimates(P, Q)["k1"])
    true = [p * (log(p / q) - kl) for p, q in zip(P, Q)]
    forward = [p - q for p, q in zip(P, Q)]
    for target, q, p in (true, Q, None), (forward, None, Q):  # by differentiating the KL itself
        first = lambda z: z.softmax(0) if p is None else tensor(*p)
        second = lambda z: z.softmax(0) if q is None else tensor(*q)
        divergence = lambda z: (first(z) * (first(z) / second(z)).log()).sum()
        same(slopes(divergence, *map(log, P)), target)
    in_reward = {name: mean_gradient(estimates(P, Q)[name]) for name in ("k1", "k3")}

    def as_loss(name):
        """The mean gradient of the estimate, where it is differentiated."""
        means = torch.zeros(3, **f64)
        for k in range(3):
            means += P[k] * slopes(lambda z: ex3.kl_penalty(
                z.log_softmax(0)[k], tensor(*Q).log()[k], name), *map(log, P))
        return means

    return [true, same(in_reward["k1"], true),
            same(in_reward["k3"], [a - b for a, b in zip(true, forward)]),
            same(as_loss("k1"), [0, 0, 0]), same(as_loss("k2"), true), same(as_loss("k3"), forward)]


# ---- What stands between the tables -------------------------------------------------------------


def setting(lesson, name):
    """A default, read and not imported: the lessons' libraries take seconds."""
    text = next(ROOT.glob(f"lesson{lesson}_*.py")).read_text(encoding="utf-8")
    return float(re.search(rf"^    {name}: float = flag\(([\d.]+),", text, re.MULTILINE)[1])


def said():
    """{page: the numbers in its sentences that are in none of its tables}."""
    k1, k3 = (estimates(RARE, [0.5, 0.5])[name] for name in ("k1", "k3"))
    batches = [(99 * x[0] + x[1]) / 100 for x in (k3, k1)]
    clip = setting(3, "clip_range")
    low, high = setting(4, "clip_low"), setting(4, "clip_high")
    assert (low, high) == (0.2, 0.28)
    return {
        "Why it works": [log(2), log(3)],
        "Lesson 1: maximum likelihood": [1000 * log(1 / 4), 4 / 3 * log(2), 16 ** (1 / 3)],
        "Lesson 2: which of two answers is better": [],
        "Lesson 3: from a reward to a gradient": [
            variance(R, 0) / variance(R, 2), best_baseline(),
            clip, 1 - clip, 1 + clip, setting(3, "lam"), 0.9, 0.9 ** 3, 0.9 ** 39],
        "Lesson 4: the group is the baseline": [
            EXAMPLES["easy and hard"]()[1][1] / EXAMPLES["easy and hard"]()[0][1],
            0.1, 1 + low, 1 + high],
        "The KL penalty": [spread(estimates(P, Q)["k1"]), spread(estimates(P, Q)["k3"]),
                           *RARE, 0.999 ** 100, *batches, 21.17, 1.92],  # the last two: from a log
        "Glossary": [], "Papers": []}


def decimals(text):
    """The numbers of a text, as they are written."""
    return re.findall(NUMBER, re.sub(r"`|section [\d.]+", "", text))


def shown(written):
    """'-3/4' or '3,339.6' -> its value, and by how much it may be off, being rounded."""
    top, _, bottom = written.replace(",", "").partition("/")
    digits = len(top.partition(".")[2])
    return float(top) / float(bottom or 1), 0.5 * 10.0 ** -digits * 1.001 if digits else 1e-6


def agrees(written, value):
    number, error = shown(written)
    return abs(number - value) <= error


def tables():
    """{name: a list a row of its numbers, as they are written}."""
    found = {}
    for name, lines in re.findall(r"<!-- example (.*?) -->\n((?:\|.*\n)+)", TEXT):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")]
                for line in lines.splitlines()[2:]]
        assert name not in found
        found[name] = [[number for cell in row if not re.search(r"[a-z]{2}", re.sub(
            r"\band\b|\(padding\)", "", cell)) for number in decimals(cell)] for row in rows]
    return found


def pages():
    """{heading: its sentences}, without tables, marks and formulas in blocks."""
    text = re.sub(r"^```\n.*?^```\n", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\|.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)", "", text)
    return {part.partition("\n")[0]: " ".join(part.partition("\n")[2].split())
            for part in re.split(r"^##? ", text, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_table_is_what_the_functions_compute(name):
    computed, written = EXAMPLES[name](), tables()[name]
    assert len(computed) == len(written)
    for numbers, texts in zip(computed, written):
        assert len(numbers) == len(texts), (numbers, texts)
        wrong = [(text, x) for text, x in zip(texts, numbers) if not agrees(text, x)]
        assert not wrong, f"{name}: WHY.md says {texts}, computed is {numbers}"


def test_every_table_of_numbers_is_an_example():
    assert set(tables()) == set(EXAMPLES)
    alone = re.findall(r"(?<!-->)\n(\|.*\n\| ---.*\n)", TEXT)
    assert [line.split("\n")[0] for line in alone] == ["| word | what it is here |"] * 2


@pytest.mark.parametrize("page", pages())
def test_every_decimal_number_in_a_sentence_is_computed(page):
    start = TEXT.index(f"# {page}\n")
    names = re.findall(r"<!-- example (.*?) -->", re.split(r"\n## ", TEXT[start:])[0])
    known = said()[page] + [x for name in names for row in EXAMPLES[name]() for x in row]
    for written in decimals(pages()[page]):
        if "." in written or "," in written:
            assert any(agrees(written.lstrip("-"), abs(x)) for x in known), (page, written)


def test_the_sentences_about_whole_numbers():
    text = " ".join(pages().values())
    steps = [math.ceil(log(0.1 / 0.01) / log(factor)) for factor in (1.2, 1.28)]
    assert f"From 0.01 to 0.1 takes {steps[0]} steps at a factor of 1.2, and {steps[1]} at" in text
    pushed = EXAMPLES["one token"]()[1][-1]
    assert pushed / 500 > 6 and "is more than 6 for *every* token" in text
    part = EXAMPLES["tail"]()[2]
    assert 0.70 < part[1] / part[2] < 0.75 and "Nearly three quarters of k3's mean" in text
    assert 0.25 ** 1000 == 0  # even in float64


def test_the_groups_gradient_is_shorter_by_one_gth():
    """All 9 groups of two answers of the model with three: half the gradient of J."""
    total = torch.zeros(3, **f64)
    for group in itertools.product(range(3), repeat=2):
        advantages = ex4.group_advantages(tensor(*(R[k] for k in group)), 2, scale="none").tolist()
        for k, advantage in zip(group, advantages):
            total += P[group[0]] * P[group[1]] * tensor(*sample_gradient(k, advantage)) / 2
    same(total, [-1 / 4, 0, 1 / 4])


def test_every_page_has_a_picture_and_every_picture_a_page():
    linked = re.findall(r"!\[[^\]]{40,}\]\(\.\./tests/pictures/(why_\w+\.svg)\)", TEXT)
    assert sorted(linked) == sorted(path.name for path in (ROOT / "tests/pictures").glob("why_*"))
    titles = re.findall(r"^## (.*)", TEXT, re.MULTILINE)
    for page in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:6]:
        assert "![" in page, page[:40]
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert anchors[:6] == re.findall(r"^\d\. \[.*?\]\(#(.*?)\)", TEXT, re.MULTILINE)


def test_the_readme_says_what_its_drawing_of_a_group_shows():
    answers = ["42", "32", "42.", "52", "41", "042", "42", "forty-two"]
    rewards = tensor(*(ex4.sum_reward("What is 27 + 15?", text) for text in answers))
    right, wrong = ex4.group_advantages(rewards, 8)[:2].tolist()
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"right answers {right:+.2f}, wrong ones {wrong:+.2f}.]" in text
    drawn = (ROOT / "tests" / "why_pictures.py").read_text(encoding="utf-8")
    assert f"answers = {answers}".replace("'", '"') in drawn
