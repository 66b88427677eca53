"""Exercise 2: the maths of reward models, five blanks, in the order of lesson2_reward.py.

B is the number of sequences or pairs, T the longest one's length in tokens. An attention mask is 1
on real tokens and 0 on padding. Functions that average take `count`, the number to divide by; None
means: count for yourself. (The lessons pass the count of the whole batch, so that a batch may be
cut into pieces.)
"""

import torch
import torch.nn.functional as F


def last_token_index(attention_mask):
    """The position of each row's last real token, whichever side the padding is on."""
    raise NotImplementedError("ex2_reward.last_token_index")


def pool_scores(token_scores, attention_mask):
    """The score at each row's last real token: the only one that has seen the whole answer."""
    raise NotImplementedError("ex2_reward.pool_scores")


def preference_probability(chosen, rejected):
    """How likely the chosen answer is to win (Bradley and Terry, 1952)."""
    raise NotImplementedError("ex2_reward.preference_probability")


def pairwise_loss(chosen, rejected, margin=None, count=None):
    """-log P(chosen wins), summed and divided by `count` (default: the number of pairs). A margin
    asks the chosen score to win by that much (Touvron et al., 2023, eq. 2)."""
    raise NotImplementedError("ex2_reward.pairwise_loss")


def preference_accuracy(chosen, rejected):
    """How often the chosen answer has the higher score. A tie is no success."""
    raise NotImplementedError("ex2_reward.preference_accuracy")
