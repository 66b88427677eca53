"""The checks of exercise 1. Mistakes are numbered where a list of pitfalls of the field has
them."""

import math

import torch
import torch.nn.functional as F

from .core import Blank, Case, Mistake
from .inputs import different, integers, normal

FILE, PLACE = "ex1_sft", 'section "The maths" of lesson1_sft.py, function {}'


# ---- format_prompt ------------------------------------------------------------------------------


def prompt_cases(seed):
    def case(note, instruction, *input, expect=None):
        inputs = dict(zip(("instruction", "input"), (instruction, *input)))
        return Case(note, inputs, expect=expect)

    a, b = integers(0, 50, 2, seed=seed).tolist()
    return [case("no input", "Say tea.",
                 expect="### Instruction:\nSay tea.\n\n### Response:\n"),
            case("an input", "Translate:", "tea",
                 expect="### Instruction:\nTranslate:\n\n### Input:\ntea\n\n### Response:\n"),
            case("an input that is given and empty", f"What is {a} + {b}?", ""),
            case("lines and spaces, which are kept", f" Sort {a}:\n", "b\n\na "),
            case("a space at the end of the instruction", f"Count to {b}: "),
            case("an input of one space", f"Repeat {a} times:", " "),
            case("an input of one new line", "What is this?", "\n"),
            case("the input 0", f"Add {a}.", "0"),
            case("braces and percent signs", "Explain {input} and %s.", "{instruction} {}"),
            case("the word {input} twice", "{input} is not {input}", f"x = {b}"),
            case("Chinese", "Translate into English:", f"我有{a}个苹果。")]


def slow_format_prompt(instruction, input=""):
    """Line by line."""
    lines = ["### Instruction:", instruction, ""]
    if len(input) > 0:
        lines += ["### Input:", input, ""]
    text = ""
    for line in lines + ["### Response:"]:
        text += line + "\n"
    return text


def prompt_like(is_given=lambda input: input != "", clean=lambda text: text, gap="\n\n",
                after_header="\n", end="\n", preamble="", input_last=False):
    """A version of format_prompt with parts that can be set wrong."""
    def format_prompt(instruction, input=""):
        parts = [f"### Instruction:{after_header}{clean(instruction)}"]
        context = [f"### Input:{after_header}{clean(input)}"] if is_given(input) else []
        response = ["### Response:"]
        parts += response + context if input_last else context + response
        return preamble + gap.join(parts) + end
    return format_prompt


def filled_in_twice(instruction, input=""):
    template = ("### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n" if input
                else "### Instruction:\n{instruction}\n\n### Response:\n")
    return template.replace("{instruction}", instruction).replace("{input}", input)


def prompt_from_one_template(instruction, input=""):
    template = "### Instruction:\n{a}\n\n### Input:\n{b}\n\n### Response:\n"
    if not input:
        template = template.replace("### Input:\n{b}\n\n", "")
    return template.format(a=instruction, b=input)


FORMAT_PROMPT = Blank(
    FILE, "format_prompt", prompt_cases, slow_format_prompt,
    formula="### Instruction:, the instruction, an empty line; then, where there is an input, ### "
    "Input:, the input, an empty line; then ### Response: and the end of its line",
    place=PLACE.format("format_prompt"),
    mistakes=[
        Mistake("the header of the input stands always", "With an input it agrees. | What should "
                "be left of the input's part when there is no input?",
                prompt_like(is_given=lambda input: True)),
        Mistake("the input is left out", "Without an input it agrees. | Where in the text should "
                "the input stand?", prompt_like(is_given=lambda input: False)),
        Mistake("white space counts as no input", "The input is a space or a new line, and yours "
                "leaves it out. | Which single string means: no input?",
                prompt_like(is_given=lambda input: input.strip() != "")),
        Mistake("white space is stripped", "Where the texts neither begin nor end with white "
                "space it agrees. | Who may change the words of the user?",
                prompt_like(clean=str.strip)),
        Mistake("one line break between the parts", "All the lines with text are right. | What "
                "stands between two parts?", prompt_like(gap="\n")),
        Mistake("no line break at the end", "All but the last character is right. | On which line "
                "should the model's first word stand?", prompt_like(end="")),
        Mistake("an empty line at the end", "Yours is one character too long. | Between which two "
                "parts are the empty lines, and does one come after the last header?",
                prompt_like(end="\n\n")),
        Mistake("the text on the header's line", "The parts and their order are right. | On which "
                "line does the text after a header begin?", prompt_like(after_header=" ")),
        Mistake("the input after the response's header", "All the parts are there. | What is the "
                "last thing that the model should read before it answers?",
                prompt_like(input_last=True)),
        Mistake("Alpaca's preamble", "The end is right. | With which line does this course's "
                "prompt begin?",
                prompt_like(preamble="Below is an instruction that describes a task. "
                                      "Write a response that appropriately completes the request."
                                      "\n\n")),
        Mistake("filled in twice", "It agrees but for an instruction that holds the text {input}. "
                "| What does the second replacement see after the first one?", filled_in_twice)],
    right={"with join": prompt_like(), "from one template": prompt_from_one_template})


