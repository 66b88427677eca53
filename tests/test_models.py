"""Loading, sampling, scoring and learning with tiny models that look like the hub's: each test is
a mistake that has been made in a widely read teaching codebase, or a trap of a library."""

import copy
import json
import logging
import random
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.modeling_utils
from accelerate import Accelerator
from conftest import save_tiny_model
from safetensors import safe_open
from tokenizers.processors import TemplateProcessing
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertConfig, BertForMaskedLM, GenerationConfig, MixtralConfig
from transformers import MixtralForCausalLM, OPTConfig, OPTForCausalLM

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54, 55, 56, 57, 58], [60, 61, 62, 63, 64]]
needs_peft = pytest.mark.peft
LORA = pytest.param(2, marks=needs_peft)  # a rank for --lora_rank


@pytest.fixture(autouse=True)
def not_begun(lesson1, lesson2, lesson3, lesson4):
    """A process has one run; here they follow one another, and none has begun yet."""
    for lesson in lesson1, lesson2, lesson3, lesson4:
        lesson.Run.begun = False


@pytest.fixture
def accelerator():
    """As start() makes it, for one test: it remembers what it has prepared."""
    return Accelerator(cpu=True, step_scheduler_with_optimizer=False)


@pytest.fixture(params=[3, 4])
def ppo_or_grpo(request, lesson3, lesson4):
    return {3: lesson3, 4: lesson4}[request.param]


@pytest.fixture(scope="session")
def opt(gpt2, tmp_path_factory):
    """The folder of a tiny OPT, like OPT-350m: the layers are 32 wide, and the head reads 16."""
    folder = tmp_path_factory.mktemp("opt")
    torch.manual_seed(0)
    OPTForCausalLM(OPTConfig(
        vocab_size=320, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, do_layer_norm_before=False,
        bos_token_id=0, eos_token_id=0, dropout=0.1, attention_dropout=0.1, init_std=0.3,
    )).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(folder)
    return str(folder)


def close(actual, expected, tolerance=1e-5):
    actual, expected = (torch.as_tensor(x, dtype=torch.double).detach() for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def record(monkeypatch, owner, name):
    """owner.name works as before, and its calls are kept: [(arguments, result)]."""
    calls, original = [], getattr(owner, name)

    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def prefer(model, token, bonus):
    """The model's logit of this token is higher by `bonus`, wherever it is asked."""
    def add(module, inputs, logits):
        logits[..., token] += bonus
        return logits
    model.lm_head.register_forward_hook(add)


def shake(model, size=0.02):
    """Another model, not far away. Of a model with an adapter only the adapter moves."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)
    return model


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def change_json(file, **settings):
    file = Path(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def make_config(lesson, **settings):
    sizes = dict(num_samples=12, batch_size=6, micro_batch_size=4, max_new_tokens=6)
    if hasattr(lesson.Config, "group_size"):
        sizes["group_size"] = 4
    return lesson.Config(**{"device": "cpu", **sizes, **settings})


def load(lesson, folder, **settings):
    """(model, tokenizer), after the seed that start() sets: new rows and adapters are random."""
    torch.manual_seed(0)
    return lesson.load_causal_lm(lesson.Config(model=str(folder), device="cpu", **settings))


def load_reward(lesson2, folder, **settings):
    """(RewardModel, tokenizer)"""
    torch.manual_seed(0)
    return lesson2.make_reward_model(
        lesson2.Config(model=str(folder), device="cpu", **settings))


def save_run(lesson, lm, tokenizer, folder, **settings):
    """-> the folder of a run that ended with this model."""
    config = lesson.Config(runs_dir=str(folder), device="cpu", **settings)
    run = lesson.Run(config, Accelerator(cpu=True))
    run.save_model(lm, tokenizer)
    return str(run.folder)


@pytest.fixture
def keep_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def run_main(monkeypatch, tmp_path, keep_ctrl_c):
    """run_main(lesson, model=..., steps=...): the lesson's main() in this process, with these flags
    -> the stats of its steps."""
    silenced = logging.root.manager.disable

    def run(lesson, **flags):
        flags = dict(runs_dir=tmp_path / "runs", device="cpu", report_to="none") | flags
        monkeypatch.setattr(
            "sys.argv", [lesson.__file__] + [f"--{name}={flag}" for name, flag in flags.items()])
        steps = record(monkeypatch, lesson.Run, "end_step")
        with warnings.catch_warnings():
            lesson.main()
        return [args[2] for args, _ in steps]

    yield run
    logging.disable(silenced)


# ---- Loading ------------------------------------------------------------------------------------


def test_loaded_model_has_a_pad_token_that_is_no_end_token(lesson3, hub_model):
    model, tokenizer = load(lesson3, hub_model)
    ends = model.generation_config.eos_token_id
    assert isinstance(ends, list) and 0 in ends
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends
    assert tokenizer.pad_token_id < model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_embeddings_grow_to_a_multiple_of_64_when_they_must(lesson3, gpt2, qwen3):
    grown = load(lesson3, gpt2)[0]  # 300 entries and a pad token
    assert grown.get_input_embeddings().weight.shape[0] == 320
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    assert load(lesson3, qwen3)[0].get_input_embeddings().num_embeddings == 320


def test_bfloat16_checkpoint_loads_as_float32(lesson2, lesson3, qwen3):
    with safe_open(Path(qwen3, "model.safetensors"), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    for model in load(lesson3, qwen3)[0], load_reward(lesson2, qwen3)[0]:
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_all_end_tokens_of_the_model_are_kept(lesson3, qwen3):
    assert load(lesson3, qwen3)[0].generation_config.eos_token_id == [1, 0]


def test_saved_model_loads_as_it_was(lesson3, hub_model, tmp_path):
    model, tokenizer = load(lesson3, hub_model)
    again, same_tokenizer = load(lesson3, save_run(lesson3, model, tokenizer, tmp_path))
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert same_tokenizer.pad_token_id == tokenizer.pad_token_id
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    for old, new in zip(model.parameters(), again.parameters()):
        assert torch.equal(old, new)


def test_saved_generation_config_is_the_models_own(lesson1, hub_model, tmp_path):
    """Our sampling is for training. Who loads the result finds the filters that its makers chose,
    after two lessons as after one."""
    folder = hub_model
    for name in "sft", "again":
        model, tokenizer = load(lesson1, folder)
        folder = save_run(lesson1, model, tokenizer, tmp_path, run_name=name)
        saved = GenerationConfig.from_pretrained(Path(folder, "model"))
        assert (saved.top_p, saved.top_k, saved.temperature, saved.repetition_penalty) == (
            0.5, 20, 0.6, 1.3)
        assert saved.eos_token_id == model.generation_config.eos_token_id
        assert saved.pad_token_id == tokenizer.pad_token_id


def with_dropout(folder, source):
    """A copy of this model whose config asks for dropout wherever the model can have it."""
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text())
    rates = {name: 0.1 for name in settings if name.endswith(("dropout", "pdrop"))}
    assert rates
    change_json(folder / "config.json", **rates)
    return str(folder)


@pytest.mark.parametrize("lora_rank", [0, LORA])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "opt"])
def test_there_is_no_dropout_even_in_training_mode(
        lesson1, lesson2, tmp_path, request, name, lora_rank):
    """Or the policy would not agree with itself. Training mode is there for the checkpoints of
    activations. The lessons' two kinds of models; lessons 3 and 4 load as lesson 1 does."""
    folder = with_dropout(tmp_path / "dropout", request.getfixturevalue(name))
    inputs = {"input_ids": torch.tensor(PROMPTS[1:2] * 2)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    wet = AutoModelForCausalLM.from_pretrained(folder).train()
    assert not torch.equal(*wet(**inputs).logits)
    lm, _ = load(lesson1, folder, lora_rank=lora_rank)
    reward_model, _ = load_reward(lesson2, folder, lora_rank=lora_rank)
    for model, owner in (lm, lm), (reward_model, reward_model.model):
        assert {module.p for module in model.modules()
                if isinstance(module, torch.nn.Dropout)} <= {0.0}
        settings = owner.config.to_dict()
        rates = [settings[key] for key in settings if key.endswith(("dropout", "pdrop"))]
        assert rates and not any(rates)
        results = [model.train(mode)(**inputs) for mode in (False, True)]
        assert torch.equal(*(getattr(result, "logits", result) for result in results))


def test_a_model_that_fills_gaps_is_refused(lesson1, lesson2, gpt2, tmp_path, capsys):
    """transformers loads BERT as a causal model, with a warning where nobody looks."""
    BertForMaskedLM(BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(tmp_path)
    for refused, lesson in (load, lesson1), (load_reward, lesson2):
        with pytest.raises(SystemExit) as stopped:
            refused(lesson, tmp_path)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and "cannot write" in message and str(tmp_path) in message


END, OTHER_END = "<|endoftext|>", "<|im_end|>"  # tokens 0 and 1
SAYS = f"an answer ends with {OTHER_END!r}, as the tokenizer says"
ENDS = {  # the tokenizer's tokens, generation's ends -> the end of a label, the ends, what is said
    "the same": ({"eos_token": END}, 0, 0, [0], ""),
    "another": ({"eos_token": OTHER_END}, 0, 1, [1, 0], SAYS),
    "one of two": ({"eos_token": END}, [1, 0], 0, [1, 0], ""),
    "the model's": ({"unk_token": END}, 1, 1, [1], ""),
    "the model's first": ({"unk_token": END}, [1, 0], 1, [1, 0], ""),
    "the tokenizer's": ({"eos_token": OTHER_END}, None, 1, [1], SAYS),
    "none": ({"unk_token": END}, None, None, None, "")}


@pytest.mark.parametrize("case", ENDS)
def test_answers_end_with_a_token_that_generation_stops_at(
        lesson1, lesson2, tmp_path, capsys, case):
    """Else an answer is learned whose end nobody sees."""
    tokens, stops, end, ends, words = ENDS[case]
    folder = save_tiny_model(tmp_path, "gpt2", **tokens)
    for file in "config.json", "generation_config.json":
        change_json(tmp_path / file, eos_token_id=stops)
    if ends is None:
        for refused, lesson in (load, lesson1), (load_reward, lesson2):
            with pytest.raises(SystemExit) as stopped:
                refused(lesson, folder)
            assert stopped.value.code == 2 and "no end token" in capsys.readouterr().err
        return
    model, tokenizer = load(lesson1, folder)
    printed = capsys.readouterr().out
    assert model.generation_config.eos_token_id == ends
    assert printed.count("\n") == bool(words) and words in printed
    config = lesson1.Config(device="cpu", max_prompt_length=80)
    rows = lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)
    assert {row["labels"][-1] for row in rows} == {end}
    prefer(model, end, 1000.)
    assert lesson1.generate(model, tokenizer, PROMPTS, 5)[2].tolist() == [[end]] * 3
    assert load_reward(lesson2, folder)[1].eos_token_id == end  # of the answers that it scores


@pytest.fixture
def llama(qwen3, tmp_path):
    """The folder of a model whose tokenizer puts <s> before every text, as Llama's does."""
    shutil.copytree(qwen3, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def test_a_prompt_does_not_end_with_an_end_token(lesson3, qwen3, tmp_path):
    """Some tokenizers put one after every text."""
    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("tea")[-1] == tokenizer.eos_token_id  # or the test would show nothing
    for style, text in ("alpaca", lesson3.format_prompt("Say tea.")), ("plain", "Say tea."):
        config = lesson3.Config(prompt_format=style)
        ids, = lesson3.encode_prompts([{"instruction": "Say tea."}], tokenizer, config)
        assert tokenizer.decode(ids) == text


def test_a_tokenizer_that_gives_no_mask_of_its_own(lesson1, lesson2, qwen3, tmp_path):
    """tokenizer_config.json may say that the model reads input_ids and nothing else."""
    shutil.copytree(qwen3, tmp_path / "model")
    change_json(tmp_path / "model" / "tokenizer_config.json", model_input_names=["input_ids"])
    assert "attention_mask" not in AutoTokenizer.from_pretrained(tmp_path / "model")("tea")
    model, tokenizer = load(lesson1, tmp_path / "model")
    ids, mask, _ = lesson1.generate(model, tokenizer, PROMPTS, 2)
    assert mask.sum(dim=1).tolist() == [len(prompt) for prompt in PROMPTS]
    scores = lesson2.score_answers(*load_reward(lesson2, tmp_path / "model"), ANSWERS)
    assert scores.isfinite().all()


@pytest.fixture(scope="module")
def mixtral(qwen3, tmp_path_factory):
    """The folder of a mixture of experts, whose router is noisy in training, and reports."""
    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=128, eos_token_id=0, initializer_range=0.3,
        router_jitter_noise=0.2, output_router_logits=True)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(qwen3).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_policy_of_experts_agrees_with_itself(ppo_or_grpo, mixtral, accelerator, checkpoints):
    """On a sample's first pass the ratio is 1, though the prompts have several lengths."""
    lesson = ppo_or_grpo
    config = make_config(lesson, ppo_epochs=1, batch_size=12, gradient_checkpointing=checkpoints)
    model, tokenizer = load(lesson, mixtral, gradient_checkpointing=checkpoints)
    policy, rollout = make_rollout(lesson, model, tokenizer, config)
    stats = update(lesson, policy, rollout, config, accelerator)
    assert stats["kl/approx"] < 1e-9 and stats["clip/fraction"] == 0 < stats["grad_norm"]


def test_nothing_is_random_while_learning(ppo_or_grpo, hub_model, accelerator):
    """Whatever a model does in training mode, and whatever its settings call it."""
    lesson = ppo_or_grpo
    config = make_config(lesson, ppo_epochs=1, batch_size=12)
    model, tokenizer = load(lesson, hub_model)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (
        torch.nn.functional.dropout(inputs[0], 0.5, module.training),))
    policy, rollout = make_rollout(lesson, model, tokenizer, config)
    stats = update(lesson, policy, rollout, config, accelerator)
    assert stats["kl/approx"] < 1e-9 and stats["clip/fraction"] == 0 < stats["grad_norm"]


@pytest.fixture
def tea(lesson1, llama):
    """(tokenizer, prompt, answer with its end token): <s> stands before the prompt, once."""
    tokenizer = load(lesson1, llama)[1]
    prompt, answer = (tokenizer.encode(text, add_special_tokens=False)
                      for text in (lesson1.format_prompt("Say tea."), "tea"))
    begin = [tokenizer.bos_token_id]
    assert tokenizer.encode("tea") == begin + answer  # or the tests would show nothing
    return tokenizer, begin + prompt, answer + [tokenizer.eos_token_id]


def test_a_begin_token_stands_before_the_prompt_in_examples_and_pairs(lesson1, lesson2, tea):
    tokenizer, prompt, answer = tea
    example = [{"instruction": "Say tea.", "output": "tea"}]
    [row] = lesson1.tokenize_examples(example, tokenizer, lesson1.Config(max_prompt_length=80))
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [-100] * len(prompt) + answer
    pair = [{"instruction": "Say tea.", "chosen": "tea", "rejected": ""}]
    [row] = lesson2.tokenize_pairs(pair, tokenizer, lesson2.Config(max_prompt_length=80))
    assert (row["chosen_ids"], row["rejected_ids"]) == (prompt + answer, prompt + answer[-1:])


def test_a_begin_token_stands_before_prompts_to_answer(lesson3, lesson4, tea, tmp_path):
    tokenizer, prompt, _ = tea
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": "Say tea."}] * 2))
    settings = dict(max_prompt_length=80, data=str(data))
    for part in (*lesson3.load_prompts(lesson3.Config(**settings), tokenizer),
                 *lesson4.load_grpo_prompts(lesson4.Config(**settings, reward="format"),
                                              tokenizer)):
        assert [row["prompt_ids"] for row in part] == [prompt]


def test_a_begin_token_stands_before_what_is_typed(
        lesson1, lesson2, llama, tea, tmp_path, monkeypatch):
    _, prompt, answer = tea
    chats = record(monkeypatch, lesson1, "generate")
    lesson1.chat(lesson1.Config(model=llama, prompt="Say tea.", device="cpu", max_new_tokens=1))
    assert chats[0][0][2] == [prompt]
    save_reward(lesson2, *load_reward(lesson2, llama), tmp_path)
    scores = record(monkeypatch, lesson2, "score_answers")
    lesson2.score_one(lesson2.Config(
        runs_dir=str(tmp_path), prompt="Say tea.", score="tea", device="cpu"))
    assert scores[0][0][2] == [prompt + answer]


# ---- Sampling -----------------------------------------------------------------------------------


def record_scores(model, monkeypatch):
    """What model.generate says about its sampling, call by call."""
    outputs, original = [], model.generate

    def generate(*args, **kwargs):
        outputs.append(original(*args, **kwargs, output_logits=True, output_scores=True,
                                return_dict_in_generate=True))
        return outputs[-1].sequences

    monkeypatch.setattr(model, "generate", generate)
    return outputs


def test_the_hub_models_own_sampling_has_filters(hub_model):
    """Otherwise the next test would show nothing."""
    model = AutoModelForCausalLM.from_pretrained(hub_model).eval()
    out = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=3, pad_token_id=0,
                         output_scores=True, return_dict_in_generate=True)
    assert all(torch.isinf(scores).any() for scores in out.scores)


