"""Finds the exercise files in what students hand in: folders, zip files, clones of a repository.

Nothing is unpacked, no link is followed, and nothing is read but regular files of four names."""

import hashlib
import io
import os
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MAX_BYTES, MAX_ZIP_BYTES = 256 * 2**10, 64 * 2**20  # of an exercise file, of a zip file
MAX_DIRECTORY_BYTES = 2**20  # a zip file's list of its files: ten thousand of them
MAX_DEPTH = 5
SKIPPED = {"answers", "tests", "__MACOSX", "__pycache__", "node_modules", "runs", "site-packages"}


@dataclass
class Submission:
    name: str  # unique in the cohort
    files: dict = field(default_factory=dict)  # "ex1_sft" -> bytes
    notes: list = field(default_factory=list)  # what was odd, for the report

    def digest(self):
        content = b"".join(name.encode() + b"\0" + hashlib.sha256(text).digest()
                           for name, text in sorted(self.files.items()))
        return hashlib.sha256(content).hexdigest()


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
    entries, others = [], []
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith(".") and os.path.realpath(entry) != str(leave_out):
            (entries if is_of_a_student(entry) else others).append(entry)
    if others:
        print(f"Not graded, being neither folders nor zip files: "
              f"{', '.join(safe(other.name) for other in others[:10])}")
    if not entries:
        raise ValueError(f"{path} holds no folder and no zip file of a student; if it is one "
                         "submission, add --one")
    if any(entry.name == "exercises" for entry in entries):
        print(f"Graded as a student: {path / 'exercises'}. If {path} is one submission, add --one.")
    taken, cohort = set(), []
    for entry in entries:
        is_zip = entry.suffix.lower() == ".zip" and not os.path.isdir(entry)
        name = safe(entry.stem if is_zip else entry.name)
        while name.casefold() in taken:
            name += "-zip" if is_zip else "-2"
        taken.add(name.casefold())
        cohort.append((entry, name))
    return cohort


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
    if path.is_symlink():
        submission.notes.append(f"{path.name} was not read: it is a link; put the folder or zip "
                                "file itself in its place")
        return submission
    try:
        found = from_zip(path, submission) if path.is_file() else from_folder(path, submission)
        choose(found, submission, names)
    except Exception as error:  # what zipfile raises on damaged files is many things
        submission.notes.append(f"{path.name} cannot be read: {error}")
    return submission


def choose(found, submission, names):
    """Of each exercise the file nearest to exercises/<name>.py."""
    for file in names:
        candidates = sorted((place for place in found if place.name == f"{file}.py"),
                            key=lambda place: (place.parent.name != "exercises", len(place.parts),
                                               str(place)))
        if len(candidates) > 1:
            submission.notes.append(f"{file}.py is there {len(candidates)} times; graded: "
                                    f"{candidates[0]}")
        if candidates:
            content = found[candidates[0]]()
            if content is not None:
                submission.files[file] = content
        elif any(place.stem == file and place.suffix == ".ipynb" for place in found):
            submission.notes.append(f"{file} is a notebook: hand in {file}.py, a script")


def is_welcome(place):
    """Could the file at this place of a submission be an exercise?"""
    folders = place.parts[:-1]
    return (place.suffix in (".py", ".ipynb") and len(place.parts) <= MAX_DEPTH
            and not place.is_absolute() and ".." not in place.parts
            and not any(part in SKIPPED or part.startswith(".") for part in folders))


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
