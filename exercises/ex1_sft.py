"""Exercise 1: the maths of supervised fine-tuning, five blanks, in the order of lesson1_sft.py.

B is the number of examples in a batch, T the longest one's length in tokens, V the size of the
vocabulary. A label of -100 means: no loss here. Functions that average take `count`, the number to
divide by; None means: count for yourself. (The lessons pass the count of the whole batch, so that
a batch may be cut into pieces.)
"""

import torch
import torch.nn.functional as F


def format_prompt(instruction: str, input: str = "") -> str:
    r"""The text that the model sees before it answers: the instruction, perhaps an input that it is
    about, and the header under which the answer goes.

    Shapes
        instruction   str
        input         str; "", or left out: there is none
        returns       str

    Formula (Alpaca's layout, Taori et al. 2023, "Stanford Alpaca", without its preamble)
        ### Instruction:
        <instruction>
        (an empty line)
        ### Input:          these three
        <input>             only where there
        (an empty line)     is an input
        ### Response:
    Every line ends with a line break, the last one too, and nothing follows. Both texts are kept to
    the letter, with all their spaces, line breaks and braces; only the empty string is no input.

    Example
        >>> format_prompt("Say tea.")
        '### Instruction:\nSay tea.\n\n### Response:\n'
        >>> format_prompt("Translate:", "tea")
        '### Instruction:\nTranslate:\n\n### Input:\ntea\n\n### Response:\n'

    Ask yourself
        The model continues the text from its very last character. Which character is that, and does
        a header with nothing under it help when there is no input?

    Check it
        pytest -k format_prompt
    """
    raise NotImplementedError("ex1_sft.format_prompt")


def build_labels(prompt_ids, response_ids, eos_id, max_length):
    """One example for training: the tokens that the model reads, and a label for each of them: the
    token itself where the model should learn to write it, and -100 where it should not.

    Shapes
        prompt_ids     list of int, may be empty
        response_ids   list of int, may be empty, without the end token that this function adds
        eos_id         int, the end token; it is always added, whatever the response holds
        max_length     int, at least 1
        returns        (input_ids, labels): a tuple of two new lists of int, equally long

    Formula (instruction tuning on the response alone, as in Ouyang et al. 2022, "Training language
    models to follow instructions with human feedback", section 3.5)
        input_ids = prompt, response, end token
        labels    = -100 for each token of the prompt, then the response and the end token again
    Of both only the first max_length entries are kept. A response that is cut gets no end token:
    the writer did not stop there. Place t of `labels` belongs to place t of `input_ids`; that the
    model predicts one token ahead is the business of sft_loss. The lists that come in stay as they
    are.

    Example
        >>> build_labels([5, 6], [7, 8], 9, 10)
        ([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9])
        >>> build_labels([5, 6], [7, 8], 9, 4)
        ([5, 6, 7, 8], [-100, -100, 7, 8])

    Ask yourself
        What should the model write after the response's last word, and which label teaches it that?

    Check it
        pytest -k build_labels
    """
    raise NotImplementedError("ex1_sft.build_labels")


def pad_batch(examples, pad_id):
    """Makes one batch of examples of any length, by padding the shorter ones on the right. (A
    function that does this is called a collator.)

    Shapes
        examples   list of at least one pair (input_ids, labels), as build_labels makes them: two
                   lists of int, equally long, of at least one token
        pad_id     int, the pad token; it may be the end token as well
        returns    a dictionary of three tensors, int64 (B, T) each, with T the longest example's
                   length: "input_ids", "attention_mask", "labels"

    Formula (no paper; the names are those that the models of transformers take)
                         on an example's own tokens   on the padding to their right
        input_ids        its input_ids                pad_id
        attention_mask   1                            0
        labels           its labels                   -100
    An example's own tokens are told from padding by their place, never by their id: the pad token's
    id may be a real token too. The examples' own lists stay as they are.

    Example
        >>> batch = pad_batch([([5, 6, 7], [-100, 6, 7]), ([8], [8])], 0)
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[5, 6, 7], [8, 0, 0]], [[-100, 6, 7], [8, -100, -100]])
        >>> batch["attention_mask"]
        tensor([[1, 1, 1],
                [1, 0, 0]])

    Ask yourself
        Many models have no pad token of their own, and the end token serves as one. How do you know
        the end token that the model must learn from those that only fill a row?

    Check it
        pytest -k pad_batch
    """
    raise NotImplementedError("ex1_sft.pad_batch")


def sft_loss(logits, labels, count=None):
    """The loss of supervised fine-tuning (and of pre-training): how surprised is the model by each
    token that has a label?

    Shapes
        logits    float (B, T, V), any float type
        labels    int64 (B, T), token ids, or -100: no loss here
        count     number, or tensor with one number, to divide by; None: how many labels the sum
                  below has, at least 1
        returns   float32 scalar, computed in float32 also where the logits are bfloat16 (or in
                  float64 where they are that). Where no label is left it is 0, with a graph:
                  backward() must work, and gives the gradient 0

    Formula (Radford et al. 2018, "Improving language understanding by generative pre-training",
    eq. 1, negated because optimisers minimise, and divided by count)
        loss_t = -log softmax(logits_t)[label_{t+1}]
        L      = (sum of loss_t over all rows and all t where label_{t+1} is not -100) / count
    The logits at position t have seen the tokens up to t and predict token t + 1. So the first
    label of a row has nothing that predicts it: it is never in the sum, nor in count. The last
    logits of a row predict nothing that we know. All tokens of the batch weigh the same.

    Example (the label 0 has the probability 1/4 and the label 2 has 1/2: L = (2 + 1) / 2 ln 2)
        >>> logits = torch.tensor([[[.25, .5, .25], [.25, .25, .5], [.8, .1, .1]]]).log()
        >>> sft_loss(logits, torch.tensor([[-100, 0, 2]]))
        tensor(1.0397)

    Ask yourself
        Logits and labels are both T long. Which of the logits, and which of the labels, have no
        partner?

    Check it
        pytest -k sft_loss
    """
    raise NotImplementedError("ex1_sft.sft_loss")


def corpus_perplexity(batch_losses, batch_tokens):
    """The perplexity of a whole corpus, from the mean losses of its batches: between how many
    equally likely tokens does the model hesitate?

    Shapes
        batch_losses   float32 (N,), of each batch the mean loss of a token, in nats
        batch_tokens   int64 (N,), of each batch how many tokens that mean is over; one of them may
                       be 0, but not all
        returns        float32 scalar

    Formula (Jurafsky and Martin, "Speech and language processing", the chapter on n-gram models:
    the inverse probability of the corpus, normalised by its number of tokens)
        perplexity = exp(sum over all tokens of the corpus of -log p(token) / number of tokens)
    A batch's part of that sum is its mean loss times its number of tokens.

    Example (three tokens at ln 2 and one at 5 ln 2 have the mean 2 ln 2)
        >>> batch_losses = torch.tensor([2.0, 32.0]).log()
        >>> corpus_perplexity(batch_losses, torch.tensor([3, 1]))
        tensor(4.)

    Ask yourself
        Cut the corpus into other batches and the perplexity must stay what it is. Which means, of
        what, have that property?

    Check it
        pytest -k corpus_perplexity
    """
    raise NotImplementedError("ex1_sft.corpus_perplexity")
