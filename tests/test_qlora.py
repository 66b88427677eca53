"""Frozen weights in 4 bits under an adapter (--load_in_4bit), on random models: what is in 4 bits,
what is not, and that nothing but the rounding of the weights tells it from an adapter on the whole
numbers. The lessons themselves run in test_lessons.py. Needs peft and bitsandbytes."""

import pytest
import torch
from conftest import save_tiny_model
from test_lessons import LESSONS, REPO, assert_one_line, finish, in_child, quick_processes, start
from test_models import ANSWERS, PROMPTS, close, load, load_reward, merged_scores, policy_batch
from test_models import save_reward, save_run, shake

pytestmark = pytest.mark.qlora
USED = in_child, quick_processes  # a fixture, and what a forked process looks up here

# The 16 values of NF4, to four places (Dettmers et al. 2023, appendix E).
NF4 = torch.tensor([-1., -.6962, -.5251, -.3949, -.2844, -.1848, -.0911, 0.,
                    .0796, .1609, .2461, .3379, .4407, .5626, .7230, 1.])


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def wide_model(request, tmp_path_factory):
    """Of 64 columns: bitsandbytes misreads shorter rows on a CPU (a block is 64 weights)."""
    return save_tiny_model(tmp_path_factory.mktemp(request.param), request.param, width=64)


@pytest.fixture(scope="module")
def sft(lesson1, wide_model, tmp_path_factory):
    model, tokenizer = load(lesson1, wide_model)
    return save_run(lesson1, model, tokenizer, tmp_path_factory.mktemp("runs"))


def in_4_bits(model):
    """{name without the adapter's part: layer}"""
    from bitsandbytes.nn import Linear4bit

    return {name.removesuffix(".base_layer"): layer for name, layer in model.named_modules()
            if isinstance(layer, Linear4bit)}


def numbers(layer):
    """The weights that the 4 bits stand for, (out, in)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def rounded(weight):
    """Every 64 weights are divided by the largest, and each takes the nearest of NF4's values."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().max(dim=1, keepdim=True).values
    nearest = (blocks / largest).unsqueeze(-1).sub(NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * largest).view_as(weight)


def with_the_same_numbers(lesson, folder, model):
    """A model with an adapter as `model`, with whole numbers for what `model` has in 4 bits."""
    twin = load(lesson, folder, lora_rank=2)[0]
    own = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            own[name].data.copy_(weight)
    for name, layer in in_4_bits(model).items():
        weight = own[f"{name}.base_layer.weight"]
        weight.data.copy_(numbers(layer).T if twin.config.model_type == "gpt2" else numbers(layer))
    return twin


@torch.no_grad()
def test_the_matrices_of_the_layers_are_in_nf4_and_nothing_else_is(lesson1, wide_model):
    model = load(lesson1, wide_model, lora_rank=2, load_in_4bit=True)[0]
    plain = load(lesson1, wide_model)[0]
    is_gpt2, plain = plain.config.model_type == "gpt2", dict(plain.named_modules())
    layers = {name.removeprefix("base_model.model."): x for name, x in in_4_bits(model).items()}
    assert layers.keys() == {name for name, layer in plain.items() if name != "lm_head"
                             and type(layer).__name__ in ("Linear", "Conv1D")}
    for name, layer in layers.items():
        weight = plain[name].weight.T if is_gpt2 else plain[name].weight
        # A weight halfway between two values may go to either; the largest ones are in 8 bits.
        assert (numbers(layer) - rounded(weight)).abs().median() < 0.01 * weight.std()
        assert (numbers(layer) - rounded(weight)).abs().mean() < 0.02 * weight.std()
        assert 0.05 < (numbers(layer) - weight).abs().mean() / weight.std() < 0.1
    rest = {weight.dtype for name, weight in model.named_parameters() if "base_layer" not in name}
    assert rest == {torch.float32}