def test_sampler_draws_from_the_plain_logits(lesson1, hub_model, monkeypatch):
    model, tokenizer = load(lesson1, hub_model)
    outputs = record_scores(model, monkeypatch)
    lesson1.generate(model, tokenizer, PROMPTS, 5, temperature=0.7)
    lesson1.generate(model, tokenizer, PROMPTS, 5)
    for output, temperature in zip(outputs, (0.7, 1.0)):
        assert len(output.scores) >= 2
        for scores, logits in zip(output.scores, output.logits):
            assert scores.shape == (3, 320)
            close(scores, logits / temperature)


def test_temperature_zero_takes_the_likeliest_token(lesson1, hub_model, monkeypatch):
    model, tokenizer = load(lesson1, hub_model)
    outputs = record_scores(model, monkeypatch)
    ids, mask, response = lesson1.generate(model, tokenizer, PROMPTS[:1], 5, temperature=0)
    likeliest = [logits.argmax(dim=-1) for logits in outputs[0].logits]
    assert response.tolist() == torch.stack(likeliest, dim=1).tolist()


def test_prompts_are_padded_on_the_left(lesson1, hub_model):
    model, tokenizer = load(lesson1, hub_model)
    ids, mask, response = lesson1.generate(model, tokenizer, PROMPTS, 2)
    assert ids.shape == mask.shape == (3, 9) and len(response) == 3
    for row, row_mask, prompt in zip(ids.tolist(), mask.tolist(), PROMPTS):
        padding = 9 - len(prompt)
        assert row == [tokenizer.pad_token_id] * padding + prompt
        assert row_mask == [0] * padding + [1] * len(prompt)


def test_responses_that_are_sampled_in_pieces_are_padded_alike(lesson3, hub_model, monkeypatch):
    """Greedily the same as all at once. The first piece ends early, the second does not."""
    model, tokenizer = load(lesson3, hub_model)
    end = model.generation_config.eos_token_id[0]
    shapes, generate = [], model.generate

    def shorter(ids, attention_mask, **options):
        out = generate(ids, attention_mask=attention_mask, **options)
        shapes.append(tuple(ids.shape))
        if len(shapes) == 1:
            out[:, ids.shape[1] + 1] = end
            return out[:, :ids.shape[1] + 2]
        return out

    expected = lesson3.generate(model, tokenizer, PROMPTS, 5, temperature=0)[2]
    monkeypatch.setattr(model, "generate", shorter)
    ids, mask, response = lesson3.generate(model, tokenizer, PROMPTS, 5, temperature=0, size=2)
    assert shapes == [(2, 9), (1, 9)] and ids.shape == mask.shape == (3, 9)
    pads = [tokenizer.pad_token_id] * (expected.shape[1] - 2)
    assert response[2].tolist() == expected[2].tolist()
    for row, whole in zip(response[:2].tolist(), expected.tolist()):
        assert row == [whole[0], end, *pads]


@pytest.mark.parametrize("end", [0, 1])
def test_any_of_the_end_tokens_stops_a_response(lesson3, qwen3, end):
    model, tokenizer = load(lesson3, qwen3)
    prefer(model, end, 1000.)
    response = lesson3.generate(model, tokenizer, PROMPTS, 5)[2]
    assert response.tolist() == [[end]] * 3


def test_nothing_but_padding_follows_an_end_token(lesson3, qwen3):
    model, tokenizer = load(lesson3, qwen3)
    for end in 0, 1:
        prefer(model, end, 6.)
    torch.manual_seed(0)
    response = lesson3.generate(model, tokenizer, PROMPTS * 8, 8)[2]
    mask = lesson3.response_mask(response, model.generation_config.eos_token_id)
    firsts = set()
    for row, length in zip(response.tolist(), mask.sum(dim=1).int().tolist()):
        assert not {0, 1} & set(row[:length - 1])
        assert set(row[length:]) <= {tokenizer.pad_token_id}
        firsts.add(row[length - 1] if length < 8 else None)
    assert {0, 1} <= firsts


def test_gpt2s_activation_is_the_same_function_in_one_kernel(lesson3, gpt2):
    model, tokenizer = load(lesson3, gpt2)
    original = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32).eval()
    original.resize_token_embeddings(model.get_input_embeddings().num_embeddings)
    assert original.config.activation_function == "gelu_new"
    assert model.config.activation_function == "gelu_pytorch_tanh"
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        close(model(ids).logits[..., :300], original(ids).logits[..., :300], 1e-4)


# ---- Log-probabilities: the policy that sampled is the policy that is scored --------------------


def rows_of(columns):
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def constant_score(ids, mask, texts, rows=None):
    return torch.zeros(len(ids))


