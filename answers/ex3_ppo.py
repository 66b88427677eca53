"""Exercise 3: the maths of PPO, ten blanks, in the order of lesson3_ppo.py.

B is the number of responses, T the longest one's length in tokens, V the size of the vocabulary.
A mask is 1.0 on a response's tokens up to and including its end token, and 0.0 on the padding that
follows. Functions that average take `count`, the number to divide by; None means: count for
yourself. (The lessons pass the count of the whole batch, so that a batch may be cut into pieces.)
"""

import torch


def response_logprobs(logits, response, temperature=1.0):
    """The log-probability of every token of a response: log p(token | prompt and earlier tokens).
    PPO's ratio, the KL penalty and GRPO's loss are all made of these.

    Shapes
        logits        float (B, T+1, V), any float dtype: the model's output at the last T+1
                      positions of prompt + response (transformers' logits_to_keep=T+1). Position
                      0 is the prompt's last token, position t the t-th token of the response
        response      long (B, T), the ids of the response's tokens, T >= 1
        temperature   number > 0, which the logits are divided by (that of the sampling)
        returns       float32 (B, T), computed in float32 also where the logits are bfloat16 (or in
                      float64 where they are that: gradient checks need it). A gradient flows to
                      the logits. Padding gets a number like any token

    Formula (the softmax with a temperature: Hinton et al. 2015, "Distilling the knowledge in a
    neural network", eq. 1; z_t is the row of logits that was computed before token y_t was read)
        log p(y_t) = log softmax(z_t / temperature)[y_t]
    It is finite for logits of any size, also where softmax itself would be 0 in float32.

    Example (T = 2, V = 3; the probabilities are (1/4, 1/2, 1/4), then (1/10, 1/10, 8/10))
        >>> logits = torch.tensor([[[1.0, 2.0, 1.0], [1.0, 1.0, 8.0], [3.0, 3.0, 3.0]]]).log()
        >>> response_logprobs(logits, torch.tensor([[1, 2]]))  # log 1/2 and log 8/10
        tensor([[-0.6931, -0.2231]])

    Ask yourself
        There are T+1 positions and T tokens. Which position's logits were computed without having
        seen the response's first token, and which position is not needed at all?

    Check it
        pytest -k response_logprobs
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no half precision
    logprobs = (logits[:, :-1] / temperature).log_softmax(dim=-1)  # (B, T, V)
    return logprobs.gather(-1, response.unsqueeze(-1)).squeeze(-1)  # (B, T)


def response_mask(response, eos_ids):
    """Mark the tokens that belong to a response: all up to its first end token. A batch is
    generated until its longest response is done, so what follows an end token means nothing.

    Shapes
        response   long (B, T), ids
        eos_ids    list of one or more int: any of them ends a response (models may have several)
        returns    float32 (B, T): 1.0 on the tokens up to and including the first end token, 0.0 on
                   all that follow, whatever they are. A row without an end token is all ones

    Formula (a definition; no paper needed)
        mask_t = 1 if none of the tokens before t is an end token, else 0

    Example (the end token is 9)
        >>> response_mask(torch.tensor([[5, 9, 0], [4, 5, 6], [9, 7, 9]]), [9])
        tensor([[1., 1., 0.],
                [1., 1., 1.],
                [1., 0., 0.]])

    Ask yourself
        Stopping is an action that the policy takes and is rewarded for. On which side of the border
        is the first end token? And what does your code do in a row that has two of them, or none?

    Check it
        pytest -k response_mask
    """
    is_end = torch.isin(response, torch.tensor(eos_ids, device=response.device)).long()
    ends_before = is_end.cumsum(dim=1) - is_end
    return (ends_before == 0).float()  # (B, T)


def kl_penalty(logprobs, ref_logprobs, estimator="k1"):
    """Estimate at each sampled token how far the policy has moved away from the reference: an
    estimate of KL(policy || reference) from one sample. The penalty keeps the policy from going
    where the reward model knows nothing.

    Shapes
        logprobs       float (B, T), log-probabilities of the sampled tokens under the policy
        ref_logprobs   float (B, T), the same under the reference
        estimator      "k1" (the default), "k2" or "k3"
        returns        float (B, T), a number a token: nothing is summed or averaged. Gradients flow
                       to both arguments: what is constant is for the caller to say

    Formula (Schulman 2020, "Approximating KL divergence", a blog post; r = p_ref / p of the token)
        k1 = -log r               unbiased, often negative
        k2 = (log r)^2 / 2        biased, never negative
        k3 = (r - 1) - log r      unbiased, never negative
    "Unbiased" means: the mean over tokens drawn from the policy is the KL. That is about values. As
    a loss, where gradients count, only k2's is the KL's: k1's is 0 on average, and k3's is right
    near the reference alone (exercises/WHY.md, "The KL penalty").

    Example (a vocabulary of three; weighted by p, both k1 and k3 give the KL, which is log(2) / 4)
        >>> p, p_ref = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
        >>> kl_penalty(p.log(), p_ref.log())
        tensor([[ 0.6931, -0.0000, -0.6931]])
        >>> kl_penalty(p.log(), p_ref.log(), "k3")
        tensor([[0.1931, 0.0000, 0.3069]])
        >>> [(p * kl_penalty(p.log(), p_ref.log(), k)).sum() for k in ("k1", "k3")]
        [tensor(0.1733), tensor(0.1733)]

    Ask yourself
        The tokens were drawn from the policy, and now and then the policy draws one that the
        reference likes better. Which sign has k1 there, and is r larger or smaller than 1?

    Check it
        pytest -k kl_penalty
    """
    log_ratio = ref_logprobs - logprobs
    return {"k1": -log_ratio,
            "k2": 0.5 * log_ratio.square(),
            "k3": torch.expm1(log_ratio) - log_ratio}[estimator]  # (B, T)


def shape_rewards(scores, kl, mask, kl_coef):
    """The reward of every token: each pays for its KL, and the last one also earns the score, which
    the reward model gives to the response as a whole.

    Shapes
        scores    float (B,), the score of each response
        kl        float (B, T), the KL of each token; the padding holds noise
        mask      float (B, T)
        kl_coef   number, beta
        returns   float (B, T), 0 where the mask is 0, a new tensor. A row without any real token
                  stays 0: nothing was said, so nothing is scored

    Formula (Ziegler et al. 2019, "Fine-tuning language models from human preferences", eq. 2, taken
    apart into tokens)
        r_t = -beta KL_t                on real tokens
        r_t = -beta KL_t + score        on the last real token

    Example (the second response has one token, and its padding a KL of 9)
        >>> scores, kl = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
        >>> mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        >>> shape_rewards(scores, kl, mask, 0.1)
        tensor([[-0.1000, -0.2000,  0.7000],
                [ 1.6000,  0.0000,  0.0000]])

    Ask yourself
        At which index does a response of n tokens end? And what is at the index just before it, or
        just after it, when n is 0, or T?

    Check it
        pytest -k shape_rewards
    """
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
    """Scale the real entries to variance 1 and, unless told otherwise, shift them to mean 0.
    Whitened advantages give steps of about the same size whatever the scale of the rewards.

    Shapes
        x            float (B, T); the padding may hold anything finite
        mask         float (B, T)
        shift_mean   True: the mean becomes 0. False: the mean stays what it was, only the spread
                     around it is scaled
        eps          number, added to the variance
        returns      float (B, T), 0 where the mask is 0. Fewer than two real entries have no
                     variance: all of the result is 0 then

    Formula (as in the code of Ziegler et al. 2019, "Fine-tuning language models from human
    preferences"; n is the number of real entries in the whole batch)
        mean      = sum of x over the real entries / n
        var       = sum of (x - mean)^2 over the real entries / (n - 1)     the unbiased one
        whitened  = (x - mean) / sqrt(var + eps), and without shift_mean + mean

    Example (three real entries, 2, 4 and 6, with mean 4 and variance 4; 50 is padding)
        >>> x = torch.tensor([[2.0, 4.0], [6.0, 50.0]])
        >>> mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> masked_whiten(x, mask)
        tensor([[-1.,  0.],
                [ 1.,  0.]])
        >>> masked_whiten(x, mask, shift_mean=False)
        tensor([[3., 4.],
                [5., 0.]])

    Ask yourself
        Which numbers belong to the mean and to the variance, and by how many do you divide each?
        Is it a row that is whitened, or the batch?

    Check it
        pytest -k masked_whiten
    """
    count = mask.sum()
    if count < 2:
        return torch.zeros_like(x)
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1)
    whitened = (x - mean) * torch.rsqrt(variance + eps)
    return (whitened if shift_mean else whitened + mean) * mask


def ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_range, count=None):
    """The clipped policy loss of PPO: make tokens with a positive advantage likelier and the others
    less likely, but gain nothing from going far from the policy that sampled.

    Shapes
        logprobs       float (B, T), log-probabilities of the sampled tokens under the policy now
        old_logprobs   float (B, T), the same under the policy that sampled them
        advantages     float (B, T)
        mask           float (B, T)
        clip_range     number, epsilon
        count          what to divide by, a number or a tensor; None: the number of real tokens, but
                       at least 1 (without any real token the loss is 0, with a graph all the same)
        returns        (loss, clip_fraction): float tensors of shape (). clip_fraction, the share
                       of tokens whose clipped term is the larger loss, is divided by the same
                       count and has no graph

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
    count = mask.sum().clamp(min=1) if count is None else count
    ratio = torch.exp(logprobs - old_logprobs)  # (B, T)
    loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    clip_fraction = ((clipped_loss > loss) * mask).sum() / count
    return (torch.max(loss, clipped_loss) * mask).sum() / count, clip_fraction.detach()


def ppo_value_loss(values, old_values, returns, mask, clip_range, count=None):
    """Half the squared error of the values, in which no value gains from moving more than
    clip_range away from the old one: of two errors the larger counts, as in the policy loss.

    Shapes
        values       float (B, T), the value head's output now
        old_values   float (B, T), its output when the responses were sampled
        returns      float (B, T), what the values should be
        mask         float (B, T)
        clip_range   number, epsilon, in units of value
        count        what to divide by, a number or a tensor; None: the number of real tokens, but
                     at least 1 (without any real token the loss is 0, with a graph all the same)
        returns      a float scalar; gradients flow to `values`

    Formula (OpenAI's ppo2; detail 9 of Huang et al. 2022, "The 37 implementation details of
    proximal policy optimization", with the factor one half)
        clipped_t = old_t + clip(V_t - old_t, -epsilon, epsilon)
        loss_t    = max((V_t - returns_t)^2, (clipped_t - returns_t)^2)
        loss      = 1/2 sum of loss_t over the real tokens / count

    Example (both values moved from 0 to 1, and count as 0.2 where that is the larger error: where
    the return is 1, the errors are 0 and 0.64; where it is -1, they are 4 and 1.44)
        >>> values, old_values = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2)
        >>> returns, mask = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)
        >>> ppo_value_loss(values, old_values, returns, mask, 0.2)  # (0.64 + 4) / 2 / 2
        tensor(1.1600)

    Ask yourself
        What is kept near what: the value near its old self, or near the return? And when a value
        has jumped far in the wrong direction, which of the two errors still has a gradient?

    Check it
        pytest -k ppo_value_loss
    """
    count = mask.sum().clamp(min=1) if count is None else count
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    error = torch.max((values - returns).square(), (clipped - returns).square())
    return 0.5 * (error * mask).sum() / count


def masked_entropy(logits, mask, count=None):
    """How undecided the policy is: the mean entropy of its next-token distributions, in nats. It
    falls slowly while a policy learns; a plunge means that it has stopped trying things.

    Shapes
        logits    float (B, T, V), any float dtype, finite; position t belongs to the mask's token t
        mask      float (B, T)
        count     what to divide by, a number or a tensor; None: the number of real tokens, but at
                  least 1 (without any real token the result is 0, with a graph all the same)
        returns   a float32 scalar, computed in float32 also where the logits are bfloat16 (or in
                  float64 where they are that). Gradients flow to the logits, finite like the result

    Formula (Shannon 1948; the bonus S of Schulman et al. 2017, eq. 9)
        p_t = softmax(logits_t)
        H_t = -sum over the vocabulary of p_t log p_t, where 0 log 0 = 0
        sum of H_t over the real tokens / count

    Example (four equally likely tokens, log 4 = 1.3863, and a decision already made; then the mean)
        >>> logits = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [900.0, 0.0, 0.0, 0.0]]])
        >>> masked_entropy(logits, torch.ones(1, 2))
        tensor(0.6931)

    Ask yourself
        In float32 softmax gives exactly 0 to a token whose logit is 200 below the best one. What is
        the logarithm of that, and what is 0 times it, in the value and in the gradient?

    Check it
        pytest -k masked_entropy
    """
    count = mask.sum().clamp(min=1) if count is None else count
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no half precision
    logprobs = logits.log_softmax(dim=-1)  # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)  # (B, T)
    return (entropy * mask).sum() / count


def adaptive_kl_coef(kl_coef, observed_kl, target_kl, batch_size, horizon):
    """The next step's KL coefficient: a larger one when the responses' KL is above its target, a
    smaller one when it is below. One chooses how far the policy may go instead of what that costs.

    Shapes
        kl_coef       number, the coefficient now, beta
        observed_kl   number, the mean KL of a response, summed over its tokens; it may be
                      negative, being an estimate
        target_kl     number > 0, the KL that is wanted
        batch_size    number, how many responses this step had
        horizon       number, after how many responses an error of 0.2 has changed beta by
                      about 20%
        returns       a Python float

    Formula (Ziegler et al. 2019, "Fine-tuning language models from human preferences", section 2.2,
    with K_beta = batch_size / horizon, as in their code)
        error    = clip((observed_kl - target_kl) / target_kl, -0.2, 0.2)
        beta new = beta (1 + error batch_size / horizon)

    Example (the KL is 12 instead of 6: an error of 1, clipped to 0.2; 64 is a tenth of 640)
        >>> round(adaptive_kl_coef(0.5, 12.0, 6.0, 64, 640), 6)  # 0.5 (1 + 0.2 / 10)
        0.51

    Ask yourself
        The KL is above its target, so the policy is too far away. Does the penalty have to grow or
        to shrink? And is it the error that is clipped, or what comes of it?

    Check it
        pytest -k adaptive_kl_coef
    """
    error = min(max(observed_kl / target_kl - 1, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / horizon)
