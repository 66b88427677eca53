"""The four lessons as modules and tiny models that look like the hub's. What belongs to the
exercises is in board.py."""

import pytest
from board import *  # noqa: F403
from board import ROOT  # sets the environment, before anything imports torch


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


def save_tiny_model(folder, kind, width=32, **special_tokens):
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
            vocab_size=300, n_positions=128, n_embd=width, n_layer=2, n_head=2, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
            initializer_range=0.3))
        model.generation_config.update(eos_token_id=0, **filters)
    else:
        special_tokens = special_tokens or {"eos_token": end, "pad_token": end}
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=320, hidden_size=width, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=width // 2, eos_token_id=0,
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
