"""What a student reads of the checks, in English or in Chinese.

Inside it is all English. A sentence that is put together goes through `say`, which keeps what it
was made from; the report is translated when it is written. The translations are in zh.py, which is
imported only where they are asked for."""

import locale
import os
import re
from unicodedata import east_asian_width

LANGUAGES = ["en", "zh"]
MARK = "|"  # between the opening of a known mistake's hint and its question
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Said(str):
    """An English sentence that knows its template and what was put into it."""


def say(template, **values):
    """The template with its {names} filled in."""
    said = Said(PLACEHOLDER.sub(lambda found: str(values[found[1]]), template))
    said.template, said.values = template, values
    return said


def whole(hint):
    """The opening, which says what is right, and the question."""
    return hint.replace(MARK + " ", "").replace(MARK, "")


def question_of(hint):
    """Without the opening, which is true only of a version that has no other mistake."""
    return hint.rpartition(MARK)[2].strip()


def language_of_the_locale():
    """The first of the variables that is set decides; without one, what the system says
    (Windows)."""
    names = [os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    name = next(filter(None, names), None) or locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


def translated(text, language):
    """A sentence, or a number or name inside of one, in that language. What has no translation
    stays English."""
    if language == "en" or not isinstance(text, str):
        return text
    from .zh import SENTENCES, of_a_note, of_the_finished

    if not isinstance(text, Said):
        return SENTENCES.get(text) or of_a_note(text) or of_the_finished(text) or text
    values = {name: str(translated(value, language)) for name, value in text.values.items()}
    template = SENTENCES.get(text.template, text.template)
    return PLACEHOLDER.sub(lambda found: values[found[1]], template)


def columns(text):
    """How wide it is on a terminal, where a Chinese character takes two columns."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def padded(text, width):
    return text + " " * (width - columns(text))
