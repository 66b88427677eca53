"""Exercise 2: the maths of reward models, five blanks, in the order of lesson2_reward.py.

B is the number of sequences or pairs, T the longest one's length in tokens. An attention mask is 1
on real tokens and 0 on padding. Functions that average take `count`, the number to divide by; None
means: count for yourself. (The lessons pass the count of the whole batch, so that a batch may be
cut into pieces.)
"""

import torch
import torch.nn.functional as F


def last_token_index(attention_mask):
    """Where does each sequence of a padded batch end? A reward model reads its score there.

    Shapes
        attention_mask   int64 (B, T), 1 on real tokens and 0 on padding; every row has at least one
                         real token, and its real tokens stand side by side
        returns          int64 (B,), positions from 0 to T - 1

    Formula (no paper)
        index_b = the largest t with attention_mask[b, t] = 1
    The padding may be on the right, on the left (prompts that wait for their answers), or on both
    sides of a row (prompts with answers of different lengths).

    Example (padding on the right, on the left, none, on both sides)
        >>> last_token_index(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]))
        tensor([1, 3, 3, 2])

    Ask yourself
        The first two rows of the example have two real tokens each. Can their number alone tell
        where the last one stands?

    Check it
        pytest -k last_token_index
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask).argmax(dim=1)  # (B, T) -> (B,)


def pool_scores(token_scores, attention_mask):
    """One score a sequence from the model's scores at all its tokens: the one at the last real
    token, because the model has seen the whole answer there and nowhere before.

    Shapes
        token_scores     float32 (B, T); those at the padding mean nothing
        attention_mask   int64 (B, T), as in last_token_index, which you may call
        returns          float32 (B,), with a gradient to token_scores

    Formula (Ouyang et al. 2022, "Training language models to follow instructions with human
    feedback", section 3.5, where a head with one output takes the place of the next-token head)
        score_b = token_scores[b, index_b], with index_b the position of row b's last real token
    The shape is (B,) for a batch of one sequence too.

    Example
        >>> token_scores = torch.tensor([[0.5, 1.5, 9.0], [9.0, 2.5, 3.5]])
        >>> pool_scores(token_scores, torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor([1.5000, 3.5000])

    Ask yourself
        Each row is to be read at a place of its own: B numbers in all. How many do you get when you
        index all the rows with all the places?

    Check it
        pytest -k pool_scores
    """
    last = last_token_index(attention_mask).unsqueeze(1)  # (B, 1)
    return token_scores.gather(1, last).squeeze(1)  # (B, T) -> (B,)


def preference_probability(chosen, rejected):
    """How likely is the chosen answer to win against the rejected one, in the model's opinion?

    Shapes
        chosen     float32 (B,), scores of the chosen answers
        rejected   float32 (B,), scores of the rejected ones
        returns    float32 (B,), a probability a pair, finite for scores of any size

    Formula (Bradley and Terry 1952, "Rank analysis of incomplete block designs", with the
    exponential of a score for an answer's strength)
        P(chosen wins) = exp(chosen) / (exp(chosen) + exp(rejected)) = sigmoid(chosen - rejected)

    Example (better by ln 3, so three wins to one; equal)
        >>> preference_probability(torch.tensor([3.0, 1.0]).log(), torch.tensor([0.0, 0.0]))
        tensor([0.7500, 0.5000])

    Ask yourself
        The two forms are equal on paper. What does the first one give in float32 when both scores
        are 200?

    Check it
        pytest -k preference_probability
    """
    return torch.sigmoid(chosen - rejected)  # (B,)


def pairwise_loss(chosen, rejected, margin=None, count=None):
    """The loss of a reward model: how surprised is it by the answers that people chose?

    Shapes
        chosen     float32 (B,), scores of the chosen answers, at least one
        rejected   float32 (B,), scores of the rejected ones
        margin     None (the same as 0), a number, or float32 (B,), one a pair: by how much the
                   chosen score should win
        count      number, or tensor with one number, to divide by; None: the number of pairs
        returns    float32 scalar; the value and its gradient are finite for scores of any size

    Formula (Ouyang et al. 2022, "Training language models to follow instructions with human
    feedback", eq. 1; the margin: Touvron et al. 2023, "Llama 2", eq. 2)
        loss_i = -log sigmoid(chosen_i - rejected_i - margin_i)
        L      = sum of loss_i / count

    Example (differences ln 3 and 0: -log 3/4 and -log 1/2, on average 0.4904)
        >>> chosen, rejected = torch.tensor([3.0, 1.0]).log(), torch.tensor([0.0, 0.0])
        >>> pairwise_loss(chosen, rejected)
        tensor(0.4904)
        >>> margin = torch.tensor([3.0, 1.0]).log()  # leaves nothing of the lead: both cost ln 2
        >>> pairwise_loss(chosen, rejected, margin)
        tensor(0.6931)

    Ask yourself
        A score that is wrong by 120 should cost 120. What is sigmoid(-120) in float32, and what is
        the logarithm of that?

    Check it
        pytest -k pairwise_loss
    """
    difference = chosen - rejected  # (B,)
    if margin is not None:
        difference = difference - margin
    return -F.logsigmoid(difference).sum() / (len(chosen) if count is None else count)


def preference_accuracy(chosen, rejected):
    """How often does the reward model agree with people: in what share of the pairs has the chosen
    answer the higher score?

    Shapes
        chosen     float32 (B,), scores of the chosen answers, at least one
        rejected   float32 (B,), scores of the rejected ones
        returns    float32 scalar from 0 to 1

    Formula (as in RewardBench, Lambert et al. 2024: a pair is won when the chosen score is the
    higher one)
        accuracy = (the number of i with chosen_i > rejected_i) / (the number of pairs)
    A tie is not won.

    Example (won, tied, lost, won)
        >>> chosen = torch.tensor([2.0, 1.0, 0.0, 3.0])
        >>> rejected = torch.tensor([1.0, 1.0, 1.0, 2.0])
        >>> preference_accuracy(chosen, rejected)
        tensor(0.5000)

    Ask yourself
        A model that gives every answer the same score knows nothing. What accuracy should it get?

    Check it
        pytest -k preference_accuracy
    """
    return (chosen > rejected).float().mean()
