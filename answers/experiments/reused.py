"""One batch of 512 answers, learned from again and again: where does its gradient point? That of
the mean over all batches that might have been drawn is exact; this one's and a fresh one's are not.
"""

import copy

import torch
import exact
from estimators import lesson, logprobs

STALE = (0, 1, 2, 4, 8, 16)  # updates since the answers were sampled
CLIPS = {"clipped": (0.2, 0.28), "not clipped": (1e9, 1e9)}
BATCHES = "the same batch", "a fresh batch"


def stale(lm, tokenizer, answers, right, data, seed):
    """Lesson 4's update (Dr. GRPO), 16 times on the same samples. -> {n: {what: the cosine of its
    gradient to that of J at the weights after n updates, and J, the expected reward}}."""
    config = lesson.Config(num_samples=8 * len(data), batch_size=8 * len(data), steps=1,
                           ppo_epochs=1, kl_coef=0, scale="none", average="constant", seed=seed)
    accelerator, policy = lesson.Accelerator(cpu=True), copy.deepcopy(lm)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    torch.manual_seed(seed)
    sample = lambda: sample_batch(policy, tokenizer, data, config, accelerator)
    first, results = sample(), {}
    with torch.no_grad():
        old = logprobs(policy, answers)
    for update in range(STALE[-1] + 1):
        if update in STALE:
            J, found = mean_gradients(policy, answers, old, right, len(data))
            for what, rollout in zip(BATCHES, (first, sample())):
                count = {"constant": 4 * len(rollout.ids), "token": 1}
                loss = lesson.grpo_loss(policy, rollout, count, config)[0]
                found[what] = -exact.gradient(policy, loss)
            truth = exact.gradient(policy, J)
            results[update] = {what: torch.cosine_similarity(x, truth, dim=0).item()
                               for what, x in found.items()} | {"J": J.item()}
        lesson.grpo_update(policy, optimizer, first, config, accelerator)
    return results


def sample_batch(policy, tokenizer, data, config, accelerator):
    """Lesson 4's rollout: eight answers to each sum, with their advantages."""
    reward = lesson.load_rewards(config, lesson.REWARDS, tokenizer, policy)
    rollout = lesson.sample_groups(policy, reward, tokenizer, data, config, accelerator)
    rollout.advantages = lesson.group_advantages(rollout.rewards, 8, "none")
    rollout.logprobs = lesson.all_logprobs(lambda *x: lesson.response_logits(policy, *x),
                                           rollout, config, accelerator)
    return rollout


def mean_gradients(policy, answers, old, right, sums):
    """-> J with its graph, {clipped or not: the mean gradient of batches that the old weights
    sampled}, groups of 8."""
    new = logprobs(policy, answers)
    chance = new.double().sum(dim=1).exp()
    p = answers.add_up(answers.prob * right, sums)
    # What was not enumerated is one more wrong answer of each sum, of one token.
    rest = [1 - answers.add_up(x, sums) for x in (chance, answers.prob)]
    new, old = (torch.cat([x, torch.nn.functional.pad(left.log().float()[:, None], (0, 3))])
                for x, left in zip((new, old), rest))
    prob = torch.cat([answers.prob, rest[1]])
    # E[advantage | right or wrong]: the answer itself is one of the 8 that make the mean.
    advantages = torch.cat([right - p[answers.row], -p]) * 7 / 8
    found = {}
    for name, bounds in CLIPS.items():
        loss = lesson.grpo_token_loss(new, old, old, advantages, 0, *bounds).sum(dim=1)
        found[name] = exact.gradient(policy, -(prob * loss).sum())
    return (chance * right).sum() / sums, found
