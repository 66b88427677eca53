"""Everything that a student reads of the checks is there in Chinese, and nothing else is."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent / "fixtures")]

from checks import BLANKS, core, hints, language, zh  # noqa: E402
from checks.core import Run, collect, judge, report  # noqa: E402
from checks.language import (  # noqa: E402
    MARK, PLACEHOLDER, language_of_the_locale, question_of, say, translated, whole)
from conftest import ROOT  # noqa: E402
from natural_mistakes import DOUBLE, versions  # noqa: E402
from perform import perform  # noqa: E402

SPEAKING = ["checks/core.py", "checks/hints.py", "checks/client.py", "board.py"]
# Three English words in a row, or one that is no code.
ENGLISH = re.compile(
    r"[A-Za-z]{2,},? [a-z]{2,},? [a-z]{2,}|\b(?:padding|gradient|without|expected)\b")


def constants(node):
    """The texts of an expression, also of "a" if x else "b"."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) else set()


def templates(path):
    """What goes through say(...) in a file, be it by way of a variable called `words`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say":
            found |= constants(node.args[0])
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "words":
            found |= constants(node.value)
        elif isinstance(node, ast.For) and "words" in ast.unparse(node.target):
            for pair in getattr(node.iter, "elts", []):
                found |= constants(pair.elts[0])
    return found


def of_the_blanks():
    notes = {case.note for blank in BLANKS for seed in range(4) for case in blank.cases(seed)}
    return {"HINTS": {mistake.hint for blank in BLANKS for mistake in blank.mistakes},
            "FORMULAS": {blank.formula for blank in BLANKS},
            "PHRASES": {phrase for note in notes for phrase in note.split(", ")} | {"made smaller"}}


def originals():
    """{name of a table in zh.py: the English texts that belong into it}."""
    found = of_the_blanks()
    texts = {words for _, words in hints.DETECTORS.values()}.union(*map(templates, SPEAKING))
    return {**found, "TEXTS": texts - found["PHRASES"]}


@pytest.mark.parametrize("table", ["HINTS", "FORMULAS", "PHRASES", "TEXTS"])
def test_every_text_is_translated_and_every_translation_has_a_text(table):
    wanted, there = originals()[table], set(getattr(zh, table))
    assert not wanted - there, f"not translated in {table} of tests/checks/zh.py"
    assert not there - wanted, f"nobody says this any more: {table} of tests/checks/zh.py"


def test_placeholders_are_those_of_the_original():
    for english, chinese in zh.SENTENCES.items():
        assert sorted(PLACEHOLDER.findall(english)) == sorted(PLACEHOLDER.findall(chinese)), english


def test_numbers_and_code_are_those_of_the_original():
    """In the questions: what they say of the case in figures."""
    code = r"[\w.]+\([^)]*\)|--\w+|-?\d+(?:\.\d+)?"
    for english, chinese in zh.QUESTIONS.items():
        missing = set(re.findall(code, english)) - set(re.findall(code, chinese))
        assert not missing, (english, missing)


def test_an_opening_and_its_question_are_told_apart_in_both_languages():
    """What comes after the mark is a question that holds whatever else is wrong."""
    marked = 0
    for both in zh.HINTS.items():
        assert both[0].count(MARK) == both[1].count(MARK) <= 1, both
        marked += MARK in both[0]
        for hint, end in zip(both, ".。"):
            opening, question = hint.rpartition(MARK)[0], question_of(hint)
            assert not opening or opening.strip().endswith(end), opening
            assert "?" in question or "？" in question, question
            assert not re.search(r"\b(it agrees|expected one|(is|are) right\.)|一致|正确值|是对的",
                                 question), question
            assert whole(hint).replace(" ", "") == (opening + question).replace(" ", "")
    assert marked >= 200


def test_the_translations_are_chinese():
    for english, chinese in zh.SENTENCES.items():
        if re.search(r"[a-z]{3,} [a-z]{3,} [a-z]{3,}", english):
            assert re.search(r"[\u4e00-\u9fff]{2}", chinese), english
        half_width, no_space = "[一-鿿][,;?!:]", "[一-鿿][A-Za-z0-9]|[A-Za-z0-9][一-鿿]"
        assert not re.search(f"{half_width}|{no_space}", chinese), chinese


def wrong_versions():
    """A Result of known mistakes, of something odd, of a factor, and of versions with two slips."""
    answers = {blank.name: getattr(core.load_answers(blank.file), blank.name) for blank in BLANKS}
    slips = list(versions(DOUBLE, answers))
    for blank in BLANKS:
        functions = [mistake.function for mistake in blank.mistakes[:3]]
        functions += [lambda *inputs: None, lambda *inputs: 1 / 0]
        functions.append(lambda *inputs: doubled(answers[blank.name](*inputs)))
        functions += [function for name, *_, function in slips if name == blank.name]
        for function in functions:
            yield judge(blank, *collect(blank, lambda request: perform(
                function, request["inputs"], request["grad"])))


def doubled(output):
    return tuple(map(doubled, output)) if isinstance(output, tuple) else output * 2


def prose(text):
    """A report without the student's values, code and names."""
    lines = [line for line in text.splitlines()
             if not re.match(r"  (\w+ {2,}|你的|应为)| {4}", line)]
    return re.sub(r'"[^"]*"|“[^”]*”|\w+\([^)]*\)', "", "\n".join(lines))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:std")  # of one number