def make_rollout(lesson, model, tokenizer, config, reference=None, score=constant_score):
    """(policy, rollout) of lesson 3 or 4 for PROMPTS: 12 responses, and random advantages."""
    accelerator = Accelerator(cpu=True)
    reference = reference and lesson.make_reference(reference, config)
    torch.manual_seed(0)
    if hasattr(lesson, "sample_groups"):
        data = rows_of({"instruction": ["a", "b", "c"], "prompt_ids": PROMPTS})
        rollout = lesson.sample_groups(
            model, score, tokenizer, data, config, accelerator)
        rollout.advantages = torch.randn(rollout.rewards.shape)
        current = lambda *inputs: lesson.response_logits(model, *inputs)
        rollout.logprobs = lesson.all_logprobs(current, rollout, config, accelerator)
        if reference:
            rollout.ref_logprobs = lesson.all_logprobs(reference, rollout, config, accelerator)
        return model, rollout
    policy = lesson.CausalLMWithValueHead(model)
    rollout = lesson.sample_responses(
        policy, reference or lesson.make_reference(model, config), score, tokenizer,
        rows_of({"prompt_ids": PROMPTS * 4}), config, accelerator)
    rollout.advantages = torch.randn(rollout.mask.shape) * rollout.mask
    rollout.returns = torch.randn(rollout.mask.shape) * rollout.mask
    return policy, rollout


def twin(lesson, policy):
    """Its copy. (The hook of a value head's owner would go on to serve the first owner.)"""
    if not hasattr(policy, "value_head"):
        return copy.deepcopy(policy)
    new = lesson.CausalLMWithValueHead(copy.deepcopy(policy.lm))
    new.value_head.load_state_dict(policy.value_head.state_dict())
    return new


def test_rollout_logprobs_are_the_samplers(ppo_or_grpo, hub_model, monkeypatch):
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, hub_model)
    prefer(model, 0, 4.)  # so that some responses are shorter
    outputs = record_scores(model, monkeypatch)
    config = make_config(lesson, temperature=0.7)
    rollout = make_rollout(lesson, model, tokenizer, config)[1]
    assert 1 <= rollout.mask.sum(dim=1).min() < rollout.mask.sum(dim=1).max() == 6
    for t, scores in enumerate(outputs[0].scores):
        sampled = scores.log_softmax(-1).gather(1, rollout.response[:, t:t + 1]).squeeze(1)
        close(rollout.logprobs[:, t], sampled * rollout.mask[:, t], 1e-4)


def update(lesson, policy, rollout, config, accelerator, rate=0.05, **extra):
    optimizer = torch.optim.SGD(policy.parameters(), lr=rate)
    torch.manual_seed(0)
    if hasattr(lesson, "grpo_update"):
        return lesson.grpo_update(policy, optimizer, rollout, config, accelerator)
    kl_coef = extra.get("kl_coef", 0.1)
    return lesson.ppo_update(policy, optimizer, rollout, kl_coef, config, accelerator)


def test_ratio_is_one_on_the_first_minibatch(ppo_or_grpo, hub_model, accelerator, monkeypatch):
    """With dropout in GPT-2's config, prompts padded on the left, a temperature, and micro-batches
    that are not the rollout's. Afterwards the ratio moves."""
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, hub_model)
    prefer(model, 0, 4.)
    config = make_config(lesson, temperature=0.7)
    policy, rollout = make_rollout(lesson, model, tokenizer, config)
    name = "grpo_token_loss" if lesson.__name__ == "lesson4_grpo" else "ppo_policy_loss"
    rollout.advantages = torch.randn(rollout.advantages.shape)
    config.micro_batch_size = 5
    calls = record(monkeypatch, lesson, name)
    update(lesson, policy, rollout, config, accelerator)
    log_ratios = [(args[0] - args[1]).abs().max().item() for args, _ in calls]
    assert len(log_ratios) == config.ppo_epochs * 2 * 2  # minibatches, micro-batches
    assert max(log_ratios[:2]) < 1e-5
    assert min(log_ratios[2:]) > 1e-4
    assert not policy.training


def test_logprobs_do_not_move_with_padding(ppo_or_grpo, hub_model):
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, hub_model)
    response = torch.tensor([[70, 71, 0]])

    def logprobs(prompt, left, right):
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * left + prompt + [70, 71, 0] + [pad] * right])
        mask = torch.tensor([[0] * left + [1] * (len(prompt) + 3) + [0] * right])
        logits = lesson.response_logits(model, ids, mask, 3 + right)
        return lesson.response_logprobs(logits[:, :4], response)

    with torch.no_grad():
        alone = model(torch.tensor([PROMPTS[0] + [70, 71, 0]])).logits[:, 2:]
        expected = alone.log_softmax(-1)[0, range(3), response[0]]
        for left, right in (0, 0), (7, 0), (0, 5), (9, 2):
            close(logprobs(PROMPTS[0], left, right)[0], expected, 1e-4)


