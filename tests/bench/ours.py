"""The lesson itself: its own main(), with settings on the command line. Run.steps is wrapped to
take the time; nothing else of it is touched. It ends after the last step, before its report."""

import json
import sys

from work import Meter, load_lesson

KEYS = {"sft": "steps batch_size learning_rate", "reward": "steps batch_size learning_rate",
        "ppo": "steps num_samples batch_size ppo_epochs learning_rate kl_coef max_kl "
               "missing_eos_penalty",
        "grpo": "steps num_samples batch_size ppo_epochs learning_rate kl_coef "
                "missing_eos_penalty group_size"}


def flags(job):
    """The settings that every contestant has in common, and what keeps to TRL's way: no log, no
    checkpoint, no look at held-out data, and batches that are not sorted among themselves."""
    lesson = job["lesson"]
    settings = {key: job[key] for key in KEYS[lesson].split()}
    settings |= {"model": job["model"], "data": job["data"], "runs_dir": job["folder"],
                 "max_new_tokens": job["length"], "seed": job["seed"], "device": job["device"],
                 "report_to": "none", "save_every": 0}
    settings |= {"sft": {"bucket": 1, "eval_every": 10**6, "warmup_steps": 0},
                 "reward": {"num_held_out": 1, "num_pairs": 10**6, "warmup_steps": 0},
                 "ppo": {"reward": job.get("reward")},
                 "grpo": {"reward": job.get("reward"), "eval_every": 10**6, "pass_k": 1}}[lesson]
    if job.get("micro_batch_size"):
        settings["micro_batch_size"] = job["micro_batch_size"]
    return [f"--{name}={value}" for name, value in settings.items()] + ["--bf16"] * job["bf16"]


def main(job):
    meter = Meter(job)
    lesson = load_lesson(job["lesson"])
    steps = lesson.Run.steps

    def timed_steps(run, total):
        for step in steps(run, total):
            meter.tick()
            yield step
        meter.tick()
        meter.rewards = [row.get("reward/avg") for row in run.rows]
        meter.save()
        sys.exit()

    lesson.Run.steps = timed_steps
    sys.argv = [lesson.__file__, *flags(job)]
    lesson.main()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
