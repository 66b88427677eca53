"""All answers to a sum, with their probabilities: what three of the experiments share, and the GRPO
runs on sums that they look at.

A sum's answer has at most 4 tokens, so the answers can be enumerated: breadth-first over tokens,
leaving out every beginning whose probability is below a threshold (the mass that is left out is
1 - the sum of what was found). A right answer is made of few tokens (digits, white space, a full
stop, tokens without text), and with those alone the search is so small that its threshold can be
1e-7: the probability of a right answer is then exact.

As a command it is lesson 4 with one function exchanged: `evaluate` writes the exact probability of
a right answer to every held-out sum into <run>/exact.jsonl, before, during and after training.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import lab


@dataclass
class Answers:
    """N answers to some prompts: the parts that a lesson's Rollout has, and their probability."""

    row: torch.Tensor  # (N,) which prompt
    ids: torch.Tensor  # (N, P+T) prompt, padded on the left, and response
    attention_mask: torch.Tensor  # (N, P+T)
    response: torch.Tensor  # (N, T)
    mask: torch.Tensor  # (N, T) 1 up to and including the end token
    prob: torch.Tensor  # (N,) float64
    text: list

    def add_up(self, values, prompts):
        """A value an answer (N,) -> their sum for every prompt (prompts,)."""
        return torch.zeros(prompts).double().index_add(0, self.row, values.double())

    def left_out(self, prompts):
        """The mass that was not enumerated, a prompt -> (prompts,)."""
        return 1 - self.add_up(self.prob, prompts)


def arm(seed, args, name="the_lessons", flags=()):
    """A GRPO run on sums, logged exactly; the lesson's default would be 110 steps."""
    steps = 30 if args.quick else 60
    return lab.Arm(f"exact{steps}_{name}", seed, "exact.py",
                   [f"--steps={steps}", "--eval_every=10", *flags])


def load(lesson, run):
    """A run of the tiny model -> (model, tokenizer)."""
    config = lesson.Config(model=str(run))
    lm, tokenizer = lesson.load_causal_lm(config)
    return lm.requires_grad_(False), tokenizer


def gradient(lm, loss):
    """In all weights, as one vector."""
    parts = torch.autograd.grad(loss, list(lm.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def without_letters(tokenizer, token):
    """Of such tokens a right answer is made."""
    text = tokenizer.decode([token], skip_special_tokens=True)
    return set(text.strip()) <= set("0123456789.")


@torch.no_grad()
def enumerate_answers(lesson, lm, tokenizer, data, threshold, length=4, keep=None):
    """Every answer of at most `length` tokens to each row of data whose probability is at least
    `threshold`. keep(row, text) -> bool: may an answer begin like that? (Left out: anything.)"""
    batch = tokenizer.pad({"input_ids": [row["prompt_ids"] for row in data]}, padding_side="left",
                          return_tensors="pt")
    ends = torch.tensor(lm.generation_config.eos_token_id)
    usable = torch.tensor([keep is None or without_letters(tokenizer, token)
                           for token in range(lm.config.vocab_size)])
    row, logprob = torch.arange(len(data)), torch.zeros(len(data)).double()
    response, found = torch.zeros(len(data), 0, dtype=torch.long), []
    tokens, seen, cache = batch["input_ids"], batch["attention_mask"], None
    for t in range(length):
        places = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1]:]
        output = lm(tokens, attention_mask=seen, position_ids=places, past_key_values=cache,
                    use_cache=True, logits_to_keep=1)
        total = logprob[:, None] + output.logits[:, -1].double().log_softmax(dim=-1)  # (n, V)
        parents, tokens = ((total >= math.log(threshold)) & usable).nonzero(as_tuple=True)
        row, logprob = row[parents], total[parents, tokens]
        response = torch.cat([response[parents], tokens[:, None]], dim=1)
        over = torch.isin(tokens, ends) if t + 1 < length else torch.ones(len(row)).bool()
        filled = torch.nn.functional.pad(response, (0, length - t - 1), value=ends[0].item())
        found.append((row[over], filled[over], logprob[over]))
        on = ~over
        if keep:
            texts = tokenizer.batch_decode(response, skip_special_tokens=True)
            on &= torch.tensor([keep(data[i], text) for i, text in zip(row, texts)]).bool()
        if not on.any():
            break
        row, response, logprob, tokens = row[on], response[on], logprob[on], tokens[on, None]
        seen, cache = seen[parents[on]], output.past_key_values
        seen = torch.cat([seen, torch.ones_like(tokens)], dim=1)
        cache.batch_select_indices(parents[on])
    row, response, logprob = (torch.cat(part) for part in zip(*found))
    order = row.argsort(stable=True)
    row, response, logprob = row[order], response[order], logprob[order]
    mask = lesson.response_mask(response, ends.tolist())
    return Answers(
        row, torch.cat([batch["input_ids"][row], response], dim=1),
        torch.cat([batch["attention_mask"][row], mask.long()], dim=1), response, mask,
        logprob.exp(), tokenizer.batch_decode(response, skip_special_tokens=True))


def rewards(lesson, answers, data):
    """Lesson 4's reward of every answer, 1 or 0 -> (N,)."""
    return torch.tensor([lesson.sum_reward(data[i]["instruction"], text)
                         for i, text in zip(answers.row, answers.text)])


def may_be_right(row, text):
    """Can an answer that begins like this be the right sum?"""
    numbers = row["instruction"].removeprefix("What is ").removesuffix("?").split(" + ")
    right, text = str(sum(map(int, numbers))), text.strip()
    return right.startswith(text) or text.removesuffix(".").strip() == right


def right_probability(lesson, lm, tokenizer, data, threshold=1e-7):
    """The probability of a right answer to each row -> (rows,) float64."""
    answers = enumerate_answers(lesson, lm, tokenizer, data, threshold, keep=may_be_right)
    return answers.add_up(answers.prob * rewards(lesson, answers, data), len(data))


def pass_at(p, k):
    """The chance that one of k samples is right, the mean over prompts: exact, as p is."""
    return -torch.expm1(k * torch.log1p(-p.clamp(max=1 - 1e-15))).mean().item()


def remembered(name, seed, args, compute):
    """What compute() gave for this seed; what is there already is read instead: delete the file
    when the code changes."""
    file = Path(args.runs_dir, f"seed{seed}", f"{name}{'_quick' * args.quick}.pt")
    if not file.is_file():
        torch.save(compute(), file)
    return torch.load(file)


def main():
    lesson = lab.load_lesson(4)
    lines, steps = [], []

    def evaluate(lm, reward, tokenizer, data, config, accelerator):
        p = right_probability(lesson, lm, tokenizer, data)
        steps.append(config.eval_every * len(steps))  # 0 is before training
        lines.append(json.dumps({"step": min(steps[-1], config.steps), "p": p.tolist()}))
        with accelerator.autocast():
            torch.manual_seed(config.seed)
            texts = lesson.answer(lm, reward, tokenizer, data, 0.0, config, accelerator)[1]
        if steps[-1] >= config.steps:  # the last one
            Path(lesson.run_folder(config), "exact.jsonl").write_text("\n".join(lines) + "\n")
        return {"accuracy/sampled": p.mean().item(),
                "accuracy/pass@k": pass_at(p, config.pass_k)}, texts, p.unsqueeze(0)

    lesson.evaluate = evaluate
    lesson.run_lesson()


if __name__ == "__main__":
    main()
