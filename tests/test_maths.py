"""The maths of every lesson, checked against numbers worked by hand, slow loops that follow the
definition, enumeration, and finite differences. (What two lessons share is tested once:
test_copies.py says that the copies are equal.)"""

import itertools
import math

import pytest
import torch

# Rows of five tokens: a whole one, a single token, none at all, and two in between.
LENGTHS = (5, 1, 0, 3, 2)
MASK = (torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)).float()
REAL = [(b, t) for b, length in enumerate(LENGTHS) for t in range(length)]


def close(actual, expected, tolerance=1e-6):
    actual, expected = (torch.as_tensor(x, dtype=torch.double).detach() for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(function, x):
    """(value, gradient) of function(x)."""
    x = x.clone().requires_grad_()
    value = function(x)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def adds_up(loss, tensors, count):
    """loss(*tensors, count): do micro-batches, divided by the count of the whole batch, give the
    whole batch's loss and gradient? One of them has nothing but a masked row, one is smaller."""
    whole, whole_gradient = gradient(lambda x: loss(x, *tensors[1:], None), tensors[0])
    for sizes in (2, 2, 1), (2, 1, 2), (4, 1), (1, 1, 1, 1, 1):
        parts = [gradient(lambda x: loss(x, *rest, count), first)
                 for first, *rest in zip(*(tensor.split(sizes) for tensor in tensors))]
        close(sum(value for value, _ in parts), whole)
        close(torch.cat([part for _, part in parts]), whole_gradient)
    halved = loss(*tensors, 2 * count)
    close(halved, whole / 2)


# ---- Lesson 1 -----------------------------------------------------------------------------------


def test_format_prompt_leaves_an_empty_input_out(lesson1):
    assert lesson1.format_prompt("Add 1.") == "### Instruction:\nAdd 1.\n\n### Response:\n"
    assert lesson1.format_prompt("Translate:", "tea") == (
        "### Instruction:\nTranslate:\n\n### Input:\ntea\n\n### Response:\n")


def test_labels_are_the_response_and_its_end_token(lesson1):
    prompt, response = [5, 6], [7, 8]
    assert lesson1.build_labels(prompt, response, 9, 10) == (
        [5, 6, 7, 8, 9], [-100, -100, 7, 8, 9])
    assert (prompt, response) == ([5, 6], [7, 8])


def test_labels_of_an_empty_response_are_the_end_token(lesson1):
    assert lesson1.build_labels([5], [], 9, 10) == ([5, 9], [-100, 9])


def test_labels_are_cut_with_the_tokens_and_get_no_false_end(lesson1):
    assert lesson1.build_labels([5, 6], [7, 8], 9, 4) == ([5, 6, 7, 8], [-100, -100, 7, 8])
    assert lesson1.build_labels([5, 6], [7, 8], 9, 5) == ([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9])


def test_pad_batch_pads_on_the_right_and_keeps_a_trained_end_token(lesson1):
    end = pad = 9  # the end token is the pad token: a mask made from ids would lose it
    batch = lesson1.pad_batch([([1, 2, end], [-100, 2, end]), ([3], [-100])], pad)
    assert batch["input_ids"].tolist() == [[1, 2, 9], [3, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 9], [-100, -100, -100]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


LABELS = torch.where(MASK.bool(), torch.arange(25).view(5, 5) % 7, -100)


def test_sft_loss_is_what_a_slow_loop_finds(lesson1):
    logits = normal(5, 5, 7)
    losses = [-logits[b, t - 1].log_softmax(-1)[LABELS[b, t]] for b, t in REAL if t > 0]
    assert len(losses) == 7
    close(lesson1.sft_loss(logits, LABELS), sum(losses) / 7)


def test_sft_loss_by_hand(lesson1):
    logits = torch.tensor([[[.5, .3, .2], [.1, .8, .1], [.9, .05, .05]]]).log()
    labels = torch.tensor([[0, 2, 1]])  # the first has nothing before it; the last logits are idle
    close(lesson1.sft_loss(logits, labels), -(math.log(.2) + math.log(.8)) / 2)


def test_sft_loss_gradient_is_softmax_minus_one_hot(lesson1):
    logits = normal(5, 5, 7)
    expected = torch.zeros(5, 5, 7)
    for b, t in REAL:
        if t > 0:
            expected[b, t - 1] = logits[b, t - 1].softmax(-1) / 7
            expected[b, t - 1, LABELS[b, t]] -= 1 / 7
    close(gradient(lambda x: lesson1.sft_loss(x, LABELS), logits)[1], expected)


def test_sft_loss_does_not_see_padding(lesson1):
    logits = normal(5, 5, 7)
    padded = torch.cat([logits, 100 * normal(5, 3, 7, seed=1)], dim=1)
    labels = torch.cat([LABELS, torch.full((5, 3), -100)], dim=1)
    close(lesson1.sft_loss(padded, labels), lesson1.sft_loss(logits, LABELS))


def test_sft_loss_without_labels_is_zero(lesson1):
    labels = torch.full((2, 3), -100)
    value, grad = gradient(lambda x: lesson1.sft_loss(x, labels), normal(2, 3, 7))
    assert value == 0 and not grad.any()


def test_sft_loss_of_micro_batches_adds_up(lesson1):
    adds_up(lesson1.sft_loss, (normal(5, 5, 7), LABELS), 7)


def test_sft_loss_computes_in_float32(lesson1):
    logits = normal(5, 5, 7).bfloat16()
    loss = lesson1.sft_loss(logits, LABELS)
    assert loss.dtype == torch.float32
    close(loss, lesson1.sft_loss(logits.float(), LABELS))


def test_sft_loss_is_finite_for_large_logits(lesson1):
    logits = torch.tensor([[[200., -200.], [0., 0.]]])
    close(lesson1.sft_loss(logits, torch.tensor([[0, 1]])), 400.)


def test_perplexity_of_hesitating_between_seven_tokens_is_seven(lesson1):
    loss = lesson1.sft_loss(torch.zeros(5, 5, 7), LABELS)
    close(lesson1.corpus_perplexity(loss.view(1), torch.tensor([7])), 7., 1e-5)


def test_perplexity_weighs_tokens_not_batches(lesson1):
    perplexity = lesson1.corpus_perplexity(torch.tensor([1., 3.]), torch.tensor([3, 1]))
    close(perplexity, math.exp(1.5))  # (3 * 1 + 1 * 3) / 4


# ---- Lesson 2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_last_token_index_on_either_side_of_the_padding(lesson2, dtype):
    mask = [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 0]]
    index = lesson2.last_token_index(torch.tensor(mask, dtype=dtype))
    assert index.tolist() == [3, 1, 3, 0, 3, 2]


@pytest.mark.parametrize("mask, last", [([[1, 1, 0], [1, 0, 0], [1, 1, 1]], [1, 0, 2]),
                                        ([[0, 1, 1], [0, 0, 1], [1, 1, 1]], [2, 2, 2])])
def test_pool_scores_reads_the_last_real_token_alone(lesson2, mask, last):
    scores = normal(3, 3)
    value, grad = gradient(lambda x: lesson2.pool_scores(x, torch.tensor(mask)), scores)
    assert value.tolist() == [scores[row, column].item() for row, column in enumerate(last)]
    assert grad.nonzero().tolist() == [[row, column] for row, column in enumerate(last)]


def test_preference_probability_by_hand(lesson2):
    chosen, rejected = torch.tensor([math.log(3), 5., -200.]), torch.tensor([0., 5., 200.])
    close(lesson2.preference_probability(chosen, rejected), [.75, .5, 0.])
    close(lesson2.preference_probability(rejected, chosen), [.25, .5, 1.])


def test_pairwise_loss_by_hand(lesson2):
    chosen, rejected = torch.tensor([math.log(3) + 7, 1.]), torch.tensor([7., 1.])
    close(lesson2.pairwise_loss(chosen, rejected), (math.log(4 / 3) + math.log(2)) / 2)


def test_pairwise_loss_asks_for_the_margin(lesson2):
    chosen, rejected = torch.tensor([3., 2.]), torch.tensor([1., 0.])
    close(lesson2.pairwise_loss(chosen, rejected, 2.), math.log(2))  # exactly the margin: a tie
    each = torch.tensor([2., 2 - math.log(3)])  # a margin of its own for every pair
    close(lesson2.pairwise_loss(chosen, rejected, each), (math.log(2) + math.log(4 / 3)) / 2)


def test_pairwise_loss_is_finite_for_large_scores(lesson2):
    large = torch.tensor([200.])
    close(lesson2.pairwise_loss(-large, large), 400.)
    close(lesson2.pairwise_loss(large, -large), 0.)
    close(gradient(lambda x: lesson2.pairwise_loss(x, large), -large)[1], [-1.])


def test_pairwise_loss_gradient_is_minus_the_chance_of_losing(lesson2):
    chosen = torch.tensor([math.log(3), 0.])
    close(gradient(lambda x: lesson2.pairwise_loss(x, torch.zeros(2)), chosen)[1], [-.125, -.25])
    close(gradient(lambda x: lesson2.pairwise_loss(chosen, x), torch.zeros(2))[1], [.125, .25])


def test_pairwise_loss_of_micro_batches_adds_up(lesson2):
    adds_up(lambda chosen, rejected, count: lesson2.pairwise_loss(chosen, rejected, .5, count),
            (normal(5), normal(5, seed=1)), 5)


def test_a_tie_is_no_success(lesson2):
    accuracy = lesson2.preference_accuracy(torch.tensor([1., 2., 3.]), torch.tensor([0., 2., 5.]))
    close(accuracy, 1 / 3)


# ---- Lesson 3 (and 4): log-probabilities, mask, KL, entropy -------------------------------------


def test_response_logprobs_are_read_one_position_earlier(lesson3):
    for batch, length in (3, 3), (2, 5), (4, 1):  # B equal to T and not
        logits = normal(batch, length + 1, 7)
        response = torch.arange(batch * length).view(batch, length) % 7
        expected = [[logits[b, t].log_softmax(-1)[response[b, t]] for t in range(length)]
                    for b in range(batch)]
        close(lesson3.response_logprobs(logits, response), expected)


def test_response_logprobs_divide_the_logits_by_the_temperature(lesson3):
    logits = torch.tensor([[[0., math.log(3)], [9., 9.]]])
    close(lesson3.response_logprobs(logits, torch.tensor([[1]])), [[math.log(3 / 4)]])
    close(lesson3.response_logprobs(logits, torch.tensor([[1]]), 0.5), [[math.log(9 / 10)]])


def test_response_logprobs_compute_in_float32(lesson3):
    logits = (10 * normal(2, 4, 300)).bfloat16()
    response = torch.tensor([[0, 7, 299], [5, 5, 5]])
    logprobs = lesson3.response_logprobs(logits, response, 0.7)
    assert logprobs.dtype == torch.float32
    close(logprobs, lesson3.response_logprobs(logits.double().float(), response, 0.7))


def test_response_logprobs_are_finite_for_large_logits(lesson3):
    logits = torch.tensor([[[200., -200.], [0., 0.]]])
    close(lesson3.response_logprobs(logits, torch.tensor([[1]])), [[-400.]])


def test_response_mask_ends_with_the_first_end_token(lesson3):
    ends, pad = [8, 9], 0
    response = torch.tensor([[1, 2, 3, 4], [9, pad, pad, pad], [1, 8, 2, 9], [1, 9, 9, 9],
                             [pad, 1, 2, 8]])
    mask = lesson3.response_mask(response, ends)
    assert mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert mask.dtype == torch.float32


POLICY, REFERENCE = torch.tensor([.5, .3, .2]), torch.tensor([.2, .3, .5])
KL = .5 * math.log(.5 / .2) + .2 * math.log(.2 / .5)  # .2749


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expected_kl_estimate_is_the_kl(lesson3, estimator):
    estimates = lesson3.kl_penalty(POLICY.log(), REFERENCE.log(), estimator)
    assert KL == pytest.approx(.2749, abs=1e-4)
    close((POLICY * estimates).sum(), KL)


def test_kl_estimates_by_hand(lesson3):
    policy, reference = torch.tensor([math.log(.5)]), torch.tensor([math.log(.2)])
    assert lesson3.kl_penalty(policy, reference).item() == pytest.approx(math.log(2.5))
    assert lesson3.kl_penalty(policy, reference, "k1").item() == pytest.approx(math.log(2.5))
    assert lesson3.kl_penalty(policy, reference, "k2").item() == pytest.approx(.5 * .9163**2, 1e-4)
    # .2/.5 - 1 - log(.2/.5); the reversed one would be 1.5 - .9163
    assert lesson3.kl_penalty(policy, reference, "k3").item() == pytest.approx(.3163, 1e-3)


def test_k2_and_k3_are_never_negative(lesson3):
    policy, reference = normal(1000), normal(1000, seed=1)
    close(lesson3.kl_penalty(policy, policy, "k3"), torch.zeros(1000), 0)
    for estimator in "k2", "k3":
        assert (lesson3.kl_penalty(policy, reference, estimator) >= 0).all()
    assert (lesson3.kl_penalty(policy, reference, "k1") < 0).any()


def test_k3_keeps_its_precision_near_zero(lesson3):
    difference = torch.tensor([1e-3], dtype=torch.float64)
    close(lesson3.kl_penalty(torch.zeros(1), difference.float(), "k3") * 1e7,
          (torch.exp(difference) - 1 - difference) * 1e7, 1e-2)


def test_expected_gradient_of_the_kl_estimates(lesson3):
    """As a loss, k1 does nothing on average; k2 has the gradient of the KL, and k3 that of the KL
    the other way round."""
    logits = normal(3, dtype=torch.float64)

    def expected_gradient(estimator):
        samples = logits.softmax(-1)  # drawn, not differentiated
        return gradient(lambda x: samples * lesson3.kl_penalty(
            x.log_softmax(-1), REFERENCE.log(), estimator), logits)[1]

    p, log_reference = logits.softmax(-1), REFERENCE.double().log()
    close(expected_gradient("k1"), torch.zeros(3), 1e-7)
    log_ratio = logits.log_softmax(-1) - log_reference
    close(expected_gradient("k2"), p * (log_ratio - (p * log_ratio).sum()))
    close(expected_gradient("k3"), p - REFERENCE.double())


def test_unknown_kl_estimator_is_refused(lesson3):
    with pytest.raises(KeyError, match="k4"):
        lesson3.kl_penalty(torch.zeros(1), torch.zeros(1), "k4")


def test_entropy_by_hand(lesson3):
    logits = torch.stack([POLICY.log() + 5, torch.zeros(3), torch.tensor([200., -200., 0.])])
    entropy = -(.5 * math.log(.5) + .3 * math.log(.3) + .2 * math.log(.2))
    for row, expected in enumerate([entropy, math.log(3), 0.]):
        mask = torch.zeros(1, 3)
        mask[0, row] = 1
        close(lesson3.masked_entropy(logits.unsqueeze(0), mask), expected)
    close(lesson3.masked_entropy(logits.unsqueeze(0), torch.tensor([[1., 1., 0.]])),
          (entropy + math.log(3)) / 2)


def test_entropy_is_a_mean_over_tokens_and_adds_up(lesson3):
    logits = 3 * normal(5, 5, 7)
    tokens = [torch.distributions.Categorical(logits=logits[b, t]).entropy() for b, t in REAL]
    close(lesson3.masked_entropy(logits, MASK), sum(tokens) / 11)
    adds_up(lesson3.masked_entropy, (logits, MASK), 11)


def test_entropy_gradient(lesson3):
    """dH/dz = -p (log p + H)."""
    logits = normal(1, 1, 5)
    p, logp = logits.softmax(-1), logits.log_softmax(-1)
    close(gradient(lambda x: lesson3.masked_entropy(x, torch.ones(1, 1)), logits)[1],
          -p * (logp - (p * logp).sum()))


def test_entropy_of_no_tokens_is_zero(lesson3):
    value, grad = gradient(
        lambda x: lesson3.masked_entropy(x, torch.zeros(2, 3)), 200 * normal(2, 3, 7))
    assert value == 0 and not grad.any()


def test_entropy_computes_in_float32(lesson3):
    logits = normal(5, 5, 7).bfloat16()
    entropy = lesson3.masked_entropy(logits, MASK)
    assert entropy.dtype == torch.float32
    close(entropy, lesson3.masked_entropy(logits.float(), MASK))


# ---- Lesson 3: rewards, advantages, losses ------------------------------------------------------


def test_the_score_lands_on_the_last_real_token(lesson3):
    kl = torch.tensor([[1., 2., 3.], [4., 5., 6.], [7., 8., 9.]])
    mask = torch.tensor([[1., 1., 0.], [1., 0., 0.], [1., 1., 1.]])
    rewards = lesson3.shape_rewards(torch.tensor([10., 20., 30.]), kl, mask, 0.1)
    close(rewards, [[-.1, 9.8, 0.], [19.6, 0., 0.], [-.7, -.8, 29.1]])


def test_rewards_do_not_see_what_stands_at_padding(lesson3):
    kl = torch.tensor([[1., math.nan], [math.inf, math.nan]])
    mask = torch.tensor([[1., 0.], [0., 0.]])
    assert lesson3.shape_rewards(torch.tensor([1., 1.]), kl, mask, 0.5).tolist() == [[.5, 0.],
                                                                                      [0., 0.]]


def test_gae_by_hand(lesson3):
    rewards, values = torch.tensor([[0., 0., 1.]]), torch.tensor([[.5, .6, .7]])
    # delta = .9 * .6 - .5 = .04,  .9 * .7 - .6 = .03,  1 - .7 = .3; gamma * lam = .45
    advantages, returns = lesson3.compute_gae(rewards, values, torch.ones(1, 3), .9, .5)
    close(advantages, [[.11425, .165, .3]])
    close(returns, [[.61425, .765, 1.]])


@pytest.mark.parametrize("gamma, lam", [(.9, .8), (.8, .9), (1., .95), (.9, 0.), (.9, 1.)])
def test_gae_follows_its_definition(lesson3, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}; past the end there is no reward and no value."""
    rewards, values = normal(5, 5), normal(5, 5, seed=1)  # padding is full of numbers
    expected = torch.zeros(5, 5)
    for b, t in REAL:
        for s in range(t, LENGTHS[b]):
            after = values[b, s + 1] if s + 1 < LENGTHS[b] else 0.
            delta = rewards[b, s] + gamma * after - values[b, s]
            expected[b, t] += (gamma * lam)**(s - t) * delta
    advantages, returns = lesson3.compute_gae(rewards, values, MASK, gamma, lam)
    close(advantages, expected)
    close(returns, (expected + values) * MASK)


def test_gae_with_lambda_one_learns_the_discounted_rewards(lesson3):
    rewards, values = torch.tensor([[1., 2., 4.]]), normal(1, 3)
    returns = lesson3.compute_gae(rewards, values, torch.ones(1, 3), .5, 1.)[1]
    close(returns, [[3., 4., 4.]])


def test_gae_leaves_its_inputs_and_takes_no_gradient(lesson3):
    rewards, values = normal(5, 5), normal(5, 5, seed=1).requires_grad_()
    before = rewards.clone(), values.detach().clone()
    advantages, returns = lesson3.compute_gae(rewards, values, MASK, .9, .8)
    assert not advantages.requires_grad and not returns.requires_grad
    close(torch.stack([rewards, values]), torch.stack(before), 0)


def test_whitening_by_hand(lesson3):
    x = torch.tensor([[1., 2., 100.], [3., 100., 100.]])
    mask = torch.tensor([[1., 1., 0.], [1., 0., 0.]])  # mean 2 and variance 1 over both rows
    close(lesson3.masked_whiten(x, mask), [[-1., 0., 0.], [1., 0., 0.]])
    close(lesson3.masked_whiten(x, mask, shift_mean=False), [[1., 2., 0.], [3., 0., 0.]])
    close(lesson3.masked_whiten(4 * x, mask, shift_mean=False), [[7., 8., 0.], [9., 0., 0.]])


def test_whitening_takes_the_unbiased_variance(lesson3):
    close(lesson3.masked_whiten(torch.tensor([[0., 2.]]), torch.ones(1, 2)), [[-.5**.5, .5**.5]])


@pytest.mark.parametrize("tokens", [0, 1])
def test_whitening_nothing_or_one_token_gives_zero(lesson3, tokens):
    mask = torch.zeros(2, 3)
    mask[0, :tokens] = 1
    close(lesson3.masked_whiten(normal(2, 3), mask), torch.zeros(2, 3), 0)


QUADRANTS = torch.tensor([[1.5, .5, 1.5, .5]]).log(), torch.tensor([[2., 2., -2., -2.]])


def test_policy_loss_in_the_four_quadrants(lesson3):
    """Ratio 1.5 or 0.5, advantage 2 or -2. Where the step was too far in the good direction there
    is no gradient; where it went the wrong way, there is all of it."""
    logprobs, advantages = QUADRANTS
    for i, (loss, slope, clipped) in enumerate([(-2.4, 0, 1), (-1., -1., 0), (3., 3., 0),
                                                (1.6, 0, 1)]):
        mask = torch.eye(4)[i:i + 1]

        def policy_loss(x):
            return lesson3.ppo_policy_loss(x - 5, torch.full((1, 4), -5.), advantages, mask, .2)

        value, grad = gradient(lambda x: policy_loss(x)[0], logprobs)
        close(value, loss)
        close(grad, slope * mask)
        assert policy_loss(logprobs)[1] == clipped


def test_policy_loss_at_ratio_one_is_minus_the_mean_advantage(lesson3):
    advantages, logprobs = normal(5, 5), normal(5, 5, seed=1)
    value, grad = gradient(lambda x: lesson3.ppo_policy_loss(
        x, logprobs, advantages, MASK, .2)[0], logprobs)
    close(value, -(advantages * MASK).sum() / 11)
    close(grad, -advantages * MASK / 11)


def test_policy_loss_is_what_a_slow_loop_finds(lesson3):
    new, old, advantages = normal(5, 5), normal(5, 5, seed=1), normal(5, 5, seed=2)
    losses, clipped = [], 0
    for b, t in REAL:
        ratio, a = math.exp(new[b, t] - old[b, t]), advantages[b, t].item()
        objective = min(ratio * a, min(max(ratio, .7), 1.3) * a)
        losses.append(-objective)
        clipped += (a > 0 and ratio > 1.3) or (a < 0 and ratio < .7)
    loss, fraction = lesson3.ppo_policy_loss(new, old, advantages, MASK, .3)
    close(loss, sum(losses) / 11)
    assert 0 < clipped < 11
    close(fraction, clipped / 11)


def test_policy_loss_does_not_see_padding(lesson3):
    new, old, advantages = normal(5, 5), normal(5, 5, seed=1), normal(5, 5, seed=2)

    def losses(noise):
        wild = [torch.where(MASK.bool(), x, noise) for x in (old, advantages)]
        return gradient(lambda x: torch.stack(
            lesson3.ppo_policy_loss(x, *wild, MASK, .2)), new)

    for actual, expected in zip(losses(-30.), losses(0.)):
        close(actual, expected)


def test_policy_loss_of_micro_batches_adds_up(lesson3):
    tensors = [normal(5, 5, seed=i) for i in range(3)] + [MASK]
    for output in 0, 1:
        adds_up(lambda new, old, advantages, mask, count: lesson3.ppo_policy_loss(
            new, old, advantages, mask, .2, count)[output] + 0 * new.sum(), tensors, 11)


def test_value_loss_by_hand(lesson3):
    """The old value is 0, the new one 1, and moving by 0.2 was allowed."""
    for target, loss, slope in (2., 1.62, 0.), (.1, .405, .9), (-1., 2., 2.):
        value, grad = gradient(lambda x: lesson3.ppo_value_loss(
            x, torch.zeros(1, 2), torch.full((1, 2), target), torch.tensor([[1., 0.]]), .2),
            torch.tensor([[1., 50.]]))
        close(value, loss)
        close(grad, [[slope, 0.]])


def test_value_loss_is_what_a_slow_loop_finds(lesson3):
    values, old, returns = normal(5, 5), normal(5, 5, seed=1), normal(5, 5, seed=2)
    losses = []
    for b, t in REAL:
        v, o, r = values[b, t].item(), old[b, t].item(), returns[b, t].item()
        clipped = o + min(max(v - o, -.2), .2)
        losses.append(max((v - r)**2, (clipped - r)**2) / 2)
    close(lesson3.ppo_value_loss(values, old, returns, MASK, .2), sum(losses) / 11)


def test_value_loss_of_micro_batches_adds_up(lesson3):
    tensors = [normal(5, 5, seed=i) for i in range(3)] + [MASK]
    adds_up(lambda values, old, returns, mask, count: lesson3.ppo_value_loss(
        values, old, returns, mask, .2, count), tensors, 11)


def test_losses_of_no_tokens_are_zero(lesson3):
    x, other, mask = normal(2, 3), normal(2, 3, seed=1), torch.zeros(2, 3)
    for loss in (lambda x: lesson3.ppo_policy_loss(x, other, other, mask, .2)[0],
                 lambda x: lesson3.ppo_value_loss(x, other, other, mask, .2)):
        value, grad = gradient(loss, x)
        assert value == 0 and not grad.any()
    assert lesson3.ppo_policy_loss(x, other, other, mask, .2)[1] == 0


def test_gradients_of_the_losses_agree_with_finite_differences(lesson2, lesson3, lesson4):
    x, a, b, c = (normal(5, 5, seed=i, dtype=torch.float64) for i in range(4))
    for loss in (lambda x: lesson3.ppo_policy_loss(x, a, b, MASK, .2)[0],
                 lambda x: lesson3.ppo_value_loss(x, a, b, MASK, .2),
                 lambda x: lesson3.kl_penalty(x, a, "k2"), lambda x: lesson3.kl_penalty(x, a, "k3"),
                 lambda x: lesson2.pairwise_loss(x[0], a[0], .5),
                 lambda x: lesson4.grpo_token_loss(x, a, c, b[0], .1, .2, .3)):
        assert torch.autograd.gradcheck(loss, x.clone().requires_grad_())


def test_adaptive_kl_coef_by_hand(lesson3):
    for observed, expected in (6., .1), (6.6, .101), (5.4, .099), (60., .102), (0., .098):
        assert lesson3.adaptive_kl_coef(.1, observed, 6., 64, 640) == pytest.approx(expected)


# ---- Lesson 4 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("response, reward", [
    ("42", 1.), (" 42.\n", 1.), ("42 .", 1.), ("", 0.), ("43", 0.), ("042", 0.), ("42.0", 0.),
    ("+42", 0.), ("4 2", 0.), ("42 or 43", 0.), ("27 + 15", 0.), ("forty-two", 0.), ("142", 0.)])
def test_sum_reward(lesson4, response, reward):
    result = lesson4.sum_reward("What is 27 + 15?", response)
    assert result == reward and isinstance(result, float)


def test_sum_reward_without_a_sum_is_zero(lesson4):
    assert lesson4.sum_reward("Write a short review of the spy film.", "42") == 0.


def test_group_advantages_by_hand(lesson4):
    rewards = torch.tensor([0., 0., 1., 1., 5., 5., 5., 9.])  # std .57735 and 2 (divided by G - 1)
    first, second = .5 / (math.sqrt(1 / 3) + 1e-4), 1 / (2 + 1e-4)
    close(lesson4.group_advantages(rewards, 4),
          [-first, -first, first, first, -second, -second, -second, 3 * second])
    close(lesson4.group_advantages(rewards, 4, "none"), [-.5, -.5, .5, .5, -1, -1, -1, 3])


def test_group_advantages_add_eps_outside_the_root(lesson4):
    advantages = lesson4.group_advantages(torch.tensor([0., 1e-4]), 2)
    close(advantages, [-.292893, .292893], 1e-4)  # .5 / (sqrt(.5) + 1)


def test_group_advantages_are_those_of_each_group_alone(lesson4):
    rewards = normal(12) + torch.arange(12) // 4 * 5
    for scale in "std", "none":
        alone = [lesson4.group_advantages(group, 4, scale) for group in rewards.split(4)]
        close(lesson4.group_advantages(rewards, 4, scale), torch.cat(alone))
        close(torch.stack(alone).sum(dim=1), torch.zeros(3), 1e-5)


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("rewards, size", [([.1] * 8, 8), ([.1, .7, 1 / 3], 1), ([1e6] * 3, 3)])
def test_group_without_spread_has_advantage_exactly_zero(lesson4, scale, rewards, size):
    advantages = lesson4.group_advantages(torch.tensor(rewards), size, scale)
    assert advantages.tolist() == [0.] * len(rewards)


def test_informative_groups_have_some_spread(lesson4):
    rewards = torch.tensor([.1, .1, .1, 0., 0., 1., 1., 1., 1., 0., 0., 0.])
    assert lesson4.informative_groups(rewards, 3).tolist() == [False, True, False, False]
    assert lesson4.informative_groups(torch.full((8,), .1), 8).tolist() == [False]  # std is 8e-9


def test_token_loss_in_the_four_quadrants(lesson4):
    """Clipped at 0.8 below and 1.28 above. A row has one advantage for all its tokens."""
    logprobs, reference = QUADRANTS[0].expand(2, 4), torch.full((2, 4), math.nan)  # not looked at
    value, grad = gradient(lambda x: lesson4.grpo_token_loss(
        x - 5, torch.full((2, 4), -5.), reference, torch.tensor([2., -2.]), 0., .2, .28), logprobs)
    close(value, [[-2.56, -1., -2.56, -1.], [3., 1.6, 3., 1.6]])
    close(grad, [[0., -1., 0., -1.], [3., 0., 3., 0.]])


def test_token_loss_is_what_a_slow_loop_finds(lesson4):
    new, old, ref = (normal(4, 4, seed=i) for i in range(3))  # B equal to T: no broadcast saves us
    advantages = torch.tensor([1., -2., .5, 0.])
    expected = torch.zeros(4, 4)
    for b, t in itertools.product(range(4), range(4)):
        a, ratio = advantages[b], torch.exp(new[b, t] - old[b, t])
        objective = min(ratio * a, ratio.clamp(.8, 1.28) * a)
        d = ref[b, t] - new[b, t]
        expected[b, t] = -objective + .3 * (torch.exp(d) - d - 1)
    close(lesson4.grpo_token_loss(new, old, ref, advantages, .3, .2, .28), expected, 1e-5)


def test_the_three_averages_by_hand(lesson4):
    losses = torch.tensor([[1., 2., 3., math.nan], [5., math.nan, math.inf, 7.]])
    mask = torch.tensor([[1., 1., 1., 0.], [1., 0., 0., 0.]])
    close(lesson4.aggregate_loss(losses, mask, "sequence"), 3.5)  # (2 + 5) / 2
    close(lesson4.aggregate_loss(losses, mask, "token"), 2.75)  # 11 / 4
    close(lesson4.aggregate_loss(losses, mask, "constant", max_length=10), .55)  # 11 / (2 * 10)
    with pytest.raises(ValueError, match="median"):
        lesson4.aggregate_loss(losses, mask, "median")


@pytest.mark.parametrize("average, count", [("sequence", 5), ("token", 11), ("constant", 40)])
def test_the_three_averages_of_micro_batches_add_up(lesson4, average, count):
    adds_up(lambda losses, mask, count: lesson4.aggregate_loss(losses, mask, average, 8, count),
            (normal(5, 5), MASK), count)


@pytest.mark.parametrize("average", ["sequence", "token", "constant"])
def test_the_three_averages_of_no_tokens_are_zero(lesson4, average):
    value, grad = gradient(
        lambda x: lesson4.aggregate_loss(x, torch.zeros(2, 3), average, 3), normal(2, 3))
    assert value == 0 and not grad.any()


def test_pass_at_k_counts_the_subsets_with_a_right_sample(lesson4):
    for n in range(1, 7):
        for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert lesson4.pass_at_k(n, correct, k) == pytest.approx(expected)


def test_pass_at_k_of_many_samples(lesson4):
    assert lesson4.pass_at_k(2000, 1, 1000) == pytest.approx(.5)
    with pytest.raises(ValueError, match="pass@3"):
        lesson4.pass_at_k(2, 1, 3)