# ---- build_labels -------------------------------------------------------------------------------


def label_cases(seed):
    def case(note, prompt_ids, response_ids, max_length, expect=None, eos_id=9):
        return Case(note, {"prompt_ids": prompt_ids, "response_ids": response_ids,
                           "eos_id": eos_id, "max_length": max_length}, expect=expect)

    prompt = integers(10, 99, 6, seed=seed).tolist()
    response = integers(10, 99, 5, seed=seed + 1).tolist()
    a, b, c, d, e, f = different(10, 99, 6, seed=seed + 2).tolist()
    return [case("room for everything", [5, 6], [7, 8], 10,
                 expect=([5, 6, 7, 8, 9], [-100, -100, 7, 8, 9])),
            case("just enough room", [a, b], [c, d], 5),
            case("no room for the end token", [5, 6], [7, 8], 4,
                 expect=([5, 6, 7, 8], [-100, -100, 7, 8])),
            case("no room for the response", [b, c], [d, a], 2),
            case("no room for the whole prompt", [a, c, b], [d, e, f], 2),
            case("an empty response", [c, b, a], [], 10),
            case("an empty prompt", [], [d, c], 10),
            case("a response made of the prompt's tokens", [a, b, c], [b, a, b], 10),
            case("the end token inside prompt and response", [9, e], [9, f], 10),
            case("a response that ends with the end token", [e, f], [b, 9], 10),
            case("a response that is nothing but an end token", [f, e], [9], 10),
            case("the token 0 in prompt and response", [0, 5], [7, 0], 10,
                 expect=([0, 5, 7, 0, 9], [-100, -100, 7, 0, 9])),
            case("the end token has the id 0", [a, d], [e], 10, eos_id=0),
            case("random tokens", prompt, response, 40),
            case("random tokens, cut", prompt, response, 9)]


def slow_build_labels(prompt_ids, response_ids, eos_id, max_length):
    """Position by position."""
    input_ids, labels = [], []
    for t in range(len(prompt_ids) + len(response_ids) + 1):
        if t == max_length:
            break
        if t < len(prompt_ids):
            input_ids.append(prompt_ids[t])
            labels.append(-100)
            continue
        place = t - len(prompt_ids)
        token = response_ids[place] if place < len(response_ids) else eos_id
        input_ids.append(token)
        labels.append(token)
    return input_ids, labels


def labels_like(labels=lambda prompt, answer: [-100] * len(prompt) + answer, end=True,
                cut=lambda ids, length: ids[:length], cut_labels=None):
    """A version of build_labels with parts that can be set wrong. `labels` makes the labels from
    the prompt and the answer, the end token included."""
    def build_labels(prompt_ids, response_ids, eos_id, max_length):
        answer = response_ids + [eos_id] * end
        return (cut(prompt_ids + answer, max_length),
                (cut_labels or cut)(labels(prompt_ids, answer), max_length))
    return build_labels


def masked_up_to(extra):
    """Labels with the mask too long (1) or too short (-1) by some tokens."""
    def labels(prompt, answer):
        masked = max(len(prompt) + extra, 0)
        return [-100] * masked + (prompt + answer)[masked:]
    return labels_like(labels)


def minus_100_in_the_inputs(prompt_ids, response_ids, eos_id, max_length):
    labels = labels_like()(prompt_ids, response_ids, eos_id, max_length)[1]
    return labels, list(labels)


def response_extended_in_place(prompt_ids, response_ids, eos_id, max_length):
    response_ids.append(eos_id)
    return labels_like(end=False)(prompt_ids, response_ids, eos_id, max_length)


def end_token_without_label(prompt_ids, response_ids, eos_id, max_length):
    return labels_like(lambda prompt, answer: [-100] * len(prompt) + answer[:-1] + [-100])(
        prompt_ids, response_ids, eos_id, max_length)


