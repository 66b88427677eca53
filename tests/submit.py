"""Checks your exercises and packs them into one file to hand in: python tests/submit.py

It runs the checks of pytest exercises/, says what is wrong and what is still to do, and writes
submission.zip, with ex1_sft.py, ex2_reward.py, ex3_ppo.py and ex4_grpo.py as they are now."""

import argparse
import os
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from checks import FILES  # noqa: E402
from checks.client import Worker  # noqa: E402
from grading.submissions import MAX_BYTES, read  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LOAD_SECONDS = 20


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = fail
    parser.add_argument("archive", type=Path, nargs="?", default=Path("submission.zip"),
                        help="the file to write (submission.zip)")
    parser.add_argument("--exercises", type=Path, default=ROOT / "exercises", metavar="FOLDER",
                        help="where the four files are (exercises/)")
    parser.add_argument("--anyway", action="store_true",
                        help="also with a file that does not load, and that earns nothing")
    options = parser.parse_args(arguments)
    if options.archive.suffix != ".zip" or options.archive.is_dir():
        fail(f"{options.archive} is no name for a zip file: call it submission.zip")
    return options


def read_exercises(folder):
    """{"ex1_sft": bytes} of the four files."""
    contents = {}
    for file in FILES:
        path = folder / f"{file}.py"
        try:
            contents[file] = path.read_bytes()
        except OSError as error:
            fail(f"{path} cannot be read ({error.strerror}): all four files are handed in, also "
                 "those that are not begun; where are they? (--exercises FOLDER)")
        if len(contents[file]) > MAX_BYTES:
            fail(f"{path} is larger than {MAX_BYTES // 1024} KB, and would not be graded")
    return contents


def why_it_does_not_load(file, worker):
    """One line, or None where the file loads."""
    answer = worker.ask({"file": file, "function": "none", "inputs": {}, "grad": []}, LOAD_SECONDS)
    if answer["status"] == "missing":  # there is no function "none": the file was loaded
        return None
    from grading.examine import in_a_line  # imports torch: a mistyped command need not wait for it

    return f"{file}.py does not load: {in_a_line(answer['message'])}"


def check(file, worker, answers):
    """{name: "done", "wrong" or "to do"} of the functions and the training run of one file."""
    from checks import BLANKS, RUNS
    from checks.core import judge_in_worker, judge_run_in_worker

    words = {"passed": "done", "todo": "to do"}
    found = {blank.name: words.get(judge_in_worker(blank, worker).status, "wrong")
             for blank in BLANKS if blank.file == file}
    run = next(run for run in RUNS if run.file == file)
    is_ready = set(found.values()) == {"done"}
    status = judge_run_in_worker(run, worker, answers).status if is_ready else "todo"
    return {**found, run.name: words.get(status, "wrong")}


def check_all(contents, anyway):
    """Check copies of the files, and print a line a file. -> {(file, name): "done" and so on};
    nothing where the answers are not here to compare with."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for file, content in contents.items():
            Path(folder, f"{file}.py").write_bytes(content)
        worker, answers = Worker(folder), Worker(ROOT / "answers")
        try:
            problems = {file: why_it_does_not_load(file, worker) for file in contents}
            for file, problem in problems.items():
                if problem and not anyway:
                    fail(f"{problem}. Mend it; or hand in all the same, with --anyway: it earns "
                         "nothing")
            for file, problem in problems.items() if (ROOT / "answers").is_dir() else ():
                statuses = {} if problem else check(file, worker, answers)
                print(f"{file:<12}{problem or line_of(statuses)}", flush=True)
                found |= {(file, name): status for name, status in statuses.items()}
        finally:
            worker.stop()
            answers.stop()
    return found


def line_of(statuses):
    names = {word: [name for name, status in statuses.items() if status == word]
             for word in ("wrong", "to do")}
    done = sum(status == "done" for status in statuses.values())
    return f"{done} of {len(statuses)} done" + "".join(
        f"; {word}: {', '.join(here)}" for word, here in names.items() if here)


def write_archive(contents, path):
    """The whole file or none: what was there before stays until the new one has been read back as
    the grader will."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in contents.items():
                archive.writestr(f"{file}.py", content)
        if read(fresh, "mine", FILES).files != contents:
            raise OSError(0, "what was written reads otherwise")
        os.replace(fresh, path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    finally:
        fresh.unlink(missing_ok=True)


def what_is_left(found):
    """The last lines: how much is done, and what to do next."""
    if not found:
        return "Not checked: the folder answers/ is not here to compare with."
    done = sum(status == "done" for status in found.values())
    lines = [f"{done} of {len(found)} done."]
    for word, verb in ("wrong", "mend"), ("to do", "fill in"):
        for (file, name), status in found.items():
            if status == word and name != "training_run":
                return "\n".join([*lines, f"Next: {verb} {name} in {file}.py (pytest -k {name}), "
                                          "and run this again."])
    return "\n".join(lines)


def main(arguments):
    options = parse(arguments)
    contents = read_exercises(options.exercises)
    try:
        found = check_all(contents, options.anyway)
        write_archive(contents, options.archive)
    except KeyboardInterrupt:
        fail("interrupted: nothing was written")
    print(what_is_left(found))
    print(f"Written: {options.archive}. Hand in this file, under any name.")


if __name__ == "__main__":
    main(sys.argv[1:])
