"""Lesson 1: supervised fine-tuning (SFT). A model that continues text learns to answer and to stop.

What you will see. First a *base* model learns to predict the next token of raw text. Asked a
question, it rambles: it has never seen one. Then the same model is trained on pairs of instruction
and response, and it answers and stops. The data, the labels and the learning rate change between
the two: the loss and the loop are the same.

The formulas
    loss         L = -(1/N) sum_t log p(x_t | x_<t), over the N tokens that have a label
    labels       -100 on the prompt (no loss); the response's own tokens, its end token included
    shift        the logits at position t predict the token at position t + 1
    perplexity   exp(L): between how many equally likely tokens the model hesitates

How to run it
    python lesson1_sft.py                                    offline, about a minute on two cores
    python lesson1_sft.py --prompt "What is 27 + 15?"        one answer of the trained model
    python lesson1_sft.py --prompt "Translate into Chinese: | I love tea."    with an input
    python lesson1_sft.py --chat                             talk to it; with --model, to any other
    python lesson1_sft.py --look                             token by token: what has a label
    python lesson1_sft.py --lora_rank 8                      an adapter alone (needs peft)
    python lesson1_sft.py --model gpt2 --data alpaca.jsonl   your own model and data
It writes runs/base and runs/sft, each with model/ (load it with from_pretrained), config.json,
metrics.jsonl (a line a step) and TensorBoard logs. Lesson 2 starts from runs/sft.

Why: exercises/WHY.md, "Lesson 1", one page: maximum likelihood, and which tokens count. Read it
first; the glossary there has the words of tokenizers and of RL.
How to read it: from "The maths" down to main(), and a flag where you meet it; train() has the loop,
in four numbered steps. The lesson ends where Housekeeping begins, at line 546. Then close this file
and write the maths yourself: "pytest -k ex1" checks exercises/ex1_sft.py, and "python
lesson1_sft.py --exercise" trains with it.
"""

import signal
if __name__ == "__main__":  # Ctrl-C while the libraries load: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import logging
import math
import os
import random
import re
import runpy
import shlex
import shutil
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Optional

import huggingface_hub
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import tqdm
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, PreTrainedTokenizerFast
from transformers import get_cosine_schedule_with_warmup
from transformers.hf_argparser import HfArg

# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases, **metavar):
    """A field of Config; other libraries' names for it; metavar="0..1" is what a number may be."""
    spellings = {form: 1 for alias in aliases for form in (alias, alias.replace("_", "-"))}
    return HfArg(default=default, help=help, aliases=list(spellings), metadata=metavar)


