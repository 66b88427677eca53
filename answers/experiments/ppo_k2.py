"""Lesson 3 as it is, but that the penalty in its loss has k2's slope in place of k3's.

    python answers/experiments/ppo_k2.py --kl_in loss ...    flags as for lesson 3

The value stays k3's, for the log; what is differentiated is exchanged.
"""

from lab import load_lesson

lesson = load_lesson(3)
original = lesson.kl_penalty


def kl_penalty(logprobs, ref_logprobs, name="k1"):
    value = original(logprobs, ref_logprobs, name)
    if name == "k3" and logprobs.requires_grad:
        slope = original(logprobs, ref_logprobs, "k2")
        value = value.detach() + slope - slope.detach()
    return value


lesson.kl_penalty = kl_penalty
lesson.run_lesson()
