"""What lies between the grader and the course's gradebook: points that were changed by hand, the
roster, and the files that Canvas and Moodle import."""

import csv
import math
import re
import unicodedata
from dataclasses import dataclass

from .examine import FULL_POINTS, POINTS
from .reports import clean, for_spreadsheet, write_all, write_table
from .submissions import CANVAS

IDS = ("id", "id number", "identifier", "sis user id", "sis login id", "integration id", "username",
       "login", "email address", "email", "github_username", "folder")
SHOWN_IDS = ("id number", "sis user id", "id", "identifier", "email address", "email")
CANVAS_COLUMNS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE_COLUMNS = ("Email address", "ID number", "Username")


def read_table(path):
    """A CSV file as [(line, {column in small letters: cell})]. Raises ValueError."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.DictReader(file, delimiter=";" if head.count(";") > head.count(",") else ",")
            return [(rows.line_num, {(column or "").strip().lower(): (cell or "").strip()
                                     for column, cell in row.items() if column}) for row in rows]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


# ---- Points that were changed by hand -----------------------------------------------------------


def read_overrides(path, names):
    """{student: {(file, function): (points, reason)}} of a table with the columns student,
    function, points and reason. Raises ValueError for a row that does not say what to change."""
    found = {}
    for line, row in read_table(path) if path.exists() else ():
        student = row.get("student", "").removeprefix("'")
        file, _, function = row.get("function", "").partition(".")
        worth = POINTS.get(file, {}).get(function)
        try:
            points = float(row.get("points", ""))
        except ValueError:
            points = math.nan
        problem = (
            f"no submission is called {student!r}" if student not in names else
            f"{row.get('function', '')!r} is no column of grades.csv such as "
            "ex3_ppo.compute_gae" if worth is None else
            f"points must be a number from 0 to {worth}" if not 0 <= points <= worth else
            "it needs a reason" if not row.get("reason") else
            "it is there twice" if (file, function) in found.get(student, ()) else "")
        if problem:
            raise ValueError(f"{path}, line {line}: {problem}")
        found.setdefault(student, {})[file, function] = points, row["reason"]
    return found


def override(grades, changes, out):
    """Change the points, or change them back, and write the reports that differ. What a function
    earned by itself is kept, so that a rerun can begin with it."""
    for grade in grades:
        before = [(check["points"], check["reason"]) for check in grade.checks]
        for check in grade.checks:
            check["points"], check["reason"] = changes.get(grade.name, {}).get(
                (check["file"], check["name"]), (check["earned"], ""))
        if before != [(check["points"], check["reason"]) for check in grade.checks]:
            write_all(grade, out)


# ---- The roster ---------------------------------------------------------------------------------


@dataclass
class Person:
    name: str
    row: dict  # of the roster

    def shown_id(self):
        return next((self.row[column] for column in SHOWN_IDS if self.row.get(column)), "")

    def is_named_by_id(self, name):
        """Does one of the ids stand in a submission's name, as a word?"""
        ids = [self.row.get(column, "").casefold().removeprefix("participant ") for column in IDS]
        return any(each and re.search(rf"(?<![^\W_]){re.escape(each)}(?![^\W_])", name)
                   for each in ids)

    def is_named(self, name):
        """Is the person's name, in either order, a submission's name, or its part before "_"?"""
        last, _, first = self.name.rpartition(" ") if "," not in self.name else (
            self.name.partition(","))
        return bool({letters(first + last), letters(last + first)}
                    & {letters(name), letters(name.partition("_")[0])})


def letters(text):
    """As one character each, which a Mac takes apart: e and its accent."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFC", text).casefold()))


def read_roster(path):
    """[Person] of a table that Canvas, Moodle, GitHub Classroom or a hand has written."""
    people = []
    for _, row in read_table(path):
        both = [row.get("first name", ""), row.get("last name") or row.get("surname", "")]
        name = (row.get("student") or row.get("name") or row.get("full name")
                or " ".join(both).strip() or row.get("identifier", ""))
        if name and "points possible" not in name.lower():  # Canvas's second row
            people.append(Person(clean(name), row))
    if not people:
        raise ValueError(f"{path} names nobody: it needs a column Student, Name or Full name, or "
                         "First name and Last name")
    return people


def join(people, names):
    """-> ({submission: Person}, {submission: note} where it is not clear, [people without one])"""
    found, notes = {}, {}
    for name in names:
        canvas = CANVAS.match(name + "_")  # its second number may be anybody's
        known = ("_".join(canvas.groups()) if canvas else name).casefold()
        by_id = [person for person in people if person.is_named_by_id(known)]
        by_name = [person for person in people if person.is_named(known)]
        # A part of a name or a number of the website's may be another person's id.
        here = [person for person in by_id if person in by_name] or by_id + by_name
        if len(here) == 1:
            found[name] = here[0]
        else:
            who = ", ".join(person.name for person in here[:3]) or "nobody"
            notes[name] = f"whose it is does not follow from its name (in the roster: {who})"
    for name, person in found.items():
        others = [other for other in found if found[other] is person and other != name]
        if others:
            notes[name] = f"{person.name} has handed in {', '.join(others)} as well"
    alone = {id(person) for person in found.values()}
    return found, notes, [person for person in people if id(person) not in alone]


# ---- Files to import ----------------------------------------------------------------------------


def check_columns(people, kind, path):
    """Raises ValueError where the roster lacks what an import needs."""
    has = people[0].row
    if kind == "canvas" and not {"student", "id"} <= set(has):
        raise ValueError(f"{path} has no columns Student and ID: export the gradebook of Canvas")
    if kind == "moodle" and not {column.lower() for column in MOODLE_COLUMNS} & set(has):
        raise ValueError(f"{path} has no column {', '.join(MOODLE_COLUMNS[:-1])} or "
                         f"{MOODLE_COLUMNS[-1]}: export the grades of Moodle")


def write_import(kind, assignment, grades, found, notes, path):
    """What Canvas or Moodle imports: a row for everybody whose submission is clear, and none for
    others, because an empty cell could delete a grade that is there."""
    has = next(iter(found.values())).row if found else {}
    columns = CANVAS_COLUMNS if kind == "canvas" else [
        column for column in MOODLE_COLUMNS if column.lower() in has]
    rows = [[*columns, assignment]]
    if kind == "canvas":
        rows.append(["    Points Possible", *[""] * (len(columns) - 1), FULL_POINTS])
    for grade in grades:
        if grade.name in found and grade.name not in notes:
            cells = [found[grade.name].row.get(column.lower(), "") for column in columns]
            rows.append([*map(for_spreadsheet, cells), f"{grade.total():g}"])
    write_table(rows, path, "utf-8")
