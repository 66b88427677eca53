"""Short training runs of a tiny GPT-2, each lesson's algorithm on fixed data, with somebody's
functions. There is no formula here: every number comes from a function of the module that is
passed in, and what it returns is recorded in the order in which it is asked for.

`train(module, name)` -> {"status": "returned", "steps": [{quantity: value}, ...]}; "blocked" names
the stub that it ran into."""

import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.distributions import Categorical
from transformers import GPT2Config, GPT2LMHeadModel

from perform import failure

VOCABULARY, END, PAD = 258, 256, 257  # the tokens are bytes
STEPS = 3


def tiny_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, initializer_range=0.1, bos_token_id=END, eos_token_id=END,
        pad_token_id=PAD))


def descend(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_sft(student, steps):
    texts = [("Add 1 and 2.", "", "3"), ("Translate:", "tea", "cha"), ("Say hello.", "", "Hello!"),
             ("Write a review.", "", "The story was lovely."), ("Repeat:", "ab", "ab"),
             ("Count to three.", "", "1 2 3")]
    examples = [student.build_labels(
        list(student.format_prompt(instruction, input).encode()), list(answer.encode()), END, 80)
        for instruction, input, answer in texts]
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, tokens = [], []
    for step in range(STEPS):
        batch = student.pad_batch(examples[step:step + 3], PAD)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = student.sft_loss(logits, batch["labels"])
        descend(loss, optimizer)
        losses.append(loss.detach())
        tokens.append((batch["labels"] >= 0).sum())
        steps.append({**batch, "loss": losses[-1], "perplexity so far": student.corpus_perplexity(
            torch.stack(losses), torch.stack(tokens))})


def train_reward(student, steps):
    model = tiny_model()
    head = nn.Linear(32, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    ids = torch.randint(0, 256, (8, 10), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([10, 7, 4, 9, 1, 10, 6, 3]).unsqueeze(1)
    mask = (torch.arange(10) < lengths).long()
    for _ in range(STEPS):
        states = model.transformer(ids, attention_mask=mask).last_hidden_state
        scores = student.pool_scores(head(states).squeeze(-1), mask)
        chosen, rejected = scores.chunk(2)
        loss = student.pairwise_loss(chosen, rejected, 0.1)
        descend(loss, optimizer)
        steps.append({"last tokens": student.last_token_index(mask), "scores": scores.detach(),
                      "probability": student.preference_probability(chosen, rejected).detach(),
                      "accuracy": student.preference_accuracy(chosen, rejected),
                      "loss": loss.detach()})


def a_rollout():
    """Prompts of 4 tokens and responses of 6, some of which end early."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 256, (8, 10), generator=generator)
    for row, length in enumerate([6, 3, 1, 5, 6, 2, 4, 6]):
        if length < 6 or row == 0:
            ids[row, 4 + length - 1] = END
    return SimpleNamespace(ids=ids, response=ids[:, 4:],
                           scores=torch.randn(8, generator=generator))


def train_ppo(student, steps):
    rollout, model = a_rollout(), tiny_model()
    reference, head = copy.deepcopy(model), nn.Linear(32, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    mask = student.response_mask(rollout.response, [END])
    kl_coef = 0.1

    def logits_and_values():
        output = model(rollout.ids, logits_to_keep=7, output_hidden_states=True)
        return output.logits, head(output.hidden_states[-1][:, 3:-1]).squeeze(-1)

    for _ in range(STEPS):
        with torch.no_grad():
            logits, old_values = logits_and_values()
            old = student.response_logprobs(logits, rollout.response)
            ref = student.response_logprobs(
                reference(rollout.ids, logits_to_keep=7).logits, rollout.response)
        kl = student.kl_penalty(old, ref, "k1")
        rewards = student.shape_rewards(rollout.scores, kl, mask, kl_coef)
        raw, returns = student.compute_gae(rewards, old_values, mask, 0.99, 0.9)
        advantages = student.masked_whiten(raw, mask)
        record = {"mask": mask, "log-probabilities": old, "KL": kl, "rewards": rewards,
                  "raw advantages": raw, "returns": returns, "advantages": advantages}
        for epoch in 1, 2:
            logits, values = logits_and_values()
            logprobs = student.response_logprobs(logits, rollout.response)
            policy_loss, clipped = student.ppo_policy_loss(logprobs, old, advantages, mask, 0.01)
            value_loss = student.ppo_value_loss(values, old_values, returns, mask, 0.01)
            entropy = student.masked_entropy(logits[:, :-1], mask)
            descend(policy_loss + 0.5 * value_loss - 0.01 * entropy, optimizer)
            parts = {"policy loss": policy_loss, "clip fraction": clipped,
                     "value loss": value_loss, "entropy": entropy}
            record |= {f"{name} of epoch {epoch}": part.detach() for name, part in parts.items()}
        kl_coef = student.adaptive_kl_coef(kl_coef, 4.0, 3.0, 8, 80)
        steps.append({**record, "KL coefficient": kl_coef})


def train_grpo(student, steps):
    rollout, model = a_rollout(), tiny_model()
    reference = copy.deepcopy(model)
    with torch.no_grad():  # the reference is another model than the one that sampled
        reference.lm_head.weight.mul_(0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 5, 6, 2, 4, 6]).unsqueeze(1)).float()
    answers = ["5", "6", "5.", "7", "9", "9", "9", "9"]
    rewards = torch.tensor([student.sum_reward(prompt, answer) for prompt, answer in zip(
        ["What is 2 + 3?"] * 4 + ["What is 4 + 4?"] * 4, answers)])
    passed = student.pass_at_k(8, int(rewards.sum()), 2)

    def logprobs_of(lm):
        logits = lm(rollout.ids, logits_to_keep=7).logits[:, :-1]
        return Categorical(logits=logits).log_prob(rollout.response)

    for average in "sequence", "token", "constant":
        advantages = student.group_advantages(rewards, 4)
        with torch.no_grad():
            old, ref = logprobs_of(model), logprobs_of(reference)
        record = {"rewards": rewards, "pass@2": passed, "advantages": advantages,
                  "informative groups": student.informative_groups(rewards, 4)}
        for epoch in 1, 2:
            token_loss = student.grpo_token_loss(
                logprobs_of(model), old, ref, advantages, 0.1, 0.01, 0.02)
            loss = student.aggregate_loss(token_loss, mask, average, 6)
            descend(loss, optimizer)
            record[f"loss of epoch {epoch}, average {average}"] = loss.detach()
        steps.append(record)


RUNS = {"ex1_sft": train_sft, "ex2_reward": train_reward, "ex3_ppo": train_ppo,
        "ex4_grpo": train_grpo}


def train(module, name):
    steps = []
    try:
        RUNS[name](module, steps)
    except Exception as error:
        return {**failure(error, module.__file__), "steps": steps}
    return {"status": "returned", "steps": steps}