def a_false_end(prompt_ids, response_ids, eos_id, max_length):
    def cut(ids, length):
        return ids[:length - 1] + [eos_id] if len(ids) > length else ids
    return labels_like(cut=cut)(prompt_ids, response_ids, eos_id, max_length)


def end_token_only_where_it_is_missing(prompt_ids, response_ids, eos_id, max_length):
    end = response_ids[-1:] != [eos_id]
    return labels_like(end=end)(prompt_ids, response_ids, eos_id, max_length)


def prompt_extended_in_place(prompt_ids, response_ids, eos_id, max_length):
    length = len(prompt_ids)
    prompt_ids += response_ids + [eos_id]
    return prompt_ids[:max_length], ([-100] * length + prompt_ids[length:])[:max_length]


def labels_by_slices(prompt_ids, response_ids, eos_id, max_length):
    input_ids = [*prompt_ids, *response_ids, eos_id]
    del input_ids[max_length:]
    labels = input_ids.copy()
    masked = min(len(prompt_ids), len(labels))
    labels[:masked] = [-100] * masked
    return input_ids, labels


BUILD_LABELS = Blank(
    FILE, "build_labels", label_cases, slow_build_labels,
    formula="input_ids = prompt, response, end token; labels = the same with -100 in place of the "
    "prompt's tokens; both without what comes after the first max_length",
    place=PLACE.format("build_labels"), outputs=("input_ids", "labels"),
    mistakes=[
        Mistake("the prompt has labels (1)", "The input_ids are right. | Count the labels that "
                "are not -100: should the model learn to write the question?",
                labels_like(lambda prompt, answer: prompt + answer)),
        Mistake("the first response token has no label (2)", "One label is missing. | Which token "
                "should be the first that has a label?", masked_up_to(1)),
        Mistake("the last prompt token has a label (2)", "There is one label too many. | Where "
                "does the prompt end?", masked_up_to(-1)),
        Mistake("-100 in the input_ids (3)", "The labels are right. | What does the model's "
                "embedding have at index -100, and which of the two lists does the model read?",
                minus_100_in_the_inputs),
        Mistake("the labels are shifted already (6)", "Your labels are right, one place too "
                "early. | sft_loss compares position t with label t + 1 by itself: how often is "
                "that shift needed?",
                labels_like(lambda prompt, answer: ([-100] * len(prompt) + answer)[1:] + [-100])),
        Mistake("no end token (8)", "Everything but the end is right. | How will the model know "
                "when to stop?", labels_like(end=False)),
        Mistake("the end token has no label (8)", "The input_ids are right. | Which token does "
                "the model have to predict in order to stop, and is it trained to?",
                end_token_without_label),
        Mistake("the end token only where it is missing", "They differ where the response itself "
                "ends with the end token. | Does this function look at what the response holds?",
                end_token_only_where_it_is_missing),
        Mistake("an end token after the cut", "Where there is room it agrees. | Where the "
                "response was cut: is that place the end that the writer meant?", a_false_end),
        Mistake("cut on the left", "Where there is room it agrees. | Which end of the list goes "
                "when it is too long?", labels_like(cut=lambda ids, length: ids[-length:])),
        Mistake("not cut", "Where there is room it agrees. | What is max_length for?",
                labels_like(cut=lambda ids, length: ids)),
        Mistake("the labels are not cut", "The input_ids are right. | Must every token have its "
                "label, and every label its token?", labels_like(cut_labels=lambda ids, _: ids)),
        Mistake("labels of the response alone", "The labels are right, but there are fewer labels "
                "than tokens. | What stands at the prompt's places?",
                labels_like(lambda prompt, answer: answer)),
        Mistake("masked by value", "They differ where the response repeats a word of the prompt. "
                "| Is it a token's id or its place that makes it part of the prompt?",
                labels_like(lambda prompt, answer: [
                    -100 if token in prompt else token for token in prompt + answer])),
        Mistake("the token 0 has no label", "Where no token has the id 0 it agrees. | Is 0 a "
                "token like the others, and what does Python make of `if 0`?",
                labels_like(lambda prompt, answer: (
                    [-100] * len(prompt) + [token if token else -100 for token in answer]))),
        Mistake("the prompt is changed in place", "The result is right, but the caller's list of "
                "prompt tokens has grown. | Which operations change a list, and which make a new "
                "one?", prompt_extended_in_place),
        Mistake("the response is changed in place", "The result is right, but the caller's list "
                "of response tokens has grown. | What does append() do to a list, and what does "
                "`+` with a list of one token?", response_extended_in_place)],
    right={"slices of a copy": labels_by_slices})


