"""Finds the exercise files in what students hand in: folders, zip files, clones of a repository.

Nothing is unpacked, no link is followed, and nothing is read but regular files of four names, also
where a browser or a course's website has added something to a name."""

import hashlib
import io
import os
import re
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from checks import FILES

MAX_BYTES, MAX_ZIP_BYTES = 256 * 2**10, 64 * 2**20  # of an exercise file, of a zip file
MAX_DIRECTORY_BYTES = 2**20  # a zip file's list of its files: ten thousand of them
MAX_DEPTH = 5
PACKED = (".zip", ".7z", ".rar", ".gz", ".tgz", ".tar")
OUR_OWN = re.compile(r"lesson\d_\w+\.py|(load|look|conftest|test_mine)\.py")  # beside the exercises
CANVAS = re.compile(r"(.+?)(?:_LATE)?_(\d+)_\d+_")  # alicesmith_LATE_123_45678_ex3_ppo-1.py
SKIPPED = {"answers", "tests", "__MACOSX", "__pycache__", "node_modules", "runs", "site-packages"}


@dataclass
class Submission:
    name: str  # unique in the cohort
    files: dict = field(default_factory=dict)  # "ex1_sft" -> bytes
    notes: list = field(default_factory=list)  # what was odd, for the report
    salvage: float = 0  # what the functions of a file that does not load may earn of their points
    salvaged: dict = field(default_factory=dict)  # of these files: why they do not load

    def digest(self):
        content = [name.encode() + b"\0" + hashlib.sha256(text).digest()
                   for name, text in sorted(self.files.items())]
        content += [repr((self.notes, self.salvage)).encode()]
        return hashlib.sha256(b"".join(content)).hexdigest()


def find_cohort(path, one=False, leave_out=None):
    """[(path, unique name)] of the submissions in a folder. A zip file is one submission, and so is
    a folder that comes with `one`: what lies in a folder never decides it, because that comes from
    students. `leave_out`, the output folder, may lie among the submissions. Raises ValueError where
    there is nothing to grade."""
    if not path.exists():
        raise ValueError(f"there is no {path}")
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(f"{path} is neither a folder nor a zip file")
    if path.is_file() or one:
        whole = path.resolve()
        return [(whole, safe(whole.stem if whole.is_file() else whole.name))]
    entries, others = sort_out(path, leave_out)
    if others:
        print(f"Not graded, being neither folders nor zip files: {', '.join(others[:10])}")
    if not entries:
        raise ValueError(f"{path} holds no folder and no zip file of a student; if it is one "
                         "submission, add --one")
    if any(name == "exercises" for _, name, _ in entries):
        print(f"Graded as a student: {path / 'exercises'}. If {path} is one submission, add --one.")
    taken, cohort = set(), []
    for place, name, addition in entries:
        while name.casefold() in taken:
            name += addition
        taken.add(name.casefold())
        cohort.append((place, name))
    return cohort


def sort_out(path, leave_out=None):
    """What lies in a cohort's folder. -> ([(place, name, what a name that is taken gets)], [names
    of files that are no submission]). Files as Canvas names them, whose owner stands in front of an
    exercise's name, are a submission an owner: its place is the list of them."""
    entries, loose, others = [], {}, []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or os.path.realpath(entry) == str(leave_out):
            continue
        owner = CANVAS.match(entry.name)
        if is_of_a_student(entry):
            is_zip = entry.suffix.lower() == ".zip" and not os.path.isdir(entry)
            entries.append((entry, safe(entry.stem if is_zip else entry.name),
                            "-zip" if is_zip else "-2"))
        elif owner and exercise_in(entry.name):
            loose.setdefault(safe("_".join(owner.groups())), []).append(entry)
        else:
            others.append(safe(entry.name))
    return entries + [(files, name, "-files") for name, files in loose.items()], others


def is_of_a_student(entry):
    """Folders, zip files, and links to them or to nothing, which `read` says are links. (os.path
    asks without an exception, wherever a link may lead.)"""
    return (os.path.isdir(entry) or entry.suffix.lower() == ".zip" or not os.path.exists(entry))


def safe(name):
    """A student's name, which names files as well: printable, without separators."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)
    kept = kept.strip(" .") or "_"
    if len(kept.encode()) > 200:  # with what is added, a file's name may have 255 bytes
        digest = hashlib.sha256(kept.encode()).hexdigest()[:8]
        kept = kept.encode()[:180].decode(errors="ignore") + digest
    return kept


def read(path, name, names):
    """One Submission. What cannot be read becomes a note, never an exception."""
    submission = Submission(name)
    try:
        if isinstance(path, list):
            found = from_files(path, submission)
        elif path.is_symlink():
            raise ValueError("it is a link; put the folder or zip file itself in its place")
        else:
            archive = path if path.is_file() else only_archive_in(path)
            found = from_zip(archive, submission) if archive else from_folder(path, submission)
        choose(found, submission, names)
    except Exception as error:  # what zipfile raises on damaged files is many things
        shown = name if isinstance(path, list) else path.name
        submission.notes.append(f"{shown} cannot be read: {error}")
    return submission


def only_archive_in(folder):
    """The zip file that is all there is in a folder: Moodle puts what is handed in into one."""
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    is_one = (len(inside) == 1 and inside[0].suffix.lower() == ".zip"
              and inside[0].is_file() and not inside[0].is_symlink())
    return inside[0] if is_one else None


def exercise_in(name):
    """The exercise that a file's name stands for: ex3_ppo for "ex3_ppo (1).py", "EX3-PPO.py.txt" or
    "smith_123_ex3_ppo-2.py"; else None."""
    return next((file for file in FILES if added_to(file, name) is not None), None)


def added_to(file, name):
    """What a name has behind the exercise's: "" for ex3_ppo.py, " (1)" for "ex3_ppo (1).py"; None
    where it is not that exercise's name."""
    middle = file.replace("_", "[_ -]?")
    match = len(name) < 256 and re.fullmatch(
        rf"(.*[^a-z0-9])?{middle}([^a-z].*)?\.py(\.txt)?", name.lower(), re.DOTALL)
    return (match[2] or "") if match else None


