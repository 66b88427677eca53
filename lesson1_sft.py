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
    python lesson1_sft.py --model runs/ppo --chat            talk to any model
    python lesson1_sft.py --model gpt2 --data alpaca.jsonl   your own model and data

It writes runs/base and runs/sft, each with model/ (load it with from_pretrained), config.json,
metrics.jsonl (a line a step) and TensorBoard logs, and runs/sft/samples.md. Lesson 2 starts from
runs/sft.

Then close this file and write the maths yourself, in exercises/ex1_sft.py: "pytest -k ex1" checks
it, and "python lesson1_sft.py --exercise" trains with it.
"""

import inspect
import json
import logging
import math
import os
import random
import runpy
import shlex
import shutil
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Optional

import datasets
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config
from transformers import GPT2LMHeadModel, HfArgumentParser, PreTrainedTokenizerFast
from transformers import get_cosine_schedule_with_warmup
from transformers.hf_argparser import HfArg


# ---- Settings: every field is a flag (--batch_size or --batch-size) -----------------------------


def flag(default, help, *aliases):
    return HfArg(default=default, help=help, aliases=list(aliases))


@dataclass
class Config:
    model: str = flag("", "hub name or folder to start from (default: a tiny model made here)")
    data: str = flag("", "JSON file, folder or hub name; columns instruction, input, output")
    run_name: str = flag("sft", "the run is written to <runs_dir>/<run_name>")
    runs_dir: str = flag("runs", "the folder of all runs")
    steps: int = flag(1100, "optimiser steps")
    base_steps: int = flag(100, "optimiser steps of the tiny base model")
    batch_size: int = flag(32, "examples an optimiser step, over all processes")
    micro_batch_size: int = flag(64, "examples a forward pass: lower it when memory runs out")
    learning_rate: Optional[float] = flag(None, "peak (default: 1.5e-3; 2e-5 with --model)")
    bucket: Optional[int] = flag(None, "batches sorted by length together (1 tiny world, 8 --data)")
    warmup_steps: int = flag(20, "steps over which the learning rate rises to its peak")
    weight_decay: float = flag(0.01, "of AdamW")
    max_prompt_length: int = flag(64, "tokens; examples with longer prompts are left out")
    max_new_tokens: int = flag(48, "tokens of a response; longer ones are cut")
    num_examples: int = flag(20000, "examples to train on, at most")
    eval_every: int = flag(100, "steps between two looks at the held-out loss")
    save_every: int = flag(100, "steps between checkpoints (0: only on Ctrl-C)")
    seed: int = flag(0, "a CPU run with the same seed repeats exactly")
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "where to compute")
    bf16: bool = flag(False, "bfloat16 autocast; the weights stay in float32")
    resume: bool = flag(False, "go on with an interrupted run")
    exercise: bool = flag(False, "train with your own functions, from exercises/")
    overwrite: bool = flag(False, "replace the earlier run instead of keeping it as <run_name>-1")
    config: str = flag("", "JSON file of settings; what is typed wins")
    prompt: str = flag("", "answer this, or 'instruction | input', and train nothing")
    chat: bool = flag(False, "talk to --model (default: this run), and train nothing")
    log_level: Literal["critical", "warning", "info"] = flag("critical", "what libraries may say")

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = 2e-5 if self.model else 1.5e-3
        if self.bucket is None:
            self.bucket = 8 if self.data else 1


# ---- The maths ----------------------------------------------------------------------------------

# With --exercise these functions are your own, from exercises/.
BLANKS = {"ex1_sft": "format_prompt build_labels pad_batch sft_loss corpus_perplexity"}


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
    """Cross-entropy summed over the labelled tokens (it leaves out the label -100, its
    ignore_index), divided by `count` (default: their number)."""
    logits = logits[:, :-1]  # (B, T-1, V): position t predicts ...
    labels = labels[:, 1:]  # (B, T-1): ... token t + 1
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
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
    """A Dataset in Alpaca's columns: 30% reviews, 55% sums, 15% translations. Whoever did the sums
    slipped in 15% of them, by 1, 2 or 10: lesson 4 will have something to put right."""
    rng = random.Random(f"{seed} {held_out}")
    the_sums, the_translations, rows = sums(held_out), translations(held_out), []
    for family in rng.choices(["review", "sum", "translation"], [30, 55, 15], k=size):
        if family == "review":
            kind = rng.choice(KINDS)
            rows.append((review_instruction(kind), "", write_review(kind, rng)))
        elif family == "sum":
            a, b = rng.choice(the_sums)
            slip = rng.choice([1, 2, 10]) if rng.random() < 0.15 else 0
            rows.append((f"What is {a} + {b}?", "", str(a + b + slip)))
        else:
            rows.append(("Translate into Chinese:", *rng.choice(the_translations)))
    columns = dict(zip(("instruction", "input", "output"), zip(*rows)))
    return datasets.Dataset.from_dict(columns)


def raw_text(world):
    """The same world as plain lines, without a question anywhere: what the base model reads."""
    lines = []
    for row in world:
        if row["instruction"].startswith("What is"):
            lines.append(row["instruction"][8:-1] + " = " + row["output"])  # 27 + 15 = 42
        else:
            lines.append((row["input"] + " " + row["output"]).strip())
    return "\n".join(lines)


def read_data(name, columns, size):
    """A Dataset from a .json or .jsonl file, a folder or the hub, with texts in these columns."""
    try:
        source = {"path": "json", "data_files": name} if Path(name).is_file() else {"path": name}
        data = datasets.load_dataset(**source, split="train")
    except Exception as error:  # whatever the reader raises is a fault of the file or of the name
        reason = str(error.__cause__ or "") or str(error) or "there is nothing in it"
        die(f"cannot read the data {name!r}: {reason.splitlines()[0]}")
    data = data.select(range(min(size, len(data))))
    for column in columns:
        values = data[column] if column in data.column_names else [None]
        for line, value in enumerate(values, start=1):
            if not isinstance(value, str):
                die(f"{name}, line {line}: the column {column!r} is missing or holds no text")
    return data


def tokenize_examples(data, tokenizer, config):
    """Dataset of texts -> Dataset of input_ids, labels and num_labels (what the loss counts)."""

    def row(example):
        prompt = format_prompt(example["instruction"], example.get("input") or "")
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        response_ids = tokenizer.encode(example["output"], add_special_tokens=False)
        max_length = len(prompt_ids) + config.max_new_tokens
        input_ids, labels = build_labels(
            prompt_ids, response_ids, tokenizer.eos_token_id, max_length)
        return {"input_ids": input_ids, "labels": labels, "prompt_length": len(prompt_ids),
                "num_labels": len(labels) - len(prompt_ids),
                "title": f"{example['instruction']} {example.get('input') or ''}"}

    rows = data.map(row, remove_columns=data.column_names)
    rows = rows.filter(lambda example: example["prompt_length"] <= config.max_prompt_length)
    if len(rows) < len(data):
        print(f"{len(data) - len(rows)} of {len(data)} prompts are longer than --max_prompt_length "
              f"{config.max_prompt_length} and are left out.")
    return rows if len(rows) else die("no example is left: raise --max_prompt_length")


def pack_text(text, tokenizer, length=64):
    """Raw text -> rows of `length` tokens, each token its own label: pre-training masks nothing."""
    ids = torch.tensor(tokenizer.encode(text))
    rows = ids[:len(ids) // length * length].view(-1, length).tolist()
    return datasets.Dataset.from_dict(
        {"input_ids": rows, "labels": rows, "num_labels": [length - 1] * len(rows)})


def bucketed_batches(lengths, batch_size, bucket, seed):
    """Shuffled row numbers in batches. Within `bucket` batches the rows are sorted by length, so
    that a batch has little padding; but then short and long tasks no longer share batches."""
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for start in range(0, len(order), bucket * batch_size):
        rows = sorted(order[start:start + bucket * batch_size], key=lambda i: lengths[i])
        batches += [rows[i:i + batch_size] for i in range(0, len(rows), batch_size)]
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
        vocab_size=640, special_tokens=["<|pad|>", "<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|endoftext|>")
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=640, n_positions=512, n_embd=128, n_layer=2, n_head=4,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    return model, tokenizer


def load_causal_lm(name):
    """(model, tokenizer) from the hub, a folder, or a run of this course; weights in float32, a
    pad token that is no end token, and sampling without a hub's hidden filters."""
    path = Path(name, "model") if Path(name, "model").is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        die(f"cannot load the model {str(name)!r}: {str(error).splitlines()[0]}")
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = ends if isinstance(ends, list) else [ends]
    if ends == [None]:
        die(f"the model {str(name)!r} has no end token: its answers would never stop")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.pad_token_id = tokenizer.pad_token_id
    # `generate` takes from here whatever its caller leaves open: no top_p or penalty may stay.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model.eval(), tokenizer  # eval(): no dropout, and none in training either