# ---- pad_batch ----------------------------------------------------------------------------------


def pad_cases(seed):
    def case(note, lengths, pad_id, draw=0, last=None):
        """Examples of these lengths; the labels of their first halves are -100."""
        examples = []
        for i, length in enumerate(lengths):
            ids = integers(10, 99, length, seed=seed + 100 * draw + i).tolist()
            ids[-1] = last or ids[-1]
            examples.append((ids, [-100] * (length // 2) + ids[length // 2:]))
        return Case(note, {"examples": examples, "pad_id": pad_id})

    by_hand = Case("a row of three tokens and one of one, worked by hand", {
        "examples": [([5, 6, 7], [-100, 6, 7]), ([8], [8])], "pad_id": 3}, expect={
            "input_ids": torch.tensor([[5, 6, 7], [8, 3, 3]]),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
            "labels": torch.tensor([[-100, 6, 7], [8, -100, -100]])})
    inside = Case("the pad token's id inside the rows", {
        "examples": [([0, 5, 0], [-100, 5, 0]), ([0, 7], [-100, 7]), ([6], [6])], "pad_id": 0})
    return [case("one row", [3], 2), by_hand,
            case("rows of equal length", [4, 4], 2, draw=1),
            case("as many rows as tokens", [4, 1, 2, 3], 2, draw=2),
            case("the longest row is in the middle", [2, 6, 1], 7, draw=3),
            case("the pad token is the end token", [4, 2, 5], 9, draw=4, last=9),
            case("pad token 0 is the end token", [1, 3], 0, draw=5),
            inside]


def slow_pad_batch(examples, pad_id):
    """Entry by entry."""
    length = 0
    for input_ids, _ in examples:
        if len(input_ids) > length:
            length = len(input_ids)
    shape = len(examples), length
    batch = {name: torch.zeros(shape, dtype=torch.int64)
             for name in ("input_ids", "attention_mask", "labels")}
    for b, (input_ids, labels) in enumerate(examples):
        for t in range(length):
            real = t < len(input_ids)
            batch["input_ids"][b, t] = input_ids[t] if real else pad_id
            batch["attention_mask"][b, t] = 1 if real else 0
            batch["labels"][b, t] = labels[t] if real else -100
    return batch


def batch_like(label=lambda pad_id: -100, token=lambda pad_id: pad_id, left=False, fit=max,
               finish=lambda batch, pad_id: batch):
    """A version of pad_batch with parts that can be set wrong. `finish` changes the batch."""
    def pad_batch(examples, pad_id):
        length = fit(len(input_ids) for input_ids, _ in examples)

        def pad(row, value):
            filling = [value] * (length - len(row))
            return filling + row if left else (row + filling)[:length]

        batch = {"input_ids": [pad(ids, token(pad_id)) for ids, _ in examples],
                 "attention_mask": [pad([1] * len(ids), 0) for ids, _ in examples],
                 "labels": [pad(labels, label(pad_id)) for _, labels in examples]}
        return finish({name: torch.tensor(rows) for name, rows in batch.items()}, pad_id)
    return pad_batch


def mask_by_id(batch, pad_id):
    return {**batch, "attention_mask": (batch["input_ids"] != pad_id).long()}


def labels_by_id(batch, pad_id):
    return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] == pad_id, -100)}


def rows_extended_in_place(examples, pad_id):
    correct = batch_like()(examples, pad_id)
    for input_ids, labels in examples:
        padding = correct["labels"].shape[1] - len(input_ids)
        input_ids += [pad_id] * padding
        labels += [-100] * padding
    return correct


def batch_with_pad_sequence(examples, pad_id):
    def padded(rows, value):
        rows = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    input_ids, labels = zip(*examples)
    return {"input_ids": padded(input_ids, pad_id),
            "attention_mask": padded([[1] * len(row) for row in input_ids], 0),
            "labels": padded(labels, -100)}


def batch_filled_in(examples, pad_id):
    shape = len(examples), max(len(input_ids) for input_ids, _ in examples)
    batch = {"input_ids": torch.full(shape, pad_id),
             "attention_mask": torch.zeros(shape, dtype=torch.long),
             "labels": torch.full(shape, -100)}
    for b, (input_ids, labels) in enumerate(examples):
        batch["input_ids"][b, :len(input_ids)] = torch.tensor(input_ids)
        batch["attention_mask"][b, :len(input_ids)] = 1
        batch["labels"][b, :len(labels)] = torch.tensor(labels)
    return batch


