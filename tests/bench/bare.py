"""The bare loop: the shortest honest PyTorch for the same work, with transformers' models. All
prompts and all generated responses have one length here, so they need no masks."""

import copy
import json
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from work import Meter, number_reward, read_rows


def batches(job, tokenizer, columns):
    """Of each of the columns, the token ids of a batch's rows, an end token after them."""
    rows, size = read_rows(job["train"]), job["batch_size"]
    for start in range(0, len(rows), size):
        yield [tokenizer([row["prompt"] + row[name] + tokenizer.eos_token for row in
                          rows[start:start + size]])["input_ids"] for name in columns]


def padded(ids, device):
    """-> token ids and mask (B, T), padded on the right."""
    ids = [torch.tensor(row) for row in ids]
    mask = [torch.ones_like(row) for row in ids]
    return [torch.nn.utils.rnn.pad_sequence(x, batch_first=True).to(device) for x in (ids, mask)]


def update(optimizer, loss):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def adamw(job, *modules):
    weights = [weight for module in modules for weight in module.parameters()]
    return torch.optim.AdamW(weights, lr=job["learning_rate"], weight_decay=0.01, fused=True)


def sft(job, model, tokenizer, meter):
    optimizer, source = adamw(job, model), batches(job, tokenizer, ["output"])
    for _ in meter.steps(job["steps"]):
        ids, mask = padded(next(source)[0], model.device)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :job["prompt_length"]] = -100
        update(optimizer, model(ids, attention_mask=mask, labels=labels, use_cache=False).loss)


def reward(job, model, tokenizer, meter):
    optimizer, source = adamw(job, model), batches(job, tokenizer, ["chosen", "rejected"])
    for _ in meter.steps(job["steps"]):
        chosen, rejected = next(source)
        ids, mask = padded(chosen + rejected, model.device)
        scores = model(ids, attention_mask=mask, use_cache=False).logits.squeeze(-1)
        chosen, rejected = scores.chunk(2)
        loss = -F.logsigmoid(chosen - rejected) + 0.01 * (chosen + rejected).square()
        update(optimizer, loss.mean())


def sample(model, prompts, job):
    """-> prompts and sampled responses (B, P+T)."""
    ids = torch.tensor(prompts, device=model.device)
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                          max_new_tokens=job["length"])


def states_and_logprobs(model, ids, length):
    """The states that predict the response, and its log-probabilities (B, T)."""
    trunk = model.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    states = trunk.last_hidden_state[:, -length - 1:-1]
    logprobs = model.lm_head(states).float().log_softmax(dim=-1)
    return states, logprobs.gather(-1, ids[:, -length:, None]).squeeze(-1)


def grpo(job, model, tokenizer, meter):
    reference, optimizer = copy.deepcopy(model).requires_grad_(False), adamw(job, model)
    data = tokenizer([row["prompt"] for row in read_rows(job["data"])])["input_ids"]
    length, group = job["length"], job["group_size"]
    for _ in meter.steps(job["steps"]):
        rows = torch.randint(len(data), (job["num_samples"] // group,)).repeat_interleave(group)
        ids = sample(model, [data[i] for i in rows], job)
        texts = tokenizer.batch_decode(ids[:, -length:], skip_special_tokens=True)
        rewards = torch.tensor(number_reward(None, texts), device=ids.device).view(-1, group)
        advantages = rewards - rewards.mean(dim=1, keepdim=True)
        advantages = (advantages / (rewards.std(dim=1, keepdim=True) + 1e-4)).view(-1, 1)
        with torch.no_grad():
            ref = states_and_logprobs(reference, ids, length)[1]
        logprobs = states_and_logprobs(model, ids, length)[1]
        ratio = (logprobs - logprobs.detach()).exp()  # 1: learned from once, by its own policy
        k3 = torch.expm1(ref - logprobs) - (ref - logprobs)
        update(optimizer, (-advantages * ratio + job["kl_coef"] * k3).mean())


def ppo(job, model, tokenizer, meter):
    reference = copy.deepcopy(model).requires_grad_(False)
    judge = AutoModelForSequenceClassification.from_pretrained(job["reward"] + "/model")
    judge.to(model.device).requires_grad_(False)
    head = torch.nn.Linear(model.lm_head.in_features, 1, device=model.device)
    optimizer, length = adamw(job, model, head), job["length"]
    data = tokenizer([row["prompt"] for row in read_rows(job["data"])])["input_ids"]

    def values_and_logprobs(ids):
        states, logprobs = states_and_logprobs(model, ids, length)
        return head(states).squeeze(-1), logprobs

    for _ in meter.steps(job["steps"]):
        ids = sample(model, [data[i] for i in torch.randint(len(data), (job["num_samples"],))], job)
        with torch.no_grad():
            values, old = values_and_logprobs(ids)
            rewards = -job["kl_coef"] * (old - states_and_logprobs(reference, ids, length)[1])
            states = judge.base_model(
                ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
            rewards[:, -1] += judge.score(states[:, -1]).squeeze(-1)
            advantages, following = torch.zeros_like(rewards), 0.0
            for t in reversed(range(length)):
                next_value = values[:, t + 1] if t + 1 < length else 0.0
                following = rewards[:, t] + next_value - values[:, t] + 0.95 * following
                advantages[:, t] = following
            returns = advantages + values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(job["ppo_epochs"]):
            for rows in torch.randperm(len(ids), device=ids.device).split(job["batch_size"]):
                new_values, logprobs = values_and_logprobs(ids[rows])
                ratio, a = (logprobs - old[rows]).exp(), advantages[rows]
                policy_loss = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
                near = values[rows] + (new_values - values[rows]).clamp(-0.2, 0.2)
                errors = [(v - returns[rows]).square() for v in (new_values, near)]
                update(optimizer, policy_loss + 0.25 * torch.max(*errors).mean())


def main(job):
    meter = Meter(job)
    torch.manual_seed(job["seed"])
    device = "cuda" if meter.cuda else "cpu"
    kind = AutoModelForSequenceClassification if job["lesson"] == "reward" else AutoModelForCausalLM
    more = {"num_labels": 1} if job["lesson"] == "reward" else {}
    model = kind.from_pretrained(job["model"] + "/model", **more).to(device)
    tokenizer = AutoTokenizer.from_pretrained(job["model"] + "/model")
    with torch.autocast(device, torch.bfloat16, enabled=job["bf16"]):
        globals()[job["lesson"]](job, model, tokenizer, meter)
    meter.save()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
