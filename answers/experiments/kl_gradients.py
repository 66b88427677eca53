"""The gradient of each KL estimator as a loss against that of the KL: experiment 3's maths, exact.

An expectation over the next token is a sum over the vocabulary, at every state that a policy visits
in 64 reviews; one over whole answers is a sum over all answers to 32 sums. The estimators are
lesson 3's `kl_penalty`.
"""

import torch
import exact
import lab

KS = ("k1", "k2", "k3")


def compare(lm, truth, losses):
    """-> {name: (cosine to the gradient of the true KL, norm over its norm)}"""
    truth, found = exact.gradient(lm, truth), {}
    for name, loss in losses.items():
        grad = exact.gradient(lm, loss)
        found[name] = (torch.cosine_similarity(grad.double(), truth.double(), dim=0).item(),
                       (grad.norm() / truth.norm()).item())
    return found


def tokens(reference, policy, tokenizer, seed):
    """At the states of 64 reviews by the policy -> its KL a token and, for each estimator: (cosine,
    norm, mean of the value over the KL, standard deviation of the value of one token)."""
    lesson = lab.load_lesson(3)
    torch.manual_seed(seed)
    data = lesson.load_prompts(lesson.Config(), tokenizer)[0] * 4
    ids, prompt_mask, response = lesson.generate(
        policy, tokenizer, [row["prompt_ids"] for row in data], 40)
    mask = lesson.response_mask(response, policy.generation_config.eos_token_id)
    inputs = (torch.cat([ids, response], dim=1), torch.cat([prompt_mask, mask.long()], dim=1),
              response.shape[1])
    logp, logq = (lesson.response_logits(lm, *inputs)[:, :-1].log_softmax(dim=-1)[mask > 0]
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