@dataclass
class Config:
    model: str = flag("", "hub name or folder (default: made here)", "--model_name_or_path")
    data: str = flag("", "examples: a file, a folder, or on the hub NAME:CONFIG:SPLIT")
    eval_data: str = flag("", "examples to evaluate on (default: a twentieth of --data)")
    columns: str = flag("", "what --data calls its columns, such as instruction=task,output=answer")
    run_name: str = flag("sft", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    steps: int = flag(1100, "optimiser steps (0: evaluate only)", "--max_steps", metavar="0..1e6")
    epochs: int = flag(0, "passes over the data, in place of --steps", "--num_train_epochs",
                       metavar="0..1e6")
    base_steps: int = flag(100, "optimiser steps of the tiny base model")
    batch_size: int = flag(32, "examples an optimiser step, over all processes")
    micro_batch_size: int = flag(16, "examples a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "1.5e-3; 2e-5 with --model; LoRA: tenfold", "--lr")
    bucket: Optional[int] = flag(None, "batches sorted by length together (1 tiny world, 8 --data)")
    warmup_steps: int = flag(20, "steps until the learning rate is at its peak", metavar="0..1e6")
    weight_decay: float = flag(0.01, "of AdamW")
    prompt_format: Literal["auto", "chat", "think", "alpaca", "plain"] = flag("auto", "layout")
    max_prompt_length: Optional[int] = flag(None, "longer ones are left out (64; --data 512)")
    max_new_tokens: Optional[int] = flag(None, "of a response (48; --data or --model 256)")
    num_examples: int = flag(20000, "examples to train on, at most")
    eval_every: int = flag(100, "steps between two looks at the held-out loss")
    text_metrics: bool = flag(False, "ROUGE-L and chrF (pip install rouge-score sacrebleu)")
    lora_rank: int = flag(0, "train adapters of this rank alone (0: all weights)", metavar="0..999")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "of the weights that are not trained")
    load_in_4bit: bool = flag(False, "keep those in 4 bits: QLoRA (needs peft, bitsandbytes)")
    bf16: bool = flag(False, "bfloat16 autocast; what is trained stays in float32")
    gradient_checkpointing: bool = flag(False, "compute activations twice, and keep few of them")
    attn_implementation: Optional[str] = flag(None, "such as eager, sdpa or flash_attention_2")
    trust_remote_code: bool = flag(False, "run the code that --model brings along")
    device: Literal["auto", "cpu"] = flag("auto", "auto: CUDA or MPS where there is one")
    save_every: int = flag(100, "steps between checkpoints (0: only on Ctrl-C)", metavar="0..1e6")
    report_to: str = flag("tensorboard", "or wandb, trackio, ..., what accelerate knows; or: none")
    seed: int = flag(0, "a CPU run with the same seed repeats exactly", metavar="0..1e9")
    resume: bool = flag(False, "go on with an interrupted run")
    exercise: bool = flag(False, "train with your own functions, from exercises/")
    overwrite: bool = flag(False, "replace the earlier run instead of keeping it as <run_name>-1")
    config: str = flag("", "JSON file of settings; what is typed wins")
    prompt: str = flag("", "answer this, or 'instruction | input', and train nothing")
    chat: bool = flag(False, "talk to --model (default: this run), and train nothing")
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        if not self.data and not self.model:  # else up to 512 + 256, as the model has positions
            self.max_prompt_length = self.max_prompt_length or 64
            self.max_new_tokens = self.max_new_tokens or 48
        if self.learning_rate is None:
            self.learning_rate = (2e-5 if self.model else 1.5e-3) * (10 if self.lora_rank else 1)
        if self.bucket is None:
            self.bucket = 8 if self.data else 1


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex1_sft": "format_prompt build_labels pad_batch sft_loss corpus_perplexity"}


def format_prompt(instruction: str, input: str = "") -> str:
    """What the model sees before it answers: Alpaca's layout (Taori et al., 2023), shortened."""
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
    """Cross-entropy summed over the labelled tokens (it leaves out the label -100, its
    ignore_index), divided by `count` (default: their number)."""
    logits = logits[:, :-1]  # (B, T-1, V): position t predicts ...
    labels = labels[:, 1:]  # (B, T-1): ... token t + 1
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # no half precision
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    count = (labels != -100).sum().clamp(min=1) if count is None else count
    return total / count


def corpus_perplexity(batch_losses, batch_tokens):
    """exp of a token's mean loss; a batch weighs as much as it has tokens."""
    return torch.exp((batch_losses * batch_tokens).sum() / batch_tokens.sum())


# ---- Data: a tiny world of film reviews, sums and translations ----------------------------------

KINDS = ("pirate space robot ghost family horse school ocean "
         "winter music cooking football dragon train circus spy").split()
PARTS = "story acting script cast music ending camera humour".split()
GOOD = ("wonderful lovely charming gripping brilliant moving "
        "funny superb clever delightful warm fresh").split()
BAD = "boring dull awful clumsy silly weak noisy tedious dreadful cold stale messy".split()
SUBJECTS = {"I": "我", "You": "你", "We": "我们", "They": "他们"}
VERBS = {"love": "爱", "like": "喜欢", "want": "想要",
         "buy": "买", "see": "看见", "need": "需要"}
OBJECTS = {"apples": "苹果", "tea": "茶", "books": "书", "cats": "猫",
           "flowers": "花", "rice": "米饭", "fish": "鱼", "milk": "牛奶"}


def review_instruction(kind):
    return f"Write a short review of the {kind} film."


def write_review(kind, rng):
    """One to three clauses with a hidden mood: a happy critic's clause is good 5 times out of 6,
    an unhappy one's bad as often."""
    mood_is_good = rng.random() < 0.5
    good, bad = rng.sample(GOOD, 3), rng.sample(BAD, 3)
    subjects = [f"{kind} film", rng.choice(PARTS[:4]), rng.choice(PARTS[4:])]
    text, previous = "", None
    for subject in subjects[:rng.choice([1, 2, 3])]:
        is_good = mood_is_good if rng.random() < 5 / 6 else not mood_is_good
        start = "The" if not text else ", and the" if is_good == previous else ", but the"
        word = (good if is_good else bad).pop()
        text += f"{start} {subject} {rng.choice(['was', 'felt'])} {word}"
        previous = is_good
    return text + "."


def sums(held_out):
    """[(a, b)], both below 50. A pair is held out in both orders: who has learned 15 + 27 would
    know 27 + 15."""
    pairs = [(a, b) for a in range(50) for b in range(a, 50)]
    chosen = set(random.Random(0).sample(pairs, 150))
    return [(a, b) for a in range(50) for b in range(50)
            if ((min(a, b), max(a, b)) in chosen) == held_out]


def translations(held_out):
    """[(English, Chinese)], every subject with every verb and object; one in six is held out."""
    pairs = [(f"{s} {v} {o}.", SUBJECTS[s] + VERBS[v] + OBJECTS[o] + "。")
             for s in SUBJECTS for v in VERBS for o in OBJECTS]
    chosen = set(random.Random(0).sample(pairs, len(pairs) // 6))
    return [pair for pair in pairs if (pair in chosen) == held_out]


def tiny_world(size, seed, held_out=False):
    """Rows with Alpaca's columns: 30% reviews, 55% sums, 15% translations. Whoever did the sums
    slipped in 15% of them, by 1, 2 or 10: lesson 4 will have something to put right."""
    rng = random.Random(f"{seed} {held_out}")
    the_sums, the_translations, rows = sums(held_out), translations(held_out), []
    for family in rng.choices(["review", "sum", "translation"], [30, 55, 15], k=size):
        if family == "review":
            kind = rng.choice(KINDS)
            row = review_instruction(kind), "", write_review(kind, rng)
        elif family == "sum":
            a, b = rng.choice(the_sums)
            slip = rng.choice([1, 2, 10]) if rng.random() < 0.15 else 0
            row = f"What is {a} + {b}?", "", str(a + b + slip)
        else:
            row = "Translate into Chinese:", *rng.choice(the_translations)
        rows.append(dict(zip(("instruction", "input", "output"), row)))
    return rows


def raw_text(world):
    """The same world as plain lines, without a question anywhere: what the base model reads."""
    lines = []
    for row in world:
        if row["instruction"].startswith("What is"):
            lines.append(row["instruction"][8:-1] + " = " + row["output"])  # 27 + 15 = 42
        else:
            lines.append((row["input"] + " " + row["output"]).strip())
    return "\n".join(lines)


def tokenize_examples(data, tokenizer, config):
    """Rows of texts -> rows of token ids and labels. num_labels: what the loss counts."""
    rows, prompts = [], encode_prompts(data, tokenizer, config)
    responses = tokenizer([row["output"] for row in data], add_special_tokens=False)["input_ids"]
    for row, prompt_ids, response_ids in zip(data, prompts, responses):
        max_length = len(prompt_ids) + config.max_new_tokens
        input_ids, labels = build_labels(
            prompt_ids, response_ids, tokenizer.eos_token_id, max_length)
        if len(prompt_ids) <= config.max_prompt_length:
            rows.append({"input_ids": input_ids, "labels": labels, "prompt_ids": prompt_ids,
                         "num_labels": len(labels) - len(prompt_ids),
                         "title": f"{row['instruction']} {row.get('input') or ''}",
                         "reference": row["output"]})
    if len(rows) < len(data):
        print(f"{len(data) - len(rows)} of {len(data)} prompts are longer than --max_prompt_length "
              f"{config.max_prompt_length} and are left out.")
    cut = sum(row["labels"][-1] != tokenizer.eos_token_id for row in rows)
    if cut:
        print(f"{cut} of {len(rows)} answers are cut at --max_new_tokens {config.max_new_tokens}: "
              "these teach no end.")
    return rows or die("no example is left: raise --max_prompt_length")


def pack_text(text, tokenizer, length=64):
    """Raw text -> rows of `length` tokens, each token its own label: pre-training masks nothing."""
    ids = tokenizer.encode(text)
    rows = [ids[i:i + length] for i in range(0, len(ids) - length + 1, length)]
    return [{"input_ids": row, "labels": row, "num_labels": length - 1} for row in rows]


def bucketed_batches(rows, batch_size, bucket, seed):
    """Shuffled rows in batches. Within `bucket` batches the rows are sorted by length, so that a
    batch has little padding; but then short and long tasks no longer share batches."""
    rng = random.Random(seed)
    order, batches = rng.sample(rows, len(rows)), []
    for start in range(0, len(order), bucket * batch_size):
        part = order[start:start + bucket * batch_size]
        part.sort(key=lambda row: len(row["input_ids"]))
        batches += [part[i:i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    return batches


# ---- Models -------------------------------------------------------------------------------------

# Words to know.
# Causal language models (GPT-2, Llama, Qwen) see only what came before, and can therefore write.
#   Masked ones (BERT) see both sides and fill in gaps: they cannot write, and are of no use here.
# The end token (eos) says that an answer is over. Chat models may have several.
# The pad token fills up the short rows of a batch. GPT-2 has none, and others use an end token for
#   it, so that nobody can tell an end from padding. Every model gets one of its own here.
# Vocabulary size: how many rows the model's embeddings have. It may exceed the tokenizer's length,
#   because it is kept a multiple of 64, which GPUs like; resize_token_embeddings adds the rows.


def make_tiny_model(texts):
    """A GPT-2 with 0.5 million weights and a byte-level BPE tokenizer trained on `texts`: it starts
    from the 256 bytes, so it reads anything, and merges the commonest neighbours."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)  # "27" is "2" and "7"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=637, special_tokens=["<|pad|>", "<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    # The prompt's markers are a token each, as chat models have tokens for theirs: short prompts.
    bpe.add_tokens(["### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|endoftext|>")
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=640, n_positions=512, n_embd=128, n_layer=2, n_head=4,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    return model, tokenizer


@torch.no_grad()
def generate(lm, tokenizer, prompts, max_new_tokens, temperature=1.0, width=None, size=256):
    """Prompts (lists of ids) -> prompt ids and mask (B, P), padded on the left, and the sampled
    response (B, T), `size` rows at a time. Temperature 0 takes the likeliest token."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt",
                          padding="max_length" if width else True, max_length=width).to(lm.device)
    how = {"temperature": temperature} if temperature else {"do_sample": False}
    response = []
    for ids, mask in zip(batch["input_ids"].split(size), batch["attention_mask"].split(size)):
        both = lm.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
        response += both[:, ids.shape[1]:]
    response = pad_sequence(response, batch_first=True, padding_value=tokenizer.pad_token_id)
    return batch["input_ids"], batch["attention_mask"], response


# ---- The algorithm: the loop, and then main -----------------------------------------------------


def batch_loss(model, examples, count, tokenizer, accelerator):
    """The loss of these examples' labels, divided by `count`."""
    batch = pad_batch([(row["input_ids"], row["labels"]) for row in examples],
                      tokenizer.pad_token_id)
    # Logits are needed from the column before the first label on: all before is prompt.
    first = max(1, (batch["labels"] != -100).any(dim=0).int().argmax().item())
    labels = batch["labels"][:, first - 1:].to(accelerator.device)
    with accelerator.autocast():
        # The padding needs no mask: it is on the right, and nobody looks to the right.
        logits = model(batch["input_ids"].to(accelerator.device),
                       logits_to_keep=labels.shape[1], use_cache=False).logits
    return sft_loss(logits, labels, count)


@torch.no_grad()
def held_out_loss(model, data, tokenizer, config, accelerator):
    """A token's mean loss on the held-out examples: the logarithm of their perplexity."""
    losses, tokens, size = [], [], config.micro_batch_size
    data = sorted(data, key=lambda row: len(row["input_ids"]))  # little padding
    for piece in [data[i:i + size] for i in range(0, len(data), size)]:
        tokens.append(sum(row["num_labels"] for row in piece))
        losses.append(batch_loss(model, piece, tokens[-1], tokenizer, accelerator))
    return corpus_perplexity(torch.stack(losses).cpu(), torch.tensor(tokens)).log().item()


def my_pieces(rows, size, accelerator):
    """(rows, weight) of this process's pieces of a minibatch, of at most `size` rows. In a backward
    pass the processes wait for one another: one without a row takes another's, with weight 0."""
    n = accelerator.num_processes
    for start in range(0, len(rows), size * n):
        piece = rows[start:start + size * n]
        mine = piece[accelerator.process_index::n]
        yield (mine, 1) if len(mine) else (piece[:1], 0)


def train(model, tokenizer, data, held_out, config, accelerator, run):
    """Next-token training, of the base model and of the tuned one: the data makes the difference.
    The best held-out loss's weights are kept. (The learner is the model, shared by processes.)"""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    learner, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    per_epoch, batches = math.ceil(len(data) / config.batch_size), []
    for step in run.steps(config.steps):
        # 1. The batch. Every epoch has an order of its own.
        epoch, place = divmod(step - 1, per_epoch)
        if place == 0 or not batches:
            batches = bucketed_batches(
                data, config.batch_size, config.bucket, f"{config.seed} {epoch}")
        batch = batches[place]

        # 2. The gradient, in pieces that fit. Each is divided by the count of the whole batch.
        learner.train(config.gradient_checkpointing)  # only there: nothing should be random
        count = sum(row["num_labels"] for row in batch)
        loss = torch.zeros((), device=accelerator.device)
        for piece, weight in my_pieces(batch, config.micro_batch_size, accelerator):
            piece_loss = batch_loss(learner, piece, count, tokenizer, accelerator) * weight
            accelerator.backward(piece_loss * accelerator.num_processes)  # a mean, made a sum
            loss += piece_loss.detach()

        # 3. The step.
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)  # tames odd batches
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        learner.eval()
        stats = {"loss/train": accelerator.reduce(loss).item(),
                 "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]}

        # 4. Now and then the held-out loss. The best weights so far are kept.
        if step % config.eval_every == 0 or step == config.steps:
            stats["loss/held_out"] = held_out_loss(model, held_out, tokenizer, config, accelerator)
        lowest = keep_best(model, run, stats)
        run.end_step(step, stats, loss=stats["loss/train"], held_out=lowest)
    load_best(model, run)


def keep_best(model, run, stats):
    """Save the weights if their held-out loss is the lowest so far -> the lowest so far."""
    losses = [row["loss/held_out"] for row in run.rows if "loss/held_out" in row]
    lowest = min(losses, default=math.inf)
    if stats.get("loss/held_out", math.inf) < lowest:
        lowest = stats["loss/held_out"]
        if run.is_main:
            trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
            save_file(trained, run.folder / "best.tmp")
            os.replace(run.folder / "best.tmp", run.folder / "best.safetensors")
    return lowest


def load_best(model, run):
    """The model gets back the weights that had the best held-out loss."""
    run.accelerator.wait_for_everyone()
    if run.rows:  # not with --steps 0
        model.load_state_dict(load_file(run.folder / "best.safetensors"), strict=False)


def tidy(run):
    """What only --resume needs goes."""
    if run.is_main:
        (run.folder / "best.safetensors").unlink(missing_ok=True)
        for checkpoint in run.checkpoints():
            shutil.rmtree(checkpoint)


def make_base(config):
    """The tiny base model's folder: runs/base if it was made with these settings, else it is made.
    It learns briefly and at half the rate: after more, some seeds could add by now, others not."""
    rate = config.learning_rate / (20 if config.lora_rank else 2)  # LoRA's is ten times as high
    config = replace(config, run_name="base", steps=config.base_steps, epochs=0, resume=False,
                     exercise=False, learning_rate=rate, lora_rank=0, load_in_4bit=False)
    folder = run_folder(config)
    if (folder / "config.json").is_file():
        with blame(f"cannot read {folder}/config.json"):
            made_with = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config.resume = all(made_with.get(name) == value for name, value in vars(config).items()
                            if name not in FREE_TO_CHANGE)
        if config.resume and (folder / "model").is_dir():
            return str(folder)
    accelerator = start(config)
    world = tiny_world(config.num_examples, config.seed)
    text = raw_text(world)
    prompts = [format_prompt(row["instruction"], row["input"]) for row in world]
    model, tokenizer = make_tiny_model([text, *prompts])
    held_out = pack_text(raw_text(tiny_world(600, 0, held_out=True)), tokenizer)
    data = pack_text(text, tokenizer) or die("--num_examples is too low: there is hardly a text")
    run = Run(config, accelerator)
    train(model, tokenizer, data, held_out, config, accelerator, run)
    run.save_model(model, tokenizer)
    tidy(run)
    return str(folder)


def load_examples(config):
    """(training, held-out) rows. Of a conversation every answer is an example of its own."""
    if config.data:
        return [[example for row in part for example in every_answer(row)]
                for part in load_data(config, ["instruction", "output"], config.num_examples)]
    return tiny_world(config.num_examples, config.seed), tiny_world(600, 0, held_out=True)


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    if config.chat or config.prompt:
        return chat(config)
    mine = load_exercises() if config.exercise else {}
    parts, run = load_examples(config), None
    if not config.model:
        if config.run_name == "base":
            die("--run_name base is the name of the base model: choose another")
        run = Run(config, accelerator)  # before minutes of training, should it be refused
        config.model = make_base(config)
    model, tokenizer = load_causal_lm(config)
    globals().update(mine)  # only now: the base model is always made with the lesson's functions
    model.to(accelerator.device)
    data, held_out = (tokenize_examples(part, tokenizer, config) for part in parts)
    if config.epochs and config.steps:
        config.steps = config.epochs * math.ceil(len(data) / config.batch_size)
    run = run or Run(config, accelerator)

    def evaluate():
        """The held-out loss, and answers to the first few held-out prompts."""
        loss = held_out_loss(model, held_out, tokenizer, config, accelerator)
        prompts = [row["prompt_ids"] for row in held_out[:8]]
        torch.manual_seed(config.seed)
        with accelerator.autocast():
            response = generate(model, tokenizer, prompts, config.max_new_tokens)[2]
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        numbers = {"loss/held_out": loss, "perplexity/held_out": math.exp(loss)}
        if config.text_metrics:
            numbers |= text_metrics(model, tokenizer, held_out[:64], config)
        return numbers, texts

    before, texts_before = evaluate()
    train(model, tokenizer, data, held_out, config, accelerator, run)
    after, texts_after = evaluate() if config.steps else (before, texts_before)
    run.save_model(model, tokenizer)
    model = "" if run.folder == Path("runs/sft") else f"--model {run.folder} "
    run.close("loss/train", before, after, [
        (row["title"], {"base": old, "tuned": new})
        for row, old, new in zip(held_out, texts_before, texts_after)],
        f'python lesson1_sft.py {model}--prompt "What is 27 + 15?", '
        f"or python lesson2_reward.py {model}")
    tidy(run)


# ---- Housekeeping: the lesson is over; none of this has to do with learning ---------------------

FREE_TO_CHANGE = ("resume overwrite config device save_every log_level runs_dir micro_batch_size "
                  "report_to gradient_checkpointing").split()


def die(message):
    """One line, and exit code 2 or, where training had begun, 1."""
    print("\n" * Run.begun + "error: " + " ".join(message.split())[:600], file=sys.stderr)
    sys.exit(1 if Run.begun else 2)


@contextmanager
def blame(what):
    """What goes wrong in here ends the program with one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        die(f"{what}: {type(error).__name__}: {error.__cause__ or error}")


def run_lesson():
    """main(), and one line for whatever escapes from it."""
    if "TYPED" in os.environ:  # see make_missing
        threading.Thread(target=lambda: os.read(0, 1) or signal.raise_signal(signal.SIGINT),
                         daemon=True).start()
    try:
        main()
        PartialState().destroy_process_group()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. A run that has a checkpoint goes on with --resume.")
    except (Exception, SystemExit) as error:
        libraries = str(Path(os.__file__).parent), str(Path(torch.__file__).parents[1])
        place = [frame for frame in traceback.extract_tb(error.__traceback__)
                 if not frame.filename.startswith(libraries)][-1]  # this file, or the user's
        if isinstance(error, SystemExit) and place.filename == __file__:
            raise
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            die("out of memory: lower --micro_batch_size (the result stays the same), then "
                "--max_new_tokens and the samples a step, or try --bf16 and --lora_rank 8")
        if "probability tensor" in str(error):  # torch.multinomial's words
            die("the model has diverged and cannot be sampled from: begin again, with a lower "
                "--learning_rate or without --bf16")
        if logging.root.manager.disable < logging.INFO:  # --log_level info
            traceback.print_exc()
        die(f"{place.filename}, line {place.lineno} (more with --log_level info): "
            f"{type(error).__name__}: {error.__cause__ or error}")
    finally:  # nothing but the end can be interrupted from here on
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_config(arguments):
    """The command line; the settings of --config, or of the run to resume, come before it."""
    parser = HfArgumentParser(Config, allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.error = die
    parser.add_argument("--look", action="store_true", help="show a batch of the finished run, "
                        "token by token, as a table and a page, and train nothing")
    arguments = [word.replace("=~/", f"={Path.home()}/", 1) for word in arguments]
    typed, saved = parser.parse_args(arguments), {}
    of_run = typed.resume or typed.look
    file = run_folder(typed) / "config.json" if of_run else Path(typed.config)
    if of_run or typed.config:
        with blame(f"cannot read settings from {file} (is there such a run?)"):
            saved = dict(json.loads(file.read_text(encoding="utf-8")), lesson=None)  # no setting
            earlier = [f"--{name}={value}" for name, value in saved.items() if value is not None]
        typed = parser.parse_args(earlier + arguments)
    look = vars(typed).pop("look")
    for name, value in vars(typed).items():
        if isinstance(value, list):  # of --name=--
            die(f"--{name} needs a value")
        if type(value) in (int, float):
            usual = "1..1e6" if type(value) is int else "0..1e6"
            low, high = Config.__dataclass_fields__[name].metadata.get("metavar", usual).split("..")
            if not float(low) <= value <= float(high):  # nan never is
                die(f"--{name} must be between {low} and {high}, not {value}")
        if typed.resume and name not in FREE_TO_CHANGE and saved.get(name) != value:
            die(f"{file.parent} was begun with --{name} {saved.get(name)}, not {value!r}")
    if typed.load_in_4bit and not typed.lora_rank:
        die("--load_in_4bit needs --lora_rank: what is in 4 bits cannot be trained")
    if (typed.eval_data or typed.columns) and not typed.data:
        die("--eval_data and --columns need --data")
    config = Config(**vars(typed))
    if look:
        page = Path(__file__).with_name("exercises") / "look.py"
        sys.exit(runpy.run_path(str(page))["look"](globals(), config))
    return config


def load_exercises():
    """{name: function}: the student's, where they are no stubs."""
    loader = Path(__file__).with_name("exercises") / "load.py"
    with blame("--exercise"):
        return runpy.run_path(str(loader))["load_exercises"](BLANKS)


# The columns that a row may have instead; the first one that it has counts.
NAMES = {"instruction": "instruction prompt question query text", "input": "input",
         "output": "output completion response answer messages conversations",
         "chosen": "chosen", "rejected": "rejected"}
ROLES = dict(system="system", user="user", human="user", assistant="assistant", gpt="assistant",
             chatgpt="assistant", bot="assistant", model="assistant")  # another is a row's end


def load_data(config, columns, size=10**6):
    """[training, held-out] rows: held out is --eval_data or, of --data, a twentieth."""
    data = read_data(config.data, columns, size, config.columns)
    if config.eval_data:
        return [data, read_data(config.eval_data, columns, size, config.columns)]
    if len(data) < 2:
        die(f"{config.data} needs at least two rows: some are held out (or say --eval_data)")
    random.Random(0).shuffle(data)
    n = math.ceil(len(data) / 20)
    return [data[n:], data[:n]]


def read_data(name, columns, size, renamed=""):
    """Rows with texts in these columns. Those that do not fit are left out, counted and shown."""
    data, odd, found = [], [], []
    with blame(f"cannot read the data {name!r} with --columns {renamed!r}"):
        usual = {name: column for column, names in NAMES.items() for name in names.split()}
        pairs = [pair.strip().split("=") for pair in renamed.split(",") if pair]
        theirs = {usual[name]: their for name, their in pairs}
        for number, (place, row) in enumerate(read_rows(name)):
            if number == size:
                print(f"{name}: no more than the first {size} rows are read.")
                break
            try:
                if isinstance(row, dict):
                    found, view = list(row), {x: row.get(theirs[x]) or "" for x in theirs}
                    gone = (NAMES.keys() & theirs.values()) - theirs.keys()  # has another name now
                    row = {x: row[x] for x in found if x not in gone} | view
                data.append(row | standard_row(row, columns))
            except (ValueError, TypeError, AttributeError) as error:
                odd.append(f"{place}: {error}")
    if not data:
        die(f"{name} has no row with texts for {' and '.join(columns)} ({''.join(odd[:1])}). Its "
            f"columns are {found}: see --columns. Understood are, in place of {NAMES}")
    unread = [x for x in found if x not in usual and x not in theirs.values()]
    if unread:
        print(f"{name}: prompts and answers hold nothing of the columns {', '.join(unread)}.")
    if odd:
        print(f"{name}: {len(odd)} of {len(odd) + len(data)} rows are left out, as {odd[0]}")
    marked = sum("### Response:" in f"{row['instruction']} {row.get('input')}" for row in data)
    if marked:
        print(f"{name}: {marked} of {len(data)} rows hold the prompt's own marker, ### Response:")
    return data


def read_rows(name):
    """(its place, row) of JSON, JSON lines, CSV, text (.gz too); Parquet, a folder, the hub."""
    import csv, gzip
    path, suffix = Path(name), Path(name.removesuffix(".gz")).suffix.lower()
    if not path.is_file() or suffix == ".parquet":
        import datasets  # only here, because it takes its time
        where, subset, split = (name, "", "") if path.exists() else f"{name}::".split(":")[:3]
        source = {"path": "parquet", "data_files": name} if path.is_file() else {
            "path": where, "name": subset or None}
        rows = datasets.load_dataset(**source, split=split or "train")
        yield from ((f"row {i}", row) for i, row in enumerate(rows, start=1))
        return
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        if suffix in (".csv", ".tsv"):
            comma = "," if suffix == ".csv" else "\t"
            csv.field_size_limit(10**9)
            reader = csv.DictReader(file, delimiter=comma, strict=True)
            for row in reader:
                line = f"line {reader.line_num}"
                yield line, ValueError("more cells than columns") if None in row else row
        whole = file.read()
    if suffix != ".txt" and whole.lstrip().startswith("["):
        yield from ((f"row {i}", row) for i, row in enumerate(json.loads(whole), start=1))
        return
    for line, text in enumerate(whole.split("\n"), start=1):
        try:
            if text.strip():
                row = {"text": text.strip()} if suffix == ".txt" else json.loads(text)
                yield f"line {line}", row
        except ValueError as error:
            yield f"line {line}", error


def standard_row(row, columns):
    """A row as Alpaca, TRL, ShareGPT or HH-RLHF have it -> with texts in `columns`. Of messages the
    last one is the text, if it answers; those before it are the prompt: its last turn, earlier."""
    if not isinstance(row, dict):
        raise ValueError(f"no row with columns: {row!r:.80}")
    texts = {column: row[name] for column, names in NAMES.items()
             for name in reversed(names.split()) if row.get(name) is not None}
    has_prompt = "instruction" in texts
    for column in "output", "chosen", "rejected":
        turns = texts.get(column)
        if column != "output" and not has_prompt and isinstance(turns, str):  # a whole dialogue
            turns = [{"role": who, "content": text.strip()} for who, text in re.findall(
                r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", turns, re.DOTALL)]
        if turns and isinstance(turns, list):
            turns = [*map(as_turn, turns)]
            answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
            begins = turns and turns[0]["role"] != "assistant"  # the prompt is here, and all of it
            if column == "rejected" and begins and texts.get("instruction") != turns:
                raise ValueError("the prompts of 'chosen' and 'rejected' differ")
            texts |= {column: answer} | ({"instruction": turns} if begins else {})
    if texts.get("instruction") and isinstance(texts["instruction"], list):
        *texts["earlier"], last = map(as_turn, texts["instruction"])
        texts["instruction"] = last["content"]
    for column in columns + ["input"] * ("input" in texts):
        text, as_table = texts.get(column), r"""\[\{['"](role|content|from|value)['"]:"""
        if not isinstance(text, str) or not text.strip() and column != "input" or re.match(
                as_table, text):  # messages that somebody has written into a cell
            raise ValueError(f"the column {column!r} is missing, empty or holds no text")
        texts[column].encode()  # half a character raises a ValueError
    return texts


def as_turn(turn):
    """A message of TRL's or ShareGPT's kind -> its role and its text."""
    role = str(turn.get("role") or turn.get("from")).lower()
    text = turn.get("content", turn.get("value"))
    if role not in ROLES or not isinstance(text, str):
        raise ValueError(f"a turn of {role!r} with {text!r:.40} is none of a user or an assistant")
    return {"role": ROLES[role], "content": text}


def every_answer(row):
    """A row of a conversation -> rows with every answer in it and what came before."""
    turns = row.get("earlier", [])
    for i in range(1, len(turns)):
        roles = turns[i - 1]["role"], turns[i]["role"]
        if roles == ("user", "assistant") and turns[i]["content"].strip():
            yield row | {"earlier": turns[:i - 1], "instruction": turns[i - 1]["content"],
                         "output": turns[i]["content"]}
    yield row


def encode_prompts(data, tokenizer, config):
    """The token ids of every row's prompt: in the tokenizer's chat template where it has one, else
    in Alpaca's layout, or as --prompt_format says. A row may have earlier turns. Rows that the
    template refuses are taken out of `data`."""
    if config.prompt_format == "auto" and tokenizer.chat_template:
        print("Prompts are written in the tokenizer's chat template (see --prompt_format).")
        config.prompt_format = "chat"
    if config.prompt_format in ("chat", "think"):
        prompts, kept, refused = [], [], ""
        for row in data:
            text = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
            turns = [*row.get("earlier", []), {"role": "user", "content": text}]
            try:
                prompts.append(tokenizer.apply_chat_template(
                    turns, enable_thinking=config.prompt_format == "think", return_dict=False,
                    add_generation_prompt=True, tokenizer_kwargs={"split_special_tokens": False}))
                kept.append(row)
            except Exception as error:  # whatever a template may raise
                refused = refused or f"{error}, of {turns!r:.150}"
        if refused:
            print(f"{len(data) - len(kept)} of {len(data)} prompts are left out: the chat template "
                  f"refuses them, as {refused}")
        data[:] = kept
        return prompts or die(f"--prompt_format chat: the template refuses all prompts: {refused}")
    tokenizer.chat_template = None  # the model will not have learned it
    layout = format_prompt
    if config.prompt_format == "plain":
        layout = lambda *texts: "\n\n".join(filter(None, texts))
    prompts = tokenizer([layout("\n\n".join([
        *(turn["content"] for turn in row.get("earlier", [])), row["instruction"]]),
        row.get("input") or "") for row in data])["input_ids"]
    ends = [tokenizer.eos_token_id]  # some tokenizers add it to every text
    return [ids[:-1] if ids[-1:] == ends else ids for ids in prompts]


def from_pretrained(kind, name, config, **options):
    """(model, tokenizer, end tokens) from the hub, a folder or a run, with a pad token that is no
    end token. An adapter that it comes with is merged into its weights."""
    path = Path(name, "model") if Path(name, "model").is_dir() else name
    if Path(config.runs_dir) in Path(name).parents and not Path(name).exists():
        die(f"there is no run {name}: run the lesson that makes it first")
    with blame(f"cannot load the tokenizer of {str(name)!r} (tokenizer.json or the like)"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        tokenizer.split_special_tokens = True  # what looks like an end token in a text is text
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with blame(f"cannot load the model {str(name)!r} (config.json, *.safetensors)"):
        adapter = transformers.utils.find_adapter_config_file(str(path))
        base = json.loads(Path(adapter).read_text())["base_model_name_or_path"] if adapter else path
        if adapter and config.load_in_4bit:
            raise ValueError("4 bits cannot take up an adapter: merge it into the weights first")
        model = load_weights(kind, base, config, options)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            torch.manual_seed(config.seed)  # the new rows are the same in every lesson
            model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
        if adapter:
            import peft
            settings = peft.PeftConfig.from_pretrained(path)
            settings.task_type = None  # a policy's adapter may become a reward model's weights
            model = peft.PeftModel.from_pretrained(model, path, config=settings).merge_and_unload()
            model.requires_grad_(True).was_adapter = True
    model.config.pad_token_id = tokenizer.pad_token_id
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.eval(), tokenizer, end_tokens(model, tokenizer, config, name)


def load_weights(kind, base, config, options):
    """A model that is whole and finite: in float32, because bfloat16 would lose small steps, and
    without dropout, because a policy has to agree with itself. Under an adapter the weights are in
    --dtype or, in large matrices, in 4 bits (QLoRA: Dettmers et al. 2023)."""
    options["trust_remote_code"] = config.trust_remote_code
    settings = AutoConfig.from_pretrained(base, **options).to_dict()
    if "MaskedLM" in str(settings["architectures"]):
        die(f"{base} fills gaps and sees what comes after them: it cannot write")
    options |= {key: type(x)(0) for key, x in settings.items() if x and any(
        part in key for part in ("drop", "jitter", "output_router_logits"))}
    if settings.get("activation_function") == "gelu_new":  # GPT-2's, and the same function:
        options["activation_function"] = "gelu_pytorch_tanh"  # it is faster
    if config.load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16" if config.bf16 else config.dtype)
    model, report = kind.from_pretrained(
        base, dtype=config.dtype if config.lora_rank else "float32", output_loading_info=True,
        attn_implementation=config.attn_implementation, ignore_mismatched_sizes=True, **options)
    new = {"score.weight"} if "num_labels" in options else set()  # lesson 2's head
    bad = [*report["missing_keys"] - new, *report["mismatched_keys"]]
    for weight in bad or [x for x, w in model.named_parameters() if not w.isfinite().all()]:
        raise ValueError(f"{weight} is missing, has another shape, or is not finite")
    for layer in model.modules() if config.load_in_4bit else []:
        layer.support_avx512bf16_for_cpu = False  # what is fast there has no gradient
    return model


def end_tokens(model, tokenizer, config, name):
    """The ids with which an answer ends. It has to fit into the model's positions, too."""
    positions = getattr(model.config, "max_position_embeddings", 10**6)
    config.max_new_tokens = config.max_new_tokens or min(256, positions // 3)
    config.max_prompt_length = config.max_prompt_length or min(
        512, positions - config.max_new_tokens)
    length = config.max_prompt_length + config.max_new_tokens
    if length > positions:
        die(f"--max_prompt_length + --max_new_tokens is {length}; {name} has {positions} positions")
    ends = (getattr(model, "generation_config", None) or model.config).eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if tokenizer.eos_token is None and not ends:
        die(f"the model {str(name)!r} has no end token: its answers would never stop")
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.eos_token_id not in ends:  # labels end with it, so generation has to stop there
        print(f"{name}: an answer ends with {tokenizer.eos_token!r}, as the tokenizer says.")
        ends = [tokenizer.eos_token_id, *ends]
    return ends


def load_causal_lm(config):
    """(model, tokenizer) of --model, with an adapter to train where there is --lora_rank."""
    model, tokenizer, ends = from_pretrained(AutoModelForCausalLM, config.model, config)
    special = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config.update(**special)
    model.generation_config_to_save = model.generation_config
    # `generate` takes from here whatever its caller leaves open: no top_p or penalty may stay.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special)
    return add_adapter(model, config, "CAUSAL_LM"), tokenizer


def add_adapter(model, config, task):
    """LoRA (Hu et al. 2021): every linear layer W becomes W + 32/r B A with A and B of rank r. W is
    frozen, and B is 0 at first. For 32 and the tenfold learning rate see Schulman et al. 2025."""
    if not config.lora_rank:
        return model
    with blame("--lora_rank needs one more package (pip install peft)"):
        import peft
    # What tells one base model from another, for adapters that want to share one.
    total = sum(weight.double().abs().sum().item() for weight in model.base_model.parameters())
    model.config.fingerprint = f"{total:.10g}"
    torch.manual_seed(config.seed)  # whatever was drawn before, the adapter begins the same
    conv1d = any(type(layer).__name__ == "Conv1D" for layer in model.modules())  # GPT-2 stores W.T
    return peft.get_peft_model(model, peft.LoraConfig(
        task_type=task, r=config.lora_rank, lora_alpha=32, target_modules="all-linear",
        fan_in_fan_out=conv1d))


def text_metrics(model, tokenizer, rows, config):
    """How like the references the greedy answers are: ROUGE-L's F (Lin 2004), chrF (Popovic 2015),
    both from 0 to 100."""
    with blame("--text_metrics needs two more packages (pip install rouge-score sacrebleu)"):
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    answers, size = [], config.micro_batch_size
    for piece in [rows[i:i + size] for i in range(0, len(rows), size)]:
        prompts = [row["prompt_ids"] for row in piece]
        response = generate(model, tokenizer, prompts, config.max_new_tokens, temperature=0)[2]
        answers += tokenizer.batch_decode(response, skip_special_tokens=True)
    references, scorer = [row["reference"] for row in rows], RougeScorer(["rougeL"])
    rouge = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, answers)]
    return {"rougeL": 100 * sum(rouge) / len(rouge),
            "chrF": sacrebleu.corpus_chrf(answers, [references]).score}


def chat(config):
    """Answers --prompt or, with --chat, every line that is typed, until an empty one: with the
    likeliest tokens, not with samples. What comes after a | is the instruction's input."""
    config.model = config.model or str(run_folder(config))
    if config.model == str(run_folder(config)) and not Path(config.model, "model").is_dir():
        die(f"{config.model} is missing: run python lesson1_sft.py first")
    if config.chat:
        print("Type an instruction; an empty line ends.")
    model, tokenizer = load_causal_lm(config)
    model.to(PartialState().device)
    context = []
    for instruction in [config.prompt] if config.prompt else sys.stdin:
        if not instruction.strip():
            return config.chat or die("--prompt is empty")
        row = dict(zip(("instruction", "input"), map(str.strip, instruction.split("|", 1))))
        room = getattr(model.config, "max_position_embeddings", math.inf) - config.max_new_tokens
        prompt = encode_prompts([row | {"earlier": context}], tokenizer, config)[0]
        while context and len(prompt) > room:  # the oldest turns are forgotten
            del context[:2]
            prompt = encode_prompts([row | {"earlier": context}], tokenizer, config)[0]
        if len(prompt) > room:
            die(f"{len(prompt)} tokens and --max_new_tokens {config.max_new_tokens} are more than "
                f"the {room + config.max_new_tokens} positions of {config.model}")
        response = generate(model, tokenizer, [prompt], config.max_new_tokens, temperature=0)[2]
        text = tokenizer.decode(response[0], skip_special_tokens=True)
        print(text, flush=True)
        if config.prompt_format in ("chat", "think"):  # the conversation so far
            context += [{"role": "user", "content": instruction.strip()},
                        {"role": "assistant", "content": text}]


def start(config):
    """Quiet libraries, the seed, and an Accelerator: device, processes, precision, tracker."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    logging.disable(getattr(logging, config.log_level.upper()) - 1)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", module="peft")  # of GPT-2's transposed weights
    warnings.filterwarnings("error", message=".*log_with")  # a tracker that is not installed
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # of downloads
    reach_hub(config.model, config.data, config.eval_data)
    torch.manual_seed(config.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
    tracker = None if config.report_to == "none" else config.report_to
    with blame("cannot start"):
        if {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ):
            raise ValueError("the lessons have data parallelism, but no FSDP and no DeepSpeed")
        accelerator = Accelerator(
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision="bf16" if config.bf16 else "no", step_scheduler_with_optimizer=False,
            log_with=tracker, project_dir=run_folder(config).parent)
        accelerator.gradient_accumulation_steps = 1  # whatever the launcher says: see the losses
        if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
            raise ValueError("the processes do not find each other: try --device cpu")
        accelerator.wait_for_everyone()  # nobody leaves while others are still looking for it
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")
    return accelerator


def reach_hub(*names):
    """Where a name is no path, the hub answers within seconds, or only its cache counts."""
    hub = huggingface_hub.constants
    if hub.HF_HUB_OFFLINE or all(not name or Path(name).exists() for name in names):
        return
    try:
        huggingface_hub.get_session().head(hub.ENDPOINT, timeout=5)
    except Exception as error:
        print(f"{hub.ENDPOINT} does not answer ({error}): what was downloaded before has to do, as "
              "with HF_HUB_OFFLINE=1. HF_ENDPOINT names another hub; without --model and --data "
              "the lessons need none.", file=sys.stderr)
        hub.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"


def run_folder(config, run_name=None):
    """<runs_dir>/<run_name>, with the name of a model other than the tiny one in between."""
    root, model = Path(config.runs_dir).resolve(), Path(config.model)
    is_run = config.model and model.resolve().is_relative_to(root)
    family = model.resolve().relative_to(root).parent if is_run else model.name
    mine = "_mine" * (config.exercise and config.run_name == Config.run_name)
    name = config.run_name + mine + "-eval" * (config.steps == 0)
    return Path(config.runs_dir, family, run_name or name)


def in_characters(values):
    """A curve of at most 60 characters, between its first and its last height."""
    values = torch.tensor(values).nan_to_num()
    means = torch.stack([part.mean() for part in values.tensor_split(min(60, len(values)))])
    heights = (7.99 * (means - means.min()) / (means.max() - means.min() + 1e-9)).int()
    return f"{means[0]:.2f} {''.join('▁▂▃▄▅▆▇█'[height] for height in heights)} {means[-1]:.2f}"


class Run:
    """A run's folder: config.json, metrics.jsonl, checkpoints, curves. An earlier run of the same
    name is kept as <run_name>-1 and so on; with --resume it goes on from its last checkpoint."""

    begun = False  # training has

    def __init__(self, config, accelerator):
        self.config, self.accelerator, self.folder = config, accelerator, run_folder(config)
        self.is_main, self.earlier = accelerator.is_main_process, None
        folder, file, lesson = self.folder, self.folder / "config.json", Path(__file__).name
        if config.resume and (folder / "samples.md").is_file():  # it is written last
            die(f"{folder} is finished: there is nothing to resume")
        if self.is_main:
            with blame(f"{folder} is in use, or cannot be written to"):
                earlier = not config.resume and folder.is_dir() and any(folder.iterdir())
                if earlier:
                    if Path(config.model).resolve() == folder.resolve():
                        die(f"{folder} is --model and would be replaced: take another --run_name")
                    saved = json.loads(file.read_text()) if file.is_file() else {}
                    if "run_name" not in saved or saved.get("lesson", lesson) != lesson:
                        die(f"{folder} is no run of this lesson: take another --run_name")
                self.lock = FileLock(folder.with_name(f".{folder.name}.lock"), is_singleton=True)
                self.lock.acquire(timeout=0)  # the system releases it when this process ends
                if earlier:
                    n = next(n for n in range(1, 10**6) if not Path(f"{folder}-{n}").exists())
                    self.earlier = folder.rename(f"{folder}-{n}")
                folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder / "unfinished", ignore_errors=True)
                if not config.resume:
                    file.write_text(json.dumps({"lesson": lesson, **asdict(config)}, indent=2))
        accelerator.register_save_state_pre_hook(self.leave_out_frozen)
        accelerator.wait_for_everyone()

    def leave_out_frozen(self, models, states, _):
        """What an adapter leaves as it was is in --model, and need not be in a checkpoint."""
        for model, state in zip(models, states) if self.config.lora_rank else []:
            trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
            for name in state.keys() - trained:
                del state[name]

    def checkpoints(self):
        return sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))

    def steps(self, total):
        """The steps still to come, with a bar. Each has a seed of its own, so that a resumed run
        draws what it would have drawn."""
        rows = []
        for checkpoint in reversed(self.checkpoints()):  # the last one that is whole
            try:
                log = (self.folder / "metrics.jsonl").read_text().splitlines()
                steps = range(1, int(checkpoint.name[11:]) + 1)
                rows = [json.loads(line) for line in log[:len(steps)]]
                if [row["step"] for row in rows] != list(steps):
                    raise ValueError("metrics.jsonl lacks steps")
                self.accelerator.load_state(checkpoint, strict=not self.config.lora_rank)
                break
            except Exception as error:
                print(f"{checkpoint} is damaged, or metrics.jsonl: {error!r:.200}", file=sys.stderr)
                if checkpoint == self.checkpoints()[0]:
                    die("no checkpoint is whole: begin again, without --resume")
        self.rows, done, Run.begun = rows, len(rows), True
        if self.earlier and self.config.overwrite:  # not before: much may have gone wrong until now
            shutil.rmtree(self.earlier)
        with self.whole("metrics.jsonl") as log:  # what comes after the checkpoint is done again
            if self.is_main:
                log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.log = open(self.folder / "metrics.jsonl" if self.is_main else os.devnull, "a")
        curves = {"tensorboard": {"purge_step": done + 1}}
        self.accelerator.init_trackers(self.folder.name, init_kwargs=curves)
        signal.signal(signal.SIGINT, self.interrupt)
        name, process = self.config.run_name, self.accelerator.process_index
        self.bar = tqdm(range(done + 1, total + 1), initial=done, total=total, desc=name,
                        disable=not total)
        for step in self.bar:
            torch.manual_seed((self.config.seed * 10**6 + step) * 1000 + process)
            yield step
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(self, *_):
        """Ctrl-C: the step is finished and saved first. A second Ctrl-C stops at once."""
        self.accelerator.set_trigger()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_step(self, step, stats, **shown):
        """Log the step, and save a checkpoint when it is time or when Ctrl-C was pressed."""
        wrong = ", ".join(name for name in stats if not torch.tensor(stats[name]).isfinite())
        if wrong:
            die(f"step {step}: {wrong} is not finite. Begin again with a lower --learning_rate or "
                "without --bf16. Or was it the reward? Once it is mended, --resume goes on from "
                f"{(self.checkpoints() or ['the start'])[-1]}")
        self.bar.set_postfix(shown)
        self.rows.append({"step": step, **stats})
        print(json.dumps(self.rows[-1]), file=self.log, flush=True)
        self.accelerator.log(stats, step)
        interrupted = self.accelerator.check_trigger()  # on any of the processes
        if interrupted or self.config.save_every and step % self.config.save_every == 0:
            with self.whole(f"checkpoint-{step}") as folder:
                self.accelerator.save_state(folder)
            for old in self.checkpoints()[:-2] if self.is_main else []:
                shutil.rmtree(old)
        if interrupted:
            again = os.environ.get("TYPED") or shlex.join(  # a chain goes on by itself
                sys.argv + ["--resume"] * ("--resume" not in sys.argv))
            sys.exit(f"\nInterrupted: step {step} is saved in {self.folder}. To go on: python "
                     f"{again}" if self.is_main else 1)

    @contextmanager
    def whole(self, name):
        """A folder or file to write, which gets its name when it is whole."""
        numbers = sum(x.numel() for model in self.accelerator._models for x in model.parameters())
        with blame(f"cannot save {name} ({numbers * 12e-6:.0f} MB at most; --resume goes on)"):
            yield self.folder / "unfinished"
            self.accelerator.wait_for_everyone()
            if self.is_main:
                shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / "unfinished").replace(self.folder / name)
            self.accelerator.wait_for_everyone()

    def save_model(self, model, tokenizer, **heads):
        """model/ loads with from_pretrained. Of an adapter there is also adapter/, for peft."""
        if self.config.steps == 0:  # there is nothing new
            return
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                die(f"{name} is not finite at the end: begin again with a lower --learning_rate")
        generation = getattr(model, "generation_config_to_save", None)
        with self.whole("model") as folder:
            if not self.is_main:
                return
            if hasattr(model, "merge_and_unload"):
                if not hasattr(model, "was_adapter"):  # else its base is in no folder
                    model.save_pretrained(self.folder / "adapter", selected_adapters=["default"],
                                          save_embedding_layers=False)  # they were not trained
                    tokenizer.save_pretrained(self.folder / "adapter")
                model = self.merged(model)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            for name, head in heads.items():
                save_file(head.state_dict(), folder / f"{name}.safetensors")
            if generation:
                generation.to_json_file(folder / "generation_config.json")

    def merged(self, model):
        """The model and its adapter as one: 4 bits could not hold the sum, so it is made with the
        weights as they were."""
        if not self.config.load_in_4bit:
            return model.merge_and_unload()
        trained = model.get_base_model()
        whole, *_ = from_pretrained(type(trained), self.folder / "adapter", replace(
            self.config, load_in_4bit=False), num_labels=trained.config.num_labels)
        del trained.config.quantization_config
        whole.config = trained.config
        return whole

    def close(self, curve, before, after, samples, commands):
        """The closing table, one curve in characters, samples: [(title, {label: text})], and what
        to type next."""
        print(f"\n{'':<36}{'before':>10}{'after':>10}")
        for name in before:
            print(f"{name:<36}{before[name]:>10.3f}{after[name]:>10.3f}")
        lessons = self.folder.name.removesuffix("_mine")
        mine = ", your functions" if self.folder.name != lessons else ""
        runs = {curve + mine: self.rows} if self.rows else {}
        log = self.folder.with_name(lessons) / "metrics.jsonl"
        if mine and log.is_file():  # how the lesson's own run went
            runs[f"{curve}, the lesson's"] = list(map(json.loads, log.read_text().splitlines()))
        for name, rows in runs.items():
            print(f"\n{name}: {in_characters([row[curve] for row in rows])}")
        text = ""
        for title, texts in samples:
            text += f"\n**{title}**\n\n" + "".join(f"- {name}: {texts[name]!r}\n" for name in texts)
        print(text.replace("**", ""))
        self.accelerator.log({"samples": text}, len(self.rows))
        if self.is_main:
            numbers = json.dumps({"before": before, "after": after}, indent=2)
            (self.folder / "eval.json").write_text(numbers)
            (self.folder / "samples.md").write_text(text, encoding="utf-8")
            for checkpoint in self.checkpoints():
                shutil.rmtree(checkpoint)
        if self.config.steps == 0:
            print(f"Nothing was trained. Written to {self.folder}: eval.json, samples.md.")
        else:
            print(f"Written to {self.folder}: model/, metrics.jsonl, eval.json, samples.md.")
        if self.config.prompt_format in ("think", "alpaca", "plain"):
            commands = commands.replace("--model", f"--prompt_format {self.config.prompt_format} "
                                                   "--model")
        if self.config.steps != 0 and "TYPED" not in os.environ:  # a chain goes on by itself
            tags = "%7C".join(name for name in {curve: 0, **before} if name in self.rows[-1])
            curves = (f"Curves: tensorboard --logdir {self.config.runs_dir} and then "
                      f"http://localhost:6006/?tagFilter={tags}#timeseries\n")
            print("Look inside, token by token: the same command with --look\n"
                  + curves * (self.config.report_to == "tensorboard") + f"Next: {commands}")
        for tracker in self.accelerator.trackers:
            tracker.finish()


if __name__ == "__main__":
    run_lesson()