def test_what_follows_the_end_token_cannot_reach_the_loss(ppo_or_grpo, gpt2, accelerator):
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, gpt2)
    prefer(model, 0, 4.)
    config = make_config(lesson, batch_size=12, ppo_epochs=1)
    policy, rollout = make_rollout(lesson, model, tokenizer, config)
    stats = []
    for noise in 0, 250:
        noisy, length = copy.deepcopy(rollout), rollout.response.shape[1]
        padding = noisy.mask == 0
        noisy.response[padding] = noisy.ids[:, -length:][padding] = noise
        stats.append(update(lesson, twin(lesson, policy), noisy, config, accelerator))
    assert stats[0] == pytest.approx(stats[1], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_at_the_logits(lesson1, lesson3, lesson4, dtype):
    """A sum over a vocabulary in bfloat16 is off by percents, and a ratio of two by more."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 6, 320, generator=generator)).to(dtype)
    response = torch.randint(320, (2, 5), generator=generator)
    mask = torch.tensor([[1., 1., 1., 1., 1.], [1., 1., 0., 0., 0.]])
    labels = torch.randint(320, (2, 6), generator=generator)
    for function in (lambda x: lesson1.sft_loss(x, labels),
                     lambda x: lesson3.response_logprobs(x, response, 0.7),
                     lambda x: lesson4.response_logprobs(x, response, 0.7),
                     lambda x: lesson3.masked_entropy(x[:, :-1], mask)):
        assert function(logits).dtype == torch.float32
        assert function(logits.double()).dtype == torch.float64
        close(function(logits), function(logits.double()), 1e-5)


def test_gradients_in_double_precision_are_those_of_finite_differences(lesson1, lesson3, lesson4):
    """float() would round what gradcheck moves by a millionth."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, dtype=torch.double, requires_grad=True)
    response, mask = torch.randint(5, (2, 3)), torch.tensor([[1., 1., 1.], [1., 0., 0.]])
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 4, -100, -100]])
    assert torch.autograd.gradcheck(lambda x: lesson1.sft_loss(x, labels), logits)
    for lesson in lesson3, lesson4:
        assert torch.autograd.gradcheck(
            lambda x: lesson.response_logprobs(x, response, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: lesson3.masked_entropy(x[:, :-1], mask), logits)


# ---- Less memory: checkpoints of activations, bfloat16, adapters --------------------------------


@pytest.mark.parametrize("lora_rank", [0, LORA])
def test_gradient_checkpointing_gives_the_same_update(
        ppo_or_grpo, hub_model, accelerator, monkeypatch, lora_rank):
    """With padding on the left, and while learning alone: sampling keeps none."""
    lesson, results = ppo_or_grpo, []
    calls = record(monkeypatch, transformers.modeling_utils, "checkpoint")
    name = "grpo_loss" if lesson.__name__ == "lesson4_grpo" else "ppo_loss"
    losses = record(monkeypatch, lesson, name)
    for gradient_checkpointing in False, True:
        model, tokenizer = load(lesson, hub_model, lora_rank=lora_rank,
                                gradient_checkpointing=gradient_checkpointing)
        prefer(model.get_base_model() if lora_rank else model, 0, 4.)
        shake(model) if lora_rank else None
        config = make_config(lesson, lora_rank=lora_rank, kl_coef=0.1,
                             gradient_checkpointing=gradient_checkpointing)
        policy, rollout = make_rollout(lesson, model, tokenizer, config, reference=model)
        assert not calls
        losses.clear()
        before = weights(policy)
        update(lesson, policy, rollout, config, accelerator)
        results.append((rollout.response, before, weights(policy)))
    assert len(calls) == 2 * len(losses) > 0  # 2 layers
    (response, before, after), (same_response, same_before, same_after) = results
    assert torch.equal(response, same_response) and torch.equal(before, same_before)
    close(after, same_after)
    assert (after - before).abs().max() > 1e-3


def test_gradient_checkpointing_is_used_in_lessons_1_and_2(
        lesson1, gpt2, accelerator, tmp_path, train_rewards, monkeypatch, keep_ctrl_c):
    calls = record(monkeypatch, transformers.modeling_utils, "checkpoint")
    results = []
    for on in False, True:
        run, model = train_sft(lesson1, gpt2, accelerator, runs_dir=str(tmp_path),
                               run_name=f"sft-{on}", gradient_checkpointing=on)
        sft_calls = len(calls)
        _, reward_model, _ = train_rewards(run_name=f"reward-{on}", gradient_checkpointing=on)
        results.append((weights(model), weights(reward_model)))
        assert (sft_calls, len(calls) - sft_calls) == ((3 * 2, 2 * 2) if on else (0, 0))
    for plain, checkpointed in zip(*results):
        assert (plain - checkpointed).abs().mean() < 1e-6


def dtypes(model):
    return {weight.dtype for weight in model.parameters()}


def test_bfloat16_is_for_what_is_not_trained(ppo_or_grpo, hub_model, accelerator):
    """bfloat16 would lose the small steps of a policy."""
    lesson = ppo_or_grpo
    config = make_config(lesson, dtype="bfloat16", kl_coef=0.1)
    model, tokenizer = load(lesson, hub_model, dtype="bfloat16")
    reference = lesson.make_reference(model, config)
    ids = torch.tensor(PROMPTS[:1])
    assert reference(ids, torch.ones_like(ids), 2).dtype == torch.bfloat16
    policy, rollout = make_rollout(lesson, model, tokenizer, config, reference=model)
    before = weights(policy)
    update(lesson, policy, rollout, config, accelerator)
    assert dtypes(policy) == {torch.float32} and rollout.ref_logprobs.dtype == torch.float32
    moved = (rollout.ref_logprobs - rollout.logprobs).abs().max()
    assert 0 < moved < 0.5  # the rounding of the reference
    assert (weights(policy) - before).abs().max() > 1e-3


@needs_peft
def test_bfloat16_base_has_float32_adapters(ppo_or_grpo, hub_model, accelerator):
    lesson = ppo_or_grpo
    config = make_config(lesson, dtype="bfloat16", lora_rank=2, kl_coef=0.1)
    model, tokenizer = load(lesson, hub_model, dtype="bfloat16", lora_rank=2)
    policy, rollout = make_rollout(lesson, model, tokenizer, config, reference=model)
    frozen, trained = (
        {name: weight.detach().clone() for name, weight in policy.named_parameters()
         if weight.requires_grad == chosen} for chosen in (False, True))
    assert {weight.dtype for weight in frozen.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    stats = update(lesson, policy, rollout, config, accelerator)
    assert all(torch.isfinite(torch.tensor(list(stats.values()))))
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, (frozen | trained)[name]) == (name in frozen), name


@pytest.fixture(scope="module")
def sft(lesson1, hub_model, tmp_path_factory):
    """The run of lesson 1 that the other lessons begin with: its tokenizer has the pad token."""
    model, tokenizer = load(lesson1, hub_model)
    return save_run(lesson1, model, tokenizer, tmp_path_factory.mktemp("runs"))


def lora_reward(lesson2, source, folder):
    """A reward model as after training, of rank 3 -> (its run, scores of the answers)."""
    model, tokenizer = load_reward(lesson2, source, lora_rank=3)
    shake(model, 0.03)
    with torch.no_grad():
        raw = lesson2.score_answers(
            model, tokenizer, [p + a for p, a in zip(PROMPTS + PROMPTS[:1], ANSWERS)])
    return save_reward(lesson2, model, tokenizer, folder), (raw - 0.3) / 2


def trained_names(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def memory(*owners):
    """The numbers in all tensors that these modules and functions hold on to, each counted once."""
    sizes, todo = {}, list(owners)
    while todo:
        owner = todo.pop()
        if isinstance(owner, torch.nn.Module):
            todo += owner.parameters()
        elif isinstance(owner, torch.Tensor):
            sizes[owner.untyped_storage().data_ptr()] = owner.numel()
        else:
            todo += [cell.cell_contents for cell in getattr(owner, "__closure__", None) or ()]
    return sum(sizes.values())


@needs_peft
@torch.no_grad()
def test_lora_reference_is_the_model_that_training_began_with(ppo_or_grpo, sft):
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, sft, lora_rank=2)
    original = load(lesson, sft)[0]
    reference = lesson.make_reference(model, lesson.Config(lora_rank=2))
    ids, mask = policy_batch(tokenizer)
    expected = lesson.response_logits(original, ids, mask, 7)
    close(lesson.response_logits(model, ids, mask, 7), expected)  # B is 0
    shake(model, 0.03)
    assert torch.equal(reference(ids, mask, 7), expected)
    assert (lesson.response_logits(model, ids, mask, 7) - expected).abs().max() > 0.1


@needs_peft
def test_lora_trains_adapters_alone(lesson1, lesson2, lesson3, lesson4, sft, accelerator):
    """Of a reward model also the head, and of PPO's policy the value head."""
    for lesson in lesson1, lesson4:
        names = trained_names(load(lesson, sft, lora_rank=2)[0])
        assert names and all("lora_" in name for name in names)
    extra = {name for name in trained_names(load_reward(lesson2, sft, lora_rank=2)[0])
             if "lora_" not in name}
    assert len(extra) == 1 and "score" in extra.pop()
    model, tokenizer = load(lesson3, sft, lora_rank=2)
    config = make_config(lesson3, lora_rank=2)
    policy, rollout = make_rollout(lesson3, model, tokenizer, config, reference=model)
    extra = {name for name in trained_names(policy) if "lora_" not in name}
    assert extra == {"value_head.weight", "value_head.bias"}
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    update(lesson3, policy, rollout, config, accelerator)
    moved = {name for name, weight in policy.named_parameters()
             if not torch.equal(weight, before[name])}
    assert moved == trained_names(policy)


@needs_peft
@torch.no_grad()
def test_lora_policy_reference_and_reward_model_share_their_weights(
        lesson2, ppo_or_grpo, sft, tmp_path):
    """In memory there is one model, and scores are those of the reward model's own run."""
    lesson = ppo_or_grpo
    folder, raw = lora_reward(lesson2, sft, tmp_path)
    plain = load(lesson, sft)[0]
    model, tokenizer = load(lesson, sft, lora_rank=2)
    config = lesson.Config(lora_rank=2, reward=folder)
    reference = lesson.make_reference(model, config)
    score = lesson.load_score(folder, config, tokenizer, model)
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert adapters < memory(plain) / 5
    assert memory(model, reference, score) == memory(plain) + adapters + model.config.hidden_size
    # Without adapters there are three models, and memory() sees them.
    config = lesson.Config(reward=folder)
    assert memory(plain, lesson.make_reference(plain, config),
                  lesson.load_score(folder, config, tokenizer, plain)) > 2.5 * memory(plain)

    shake(model, 0.03)  # the policy has learned
    trained, inputs = trained_names(model), (*policy_batch(tokenizer), 7)
    logits = lesson.response_logits(model, *inputs)
    for _ in range(2):
        scores = score(*policy_batch(tokenizer), None)
        close(scores, raw)
        close(scores, merged_scores(folder))
        assert trained_names(model) == trained and all(".default." in name for name in trained)
        assert torch.equal(lesson.response_logits(model, *inputs), logits)
        assert torch.equal(reference(*inputs), lesson.response_logits(plain, *inputs))


@torch.no_grad()
def merged_scores(folder):
    """Scores by the run's model/ and transformers alone, an answer at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(Path(folder, "model")).eval()
    raw = [model(torch.tensor([prompt + answer])).logits[0, 0]
           for prompt, answer in zip(PROMPTS + PROMPTS[:1], ANSWERS)]
    return (torch.stack(raw) - 0.3) / 2


@needs_peft
@torch.no_grad()
def test_reward_adapter_of_another_base_is_not_shared(
        lesson1, lesson2, ppo_or_grpo, sft, tmp_path):
    """It says how to change weights that are not here: the merged model scores."""
    lesson = ppo_or_grpo
    other, tokenizer = load(lesson1, sft)
    other = save_run(lesson1, shake(other), tokenizer, tmp_path, run_name="other")
    folder, raw = lora_reward(lesson2, other, tmp_path)
    model, tokenizer = load(lesson, sft, lora_rank=2)
    config, before = lesson.Config(lora_rank=2, reward=folder), memory(model)
    score = lesson.load_score(folder, config, tokenizer, model)
    close(score(*policy_batch(tokenizer), None), raw)
    close(raw, merged_scores(folder))
    assert memory(model) == before and memory(score) > 1.5 * before
    assert list(model.peft_config) == ["default"]


@needs_peft
@torch.no_grad()
def test_saved_adapter_and_merged_model_are_what_was_trained(
        lesson2, ppo_or_grpo, sft, tmp_path):
    """Also where a reward model's adapter was there as well: it is no part of the policy."""
    from peft import PeftModel

    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, sft, lora_rank=2)
    reward, _ = lora_reward(lesson2, sft, tmp_path)
    score = lesson.load_score(reward, lesson.Config(lora_rank=2), tokenizer, model)
    shake(model, 0.03)
    ids, mask = policy_batch(tokenizer)
    score(ids, mask, None)
    expected = lesson.response_logits(model, ids, mask, 7)
    folder = Path(save_run(lesson, model, tokenizer, tmp_path))
    base = AutoModelForCausalLM.from_pretrained(Path(sft, "model"))
    for again in (AutoModelForCausalLM.from_pretrained(folder / "model"),
                  PeftModel.from_pretrained(base, folder / "adapter")):
        close(lesson.response_logits(again.eval(), ids, mask, 7), expected)
    with safe_open(folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in name and file.get_tensor(name).shape.count(2) == 1
                   for name in file.keys())  # of rank 2: the reward's has rank 3
    assert not (folder / "adapter" / "reward").exists()
    saved = GenerationConfig.from_pretrained(folder / "model")
    assert (saved.top_p, saved.top_k) == (0.5, 20)


@needs_peft
@torch.no_grad()
def test_a_model_that_comes_as_an_adapter_is_merged(lesson1, lesson3, sft, tmp_path):
    """All of its weights can then be trained, and the reference has the adapter too."""
    model, tokenizer = load(lesson1, sft, lora_rank=2)
    shake(model, 0.03)
    ids, mask = policy_batch(tokenizer)
    expected = lesson3.response_logits(model, ids, mask, 7)
    folder = Path(save_run(lesson1, model, tokenizer, tmp_path), "adapter")
    merged, _ = load(lesson3, folder)
    assert trained_names(merged) == {name for name, _ in merged.named_parameters()}
    assert not any("lora_" in name for name in merged.state_dict())
    close(lesson3.response_logits(merged, ids, mask, 7), expected)
    again, tokenizer = load(lesson3, folder, lora_rank=2)
    reference = lesson3.make_reference(again, lesson3.Config(lora_rank=2))
    shake(again, 0.03)
    close(reference(ids, mask, 7), expected)
    # The second adapter's base is the sum, which is in no folder: there is the whole model alone.
    expected = lesson3.response_logits(again, ids, mask, 7)
    run = Path(save_run(lesson3, again, tokenizer, tmp_path / "twice"))
    assert not (run / "adapter").exists()
    close(lesson3.response_logits(load(lesson3, run)[0], ids, mask, 7), expected, 1e-4)


@needs_peft
@torch.no_grad()
def test_an_adapter_brings_the_rows_that_its_model_had_to_grow(lesson1, gpt2, tmp_path):
    """GPT-2 and Llama have no room for a pad token, and its new row is random."""
    model, tokenizer = load(lesson1, gpt2, lora_rank=2)
    shake(model, 0.03)
    ids, mask = policy_batch(tokenizer)
    expected = model(ids, attention_mask=mask).logits
    folder = Path(save_run(lesson1, model, tokenizer, tmp_path), "adapter")
    merged, same_tokenizer = load(lesson1, folder)
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    close(merged(ids, attention_mask=mask).logits, expected)


@needs_peft
@torch.no_grad()
def test_a_reward_model_can_begin_with_a_policys_adapter(lesson1, lesson2, qwen3, tmp_path):
    model, tokenizer = load(lesson1, qwen3, lora_rank=2)
    shake(model, 0.03)
    ids, mask = torch.tensor([ANSWERS[1]]), torch.ones(1, len(ANSWERS[1]), dtype=torch.long)
    expected = model.get_base_model().base_model(ids, attention_mask=mask)[0]
    folder = Path(save_run(lesson1, model, tokenizer, tmp_path), "adapter")
    reward_model = load_reward(lesson2, folder)[0]
    assert trained_names(reward_model) == {name for name, _ in reward_model.named_parameters()}
    close(reward_model.model.base_model(ids, attention_mask=mask)[0], expected)


@needs_peft
def test_reward_model_and_policy_of_one_hub_model_share_it(
        lesson2, lesson3, hub_model, tmp_path):
    """Also without lesson 1 in between, and whatever random rows a model had to grow."""
    folder, _ = lora_reward(lesson2, hub_model, tmp_path)
    model, tokenizer = load(lesson3, hub_model, lora_rank=2)
    lesson3.load_score(folder, lesson3.Config(lora_rank=2), tokenizer, model)
    assert list(model.peft_config) == ["default", "reward"]


# ---- Lesson 1 -----------------------------------------------------------------------------------


WORLD = {"instruction": ["Say tea.", "Say it.", "Say it again, please, and at length."] * 3,
         "input": ["", "milk", ""] * 3, "output": ["tea", "milk and more", "?"] * 3}


def test_sft_examples_mask_the_prompt_and_train_the_end_token(lesson1, hub_model):
    tokenizer = load(lesson1, hub_model)[1]
    config = lesson1.Config(device="cpu", max_prompt_length=80, max_new_tokens=4)
    rows = lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)
    for row, instruction, input, output in zip(rows, *WORLD.values()):
        prompt = tokenizer.encode(lesson1.format_prompt(instruction, input))
        answer = (tokenizer.encode(output) + [tokenizer.eos_token_id])[:4]
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [-100] * len(prompt) + answer
        assert row["num_labels"] == len(answer)  # what the loss counts: none is lost to the shift