PAD_BATCH = Blank(
    FILE, "pad_batch", pad_cases, slow_pad_batch,
    formula="to the right of each row, up to the longest one: pad_id in input_ids, 0 in "
    "attention_mask (1 on the row itself), -100 in labels",
    place=PLACE.format("pad_batch"),
    mistakes=[
        Mistake("the attention mask by id (7)", "It agrees but for rows that hold the pad token's "
                "id as a real token. | What tells padding from a real token, its id or its place?",
                batch_like(finish=mask_by_id)),
        Mistake("the labels by id (7)", "It agrees but for rows that hold the pad token's id as a "
                "real token, such as an end token. | Is the model still trained to stop in those "
                "rows?",
                batch_like(finish=labels_by_id)),
        Mistake("mask and labels by id (7)", "It agrees but for rows that hold the pad token's id "
                "as a real token. | How long is each row, and who knows that without looking at "
                "ids?",
                batch_like(finish=lambda batch, pad_id: mask_by_id(
                    labels_by_id(batch, pad_id), pad_id))),
        Mistake("the padding has labels (9)", "The input_ids are right. | Should the model learn "
                "to write padding, and which label says that it should not?",
                batch_like(label=lambda pad_id: pad_id)),
        Mistake("labels padded with 0", "The input_ids are right. | 0 is the id of a token: which "
                "label does the loss ignore?", batch_like(label=lambda pad_id: 0)),
        Mistake("input_ids padded with -100", "The labels are right. | The model looks every id "
                "up in its embedding: is there one of number -100?",
                batch_like(token=lambda pad_id: -100)),
        Mistake("input_ids padded with 0", "With pad_id 0 it agrees. | Which id fills the rows?",
                batch_like(token=lambda pad_id: 0)),
        Mistake("padded on the left (14)", "Every row has the right tokens, in the wrong place. | "
                "On which side is the padding in training?", batch_like(left=True)),
        Mistake("cut to the shortest row", "Rows of equal length agree. | How long must the batch "
                "be so that no row loses a token?", batch_like(fit=min)),
        Mistake("the mask marks the padding", "Your attention mask is upside down. | Does 1 mean: "
                "look at this, or: leave it out?", batch_like(finish=lambda batch, pad_id: {
                    **batch, "attention_mask": 1 - batch["attention_mask"]})),
        Mistake("the mask follows the labels", "Your attention mask is 0 on the prompt. | The "
                "prompt has no label, but may the model look at it?",
                batch_like(finish=lambda batch, pad_id: {
                    **batch, "attention_mask": (batch["labels"] != -100).long()})),
        Mistake("the mask is all ones", "Rows of equal length agree. | What should the model not "
                "look at in a row that is shorter than the others?",
                batch_like(finish=lambda batch, pad_id: {
                    **batch, "attention_mask": torch.ones_like(batch["input_ids"])})),
        Mistake("the mask has another dtype", "The numbers are right. | Which dtype do the three "
                "tensors have?", batch_like(finish=lambda batch, pad_id: {
                    **batch, "attention_mask": batch["attention_mask"].float()})),
        Mistake("the rows are changed in place", "The result is right, but the examples' own "
                "lists have grown. | What happens when the same example comes again in the next "
                "epoch?",
                rows_extended_in_place)],
    right={"filled in row by row": batch_filled_in, "with pad_sequence": batch_with_pad_sequence})


# ---- sft_loss -----------------------------------------------------------------------------------