def choose(found, submission, names):
    """Of each exercise the file nearest to exercises/<name>.py; where none has its name, one whose
    name was added to."""
    for file in names:
        exact = sorted((place for place in found if place.name == f"{file}.py"), key=nearest)
        renamed = sorted((place for place in found if exercise_in(place.name) == file
                          and place not in exact), key=nearest)
        candidates = exact or renamed
        if len(exact) > 1:
            submission.notes.append(f"{file}.py is there {len(exact)} times; graded: {exact[0]}")
        elif renamed and not exact:
            submission.notes.append(f"{file}.py has another name; graded: {renamed[0]}")
        others = renamed if exact else renamed[1:]
        if others:
            submission.notes.append(f"not graded: {a_few(others)}")
        if candidates:
            content = found[candidates[0]]()
            if content is not None:
                submission.files[file] = content
        elif any(place.stem == file and place.suffix == ".ipynb" for place in found):
            submission.notes.append(f"{file} is a notebook: hand in {file}.py, a script")
    if any(file not in submission.files for file in names):
        say_what_else_is_there(found, submission)


def nearest(place):
    """The order of candidates. Of copies that were numbered, the last is the newest."""
    numbers = re.findall(r"\d+", added_to(exercise_in(place.name), place.name))
    return (place.parent.name != "exercises", len(place.parts),
            -int(numbers[-1]) if numbers else 0, str(place))


def say_what_else_is_there(found, submission):
    """Where an exercise is missing: it may have a name that nobody can guess, or be packed."""
    packed = [place for place in found if place.suffix.lower() in PACKED]
    if packed:
        submission.notes.append(f"not unpacked: {a_few(packed)}; hand in one zip file")
    unknown = [place for place in found if place.suffix == ".py" and not exercise_in(place.name)
               and not OUR_OWN.fullmatch(place.name)]
    if unknown:
        submission.notes.append(f"not graded, because no exercise has this name: {a_few(unknown)}")
    if not submission.files:
        submission.notes.insert(0, "no exercise was found")


def a_few(places):
    """Names of files, of which a submission may have thousands."""
    more = [f"and {len(places) - 3} more"] if len(places) > 3 else []
    return ", ".join([*(str(place)[-100:] for place in sorted(places)[:3]), *more])


def is_welcome(place):
    """Could the file at this place of a submission be an exercise, or be packed with some?"""
    folders, name = place.parts[:-1], place.name.lower()
    return (name.endswith((".py", ".py.txt", ".ipynb", *PACKED)) and not name.startswith(".")
            and len(place.parts) <= MAX_DEPTH
            and not place.is_absolute() and ".." not in place.parts
            and not any(part in SKIPPED or part.startswith(".") for part in folders))


def from_files(files, submission):
    """{place: function that reads it} of files as Canvas names them: without its additions."""
    found = {}
    for file in files:
        name = re.sub(r"-\d+(?=\.py$)", "", CANVAS.sub("", file.name, count=1))
        place = PurePosixPath(file.name if PurePosixPath(name) in found else name)
        found[place] = lambda file=file: read_file(file, submission)
    return found


def from_folder(root, submission):
    """{place: function that reads it}, without following links."""
    found = {}
    for folder, inner, files in os.walk(root, followlinks=False):
        inner[:] = [name for name in inner if not os.path.islink(os.path.join(folder, name))]
        here = PurePosixPath(*Path(folder).relative_to(root).parts)
        if len(here.parts) >= MAX_DEPTH:
            inner.clear()
        for file in files:
            if is_welcome(here / file):
                path = Path(folder, file)
                found[here / file] = lambda path=path: read_file(path, submission)
    return found


def read_file(path, submission):
    """The bytes of a regular file of modest size, else None and a note."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
                             | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        submission.notes.append(f"{path.name} was not read: {reason}")
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            submission.notes.append(f"{path.name} was not read: it is no regular file")
            return None
        return within_limit(file, path.name, submission)


class ZipContent(io.FileIO):
    """zipfile reads the list of files in one go, and takes fifteen times as much memory for it."""

    def read(self, size=-1):
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError("it holds too many files: hand in the exercises alone")
        return super().read(size)


def from_zip(path, submission):
    """The same for a zip file, read entry by entry."""
    if path.stat().st_size > MAX_ZIP_BYTES:
        raise ValueError(f"the zip file is larger than {MAX_ZIP_BYTES // 2**20} MB")
    archive, found = zipfile.ZipFile(ZipContent(path)), {}
    for entry in archive.infolist():
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or not is_welcome(place):
            continue
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            submission.notes.append(f"{place} was not read: use an ordinary zip file")
            continue  # the other methods unpack as much as they like at a time
        if stat.S_ISLNK(entry.external_attr >> 16):
            submission.notes.append(f"{place} was not read: it is a link")
            continue
        found[place] = lambda entry=entry: read_entry(archive, entry, submission)
    return found


def read_entry(archive, entry, submission):
    with archive.open(entry) as file:
        return within_limit(file, entry.filename, submission)


def within_limit(file, name, submission):
    content = file.read(MAX_BYTES + 1)  # never more, whatever the file says of its size
    if len(content) > MAX_BYTES:
        submission.notes.append(f"{name} was not read: it is larger than {MAX_BYTES // 1024} KB")
        return None
    return content