@pytest.mark.parametrize("number", [1, 3, 4])
def test_4_bits_train_as_whole_numbers_do(request, sft, number):
    """Logits and gradients, also after a forward pass without a gradient: on some CPUs that one
    takes another way, from which there is no way back to a gradient."""
    lesson = request.getfixturevalue(f"lesson{number}")
    model, tokenizer = load(lesson, sft, lora_rank=2, load_in_4bit=True)
    shake(model, 0.03)
    twin, (ids, mask) = with_the_same_numbers(lesson, sft, model), policy_batch(tokenizer)
    with torch.no_grad():
        close(model(ids, attention_mask=mask).logits, twin(ids, attention_mask=mask).logits, 1e-4)
    gradients = []
    for lm in model, twin:
        lm.train()
        lm(ids, attention_mask=mask).logits.log_softmax(-1)[..., 7].sum().backward()
        gradients.append({name: weight.grad for name, weight in lm.named_parameters()
                          if weight.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all("lora_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 1e-3
        close(gradient, gradients[1][name], 1e-3)


@torch.no_grad()
def test_what_is_saved_is_the_adapter_on_the_weights_as_they_were(lesson3, sft, tmp_path):
    model, tokenizer = load(lesson3, sft, lora_rank=2, load_in_4bit=True)
    shake(model, 0.03)
    whole = load(lesson3, sft, lora_rank=2)[0]
    shake(whole, 0.03)  # the same adapter
    ids, mask = policy_batch(tokenizer)
    expected = lesson3.response_logits(whole, ids, mask, 7)
    folder = save_run(lesson3, model, tokenizer, tmp_path, model=sft, lora_rank=2,
                      load_in_4bit=True)
    again, _ = load(lesson3, folder)
    close(lesson3.response_logits(again, ids, mask, 7), expected, 1e-4)
    assert not hasattr(again.config, "quantization_config")
    assert again.generation_config_to_save.top_p == 0.5  # the model's own, as before


@torch.no_grad()
def test_policy_and_reward_model_share_4_bits(lesson2, lesson3, sft, tmp_path):
    four = dict(lora_rank=2, load_in_4bit=True)
    judge, tokenizer = load_reward(lesson2, sft, **four)
    shake(judge, 0.03)
    raw = lesson2.score_answers(
        judge, tokenizer, [p + a for p, a in zip(PROMPTS + PROMPTS[:1], ANSWERS)])
    judge.model.config.score_mean, judge.model.config.score_std = 0.3, 2.0
    folder = save_run(lesson2, judge.model, tokenizer, tmp_path, model=sft, **four)
    model, tokenizer = load(lesson3, sft, **four)
    score = lesson3.load_score(folder, lesson3.Config(**four), tokenizer, model)
    assert list(model.peft_config) == ["default", "reward"]
    close(score(*policy_batch(tokenizer), None), (raw - 0.3) / 2, 1e-4)


@torch.no_grad()
def test_other_models_keep_their_numbers(lesson2, lesson3, sft, tmp_path):
    """A reward model that was trained as a whole, and the model of --against."""
    judge, tokenizer = load_reward(lesson2, sft)
    shake(judge)
    folder = save_reward(lesson2, judge, tokenizer, tmp_path)
    model, tokenizer = load(lesson3, sft, lora_rank=2, load_in_4bit=True)
    config = lesson3.Config(device="cpu", lora_rank=2, load_in_4bit=True, against=sft)
    score = lesson3.load_score(folder, config, tokenizer, model)
    close(score(*policy_batch(tokenizer), None), merged_scores(folder), 1e-4)
    assert in_4_bits(model) and not in_4_bits(lesson3.load_rival(config, tokenizer))


def refused(folder, *arguments, hidden=""):
    """What lesson 4 says, with a package hidden as if it were not installed."""
    (folder / "hidden.py").write_text(
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({hidden.split()!r}))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n")
    done = finish(start(folder, [folder / "hidden.py", REPO / LESSONS[4], "--device=cpu",
                                 *arguments]))
    assert not (folder / "runs").exists()
    done.err = "\n".join(line for line in done.err.splitlines() if "gemm_4bit" not in line)
    return done


def test_where_4_bits_cannot_be_one_line_says_why(lesson1, qwen3, tmp_path, quick_processes):
    assert_one_line(refused(tmp_path, f"--model={qwen3}", "--load_in_4bit"), "--lora_rank")
    done = refused(tmp_path, f"--model={qwen3}", "--load_in_4bit", "--lora_rank=2",
                   hidden="bitsandbytes")
    assert_one_line(done, qwen3, "bitsandbytes", "pip install")
    model, tokenizer = load(lesson1, qwen3, lora_rank=2)
    adapter = save_run(lesson1, model, tokenizer, tmp_path / "elsewhere") + "/adapter"
    done = refused(tmp_path, f"--model={adapter}", "--load_in_4bit", "--lora_rank=2")
    assert_one_line(done, adapter, "merge")
