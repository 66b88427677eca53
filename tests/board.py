"""The exercises' side of pytest: options, the processes that run a student's code, which files are
collected, --watch, and the board at the end. conftest.py, here and in exercises/, takes it in.

A selection of exercises alone (pytest -k compute_gae, pytest -k "ex3 or ex4", pytest exercises/)
collects nothing else and imports little, so that the verdict is there in seconds."""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from checks.language import LANGUAGES, columns, language_of_the_locale, say, translated

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test needs the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: for tiny tensors threads only cost
ROOT = Path(__file__).resolve().parent.parent
WORKERS = pytest.StashKey()  # {folder: Worker}
SELECTED = pytest.StashKey()  # are only exercises asked for?
REMEMBERED = "exercises/board"  # in pytest's cache
WATCHING = say("Watching the exercises: save a file to check again, Ctrl-C to end.")


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--hint", type=int, choices=[1, 2, 3], default=1,
                    help="what a failed exercise says: 1 a question, 2 the formula, 3 the place")
    group.addoption("--exercises", default=str(ROOT / "exercises"),
                    help="the folder with ex1_sft.py and so on (default: exercises/)")
    group.addoption("--watch", action="store_true",
                    help="check again whenever a file of the exercises is saved, until Ctrl-C")
    group.addoption("--lang", choices=LANGUAGES, default=language_of_the_locale(),
                    help="of the exercises' board and hints (default: what the locale says)")


def blank_names():
    """{file: names of its blanks and of its training run}, in order, without importing torch."""
    names = {}
    for path in sorted((ROOT / "answers").glob("ex*.py")):
        defined = re.findall(r"^def (\w+)", path.read_text(encoding="utf-8"), re.M)
        names[path.stem] = [*defined, "training_run"]
    return names


def asks_for_exercises_alone(config):
    """Is exercises/ the only argument, or every word of -k a blank, ex1 to ex4, or a file?"""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return all((Path(config.invocation_params.dir) / arg.split("::")[0]).resolve()
                   in (ROOT / "exercises", ROOT / "tests" / "test_exercises.py")
                   for arg in config.args)
    words = set(re.findall(r"\w+", config.option.keyword)) - {"and", "or", "not"}
    names = blank_names()
    known = {name[:3] for name in names} | set(names) | set(sum(names.values(), [])) | {"ex"}
    return bool(words) and words <= known and not config.option.markexpr.strip("()") in (
        "slow", "hostile", "peft", "qlora", "lab")


def pytest_cmdline_main(config):
    """--watch: the same command without it, again after every change."""
    if not config.option.watch:
        return None
    command = [word for word in sys.argv[1:] if word != "--watch"]
    seen = None
    try:
        while True:
            files = Path(config.getoption("exercises")).glob("*.py")
            now = {path: path.stat().st_mtime_ns for path in files}
            if now != seen:
                seen = now
                print("\033[2J\033[H" * sys.stdout.isatty(), end="", flush=True)
                subprocess.run([sys.executable, "-m", "pytest", *command])
                print(translated(WATCHING, config.getoption("lang")), flush=True)
            time.sleep(0.3)
    except KeyboardInterrupt:
        return 0


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.stash[WORKERS] = {}
    config.stash[SELECTED] = asks_for_exercises_alone(config)
    if config.stash[SELECTED] and not config.option.collectonly:
        config.option.reportchars = "N"  # no list of failures after the board
        worker_for(config, config.getoption("exercises"))  # imports torch while we do


def worker_for(config, folder):
    """The process for this folder's code: one a session."""
    from checks.client import Worker

    workers = config.stash[WORKERS]
    if folder not in workers:
        workers[folder] = Worker(folder)
        workers[folder].start()
    return workers[folder]


def pytest_ignore_collect(collection_path, config):
    if config.stash[SELECTED] and collection_path.suffix == ".py":
        return collection_path.name not in ("test_exercises.py", "test_mine.py") or None
    return None


@pytest.fixture(scope="session")
def exercises_worker(request):
    return worker_for(request.config, request.config.getoption("exercises"))


@pytest.fixture(scope="session")
def answers_worker(request):
    return worker_for(request.config, str(ROOT / "answers"))


def pytest_report_teststatus(report):
    """An exercise that is not started is "todo", not skipped."""
    if report.skipped and ("exercise", "todo") in report.user_properties:
        return "todo", "t", "TODO"


def judged_now(terminalreporter):
    """{file: {name: status}} of this session."""
    found = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            status = dict(getattr(report, "user_properties", ())).get("exercise")
            if status and report.when == "call":
                file, name = report.nodeid.split("[")[1].rstrip("]").split(".")
                found.setdefault(file, {})[name] = status
    return found


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """The board, the last thing on the screen; and the processes end."""
    for worker in config.stash.get(WORKERS, {}).values():
        worker.stop()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter and (found := judged_now(reporter)):
        show_board(reporter, found, remember(config, found), config.getoption("lang"))


def remember(config, found):
    """What this session and earlier ones have found, for the same folder: {file: {name: status}}"""
    cache, folder = getattr(config, "cache", None), config.getoption("exercises")
    kept = cache.get(REMEMBERED, {}) if cache else {}
    statuses = kept.get(folder, {}) if isinstance(kept, dict) else {}
    for file, names in found.items():
        statuses[file] = {**statuses.get(file, {}), **names}
    if cache:
        cache.set(REMEMBERED, {folder: statuses})
    return statuses


def show_board(reporter, found, statuses, language):
    """A line a file, a mark a function: those of this session, how many are done in all, and what
    to do next."""
    names = blank_names()
    title = translated(say("exercises: + done, x wrong, . todo"), language)
    reporter.section(title, fullwidth=reporter.config.get_terminal_writer().fullwidth
                     + len(title) - columns(title))
    here = []
    for file in filter(found.get, names):
        results = [(name, found[file][name]) for name in names[file] if name in found[file]]
        here += [(file, name, status) for name, status in results]
        marks = {"passed": "+", "todo": "."}
        text = "  ".join(f"{marks.get(status, 'x')}_{name}" for name, status in results)
        lines = textwrap.wrap(text, 86)  # the mark stays with its name
        for start, line in zip([file] + [""] * len(lines), lines):
            reporter.write(f"{start:<12}")
            for i, mark in enumerate(line.split()):
                colour = {"+": "green", ".": "yellow"}.get(mark[0], "red")
                reporter.write("  " * (i > 0) + f"{mark[0]} {mark[2:]}", **{colour: True})
            reporter.write_line("")
    done = sum(statuses.get(file, {}).get(name) == "passed"
               for file in names for name in names[file])
    reporter.write_line(translated(say("{done} of {number} done.", done=done,
                                       number=sum(map(len, names.values()))), language))
    reporter.write_line(translated(what_is_next(here), language))


def what_is_next(here):
    """After the statuses [(file, name, status)] of this session."""
    wrong = [place for *place, status in here if status not in ("passed", "todo")]
    todo = [(file, name) for file, name, status in here
            if status == "todo" and name != "training_run"]
    for words, places in (
            ("Next: mend {name} in exercises/{file}.py, then pytest -k {name}", wrong),
            ("Next: fill in {name} in exercises/{file}.py, then pytest -k {name}", todo)):
        if places:
            file, name = places[0]
            return say(words, name=name, file=file)
    lesson = next(ROOT.glob(f"lesson{here[0][0][2]}_*.py")).name
    return say("Next: train with them: python {lesson} --exercise", lesson=lesson)
