"""The KL estimators as losses: does the gradient of an estimate estimate the gradient?

Schulman 2020 ("Approximating KL divergence") compares k1, k2 and k3 as values: k1 and k3 have the
right mean, k3 the smaller variance. Shah et al. 2025 ("A comedy of estimators: on KL regularization
in RL training of LLMs") ask for their gradients, with another answer: as a loss k1's is zero on
average, and k3's is that of another divergence. Tang and Munos 2025 ("On a few pitfalls in KL
divergence gradient estimation for RL") add that a sum over tokens leaves out what a token does to
the later ones. Here the expectations are exact:

1. at the states that a PPO run's policy visits (64 reviews, 1,000 tokens), over the vocabulary: the
   value's mean and standard deviation, and the gradient in all weights against that of the KL; for
   policies between 0.001 and 1 nat a token from the reference;
2. for whole answers, over all answers to 32 sums: the gradient against that of the answer's KL;
3. training: lesson 3 with k2 or k3 in its loss (`kl_penalty` exchanged), and with k1 in the
   reward.

    python answers/experiments/kl_estimators.py            five seeds, 8 minutes and runs of 2 and 5
    python answers/experiments/kl_estimators.py --quick    one seed, fewer arms
"""

import copy
import statistics
import sys
from pathlib import Path

import torch
import exact
import lab
from lab import GOLD, KL, SCORE

KS = ("k1", "k2", "k3")
COEFS = (0, 0.01, 0.05, 0.1, 0.3)  # of the PPO runs whose last policies are looked at


