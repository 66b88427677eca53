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
    raise NotImplementedError("ex1_sft.format_prompt")


def build_labels(prompt_ids, response_ids, eos_id, max_length):
    """(input_ids, labels) of one example. The loss ignores -100, so nothing is learned from the
    prompt; the end token has a label, or the model would never learn to stop."""
    raise NotImplementedError("ex1_sft.build_labels")


def pad_batch(examples, pad_id):
    """(input_ids, labels) pairs of any length -> LongTensors, padded on the right. A function that
    makes a batch of examples is called a collator."""
    raise NotImplementedError("ex1_sft.pad_batch")


def sft_loss(logits, labels, count=None):
    """Cross-entropy summed over the labelled tokens, divided by `count` (default: their number)."""
    raise NotImplementedError("ex1_sft.sft_loss")


def corpus_perplexity(batch_losses, batch_tokens):
    """exp of a token's mean loss; a batch weighs as much as it has tokens."""
    raise NotImplementedError("ex1_sft.corpus_perplexity")
