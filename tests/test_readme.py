"""The README's table of settings is the lessons', and `python tests/test_readme.py` prints it; its
report of a failed check is a real one. Links lead somewhere; answers/README.md has every blank.
The Chinese pages have all that the English ones have, block by block."""

import itertools
import re
from dataclasses import fields

import pytest
from checks import BLANKS
from checks.core import collect, judge, report
from conftest import ROOT, load_lesson
from perform import perform


def configs():
    for number in (1, 2, 3, 4):
        yield {field.name: field for field in fields(load_lesson(number).Config)}


def show(field):
    if field is None:
        return "-"
    return "" if field.default in (None, "") else f"`{field.default}`"


def settings_table():
    lessons = list(configs())
    names = list(dict.fromkeys(name for lesson in lessons for name in lesson))
    lines = ["| flag | 1 | 2 | 3 | 4 | what it is |", "| --- |" + " --- |" * 5]
    for name in names:
        columns = [lesson.get(name) for lesson in lessons]
        first = next(column for column in columns if column is not None)
        aliases = [alias for alias in first.metadata.get("aliases", []) if "_" in alias]
        helps = list(dict.fromkeys(c.metadata["help"] for c in columns if c is not None))
        flag = ", ".join(f"`{text}`" for text in [f"--{name}", *aliases])
        cells = " | ".join(map(show, columns))
        text = "; or: ".join(helps).replace("<", "&lt;").replace("|", "\\|")
        lines.append(f"| {flag} | {cells} | {text} |")
    return "\n".join(lines)


def test_the_readme_has_no_placeholder_left():
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_setting_with_its_default():
    assert settings_table() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page, language", [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_readme_shows_what_a_failed_check_says(page, language):
    """To the letter, for the function that takes all padding to be on the right."""
    def wrong(attention_mask):
        return attention_mask.sum(dim=1) - 1

    blank = next(blank for blank in BLANKS if blank.name == "last_token_index")
    text = report(judge(blank, *collect(blank, lambda request: perform(
        wrong, request["inputs"], request["grad"]))), language=language)
    assert f"```\n{text}\n```" in (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_counts_the_known_mistakes():
    """To the nearest ten."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = int(re.search(r"about (\d+) well-known mistakes", text)[1])
    assert said == round(sum(len(blank.mistakes) for blank in BLANKS), -1)


def test_the_settings_stand_at_the_end():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(settings_table())
    assert text.index("\n## Layout") < text.index("\n## All settings")


PAIRS = ["README", "exercises/README", "exercises/WHY", "exercises/EXPERIMENTS"]
CHINESE = [f"{pair}.zh-CN.md" for pair in PAIRS]


@pytest.mark.parametrize("page", [
    "answers/README.md", "exercises/TEACHING.md", *CHINESE,
    *(f"{pair}.md" for pair in PAIRS)])
def test_every_link_leads_somewhere(page):
    """To a file that is there, and to a heading that it has."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                              for title in titles], target


# ---- The Chinese pages --------------------------------------------------------------------------

COMMAND = re.compile(r"\s*(python|pytest|pip|torchrun|tensorboard|--) ?")
DESCRIPTION = re.compile(r"\s+#.*| {2,}(?![-\\ ]).*")  # what stands beside a command
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])(?<![A-Za-z_]-)-?\d+(?:[.,]\d+)*")
ONLY_HERE = "<!-- only in Chinese -->"


def kind_of(line):
    """Of the first line of a block."""
    kinds = {r" *```": "code", r"#": "heading", r"\|": "table", r"!\[": "picture", r"<!--": "mark",
             r"(-|\d+\.) ": "item"}
    return next((kind for start, kind in kinds.items() if re.match(start, line)), "text")


def blocks(text):
    """-> [(kind, lines)]: headings, tables, pictures, blocks of code, list items, paragraphs."""
    found, open_block = [], False
    for line in text.splitlines():
        kind, in_code = kind_of(line), open_block and found[-1][0] == "code"
        if in_code:
            found[-1][1].append(line)
            open_block = kind != "code"
        elif not line.strip():
            open_block = False
        elif open_block and (kind == "text" or kind == found[-1][0] == "table"):
            found[-1][1].append(line)
        else:
            found.append((kind, [line]))
            open_block = kind not in ("heading", "mark")
    return found


def numbers(text):
    return sorted(NUMBER.findall(text))


def in_prose(text):
    """Code, links and numbers of a sentence or a cell, in any order."""
    code = re.findall(r"`[^`]+`", text)
    rest = re.sub(r"`[^`]+`", " ", text)
    links = [target.replace(".zh-CN", "").partition("#")[0]
             for target in re.findall(r"\]\(([^)]+)\)", rest)]
    return sorted(code), sorted(links), numbers(re.sub(r"\]\([^)]+\)", " ", rest))


