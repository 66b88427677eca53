"""What the four files must have in common, read from their text: equal copies, no imports of one
another, and functions short enough to read."""

import ast

import pytest
from conftest import ROOT
from make_exercises import functions as top_level, is_stub, make_stubs

LESSONS = sorted(ROOT.glob("lesson[1-4]_*.py"))
OWN = {"Config", "BLANKS", "Rollout", "main"}  # each lesson has its own
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def source(node, lines):
    """The node's lines, its decorators included."""
    first = min([node.lineno] + [d.lineno for d in getattr(node, "decorator_list", [])])
    return "\n".join(lines[first - 1:node.end_lineno])


def definitions(path):
    """{name: text} of the functions, classes and constants at the top level."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target)
                     if isinstance(name, ast.Name)]
        else:
            names = []
        found |= {name: source(node, text.splitlines()) for name in names}
    return found


def functions(path):
    """[(name, first line, number of lines)], methods and nested functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    firsts = [min([node.lineno] + [d.lineno for d in node.decorator_list]) for node in nodes]
    return [(node.name, first, node.end_lineno - first + 1) for node, first in zip(nodes, firsts)]


def code(node):
    """What a function does: its tree without the docstring."""
    return ast.dump(node.args), [ast.dump(x) for x in node.decorator_list], [
        ast.dump(statement) for statement in node.body[ast.get_docstring(node) is not None:]]


def test_there_are_four_lessons():
    assert [path.stem[:7] for path in LESSONS] == ["lesson1", "lesson2", "lesson3", "lesson4"]


def test_what_two_lessons_define_is_the_same_to_the_letter():
    texts = {}
    for path in LESSONS:
        for name, text in definitions(path).items():
            texts.setdefault(name, {})[path.stem] = text
    shared = {name: by_lesson for name, by_lesson in texts.items() if len(by_lesson) > 1}
    assert {"response_logprobs", "format_prompt", "Run", "KINDS", "flag"} <= set(shared)
    different = {name: sorted(by_lesson) for name, by_lesson in shared.items()
                 if name not in OWN and len(set(by_lesson.values())) > 1}
    assert not different


@each_lesson
def test_a_lesson_imports_no_file_of_the_project_and_no_trl(path):
    own = {file.stem for folder in (".", "tests", "exercises", "answers")
           for file in (ROOT / folder).glob("*.py")} | {"tests", "exercises", "answers"}
    imported = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            imported.append(node.module)
    assert "torch" in imported
    assert not {name.split(".")[0] for name in imported} & (own | {"trl"})


def test_lines_have_at_most_100_columns():
    files = [path for folder in (".", "tests", "tests/*", "exercises", "answers")
             for path in ROOT.glob(f"{folder}/*.py")]
    assert len(files) > 30
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        long = [number for number, line in enumerate(lines, start=1) if len(line) > 100]
        assert not long, path


@each_lesson
def test_a_lesson_has_at_most_600_lines(path):
    """Blank lines and docstrings do not count: explaining more costs nothing."""
    text = path.read_text(encoding="utf-8")
    lines = {number for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    for node in ast.walk(ast.parse(text)):
        kinds = ast.FunctionDef, ast.ClassDef, ast.Module
        if isinstance(node, kinds) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    assert len(lines) <= 600


@each_lesson
def test_what_a_student_reads_has_at_most_600_lines(path):
    """All lines, blank ones and docstrings too, but for the housekeeping, which is the same in
    every lesson and has a bound of its own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("# ---- Housekeeping"))
    end = next(i for i, line in enumerate(lines) if i > begin and line.startswith("# ---- "))
    assert len(lines) - (end - begin) <= 600
    assert 100 < end - begin <= 220


@each_lesson
def test_functions_are_under_45_lines(path):
    long = [(name, length) for name, _, length in functions(path) if length >= 45]
    assert not [(name, length) for name, length in long
                if name != "main" and not name.startswith("train_")]


@each_lesson
def test_functions_of_the_maths_have_at_most_25_lines(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = next(n for n, line in enumerate(lines, 1) if line.startswith("# ---- The maths"))
    end = next(n for n, line in enumerate(lines, 1) if n > begin and line.startswith("# ---- "))
    maths = [(name, length) for name, first, length in functions(path) if begin < first < end]
    assert len(maths) >= 5
    assert not [(name, length) for name, length in maths if length > 25]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_flag_has_a_help_text_that_argparse_can_print(number, request):
    config = request.getfixturevalue(f"lesson{number}").Config
    for field in config.__dataclass_fields__.values():
        text = field.metadata.get("help")
        assert text and text.strip(), f"{field.name} has no help text"
        assert "%" not in text, f"a % in the help of {field.name} breaks --help"


EXERCISES = ["ex1_sft", "ex2_reward", "ex3_ppo", "ex4_grpo"]
each_exercise = pytest.mark.parametrize(
    "number, name", list(enumerate(EXERCISES, start=1)), ids=["1", "2", "3", "4"])


@each_exercise
def test_the_answers_are_the_lessons_functions(number, name):
    answers = top_level((ROOT / "answers" / f"{name}.py").read_text(encoding="utf-8"))
    lesson = top_level(LESSONS[number - 1].read_text(encoding="utf-8"))
    assert {key: code(node) for key, node in answers.items()} == {
        key: code(lesson[key]) for key in answers}
    assert list(answers) == [key for key in lesson if key in answers], "the lesson's order"


@each_exercise
def test_the_lesson_takes_all_blanks_with_exercise(number, name, request):
    blanks = request.getfixturevalue(f"lesson{number}").BLANKS
    answers = top_level((ROOT / "answers" / f"{name}.py").read_text(encoding="utf-8"))
    assert sorted(blanks[name].split()) == sorted(answers)


@each_exercise
def test_stubs_are_made_from_the_answers(number, name, tmp_path):
    """Stubs that a student has filled in are no longer compared, the others are."""
    made = top_level(make_stubs((ROOT / "answers" / f"{name}.py").read_text("utf-8"), name))
    text = (ROOT / "exercises" / f"{name}.py").read_text("utf-8")
    for key, node in top_level(text).items():
        if is_stub(node):
            assert ast.dump(node) == ast.dump(made[key]), f"{key}: python tests/make_exercises.py"


@each_exercise
def test_answers_import_only_torch_and_the_standard_library(number, name):
    tree = ast.parse((ROOT / "answers" / f"{name}.py").read_text("utf-8"))
    imports = {alias.name.split(".")[0] for node in ast.walk(tree)
               if isinstance(node, ast.Import) for alias in node.names}
    assert imports <= {"torch", "math", "re"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