def gradient(lm, loss):
    parts = torch.autograd.grad(loss, list(lm.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def compare(lm, truth, losses):
    """-> {name: (cosine to the gradient of the true KL, norm over its norm)}"""
    truth, found = gradient(lm, truth), {}
    for name, loss in losses.items():
        grad = gradient(lm, loss)
        found[name] = (torch.cosine_similarity(grad.double(), truth.double(), dim=0).item(),
                       (grad.norm() / truth.norm()).item())
    return found


def tokens(lesson, reference, policy, tokenizer, seed):
    """At the states of 64 reviews by the policy -> its KL a token and, for each estimator: (cosine,
    norm, mean of the value over the KL, standard deviation of the value of one token)."""
    torch.manual_seed(seed)
    data = lesson.load_prompts(lesson.Config(), tokenizer)[0] * 4
    ids, prompt_mask, response = lesson.generate(
        policy, tokenizer, [row["prompt_ids"] for row in data], 40)
    mask = lesson.response_mask(response, policy.generation_config.eos_token_id)
    inputs = (torch.cat([ids, response], dim=1), torch.cat([prompt_mask, mask.long()], dim=1),
              response.shape[1])
    logp, logq = ([lesson.response_logits(lm, *inputs)[:, :-1].log_softmax(dim=-1)][0][mask > 0]
                  for lm in (policy, reference))  # (N, V)
    p = logp.detach().exp()
    kl = (logp.exp() * (logp - logq)).sum(dim=-1)  # (N,)
    values = {k: lesson.kl_penalty(logp, logq, k) for k in KS}  # (N, V)
    found = compare(policy, kl.mean(), {k: (p * x).sum(dim=-1).mean() for k, x in values.items()})
    for k, x in values.items():
        mean = (p * x.detach()).sum(dim=-1)
        variance = (p * (x.detach() - mean[:, None]).square()).sum(dim=-1).mean()
        found[k] += ((mean.mean() / kl.mean()).item(), variance.sqrt().item())
    return kl.mean().item(), found


def whole_answers(reference, policy, tokenizer):
    """All answers to 32 held-out sums: the estimators' sum over an answer's tokens, as a loss,
    against the gradient of the KL of answers -> its mean in nats, {k: (cosine, norm)}."""
    lesson = lab.load_lesson(4)
    data = lesson.load_grpo_prompts(lesson.Config(), tokenizer)[1][:32]
    answers = exact.enumerate_answers(lesson, policy, tokenizer, data, 1e-4)
    logp, logq = (lesson.response_logprobs(lesson.response_logits(
        lm, answers.ids, answers.attention_mask, 4), answers.response) * answers.mask
        for lm in (policy, reference))  # (N, T)
    chance = logp.double().sum(dim=1).exp()
    kl = (chance * (logp - logq).sum(dim=1)).sum() / len(data)
    kl_penalty = lab.load_lesson(3).kl_penalty
    losses = {k: (chance.detach() * (kl_penalty(logp, logq, k) * answers.mask).sum(dim=1)).sum()
              / len(data) for k in KS}
    # As a reward, k1 of the whole answer is constant, and the answer's probability has the slope.
    losses["k1 in the reward"] = (chance * (logp - logq).sum(dim=1).detach()).sum() / len(data)
    return kl.item(), compare(policy, kl, losses)


def exchanged(estimator):
    """Lesson 3 as a command, with another estimator's slope where its loss has k3."""
    lesson = lab.load_lesson(3)
    original = lesson.kl_penalty

    def kl_penalty(logprobs, ref_logprobs, name="k1"):
        value = original(logprobs, ref_logprobs, name)
        if name == "k3" and logprobs.requires_grad:  # k3's value for the log, the other's slope
            slope = original(logprobs, ref_logprobs, estimator)
            value = value.detach() + slope - slope.detach()
        return value

    lesson.kl_penalty = kl_penalty
    lesson.run_lesson()


def coefs(args):
    return (0, 0.1) if args.quick else COEFS


def look(seed, args):
    """-> {distance: (KL a token, {k: (cosine, norm, mean, standard deviation)})}, whole answers"""
    place, lesson = Path(args.runs_dir, f"seed{seed}"), lab.load_lesson(3)
    reference, tokenizer = exact.load(lesson, place / "sft")
    found = {}
    for coef in coefs(args):
        policy, _ = exact.load(lesson, place / f"ppo_kl{coef}")
        found[f"kl_coef {coef}"] = tokens(lesson, reference, policy.requires_grad_(True), tokenizer,
                                          seed)
    for share in (0.03, 0.1, 0.3):  # on the straight line from the reference to that policy
        mixed, policy = copy.deepcopy(reference), exact.load(lesson, place / "ppo_kl0.1")[0]
        with torch.no_grad():
            for weight, other in zip(mixed.parameters(), policy.parameters()):
                weight.lerp_(other, share)
        found[f"{share:.0%} of the way to kl_coef 0.1"] = tokens(
            lesson, reference, mixed.requires_grad_(True), tokenizer, seed)
    policy, _ = exact.load(lesson, place / sums_arm(seed, args).name)
    return found, whole_answers(reference, policy.requires_grad_(True), tokenizer)


def sums_arm(seed, args):
    """The GRPO run of pass_at_k.py."""
    steps = 30 if args.quick else 60
    return lab.Arm(f"exact{steps}_the_lessons", seed, "exact", [f"--steps={steps}",
                                                               "--eval_every=10"])


def exact_tables(looks):
    mean = lambda read: statistics.mean(read(x) for x in looks)
    distances, lines = list(looks[0][0]), []
    for name in sorted(distances, key=lambda name: mean(lambda x: x[0][name][0])):
        lines.append([name, f"{mean(lambda x: x[0][name][0]):.4f}"])
        for i in range(4):
            lines[-1] += [f"{mean(lambda x: x[0][name][1][k][i]):.3f}" for k in KS[i < 2:]]
    lab.table(["policy", "KL a token", *(f"{what}, {k}" for i, what in enumerate(
        ("cosine", "norm", "mean / KL", "std")) for k in KS[i < 2:])], lines)
    lab.table(["whole answers", "cosine", "norm"],
              [[k, *(f"{mean(lambda x: x[1][1][k][i]):.3f}" for i in (0, 1))]
               for k in looks[0][1][1]])


TRAINED = {"k2 in the loss": "k2", "k3 in the loss": "k3"}


def train(args):
    """-> {arm: [last ten steps' means, a seed]}. The KL at the end is about the same with 0.3 in
    the loss and 0.1 in the reward (a trial with seed 0)."""
    lab.LESSONS.update(exact="answers/experiments/exact.py",
                       exchanged="answers/experiments/kl_estimators.py")
    plain = lambda coef, seed: lab.Arm(f"ppo_kl{coef}", seed, 3,
                                       [f"--kl_coef={coef}", "--steps=30"])
    arms = {("k1 in the reward", seed): plain(0.1, seed) for seed in args.seeds}
    arms |= {(name, seed): lab.Arm(f"ppo_loss_{k}", seed, "exchanged", [
        "--kl_in=loss", "--kl_coef=0.3", "--steps=30", f"--estimator={k}"])
        for seed in args.seeds for name, k in TRAINED.items() if not args.quick}
    others = [plain(coef, seed) for seed in args.seeds for coef in coefs(args)]
    sums = [sums_arm(seed, args) for seed in args.seeds]
    places = lab.run_arms([*arms.values(), *others, *sums], args)
    ends = {}
    for (name, seed), arm in arms.items():
        run = lab.rows(places[arm.name, seed])
        ends.setdefault(name, []).append({tag: lab.end(run, tag)
                                          for tag in (KL, SCORE, GOLD, "grad_norm")})
    return ends


def picture(looks, ends, args):
    plot = lab.pyplot()
    figure, (left, middle, right) = plot.subplots(1, 3, figsize=(13, 3.8))
    for k, colour in zip(KS, lab.COLOURS):
        for axes, i in ((left, 0), (middle, 3)):
            if (k, i) != ("k1", 0):
                points = [(kl, values[k][i]) for x in looks for kl, values in x[0].values()]
                axes.scatter(*zip(*points), s=14, color=colour, alpha=0.7, linewidths=0, label=k)
    left.set(xscale="log", xlabel="KL from the reference (nats a token)", ylabel="cosine",
             title="an estimator's gradient and the KL's")
    middle.set(xscale="log", yscale="log", xlabel="KL from the reference (nats a token)",
               ylabel="standard deviation (nats)", title="the value at one token")
    for (name, seeds), colour in zip(ends.items(), lab.COLOURS[3:]):
        right.scatter([x[KL] for x in seeds], [x[GOLD] for x in seeds], color=colour, label=name)
    right.set(xlabel="KL from the reference (nats a response)", ylabel="gold reward",
              title=f"PPO, the last ten of 30 steps (seeds: {len(args.seeds)})")
    for axes in (left, middle, right):
        axes.legend()
    lab.save(figure, "kl_estimators", args)


def main():
    if any(word.startswith("--estimator=") for word in sys.argv):
        word = next(word for word in sys.argv if word.startswith("--estimator="))
        sys.argv.remove(word)
        return exchanged(word.removeprefix("--estimator="))
    args = lab.settings(__doc__)
    ends = train(args)
    name = f"kl_estimators{'_quick' * args.quick}.pt"
    looks = [exact.remembered(Path(args.runs_dir, f"seed{seed}", name), lambda: look(seed, args))
             for seed in args.seeds]
    exact_tables(looks)
    tags = (KL, SCORE, GOLD, "grad_norm")
    lab.table(["PPO with", "KL at the end (nats)", "score", "gold", "gradient's norm"],
              [[name, *(statistics.mean(x[tag] for x in seeds) for tag in tags)]
               for name, seeds in ends.items()])
    picture(looks, ends, args)
    make_claims(looks, ends)
    lab.done()


def make_claims(looks, ends):
    every = [(kl, values) for x in looks for kl, values in x[0].values()]
    lab.claim("k2 as a loss has the KL's gradient at a token: cosine above 0.9999, norm to 0.1%",
              all(v["k2"][0] > 0.9999 and abs(v["k2"][1] - 1) < 1e-3 for _, v in every))
    lab.claim("k1 as a loss has none: norm below 0.001 of the KL's",
              all(v["k1"][1] < 1e-3 for _, v in every))
    near, far = ([v for kl, v in every if low < kl < high] for low, high in ((0, 0.01), (0.1, 9)))
    worst = min(v["k3"][0] for v in far)
    lab.claim("k3 is as good below 0.01 nats a token (cosine above 0.99), but not above 0.1: "
              f"down to {worst:.2f}", all(v["k3"][0] > 0.99 for v in near) and worst < 0.8)
    lab.claim("near the reference k3's value has a smaller standard deviation than k1's; above 0.1 "
              "nats a token it has a larger one", all(v["k3"][3] < v["k1"][3] for v in near)
              and all(v["k3"][3] > v["k1"][3] for v in far))
    lab.claim("for whole answers k1 in the reward has the exact gradient, k3 in the loss has not "
              "(cosine below 0.95)", all(x[1][1]["k1 in the reward"][0] > 0.999
                                         and x[1][1]["k3"][0] < 0.95 for x in looks))
    if "k2 in the loss" not in ends:
        return
    gaps = {tag: [a[tag] - b[tag] for a, b in zip(ends["k3 in the loss"], ends["k2 in the loss"])]
            for tag in (KL, GOLD)}
    shown = {tag: ", ".join(f"{gap:+.2f}" for gap in gaps[tag]) for tag in gaps}
    lab.claim(f"trained with k3 in place of k2, a seed: KL {shown[KL]} nats, gold {shown[GOLD]}",
              max(gaps[GOLD]) < 0)


if __name__ == "__main__":
    main()
