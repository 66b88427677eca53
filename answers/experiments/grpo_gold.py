"""Lesson 4 as it is, and beside it a log of what it must not see: gold.jsonl in the run's folder.

    python answers/experiments/grpo_gold.py --reward runs/reward ...    flags as for lesson 4

A line a step: gold reward, proxy score and KL from the reference (k1, summed over a response), all
means over the step's responses. Lesson 3 logs these itself; lesson 4 has no gold, and without a
penalty (--kl_coef 0) no reference. Nothing that is trained looks at it.
"""

import json

from lab import load_lesson

lesson, world, reference = load_lesson(4), load_lesson(3), []
sample_groups = lesson.sample_groups


def sample_and_measure(lm, reward, tokenizer, rows, config, accelerator):
    rollout = sample_groups(lm, reward, tokenizer, rows, config, accelerator)
    if not reference:  # before the first update the policy is the reference
        reference.append(lesson.make_reference(lm, config))
    policy = lambda *inputs: lesson.response_logits(lm, *inputs)
    logprobs, ref_logprobs = (lesson.all_logprobs(model, rollout, config, accelerator)
                              for model in (policy, reference[0]))
    kl = world.kl_penalty(logprobs, ref_logprobs, "k1") * rollout.mask
    response = rollout.response.where(rollout.mask > 0, tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(response, skip_special_tokens=True)
    gold = sum(map(world.gold_utility, texts)) / len(texts)
    row = {"gold/avg": gold, "reward/avg": rollout.rewards.mean().item(),
           "kl/ref_sum": kl.sum(dim=1).mean().item()}
    with open(lesson.run_folder(config) / "gold.jsonl", "a") as file:  # the folder is a new one
        print(json.dumps(row), file=file)
    return rollout


lesson.sample_groups = sample_and_measure
lesson.run_lesson()