def sft_cases(seed):
    def logits_for(labels, size, scale, draw):
        return scale * normal(*labels.shape, size, seed=seed + draw) + 0.5

    def case(note, labels, size=5, scale=1.0, draw=0, dtype=torch.float32, **count):
        logits = logits_for(labels, size, scale, draw).to(dtype)
        grad = ("logits",) if dtype == torch.float32 else ()
        return Case(note, {"logits": logits, "labels": labels, **count}, grad=grad)

    def random_labels(rows, length, draw, size=5):
        return integers(0, size, rows, length, seed=seed + draw)

    # Rows with a prompt and padding, with one label, with none, and with labels everywhere.
    ragged = random_labels(4, 6, 10)
    for row, (first, last) in enumerate([(2, 5), (3, 4), (0, 0), (0, 6)]):
        ragged[row, :first] = ragged[row, last:] = -100
    answer = torch.tensor([[-100, -100, 1], [-100, 3, -100]])
    nothing, only_first = torch.full((2, 3), -100), torch.tensor([[2, -100, -100]])
    halves = torch.tensor([[[.25, .5, .25], [.25, .25, .5], [.8, .1, .1]]]).log() + 3
    by_hand = Case("one row of three tokens, worked by hand", {
        "logits": halves, "labels": torch.tensor([[-100, 0, 2]])}, grad=("logits",),
        expect=torch.tensor(1.5 * math.log(2)))  # p is 1/4 and 1/2
    far = Case("a token that was all but impossible, worked by hand", {
        "logits": torch.tensor([[[200.0, -200.0], [0.0, 0.0]]]),
        "labels": torch.tensor([[0, 1]])}, grad=("logits",), expect=torch.tensor(400.0))
    large = case("logits of size 200", ragged, scale=200.0, draw=20)
    large.inputs["logits"][0, 1, ragged[0, 2]] -= 2000
    return [by_hand,
            case("one row, every token labelled", random_labels(1, 3, 30), draw=31),
            case("prompts, padding, a row with one label and one with none", ragged, draw=40),
            case("as many rows as tokens as words", random_labels(4, 4, 50, 4), size=4, draw=51),
            far, large,
            case("no label at all", nothing, draw=60),
            case("a label at the first token alone, which has no logits before it", only_first,
                 draw=70),
            case("count given", ragged, draw=80, count=37),
            case("count given as a tensor", ragged, draw=90, count=torch.tensor(20)),
            case("no label, and count given", nothing, draw=100, count=4),
            case("bfloat16 logits, one label", answer[:1], draw=110, dtype=torch.bfloat16),
            case("bfloat16 logits, large, one label", answer[1:], size=50, scale=5.0, draw=120,
                 dtype=torch.bfloat16)]


def slow_sft_loss(logits, labels, count=None):
    total, found = 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            label = int(labels[b, t])
            if label == -100:
                continue
            row = [float(x) for x in logits[b, t - 1]]
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[label]
            found += 1
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.tensor(total / (max(found, 1) if count is None else float(count)), dtype=dtype)


def divided(losses, real, labels, count):
    """The right average, of losses (B, T-1); `real` is their mask."""
    count = real.sum().clamp(min=1) if count is None else count
    return losses.where(real, 0.0).sum() / count


def sft_like(align=lambda logits, labels: (logits[:, :-1], labels[:, 1:]), average=divided,
             logprobs=lambda logits: logits.float().log_softmax(dim=-1)):
    """A version of sft_loss with parts that can be set wrong."""
    def sft_loss(logits, labels, count=None):
        logits, targets = align(logits, labels)
        real = targets != -100
        losses = -logprobs(logits).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return average(losses, real, labels, count)
    return sft_loss


def sft_in_bfloat16(logits, labels, count=None):
    labels = labels[:, 1:]
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum().clamp(min=1) if count is None else count)


def sft_zero_without_graph(logits, labels, count=None):
    if (labels[:, 1:] == -100).all():
        return torch.tensor(0.0)
    return sft_like()(logits, labels, count)


def sft_new_zero(logits, labels, count=None):
    if (labels[:, 1:] == -100).all():
        return torch.zeros(()).requires_grad_()
    return sft_like()(logits, labels, count)


def mean_of_rows(losses, real, labels, count):
    return (losses.where(real, 0.0).sum(dim=1) / real.sum(dim=1).clamp(min=1)).mean()


def sft_with_one_hot(logits, labels, count=None):
    """In float64, with einsum and logsumexp."""
    logits, labels = logits[:, :-1].double(), labels[:, 1:]
    real = labels != -100
    hot = F.one_hot(labels.clamp(min=0), logits.shape[-1]).double() * real.unsqueeze(-1)
    total = logits.logsumexp(dim=-1)[real].sum() - torch.einsum("btv,btv->", hot, logits)
    return (total / (max(int(real.sum()), 1) if count is None else count)).float()


def sft_with_the_mean(logits, labels, count=None):
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    found = int((labels != -100).sum())
    if found == 0:
        return 0.0 * logits.sum()
    mean = F.cross_entropy(logits.transpose(1, 2), labels)
    return mean if count is None else mean * found / count


