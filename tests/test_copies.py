"""What the four files must have in common, read from their text: equal copies, no imports of one
another, and functions short enough to read."""

import ast

import pytest
from conftest import ROOT
from make_exercises import functions as top_level, is_stub, make_stubs
from sync_copies import LESSONS, carry, definitions, differing, housekeeping_line

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


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
    names = [set(definitions(path)) for path in LESSONS]
    assert {"start", "from_pretrained", "Run", "flag", "FREE_TO_CHANGE"} <= set.intersection(*names)
    assert not differing()


def test_copies_are_carried_from_the_lesson_that_was_edited(tmp_path, monkeypatch):
    """Functions with decorators, classes and constants; what only one lesson has stays."""
    import sync_copies

    one, two = tmp_path / "lesson1_a.py", tmp_path / "lesson2_b.py"
    doc = '"""Housekeeping begins, at line 9."""\n'
    end = "\n# ---- Housekeeping\n"
    g, c, x = "@f\ndef g():\n    return 1\n", "class C:\n    x = 1\n", "X = (1,\n     2)\n"
    h, config = "def h():\n    pass\n\n", "\nclass Config:\n    x = 2\n"
    one.write_text(f"{doc}{x}\n{g}\n{c}{config.replace('2', '1')}{end}")
    two.write_text(f"{doc}{h}def g():\n    return 2\n\nclass C:\n    x = 2\n\nX = 3\n{config}{end}")
    monkeypatch.setattr(sync_copies, "LESSONS", [one, two])
    assert set(differing()) == {"X", "g", "C"}
    carry(one, ["C"])
    assert set(differing()) == {"X", "g"}
    carry(one, [])
    assert not differing()
    doc = doc.replace("9", "18")
    assert two.read_text() == f"{doc}{h}{g}\n{c}\n{x}{config}{end}"


@each_lesson
def test_the_docstring_says_where_the_lesson_ends(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert f"Housekeeping begins, at line {housekeeping_line(text)}." in docstring


def section_of(path):
    """{name of a function or class at the top level: the heading above it}"""
    lines = path.read_text(encoding="utf-8").splitlines()
    heads = [(n, line[7:].split(" ---")[0]) for n, line in enumerate(lines, 1)
             if line.startswith("# ---- ")]
    return {node.name: [head for n, head in heads if n < node.lineno][-1]
            for node in ast.parse("\n".join(lines)).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@each_lesson
def test_the_algorithm_comes_first_and_housekeeping_last(path):
    headings = list(dict.fromkeys(
        head.split(":")[0].split(" and ")[0] for head in section_of(path).values()))
    assert headings == ["Settings", "The maths", "Data", "Models", "The algorithm", "Housekeeping"]
    names = list(section_of(path))
    before = names[:names.index("main") + 1]
    assert names[len(before)] == "die"  # main is the last thing that is read


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


# Of Housekeeping: too many, and no more than today.
HOUSEKEEPING_LINES = {"lesson1": 685, "lesson2": 634, "lesson3": 798, "lesson4": 798}
BOUNDS = {"lesson1": 550, "lesson2": 480, "lesson3": 550, "lesson4": 550}


@each_lesson
def test_what_a_student_reads_is_bounded(path):
    """All lines from the docstring to Housekeeping, and those of Housekeeping, as wc -l counts."""
    text = path.read_text(encoding="utf-8")
    read = housekeeping_line(text) - 1
    assert read <= BOUNDS[path.stem[:7]]
    assert text.count("\n") - read <= HOUSEKEEPING_LINES[path.stem[:7]]


@each_lesson
def test_functions_have_at_most_40_lines_and_main_80(path):
    long = {name: length for name, _, length in functions(path) if length > 40}
    assert set(long) <= {"main"} and long.get("main", 0) <= 80


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