def test_packed_text_counts_the_labels_that_the_loss_counts(lesson1, gpt2):
    tokenizer = load(lesson1, gpt2)[1]
    rows = lesson1.pack_text("the story was lovely " * 20, tokenizer, 16)
    assert len(rows) > 1
    for row in rows:
        assert len(row["input_ids"]) == 16 and row["num_labels"] == 15
        assert row["labels"] == row["input_ids"]


def test_prompts_that_are_too_long_are_left_out(lesson1, gpt2, capsys):
    tokenizer = load(lesson1, gpt2)[1]
    short = len(tokenizer.encode(lesson1.format_prompt("Say tea.")))
    config = lesson1.Config(device="cpu", max_prompt_length=short)
    assert len(lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)) == 3
    assert "6 of 9" in capsys.readouterr().out
    config.max_prompt_length = 1
    with pytest.raises(SystemExit):
        lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)


def test_a_prompt_may_have_an_input(lesson1, gpt2, monkeypatch):
    asked = []

    def generate(model, tokenizer, prompts, max_new_tokens, temperature):
        assert temperature == 0  # a sum that is right 9 times of 10 should not be drawn
        asked.extend(tokenizer.batch_decode(prompts))
        return None, None, torch.tensor([[5]])

    monkeypatch.setattr(lesson1, "generate", generate)
    for prompt in "Say tea.", "Translate: | I | you.":
        lesson1.chat(lesson1.Config(prompt=prompt, model=gpt2, device="cpu"))
    assert asked == [lesson1.format_prompt("Say tea."),
                     lesson1.format_prompt("Translate:", "I | you.")]


def test_every_row_is_in_one_batch_of_an_epoch(lesson1):
    rng = random.Random(0)
    rows = [{"number": i, "input_ids": [0] * rng.randrange(50)} for i in range(103)]
    for bucket in 1, 4:
        batches = lesson1.bucketed_batches(rows, 8, bucket, "0 0")
        assert sorted(row["number"] for batch in batches for row in batch) == list(range(103))
        assert sorted(map(len, batches)) == [7] + [8] * 12
        assert batches != lesson1.bucketed_batches(rows, 8, bucket, "0 1")
        lengths = [[len(row["input_ids"]) for row in batch] for batch in batches]
        assert all(batch == sorted(batch) for batch in lengths)  # a piece has rows of about a size
    padding = [sum(8 * max(batch) - sum(batch) for batch in (
        [len(row["input_ids"]) for row in batch]
        for batch in lesson1.bucketed_batches(rows, 8, bucket, "0 0"))) for bucket in (1, 8)]
    assert padding[1] < padding[0] / 2


def test_the_steps_of_a_run(lesson1, accelerator, tmp_path, keep_ctrl_c):
    """Ctrl-C waits for the end of a step, but not for that of the closing evaluation; and a step
    draws the same whether the run was interrupted before it or not."""
    config = lesson1.Config(runs_dir=str(tmp_path), device="cpu", save_every=2)
    run, draws = lesson1.Run(config, accelerator), {}
    for step in run.steps(3):
        assert signal.getsignal(signal.SIGINT) == run.interrupt
        draws[step] = torch.rand(1).item()
        run.end_step(step, {"draw": draws[step]})
    assert list(draws) == [1, 2, 3] and len(set(draws.values())) == 3
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    run = lesson1.Run(replace(config, resume=True), accelerator)  # step 3 was not saved
    assert {step: torch.rand(1).item() for step in run.steps(3)} == {3: draws[3]}
    assert run.rows == [{"step": step, "draw": draws[step]} for step in (1, 2)]


def test_a_loss_that_is_no_number_does_not_stop_the_closing(lesson1, accelerator, tmp_path, capsys):
    run = lesson1.Run(lesson1.Config(runs_dir=str(tmp_path), device="cpu"), accelerator)
    run.rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    run.close("loss", {"loss": 2.0}, {"loss": 1.0}, [("Say tea.", {"tuned": "Tea."})], "")
    assert "loss: 2.00" in capsys.readouterr().out
    assert "Tea." in (run.folder / "samples.md").read_text()


def train_sft(lesson1, folder, accelerator, **settings):
    """-> (the run, the model)"""
    config = lesson1.Config(**dict(
        device="cpu", steps=3, batch_size=5, warmup_steps=0, max_prompt_length=80,
        learning_rate=1e-3, bucket=8) | settings)
    model, tokenizer = load(lesson1, folder, lora_rank=config.lora_rank,
                            gradient_checkpointing=config.gradient_checkpointing)
    rows = lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)
    run = lesson1.Run(config, accelerator)
    lesson1.train(model, tokenizer, rows, rows, config, accelerator, run)
    return run, model


def test_sft_with_micro_batches_is_sft(lesson1, gpt2, accelerator, tmp_path, keep_ctrl_c):
    """Ragged answers, and a last micro-batch that is smaller."""
    runs = [train_sft(lesson1, gpt2, accelerator, runs_dir=str(tmp_path), run_name=str(size),
                      micro_batch_size=size) for size in (64, 2)]
    (run, trained), (same_run, same_trained) = [(run, weights(model)) for run, model in runs]
    assert all(weight.grad is None for weight in runs[0][1].parameters())  # for the next step
    for row, same_row in zip(run.rows, same_run.rows):
        assert row == pytest.approx(same_row, rel=1e-4)
    assert (trained - same_trained).abs().mean() < 1e-6  # Adam blows up rounding here and there
    assert (trained - weights(load(lesson1, gpt2)[0])).abs().mean() > 1e-4


