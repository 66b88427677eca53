"""The work that all contestants do, and what counts it: random models and data, and the Meter."""

import functools
import importlib.util
import json
import os
import random
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 16  # tokens of every prompt
LESSONS = {"sft": 1, "reward": 2, "ppo": 3, "grpo": 4}


def load_lesson(lesson):
    """The lesson's file as a module."""
    file = next(ROOT.glob(f"lesson{LESSONS[lesson]}_*.py"))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_rows(file):
    return [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]


def write_rows(file, rows):
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def number_reward(prompts, responses, **columns):
    """The mean of a response's numbers ("t5 t8": 6.5): cheap, and never equal in a whole group."""
    numbers = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in responses]
    return [sum(row) / max(len(row), 1) for row in numbers]


def make_model(folder, size, format_prompt):
    """A language model and a reward model of random weights, whose words are tokens: t0 t1 t2 ...

    Neither the end token nor the pad token can be sampled, so that every response is as long as
    it may be. Every embedding has 20 in its first column, and these two have -20; the layers that
    come after change little of it, and the head is tied: their logits are far below the others."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers import GPT2Config, PreTrainedTokenizerFast, Qwen3Config

    transformers.utils.logging.disable_progress_bar()
    words = ["<|pad|>", "<|endoftext|>", *sorted(set(format_prompt("").split()))]
    words += [f"t{i}" for i in range(size["vocabulary"] - len(words))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[-1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|pad|>", eos_token="<|endoftext|>")
    common = dict(vocab_size=size["vocabulary"], pad_token_id=0, bos_token_id=1, eos_token_id=1)
    if size["kind"] == "gpt2":
        config = GPT2Config(n_layer=size["layers"], n_embd=size["width"], n_head=size["heads"],
                            n_positions=1024, activation_function="gelu_pytorch_tanh",
                            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **common)
    else:
        config = Qwen3Config(
            num_hidden_layers=size["layers"], hidden_size=size["width"], num_key_value_heads=8,
            num_attention_heads=size["heads"], head_dim=128, intermediate_size=3 * size["width"],
            tie_word_embeddings=True, max_position_embeddings=4096, **common)
    for kind, name in (AutoModelForCausalLM, ""), (AutoModelForSequenceClassification, "reward"):
        config.update(dict(score_mean=0.0, score_std=1.0, num_labels=1) if name else {})
        torch.manual_seed(0)
        model = kind.from_config(config)
        embeddings = model.get_input_embeddings().weight.data
        embeddings[:, 0] = 20.0
        embeddings[:2, 0] = -20.0
        norm = model.base_model.ln_f if size["kind"] == "gpt2" else model.base_model.norm
        norm.weight.data[0] = 0.1
        model.save_pretrained(folder / name / "model")
        tokenizer.save_pretrained(folder / name / "model")


def make_data(folder, size, steps, format_prompt):
    """Rows for every lesson. Responses have 1/4 to 1 of the length, evenly; all of them are learned
    from once. Lessons 1 and 2 hold some rows out: the others get a file without these."""
    dice, length = random.Random(0), size["length"]
    frame = format_prompt("").split()

    def text(low, high):
        n = size["vocabulary"] - len(set(frame)) - 2
        return " ".join(f"t{dice.randrange(n)}" for _ in range(dice.randint(low, high)))

    def row(**columns):
        instruction = text(*[PROMPT - len(frame)] * 2)
        return {"instruction": instruction, "prompt": format_prompt(instruction)} | columns

    def response():
        return text(max(1, length // 4 - 1), length - 1)  # and the end token

    learned = steps * size["batch"]
    n = next(n for n in range(learned + 1, 2 * learned + 9) if n - -(-n // 20) == learned)
    rows = {"sft": [row(output=response()) for _ in range(n)],
            "reward": [row(chosen=response(), rejected=response()) for _ in range(learned + 1)]}
    for name, held_out in ("sft", -(-n // 20)), ("reward", 1):
        write_rows(folder / f"{name}.jsonl", rows[name])
        random.Random(0).shuffle(rows[name])  # as the lessons do
        write_rows(folder / f"{name}_train.jsonl", rows[name][held_out:])
        assert len(rows[name]) - held_out == learned
    write_rows(folder / "prompts.jsonl", [row() for _ in range(16)])


def peak_memory():
    """The most memory that this process has held, in MB. Linux counts in ru_maxrss what the parent
    held when it started the process, so there its own status file is read."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


class Meter:
    """Times the steps of this process and counts its work, at the level of transformers' classes:
    whoever runs a trunk, generates or takes an optimiser step is counted."""

    def __init__(self, job):
        import torch
        import transformers
        from torch.optim.optimizer import register_optimizer_step_post_hook
        self.job, self.counts, self.history = job, Counter(), []
        self.times, self.peaks, self.rewards = [], [], []
        self.cuda = torch.cuda.is_available() and job["device"] != "cpu"
        self.torch, self.generating = torch, False
        register_optimizer_step_post_hook(lambda *_: self.add("optimiser steps", 1))
        for trunk in transformers.GPT2Model, transformers.Qwen3Model:
            trunk.forward = self.counted_forward(trunk.forward)
        mixin = transformers.GenerationMixin
        mixin.generate = self.counted_generate(mixin.generate)

    def add(self, name, number):
        self.counts[name] = self.counts[name] + number  # a new tensor: the history keeps the old

    def counted_forward(self, forward):
        @functools.wraps(forward)
        def counted(trunk, input_ids=None, *rest, **options):
            if not self.generating:
                name = "trained" if self.torch.is_grad_enabled() else "other"
                name = f"{getattr(trunk, 'role', '')} {name}".strip()
                self.add(f"{name} tokens", (input_ids != 0).sum())  # 0 is the pad token
                self.add(f"{name} tokens, padded", input_ids.numel())
            return forward(trunk, input_ids, *rest, **options)
        return counted

    def counted_generate(self, generate):
        @functools.wraps(generate)
        def counted(model, *inputs, **options):
            self.generating = True
            out = generate(model, *inputs, **options)
            self.generating = False
            prompt = options["input_ids"] if "input_ids" in options else inputs[0]
            new = getattr(out, "sequences", out)[:, prompt.shape[1]:]
            self.add("generated tokens", (new > 1).sum())  # no end and no padding
            return out
        return counted

    def tick(self):
        """The beginning of a step, and the end of the one before."""
        if self.cuda:
            self.torch.cuda.synchronize()
        self.times.append(time.time())
        self.history.append(Counter(self.counts))
        self.peaks.append(self.torch.cuda.max_memory_allocated() / 2**20 if self.cuda else
                          peak_memory())

    def steps(self, total):
        for step in range(total):
            self.tick()
            yield step
        self.tick()

    def save(self):
        """Writes what was measured, to the file that the job names."""
        first, *_, last = self.history = [Counter({name: int(number) for name, number in x.items()})
                                          for x in self.history]
        a_step = {name: statistics.median(b[name] - a[name]
                  for a, b in zip(self.history, self.history[1:])) for name in last}
        total = {name: last[name] - first[name] for name in last}
        seconds = [b - a for a, b in zip(self.times, self.times[1:])]
        Path(self.job["out"]).write_text(json.dumps(
            {"first": self.times[0] - float(os.environ["BENCH_START"]), "total": total,
             "a_step": a_step, "seconds": seconds, "peak": self.peaks[-1],
             "peak_before": self.peaks[0], "rewards": self.rewards}))
