"""How fast are the lessons? Seconds a step, peak memory and time to the first step of a lesson, of
TRL's trainer and of a bare PyTorch loop, on equal work, which is counted and compared.

    python tests/bench/bench.py                                 ours and the bare loop, tiny models
    python tests/bench/bench.py --trl PYTHON --trl-ppo PYTHON   TRL as well: interpreters with TRL
                                1.16 (SFT, reward, GRPO) and 1.12 (PPO, the last one that has it)
    python tests/bench/bench.py --size tiny small sweep --out tests/bench ...
    python tests/bench/bench.py --learning --runs runs --seeds 0 1 2 ...     rewards by the clock
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from work import LESSONS, PROMPT, load_lesson, make_data, make_model, write_rows

HERE = Path(__file__).resolve().parent
FILES = {"ours": "ours.py", "TRL": "with_trl.py", "bare": "bare.py"}
TINY = dict(kind="gpt2", layers=2, width=128, heads=4, vocabulary=160, batch=32, length=32,
            steps=22, bf16=False)
SMALL = dict(TINY, layers=12, width=768, heads=12, vocabulary=50257, batch=8, steps=6)
SIZES = {"tiny": TINY, "small": SMALL}
SIZES |= {f"{length} x {vocabulary}": dict(TINY, vocabulary=vocabulary, length=length, batch=8,
                                           steps=7 if vocabulary == 160 else 5)
          for vocabulary in (160, 50257) for length in (32, 128, 512)}
# Qwen3 0.6B's shape, for a GPU. Weights in float32 under bfloat16 autocast, everywhere.
SIZES["qwen"] = dict(TINY, kind="qwen3", layers=28, width=1024, heads=16, vocabulary=151936,
                     batch=16, length=256, steps=8, bf16=True)
GRPO = dict(ppo_epochs=1, kl_coef=0.04, group_size=8, missing_eos_penalty=0.0)
PPO = dict(ppo_epochs=4, kl_coef=0.1, max_kl=0.0, missing_eos_penalty=0.0)
MUST_AGREE = "optimiser steps", "trained tokens", "generated tokens"


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["tiny"], choices=[*SIZES, "sweep"])
    parser.add_argument("--lessons", nargs="+", default=list(LESSONS), choices=list(LESSONS))
    parser.add_argument("--steps", type=int, help="the first two and the last are not timed")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contestant, by turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "auto"], help="auto: CUDA")
    parser.add_argument("--micro_batch_size", type=int, help="of ours (default: the lesson's)")
    parser.add_argument("--trl", metavar="PYTHON", help="an interpreter with TRL 1.16")
    parser.add_argument("--trl-ppo", metavar="PYTHON", help="an interpreter with TRL 1.12")
    parser.add_argument("--out", type=Path, help="write results.json, README.md, speed.svg here")
    parser.add_argument("--learning", action="store_true", help="rewards by the clock, not speed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, help="with sft and reward, of lessons 1 and 2")
    args = parser.parse_args()
    args.size = [name for size in args.size
                 for name in ([x for x in SIZES if " x " in x] if size == "sweep" else [size])]
    if args.learning and not (args.runs and (args.runs / "reward/model").is_dir()):
        parser.error("--learning needs --runs, a folder with the runs of lessons 1 and 2")
    if args.steps and args.steps < 3:
        parser.error("--steps must be at least 3: not all of them are timed")
    return args


def run(contestant, python, job):
    """One run of one contestant, a process of its own -> what its Meter wrote."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in "OMP_NUM_THREADS", "MKL_NUM_THREADS":
        environment[name] = str(job["threads"])
    with tempfile.TemporaryDirectory() as folder:
        job = dict(job, folder=folder, out=folder + "/out.json")
        environment["BENCH_START"] = repr(time.time())
        done = subprocess.run([python, HERE / FILES[contestant], json.dumps(job)], cwd=folder,
                              env=environment, capture_output=True, text=True)
        if done.returncode or not Path(job["out"]).is_file():
            sys.exit(f"error: {contestant} failed at {job['lesson']}:\n{done.stderr[-3000:]}")
        return json.loads(Path(job["out"]).read_text())


def contestants(args, lesson):
    """{name: its interpreter}"""
    trl = args.trl_ppo if lesson == "ppo" else args.trl
    return {"ours": sys.executable} | ({"TRL": trl} if trl else {}) | {"bare": sys.executable}


def check(lesson, results):
    """Ends the program unless all did the same work."""
    for name in MUST_AGREE:
        counts = {who: result["total"].get(name, 0) for who, result in results.items()}
        if max(counts.values()) > 1.02 * min(counts.values()):
            sys.exit(f"error: {lesson}: unequal work, {name}: {counts}")


