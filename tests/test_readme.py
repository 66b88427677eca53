"""The README's table of settings is the lessons', and `python tests/test_readme.py` prints it; its
report of a failed check is a real one. Links lead somewhere; answers/README.md has every blank."""

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
        text = "; or: ".join(helps).replace("<", "&lt;")
        lines.append(f"| {flag} | {cells} | {text} |")
    return "\n".join(lines)


def test_the_readme_has_no_placeholder_left():
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_setting_with_its_default():
    assert settings_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_a_failed_check_says():
    """To the letter, for the function that takes all padding to be on the right."""
    def wrong(attention_mask):
        return attention_mask.sum(dim=1) - 1

    blank = next(blank for blank in BLANKS if blank.name == "last_token_index")
    text = report(judge(blank, *collect(blank, lambda request: perform(
        wrong, request["inputs"], request["grad"]))))
    assert f"```\n{text}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_counts_the_known_mistakes():
    """To the nearest ten."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = int(re.search(r"about (\d+) well-known mistakes", text)[1])
    assert said == round(sum(len(blank.mistakes) for blank in BLANKS), -1)


def test_the_settings_stand_at_the_end():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.rstrip().endswith(settings_table())
    assert text.index("\n## Layout") < text.index("\n## All settings")


@pytest.mark.parametrize("page", ["README.md", "exercises/README.md", "exercises/WHY.md",
                                  "exercises/TEACHING.md", "answers/README.md"])
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
