"""Exercise 3: the maths of PPO, ten blanks, in the order of lesson3_ppo.py.

B is the number of responses, T the longest one's length in tokens, V the size of the vocabulary.
A mask is 1.0 on a response's tokens up to and including its end token, and 0.0 on the padding that
follows. Functions that average take `count`, the number to divide by; None means: count for
yourself. (The lessons pass the count of the whole batch, so that a batch may be cut into pieces.)
"""

import torch


def response_logprobs(logits, response, temperature=1.0):
    """log p(token | what came before) of a response's T tokens, from the logits of the last T+1
    positions: a position predicts the token after it, so the very last one is not needed."""
    logprobs = (logits[:, :-1].float() / temperature).log_softmax(dim=-1)  # (B, T, V)
    return logprobs.gather(-1, response.unsqueeze(-1)).squeeze(-1)  # (B, T)


def response_mask(response, eos_ids):
    """1 on the tokens up to and including the first end token, 0 on what follows it."""
    is_end = torch.isin(response, torch.tensor(eos_ids, device=response.device)).long()
    ends_before = is_end.cumsum(dim=1) - is_end
    return (ends_before == 0).float()  # (B, T)


def kl_penalty(logprobs, ref_logprobs, estimator="k1"):
    """Estimates of KL(policy || reference) at tokens that the policy sampled (Schulman 2020,
    "Approximating KL divergence"): k1 and k3 are unbiased, k2 and k3 never negative."""
    log_ratio = ref_logprobs - logprobs
    return {"k1": -log_ratio,
            "k2": 0.5 * log_ratio.square(),
            "k3": torch.expm1(log_ratio) - log_ratio}[estimator]  # (B, T)


def shape_rewards(scores, kl, mask, kl_coef):
    """The reward of every token: -kl_coef * KL, and on the last real token the score as well."""
    is_last = (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)) & mask.bool()
    kl_rewards = torch.where(mask.bool(), -kl_coef * kl, 0.0)
    return kl_rewards + torch.where(is_last, scores.unsqueeze(1), 0.0)  # (B, T)


@torch.no_grad()
def compute_gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation: how much better than expected did each token turn out?

    Shapes
        rewards   float (B, T), the reward of each token
        values    float (B, T), V_t is the value of the state before token t
        mask      float (B, T)
        gamma     number, the discount a token
        lam       number, lambda
        returns   (advantages, returns): float (B, T) each, 0 where the mask is 0, without a graph

    Formula (Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", eq. 16, as a recursion from the last token back)
        delta_t   = r_t + gamma V_{t+1} - V_t
        A_t       = delta_t + gamma lam A_{t+1}
        returns_t = A_t + V_t, what the value function should learn
    Past a response's last token V and A are 0.

    Example (delta is 0.5, 0.5 and -0.5)
        >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 1.0, 1.5]])
        >>> compute_gae(rewards, values, torch.ones(1, 3), 1.0, 0.5)
        (tensor([[ 0.6250,  0.2500, -0.5000]]), tensor([[1.1250, 1.2500, 1.0000]]))

    Ask yourself
        In a batch, a short response is followed by padding, and the padding has values too. What is
        V_{t+1} for the last real token?

    Check it
        pytest -k compute_gae
    """
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = mask[:, t] * (delta + gamma * lam * next_advantage)
        next_value = mask[:, t] * values[:, t]
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask


def masked_whiten(x, mask, shift_mean=True, eps=1e-8):
    """Scale the real tokens to variance 1 (the unbiased one) and, with shift_mean, to mean 0."""
    count = mask.sum()
    if count < 2:
        return torch.zeros_like(x)
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1)
    shift = mean if shift_mean else 0.0
    return (x - shift) * torch.rsqrt(variance + eps) * mask


def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    """The clipped policy loss of PPO: make tokens with a positive advantage likelier and the others
    less likely, but gain nothing from going far from the policy that sampled.

    Shapes
        logprobs       float (B, T), log-probabilities of the sampled tokens under the policy now
        old_logprobs   float (B, T), the same under the policy that sampled them
        advantages     float (B, T)
        mask           float (B, T)
        clip_range     number, epsilon
        count          what to divide by; None: the number of real tokens (at least 1)
        returns        (loss, clip_fraction): float scalars. clip_fraction, the share of tokens whose
                       clipped term is the larger loss, is divided by the same count and has no graph

    Formula (Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7, negated because
    optimisers minimise)
        ratio_t = exp(logprobs_t - old_logprobs_t)
        loss_t  = max(-A_t ratio_t, -A_t clip(ratio_t, 1 - epsilon, 1 + epsilon))
        loss    = sum of loss_t over the real tokens / count

    Example (the ratio is 2 and 0.5; only the first one is clipped, to 1.2)
        >>> logprobs, old_logprobs = torch.tensor([[2.0, 0.5]]).log(), torch.zeros(1, 2)
        >>> advantages, mask = torch.tensor([[1.0, 1.0]]), torch.ones(1, 2)
        >>> ppo_policy_loss(logprobs, old_logprobs, advantages, mask, 0.2)
        (tensor(-0.8500), tensor(0.5000))

    Ask yourself
        When the advantage is negative and the ratio is 2, which of the two terms is the larger
        loss, and should a gradient flow?

    Check it
        pytest -k ppo_policy_loss
    """
    if count is None:
        count = mask.sum().clamp(min=1)
    ratio = torch.exp(logprobs - old_logprobs)  # (B, T)
    loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    clip_fraction = ((clipped_loss > loss) * mask).sum() / count
    return (torch.max(loss, clipped_loss) * mask).sum() / count, clip_fraction.detach()


def ppo_value_loss(values, old_values, returns, mask, clip_range, count=None):
    """Half the squared error of the values, which may not gain from moving more than clip_range
    away from the old ones (as in OpenAI's ppo2): the larger of two errors again."""
    if count is None:
        count = mask.sum().clamp(min=1)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    error = torch.max((values - returns).square(), (clipped - returns).square())
    return 0.5 * (error * mask).sum() / count


def masked_entropy(logits, mask, count=None):
    """The mean over real tokens of H = -sum_v p_v log p_v, in nats."""
    if count is None:
        count = mask.sum().clamp(min=1)
    logprobs = logits.float().log_softmax(dim=-1)  # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)  # (B, T)
    return (entropy * mask).sum() / count


def adaptive_kl_coef(kl_coef, observed_kl, target_kl, batch_size, horizon):
    """Raise the coefficient when the KL of a response is above its target, lower it when it is
    below, by at most 20% a horizon (Ziegler et al. 2019, section 2.2)."""
    error = min(max(observed_kl / target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / horizon)
