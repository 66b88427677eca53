"""The pictures of exercises/WHY.md, drawn from the functions of answers/.

    python tests/why_pictures.py                  writes tests/pictures/why_*.svg
    python tests/why_pictures.py --out FOLDER     writes them elsewhere

Needs matplotlib (pip install matplotlib). The same numbers give the same files, to the letter."""

import argparse
import math
from pathlib import Path

import torch
from checks.core import load
from picture import start_drawing

ROOT = Path(__file__).resolve().parent.parent
ex1, ex2, ex3, ex4 = (load(ROOT / "answers", name)
                      for name in ("ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"))
BLUE, ORANGE, GREEN, RED, GREY = "#3070b0", "#e08020", "#2a9060", "#c03040", "#707070"
THREE = ["yes", "no", "maybe"]
f64 = {"dtype": torch.float64}


def with_slope(function, x):
    """A function of many numbers, each by itself -> its values and its slopes there."""
    x = x.clone().requires_grad_()
    y = torch.stack([function(one) for one in x])
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def axis(panel, **settings):
    panel.set(**settings)
    panel.grid(alpha=0.3)
    panel.axhline(0, color=GREY, linewidth=0.8)


def bars(panel, groups, names, colours, **settings):
    """Bars side by side: {label of the group: heights}."""
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, colours)):
        places = [g + (i - (len(names) - 1) / 2) * width for g in range(len(groups))]
        panel.bar(places, [heights[i] for heights in groups.values()], width * 0.9, label=name,
                  color=colour)
    panel.set_xticks(range(len(groups)), list(groups))
    axis(panel, **settings)


# ---- Curves -------------------------------------------------------------------------------------