SFT_LOSS = Blank(
    FILE, "sft_loss", sft_cases, slow_sft_loss,
    formula="-log softmax(logits at position t)[label at position t + 1], summed over the labels "
    "that are not -100 and divided by count",
    place=PLACE.format("sft_loss"),
    mistakes=[
        Mistake("no shift (4)", "The logits at position t have already seen token t. Which token "
                "do they predict?", sft_like(align=lambda logits, labels: (logits, labels))),
        Mistake("the shift backwards (5)", "You compare the logits of one token with the label of "
                "the token before it. Which of the two has the model not yet seen?",
                sft_like(align=lambda logits, labels: (logits[:, 1:], labels[:, :-1]))),
        Mistake("the shift twice (6)", "Your logits and labels are two places apart. | How far "
                "ahead does the model predict?",
                sft_like(align=lambda logits, labels: (logits[:, :-2], labels[:, 2:]))),
        Mistake("the mean of the rows' means (10)", "Does a token of a short answer weigh as much "
                "as one of a long answer, with yours and in the formula?",
                sft_like(average=mean_of_rows)),
        Mistake("divides by all positions (11)", "Where every token has a label it agrees. | By "
                "how many tokens do you divide: do those with -100 belong to them?",
                sft_like(average=lambda losses, real, labels, count: losses.where(real, 0.0).sum()
                         / (real.numel() if count is None else count))),
        Mistake("counts the labels before the shift", "It differs where the first token has a "
                "label. | Can anything predict the first token?",
                sft_like(average=lambda losses, real, labels, count: divided(
                    losses, real, labels, (labels != -100).sum().clamp(min=1) if count is None
                    else count))),
        Mistake("softmax before the cross-entropy (12)", "Your loss hardly moves, even where the "
                "logits are huge. | Does cross-entropy take logits or probabilities?",
                sft_like(logprobs=lambda logits: logits.float().softmax(-1).log_softmax(-1))),
        Mistake("ignores count (13)", "Without count it agrees. | When the batch comes in pieces, "
                "who knows how many tokens there are in all of it?",
                sft_like(average=lambda losses, real, labels, count: divided(
                    losses, real, labels, None))),
        Mistake("divides a mean by count", "Without count it agrees. | What have you divided by "
                "before you divide by count?",
                sft_like(average=lambda losses, real, labels, count: divided(
                    losses, real, labels, None) / (1 if count is None else count))),
        Mistake("a sum", "With count given it agrees. | By what do you divide when there is no "
                "count?",
                sft_like(average=lambda losses, real, labels, count: losses.where(real, 0.0).sum()
                         / (1 if count is None else count))),
        Mistake("NaN without labels", "It agrees but for batches where no label counts. | What is "
                "0 divided by 0, and what is the smallest number that you may divide by?",
                sft_like(average=lambda losses, real, labels, count: divided(
                    losses, real, labels, real.sum() if count is None else count))),
        Mistake("0 without a graph", "The numbers are right. | What does loss.backward() do with "
                "a 0 that was not computed from the logits?", sft_zero_without_graph),
        Mistake("a new 0 with a graph of its own", "The numbers are right, and backward() works. "
                "| Where there is no label, from what is your 0 computed: does its graph lead "
                "back to the logits?", sft_new_zero),
        Mistake("the sign", "Your loss is the expected one times -1. | Is a log-probability "
                "positive or negative, and which way does an optimiser go?",
                sft_like(average=lambda *inputs: -divided(*inputs))),
        Mistake("-100 becomes token 0", "Where every token has a label it agrees. | Where the "
                "label is -100, what does your version train the model to write?",
                sft_like(average=lambda losses, real, labels, count: divided(
                    losses, torch.ones_like(real), labels, count))),
        Mistake("softmax().log() (31)", "It agrees but for large logits, where yours is not "
                "finite. | What is the softmax of a token 400 below the best one, in float32?",
                sft_like(logprobs=lambda logits: logits.float().softmax(dim=-1).log())),
        Mistake("a small number under the logarithm (22)", "It agrees but for large logits. | "
                "What is the largest loss that yours can give, and its gradient there?",
                sft_like(logprobs=lambda logits: (logits.float().softmax(-1) + 1e-8).log())),
        Mistake("softmax over time (32)", "Over which dimension do your probabilities sum to 1: "
                "over the words, or over the positions?",
                sft_like(logprobs=lambda logits: logits.float().log_softmax(dim=1))),
        Mistake("the logits themselves (29)", "Your numbers change when the same constant is "
                "added to all logits of a position. | What turns logits into log-probabilities?",
                sft_like(logprobs=lambda logits: logits.float())),
        Mistake("computes in bfloat16", "With float32 logits it agrees. | bfloat16 has two to "
                "three digits: which dtype is the loss promised in?", sft_in_bfloat16)],
    right={"one-hot, einsum and logsumexp in float64": sft_with_one_hot,
           "cross_entropy's own mean": sft_with_the_mean})


