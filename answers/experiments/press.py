"""Four ways to press a reward model: the runs of experiment 1.

SFT on best-of-n: of every n of the sft model's reviews the best scored one, and lesson 1 goes on
from the sft model with these. (Dong et al. 2023, "RAFT", is this again and again.)
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch
from best_of_n import best_of_n, reward_arm, sample_reviews
from lab import Arm, folder, grpo_arm, load_lesson, ppo_arm, rows, run_arms

BEST, PPO, GRPO, SFT = METHODS = ["best-of-n", "PPO", "GRPO", "SFT on best-of-n"]
GUARDED = "PPO, kl_coef 0.1"  # experiment 2's, with 6,000 pairs
PICKED = 4, 16  # of how many the best one is learned from; --quick has the last alone


def make_runs(sizes, args):
    """{(method, size, seed): rows with KL, score and gold}, and the folders of what was trained. A
    row is a step (PPO, GRPO), an n (best-of-n), or a model (SFT on the best of 4, of 16)."""
    every = list(itertools.product(sizes, args.seeds))
    run_arms([reward_arm(*key) for key in every], args)
    arms = {(GUARDED, 6000, seed): ppo_arm(0.1, seed) for seed in args.seeds}
    for size, seed in every:
        reward = folder(reward_arm(size, seed), args)
        arms[PPO, size, seed] = ppo_arm(0, seed) if size == 6000 else ppo_arm(
            0, seed, f"_{size}", f"--reward={reward}")
        arms[GRPO, size, seed] = grpo_arm(reward, f"kl0_{size}", seed, "--kl_coef=0")
    run_arms(list(arms.values()), args)
    folders = {key: folder(arm, args) for key, arm in arms.items()}
    runs = {key: rows(place, "gold.jsonl" if key[0] == GRPO else "metrics.jsonl")
            for key, place in folders.items()}
    for seed in args.seeds:
        runs |= {(BEST, size, seed): x for size, x in best_of_n(sizes, seed, args).items()}
    models, places = sft_on_best(sizes, args)
    folders |= {(SFT, *key): place for key, place in places.items()}
    return runs | {(SFT, *key): x for key, x in models.items()}, folders


def picked_reviews(size, n, seed, args):
    """What lesson 1 learns from: of every n of a prompt's reviews the best scored -> a file."""
    lesson, found, lines = load_lesson(1), sample_reviews([size], seed, args), []
    scores = found["scores"][size]  # (16, N); the texts are in one list, prompt after prompt
    for i, kind in enumerate(lesson.KINDS):
        for group in torch.arange(scores.shape[1]).split(n):
            place = i * scores.shape[1] + group[scores[i, group].argmax()].item()
            lines.append({"instruction": lesson.review_instruction(kind),
                          "output": found["texts"][place]})
    file = Path(args.runs_dir, f"seed{seed}", f"best{n}_of_{scores.shape[1]}_{size}.jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def sft_on_best(sizes, args):
    """-> {(size, seed): a row for every n in PICKED}, {(size, seed): the last one's folder}. The
    rate was fixed after a trial with seed 0 that looked at the held-out loss alone; lesson 1 keeps
    the weights with the lowest one."""
    arms, picked = {}, PICKED[-1:] if args.quick else PICKED
    for size, seed in itertools.product(sizes, args.seeds):
        model = f"--model={folder(Arm('sft', seed, 1), args)}"
        arms[size, seed] = [Arm(f"sft_best{n}_{size}", seed, 1, [
            model, f"--data={picked_reviews(size, n, seed, args)}", "--steps=100",
            "--learning_rate=5e-4", "--eval_every=20", "--save_every=0"]) for n in picked]
    run_arms([arm for some in arms.values() for arm in some], args)
    return ({(size, seed): [measure(arm, size, args) | {"n": n} for n, arm in zip(picked, some)]
             for (size, seed), some in arms.items()},
            {key: folder(some[-1], args) for key, some in arms.items()})


def measure(arm, size, args):
    """KL from the sft model, score and gold, means over 1,024 reviews, by lesson 3's functions; the
    run's folder keeps them as gold.jsonl."""
    place = folder(arm, args)
    if not (place / "gold.jsonl").is_file():
        lesson, models = load_lesson(3), {}
        config = lesson.Config(reward=str(folder(reward_arm(size, arm.seed), args)))
        for run in (place, folder(Arm("sft", arm.seed, 1), args)):
            models[run], tokenizer = lesson.load_causal_lm(replace(config, model=str(run)))
        lm, sft = models.values()
        torch.manual_seed(arm.seed)
        rollout = lesson.sample_responses(
            lesson.CausalLMWithValueHead(lm), lesson.make_reference(sft, config),
            lesson.load_rewards(config, lesson.REWARDS, tokenizer, lm), tokenizer,
            lesson.load_prompts(config, tokenizer)[0] * 64, config, lesson.Accelerator(cpu=True))
        (place / "gold.jsonl").write_text(json.dumps(lesson.describe(rollout, config)) + "\n")
    return rows(place, "gold.jsonl")[0]
