"""Exercise 1: the maths of supervised fine-tuning, five blanks, in the order of lesson1_sft.py.

B is the number of examples in a batch, T the longest one's length in tokens, V the size of the
vocabulary. A label of -100 means: no loss here. Functions that average take `count`, the number to
divide by; None means: count for yourself. (The lessons pass the count of the whole batch, so that
a batch may be cut into pieces.)
"""

import torch
import torch.nn.functional as F


def format_prompt(instruction: str, input: str = "") -> str:
    """The text that the model sees before it answers: Alpaca's layout (Taori et al., 2023) without
    its preamble."""
    context = f"### Input:\n{input}\n\n" if input else ""
    return f"### Instruction:\n{instruction}\n\n{context}### Response:\n"


def build_labels(prompt_ids, response_ids, eos_id, max_length):
    """(input_ids, labels) of one example. The loss ignores -100, so nothing is learned from the
    prompt; the end token has a label, or the model would never learn to stop."""
    input_ids = prompt_ids + response_ids + [eos_id]
    labels = [-100] * len(prompt_ids) + response_ids + [eos_id]
    return input_ids[:max_length], labels[:max_length]


def pad_batch(examples, pad_id):
    """(input_ids, labels) pairs of any length -> LongTensors, padded on the right. A function that
    makes a batch of examples is called a collator."""
    length = max(len(input_ids) for input_ids, _ in examples)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for input_ids, labels in examples:
        padding = length - len(input_ids)
        batch["input_ids"].append(input_ids + [pad_id] * padding)
        batch["attention_mask"].append([1] * len(input_ids) + [0] * padding)
        batch["labels"].append(labels + [-100] * padding)
    return {name: torch.tensor(rows) for name, rows in batch.items()}  # each (B, T)


def sft_loss(logits, labels, count=None):
    """Cross-entropy summed over the labelled tokens, divided by `count` (default: their number)."""
    logits = logits[:, :-1]  # (B, T-1, V): position t predicts ...
    labels = labels[:, 1:]  # (B, T-1): ... token t + 1
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    if count is None:
        count = (labels != -100).sum().clamp(min=1)
    return total / count


def corpus_perplexity(batch_losses, batch_tokens):
    """exp of a token's mean loss; a batch weighs as much as it has tokens."""
    return torch.exp((batch_losses * batch_tokens).sum() / batch_tokens.sum())