# ---- corpus_perplexity --------------------------------------------------------------------------


def perplexity_cases(seed):
    def case(note, tokens, scale=1.0, shift=1.0, draw=0):
        losses = scale * normal(len(tokens), seed=seed + draw).abs() + shift
        return Case(note, {"batch_losses": losses, "batch_tokens": torch.tensor(tokens)})

    log = math.log
    by_hand = Case("losses ln 2 over three tokens and ln 32 over one, worked by hand", {
        "batch_losses": torch.tensor([log(2), log(32)]), "batch_tokens": torch.tensor([3, 1])},
        expect=torch.tensor(4.0))  # (3 x 1 + 1 x 5) / 4 = 2 times ln 2
    drawn = integers(1, 500, 5, seed=seed).tolist()
    certain = Case("no doubt at all, worked by hand", {
        "batch_losses": torch.zeros(3), "batch_tokens": torch.tensor([3, 1, 4])},
        expect=torch.tensor(1.0))
    uneven = Case("a long easy batch and a short hard one", {
        "batch_losses": torch.tensor([0.5, 3.0, 1.0]) + 0.1 * normal(3, seed=seed).abs(),
        "batch_tokens": torch.tensor([1000, 10, 200])})
    return [case("one batch", [7]), by_hand, certain, uneven,
            case("batches of different sizes", drawn, draw=10),
            case("batches of equal size", [64, 64, 64, 64], draw=20),
            case("one of the batches has no token", [40, 0, 3], scale=2.0, draw=30),
            case("large losses", [100, 1, 30], scale=2.0, shift=9.0, draw=40)]


def slow_perplexity(batch_losses, batch_tokens):
    total, tokens = 0.0, 0
    for loss, number in zip(batch_losses.tolist(), batch_tokens.tolist()):
        for _ in range(number):
            total += loss
            tokens += 1
    return torch.tensor(math.exp(total / tokens))


def weighed(x, tokens):
    return (x * tokens).sum() / tokens.sum()


def perplexity_as_a_product(batch_losses, batch_tokens):
    """The product of every batch's perplexity to the power of its share of the tokens."""
    share = batch_tokens.double() / batch_tokens.sum()
    return batch_losses.double().exp().pow(share).prod().float()


CORPUS_PERPLEXITY = Blank(
    FILE, "corpus_perplexity", perplexity_cases, slow_perplexity,
    formula="exp(sum of loss x tokens over the batches / sum of tokens)",
    place=PLACE.format("corpus_perplexity"),
    mistakes=[
        Mistake("the mean of the batches' losses (13)", "Batches of equal size agree. | Does a "
                "token of a small batch weigh as much as one of a large batch?",
                lambda losses, tokens: losses.mean().exp()),
        Mistake("the mean of the batches' perplexities", "One batch alone agrees. | Which comes "
                "first, the mean or the exponential?", lambda losses, tokens: losses.exp().mean()),
        Mistake("the weighed mean of the perplexities", "One batch alone agrees, and your weights "
                "are right. | Of what do you take the mean, of losses or of perplexities?",
                lambda losses, tokens: weighed(losses.exp(), tokens)),
        Mistake("no exponential", "Your result is the logarithm of the expected one. | What is "
                "missing between a loss and a perplexity?", weighed),
        Mistake("losses taken for sums", "batch_losses are means over a batch's tokens. How do you "
                "get the sum over its tokens back?",
                lambda losses, tokens: (losses.sum() / tokens.sum()).exp()),
        Mistake("divides by the number of batches", "Your sum is over tokens. What is it divided "
                "by?", lambda losses, tokens: (losses * tokens).mean().exp()),
        Mistake("a power of 2", "The losses are in nats, natural logarithms. Which number must be "
                "raised to the mean?", lambda losses, tokens: 2 ** weighed(losses, tokens)),
        Mistake("the sign", "Yours is 1 divided by the expected one. | A loss is already minus a "
                "log-probability: is another minus needed?",
                lambda losses, tokens: (-weighed(losses, tokens)).exp())],
    right={"a product of powers": perplexity_as_a_product,
           "the tokens repeated": lambda losses, tokens: torch.repeat_interleave(
               losses, tokens).mean().exp()})


BLANKS = [FORMAT_PROMPT, BUILD_LABELS, PAD_BATCH, SFT_LOSS, CORPUS_PERPLEXITY]