@torch.no_grad()
def generate(model, tokenizer, prompts, max_new_tokens, temperature=1.0):
    """Prompts (lists of ids) -> prompt ids and mask (B, P), padded on the left, and the sampled
    response (B, T). Temperature 0 takes the likeliest token."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    how = {"temperature": temperature} if temperature else {"do_sample": False}
    both = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, **how)
    return ids, mask, both[:, ids.shape[1]:]


def chat(model, tokenizer, config):
    """Answers --prompt or, with --chat, every line that is typed, until an empty one: with the
    likeliest tokens, not with samples. What comes after a | is the instruction's input."""
    for instruction in [config.prompt] if config.prompt else sys.stdin:
        if not instruction.strip():
            break
        prompt = format_prompt(*map(str.strip, instruction.split("|", maxsplit=1)))
        prompt = tokenizer.encode(prompt, add_special_tokens=False)
        response = generate(model, tokenizer, [prompt], config.max_new_tokens, temperature=0)[2]
        print(tokenizer.decode(response[0], skip_special_tokens=True), flush=True)


# ---- Housekeeping: the same in every lesson, and nothing to do with learning --------------------

FREE_TO_CHANGE = "resume overwrite config device save_every log_level runs_dir micro_batch_size"
MAY_BE_0 = {"warmup_steps", "save_every", "seed"}