def speed(args, name, folder):
    """All lessons at one size -> {lesson: {contestant: [a result a repetition]}}."""
    size = SIZES[name]
    steps, format_prompt = args.steps or size["steps"], load_lesson("sft").format_prompt
    make_model(folder, size, format_prompt)
    make_data(folder, size, steps, format_prompt)
    results = {}
    for lesson in args.lessons:
        job = dict(lesson=lesson, model=str(folder), length=size["length"], prompt_length=PROMPT,
                   steps=steps, batch_size=size["batch"], num_samples=size["batch"], seed=0,
                   learning_rate=1e-6, bf16=size["bf16"], device=args.device,
                   threads=args.threads, micro_batch_size=args.micro_batch_size,
                   data=str(folder / "prompts.jsonl"))
        if lesson in ("sft", "reward"):
            job |= {"data": f"{folder}/{lesson}.jsonl", "train": f"{folder}/{lesson}_train.jsonl"}
        elif lesson == "ppo":
            job |= PPO | {"batch_size": size["batch"] // 2, "reward": str(folder / "reward")}
        else:
            job |= GRPO | {"reward": str(HERE / "work.py") + ":number_reward"}
        pythons = contestants(args, lesson)
        results[lesson] = {who: [] for who in pythons}
        for repetition in range(args.repeat):
            for who, python in pythons.items():
                result = run(who, python, job)
                seconds = result["seconds"]  # the lesson's last step looks at held-out data
                seconds = seconds[2:-1] or seconds[1:-1] or seconds
                result["median"] = statistics.median(seconds)
                results[lesson][who].append(result)
                print(f"{name}, {lesson}, {who}: {result['median']:.4f} s a step",
                      file=sys.stderr, flush=True)
            check(lesson, {who: runs[-1] for who, runs in results[lesson].items()})
    return results


def learning_jobs(args, folder):
    """{title: job}: the settings of lesson 3 and, on two tasks, of lesson 4, for all contestants.
    Who learns drops no group of equal rewards in TRL: lesson 4 does, as it is set."""
    module, jobs = load_lesson("grpo"), {}
    asked = {"reviews": [f"Write a short review of the {kind} film." for kind in module.KINDS],
             "sums": [f"What is {a} + {b}?" for a, b in module.sums(held_out=False)]}
    for task, instructions in asked.items():
        write_rows(folder / f"{task}.jsonl", [
            {"instruction": x, "prompt": module.format_prompt(x)} for x in instructions])
    shutil.copytree(args.runs / "sft", folder / "sft")
    shutil.copytree(args.runs / "reward", folder / "reward")
    common = dict(model=str(folder / "sft"), bf16=False, device=args.device, threads=args.threads)
    kinds = {"PPO, lesson 2's reward model": ("ppo", {"reward": str(folder / "reward")}, "reviews"),
             "GRPO, good words": ("grpo", {"reward": "sentiment"}, "reviews"),
             "GRPO, sums": ("grpo", {"reward": "sum"}, "sums")}
    for title, (lesson, reward, task) in kinds.items():
        config, keys = load_lesson(lesson).Config(**reward), "steps num_samples batch_size " \
            "ppo_epochs kl_coef learning_rate missing_eos_penalty".split()
        keys += {"ppo": ["max_kl"], "grpo": ["group_size"]}[lesson]
        jobs[title] = common | reward | {key: getattr(config, key) for key in keys} | dict(
            lesson=lesson, length=config.max_new_tokens, data=str(folder / f"{task}.jsonl"))
        jobs[title]["steps"] = args.steps or config.steps
    return jobs


def learning(args, folder):
    """-> {title: {contestant: [a curve a seed: [(seconds since the first step, reward)]]}}."""
    curves = {}
    for title, job in learning_jobs(args, folder).items():
        pythons = contestants(args, job["lesson"])
        del pythons["bare"]  # its settings are not these
        curves[title] = {who: [] for who in pythons}
        for seed in args.seeds:
            for who, python in pythons.items():
                result = run(who, python, dict(job, seed=seed))
                ends = [sum(result["seconds"][:i + 1]) for i in range(len(result["seconds"]))]
                curves[title][who].append(list(zip(ends, result["rewards"])))
                print(f"{title}, {who}, seed {seed}: {result['rewards'][-1]:.2f} after "
                      f"{ends[-1]:.1f} s", file=sys.stderr, flush=True)
    return curves


def main():
    args, results = options(), {}
    file = args.out / "results.json" if args.out else None
    if file:
        args.out.mkdir(parents=True, exist_ok=True)
    if file and file.is_file():  # sizes measured earlier stay
        results = json.loads(file.read_text("utf-8"))
    for name in ["learning"] if args.learning else args.size:
        with tempfile.TemporaryDirectory() as folder:
            measure = learning(args, Path(folder)) if args.learning else \
                speed(args, name, Path(folder))
        results[name] = {"machine": report.machine(args), "results": measure}
        if not args.learning:
            steps = args.steps or SIZES[name]["steps"]
            results[name] |= {"settings": SIZES[name] | {"steps": steps}}
        print(report.learning_table(measure) if args.learning else
              f"## {name}\n\n{report.table(measure)}", flush=True)
        if file:
            file.write_text(json.dumps(results) + "\n", "utf-8")
            report.write(args.out, results)


if __name__ == "__main__":
    main()
