"""The README's table of settings is the lessons': `python tests/test_readme.py` prints it."""

from dataclasses import fields

from conftest import ROOT, load_lesson


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


if __name__ == "__main__":
    print(settings_table())