@pytest.mark.parametrize("lora_rank", [0, LORA])
def test_training_ends_with_the_weights_of_the_best_held_out_loss(
        lesson1, gpt2, accelerator, tmp_path, monkeypatch, keep_ctrl_c, lora_rank):
    seen, losses = [], [3., 1., 2., 2.]

    def held_out_loss(model, *rest):
        seen.append(weights(model))
        return losses[len(seen) - 1]

    monkeypatch.setattr(lesson1, "held_out_loss", held_out_loss)
    run, model = train_sft(lesson1, gpt2, accelerator, runs_dir=str(tmp_path), steps=4,
                           eval_every=1, lora_rank=lora_rank)
    assert [row["loss/held_out"] for row in run.rows] == losses
    assert torch.equal(weights(model), seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_training_ends_where_the_held_out_loss_is_no_number(
        lesson1, gpt2, accelerator, tmp_path, monkeypatch, keep_ctrl_c, capsys):
    monkeypatch.setattr(lesson1, "held_out_loss", lambda *_: float("nan"))
    with pytest.raises(SystemExit) as stopped:
        train_sft(lesson1, gpt2, accelerator, runs_dir=str(tmp_path))
    assert stopped.value.code == 1
    assert "step 3: loss/held_out is not finite" in capsys.readouterr().err


def test_held_out_loss_is_a_mean_over_tokens(lesson1, gpt2, accelerator):
    model, tokenizer = load(lesson1, gpt2)
    config = lesson1.Config(device="cpu", max_prompt_length=80, micro_batch_size=2)
    rows = lesson1.tokenize_examples(rows_of(WORLD), tokenizer, config)
    losses = []
    for row in rows:
        with torch.no_grad():
            logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        losses += [-logprobs[t - 1, label].item() for t, label in enumerate(row["labels"])
                   if label != -100]
    loss = lesson1.held_out_loss(model, rows, tokenizer, config, accelerator)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_columns_that_get_no_logits_change_nothing(lesson1, gpt2, accelerator):
    """Rows of several lengths, one of them packed, one cut, and one that a wrong build_labels gave
    labels on its prompt: the loss and its gradient are those of all logits, with a mask."""
    model, tokenizer = load(lesson1, gpt2)
    masked = [{"input_ids": list(range(40, 52)), "labels": [-100] * 8 + list(range(48, 52))},
              {"input_ids": list(range(60, 66)), "labels": [-100] * 5 + [65]}]
    packed = [{"input_ids": [70, 71, 72, 73], "labels": [70, 71, 72, 73]}]
    wrong = [{"input_ids": list(range(80, 90)), "labels": [-100, -100, *range(82, 90)]}]
    for rows in masked, packed, masked + packed, masked + wrong, wrong:
        for row in rows:
            row["num_labels"] = 1  # batch_loss looks at the labels, not at what is said of them
        batch = lesson1.pad_batch([(row["input_ids"], row["labels"]) for row in rows], 0)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        expected = lesson1.sft_loss(logits, batch["labels"], 7)
        expected.backward()
        gradient = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        model.zero_grad()
        loss = lesson1.batch_loss(model, rows, 7, tokenizer, accelerator)
        loss.backward()
        close(loss, expected, 1e-5)
        close(torch.cat([weight.grad.flatten() for weight in model.parameters()]), gradient, 1e-4)
        assert expected > 0.1 and gradient.abs().max() > 1e-2
        model.zero_grad()


# ---- Lesson 2: reward models --------------------------------------------------------------------


ANSWERS = [[40, 41, 0], [50, 51, 52, 53, 54, 55, 0], [60, 0], [70, 71, 72, 73]]


@torch.no_grad()
def test_scores_do_not_move_with_padding_or_order(lesson2, hub_model):
    model, tokenizer = load_reward(lesson2, hub_model)
    alone = torch.cat([lesson2.score_answers(model, tokenizer, [ids]) for ids in ANSWERS])
    assert alone.std() > 0.1
    close(lesson2.score_answers(model, tokenizer, ANSWERS), alone)
    close(lesson2.score_answers(model, tokenizer, ANSWERS[::-1]), alone.flip(0))
    close(lesson2.score_answers(model, tokenizer, ANSWERS[:1] + [[80] * 50])[:1], alone[:1])


@torch.no_grad()
def test_scores_are_read_at_the_end_token(lesson2, hub_model):
    """They equal the score of the hidden state there, and transformers' own logits."""
    reward_model, tokenizer = load_reward(lesson2, hub_model)
    scores, model = lesson2.score_answers(reward_model, tokenizer, ANSWERS), reward_model.model
    for ids, score in zip(ANSWERS, scores):
        states = model.base_model(torch.tensor([ids])).last_hidden_state
        close(score, model.score(states[:, -1])[0, 0])
    batch = tokenizer.pad({"input_ids": ANSWERS}, padding_side="right", return_tensors="pt")
    close(scores, model(**batch).logits[:, 0])


def save_reward(lesson2, model, tokenizer, folder):
    """-> the folder of lesson 2's run, whose scores have mean 0.3 and standard deviation 2."""
    settings = model.model.config
    settings.score_mean, settings.score_std = 0.3, 2.0
    return save_run(lesson2, model.model, tokenizer, folder)


def policy_batch(tokenizer):
    """(ids, attention mask) of prompts and ANSWERS, padded as lesson 3 does."""
    pad, rows, masks = tokenizer.pad_token_id, [], []
    for prompt, answer in zip(PROMPTS + PROMPTS[:1], ANSWERS):
        left, right = 9 - len(prompt), 7 - len(answer)
        rows.append([pad] * left + prompt + answer + [pad] * right)
        masks.append([0] * left + [1] * len(prompt + answer) + [0] * right)
    return torch.tensor(rows), torch.tensor(masks)


@torch.no_grad()
def test_scores_are_no_coarser_in_bfloat16(lesson2, lesson3, hub_model, tmp_path):
    """With --bf16 the trunk computes in bfloat16; a score of eight bits would make ties."""
    model, tokenizer = load_reward(lesson2, hub_model)
    lm, _ = load(lesson3, hub_model)
    folder = save_reward(lesson2, model, tokenizer, tmp_path)
    score = lesson3.load_score(folder, lesson3.Config(device="cpu"), tokenizer, lm)
    with torch.autocast("cpu", torch.bfloat16):
        both = lesson2.score_answers(model, tokenizer, ANSWERS), score(*policy_batch(tokenizer))
    for scores in both:
        assert scores.dtype == torch.float32
        raw = 2 * scores + 0.3 if scores is both[1] else scores
        assert ((raw - raw.bfloat16().float()).abs() > 1e-5).all()


@torch.no_grad()
def test_the_policys_score_is_lesson_2s(lesson2, ppo_or_grpo, hub_model, tmp_path):
    """The policy's batch is padded on the left and on the right, lesson 2's on the right alone."""
    lesson = ppo_or_grpo
    model, tokenizer = load_reward(lesson2, hub_model)
    raw = lesson2.score_answers(
        model, tokenizer, [p + a for p, a in zip(PROMPTS + PROMPTS[:1], ANSWERS)])
    folder = save_reward(lesson2, model, tokenizer, tmp_path)
    lm, policy_tokenizer = load(lesson, hub_model)
    score = lesson.load_score(folder, lesson.Config(), policy_tokenizer, lm)
    close(score(*policy_batch(tokenizer), None), (raw - 0.3) / 2)


def test_reward_model_of_another_tokenizer_is_refused(lesson2, lesson3, gpt2, qwen3, tmp_path):
    model, reward_tokenizer = load_reward(lesson2, gpt2)
    folder, config = save_reward(lesson2, model, reward_tokenizer, tmp_path), lesson3.Config()
    lm, tokenizer = load(lesson3, gpt2)
    lesson3.load_score(folder, config, tokenizer, lm)
    tokenizer.add_tokens(["another"])
    with pytest.raises(SystemExit):
        lesson3.load_score(folder, config, tokenizer, lm)


def test_a_language_model_is_no_reward_model(lesson3, gpt2, tmp_path, capsys):
    """transformers would give it a random head, and say so where nobody looks."""
    model, tokenizer = load(lesson3, gpt2)
    folder = save_run(lesson3, model, tokenizer, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        lesson3.load_score(folder, lesson3.Config(), tokenizer, model)
    assert stopped.value.code == 2
    assert "no reward model of lesson 2" in capsys.readouterr().err


def test_policy_and_reward_model_of_one_hub_model_agree_on_the_pad_token(
        lesson2, lesson3, tmp_path):
    """As in Qwen3's chat models: the pad token is the second of two end tokens."""
    folder = save_tiny_model(
        tmp_path / "hub", "qwen3", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = load(lesson3, folder)[1]
    model, reward_tokenizer = load_reward(lesson2, folder)
    assert reward_tokenizer.pad_token_id == tokenizer.pad_token_id
    assert model.model.config.pad_token_id == tokenizer.pad_token_id
    assert reward_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_pairs_that_are_equal_once_cut_are_left_out(lesson2, hub_model, capsys):
    tokenizer = load_reward(lesson2, hub_model)[1]
    pairs = rows_of({"instruction": ["A?", "B?", "C?"], "chosen": ["xyzzy1", "1", "no"],
                     "rejected": ["xyzzy2", "2", "no"]})
    config = lesson2.Config(device="cpu", max_prompt_length=80, max_new_tokens=5)
    rows = lesson2.tokenize_pairs(pairs, tokenizer, config)
    assert [row["instruction"] for row in rows] == ["B?"] and "2 of 3" in capsys.readouterr().out
    prompt, end = tokenizer.encode(lesson2.format_prompt("B?")), tokenizer.eos_token_id
    assert rows[0]["chosen_ids"] == prompt + tokenizer.encode("1") + [end]
    assert rows[0]["rejected_ids"] == prompt + tokenizer.encode("2") + [end]
    config.max_new_tokens = 7
    assert len(lesson2.tokenize_pairs(pairs, tokenizer, config)) == 2


@pytest.fixture
def train_rewards(lesson2, gpt2, run_main, tmp_path, monkeypatch):
    """train_rewards(flag=..., ...): lesson 2's main with 8 pairs to learn from and one held out ->
    (the steps' stats, the model, the names of the weights that changed)."""
    rng, made, make = random.Random(0), [], lesson2.make_reward_model
    data = tmp_path / "pairs.json"
    data.write_text(json.dumps([{"instruction": "A?", "chosen": "good " * rng.randint(1, 5),
                                 "rejected": "bad"} for _ in range(9)]))

    def make_reward_model(config):
        model, tokenizer = make(config)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        made.append((model, before))
        return model, tokenizer

    def train(**flags):
        monkeypatch.setattr(lesson2, "make_reward_model", make_reward_model)
        stats = run_main(lesson2, **dict(
            model=gpt2, data=data, batch_size=5, warmup_steps=0, max_prompt_length=80,
            learning_rate=1e-3) | flags)
        model, before = made[-1]
        return stats, model, {name for name, weight in model.named_parameters()
                              if not torch.equal(weight, before[name])}

    return train


def test_reward_training_with_micro_batches_is_the_same(train_rewards):
    one, model, changed = train_rewards(run_name="a")
    many, same, _ = train_rewards(run_name="b", micro_batch_size=2)
    assert len(one) == len(many) == 2  # 5 pairs and then 3
    assert all(weight.grad is None for weight in model.parameters())  # for the next step
    for row, same_row in zip(one, many):
        assert row == pytest.approx(same_row, rel=1e-4)
    assert (weights(model) - weights(same)).abs().mean() < 1e-6
    assert "model.transformer.wte.weight" in changed


def test_freeze_backbone_trains_the_score_head_alone(train_rewards):
    assert train_rewards(freeze_backbone=True)[2] == {"model.score.weight"}


# ---- Lesson 3 -----------------------------------------------------------------------------------


@torch.no_grad()
def test_value_head_begins_at_zero_and_reads_what_the_lm_head_reads(lesson3, hub_model):
    lm = shake(load(lesson3, hub_model)[0], 0.3)  # so that a second norm would be seen
    policy, seen = lesson3.CausalLMWithValueHead(lm), []
    lm.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids, mask = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    logits, values = policy(ids, mask, 3)
    assert logits.shape == (1, 4, 320) and values.tolist() == [[0., 0., 0.]]
    torch.nn.init.normal_(policy.value_head.weight)
    values = policy(ids, mask, 3)[1]
    states = seen[-1][:, -4:-1]  # before each of the response's three tokens
    close(values, policy.value_head(states).squeeze(-1))
    assert values.abs().min() > 1e-3
    changed = policy(torch.tensor([[5, 6, 7, 8, 9, 99]]), mask, 3)[1]
    close(values, changed)  # a token's value does not know the token


def test_value_head_has_the_width_of_what_the_lm_head_reads(lesson3, opt, accelerator):
    """In OPT-350m, and in a few others, that is not config.hidden_size."""
    lm, tokenizer = load(lesson3, opt)
    policy = lesson3.CausalLMWithValueHead(lm)
    assert lm.config.hidden_size == 32 and policy.value_head.in_features == 16
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask = policy_batch(tokenizer)
    with torch.no_grad():
        logits, values = policy(ids, mask, 7)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        states = lm.base_model(ids, attention_mask=mask, position_ids=positions)[0]
        close(logits, lm.lm_head(states[:, -8:]))
        close(values, policy.value_head(states[:, -8:-1]).squeeze(-1))
    assert values.std() > 0.1
    config = make_config(lesson3)
    policy, rollout = make_rollout(lesson3, lm, tokenizer, config)
    update(lesson3, policy, rollout, config, accelerator)
    assert policy.value_head.weight.abs().max() > 0


def test_value_loss_trains_the_value_head_and_the_trunk(lesson3, gpt2, accelerator):
    model, tokenizer = load(lesson3, gpt2)
    config = make_config(lesson3)
    policy, rollout = make_rollout(lesson3, model, tokenizer, config)
    update(lesson3, policy, rollout, config, accelerator)
    assert policy.value_head.weight.abs().max() > 0
    policy(rollout.ids, rollout.attention_mask, 6)[1].sum().backward()
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().max() > 0


@pytest.mark.parametrize("end", [0, 1])
def test_a_response_without_an_end_pays_the_penalty(ppo_or_grpo, qwen3, end):
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, qwen3)
    prefer(model, end, 5.)
    config = make_config(lesson, missing_eos_penalty=0.75)
    rollout = make_rollout(lesson, model, tokenizer, config,
                           score=lambda ids, *_: torch.full((len(ids),), 2.))[1]
    ended = [end in row for row in rollout.response.tolist()]
    assert 0 < sum(ended) < 12
    assert rollout.ended.tolist() == ended
    paid = rollout.scores if lesson.__name__ == "lesson3_ppo" else rollout.rewards
    close(paid, [2. if has_end else 1.25 for has_end in ended])


@pytest.fixture
def ppo_step(lesson3, gpt2, run_main, monkeypatch):
    """ppo_step(flag=..., ...): lesson 3's main, a step from a policy that is not the reference ->
    [(the stats, the rollout that it learned from, the kl_coef that it learned with)], of each
    step. The scores are 0, 1, 2 and so on."""
    load_lm, make_reference = lesson3.load_causal_lm, lesson3.make_reference

    def load_causal_lm(config):
        model, tokenizer = load_lm(config)
        prefer(model, 0, 4.)  # so that some responses are shorter
        return model, tokenizer

    def a_reference_far_away(lm, config):
        reference = make_reference(lm, config)
        shake(lm)
        return reference

    def step(score=lambda ids, *_: torch.arange(float(len(ids))), **flags):
        data = rows_of({"instruction": ["a", "b", "c"], "prompt_ids": PROMPTS})
        monkeypatch.setattr(lesson3, "load_causal_lm", load_causal_lm)
        monkeypatch.setattr(lesson3, "make_reference", a_reference_far_away)
        monkeypatch.setattr(lesson3, "load_prompts", lambda *_: [data, data])
        monkeypatch.setattr(lesson3, "load_rewards", lambda *_: score)
        updates = record(monkeypatch, lesson3, "ppo_update")
        stats = run_main(lesson3, **dict(
            model=gpt2, reward="sentiment", steps=1, num_samples=12, batch_size=6,
            micro_batch_size=4, max_new_tokens=6, gamma=1.0, lam=1.0, missing_eos_penalty=0.0,
            learning_rate=0.0, value_learning_rate=0.0) | flags)
        return [(row, args[2], args[3]) for row, (args, _) in zip(stats, updates, strict=True)]

    return step


@pytest.mark.parametrize("kl_in", ["reward", "loss", "old"])
def test_the_penalty_is_in_the_reward_only_where_it_is_asked_for(ppo_step, kl_in):
    """Gamma and lambda are 1 and the values 0, so that the return is the sum of what comes."""
    stats, rollout, kl_coef = ppo_step(kl_in=kl_in, kl_coef=0.5)[0]
    assert kl_coef == stats["kl/coef"] == 0.5
    kl = (rollout.logprobs - rollout.ref_logprobs) * rollout.mask
    assert kl.abs().max() > 1e-3
    still_to_come = kl.flip(1).cumsum(1).flip(1)
    weight = 0.5 if kl_in == "reward" else 0.0
    expected = (torch.arange(12.).unsqueeze(1) - weight * still_to_come) * rollout.mask
    close(rollout.returns, expected)  # not those of the whitened advantages


def test_explained_variance_of_equal_returns_is_a_number(ppo_step):
    stats = ppo_step(constant_score, kl_coef=0.0)[0][0]
    assert all(torch.isfinite(torch.tensor(list(stats.values()))))


def test_explained_variance_looks_at_real_tokens(lesson3):
    """Returns 0, 2, 4 have variance 8/3, errors 1, -1, 0 have 2/3: a quarter is unexplained."""
    rollout = SimpleNamespace(values=torch.tensor([[-1., 3., 50.], [4., 50., 50.]]),
                              returns=torch.tensor([[0., 2., 0.], [4., 0., 0.]]),
                              mask=torch.tensor([[1., 1., 0.], [1., 0., 0.]]))
    assert lesson3.explained_variance(rollout) == pytest.approx(0.75)


def test_advantages_are_white_over_the_whole_batch(ppo_step):
    rollout = ppo_step()[0][1]
    advantages = rollout.advantages[rollout.mask.bool()]
    close(advantages.mean(), 0., 1e-4)
    close(advantages.std(), 1., 1e-4)
    raw = (rollout.returns - rollout.values)[rollout.mask.bool()]
    close(advantages, (raw - raw.mean()) / raw.std(), 1e-4)


@pytest.mark.parametrize("kl_in", ["reward", "loss", "old"])
def test_the_penalty_in_the_loss(lesson3, gpt2, accelerator, monkeypatch, kl_in):
    """k3 to the reference, or to the policy that sampled, which is by now another one."""
    model, tokenizer = load(lesson3, gpt2)
    config = make_config(lesson3, kl_in=kl_in)
    policy, rollout = make_rollout(
        lesson3, model, tokenizer, config, reference=shake(copy.deepcopy(model), 0.03))
    shake(policy)
    with torch.no_grad():
        logits = policy(rollout.ids, rollout.attention_mask, rollout.response.shape[1])[0]
        logprobs = logits[:, :-1].log_softmax(-1).gather(
            2, rollout.response.unsqueeze(2)).squeeze(2)
        total, parts = lesson3.ppo_loss(policy, rollout, 0.3, rollout.mask.sum(), config)
    # Of KL(now || reference), and of KL(then || now): the samples are from then.
    kl = {"loss": rollout.ref_logprobs - logprobs, "old": logprobs - rollout.logprobs}
    kl = {name: ((d.exp() - 1 - d) * rollout.mask).sum() / rollout.mask.sum()
          for name, d in kl.items()}
    close(parts["kl/ref"], kl["loss"])
    close(parts["kl/approx"], kl["old"])
    assert kl["loss"] > 1e-3 < kl["old"] and abs(kl["loss"] - kl["old"]) > 1e-3
    close(total - parts["loss/total_no_kl"], 0.3 * kl.get(kl_in, torch.tensor(0.)))
    close(parts["loss/total_with_kl"], total)


def test_fewer_samples_than_are_shown(lesson3, gpt2, run_main, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {i}."}) + "\n" for i in range(6)))
    run_main(lesson3, model=gpt2, data=data, eval_data=data, reward="sentiment", steps=1,
             num_samples=4, batch_size=4, max_new_tokens=4, max_prompt_length=80)
    [samples] = (tmp_path / "runs").glob("**/samples.md")
    assert samples.read_text("utf-8").count("- after:") == 4


def test_loss_is_the_sum_of_its_weighted_parts(lesson3, gpt2, accelerator):
    model, tokenizer = load(lesson3, gpt2)
    config = make_config(lesson3, value_coef=0.7, entropy_coef=0.2, temperature=0.7)
    policy, rollout = make_rollout(lesson3, model, tokenizer, config)
    shake(policy)
    with torch.no_grad():
        count = rollout.mask.sum()
        parts = lesson3.ppo_loss(policy, rollout, 0.1, count, config)[1]
        logits, values = policy(rollout.ids, rollout.attention_mask, rollout.response.shape[1])
    close(parts["loss/total_no_kl"], parts["loss/policy"] + 0.7 * parts["loss/value"]
          - 0.2 * parts["entropy/avg"])
    entropy = torch.distributions.Categorical(logits=logits[:, :-1] / 0.7).entropy()
    close(parts["entropy/avg"], (entropy * rollout.mask).sum() / count)
    assert parts["loss/value"] > 0.1


def test_without_a_bonus_the_entropy_is_the_mean_surprise_of_the_sampled_tokens(
        lesson3, gpt2, monkeypatch):
    """The exact one would cost a softmax over the vocabulary for nothing but a curve."""
    model, tokenizer = load(lesson3, gpt2)
    prefer(model, 0, 4.)
    policy, rollout = make_rollout(lesson3, model, tokenizer, make_config(lesson3))
    exact = record(monkeypatch, lesson3, "masked_entropy")
    for entropy_coef in 0.0, 0.1:
        config, count = make_config(lesson3, entropy_coef=entropy_coef), rollout.mask.sum()
        parts = lesson3.ppo_loss(policy, rollout, 0.1, count, config)[1]
        assert len(exact) == (entropy_coef > 0)
        if not entropy_coef:
            surprise = [-x for row, mask in zip(rollout.logprobs.tolist(), rollout.mask.tolist())
                        for x, real in zip(row, mask) if real]
            assert parts["entropy/avg"].item() == pytest.approx(sum(surprise) / len(surprise))
            assert not parts["entropy/avg"].requires_grad


def test_ppo_step_reports_the_rollout(ppo_step):
    stats, rollout, kl_coef = ppo_step(kl_coef=0.0)[0]
    assert stats["reward/avg"] == pytest.approx(5.5)
    lengths, kl = [], []
    for row, new, ref in zip(rollout.response.tolist(), rollout.logprobs, rollout.ref_logprobs):
        lengths.append(row.index(0) + 1 if 0 in row else len(row))
        kl.append((new - ref)[:lengths[-1]].sum().item())
    assert stats["response/length"] == pytest.approx(sum(lengths) / 12)
    ended = [0 in row for row in rollout.response.tolist()]
    assert len(set(lengths)) > 1 and 0 < sum(ended) < 12
    assert stats["response/truncated"] == pytest.approx(1 - sum(ended) / 12)
    assert stats["kl/ref_sum"] == pytest.approx(sum(kl) / 12, rel=1e-4)
    assert stats["value/explained_variance"] == pytest.approx(0., abs=1e-6)  # of values that are 0
    assert stats["kl/coef"] == kl_coef == 0.0


def test_the_coefficient_adapts_to_the_last_steps_kl(lesson3, ppo_step):
    """With k1 in the reward, the returns tell which coefficient was used there."""
    steps, expected = ppo_step(steps=3, kl_coef=0.5, target_kl=0.75), 0.5
    for stats, rollout, kl_coef in steps:
        assert kl_coef == stats["kl/coef"] == expected
        kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1)
        close(rollout.returns[:, 0], torch.arange(12.) - kl_coef * kl)
        expected = lesson3.adaptive_kl_coef(kl_coef, stats["kl/ref_sum"], 0.75, 12, 120)
        assert expected != kl_coef


def test_reported_numbers_are_means_over_all_minibatches(
        ppo_or_grpo, gpt2, accelerator, monkeypatch):
    """12 samples, minibatches of 6 in micro-batches of 4 and 2, 3 epochs."""
    lesson = ppo_or_grpo
    model, tokenizer = load(lesson, gpt2)
    prefer(model, 0, 4.)
    config = make_config(lesson, ppo_epochs=3)
    policy, rollout = make_rollout(
        lesson, model, tokenizer, config, reference=shake(copy.deepcopy(model)))
    rollout.advantages = torch.randn(rollout.advantages.shape)
    name = "grpo_loss" if lesson.__name__ == "lesson4_grpo" else "ppo_loss"
    calls = record(monkeypatch, lesson, name)
    norms = record(monkeypatch, torch.nn.utils, "clip_grad_norm_")
    stats = update(lesson, policy, rollout, config, accelerator)
    assert len(calls) == 12 and len(norms) == 6
    for key in calls[0][1][1]:
        values = [parts[key].item() for _, (_, parts) in calls]
        assert stats[key] == pytest.approx(sum(values) / 6, rel=1e-4, abs=1e-7), key
        if key != "clip/fraction":
            assert stats[key] != pytest.approx(sum(values[-2:]), rel=1e-4), key
    assert stats["grad_norm"] == pytest.approx(sum(norm.item() for _, norm in norms) / 6)


AVERAGES = [(3, None), (4, "sequence"), (4, "token"), (4, "constant")]


@pytest.mark.parametrize("number, average", AVERAGES)
def test_micro_batches_give_the_minibatches_gradient(
        lesson3, lesson4, gpt2, accelerator, number, average):
    lesson = {3: lesson3, 4: lesson4}[number]
    model, tokenizer = load(lesson, gpt2)
    prefer(model, 0, 4.)
    settings = {"average": average} if average else {"entropy_coef": 0.1, "kl_in": "loss"}
    config = make_config(lesson, ppo_epochs=2, kl_coef=0.1, **settings)
    policy, rollout = make_rollout(
        lesson, model, tokenizer, config, reference=shake(copy.deepcopy(model)))
    rollout.advantages = torch.randn(rollout.advantages.shape)
    results = []
    for config.micro_batch_size in 12, 4, 1:
        learner = twin(lesson, policy)
        stats = update(lesson, learner, rollout, config, accelerator)
        results.append((stats, weights(learner)))
        assert all(weight.grad is None for weight in learner.parameters())  # for the next one
    for stats, learned in results[1:]:
        assert stats == pytest.approx(results[0][0], rel=1e-3, abs=1e-5)
        close(learned, results[0][1], 1e-4)
    assert (results[0][1] - weights(policy)).abs().max() > 1e-3


def test_epochs_stop_when_the_policy_has_moved_too_far(lesson3, gpt2, accelerator, monkeypatch):
    model, tokenizer = load(lesson3, gpt2)
    calls = record(monkeypatch, lesson3, "ppo_loss")
    for max_kl, passes in (0.0, 4), (1e9, 4), (1e-9, 1):
        config = make_config(lesson3, max_kl=max_kl, micro_batch_size=12)
        policy, rollout = make_rollout(lesson3, copy.deepcopy(model), tokenizer, config)
        calls.clear()
        update(lesson3, policy, rollout, config, accelerator)
        assert len(calls) == passes * 2


# ---- Lesson 4 -----------------------------------------------------------------------------------


def test_a_group_is_a_row_even_when_prompts_are_equal(lesson4, gpt2):
    model, tokenizer = load(lesson4, gpt2)
    data = rows_of({"instruction": ["a", "b", "a"],
                    "prompt_ids": [PROMPTS[0], PROMPTS[1], PROMPTS[0]]})
    config = make_config(lesson4, group_size=2, scale="none", missing_eos_penalty=0.0)
    asked = []

    def reward(ids, mask, texts, rows):
        expected = [row["prompt_ids"] for row in rows]
        prompts = [row[-len(ids):] for row, ids in zip(ids[:, :9].tolist(), expected)]
        asked.append(([row["instruction"] for row in rows], prompts, expected))
        return torch.tensor([0., 1., 0., 8., 5., 15., 3., 3.])

    rollout = lesson4.sample_groups(
        model, reward, tokenizer, [*data, data[0]], config, Accelerator(cpu=True))
    advantages = lesson4.group_advantages(rollout.rewards, 2, "none")
    assert advantages.tolist() == [-.5, .5, -4., 4., -5., 5., 0., 0.]
    instructions, prompts, expected = asked[0]
    assert instructions == list("aabbaaaa") and prompts == expected


@pytest.fixture
def grpo_step(lesson4, gpt2, run_main, monkeypatch):
    """grpo_step(rewards, flag=..., ...): a step of lesson 4's main, with these rewards for 3 groups
    of 4 -> (the model, the stats, the rollout that it learned from)."""
    def step(rewards, **flags):
        data = rows_of({"instruction": ["a", "b", "c"], "prompt_ids": PROMPTS})
        monkeypatch.setattr(lesson4, "load_grpo_prompts", lambda *_: [data, data])
        monkeypatch.setattr(
            lesson4, "load_rewards", lambda *_: lambda *_: torch.tensor(rewards))
        monkeypatch.setattr(lesson4, "evaluate", lambda *_: ({}, [], torch.zeros(1, 1)))
        loaded = record(monkeypatch, lesson4, "load_causal_lm")
        updates = record(monkeypatch, lesson4, "grpo_update")
        [stats] = run_main(lesson4, **dict(
            model=gpt2, reward="sentiment", steps=1, num_samples=12, group_size=4, batch_size=6,
            micro_batch_size=4, max_new_tokens=6, missing_eos_penalty=0.0, kl_coef=0.01,
            learning_rate=0.01) | flags)
        return loaded[0][1][0], stats, updates[0][0][2]

    return step


SPREAD = [0., 1., 0., 0., 3., 1., 2., 2., 0., 0., 1., 1.]
ONE_GROUP = [1.] * 4 + [0., 0., 1., 0.] + [0.] * 4


def test_grpos_first_loss_is_zero_and_its_gradient_is_not(grpo_step):
    stats = grpo_step(SPREAD, batch_size=12, ppo_epochs=1)[1]
    assert stats["loss/grpo"] == pytest.approx(0., abs=1e-5)
    assert stats["kl/approx"] == pytest.approx(0., abs=1e-8)
    assert stats["grad_norm"] > 0.01


def test_groups_without_spread_are_left_out_and_counted(grpo_step):
    for drop, rewards in (True, ONE_GROUP[4:8]), (False, ONE_GROUP):
        _, stats, rollout = grpo_step(ONE_GROUP, drop_uninformative=drop)
        assert rollout.rewards.tolist() == rewards
        assert len(rollout.ids) == len(rollout.advantages) == len(rollout.mask) == len(rewards)
        assert stats["group/zero_std"] == pytest.approx(2 / 3)
        assert stats["reward/avg"] == pytest.approx(5 / 12)
        assert stats["reward/std"] == pytest.approx(0.5 / 3)  # 0, sqrt(3/4/3) and 0


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_step_learns_from_the_advantages_over_the_group(lesson4, grpo_step, scale):
    _, stats, rollout = grpo_step(SPREAD, scale=scale, group_size=6)
    expected = lesson4.group_advantages(torch.tensor(SPREAD), 6, scale)
    assert torch.equal(rollout.advantages, expected)
    assert stats["advantage/mean"] == pytest.approx(0., abs=1e-6)


def test_grpos_learning_rate_falls_to_zero(lesson4, gpt2, run_main):
    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    run_main(lesson4, model=gpt2, reward="sentiment", steps=4, num_samples=8, group_size=4,
             batch_size=4, ppo_epochs=2, max_new_tokens=4, learning_rate=0.02)
    hook.remove()
    assert rates == pytest.approx([0.02] * 4 + [0.015] * 4 + [0.01] * 4 + [0.005] * 4)


def test_few_groups_left_for_many_minibatches(grpo_step):
    model, stats, _ = grpo_step(ONE_GROUP, batch_size=2)  # 6 minibatches, of 4 rows
    assert all(torch.isfinite(torch.tensor(list(stats.values()))))
    assert torch.isfinite(weights(model)).all()


def test_grpo_step_without_any_spread_stays_finite(grpo_step):
    model, stats, rollout = grpo_step([1.] * 12)
    assert stats["group/zero_std"] == 1.0 and len(rollout.ids) == 12
    assert stats["loss/grpo"] == pytest.approx(0., abs=1e-4)
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize("kl_coef", [0.0, 0.01])
def test_without_a_kl_coefficient_no_reference_is_kept(lesson4, grpo_step, monkeypatch, kl_coef):
    copies = record(monkeypatch, lesson4.copy, "deepcopy")
    references = record(monkeypatch, lesson4, "make_reference")
    passes = record(monkeypatch, lesson4, "all_logprobs")
    grpo_step(SPREAD, kl_coef=kl_coef)
    models = [result for _, result in copies if isinstance(result, torch.nn.Module)]
    asked = [arguments[0] for arguments, _ in passes]
    if kl_coef == 0:
        assert models == references == [] and len(asked) == 1  # the policy that sampled
    else:
        assert len(models) == 1 and len(asked) == 2 and asked[1] is references[0][1]
        assert not any(weight.requires_grad for weight in models[0].parameters())


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_who_learns_once_from_a_sample_needs_no_pass_for_the_old_logprobs(
        lesson4, grpo_step, monkeypatch, kl_coef):
    """One epoch of one minibatch in three pieces: the same step as with the old log-probabilities
    of a pass of their own. With a second minibatch that pass is made."""
    passes = record(monkeypatch, lesson4, "all_logprobs")
    flags = dict(ppo_epochs=1, batch_size=12, kl_coef=kl_coef)
    model, stats, rollout = grpo_step(SPREAD, **flags)
    assert rollout.logprobs is None and len(passes) == (kl_coef > 0)
    update = lesson4.grpo_update

    def with_old_logprobs(policy, optimizer, rollout, config, accelerator):
        current = lambda *inputs: lesson4.response_logits(policy, *inputs)
        rollout.logprobs = lesson4.all_logprobs(current, rollout, config, accelerator)
        return update(policy, optimizer, rollout, config, accelerator)

    monkeypatch.setattr(lesson4, "grpo_update", with_old_logprobs)
    same_model, same_stats, _ = grpo_step(SPREAD, **flags)
    assert stats == pytest.approx(same_stats, rel=1e-3, abs=1e-6)
    close(weights(model), weights(same_model), 1e-4)
    monkeypatch.setattr(lesson4, "grpo_update", update)
    passes.clear()
    rollout = grpo_step(SPREAD, **flags | {"batch_size": 6})[2]
    assert rollout.logprobs.shape == rollout.mask.shape and len(passes) == 1 + (kl_coef > 0)


def test_grpos_entropy_is_the_mean_surprise_of_the_sampled_tokens(grpo_step):
    _, stats, rollout = grpo_step(SPREAD, ppo_epochs=2, batch_size=12, learning_rate=0.0)
    surprise = -(rollout.logprobs * rollout.mask).sum() / rollout.mask.sum()
    assert stats["entropy/avg"] == pytest.approx(surprise.item(), rel=1e-4) and surprise > 1


def test_without_a_reference_no_kl_from_it_is_reported(grpo_step):
    stats = grpo_step(SPREAD, kl_coef=0.0)[1]
    assert stats["kl/approx"] > 0
    assert "kl/ref" not in stats


def test_kl_from_the_reference_is_reported(grpo_step):
    stats = grpo_step(SPREAD, kl_coef=0.1)[1]
    assert stats["kl/ref"] > 0


REWARDS = '''
def length(prompts, responses, answer, **columns):
    assert set(columns) == {"instruction", "completions"}, columns
    return [len(r) + 10 * int(a) + 100 * len(p) for p, r, a in zip(prompts, responses, answer)]

def too_few(prompts, responses, **columns):
    return [1.0]
'''


def load_rewards(lesson, reward):
    config = lesson.Config(reward=reward, model="here")
    return lesson.load_rewards(config, lesson.make_inputs(config), None, None)


def test_reward_function_from_a_file_gets_prompts_responses_and_columns(lesson4, tmp_path):
    file, ids = tmp_path / "my_rewards.py", torch.zeros(2, 3, dtype=torch.long)
    file.write_text(REWARDS)
    rows = rows_of({"instruction": ["ab", "abc"], "answer": ["1", "2"], "prompt_ids": [[1], [2]]})
    reward = load_rewards(lesson4, f"{file}:length")
    rewards = reward(ids, None, ["x", "xyz"], rows)
    assert rewards.tolist() == [211., 323.] and rewards.dtype == torch.float32
    reward = load_rewards(lesson4, f"{file}:too_few")
    for bad in (lambda: reward(ids, None, ["x", "xyz"], rows),
                lambda: load_rewards(lesson4, f"{file}:x")):
        with pytest.raises(SystemExit) as error:
            bad()
        assert error.value.code == 2


def test_a_reward_file_that_is_not_there_is_refused(lesson4, gpt2, run_main, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_main(lesson4, model=gpt2, reward=f"{tmp_path / 'none.py'}:f")
    assert error.value.code == 2 and "none.py" in capsys.readouterr().err


def test_sum_reward_reads_the_instruction(lesson4):
    reward = load_rewards(lesson4, "sum")
    rows = rows_of({"instruction": ["What is 1 + 2?", "What is 3 + 4?"]})
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert reward(ids, None, ["3", "3"], rows).tolist() == [1., 0.]


def test_evaluation_counts_right_samples(lesson4, gpt2, accelerator, monkeypatch):
    """Two prompts, 2k samples each: of the first all are right, of the second two."""
    model, tokenizer = load(lesson4, gpt2)
    data = rows_of({"instruction": ["a", "b"], "prompt_ids": PROMPTS[:2]})
    config = make_config(lesson4, reward="sum", pass_k=2)

    answers = iter([[0., 1.], [1., 0.], [1., 1.], [1., 1.], [1., 0.]] * 2)  # the greedy ones first
    drawn = []

    def reward(ids, mask, texts, rows):
        assert mask.shape == ids.shape and len(texts) == 2  # never all samples at once
        drawn.append(ids.tolist())
        return torch.tensor(next(answers))

    numbers, texts, rewards = lesson4.evaluate(model, reward, tokenizer, data, config, accelerator)
    assert numbers["accuracy/greedy"] == 0.5 and numbers["accuracy/sampled"] == 0.75
    assert numbers["accuracy/pass@k"] == pytest.approx((1 + 5 / 6) / 2)  # 1 - 1 / C(4, 2)
    assert len(texts) == 2
    assert rewards.tolist() == [[1., 0.], [1., 1.], [1., 1.], [1., 0.]]
    assert len(set(map(str, drawn))) == 5  # no sample is another one's copy
    lesson4.evaluate(model, reward, tokenizer, data, config, accelerator)
    assert drawn[5:] == drawn[:5]  # before and after training the dice fall alike
