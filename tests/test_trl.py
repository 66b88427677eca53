"""The answers agree with TRL, the library that most of the field trains with. The numbers in
fixtures/ were made by fixtures/make_trl.py, which says how and with which releases; TRL need not be
installed to compare with them."""

import json
from pathlib import Path

import pytest
import torch
from checks.core import load_answers
from safetensors.torch import load_file

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TRL = load_file(FIXTURES / "trl.safetensors")
SETTINGS = json.loads((FIXTURES / "trl.json").read_text("utf-8"))
GRPO, PPO = SETTINGS["grpo"], SETTINGS["ppo"]
GROUP = GRPO["num_generations"]
AVERAGE = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}

ex1, ex2, ex3, ex4 = map(load_answers, ("ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"))


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-5, atol=1e-5)


def part(prefix):
    """The tensors under a name."""
    return {name[len(prefix) + 1:]: x for name, x in TRL.items() if name.startswith(f"{prefix}/")}


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


# ---- Functions ----------------------------------------------------------------------------------


def test_log_probabilities():
    x = part("functions")
    logits = torch.cat([x["logits"], torch.zeros(3, 1, 16)], dim=1)  # TRL is not given the last one
    close(ex3.response_logprobs(logits, x["tokens"]), x["logprobs"])
    temperature = SETTINGS["functions"]["temperature"]
    close(ex3.response_logprobs(logits, x["tokens"], temperature), x["logprobs_temperature"])


def test_entropy():
    x = part("functions")
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(5)):
        one = torch.zeros(3, 5)
        one[b, t] = 1.0
        close(ex3.masked_entropy(x["logits"], one), x["entropy"][b, t])


@pytest.mark.parametrize("size", ["large", "small"])
def test_whitening(size):
    x, mask = part(f"whiten/{size}"), TRL["whiten/mask"]
    # TRL leaves numbers on the padding and masks them later.
    close(ex3.masked_whiten(x["values"], mask), x["shift1"] * mask)
    close(ex3.masked_whiten(x["values"], mask, shift_mean=False), x["shift0"] * mask)


# ---- GRPO ---------------------------------------------------------------------------------------


def grpo_logprobs():
    """The weights of the head, and the log-probabilities that come from them."""
    head = TRL["grpo/head"].clone().requires_grad_()
    logits = TRL["grpo/hidden"] @ head.T
    return head, ex3.response_logprobs(logits, TRL["grpo/response"], GRPO["temperature"])


def grpo_loss(loss_type, beta, scale, rows, count=None):
    """(loss, its gradient by the weights of the head) of some rows, all from the answers."""
    head, logprobs = grpo_logprobs()
    scale = {"group": "std", "none": "none"}[scale]
    advantages = ex4.group_advantages(TRL["grpo/rewards"], GROUP, scale)
    token_loss = ex4.grpo_token_loss(
        logprobs[rows], TRL["grpo/old_logprobs"][rows],
        TRL["grpo/ref_logprobs"][rows] if beta else None, advantages[rows], beta,
        GRPO["epsilon"], GRPO["epsilon_high"])
    loss = ex4.aggregate_loss(token_loss, TRL["grpo/mask"][rows].float(), AVERAGE[loss_type],
                              GRPO["max_completion_length"], count)
    return loss, gradient(loss, head)


def test_the_rollout_has_the_cases_that_matter():
    mask = TRL["grpo/mask"].bool()
    ratio = (TRL["grpo/logprobs"] - TRL["grpo/old_logprobs"]).exp()
    low, high = 1 - GRPO["epsilon"], 1 + GRPO["epsilon_high"]
    for sign in (-1, 1):
        rows = mask & (TRL["grpo/advantages/group"].unsqueeze(1) * sign > 0)
        assert (ratio[rows] < low).any() and (ratio[rows] > high).any()
        assert ((ratio[rows] > 1 + GRPO["epsilon"]) & (ratio[rows] < high)).any()
    assert set(mask.sum(dim=1).tolist()) >= {0, 1, mask.shape[1]}
    assert not ex4.informative_groups(TRL["grpo/rewards"], GROUP).all()


def test_grpo_log_probabilities_entropy_and_kl():
    x, mask = part("grpo"), TRL["grpo/mask"].float()
    _, logprobs = grpo_logprobs()
    close(logprobs * mask, x["logprobs"])  # TRL's are 0 on the padding
    logits = (x["hidden"] @ x["head"].T)[:, :-1] / GRPO["temperature"]
    close(ex3.masked_entropy(logits, mask), x["mean_entropy"])
    kl = ex3.kl_penalty(logprobs, x["ref_logprobs"], "k3")
    close((kl * mask).sum() / mask.sum(), x["mean_kl"])


def test_group_advantages():
    x = part("grpo")
    close(ex4.group_advantages(x["rewards"], GROUP), x["advantages/group"])
    close(ex4.group_advantages(x["rewards"], GROUP, "none"), x["advantages/none"])


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", AVERAGE)
def test_grpo_loss(loss_type, beta, scale):
    x = part(f"grpo/{loss_type}-{beta}-{scale}")
    loss, head_gradient = grpo_loss(loss_type, beta, scale, slice(None))
    close(loss, x["loss"])
    close(head_gradient, x["head_gradient"])