def likelihood(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    p = torch.linspace(0.02, 1, 99, **f64)
    two = lambda one: torch.stack([one, 1 - one + 1e-12]).log()  # this token, or another
    labels = torch.tensor([[-100, 0]])
    loss = lambda one: ex1.sft_loss(torch.stack([two(one)] * 2).unsqueeze(0), labels)
    left.plot(p, [loss(one) for one in p], color=BLUE, linewidth=2)
    for at, name in (0.5, "first word, end"), (0.25, "second word"):
        left.plot(at, -math.log(at), "o", color=ORANGE)
        left.annotate(f"{name}: {-math.log(at):.2f}", (at, -math.log(at)), (10, 6),
                      textcoords="offset points")
    axis(left, title="The loss of a token", xlabel="p of the right token", ylabel="-log p")
    z = torch.tensor([0.25, 0.5, 0.25], **f64).log().requires_grad_()
    slope, = torch.autograd.grad(ex1.sft_loss(torch.stack([z, z]).unsqueeze(0), labels), z)
    right.bar(range(3), slope, 0.6, color=[GREEN, RED, RED])
    for i, text in enumerate(("-3/4", "1/2", "1/4")):
        right.annotate(text, (i, slope[i]), (0, -14 if i == 0 else 4), ha="center",
                       textcoords="offset points")
    right.set_xticks(range(3), ["right token\np = 1/4", "wrong\np = 1/2", "wrong\np = 1/4"])
    axis(right, title="Its slope for each logit", ylim=(-0.95, 0.7))
    return figure


def pairwise(pyplot):
    figure, panel = pyplot.subplots(figsize=(6.5, 3.4), layout="constrained")
    other = torch.zeros(1, **f64)
    loss = lambda difference: ex2.pairwise_loss(difference.unsqueeze(0), other)
    x = torch.linspace(-4, 4, 161, **f64)
    y, slope = with_slope(loss, x)
    panel.plot(x, y, color=BLUE, linewidth=2, label="loss, -log sigmoid(difference)")
    panel.plot(x, slope, color=ORANGE, linewidth=2, label="its slope, -P(rejected wins)")
    marks = torch.tensor([-math.log(3), 0, math.log(3)], **f64)
    for colour, heights in zip((BLUE, ORANGE), with_slope(loss, marks)):
        panel.plot(marks, heights, "o", color=colour)
    axis(panel, xlabel="score of the chosen answer minus score of the rejected one")
    panel.legend()
    return figure


def gradients_of_samples(rewards, baseline):
    """(3, 3): the gradient of log p of every answer, times its reward minus the baseline."""
    rows = []
    for answer, r in enumerate(rewards):
        z = torch.tensor([0.5, 0.25, 0.25], **f64).log().requires_grad_()
        logprobs = ex3.response_logprobs(z.repeat(1, 2, 1), torch.tensor([[answer]]))
        loss, _ = ex3.ppo_policy_loss(logprobs, logprobs.detach(), torch.full((1, 1), r - baseline),
                                      torch.ones(1, 1), 0.2)
        rows.append(-torch.autograd.grad(loss, z)[0])
    return torch.stack(rows)


def baseline(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    p, rewards = torch.tensor([0.5, 0.25, 0.25], **f64), [1.0, 2.0, 4.0]

    def variance(b):
        rows = gradients_of_samples(rewards, b)
        return ((rows - p @ rows).square().sum(dim=1) * p).sum().item()

    bare, less = (gradients_of_samples(rewards, b) for b in (0.0, 2.0))
    groups = {f"{name} drawn": (bare[i, 2].item(), less[i, 2].item())
              for i, name in enumerate(THREE)}
    groups["mean"] = ((p @ bare)[2].item(), (p @ less)[2].item())
    bars(left, groups, ["reward", "reward - 2"], [BLUE, ORANGE],
         title="One sample's gradient for the logit of maybe")
    left.legend(loc="upper left")
    x = [i / 10 for i in range(51)]
    right.plot(x, [variance(b) for b in x], color=BLUE, linewidth=2)
    for b, place in (0.0, (10, -3)), (2.0, (-8, 10)):
        right.plot(b, variance(b), "o", color=ORANGE)
        right.annotate(f"{variance(b):.4f}", (b, variance(b)), place, textcoords="offset points")
    axis(right, title="Variance of a sample's gradient", xlabel="baseline", ylim=(-0.2, 4.6))
    return figure


def clip(pyplot):
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="constrained")
    ratio = torch.linspace(0.3, 1.7, 141, **f64)
    for panel, advantage in zip(panels, (1.0, -1.0)):
        def objective(x):
            return -ex3.ppo_policy_loss(x.log().view(1, 1), torch.zeros(1, 1), torch.full(
                (1, 1), advantage), torch.ones(1, 1), 0.2)[0]

        y, slope = with_slope(objective, ratio)
        free = [a if s else math.nan for a, s in zip(y.tolist(), slope.tolist())]
        flat = [math.nan if s else a for a, s in zip(y.tolist(), slope.tolist())]
        panel.plot(ratio, free, color=BLUE, linewidth=2.5, label="has a slope")
        panel.plot(ratio, flat, color=RED, linewidth=2.5, label="flat: nothing to gain")
        panel.plot(1, advantage, "o", color=ORANGE)
        panel.annotate("before the first\nupdate", (1, advantage), (-12, 14),
                       textcoords="offset points", ha="right" if advantage > 0 else "left")
        panel.axvline(1 + 0.2 * advantage, color=GREY, linestyle=":")
        axis(panel, title=f"A {'>' if advantage > 0 else '<'} 0", xlabel="ratio, p / p_old")
        panel.legend(loc="lower right" if advantage > 0 else "lower left")
    panels[0].set(ylabel="objective (minus the loss)", ylim=(-0.1, 1.75))
    panels[1].set(ylim=(-1.8, 0.1))
    return figure


def gae(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained",
                                            width_ratios=[2, 3])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    values, mask = torch.tensor([[0.25, 0.5, 0.75, 0.5]]), torch.ones(1, 4)
    left.step(range(6), [*values[0].tolist(), 0.0, 0.0], where="post", color=BLUE, linewidth=2,
              label="V before the token")
    left.plot(3.5, 1, "*", color=ORANGE, markersize=13, label="score, at the last token")
    left.set_xticks([0.5, 1.5, 2.5, 3.5, 4.5], ["1", "2", "3", "4", "past\nthe end"])
    axis(left, title="Values and reward", ylim=(-0.05, 1.75))
    left.legend(loc="upper left")
    found = [ex3.compute_gae(rewards, values, mask, 1.0, lam)[0][0].tolist() for lam in (0, 0.5, 1)]
    bars(right, {f"token {t + 1}": [row[t] for row in found] for t in range(4)},
         ["lambda 0", "lambda 0.5", "lambda 1"], [BLUE, GREEN, ORANGE], title="Advantages",
         ylim=(-0.3, 1.0))
    right.legend(ncols=3, loc="upper center")
    return figure


def group(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    k = range(1, 8)
    for scale, style in ("std", "-"), ("none", "--"):
        rewards = [torch.tensor([1.0] * n + [0.0] * (8 - n)) for n in k]
        found = [ex4.group_advantages(row, 8, scale) for row in rewards]
        extra = "" if scale == "std" else ", without std"
        for i, colour, name in (0, GREEN, "right"), (-1, RED, "wrong"):
            left.plot(k, [row[i].item() for row in found], style, color=colour, marker="o",
                      markersize=4, label=name + extra)
    axis(left, title="Advantage in a group of eight", xlabel="right answers", ylim=(-2.8, 4.6))
    left.legend(ncols=2, loc="upper center", fontsize=9)
    mask = torch.zeros(2, 8)
    mask[0, :2] = mask[1] = 1
    weights = {}
    for average, name in ("sequence", "GRPO"), ("token", "DAPO"), ("constant", "Dr. GRPO"):
        loss = torch.zeros(2, 8, requires_grad=True)
        ex4.aggregate_loss(loss, mask, average, max_length=10).backward()
        weights[f"{average}\n({name})"] = loss.grad[:, 0].tolist()
    bars(right, weights, ["of an answer of 2 tokens", "of an answer of 8 tokens"], [BLUE, ORANGE],
         title="What a token weighs", ylim=(0, 0.3))
    right.legend()
    return figure


def kl(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    log_r = torch.linspace(-3, 3, 121, **f64)
    colours = dict(k1=BLUE, k2=GREEN, k3=ORANGE)
    for name, colour in colours.items():
        left.plot(log_r, ex3.kl_penalty(torch.zeros(121, **f64), log_r, name), color=colour,
                  linewidth=2, label=name)
    axis(left, title="One token's estimate", xlabel="log r = log p_ref - log p", ylim=(-3.2, 9))
    left.legend()
    p, q = torch.tensor([0.5, 0.25, 0.25], **f64), torch.tensor([0.25, 0.25, 0.5], **f64)

    def mean_slope(name):
        """Of the estimate as a loss, over the tokens that the policy draws."""
        total = 0
        for k in range(3):
            z = p.log().requires_grad_()
            one = ex3.kl_penalty(z.log_softmax(0)[k], q.log()[k], name)
            total = total + p[k] * torch.autograd.grad(one, z)[0]
        return total.tolist()

    z = p.log().requires_grad_()
    logp = z.log_softmax(0)
    truth, = torch.autograd.grad((logp.exp() * (logp - q.log())).sum(), z)
    rows = [truth.tolist()] + [mean_slope(name) for name in colours]
    bars(right, {f"logit of {THREE[k]}": [row[k] for row in rows] for k in range(3)},
         ["KL itself", *(f"{name} as a loss" for name in colours)], [GREY, *colours.values()],
         title="Mean gradient", ylim=(-0.3, 0.36))
    right.legend(fontsize=9)
    return figure


# ---- Drawings -----------------------------------------------------------------------------------


def box(panel, x, y, text, colour, width=1.9, height=0.56):
    """A box with its middle at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    panel.add_patch(FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, edgecolor=colour, facecolor=colour + "22",
        boxstyle="round,pad=0,rounding_size=0.1", linewidth=1.4))
    panel.text(x, y, text, ha="center", va="center", fontsize=9)


def arrows(panel, *ends):
    for start, end in ends:
        panel.annotate("", end, start, arrowprops=dict(
            arrowstyle="-|>", color=GREY, linewidth=1.2, shrinkA=0, shrinkB=0))


def drawing(pyplot, width, height):
    """A panel of that many inches, one unit an inch, without axes."""
    figure = pyplot.figure(figsize=(width, height))
    panel = figure.add_axes([0, 0, 1, 1])
    panel.set(xlim=(0, width), ylim=(0, height))
    panel.axis("off")
    return figure, panel


def ppo_step(pyplot):
    figure, panel = drawing(pyplot, 10, 7)
    columns = [1.25, 3.6, 5.95, 8.3]
    for y, text in ((6.8, "1. Rollout"), (3.7, "2. Rewards"), (2.35, "3. Advantages"),
                    (1.3, "4. Learning")):
        panel.text(9.85, y, text, ha="right", va="top", fontsize=11, weight="bold")
        panel.axhline(y + 0.12, color=GREY, linewidth=0.6, linestyle=":")
    for x, text, colour in ((1.25, "prompt", GREY), (3.6, "policy writes", BLUE),
                            (5.95, "response", GREY)):
        box(panel, x, 6.35, text, colour)
    arrows(panel, ((2.2, 6.35), (2.65, 6.35)), ((4.55, 6.35), (5.0, 6.35)))
    panel.plot([1.25, 8.3], [5.8, 5.8], color=GREY, linewidth=1.2)
    panel.plot([5.95, 5.95], [6.07, 5.8], color=GREY, linewidth=1.2)
    panel.text(8.35, 5.86, "prompt and response", ha="right", fontsize=8.5, color=GREY)
    for x, model, result in zip(columns, ("value head", "policy", "reference (frozen)",
                                          "reward model (frozen)"),
                                ("V, one a token", "log p, one a token", "log p_ref, one a token",
                                 "score, one an answer")):
        box(panel, x, 5.25, model, BLUE)
        box(panel, x, 4.25, result, GREY)
        arrows(panel, ((x, 5.8), (x, 5.53)), ((x, 4.97), (x, 4.53)))
    box(panel, 4.77, 3.4, "KL = log p - log p_ref", GREY, width=2.1)
    box(panel, 5.9, 2.7, "rewards = -beta KL, plus the score at the last token", GREY, width=4.1,
        height=0.4)
    arrows(panel, ((3.6, 3.97), (4.3, 3.68)), ((5.95, 3.97), (5.25, 3.68)),
           ((4.77, 3.12), (4.77, 2.9)), ((8.3, 3.97), (7.4, 2.9)))
    box(panel, 1.25, 1.75, "returns = A + V", GREY)
    box(panel, 4.77, 1.75, "advantages A (GAE)", GREY)
    arrows(panel, ((4.77, 2.5), (4.77, 2.03)), ((1.25, 3.97), (1.25, 2.03)),
           ((1.6, 3.97), (3.9, 2.03)), ((3.82, 1.75), (2.2, 1.75)))
    box(panel, 1.25, 0.6, "value loss:\nV now against returns", ORANGE)
    box(panel, 4.77, 0.6, "policy loss:\nA, ratio, clip", ORANGE)
    box(panel, 7.75, 0.6, "ratio = p now / p when sampled", BLUE, width=2.7)
    arrows(panel, ((1.25, 1.47), (1.25, 0.88)), ((4.77, 1.47), (4.77, 0.88)),
           ((6.4, 0.6), (5.72, 0.6)))
    panel.text(5.0, 1.17, "whitened", fontsize=8.5, color=GREY, va="center")
    panel.text(4.77, 0.12, "several epochs of minibatches, then a new rollout", ha="center",
               fontsize=8.5, color=GREY)
    return figure


def grpo_group(pyplot):
    figure, panel = drawing(pyplot, 9.6, 4.4)
    prompt = "What is 27 + 15?"
    answers = ["42", "32", "42.", "52", "41", "042", "42", "forty-two"]
    rewards = torch.tensor([ex4.sum_reward(prompt, text) for text in answers])
    advantages = ex4.group_advantages(rewards, 8)
    for x, text in (1.1, "prompt"), (3.5, "eight answers"), (5.0, "reward"), (8.15, "advantage"):
        panel.text(x, 4.15, text, ha="center", va="center", fontsize=11, weight="bold")
    box(panel, 1.1, 2.1, prompt, GREY, width=1.8)
    panel.plot([7.9, 7.9], [0.3, 3.9], color=GREY, linewidth=0.8)
    for i, (text, reward, a) in enumerate(zip(answers, rewards.tolist(), advantages.tolist())):
        y, colour = 3.7 - 0.46 * i, GREEN if reward else RED
        box(panel, 3.5, y, text, BLUE, width=1.3, height=0.36)
        arrows(panel, ((2.0, 2.1), (2.85, y)), ((4.15, y), (4.75, y)))
        panel.text(5.0, y, f"{reward:.0f}", ha="center", va="center", fontsize=11, color=colour)
        panel.barh(y, a, 0.3, left=7.9, color=colour)
        panel.text(7.9 + a + (0.08 if a > 0 else -0.08), y, f"{a:+.2f}", va="center", fontsize=9,
                   ha="left" if a > 0 else "right")
    box(panel, 6.1, 2.1, f"mean {rewards.mean():.3f}\nstd {rewards.std():.3f}", GREY, width=1.15)
    arrows(panel, ((5.2, 2.1), (5.52, 2.1)))
    return figure


PICTURES = {"why_likelihood": likelihood, "why_pairwise": pairwise, "why_baseline": baseline,
            "why_clip": clip, "why_gae": gae, "why_ppo_step": ppo_step,
            "why_grpo_group": grpo_group, "why_group": group, "why_kl": kl}


def draw_all(folder):
    """Writes all pictures -> their paths."""
    pyplot, paths = start_drawing(), []
    for name, picture in PICTURES.items():
        figure = picture(pyplot)
        paths.append(Path(folder) / f"{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
        pyplot.close(figure)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "tests" / "pictures"), help="the folder")
    for path in draw_all(parser.parse_args().out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
