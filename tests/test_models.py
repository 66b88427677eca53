"""Loading, sampling, scoring and learning with tiny models that look like the hub's: each test is
a mistake that has been made in a widely read teaching codebase, or a trap of a library."""

import copy
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import save_tiny_model
from datasets import Dataset
from safetensors import safe_open
from transformers import AutoModelForCausalLM

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54, 55, 56, 57, 58], [60, 61, 62, 63, 64]]


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(params=[3, 4])
def ppo_or_grpo(request, lesson3, lesson4):
    return {3: lesson3, 4: lesson4}[request.param]


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
    """Another model, not far away."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn(weight.shape, generator=generator)
    return model


def make_config(lesson, **settings):
    sizes = dict(num_samples=12, batch_size=6, micro_batch_size=4, max_new_tokens=6)
    return lesson.Config(**{"device": "cpu", **sizes, **settings})


# ---- Loading ------------------------------------------------------------------------------------


def test_loaded_model_has_a_pad_token_that_is_no_end_token(lesson3, hub_model):
    model, tokenizer = lesson3.load_causal_lm(hub_model)
    ends = model.generation_config.eos_token_id
    assert isinstance(ends, list) and 0 in ends
    assert tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends
    assert tokenizer.pad_token_id < model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_embeddings_grow_to_a_multiple_of_64_when_they_must(lesson3, gpt2, qwen3):
    grown = lesson3.load_causal_lm(gpt2)[0]  # 300 entries and a pad token
    assert grown.get_input_embeddings().weight.shape[0] == 320
    assert grown.get_output_embeddings().weight is grown.get_input_embeddings().weight
    assert lesson3.load_causal_lm(qwen3)[0].get_input_embeddings().num_embeddings == 320


def test_bfloat16_checkpoint_loads_as_float32(lesson2, lesson3, qwen3):
    with safe_open(Path(qwen3, "model.safetensors"), "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    for model in lesson3.load_causal_lm(qwen3)[0], lesson2.load_reward_model(qwen3)[0]:
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_all_end_tokens_of_the_model_are_kept(lesson3, qwen3):
    assert lesson3.load_causal_lm(qwen3)[0].generation_config.eos_token_id == [1, 0]


def test_saved_model_loads_as_it_was(lesson3, hub_model, tmp_path):
    model, tokenizer = lesson3.load_causal_lm(hub_model)
    lesson3.save_model(model, tokenizer, tmp_path / "model")
    again, same_tokenizer = lesson3.load_causal_lm(tmp_path)
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert same_tokenizer.pad_token_id == tokenizer.pad_token_id
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    for old, new in zip(model.parameters(), again.parameters()):
        assert torch.equal(old, new)


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
    model, tokenizer = lesson1.load_causal_lm(hub_model)
    outputs = record_scores(model, monkeypatch)
    lesson1.generate(model, tokenizer, PROMPTS, 5, temperature=0.7)
    lesson1.generate(model, tokenizer, PROMPTS, 5)
    for output, temperature in zip(outputs, (0.7, 1.0)):
        assert len(output.scores) >= 2
        for scores, logits in zip(output.scores, output.logits):
            assert scores.shape == (3, 320)
            close(scores, logits / temperature)


def test_temperature_zero_takes_the_likeliest_token(lesson1, hub_model, monkeypatch):
    model, tokenizer = lesson1.load_causal_lm(hub_model)
    outputs = record_scores(model, monkeypatch)
    ids, mask, response = lesson1.generate(model, tokenizer, PROMPTS[:1], 5, temperature=0)
    likeliest = [logits.argmax(dim=-1) for logits in outputs[0].logits]
    assert response.tolist() == torch.stack(likeliest, dim=1).tolist()


def test_prompts_are_padded_on_the_left(lesson1, hub_model):
    model, tokenizer = lesson1.load_causal_lm(hub_model)
    ids, mask, response = lesson1.generate(model, tokenizer, PROMPTS, 2)
    assert ids.shape == mask.shape == (3, 9) and len(response) == 3
    for row, row_mask, prompt in zip(ids.tolist(), mask.tolist(), PROMPTS):
        padding = 9 - len(prompt)
        assert row == [tokenizer.pad_token_id] * padding + prompt
        assert row_mask == [0] * padding + [1] * len(prompt)


@pytest.mark.parametrize("end", [0, 1])
def test_any_of_the_end_tokens_stops_a_response(lesson3, qwen3, end):
    model, tokenizer = lesson3.load_causal_lm(qwen3)
    prefer(model, end, 1000.)
    response = lesson3.generate(model, tokenizer, PROMPTS, 5)[2]
    assert response.tolist() == [[end]] * 3


def test_nothing_but_padding_follows_an_end_token(lesson3, qwen3):
    model, tokenizer = lesson3.load_causal_lm(qwen3)
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


# ---- Log-probabilities: the policy that sampled is the policy that is scored --------------------


def constant_score(ids, mask, texts, rows=None):
    return torch.zeros(len(ids))


def make_rollout(lesson, model, tokenizer, config, reference=None, score=constant_score):
    """(policy, rollout) of lesson 3 or 4 for PROMPTS: 12 responses."""
    torch.manual_seed(0)
    if hasattr(lesson, "sample_groups"):
        data = Dataset.from_dict({"instruction": ["a", "b", "c"], "prompt_ids": PROMPTS})
        config.group_size = 4
        rollout = lesson.sample_groups(
            model, reference, score, tokenizer, data, [0, 1, 2], config)
        return model, rollout
    policy = lesson.CausalLMWithValueHead(model)
    rollout = lesson.sample_responses(
        policy, reference or model, score, tokenizer, PROMPTS * 4, config)
    rollout.advantages = torch.randn(rollout.mask.shape) * rollout.mask
    rollout.returns = torch.randn(rollout.mask.shape) * rollout.mask
    return policy, rollout


def test_rollout_logprobs_are_the_samplers(ppo_or_grpo, hub_model, monkeypatch):
    lesson = ppo_or_grpo
    model, tokenizer = lesson.load_causal_lm(hub_model)
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
    model, tokenizer = lesson.load_causal_lm(hub_model)
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
    assert not any(module.training for module in policy.modules()
                   if isinstance(module, torch.nn.Dropout))


def test_logprobs_do_not_move_with_padding(ppo_or_grpo, hub_model):
    lesson = ppo_or_grpo
    model, tokenizer = lesson.load_causal_lm(hub_model)
    response = torch.tensor([[70, 71, 0]])

    def logprobs(prompt, left, right):
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * left + prompt + [70, 71, 0] + [pad] * right])
        mask = torch.tensor([[0] * left + [1] * (len(prompt) + 3) + [0] * right])
        logits = lesson.response_output(model, ids, mask, 3 + right).logits
        return lesson.response_logprobs(logits[:, :4], response)

    with torch.no_grad():
        alone = model(torch.tensor([PROMPTS[0] + [70, 71, 0]])).logits[:, 2:]
        expected = alone.log_softmax(-1)[0, range(3), response[0]]
        for left, right in (0, 0), (7, 0), (0, 5), (9, 2):
            close(logprobs(PROMPTS[0], left, right)[0], expected, 1e-4)


def test_what_follows_the_end_token_cannot_reach_the_loss(ppo_or_grpo, gpt2, accelerator):
    lesson = ppo_or_grpo
    model, tokenizer = lesson.load_causal_lm(gpt2)
    prefer(model, 0, 4.)
    config = make_config(lesson, batch_size=12, ppo_epochs=1)
    policy, rollout = make_rollout(lesson, model, tokenizer, config)
    stats = []
    for noise in 0, 250:
        noisy, length = copy.deepcopy(rollout), rollout.response.shape[1]
        padding = noisy.mask == 0
        noisy.response[padding] = noisy.ids[:, -length:][padding] = noise
        stats.append(update(lesson, copy.deepcopy(policy), noisy, config, accelerator))
    assert stats[0] == pytest.approx(stats[1], abs=1e-6)


# ---- Lesson 1 -----------------------------------------------------------------------------------


WORLD = {"instruction": ["Say tea.", "Say it.", "Say it again, please, and at length."] * 3,
         "input": ["", "milk", ""] * 3, "output": ["tea", "milk and more", "?"] * 3}


def test_sft_examples_mask_the_prompt_and_train_the_end_token(lesson1, hub_model):
    tokenizer = lesson1.load_causal_lm(hub_model)[1]
    config = lesson1.Config(device="cpu", max_prompt_length=200, max_new_tokens=4)
    rows = lesson1.tokenize_examples(Dataset.from_dict(WORLD), tokenizer, config)
    for row, instruction, input, output in zip(rows, *WORLD.values()):
        prompt = tokenizer.encode(lesson1.format_prompt(instruction, input))
        answer = (tokenizer.encode(output) + [tokenizer.eos_token_id])[:4]
        assert row["input_ids"] == prompt + answer
        assert row["labels"] == [-100] * len(prompt) + answer
        assert row["num_labels"] == len(answer)  # what the loss counts: none is lost to the shift


def test_packed_text_counts_the_labels_that_the_loss_counts(lesson1, gpt2):
    tokenizer = lesson1.load_causal_lm(gpt2)[1]
    rows = lesson1.pack_text("the story was lovely " * 20, tokenizer, 16)
    assert len(rows) > 1 and {len(ids) for ids in rows["input_ids"]} == {16}
    assert set(rows["num_labels"]) == {15} and rows["labels"] == rows["input_ids"]


def test_prompts_that_are_too_long_are_left_out(lesson1, gpt2, capsys):
    tokenizer = lesson1.load_causal_lm(gpt2)[1]
    short = len(tokenizer.encode(lesson1.format_prompt("Say tea.")))
    config = lesson1.Config(device="cpu", max_prompt_length=short)
    assert len(lesson1.tokenize_examples(Dataset.from_dict(WORLD), tokenizer, config)) == 3
    assert "6 of 9" in capsys.readouterr().out
    config.max_prompt_length = 1
    with pytest.raises(SystemExit):
        lesson1.tokenize_examples(Dataset.from_dict(WORLD), tokenizer, config)


def test_a_prompt_may_have_an_input(lesson1, gpt2, monkeypatch):
    model, tokenizer = lesson1.load_causal_lm(gpt2)
    asked = []

    def generate(model, tokenizer, prompts, max_new_tokens, temperature):
        assert temperature == 0  # a sum that is right 9 times of 10 should not be drawn
        asked.extend(tokenizer.batch_decode(prompts))
        return None, None, torch.tensor([[5]])

    monkeypatch.setattr(lesson1, "generate", generate)
    for prompt in "Say tea.", "Translate: | I | you.":
        lesson1.chat(model, tokenizer, lesson1.Config(prompt=prompt))
    assert asked == [lesson1.format_prompt("Say tea."),
                     lesson1.format_prompt("Translate:", "I | you.")]


def test_every_row_is_in_one_batch_of_an_epoch(lesson1):
    lengths = [random.Random(0).randrange(50) for _ in range(103)]
    for bucket in 1, 4:
        batches = lesson1.bucketed_batches(lengths, 8, bucket, "0 0")
        assert sorted(sum(batches, [])) == list(range(103))
        assert sorted(map(len, batches)) == [7] + [8] * 12
        assert batches != lesson1.bucketed_batches(lengths, 8, bucket, "0 1")


@pytest.fixture
def keep_ctrl_c():
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_the_steps_of_a_run(lesson1, accelerator, tmp_path, keep_ctrl_c):
    """Ctrl-C waits for the end of a step, but not for that of the closing evaluation; and a step
    draws the same whether the run was interrupted before it or not."""
    run, draws = lesson1.Run(tmp_path, lesson1.Config(device="cpu"), accelerator), {}
    for step in run.steps(3):
        assert signal.getsignal(signal.SIGINT) == run.interrupt
        draws[step] = torch.rand(1).item()
    assert list(draws) == [1, 2, 3] and len(set(draws.values())) == 3
    assert signal.getsignal(signal.SIGINT) == lesson1.stop
    run.step = 2
    assert {step: torch.rand(1).item() for step in run.steps(3)} == {3: draws[3]}


def test_a_loss_that_is_no_number_does_not_stop_the_closing(lesson1, accelerator, tmp_path, capsys):
    run = lesson1.Run(tmp_path, lesson1.Config(device="cpu"), accelerator)
    run.rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    run.close("loss", {"loss": 2.0}, {"loss": 1.0}, [("Say tea.", {"tuned": "Tea."})])
    assert "loss: 2.00" in capsys.readouterr().out
    assert "Tea." in (tmp_path / "samples.md").read_text()


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_sft_with_micro_batches_is_sft(lesson1, gpt2, accelerator, tmp_path, keep_ctrl_c):
    """Ragged answers, and a last micro-batch that is smaller."""
    results = []
    for size in 64, 2:
        model, tokenizer = lesson1.load_causal_lm(gpt2)
        config = lesson1.Config(device="cpu", model=gpt2, steps=3, batch_size=5, warmup_steps=0,
                                micro_batch_size=size, max_prompt_length=200, learning_rate=1e-3)
        rows = lesson1.tokenize_examples(Dataset.from_dict(WORLD), tokenizer, config)
        folder = tmp_path / str(size)
        folder.mkdir()
        run = lesson1.train_sft(model, tokenizer, rows, rows, folder, config, accelerator)
        results.append((run.rows, weights(model)))
        assert (folder / "model").is_dir()
    (rows, trained), (same_rows, same_trained) = results
    for row, same_row in zip(rows, same_rows):
        assert row == pytest.approx(same_row, rel=1e-4)
    assert (trained - same_trained).abs().mean() < 1e-6  # Adam blows up rounding here and there
    assert (trained - weights(lesson1.load_causal_lm(gpt2)[0])).abs().mean() > 1e-4


def test_held_out_loss_is_a_mean_over_tokens(lesson1, gpt2, accelerator):
    model, tokenizer = lesson1.load_causal_lm(gpt2)
    config = lesson1.Config(device="cpu", max_prompt_length=200, micro_batch_size=2)
    rows = lesson1.tokenize_examples(Dataset.from_dict(WORLD), tokenizer, config)
    losses = []
    for row in rows:
        with torch.no_grad():
            logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        losses += [-logprobs[t - 1, label].item() for t, label in enumerate(row["labels"])
                   if label != -100]
    loss = lesson1.held_out_loss(model, rows, tokenizer, config, accelerator)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


# ---- Lesson 2: reward models --------------------------------------------------------------------


ANSWERS = [[40, 41, 0], [50, 51, 52, 53, 54, 55, 0], [60, 0], [70, 71, 72, 73]]


@torch.no_grad()
def test_scores_do_not_move_with_padding_or_order(lesson2, hub_model):
    model, tokenizer = lesson2.load_reward_model(hub_model)
    alone = torch.cat([lesson2.score_answers(model, tokenizer, [ids]) for ids in ANSWERS])
    assert alone.std() > 0.1
    close(lesson2.score_answers(model, tokenizer, ANSWERS), alone)
    close(lesson2.score_answers(model, tokenizer, ANSWERS[::-1]), alone.flip(0))
    close(lesson2.score_answers(model, tokenizer, ANSWERS[:1] + [[80] * 50])[:1], alone[:1])


@torch.no_grad()
def test_scores_are_read_at_the_end_token(lesson2, hub_model):
    """They equal the score of the hidden state there, and transformers' own logits."""
    model, tokenizer = lesson2.load_reward_model(hub_model)
    scores = lesson2.score_answers(model, tokenizer, ANSWERS)
    for ids, score in zip(ANSWERS, scores):
        states = model.base_model(torch.tensor([ids])).last_hidden_state
        close(score, model.score(states[:, -1])[0, 0])
    batch = tokenizer.pad({"input_ids": ANSWERS}, padding_side="right", return_tensors="pt")
    close(scores, model(**batch).logits[:, 0])