def test_a_chinese_report_has_no_english_left():
    for result in wrong_versions():
        text = report(result, 3, "zh")
        assert not ENGLISH.search(prose(text)), text
        assert len(text.splitlines()) == len(report(result, 3).splitlines())


@pytest.mark.parametrize("status, message, chinese", [
    ("missing", "there is no ex1_sft.py", "没有文件 ex1_sft.py"),
    ("missing", "ex1_sft.py has no format_prompt", "ex1_sft.py 里没有 format_prompt"),
    ("blocked", "shift", "它调用了还没写的 shift：请先填那个空"),
    ("not_loaded", "E: x", "ex1_sft.py 无法加载：E: x"),
    ("crashed", say("the process ended in the call ({code})", code=say("exit code {number}",
                                                                       number=3)),
     "调用时进程结束了（退出码 3）")])
def test_what_became_of_a_process_is_translated(status, message, chinese):
    blank = BLANKS[0]
    result = judge(blank, blank.cases(0), [], {"status": status, "message": message})
    assert report(result, 1, "zh").startswith(f"ex1_sft.format_prompt: {chinese}\n")


def test_what_is_wrong_in_a_training_run_is_translated():
    step = {"loss": torch.tensor(1.0)}
    result = core.judge_run(Run("ex3_ppo"), {"status": "returned", "steps": [
        {"loss": torch.tensor(2.0)}]}, {"steps": [step]})
    assert report(result, 1, "zh") == """\
ex3_ppo.training_run: 在训练的第 1 步，“loss”的数值不对
  你的            2
  应为            1
  提示：单个函数都通过了吗？见 pytest -k ex3_ppo
  再来一次：pytest -k "ex3_ppo and training_run\""""


def test_a_translation_is_put_together_from_translations():
    note = core.a_few(["one row", "one token", "no padding", "padding"])
    few = say(" ({notes})", notes=note)
    assert few == " (one row; one token; no padding; and 1 more)"
    assert translated(few, "zh") == "（一行；一个词元；没有填充；另有 1 个）"
    assert translated(few, "en") is few
    assert translated("one row, made smaller", "zh") == "一行，已缩小"
    assert translated("one row, and a new phrase", "zh") == "one row, and a new phrase"
    assert language.columns("一行 a") == 6 and language.padded("一行", 6) == "一行  "


@pytest.mark.parametrize("variables, expected", [
    ({"LANG": "zh_CN.UTF-8"}, "zh"), ({"LANG": "zh_TW"}, "zh"), ({"LANG": "en_US.UTF-8"}, "en"),
    ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"), ({"LC_ALL": "zh_CN.UTF-8"}, "zh"),
    ({"LANG": "C", "LC_MESSAGES": "zh_CN"}, "zh"), ({"LANG": ""}, "en")])
def test_the_locale_decides(variables, expected, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("locale.getlocale", lambda: (None, None))
    assert language_of_the_locale() == expected
    monkeypatch.setattr("locale.getlocale", lambda: ("Chinese (Simplified)_China", "936"))
    assert language_of_the_locale() == (expected if any(variables.values()) else "zh")


@pytest.mark.slow
def test_pytest_speaks_the_language_that_was_asked_for(tmp_path):
    for file in core.ROOT.glob("exercises/ex*.py"):
        (tmp_path / file.name).write_text(file.read_text("utf-8"), "utf-8")
    name = tmp_path / "ex2_reward.py"
    name.write_text(name.read_text("utf-8").replace(
        'raise NotImplementedError("ex2_reward.last_token_index")',
        "return attention_mask.sum(dim=1) - 1"), "utf-8")

    def seen(*options, **variables):
        env = {key: value for key, value in os.environ.items() if key not in ("LC_ALL", "LANG")}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-k", "last_token_index", f"--exercises={tmp_path}",
             "-p", "no:cacheprovider", *options], cwd=ROOT, capture_output=True, encoding="utf-8",
            env={**env, "PYTHONUTF8": "1", **variables})
        assert done.returncode == 1, done.stdout
        return done.stdout

    for english in seen("--lang=en", LANG="zh_CN.UTF-8"), seen(LANG="C.UTF-8"):
        assert "hint: Rows without padding on the left agree." in english
        assert "Next: mend last_token_index" in english and "提示" not in english
    for chinese in seen("--lang=zh", LANG="C.UTF-8"), seen(LANG="zh_CN.UTF-8"):
        assert "提示：左侧没有填充的行都对。" in chinese and "x last_token_index" in chinese
        assert chinese.splitlines()[-1].startswith("下一步：修改 exercises/ex2_reward.py")
        assert "hint: " not in chinese