def test_grpo_loss_with_the_default_of_trl():
    """Unless told use_bias_correction_kl=False, TRL multiplies a token's KL by its ratio
    (DeepSeek-AI 2025, the report on DeepSeek-V3.2), so that the gradient is the KL's. The course
    follows the first GRPO paper (Shao et al. 2024, eq. 3), which has no ratio there."""
    x = part("grpo")
    head, logprobs = grpo_logprobs()
    mask = x["mask"].float()
    ratio = (logprobs - x["old_logprobs"]).exp()
    kl = ratio * ex3.kl_penalty(logprobs, x["ref_logprobs"], "k3")
    advantages = ex4.group_advantages(x["rewards"], GROUP)
    token_loss = ex4.grpo_token_loss(logprobs, x["old_logprobs"], None, advantages, 0.0,
                                     GRPO["epsilon"], GRPO["epsilon_high"])
    loss = ex4.aggregate_loss(token_loss + 0.1 * kl, mask, "token")
    close((kl * mask).sum() / mask.sum(), x["mean_corrected_kl"])
    close(loss, x["dapo-0.1-corrected/loss"])
    close(gradient(loss, head), x["dapo-0.1-corrected/head_gradient"])


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("loss_type", AVERAGE)
def test_grpo_loss_of_half_a_batch(loss_type, half):
    """TRL divides a micro-batch's loss by the number of micro-batches, or by the batch's tokens;
    here `count` says it."""
    mask = TRL["grpo/mask"]
    rows = torch.arange(len(mask)).chunk(2)[half]
    count = {"grpo": len(mask), "dapo": mask.sum(), "bnpo": 2 * mask[rows].sum(),
             "dr_grpo": len(mask) * GRPO["max_completion_length"]}[loss_type]
    x = part(f"grpo/{loss_type}-0.1-group/half{half}")
    loss, head_gradient = grpo_loss(loss_type, 0.1, "group", rows, count)
    close(loss, x["loss"])
    close(head_gradient, x["head_gradient"])


# ---- Reward model -------------------------------------------------------------------------------


@pytest.mark.parametrize("center", ["0", "0.01"])
@pytest.mark.parametrize("margin", [0, 1])
def test_reward_loss(margin, center):
    x = part(f"reward/margin{margin}-center{center}")
    scores = TRL["reward/scores"].clone().requires_grad_()
    chosen, rejected = scores.chunk(2)
    loss = ex2.pairwise_loss(chosen, rejected, TRL["reward/margin"] if margin else None)
    # The term that keeps scores around 0 stands in the loop of lesson 2 and is no exercise.
    loss = loss + float(center) * (chosen + rejected).square().mean()
    close(loss, x["loss"])
    close(gradient(loss, scores), x["gradient"])


def test_scores_and_accuracy():
    x = part("reward")
    close(ex2.pool_scores(x["token_scores"], x["attention_mask"]), x["scores"])
    close(ex2.preference_accuracy(*x["scores"].chunk(2)), x["accuracy"])


# ---- SFT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [None, 20])
def test_sft_loss(count):
    x = part(f"sft/count{count}")
    head = TRL["sft/head"].clone().requires_grad_()
    loss = ex1.sft_loss(TRL["sft/hidden"] @ head.T, TRL["sft/labels"], count)
    close(loss, x["loss"])
    close(gradient(loss, head), x["head_gradient"])


def test_sft_loss_without_labels():
    logits, labels = TRL["sft/hidden"][2:] @ TRL["sft/head"].T, TRL["sft/labels"][2:]
    assert (labels == -100).all()
    close(ex1.sft_loss(logits, labels), TRL["sft/nothing/loss"])


# ---- PPO ----------------------------------------------------------------------------------------
# All responses have the full length: on shorter ones TRL puts the score one position later, on the
# first padding token, and gives that position a value.


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_ppo_rollout(kind):
    x = part(f"ppo/{kind}")
    mask = torch.ones_like(x["values"])
    kl = ex3.kl_penalty(x["logprobs"], x["ref_logprobs"], kind)
    close(kl, x["kl"])
    rewards = ex3.shape_rewards(x["scores"], kl, mask, PPO["kl_coef"])
    close(rewards, x["rewards"])
    advantages, returns = ex3.compute_gae(rewards, x["values"], mask, PPO["gamma"], PPO["lam"])
    close(advantages, x["advantages"])
    close(returns, x["returns"])
    close(ex3.masked_whiten(advantages, mask), x["whitened"])


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_ppo_policy_loss(kind, epoch):
    x, now = part(f"ppo/{kind}"), part(f"ppo/{kind}/epoch{epoch}")
    logprobs = now["logprobs"].clone().requires_grad_()
    loss, clip_fraction = ex3.ppo_policy_loss(
        logprobs, x["logprobs"], x["whitened"], torch.ones_like(logprobs), PPO["cliprange"])
    close(loss, now["policy_loss"])
    close(clip_fraction, now["clip_fraction"])
    close(gradient(loss, logprobs), now["policy_gradient"])
    # TRL's "approxkl" between the policies before and after: the mean of k2.
    close(ex3.kl_penalty(logprobs, x["logprobs"], "k2").mean(), now["approximate_kl"])


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_ppo_value_loss(kind, epoch):
    x, now = part(f"ppo/{kind}"), part(f"ppo/{kind}/epoch{epoch}")
    values = now["values"].clone().requires_grad_()
    loss = ex3.ppo_value_loss(values, x["values"], x["returns"], torch.ones_like(values),
                              PPO["cliprange_value"])
    close(loss, now["value_loss"])
    close(gradient(loss, values), now["value_gradient"])