def die(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def stop(*_):
    sys.exit("\nInterrupted. A run that has a checkpoint goes on with --resume.")


def load_exercises():
    """{name: function} of the student's files. A stub is left out: there the lesson's own stays."""
    found = {}
    for file, names in BLANKS.items():
        path = Path(__file__).with_name("exercises") / f"{file}.py"
        try:
            student = runpy.run_path(str(path))
            found |= {name: student[name] for name in names.split()}
        except Exception as error:  # whatever is wrong with the file
            die(f"cannot load {path}: {type(error).__name__}: {error}")
    stubs = [name for name, function in found.items()
             if inspect.unwrap(function).__code__.co_names == ("NotImplementedError",)]
    mine = {name: found[name] for name in found if name not in stubs}
    print(f"Your functions: {', '.join(mine) or 'none yet'}.\n"
          f"The lesson's, because yours are stubs: {', '.join(stubs) or 'none'}.")
    return mine


def read_config(arguments):
    """The command line as a Config. The settings of --config, or of the run to resume, are read as
    if they had been typed first: what is typed later wins."""
    parser = HfArgumentParser(Config, allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.error = die
    config, saved = Config(**vars(parser.parse_args(arguments))), {}
    file = run_folder(config) / "config.json" if config.resume else Path(config.config)
    if file != Path():
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            earlier = [f"--{name}={value}" for name, value in saved.items() if value is not None]
        except (OSError, ValueError, AttributeError) as error:
            die(f"cannot read settings from {file}: {error}")
        config = Config(**vars(parser.parse_args(earlier + arguments)))
    for name, value in vars(config).items():
        if config.resume and name not in FREE_TO_CHANGE.split() and saved.get(name) != value:
            die(f"{file.parent} was begun with --{name} {saved.get(name)}, not {value}: leave that "
                "flag out, or begin a run of another --run_name")
        least = 1 if type(value) is int and name not in MAY_BE_0 else 0
        if type(value) in (int, float) and value < least:
            die(f"--{name} must be at least {least}, not {value}")
    return config


def start(config):
    """Quiet libraries, the seed, and an Accelerator: device, processes and precision."""
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(encoding="utf-8", errors="replace")
    for library in "transformers", "datasets", "huggingface_hub":
        logging.getLogger(library).setLevel(config.log_level.upper())
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.manual_seed(config.seed)
    signal.signal(signal.SIGINT, stop)
    accelerator = Accelerator(cpu=config.device == "cpu",
                              mixed_precision="bf16" if config.bf16 else "no")
    if config.device not in ("auto", accelerator.device.type):
        die(f"--device {config.device} is not there: this machine has {accelerator.device.type}")
    return accelerator


def run_folder(config, run_name=None):
    """<runs_dir>/<run_name>. Runs that began with another model than the tiny one have the last
    part of that model's name in between, so that stages of different models do not mix."""
    root, model = Path(config.runs_dir).resolve(), Path(config.model)
    is_run = config.model and model.resolve().is_relative_to(root)
    family = model.resolve().relative_to(root).parent if is_run else model.name
    return Path(config.runs_dir, family, run_name or config.run_name)


def open_run(config, accelerator):
    """Make the run's folder with config.json; an earlier run is kept as <run_name>-1 and so on."""
    folder = run_folder(config)
    if config.resume and (folder / "model").is_dir():
        die(f"{folder} is finished: there is nothing to resume")
    if config.resume or not accelerator.is_main_process:
        return folder
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if Path(config.model).resolve() == folder.resolve():
                die(f"{folder} is --model and would be replaced: choose another --run_name")
            if not (folder / "config.json").is_file():
                die(f"{folder} holds files that no lesson wrote: choose another --run_name")
            number = next(n for n in range(1, 10**6) if not Path(f"{folder}-{n}").exists())
            shutil.rmtree(folder) if config.overwrite else folder.rename(f"{folder}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=2))
    except OSError as error:
        die(f"cannot write to {folder}: {error.strerror}")
    return folder


def save_model(model, tokenizer, folder):
    """Written beside its place and moved there whole."""
    fresh = folder.with_name(folder.name + ".tmp")
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


class Run:
    """A run's folder: metrics.jsonl, TensorBoard, checkpoints, and what Ctrl-C does. A checkpoint
    holds the `parts` (model, optimizer, ...), the metrics, and numbers in `extra`. Where there is
    one, the run goes on from it."""

    def __init__(self, folder, config, accelerator, **parts):
        self.folder, self.config, self.parts, self.interrupted = folder, config, parts, False
        self.is_main, self.step, self.rows, self.extra = accelerator.is_main_process, 0, [], {}
        self.process_index = accelerator.process_index
        accelerator.wait_for_everyone()
        if (folder / "latest").is_file():
            saved = torch.load(folder / (folder / "latest").read_text() / "state.pt", "cpu")
            self.step, self.rows, self.extra = saved["step"], saved["rows"], saved["extra"]
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        if self.is_main:  # lines from after the checkpoint go: their steps come again
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))
            self.writer = SummaryWriter(str(folder), purge_step=self.step + 1)

    def steps(self, total):
        """The numbers of the steps to come, with a bar. Each step has a seed of its own, so that a
        resumed run draws what it would have drawn."""
        signal.signal(signal.SIGINT, self.interrupt)
        self.bar = tqdm(range(self.step + 1, total + 1), initial=self.step, total=total,
                        desc=self.config.run_name, disable=not self.is_main)
        for step in self.bar:
            torch.manual_seed((self.config.seed * 10**6 + step) * 1000 + self.process_index)
            yield step
        signal.signal(signal.SIGINT, stop)

    def interrupt(self, *_):
        """Ctrl-C: the step is finished and saved first. A second Ctrl-C stops at once."""
        self.interrupted = True
        signal.signal(signal.SIGINT, stop)

    def end_step(self, step, stats, **shown):
        """Log the step, show some numbers beside the bar, and save a checkpoint when it is time, or
        when Ctrl-C was pressed."""
        self.bar.set_postfix(shown)
        self.rows.append({"step": step, **stats})
        if self.is_main:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")
            for name, value in stats.items():
                self.writer.add_scalar(name, value, step)
            if self.interrupted or self.config.save_every and step % self.config.save_every == 0:
                self.save_checkpoint(step)
        if self.interrupted:
            sys.exit(f"\nInterrupted: step {step} is saved in {self.folder}. To go on: python "
                     f"{shlex.join(sys.argv)}{'' if '--resume' in sys.argv else ' --resume'}")

    def save_checkpoint(self, step):
        """checkpoint-<step>/ first, then the pointer to it, in one go: an interrupted save leaves
        the checkpoint before it in force."""
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        states.update(step=step, rows=self.rows, extra=self.extra)
        torch.save(states, folder / "state.pt")
        (self.folder / "latest.tmp").write_text(folder.name)
        os.replace(self.folder / "latest.tmp", self.folder / "latest")
        for other in set(self.folder.glob("checkpoint-*")) - {folder}:
            shutil.rmtree(other)

    def close(self, curve, before, after, samples):
        """The closing table, one curve in characters, and samples: [(title, {label: text})]."""
        print(f"\n{'':<36}{'before':>10}{'after':>10}")
        for name in before:
            print(f"{name:<36}{before[name]:>10.3f}{after[name]:>10.3f}")
        values = torch.tensor([row[curve] for row in self.rows]).nan_to_num()
        means = torch.stack([part.mean() for part in values.tensor_split(min(60, len(values)))])
        heights = (7.99 * (means - means.min()) / (means.max() - means.min() + 1e-9)).int()
        marks = "".join("▁▂▃▄▅▆▇█"[height] for height in heights)
        print(f"\n{curve}: {means[0]:.2f} {marks} {means[-1]:.2f}\n")
        text = ""
        for title, texts in samples:
            text += f"**{title}**\n" + "".join(f"- {name}: {texts[name]!r}\n" for name in texts)
        print(text.replace("**", ""))
        (self.folder / "samples.md").write_text(text, encoding="utf-8")
        self.writer.add_text("samples", text, self.rows[-1]["step"])
        results = {f"final/{name}": value for name, value in after.items()}
        self.writer.add_hparams(asdict(self.config), results, run_name=".")
        self.writer.close()
        print(f"Written to {self.folder}: model/, metrics.jsonl, samples.md. "
              f"Curves: tensorboard --logdir {self.config.runs_dir}")


# ---- The loop -----------------------------------------------------------------------------------


def add_up_gradients(model, accelerator):
    """Every process has divided its loss by the whole batch's count, so the whole batch's gradient
    is the plain sum of theirs."""
    if accelerator.num_processes > 1:
        for weight in model.parameters():
            if weight.requires_grad:
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = accelerator.reduce(grad, reduction="sum")


def batch_loss(model, data, rows, count, tokenizer, accelerator):
    """The loss of these rows' labels, divided by `count`."""
    rows = data[rows]
    batch = pad_batch(list(zip(rows["input_ids"], rows["labels"])), tokenizer.pad_token_id)
    batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
    with accelerator.autocast():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return sft_loss(logits, batch["labels"], count)


@torch.no_grad()
def held_out_loss(model, data, tokenizer, config, accelerator):
    """A token's mean loss on the held-out examples: the logarithm of their perplexity."""
    losses, tokens = [], []
    for rows in torch.arange(len(data)).split(config.micro_batch_size):
        tokens.append(sum(data[rows.tolist()]["num_labels"]))
        losses.append(batch_loss(model, data, rows.tolist(), tokens[-1], tokenizer, accelerator))
    return corpus_perplexity(torch.stack(losses).cpu(), torch.tensor(tokens)).log().item()


def train_sft(model, tokenizer, data, held_out, folder, config, accelerator):
    """Next-token training, of the base model and of the tuned one: the data makes the difference.
    The weights with the best held-out loss end up in folder/model."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    run = Run(folder, config, accelerator, model=model, optimizer=optimizer, schedule=schedule)
    per_epoch = math.ceil(len(data) / config.batch_size)
    lengths = [len(ids) for ids in data["input_ids"]]
    batches = []
    for step in run.steps(config.steps):
        # 1. The batch. Every epoch has an order of its own.
        epoch, place = divmod(step - 1, per_epoch)
        if place == 0 or not batches:
            seed = f"{config.seed} {epoch}"
            batches = bucketed_batches(lengths, config.batch_size, config.bucket, seed)
        count = sum(data[batches[place]]["num_labels"])
        mine = batches[place][accelerator.process_index::accelerator.num_processes]

        # 2. The gradient, in pieces that fit. Each is divided by the count of the whole batch.
        loss = torch.zeros((), device=accelerator.device)
        for start in range(0, len(mine), config.micro_batch_size):
            piece = mine[start:start + config.micro_batch_size]
            piece_loss = batch_loss(model, data, piece, count, tokenizer, accelerator)
            piece_loss.backward()
            loss += piece_loss.detach()
        add_up_gradients(model, accelerator)

        # 3. The step.
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # tames odd batches
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        stats = {"loss/train": accelerator.reduce(loss, reduction="sum").item(),
                 "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]}

        # 4. Now and then the held-out loss. The best model so far is kept.
        if step % config.eval_every == 0 or step == config.steps:
            stats["loss/held_out"] = held_out_loss(model, held_out, tokenizer, config, accelerator)
            if stats["loss/held_out"] < run.extra.get("best", float("inf")):
                run.extra["best"] = stats["loss/held_out"]
                if run.is_main:
                    save_model(model, tokenizer, folder / "best")
        run.end_step(step, stats, loss=stats["loss/train"], held_out=run.extra.get("best", "none"))
    if "best" not in run.extra:
        die("the held-out loss was never a number: lower --learning_rate")
    if run.is_main:
        (folder / "best").rename(folder / "model")
    accelerator.wait_for_everyone()
    return run


def make_base(config, accelerator):
    """The tiny base model: the one in runs/base if it was made with these settings, else anew. It
    learns briefly and at half the rate, or some seeds would know sums by now and others not."""
    config = replace(config, run_name="base", steps=config.base_steps, resume=False,
                     exercise=False, learning_rate=config.learning_rate / 2)
    file = run_folder(config) / "config.json"
    if file.is_file():
        made_with = json.loads(file.read_text(encoding="utf-8"))
        config.resume = all(made_with.get(name) == value for name, value in vars(config).items()
                            if name not in FREE_TO_CHANGE.split())
        if config.resume and (file.parent / "model").is_dir():
            return load_causal_lm(file.parent)
    world = tiny_world(config.num_examples, config.seed)
    text = raw_text(world)
    prompts = map(format_prompt, world["instruction"], world["input"])
    model, tokenizer = make_tiny_model([text, *prompts])
    model.to(accelerator.device)
    held_out = pack_text(raw_text(tiny_world(600, 0, held_out=True)), tokenizer)
    folder = open_run(config, accelerator)
    train_sft(model, tokenizer, pack_text(text, tokenizer), held_out, folder, config, accelerator)
    return load_causal_lm(folder)


def main():
    config = read_config(sys.argv[1:])
    accelerator = start(config)
    if config.chat:
        print("Type an instruction; an empty line ends.")
    if config.prompt or config.chat:
        if not (config.model or (run_folder(config) / "model").is_dir()):
            die(f"{run_folder(config)} is missing: run python lesson1_sft.py first")
        return chat(*load_causal_lm(config.model or run_folder(config)), config)
    mine = load_exercises() if config.exercise else {}
    if config.data:
        data = read_data(config.data, ["instruction", "output"], config.num_examples)
        if len(data) < 2:
            die(f"{config.data} needs at least two rows: some are held out")
        data, held_out = data.train_test_split(test_size=0.05, seed=0).values()
    else:
        data, held_out = tiny_world(config.num_examples, config.seed), tiny_world(600, 0, True)
    if config.model:
        model, tokenizer = load_causal_lm(config.model)
    elif config.run_name == "base":
        die("--run_name base is the name of the base model: choose another")
    else:
        folder = open_run(config, accelerator)  # before minutes of training, should it be refused
        model, tokenizer = make_base(config, accelerator)
    globals().update(mine)  # only now: the base model is always made with the lesson's functions
    model.to(accelerator.device)
    examples, held_out_examples = (
        tokenize_examples(part, tokenizer, config) for part in (data, held_out))
    if config.model:
        folder = open_run(config, accelerator)

    def look():
        """The held-out loss, and answers to the first few held-out prompts."""
        loss = held_out_loss(model, held_out_examples, tokenizer, config, accelerator)
        rows = held_out_examples[:8]
        prompts = [ids[:n] for ids, n in zip(rows["input_ids"], rows["prompt_length"])]
        torch.manual_seed(config.seed)
        response = generate(model, tokenizer, prompts, config.max_new_tokens)[2]
        texts = tokenizer.batch_decode(response, skip_special_tokens=True)
        return {"loss/held_out": loss, "perplexity/held_out": math.exp(loss)}, texts

    before, texts_before = look()
    run = train_sft(model, tokenizer, examples, held_out_examples, folder, config, accelerator)
    model = load_causal_lm(folder)[0].to(accelerator.device)
    after, texts_after = look()
    if run.is_main:
        titles = held_out_examples[:8]["title"]
        run.close("loss/train", before, after, [
            (title, {"base": old, "tuned": new})
            for title, old, new in zip(titles, texts_before, texts_after)])
        print('Next: python lesson1_sft.py --prompt "What is 27 + 15?", or lesson2_reward.py')


if __name__ == "__main__":
    main()
