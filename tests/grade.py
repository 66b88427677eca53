"""Grades a folder of submissions: python tests/grade.py cohort/ --out out/

A submission is a folder, a clone of a repository or a zip file with any of ex1_sft.py,
ex2_reward.py, ex3_ppo.py and ex4_grpo.py in it. `python tests/grade.py alice/ --one` grades one.
Grading that was interrupted goes on where it stopped; who has changed a file is graded again.

The students' code runs in processes that have given up what the system lets them give up (see
tests/INSTRUCTORS.md); those only compute, and this one judges."""

import argparse
import json
import math
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from checks import FILES, RUNS  # noqa: E402
from checks.client import LockedWorker, Nursery  # noqa: E402
from checks.core import ROOT, load_answers  # noqa: E402
from grading import examine, gradebook, reports, similarity  # noqa: E402
from grading.submissions import find_cohort, read, sort_out  # noqa: E402
from tqdm import tqdm  # noqa: E402

FIRST_TIER = {"landlock", "seccomp"}


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = fail
    parser.add_argument("cohort", type=Path,
                        help="a folder of submissions; or one: a zip file, or a folder with --one")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where to write (out)")
    parser.add_argument("--one", action="store_true",
                        help="the folder is one submission, whatever is in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="submissions at a time")
    parser.add_argument("--strict", action="store_true",
                        help="refuse to grade without the first tier: landlock and seccomp")
    parser.add_argument("--salvage", type=float, nargs="?", const=0.5, default=0, metavar="SHARE",
                        help="of a file that does not load, grade the functions that parse, for "
                        "this share of their points (0.5)")
    parser.add_argument("--roster", type=Path, metavar="FILE",
                        help="a CSV file with names and ids, such as the gradebook's export")
    parser.add_argument("--format", choices=["canvas", "moodle"],
                        help="also write canvas.csv or moodle.csv, to be imported there")
    parser.add_argument("--assignment", default="RLHF exercises", metavar="NAME",
                        help="the column's name in that file (RLHF exercises)")
    parser.add_argument("--similarity", action="store_true",
                        help="also write similarity.csv: pairs of submissions to look at")
    parser.add_argument("--pass_mark", type=float, default=None,
                        help="exit with 1 if somebody has fewer points (for GitHub Classroom)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        fail("--jobs must be at least 1")
    if options.format and not options.roster:
        fail("--format needs --roster: the ids that are imported stand there")
    if not 0 <= options.salvage <= 1:
        fail("--salvage must be between 0 and 1")
    if options.pass_mark is not None and not math.isfinite(options.pass_mark):
        fail("--pass_mark must be a number")
    return options


def check_output(options):
    """The output may lie among the submissions, and must not be one of them."""
    out = options.out
    is_old = (out / "state").is_dir() or (out / "grades.csv").is_file()
    inside = out.resolve().parent == options.cohort.resolve()
    if inside and out.is_dir() and any(out.iterdir()) and not is_old:
        fail(f"--out {out} is one of the submissions")


def protections_here(nursery, folder):
    """What a worker can give up on this system."""
    worker = LockedWorker(folder, nursery)
    worker.ask({"file": "none", "function": "none", "inputs": {}, "grad": []}, 60)
    worker.stop()
    return worker.protections


def runs_of_the_answers():
    """What the answers record in the training runs; computed in the trusted process."""
    from runs import train  # imports transformers: a mistyped command need not wait for that

    return {run.file: train(load_answers(run.file), run.file) for run in RUNS}


def graded_before(submission, out):
    """The grade from an earlier, interrupted or finished, run, if the files are the same."""
    path = out / "state" / f"{submission.name}.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        same = (state["name"], state["digest"]) == (submission.name, examine.state_of(submission))
        return examine.Grade(**state) if same else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def grade_cohort(cohort, options, nursery, answers_runs):
    """-> the grades, in the cohort's order, each with its reports."""
    grades = grade_side_by_side(cohort, options, nursery, answers_runs)
    late = [i for i, grade in enumerate(grades) if grade.late]
    for i in tqdm(late, desc="timeouts, once more", disable=not late):
        grades[i] = grade_once_more(cohort[i], grades[i], options, nursery, answers_runs)
    return grades


def handed_in(place, options):
    submission = read(*place, FILES)
    submission.salvage = options.salvage
    return submission


def judged(submission, examined, answers_runs):
    """-> the Grade. `examined()` gives what examine.examine found, or raises what it raised."""
    try:
        return examine.grade(submission, examined(), answers_runs)
    except Exception as error:  # one submission never stops the others
        return examine.failed(submission, error)


def written(grade, submission, out):
    """The grade, with its reports written."""
    try:
        reports.write_all(grade, out)
    except Exception as error:
        grade = examine.failed(submission, error)
        reports.write_all(grade, out)
    return grade


def grade_once_more(place, first, options, nursery, answers_runs):
    """Alone, because a timeout may have been the fault of whatever ran beside it. -> the better
    grade of the two."""
    submission = handed_in(place, options)
    second = judged(submission, lambda: examine.examine(submission, nursery), answers_runs)
    if second.earned() <= first.earned():
        return first
    return written(second, submission, options.out)


def grade_side_by_side(cohort, options, nursery, answers_runs):
    """-> the first grades. What students' code sends back may be large: it is held of a few
    submissions that are run ahead, and of no more."""
    grades = []

    def begin(place):
        submission = handed_in(place, options)
        before = graded_before(submission, options.out)
        return submission, before, None if before else pool.submit(
            examine.examine, submission, nursery)

    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(cohort), desc="grading") as bar:
        waiting = [begin(place) for place in cohort[:options.jobs + 1]]
        for i in range(len(cohort)):
            submission, grade, future = waiting.pop(0)
            grade = grade or written(
                judged(submission, future.result, answers_runs), submission, options.out)
            if i + options.jobs + 1 < len(cohort):
                waiting.append(begin(cohort[i + options.jobs + 1]))
            grades.append(grade)
            bar.update()
            bar.set_postfix_str(f"{grade.name[:20]} {grade.total():g}")
    return grades


def prepare(options):
    """Whatever can be wrong before anything is graded. -> (cohort, points changed by hand, people
    of the roster or None)"""
    check_output(options)
    try:
        cohort = find_cohort(options.cohort, options.one, options.out.resolve())
        changes = gradebook.read_overrides(options.out / "overrides.csv",
                                           [name for _, name in cohort])
        people = gradebook.read_roster(options.roster) if options.roster else None
        if options.format:
            gradebook.check_columns(people, options.format, options.roster)
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        fail(str(error))
    if not (ROOT / "answers").is_dir():
        fail(f"{ROOT / 'answers'} is missing: the grader compares with it")
    return cohort, changes, people


def write_tables(grades, people, cohort, options):
    """grades.csv, and what else was asked for. -> who in the roster has handed in nothing"""
    found, missing = None, []
    if people:
        found, unclear, missing = gradebook.join(people, [grade.name for grade in grades])
        for grade in grades:
            if grade.name in unclear:
                grade.notes.append(unclear[grade.name])
    reports.write_csv(grades, options.out / "grades.csv", found, missing)
    if options.format:
        gradebook.write_import(options.format, options.assignment, grades, found, unclear,
                               options.out / f"{options.format}.csv")
    if options.similarity:
        similarity.write_csv(cohort, options.out / "similarity.csv")
    return [person.name for person in missing]


def main(arguments):
    options = parse(arguments)
    torch.set_num_threads(1)
    cohort, changes, people = prepare(options)
    nursery = Nursery() if platform.system() == "Linux" else None
    try:
        active = protections_here(nursery, options.out.resolve())
        print(f"Protections in force: {', '.join(active) or 'none'}.")
        if options.strict and not FIRST_TIER <= set(active):
            fail("--strict: this system lacks landlock or seccomp; grade in a container instead")
        grades = grade_cohort(cohort, options, nursery, runs_of_the_answers())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on where it stopped.")
    finally:
        if nursery:
            nursery.stop()
    gradebook.override(grades, changes, options.out)
    missing = write_tables(grades, people, cohort, options)
    print(reports.summary(grades))
    print(f"Written to {options.out}: grades.csv, reports/, junit/, gradescope/")
    left_out = [] if options.cohort.is_file() or options.one else sort_out(
        options.cohort, options.out.resolve())[1]
    print(reports.by_hand(grades, left_out, missing))
    if options.pass_mark is not None:
        sys.exit(int(any(grade.total() < options.pass_mark for grade in grades)))


if __name__ == "__main__":
    main(sys.argv[1:])
