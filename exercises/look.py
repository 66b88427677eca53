"""`python lessonN.py --look`: one real batch of a finished run, token by token, as tables on the
terminal and as a page without scripts, <run>/look.html. Nothing is trained for good. All numbers
come from the lesson's own functions; this file only lays them out."""

import html
import random
import textwrap
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em;
padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5em 0 2em }
th { text-align: right; border-bottom: 2px solid #999 }
td { text-align: right; border-bottom: 1px solid #e4e4e4; font-variant-numeric: tabular-nums }
th, td { padding: .15em .7em; white-space: pre }
th.text, td.text { text-align: left; white-space: pre-wrap }
td.text { font-family: ui-monospace, monospace }
dt { font-weight: 600; float: left; min-width: 8em } dd { margin-left: 9em }"""


WHOLE = {"lora_rank": 0, "load_in_4bit": False}  # a finished run's model holds its adapter


@dataclass
class Table:
    """Rows of cells: texts, numbers, or None where there is nothing to say."""

    title: str
    columns: list  # of names
    rows: list
    signed: tuple = ()  # the columns whose numbers are drawn in green (above 0) or red


def look(lesson, config):
    """Shows a run. `lesson`: what the lesson has at its top level, its globals()."""
    lesson = SimpleNamespace(**lesson)
    run = lesson.run_folder(config)
    file = Path(lesson.__file__).name
    if not (run / "model").is_dir():
        lesson.die(f"{run} holds no finished model: run python {file} first")
    accelerator = lesson.start(replace(config, report_to="none"))
    torch.manual_seed(config.seed)
    show = {"1": look_at_labels, "2": look_at_scores, "3": look_at_ppo, "4": look_at_groups}
    tables, legend = show[file[len("lesson")]](lesson, config, run, accelerator)
    title = f"{file} --look: {run.as_posix()}"
    for table in tables:
        print_table(table)
    (run / "look.html").write_text(page(title, legend, tables), encoding="utf-8")
    for name, meaning in legend.items():
        print(textwrap.fill(f"{name}: {meaning}", 100, subsequent_indent="    "))
    print(f"The same in colour: {run / 'look.html'}")


# ---- What the four lessons show -----------------------------------------------------------------


@torch.no_grad()
def look_at_labels(lesson, config, run, accelerator):
    """Lesson 1: which tokens have a label, and how likely the model finds each."""
    model, tokenizer = lesson.load_causal_lm(replace(config, model=str(run), **WHOLE))
    examples = lesson.tokenize_examples(lesson.load_examples(config)[1], tokenizer, config)
    examples = first_of_each(examples, 3, lambda row: row["title"].split()[0])
    tables = []
    for row in examples:
        batch = lesson.pad_batch([(row["input_ids"], row["labels"])], tokenizer.pad_token_id)
        logits = model(batch["input_ids"]).logits
        probabilities = logits.float().softmax(dim=-1)[0]
        rows = []
        for t, (token, label) in enumerate(zip(row["input_ids"], row["labels"])):
            cells = [word(token, tokenizer), "-100" if label == -100 else word(label, tokenizer)]
            if t > 0:  # the position before a token predicts it
                guess = probabilities[t - 1].argmax().item()
                cells += [probabilities[t - 1, token].item(), word(guess, tokenizer),
                          probabilities[t - 1, guess].item()]
            rows.append(cells + [None] * (5 - len(cells)))
        loss = lesson.sft_loss(logits, batch["labels"]).item()
        tables.append(Table(f"{row['title'].strip()}  (loss {loss:.3f})",
                            ["token", "label", "p(token)", "likeliest", "its p"], rows))
    return tables, {
        "token": "the prompt, then the response and its end token, in the order of the text. A "
                 "piece of a letter (of a Chinese one, say) has the tokenizer's name for it",
        "label": "what the loss counts; -100 on the prompt, so that nothing is learned from it",
        "p(token)": "how likely the model found this token, given those before it; the loss is the "
                    "mean of -log p over the tokens with a label",
        "likeliest": "what the model would have said here, and how sure it was (its p)"}


@torch.no_grad()
def look_at_scores(lesson, config, run, accelerator):
    """Lesson 2: what the score would be if the answer stopped after each token."""
    model, tokenizer = lesson.make_reward_model(replace(config, model=str(run), **WHOLE))
    settings = model.model.config
    tables = []
    for row in lesson.tokenize_pairs(lesson.load_pairs(config)[1][:3], tokenizer, config):
        ends, prompt = {}, len(lesson.encode_prompts([row], tokenizer, config)[0])
        for name in "chosen", "rejected":
            ids = row[f"{name}_ids"]
            prefixes = [ids[:n] for n in range(prompt + 1, len(ids) + 1)]
            scores = lesson.score_answers(model, tokenizer, prefixes)
            scores = ((scores - settings.score_mean) / settings.score_std).tolist()
            ends[name] = [[word(x, tokenizer), score] for x, score in zip(ids[prompt:], scores)]
        pair = torch.tensor([[ends["chosen"][-1][1]], [ends["rejected"][-1][1]]])
        chance = lesson.preference_probability(*(pair * settings.score_std)).item()
        for name, rows in ends.items():
            tables.append(Table(f"{row['instruction']} ({name}; P(chosen wins) = {chance:.2f})",
                                ["token", "score so far"], rows, ("score so far",)))
    return tables, {
        "score so far": "what the score would be if the text ended here, in standard deviations "
                        "from an average answer. Only the last counts: it has seen it all",
        "P(chosen wins)": "sigmoid(chosen - rejected), of the scores before they are standardised"}


def look_at_ppo(lesson, config, run, accelerator):
    """Lesson 3: a step of the trained policy, from its samples to the ratios after one epoch: of
    the answers with the highest and the lowest reward."""
    rows, tokenizer, rollout, columns, clipped = ppo_step(lesson, config, run, accelerator)
    tables, totals = [], columns["reward"].sum(dim=1)  # the score, less what the KL costs
    for i in totals.argmax().item(), totals.argmin().item():
        lines = []
        for t in range(int(rollout.mask[i].sum())):
            token = word(rollout.response[i, t].item(), tokenizer)
            numbers = [column[i, t].item() for column in columns.values()]
            lines.append([token, *numbers, "clipped" if clipped[i, t] else ""])
        title = (f"{rows[i]['instruction']} (score {rollout.scores[i]:+.2f}, "
                 f"with the KL penalty {totals[i]:+.2f})")
        tables.append(Table(title, ["token", *columns, ""], lines,
                            ("reward", "delta", "A", "A whitened")))
    return tables, {
        "log p, log p_ref": "of the token, by the policy that sampled it and by the reference",
        "KL": "log p - log p_ref (k1)",
        "reward": "-beta KL, and the response's score on its last token",
        "V": "the rewards that the value head still expects, before this token",
        "delta": "reward + gamma V_next - V: was this token better than expected? At the end "
                 "V_next is 0",
        "A": "the deltas from here on, each next one weighted by gamma lambda",
        "return": "A + V: what V should have said",
        "A whitened": "A, over the whole batch, with mean 0 and variance 1: what the policy learns "
                      "from",
        "ratio": "p after one epoch of updates on this batch, over p when it was sampled; clipped: "
                 f"beyond 1 +- {config.clip_range} on the side that A wants, where the gradient "
                 "ends. (Adam begins afresh here, and so a little harder than in the run.)"}


def ppo_step(lesson, config, run, accelerator):
    """One step of a trained policy, as lesson 3's main() takes it, with one epoch of updates ->
    the prompts' rows, the tokenizer, the rollout, {column: numbers (B, T)}, clipped (B, T)."""
    heads = run / "model" / "value_head.safetensors"
    if not heads.is_file():
        lesson.die(f"{heads} is missing: train this run again")
    trained = replace(config, model=str(run), **WHOLE)
    lm, tokenizer = lesson.load_causal_lm(trained)
    first, _ = lesson.load_causal_lm(replace(config, **WHOLE))
    reward = lesson.load_rewards(trained, lesson.make_inputs(trained), tokenizer, lm)
    policy = lesson.CausalLMWithValueHead(lm.to(accelerator.device))
    policy.value_head.load_state_dict(load_file(heads))
    reference = lesson.make_reference(first.to(accelerator.device), trained)
    data, _ = lesson.load_prompts(config, tokenizer)
    rows = random.Random(config.seed).choices(data, k=config.num_samples)
    rollout = lesson.sample_responses(
        policy, reference, reward, tokenizer, rows, config, accelerator)
    kl = lesson.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1")
    rewards = lesson.shape_rewards(rollout.scores, kl, rollout.mask,
                                   config.kl_coef if config.kl_in == "reward" else 0.0)
    inputs = rewards, rollout.values, rollout.mask, config.gamma
    raw, rollout.returns = lesson.compute_gae(*inputs, config.lam)
    deltas, _ = lesson.compute_gae(*inputs, 0.0)  # with lambda 0 the advantage is delta
    rollout.advantages = lesson.masked_whiten(raw, rollout.mask)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, eps=1e-5)
    lesson.ppo_update(policy, optimizer, rollout, config.kl_coef,
                      replace(config, ppo_epochs=1), accelerator)
    with torch.no_grad():
        logits, _ = policy(rollout.ids, rollout.attention_mask, rollout.mask.shape[1])
        now = lesson.response_logprobs(logits, rollout.response, config.temperature)
    ratio = torch.exp(now - rollout.logprobs)
    clipped = torch.where(rollout.advantages > 0, ratio > 1 + config.clip_range,
                          ratio < 1 - config.clip_range)
    return rows, tokenizer, rollout, {
        "log p": rollout.logprobs, "log p_ref": rollout.ref_logprobs, "KL": kl, "reward": rewards,
        "V": rollout.values, "delta": deltas, "A": raw, "return": rollout.returns,
        "A whitened": rollout.advantages, "ratio": ratio}, clipped


def look_at_groups(lesson, config, run, accelerator):
    """Lesson 4: groups of answers to one prompt, those with a spread first."""
    trained = replace(config, model=str(run), **WHOLE)
    lm, tokenizer = lesson.load_causal_lm(trained)
    lm.to(accelerator.device)
    reward = lesson.load_rewards(trained, lesson.make_inputs(trained), tokenizer, lm)
    data, _ = lesson.load_grpo_prompts(config, tokenizer)
    size = config.group_size
    rows = random.Random(config.seed).choices(data, k=config.num_samples // size)
    rollout = lesson.sample_groups(lm, reward, tokenizer, rows, config, accelerator)
    advantages = lesson.group_advantages(rollout.rewards, size, config.scale)
    useful = lesson.informative_groups(rollout.rewards, size)
    current = lambda *inputs: lesson.response_logits(lm, *inputs)
    logprobs = lesson.all_logprobs(current, rollout, config, accelerator)
    tables = []
    order = useful.int().argsort(descending=True, stable=True).tolist()
    for group in dict.fromkeys(order[:2] + order[-1:]):
        answers = []
        for i in range(group * size, (group + 1) * size):
            length = int(rollout.mask[i].sum())
            text = tokenizer.decode(rollout.response[i, :length])
            answers.append([text, length, logprobs[i].sum().item(), rollout.rewards[i].item(),
                            advantages[i].item()])
        kept = "" if useful[group] else "; no spread: left out"
        tables.append(Table(f"{rows[group]['instruction']}{kept}", [
            "answer", "tokens", "log p", "reward", "A"], answers, ("reward", "A")))
    share = useful.float().mean()
    return tables, {
        "groups": f"{share:.0%} of the {len(useful)} groups of this batch have a spread, and teach",
        "log p": "of the whole answer, by the policy that sampled it",
        "reward": "of the answer; a cut one pays --missing_eos_penalty",
        "A": "(reward - the group's mean) / the group's standard deviation (--scale none: without "
             "it): all tokens of the answer get it. It adds up to 0 over a group"}


# ---- Laying out ---------------------------------------------------------------------------------


def first_of_each(rows, count, kind):
    """The first row of each kind, at most `count`."""
    found = {}
    for row in rows:
        found.setdefault(kind(row), row)
    return list(found.values())[:count]


def word(token, tokenizer):
    """A token's text; of some bytes of a character the tokenizer's name for them."""
    text = tokenizer.decode([token])
    if "\ufffd" in text:
        text = tokenizer.convert_ids_to_tokens(token)
    return text.replace(" ", "·")


def say(cell):
    """A cell as text on one line, whatever a model has written."""
    if cell is None:
        return ""
    is_number = isinstance(cell, float)
    text = f"{round(cell, 3) + 0.0:.3f}" if is_number else str(cell).replace("\n", "⏎")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def print_table(table):
    lines = [table.columns] + [[say(cell) for cell in row] for row in table.rows]
    widths = [max(width_of(line[i]) for line in lines) for i in range(len(table.columns))]
    print(f"\n{say(table.title)}")
    for line in lines:
        cells = [" " * (width - width_of(cell)) + cell for cell, width in zip(line, widths)]
        print("  ".join(cells))
    print()


def width_of(text):
    """How many columns of a terminal: a Chinese character has two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def page(title, legend, tables):
    """One HTML file that needs nothing else."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
             f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><dl>"]
    for name, meaning in legend.items():
        parts.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>")
    parts.append("</dl>")
    for table in tables:
        parts.append(f"<h2>{html.escape(say(table.title))}</h2><table><tr>")
        texts = [any(isinstance(row[i], str) for row in table.rows)
                 for i in range(len(table.columns))]
        for name, is_text in zip(table.columns, texts):
            parts.append(f"<th{' class=text' * is_text}>{html.escape(name)}</th>")
        for row in table.rows:
            parts.append("</tr><tr>")
            for name, cell, is_text in zip(table.columns, row, texts):
                parts.append(f"<td{' class=text' * is_text}{colour(table, name, cell)}>"
                             f"{html.escape(say(cell))}</td>")
        parts.append("</tr></table>")
    return "".join(parts)


def colour(table, name, cell):
    """Green or red, as strong as the number is among those of its column."""
    if cell == "clipped":
        return ' style="background: #ffd27f"'
    if name not in table.signed or not isinstance(cell, float):
        return ""
    place = table.columns.index(name)
    largest = max(abs(row[place]) for row in table.rows) or 1.0
    shade = "46, 160, 67" if cell > 0 else "215, 58, 73"
    return f' style="background: rgba({shade}, {0.6 * abs(cell) / largest:.2f})"'
