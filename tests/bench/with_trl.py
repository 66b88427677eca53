"""TRL's trainers with the same settings. Its logging, saving, evaluation, gradient checkpointing
and bfloat16 (the last two are on by default) are off, unless the job says bf16."""

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import TrainerCallback
from work import Meter, load_lesson, number_reward, read_rows


class Clock(TrainerCallback):
    """A tick at the beginning and at the end of every step of `every` optimiser steps."""

    def __init__(self, meter, every):
        self.meter, self.every = meter, every

    def on_train_begin(self, *_, **__):
        self.meter.tick()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every == 0:
            self.meter.tick()

    def on_log(self, args, state, control, logs=None, **_):
        if "objective/scores" in (logs or {}):  # PPO; GRPO's reward function keeps them itself
            self.meter.rewards.append(logs["objective/scores"])


def common(job, **more):
    return dict(
        output_dir=job["folder"] + "/trl", per_device_train_batch_size=job["batch_size"],
        learning_rate=job["learning_rate"], seed=job["seed"], bf16=job["bf16"],
        use_cpu=job["device"] == "cpu", gradient_checkpointing=False, report_to="none",
        logging_strategy="no", save_strategy="no", eval_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=job["device"] != "cpu") | more


def data(job, names, file):
    """The columns `names` (theirs: ours) of the file."""
    return Dataset.from_list([{theirs: row[ours] for theirs, ours in names.items()}
                              for row in read_rows(job[file])])


def sft(job, clock, model, tokenizer):
    from trl import SFTConfig, SFTTrainer
    args = SFTConfig(**common(job, max_steps=job["steps"], lr_scheduler_type="cosine",
                              weight_decay=0.01, model_init_kwargs={"dtype": "float32"}))
    return SFTTrainer(model, args, processing_class=tokenizer, callbacks=[clock],
                      train_dataset=data(job, {"prompt": "prompt", "completion": "output"},
                                         "train"))


def reward(job, clock, model, tokenizer):
    from trl import RewardConfig, RewardTrainer
    args = RewardConfig(**common(job, max_steps=job["steps"], lr_scheduler_type="cosine",
                                 weight_decay=0.01, center_rewards_coefficient=0.01,
                                 model_init_kwargs={"dtype": "float32"}))
    names = {name: name for name in ("prompt", "chosen", "rejected")}
    return RewardTrainer(model, args, processing_class=tokenizer, callbacks=[clock],
                         train_dataset=data(job, names, "train"))


def grpo(job, clock, model, tokenizer):
    """One optimiser step a minibatch of samples; the loss is averaged as lesson 4 does."""
    from trl import GRPOConfig, GRPOTrainer
    minibatches = job["num_samples"] // job["batch_size"]
    clock.every = minibatches * job["ppo_epochs"]
    args = GRPOConfig(**common(
        job, max_steps=job["steps"] * clock.every, lr_scheduler_type="linear",
        steps_per_generation=minibatches, num_iterations=job["ppo_epochs"],
        num_generations=job["group_size"], max_completion_length=job["length"],
        beta=job["kl_coef"], epsilon=0.2, epsilon_high=0.28, loss_type="grpo",
        model_init_kwargs={"dtype": "float32"}))
    function = number_reward
    if job["reward"] in ("sum", "sentiment"):
        lesson = load_lesson("grpo")
        function = {"sum": lambda prompts, texts: list(map(lesson.sum_reward, prompts, texts)),
                    "sentiment": lambda _, texts: list(map(lesson.sentiment_reward, texts)),
                    }[job["reward"]]

    def rewards(prompts, completions, completion_ids, **_):
        scores = [score - job["missing_eos_penalty"] * (tokenizer.eos_token_id not in ids)
                  for score, ids in zip(function(prompts, completions), completion_ids)]
        clock.meter.rewards.append(sum(scores) / len(scores))
        return scores

    return GRPOTrainer(model, rewards, args, processing_class=tokenizer, callbacks=[clock],
                       train_dataset=data(job, {"prompt": "prompt"}, "data"))


def ppo(job, clock, model, tokenizer):
    """A value model of its own, begun as the reward model, as TRL wants it. The samples of a step
    are one batch: with gradient_accumulation_steps it would take fewer optimiser steps."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    args = PPOConfig(**common(
        job, per_device_train_batch_size=job["num_samples"], lr_scheduler_type="constant",
        num_mini_batches=job["num_samples"] // job["batch_size"], num_ppo_epochs=job["ppo_epochs"],
        total_episodes=job["steps"] * job["num_samples"], response_length=job["length"],
        stop_token="eos", missing_eos_penalty=job["missing_eos_penalty"] or None,
        kl_coef=job["kl_coef"], vf_coef=0.5, temperature=1.0, adam_epsilon=1e-5,
        num_sample_generations=0))
    policy, reference = (AutoModelForCausalLM.from_pretrained(model) for _ in range(2))
    judge, value = (AutoModelForSequenceClassification.from_pretrained(job["reward"] + "/model")
                    for _ in range(2))
    value.base_model.role = "value model"  # it is counted apart
    mean, std = judge.config.score_mean, judge.config.score_std  # as lesson 3 takes them
    weight, judge.score = judge.score.weight.data, torch.nn.Linear(judge.score.in_features, 1)
    judge.score.weight.data, judge.score.bias.data = weight / std, torch.tensor([-mean / std])
    ids = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in read_rows(job["data"])]
    ids = Dataset.from_list(ids * -(-job["num_samples"] // len(ids)))  # at least a batch
    tokenizer.padding_side = "left"
    return PPOTrainer(args, tokenizer, policy, reference, judge, ids, value, eval_dataset=ids,
                      callbacks=[clock])


def main(job):
    clock = Clock(Meter(job), 1)
    tokenizer = AutoTokenizer.from_pretrained(job["model"] + "/model")
    trainer = globals()[job["lesson"]](job, clock, job["model"] + "/model", tokenizer)
    trainer.train()
    clock.meter.save()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
