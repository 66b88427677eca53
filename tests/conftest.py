"""The four lessons as modules, tiny models that look like the hub's, and the exercises: their
processes, options, and the board at the end."""

import os
import re
import textwrap
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test needs the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: for tiny tensors threads only cost
ROOT = Path(__file__).resolve().parent.parent

import pytest  # noqa: E402


def load_lesson(number):
    """The lesson as a module, a new one at every call: a test may change its own."""
    from checks.core import load  # imports torch, for which pytest --help should not wait

    return load(ROOT, next(ROOT.glob(f"lesson{number}_*.py")).stem)


@pytest.fixture(scope="session")
def lesson1():
    return load_lesson(1)


@pytest.fixture(scope="session")
def lesson2():
    return load_lesson(2)


@pytest.fixture(scope="session")
def lesson3():
    return load_lesson(3)


@pytest.fixture(scope="session")
def lesson4():
    return load_lesson(4)


def save_tiny_model(folder, kind, **special_tokens):
    """A random model and its tokenizer of 300 entries, with the traps of the hub's. "gpt2": no pad
    token, the begin token is the end token, dropout. "qwen3": a list of end tokens, the pad token
    is one of them, weights in bfloat16. Both: a generation_config with filters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers import Qwen3Config, Qwen3ForCausalLM

    end, second_end = "<|endoftext|>", "<|im_end|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["### Instruction:\nWrite a review of the film.\n\n### Response:\n"
                             "The story was lovely, and the music felt dull."] * 3,
                            trainers.BpeTrainer(vocab_size=300, show_progress=False,
                                                special_tokens=[end, second_end],
                                                initial_alphabet=bpe.pre_tokenizer.alphabet()))
    torch.manual_seed(0)
    filters = dict(do_sample=True, top_p=0.5, top_k=20, temperature=0.6, repetition_penalty=1.3)
    if kind == "gpt2":
        special_tokens = special_tokens or {"bos_token": end, "eos_token": end}
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
            initializer_range=0.3))
        model.generation_config.update(eos_token_id=0, **filters)
    else:
        special_tokens = special_tokens or {"eos_token": end, "pad_token": end}
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, eos_token_id=0,
            max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True))
        model.to(torch.bfloat16)
        model.generation_config.update(eos_token_id=[1, 0], pad_token_id=0, **filters)
    PreTrainedTokenizerFast(tokenizer_object=bpe, **special_tokens).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session", params=["gpt2", "qwen3"])
def hub_model(request, tmp_path_factory):
    """The folder of a tiny GPT-2, then of a tiny Qwen3."""
    return save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("qwen3"), "qwen3")


# ---- The exercises ------------------------------------------------------------------------------


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--hint", type=int, choices=[1, 2, 3], default=1,
                    help="what a failed exercise says: 1 a question, 2 the formula, 3 the place")
    group.addoption("--exercises", default=str(ROOT / "exercises"),
                    help="the folder with ex1_sft.py and so on (default: exercises/)")


def start_worker(folder):
    from checks.client import Worker

    worker = Worker(folder)
    worker.start()
    return worker


@pytest.fixture(scope="session")
def exercises_worker(request):
    worker = start_worker(request.config.getoption("exercises"))
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def answers_worker():
    worker = start_worker(ROOT / "answers")
    yield worker
    worker.stop()


def pytest_report_teststatus(report):
    """An exercise that is not started is "todo", not skipped."""
    if report.skipped and ("exercise", "todo") in report.user_properties:
        return "todo", "t", "TODO"


def pytest_terminal_summary(terminalreporter):
    """The board: a line a file, a mark a function, and what to do next."""
    found = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            status = dict(getattr(report, "user_properties", ())).get("exercise")
            if status and report.when == "call":
                file, name = report.nodeid.split("[")[1].rstrip("]").split(".")
                found.setdefault(file, {})[name] = status
    if not found:
        return
    from checks import BLANKS, RUNS

    terminalreporter.section("exercises: + done, x wrong, . todo")
    statuses = []
    for run in filter(lambda run: run.file in found, RUNS):
        names = [blank.name for blank in BLANKS if blank.file == run.file] + [run.name]
        results = found[run.file]
        here = [(run.file, name, results[name]) for name in names if name in results]
        marks = {"passed": "+", "todo": "."}
        text = "  ".join(f"{marks.get(status, 'x')}_{name}" for _, name, status in here)
        lines = textwrap.wrap(text, 86)  # the mark stays with its name
        for start, line in zip([run.file] + [""] * len(lines), lines):
            line = re.sub(r"(?<!\S)(.)_", r"\1 ", line)
            terminalreporter.write_line(f"{start:<11} {line}")
        statuses += here
    done = sum(status == "passed" for *_, status in statuses)
    terminalreporter.write_line(f"{done} of {len(statuses)} done.")
    wrong = [(file, name) for file, name, status in statuses if status not in ("passed", "todo")]
    todo = [(file, name) for file, name, status in statuses
            if status == "todo" and name != "training_run"]
    for verb, places in ("mend", wrong), ("fill in", todo):
        if places:
            file, name = places[0]
            terminalreporter.write_line(
                f"Next: {verb} {name} in exercises/{file}.py, then pytest -k {name}")
            return
    lesson = next(ROOT.glob(f"lesson{statuses[0][0][2]}_*.py")).name
    terminalreporter.write_line(f"Next: train with them: python {lesson} --exercise")