def in_both(kind, lines):
    """What a block has in every language."""
    if kind == "heading":
        return kind, lines[0].split()[0], numbers(lines[0])
    if lines[0] == "```python":
        return lines
    if kind == "code":
        return [DESCRIPTION.sub("", line.strip()).split() if COMMAND.match(line) else numbers(line)
                for line in lines]
    if kind == "table":
        return [[in_prose(cell) for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    text = " ".join(lines)
    return (kind, text) if kind == "mark" else (kind, *in_prose(text))


def read(page):
    """The blocks of a page, without those that only the Chinese one has."""
    all_blocks = blocks((ROOT / page).read_text(encoding="utf-8"))
    marked = [i for i, (_, lines) in enumerate(all_blocks) if lines[0] == ONLY_HERE]
    return [block for i, block in enumerate(all_blocks) if not {i, i - 1} & set(marked)]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_chinese_page_says_all_that_the_english_one_says(pair):
    """Headings, commands, tables, pictures, list items and paragraphs, in order; in each of them
    the same code, links and numbers."""
    both = itertools.zip_longest(read(f"{pair}.md"), read(f"{pair}.zh-CN.md"),
                                 fillvalue=("nothing", ["nothing"]))
    differences = ["\n".join([*english[1], "---", *chinese[1]]) for english, chinese in both
                   if in_both(*english) != in_both(*chinese)]
    assert not differences, "\n\n".join(differences)


@pytest.mark.parametrize("page", CHINESE)
def test_the_chinese_is_set_as_chinese(page):
    """Full-width punctuation, a space between Chinese and Latin, the field's terms."""
    for kind, lines in blocks((ROOT / page).read_text(encoding="utf-8")):
        text = re.sub(r"\]\([^)]*\)|[`*\[\]]", "", " ".join(lines))
        for wrong in (r"[一-鿿][,;:?!](?!\d)", r"[一-鿿][A-Za-z0-9]", r"[A-Za-z0-9][一-鿿]",
                      r"令牌|奖励作弊|修剪|剪裁|截断比|得分函数"):
            assert kind == "code" or not re.search(wrong, text), (re.findall(
                f".{{0,9}}(?:{wrong}).{{0,9}}", text))


def test_blocks_and_what_they_have_in_common():
    page = """# A
Text of
two lines.
- item `--x` 1
  goes on
- item 2
  ```
  python a.py  --x 1   # words
  ```
| a | b |
| --- | --- |
| 1.5 | x |"""
    found = blocks(page)
    assert [kind for kind, _ in found] == ["heading", "text", "item", "item", "code", "table"]
    assert in_both(*found[2]) == ("item", ["`--x`"], [], ["1"])
    assert in_both(*found[4]) == [[], ["python", "a.py", "--x", "1"], []]
    assert in_both(*found[5])[2][1] == ([], [], ["1.5"])
    assert numbers("GPT-2, k1, 0.30-0.75, -3 and 6,000") == ["-3", "0.30", "0.75", "6,000"]


def test_the_answers_are_explained():
    """Every blank, in order, with its question answered and known mistakes by their names."""
    text = (ROOT / "answers" / "README.md").read_text(encoding="utf-8")
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries] == [blank.name for blank in BLANKS]
    for blank, entry in zip(BLANKS, entries):
        answer = entry.split("\n\n")[1]
        assert re.match(r"\*[^*]+\?\* .{80,}", " ".join(answer.split())), blank
        known = {re.sub(r" \(\d+\)$", "", mistake.name) for mistake in blank.mistakes}
        named = re.findall(r"^\| (?!mistake|---)(.*?) \| .{30,} \|$", entry, re.MULTILINE)
        assert len(named) >= 2 and set(named) <= known, (blank, set(named) - known)


def test_the_page_for_teachers_has_every_blank_in_its_lesson():
    """A session a lesson, its blanks in order with what confuses and what helps, and questions with
    answers; and every experiment in the table of the homework."""
    text = (ROOT / "exercises" / "TEACHING.md").read_text(encoding="utf-8")
    sessions = re.split(r"^## ", text, flags=re.MULTILINE)
    for number, file in enumerate(dict.fromkeys(blank.file for blank in BLANKS), 1):
        session = next(part for part in sessions if part.startswith(f"Session {number}: "))
        rows = re.findall(r"^\| `(\w+)` \| (.{10,}) \| (.{10,}) \|$", session, re.MULTILINE)
        assert [row[0] for row in rows] == [b.name for b in BLANKS if b.file == file]
        assert "**Goals.**" in session
        questions = re.findall(r"^\d\. \*[^*]+\?\* .{40,}", session, re.MULTILINE)
        assert len(questions) >= 4, (number, questions)
    homework = next(part for part in sessions if part.startswith("The experiments as homework"))
    sheet = (ROOT / "exercises" / "EXPERIMENTS.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (\d)\. ", sheet, re.MULTILINE)
    assert re.findall(r"^\| \[(\d)\]\(EXPERIMENTS", homework, re.MULTILINE) == titles
    points = re.findall(r"^\| (\d), the ", homework, re.MULTILINE)
    assert sum(map(int, points)) == int(re.search(r"\| points of (\d+) \|", homework)[1])


if __name__ == "__main__":
    print(settings_table())