@pytest.mark.parametrize("lesson_name", ["lesson3", "lesson4"])
@torch.no_grad()
def test_the_policys_score_is_lesson_2s(lesson2, lesson_name, hub_model, tmp_path, request):
    """The policy's batch is padded on the left and on the right, lesson 2's on the right alone."""
    lesson = request.getfixturevalue(lesson_name)
    model, tokenizer = lesson2.load_reward_model(hub_model)
    raw = lesson2.score_answers(
        model, tokenizer, [p + a for p, a in zip(PROMPTS + PROMPTS[:1], ANSWERS)])
    model.config.score_mean, model.config.score_std = 0.3, 2.0
    lesson2.save_model(model, tokenizer, tmp_path / "model")
    policy_tokenizer = lesson.load_causal_lm(hub_model)[1]
    score = lesson.load_score(lesson.Config(reward=str(tmp_path)), policy_tokenizer, "cpu")
    pad, rows, masks = tokenizer.pad_token_id, [], []
    for prompt, answer in zip(PROMPTS + PROMPTS[:1], ANSWERS):
        left, right = 9 - len(prompt), 7 - len(answer)
        rows.append([pad] * left + prompt + answer + [pad] * right)
        masks.append([0] * left + [1] * len(prompt + answer) + [0] * right)
    close(score(torch.tensor(rows), torch.tensor(masks), None), (raw - 0.3) / 2)


