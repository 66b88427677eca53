"""The checks of the exercises, as data (a file an exercise) and the code that judges (core.py)."""

from . import ex1_sft, ex2_reward, ex3_ppo, ex4_grpo
from .core import Run

FILES = ["ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"]
RUNS = [Run(file) for file in FILES]
BLANKS = ex1_sft.BLANKS + ex2_reward.BLANKS + ex3_ppo.BLANKS + ex4_grpo.BLANKS
