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

import torch
import exact
import lab
from kl_gradients import KS, tokens, whole_answers
from lab import GOLD, KL, SCORE

REWARD, K2, K3 = "k1 in the reward", "k2 in the loss", "k3 in the loss"
TAGS = (KL, SCORE, GOLD, "grad_norm")


def train(coefs, args):
    """-> {arm: [the last ten steps' means, a seed]}. The KL at the end is about the same with 0.3
    in the loss and 0.1 in the reward (a trial with seed 0). Also run: the PPO and the GRPO arms
    whose last policies are looked at."""
    arms = {(REWARD, seed): lab.ppo_arm(0.1, seed) for seed in args.seeds}
    for seed in [] if args.quick else args.seeds:
        arms[K3, seed] = lab.ppo_arm(0.3, seed, "_k3", "--kl_in=loss")
        arms[K2, seed] = lab.Arm("ppo_kl0.3_k2", seed, "ppo_k2.py", arms[K3, seed].flags)
    looked_at = [lab.ppo_arm(coef, seed) for seed in args.seeds for coef in coefs]
    sums = [exact.arm(seed, args) for seed in args.seeds]
    places = lab.run_arms([*arms.values(), *looked_at, *sums], args)
    runs = {key: lab.rows(places[arm.name, arm.seed]) for key, arm in arms.items()}
    return {name: [{tag: lab.end(runs[name, seed], tag) for tag in TAGS} for seed in args.seeds]
            for name in (REWARD, K2, K3) if (name, args.seeds[0]) in arms}


def look(coefs, seed, args):
    """-> {policy: (KL a token, {k: (cosine, norm, mean, standard deviation)})}, whole answers"""
    load = lambda arm: exact.load(lab.load_lesson(3), lab.folder(arm, args))
    reference, tokenizer = load(lab.Arm("sft", seed, 1))
    policies = {f"kl_coef {coef}": load(lab.ppo_arm(coef, seed))[0] for coef in coefs}
    for share in (0.03, 0.1, 0.3):  # on the straight line from the reference to that policy
        mixed, policy = copy.deepcopy(reference), policies["kl_coef 0.1"]
        with torch.no_grad():
            for weight, other in zip(mixed.parameters(), policy.parameters()):
                weight.lerp_(other, share)
        policies[f"{share:.0%} of the way to kl_coef 0.1"] = mixed
    found = {name: tokens(reference, policy.requires_grad_(True), tokenizer, seed)
             for name, policy in policies.items()}
    policy = load(exact.arm(seed, args))[0]
    return found, whole_answers(reference, policy.requires_grad_(True), tokenizer)


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
    if K2 in ends:
        kl, gold = ([a[tag] - b[tag] for a, b in zip(ends[K3], ends[K2])] for tag in (KL, GOLD))
        lab.claim(f"trained with k3 in place of k2, a seed: KL {lab.signed(kl)} nats, gold "
                  f"{lab.signed(gold)}", max(gold) < 0)


def main():
    args = lab.settings(__doc__)
    coefs = (0, 0.1) if args.quick else (0, 0.01, 0.05, 0.1, 0.3)
    ends = train(coefs, args)
    looks = [exact.remembered("kl_estimators", seed, args, lambda: look(coefs, seed, args))
             for seed in args.seeds]
    exact_tables(looks)
    lab.table(["PPO with", "KL at the end (nats)", "score", "gold", "gradient's norm"],
              [[name, *(statistics.mean(x[tag] for x in seeds) for tag in TAGS)]
               for name, seeds in ends.items()])
    picture(looks, ends, args)
    make_claims(looks, ends)
    lab.done()


if __name__ == "__main__":
    main()
