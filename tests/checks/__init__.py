"""The checks of the exercises, as data (a file an exercise) and the code that judges (core.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "worker"))

from . import ex1_sft, ex2_reward, ex3_ppo, ex4_grpo  # noqa: E402
from .core import Run  # noqa: E402

FILES = ["ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"]
RUNS = [Run(file) for file in FILES]
BLANKS = ex1_sft.BLANKS + ex2_reward.BLANKS + ex3_ppo.BLANKS + ex4_grpo.BLANKS