def test_reward_model_of_another_tokenizer_is_refused(lesson2, lesson3, gpt2, qwen3, tmp_path):
    model, reward_tokenizer = lesson2.load_reward_model(gpt2)
    model.config.score_mean, model.config.score_std = 0.0, 1.0
    lesson2.save_model(model, reward_tokenizer, tmp_path / "model")
    tokenizer = lesson3.load_causal_lm(gpt2)[1]
    config = lesson3.Config(reward=str(tmp_path))
    lesson3.load_score(config, tokenizer, "cpu")
    tokenizer.add_tokens(["another"])
    with pytest.raises(SystemExit):
        lesson3.load_score(config, tokenizer, "cpu")


def test_a_language_model_is_no_reward_model(lesson3, gpt2, tmp_path, capsys):
    """transformers would give it a random head, and say so where nobody looks."""
    model, tokenizer = lesson3.load_causal_lm(gpt2)
    lesson3.save_model(model, tokenizer, tmp_path / "model")
    with pytest.raises(SystemExit) as stopped:
        lesson3.load_score(lesson3.Config(reward=str(tmp_path)), tokenizer, "cpu")
    assert stopped.value.code == 2
    assert "no reward model of lesson 2" in capsys.readouterr().err


def test_policy_and_reward_model_of_one_hub_model_agree_on_the_pad_token(
        lesson2, lesson3, tmp_path):
    """As in Qwen3's chat models: the pad token is the second of two end tokens."""
    folder = save_tiny_model(
        tmp_path / "hub", "qwen3", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = lesson3.load_causal_lm(folder)[1]
    model, reward_tokenizer = lesson2.load_reward_model(folder)
    assert reward_tokenizer.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    assert reward_tokenizer.get_vocab() == tokenizer.get_vocab()


def test_pairs_that_are_equal_once_cut_are_left_out(lesson2, hub_model, capsys):
    tokenizer = lesson2.load_reward_model(hub_model)[1]
    pairs = Dataset.from_dict({"instruction": ["A?", "B?", "C?"], "chosen": ["xyzzy1", "1", "no"],
                               "rejected": ["xyzzy2", "2", "no"]})
    config = lesson2.Config(device="cpu", max_prompt_length=200, max_new_tokens=5)
    rows = lesson2.tokenize_pairs(pairs, tokenizer, config)
    assert rows["instruction"] == ["B?"] and "2 of 3" in capsys.readouterr().out
    prompt, end = tokenizer.encode(lesson2.format_prompt("B?")), tokenizer.eos_token_id
    assert rows[0]["chosen_ids"] == prompt + tokenizer.encode("1") + [end]
    assert rows[0]["rejected_ids"] == prompt + tokenizer.encode("2") + [end]
    config.max_new_tokens = 7
    assert len(lesson2.tokenize_pairs(pairs, tokenizer, config)) == 2


def train_rewards(lesson2, folder, source, accelerator, **settings):
    model, tokenizer = lesson2.load_reward_model(source)
    config = lesson2.Config(**{**dict(device="cpu", model=source, batch_size=5, warmup_steps=0,
                                      max_prompt_length=200, learning_rate=1e-3), **settings})
    rng = random.Random(0)
    pairs = Dataset.from_list([
        {"instruction": "A?", "chosen": "good " * rng.randint(1, 5), "rejected": "bad"}
        for _ in range(8)])
    rows = lesson2.tokenize_pairs(pairs, tokenizer, config)
    folder.mkdir()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = lesson2.train_reward_model(model, tokenizer, rows, folder, config, accelerator)
    changed = {name for name, weight in model.named_parameters()
               if not torch.equal(weight, before[name])}
    return run, model, changed


def test_reward_training_with_micro_batches_is_the_same(
        lesson2, gpt2, accelerator, tmp_path, keep_ctrl_c):
    torch.manual_seed(0)
    one, model, _ = train_rewards(lesson2, tmp_path / "a", gpt2, accelerator)
    torch.manual_seed(0)
    many, same, _ = train_rewards(lesson2, tmp_path / "b", gpt2, accelerator, micro_batch_size=2)
    assert len(one.rows) == 2  # 5 pairs and then 3
    for row, same_row in zip(one.rows, many.rows):
        assert row == pytest.approx(same_row, rel=1e-4)
    assert (weights(model) - weights(same)).abs().mean() < 1e-6


def test_freeze_backbone_trains_the_score_head_alone(
        lesson2, gpt2, accelerator, tmp_path, keep_ctrl_c):
    changed = train_rewards(
        lesson2, tmp_path / "a", gpt2, accelerator, freeze_backbone=True)[2]
    assert changed == {"score.weight"}


# ---- Lesson 3 -----------------------------------------------------------------------------------


@torch.no_grad()
def test_value_head_begins_at_zero_and_reads_what_the_lm_head_reads(lesson3, hub_model):
    lm = shake(lesson3.load_causal_lm(hub_model)[0], 0.3)  # so that a second norm would be seen
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


def test_value_loss_trains_the_value_head(lesson3, gpt2, accelerator):
    model, tokenizer = lesson3.load_causal_lm(gpt2)
    config = make_config(lesson3)
    policy, rollout = make_rollout(lesson3, model, tokenizer, config)
    update(lesson3, policy, rollout, config, accelerator)
    assert policy.value_head.weight.abs().max() > 0


def test_whitening_on_one_process_is_masked_whitening(lesson3, accelerator):
    x, mask = torch.randn(4, 6), (torch.arange(6) < torch.tensor([[6], [1], [0], [3]])).float()
    assert torch.equal(lesson3.whiten_over_processes(x, mask, accelerator),
                       lesson3.masked_whiten(x, mask))


@pytest.mark.parametrize("end", [0, 1])
def test_a_response_without_an_end_pays_the_penalty(ppo_or_grpo, qwen3, end):
    lesson = ppo_or_grpo
    model, tokenizer = lesson.load_causal_lm(qwen3)
    prefer(model, end, 5.)
    config = make_config(lesson, missing_eos_penalty=0.75)
    rollout = make_rollout(lesson, model, tokenizer, config,
                           score=lambda ids, *_: torch.full((len(ids),), 2.))[1]
    ended = [end in row for row in rollout.response.tolist()]
    assert 0 < sum(ended) < 12
    assert rollout.ended.tolist() == ended
    paid = rollout.scores if lesson.__name__ == "lesson3_ppo" else rollout.rewards
    close(paid, [2. if has_end else 1.25 for has_end in ended])


def ppo_step(lesson3, folder, accelerator, monkeypatch, **settings):
    """One step from a policy that is not the reference -> (stats, the rollout it learned from)."""
    model, tokenizer = lesson3.load_causal_lm(folder)
    prefer(model, 0, 4.)  # so that some responses are shorter
    reference = copy.deepcopy(model)
    policy = lesson3.CausalLMWithValueHead(shake(model))
    config = make_config(lesson3, gamma=1.0, lam=1.0, missing_eos_penalty=0.0, **settings)
    calls = record(monkeypatch, lesson3, "ppo_update")
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    torch.manual_seed(0)
    stats = lesson3.ppo_step(
        policy, reference, lambda ids, mask, texts: torch.arange(12.), tokenizer, PROMPTS * 4,
        optimizer, config.kl_coef, config, accelerator)
    return stats, calls[0][0][2]


@pytest.mark.parametrize("kl_in", ["reward", "loss", "old"])
def test_the_penalty_is_in_the_reward_only_where_it_is_asked_for(
        lesson3, gpt2, accelerator, monkeypatch, kl_in):
    """Gamma and lambda are 1 and the values 0, so that the return is the sum of what comes."""
    rollout = ppo_step(lesson3, gpt2, accelerator, monkeypatch, kl_in=kl_in, kl_coef=0.5)[1]
    kl = (rollout.logprobs - rollout.ref_logprobs) * rollout.mask
    assert kl.abs().max() > 1e-3
    still_to_come = kl.flip(1).cumsum(1).flip(1)
    weight = 0.5 if kl_in == "reward" else 0.0
    expected = (torch.arange(12.).unsqueeze(1) - weight * still_to_come) * rollout.mask
    close(rollout.returns, expected)  # not those of the whitened advantages


def test_explained_variance_of_equal_returns_is_a_number(lesson3, gpt2, accelerator):
    model, tokenizer = lesson3.load_causal_lm(gpt2)
    config = make_config(lesson3, kl_coef=0.0, missing_eos_penalty=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stats = lesson3.ppo_step(
        lesson3.CausalLMWithValueHead(model), model, constant_score, tokenizer, PROMPTS * 4,
        optimizer, 0.0, config, accelerator)
    assert all(torch.isfinite(torch.tensor(list(stats.values()))))


def test_explained_variance_looks_at_real_tokens(lesson3, accelerator):
    """Returns 0, 2, 4 have variance 8/3, errors 1, -1, 0 have 2/3: a quarter is unexplained."""
    rollout = SimpleNamespace(values=torch.tensor([[-1., 3., 50.], [4., 50., 50.]]),
                              returns=torch.tensor([[0., 2., 0.], [4., 0., 0.]]),
                              mask=torch.tensor([[1., 1., 0.], [1., 0., 0.]]))
    assert lesson3.explained_variance(rollout, accelerator) == pytest.approx(0.75)


def test_advantages_are_white_over_the_whole_batch(lesson3, gpt2, accelerator, monkeypatch):
    rollout = ppo_step(lesson3, gpt2, accelerator, monkeypatch)[1]
    advantages = rollout.advantages[rollout.mask.bool()]
    close(advantages.mean(), 0., 1e-4)
    close(advantages.std(), 1., 1e-4)
    raw = (rollout.returns - rollout.values)[rollout.mask.bool()]
    close(advantages, (raw - raw.mean()) / raw.std(), 1e-4)


@pytest.mark.parametrize("kl_in", ["reward", "loss", "old"])
def test_the_penalty_in_the_loss(lesson3, gpt2, accelerator, monkeypatch, kl_in):
    """k3 to the reference, or to the policy that sampled, which is by now another one."""
    model, tokenizer = lesson3.load_causal_lm(gpt2)
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


def test_loss_is_the_sum_of_its_weighted_parts(lesson3, gpt2, accelerator):
    model, tokenizer = lesson3.load_causal_lm(gpt2)
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


def test_ppo_step_reports_the_rollout(lesson3, gpt2, accelerator, monkeypatch):
    stats, rollout = ppo_step(lesson3, gpt2, accelerator, monkeypatch, kl_coef=0.0)
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
    assert stats["kl/coef"] == 0.0


def test_reported_numbers_are_means_over_all_minibatches(
        ppo_or_grpo, gpt2, accelerator, monkeypatch):
    """12 samples, minibatches of 6 in micro-batches of 4 and 2, 3 epochs."""
    lesson = ppo_or_grpo
    model, tokenizer = lesson.load_causal_lm(gpt2)
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
    model, tokenizer = lesson.load_causal_lm(gpt2)
    prefer(model, 0, 4.)
    settings = {"average": average} if average else {"entropy_coef": 0.1, "kl_in": "loss"}
    config = make_config(lesson, ppo_epochs=2, kl_coef=0.1, **settings)
    policy, rollout = make_rollout(
        lesson, model, tokenizer, config, reference=shake(copy.deepcopy(model)))
    rollout.advantages = torch.randn(rollout.advantages.shape)
    results = []
    for config.micro_batch_size in 12, 4, 1:
        learner = copy.deepcopy(policy)
        stats = update(lesson, learner, rollout, config, accelerator)
        results.append((stats, weights(learner)))
    for stats, learned in results[1:]:
        assert stats == pytest.approx(results[0][0], rel=1e-3, abs=1e-5)
        close(learned, results[0][1], 1e-4)
    assert (results[0][1] - weights(policy)).abs().max() > 1e-3


def test_epochs_stop_when_the_policy_has_moved_too_far(lesson3, gpt2, accelerator, monkeypatch):
    model, tokenizer = lesson3.load_causal_lm(gpt2)
    calls = record(monkeypatch, lesson3, "ppo_loss")
    for max_kl, passes in (0.0, 4), (1e9, 4), (1e-9, 1):
        config = make_config(lesson3, max_kl=max_kl, micro_batch_size=12)
        policy, rollout = make_rollout(lesson3, copy.deepcopy(model), tokenizer, config)
        calls.clear()
        update(lesson3, policy, rollout, config, accelerator)
        assert len(calls) == passes * 2


# ---- Lesson 4 -----------------------------------------------------------------------------------


def test_a_group_is_a_row_even_when_prompts_are_equal(lesson4, gpt2):
    model, tokenizer = lesson4.load_causal_lm(gpt2)
    data = Dataset.from_dict({"instruction": ["a", "b", "a"],
                              "prompt_ids": [PROMPTS[0], PROMPTS[1], PROMPTS[0]]})
    config = make_config(lesson4, group_size=2, scale="none", missing_eos_penalty=0.0)
    asked = []

    def reward(ids, mask, texts, rows):
        asked.append((rows["instruction"], [row[-len(p):] for row, p in zip(
            ids[:, :9].tolist(), rows["prompt_ids"])], rows["prompt_ids"]))
        return torch.tensor([0., 1., 0., 8., 5., 15., 3., 3.])

    rollout = lesson4.sample_groups(
        model, None, reward, tokenizer, data, [0, 1, 2, 0], config)
    assert rollout.advantages.tolist() == [-.5, .5, -4., 4., -5., 5., 0., 0.]
    instructions, prompts, expected = asked[0]
    assert instructions == list("aabbaaaa") and prompts == expected


def grpo_step(lesson4, folder, accelerator, rewards, **settings):
    model, tokenizer = lesson4.load_causal_lm(folder)
    config = make_config(lesson4, group_size=4, missing_eos_penalty=0.0, **settings)
    data = Dataset.from_dict({"instruction": ["a", "b", "c"], "prompt_ids": PROMPTS})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    reference = copy.deepcopy(model) if config.kl_coef else None
    torch.manual_seed(0)
    return model, lesson4.grpo_step(
        model, reference, lambda *_: torch.tensor(rewards), tokenizer, data, [0, 1, 2], optimizer,
        config, accelerator)


SPREAD = [0., 1., 0., 0., 3., 1., 2., 2., 0., 0., 1., 1.]
ONE_GROUP = [1.] * 4 + [0., 0., 1., 0.] + [0.] * 4


def test_grpos_first_loss_is_zero_and_its_gradient_is_not(lesson4, gpt2, accelerator):
    stats = grpo_step(lesson4, gpt2, accelerator, SPREAD, batch_size=12, ppo_epochs=1)[1]
    assert stats["loss/grpo"] == pytest.approx(0., abs=1e-5)
    assert stats["kl/approx"] == pytest.approx(0., abs=1e-8)
    assert stats["grad_norm"] > 0.01


def test_groups_without_spread_are_left_out_and_counted(
        lesson4, gpt2, accelerator, monkeypatch):
    calls = record(monkeypatch, lesson4, "grpo_update")
    for drop, rows in (True, 4), (False, 12):
        stats = grpo_step(lesson4, gpt2, accelerator, ONE_GROUP, drop_uninformative=drop)[1]
        rollout = calls[-1][0][2]
        assert len(rollout.ids) == len(rollout.advantages) == len(rollout.mask) == rows
        assert stats["group/zero_std"] == pytest.approx(2 / 3)
        assert stats["reward/avg"] == pytest.approx(5 / 12)
        assert stats["reward/std"] == pytest.approx(0.5 / 3)  # 0, sqrt(3/4/3) and 0
    assert calls[0][0][2].rewards.tolist() == [0., 0., 1., 0.]


def test_few_groups_left_for_many_minibatches(lesson4, gpt2, accelerator):
    model, stats = grpo_step(lesson4, gpt2, accelerator, ONE_GROUP, batch_size=2)  # 6, of 4 rows
    assert all(torch.isfinite(torch.tensor(list(stats.values()))))
    assert torch.isfinite(weights(model)).all()


def test_grpo_step_without_any_spread_stays_finite(lesson4, gpt2, accelerator):
    model, stats = grpo_step(lesson4, gpt2, accelerator, [1.] * 12)
    assert stats["group/zero_std"] == 1.0 and stats["loss/grpo"] == pytest.approx(0., abs=1e-4)
    assert torch.isfinite(weights(model)).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize("kl_coef", ["0", "0.01"])
def test_without_a_kl_coefficient_no_reference_is_kept(
        lesson4, gpt2, tmp_path, monkeypatch, kl_coef):
    kept = []

    def train_grpo(policy, reference, *rest):
        kept.append(reference)
        raise Stop

    monkeypatch.setattr(lesson4, "train_grpo", train_grpo)
    monkeypatch.setattr(lesson4, "evaluate", lambda *_: ({}, []))
    monkeypatch.setattr("sys.argv", ["lesson4_grpo.py", "--model", gpt2, "--runs_dir",
                                     str(tmp_path), "--device", "cpu", "--kl_coef", kl_coef])
    with pytest.raises(Stop):
        lesson4.main()
    if kl_coef == "0":
        assert kept == [None]
    else:
        assert not any(weight.requires_grad for weight in kept[0].parameters())


def test_without_a_reference_no_kl_from_it_is_reported(lesson4, gpt2, accelerator):
    stats = grpo_step(lesson4, gpt2, accelerator, SPREAD, kl_coef=0.0)[1]
    assert stats["kl/approx"] > 0
    assert "kl/ref" not in stats


def test_kl_from_the_reference_is_reported(lesson4, gpt2, accelerator):
    stats = grpo_step(lesson4, gpt2, accelerator, SPREAD, kl_coef=0.1)[1]
    assert stats["kl/ref"] > 0


REWARDS = '''
def length(prompts, responses, answer, **columns):
    assert set(columns) == {"instruction"}, columns
    return [len(r) + 10 * int(a) + 100 * len(p) for p, r, a in zip(prompts, responses, answer)]

def too_few(prompts, responses, **columns):
    return [1.0]
'''


def test_reward_function_from_a_file_gets_prompts_responses_and_columns(lesson4, tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARDS)
    rows = {"instruction": ["ab", "abc"], "answer": ["1", "2"], "prompt_ids": [[1], [2]]}
    reward = lesson4.load_grpo_reward(lesson4.Config(reward=f"{file}:length"), None, "cpu")
    rewards = reward(None, None, ["x", "xyz"], rows)
    assert rewards.tolist() == [211., 323.] and rewards.dtype == torch.float32
    reward = lesson4.load_grpo_reward(lesson4.Config(reward=f"{file}:too_few"), None, "cpu")
    for bad in (lambda: reward(None, None, ["x", "xyz"], rows),
                lambda: lesson4.load_grpo_reward(lesson4.Config(reward=f"{file}:x"), None, "cpu"),
                lambda: lesson4.load_grpo_reward(
                    lesson4.Config(reward=f"{file}x.py:f"), None, "cpu")):
        with pytest.raises(SystemExit) as error:
            bad()
        assert error.value.code == 2


def test_sum_reward_reads_the_instruction(lesson4):
    reward = lesson4.load_grpo_reward(lesson4.Config(), None, "cpu")
    rows = {"instruction": ["What is 1 + 2?", "What is 3 + 4?"]}
    assert reward(None, None, ["3", "3"], rows).tolist() == [1., 0.]


def test_evaluation_counts_right_samples(lesson4, gpt2, monkeypatch):
    """Two prompts, 2k samples each: of the first all are right, of the second two."""
    model, tokenizer = lesson4.load_causal_lm(gpt2)
    data = Dataset.from_dict({"instruction": ["a", "b"], "prompt_ids": PROMPTS[:2]})
    config = make_config(lesson4, reward="sum", pass_k=2)

    answers = iter([[0., 1.], [1., 0.], [1., 1.], [1., 1.], [1., 0.]])  # the greedy ones first
    drawn = []

    def reward(ids, mask, texts, rows):
        assert mask.shape == ids.shape and len(texts) == 2  # never all samples at once
        drawn.append(ids.tolist())
        return torch.tensor(next(answers))

    numbers, texts = lesson4.evaluate(model, reward, tokenizer, data, config)
    assert numbers["accuracy/greedy"] == 0.5 and numbers["accuracy/sampled"] == 0.75
    assert numbers["accuracy/pass@k"] == pytest.approx((1 + 5 / 6) / 2)  # 1 - 1 / C(4, 2)
    assert len(texts) == 2
    assert len(set(map(str, drawn))) == 5  # no sample is another one's copy
