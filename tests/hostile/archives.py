"""Submissions whose files, names or zip archives are the attack. A function makes the entry of the
student "hostile" in the folder of a cohort."""

import os
import shutil
import socket
import stat
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from checks.core import ROOT

ANSWER = (ROOT / "answers" / "ex2_reward.py").read_bytes()
FILE = "ex2_reward.py"
TOUCH = b'import pathlib\npathlib.Path("{CANARY}/imported").write_text("x")\nraise SystemExit\n'


@dataclass
class Archive:
    """`points` and `statuses` are those of ex2_reward, as in Hostile; `note` stands in a note."""

    name: str
    build: Callable
    points: float = 0
    statuses: str = "nnnnnn"
    note: str = ""

    def __str__(self):
        return self.name


def folder(cohort, content=None, file=FILE):
    path = cohort / "hostile"
    path.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (path / file).write_bytes(content)
    return path


def archive(cohort, entries=(), method=zipfile.ZIP_DEFLATED):
    """hostile.zip of [(name or ZipInfo, content)]."""
    path = cohort / "hostile.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def in_folder(content, *names):
    def build(cohort):
        path = folder(cohort, content)
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(TOUCH.replace(b"{CANARY}", bytes(cohort.parent / "canary")))
    return build


def in_zip(*entries, method=zipfile.ZIP_DEFLATED):
    return lambda cohort: archive(cohort, entries, method)


# ---- Files that are none ------------------------------------------------------------------------


def link_to_answers(cohort):
    (folder(cohort) / FILE).symlink_to(ROOT / "answers" / FILE)


def folder_links_to_answers(cohort):
    (folder(cohort) / "exercises").symlink_to(ROOT / "answers")


def loop_of_links(cohort):
    (folder(cohort) / FILE).symlink_to(FILE)
    (folder(cohort) / "again").symlink_to(".")


def fifo(cohort):
    os.mkfifo(folder(cohort) / FILE)


def a_socket(cohort):
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder(cohort))  # the address of a socket is short
    try:
        listener.bind(FILE)
    finally:
        os.chdir(before)
    listener.close()


def device(cohort):
    """/dev/zero never ends. Only root can make one."""
    try:
        os.mknod(folder(cohort) / FILE, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        fifo(cohort)


def huge(cohort):
    folder(cohort, ANSWER)
    os.truncate(folder(cohort) / FILE, 2**31)


def folder_with_the_files_name(cohort):
    (folder(cohort) / FILE / FILE).mkdir(parents=True)


def deep(cohort):
    path = folder(cohort)
    path = path / "/".join(["d"] * 200)
    path.mkdir(parents=True)
    (path / FILE).write_bytes(ANSWER)


# ---- Zip files ----------------------------------------------------------------------------------


def zip_link(cohort):
    entry = zipfile.ZipInfo(FILE)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive(cohort, [(entry, str(ROOT / "answers" / FILE))])


def encrypted(cohort):
    path = archive(cohort, [(FILE, ANSWER)])
    content = bytearray(path.read_bytes())
    for mark, offset in (b"PK\x03\x04", 6), (b"PK\x01\x02", 8):  # the flag "encrypted"
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)


def broken(cohort, cut=0.5):
    path = archive(cohort, [(FILE, ANSWER)])
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * cut)])


def spoiled(method):
    """The directory is whole and the compressed bytes are not."""
    def build(cohort):
        path = archive(cohort, [(FILE, ANSWER)], method)
        content = bytearray(path.read_bytes())
        for i in range(60, 160):
            content[i] ^= 0x5A
        path.write_bytes(content)
    return build


def unknown_method(cohort):
    path = archive(cohort, [(FILE, ANSWER)])
    content = bytearray(path.read_bytes())
    for mark, offset in (b"PK\x03\x04", 8), (b"PK\x01\x02", 10):
        content[content.index(mark) + offset] = 99
    path.write_bytes(content)


def size_is_a_lie(cohort):
    """The directory says that the file has 100 bytes; it has far more."""
    path = archive(cohort, [(FILE, ANSWER + b"\n" * 10**7)])
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24:start + 28] = struct.pack("<I", 100)
    path.write_bytes(content)


def many_entries(cohort, number=20_000):
    """The list of files names one and the same entry many times."""
    path = archive(cohort, [(FILE, ANSWER)])
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    files = content[start:end] * number
    counts = struct.pack("<HHII", min(number, 65535), min(number, 65535), len(files), start)
    path.write_bytes(content[:start] + files + content[end:end + 8] + counts + b"\0\0")
    return path


def text_with_the_name_zip(cohort):
    (cohort / "hostile.zip").write_text("Please grade me by hand.")


def zip_in_a_folder(cohort):
    archive(cohort, [(FILE, ANSWER)]).rename(folder(cohort) / "exercises.zip")


def bomb_in_a_folder(cohort):
    archive(cohort, [(FILE, BOMB)]).rename(folder(cohort) / "exercises.zip")


BOMB = b"\n" * 2**26
SHADOWS = ("conftest.py", "pytest.ini", "sitecustomize.py", "usercustomize.py", "json.py",
           "torch.py", "setup.py", "tests/conftest.py", "tests/test_x.py", "checks/__init__.py",
           "__init__.py", "answers/ex2_reward.py", "grading.py", "torch/__init__.py", "tox.ini",
           "exercises/sitecustomize.py", "perform.py", "channel.py", "pyvenv.cfg")
STUB = (ROOT / "exercises" / FILE).read_bytes()
CANNOT_READ = "cannot be read"

FILES = [
    Archive("a link to the answers", link_to_answers, note="it is a link"),
    Archive("a folder that is a link to the answers", folder_links_to_answers),
    Archive("links in a circle", loop_of_links, note="it is a link"),
    Archive("a named pipe", fifo, note="no regular file"),
    Archive("a socket", a_socket, note="was not read"),
    Archive("a device", device, note="no regular file"),
    Archive("a file of 2 GB", huge, note="larger than"),
    Archive("a folder with the file's name", folder_with_the_files_name),
    Archive("folders 200 deep", deep),
    Archive("files that shadow standard and the grader's own ones", in_folder(STUB, *SHADOWS)),
    Archive("answers and tests of its own", in_folder(None, "answers/" + FILE, "tests/" + FILE)),
    Archive("empty file", in_folder(b"")),
    Archive("only zero bytes", in_folder(b"\0" * 1000), statuses="ccccc?"),
    Archive("not UTF-8", in_folder("x = 'ä'\n".encode("latin-1") + ANSWER), statuses="ccccc?"),
    Archive("an encoding that does not exist", in_folder(b"# coding: x\n" + ANSWER),
            statuses="ccccc?"),
    Archive("UTF-16", in_folder(ANSWER.decode().encode("utf-16")), statuses="ccccc?"),
    Archive("BOM and Windows line ends", in_folder(
        b"\xef\xbb\xbf" + ANSWER.replace(b"\n", b"\r\n")), 14, "pppppp"),
    Archive("old Python", in_folder(b'print "14 of 14"\n' + ANSWER), statuses="ccccc?"),
    Archive("brackets nested too deep to be parsed", in_folder(b"x = " + b"(" * 10**5),
            statuses="ccccc?"),
    Archive("minus signs nested too deep to be compiled", in_folder(b"x = " + b"-" * 10**5 + b"1"),
            statuses="ccccc?"),
    Archive("a dump of compiled code", in_folder(b"\xa7\r\r\n" + b"\xe3" * 100), statuses="ccccc?"),
]
ZIPS = [
    Archive("a zip with links", zip_link, note="it is a link"),
    Archive("a zip that climbs", in_zip(("../" + FILE, ANSWER), ("../../canary/x.py", b"x"),
                                        ("/srv/" + FILE, ANSWER), ("..\\" + FILE, ANSWER),
                                        ("a/../../" + FILE, ANSWER))),
    Archive("an encrypted zip", encrypted, note=CANNOT_READ),
    Archive("half a zip", broken, note=CANNOT_READ),
    Archive("an empty zip", in_zip()),
    Archive("a text called zip", text_with_the_name_zip, note=CANNOT_READ),
    Archive("a zip of no bytes", lambda cohort: broken(cohort, 0), note=CANNOT_READ),
    Archive("a spoiled zip", spoiled(zipfile.ZIP_DEFLATED), note=CANNOT_READ),
    Archive("a spoiled zip of LZMA", spoiled(zipfile.ZIP_LZMA), note="ordinary zip"),
    Archive("a spoiled zip of bzip2", spoiled(zipfile.ZIP_BZIP2), note="ordinary zip"),
    Archive("an unknown compression", unknown_method, note="ordinary zip"),
    Archive("a bomb", in_zip((FILE, BOMB)), note="larger than"),
    Archive("a bomb of LZMA", in_zip((FILE, BOMB), method=zipfile.ZIP_LZMA), note="read"),
    Archive("a bomb of bzip2", in_zip((FILE, BOMB), method=zipfile.ZIP_BZIP2), note="read"),
    Archive("a zip that understates a size", size_is_a_lie, note=""),
    Archive("a zip of 20000 files", many_entries, note="holds too many files"),
    Archive("a zip of a million files", lambda cohort: many_entries(cohort, 10**6),
            note="holds too many files"),
    Archive("a bomb in a folder", bomb_in_a_folder, note="larger than"),
    Archive("a zip in a folder", zip_in_a_folder, 14, "pppppp"),
]
ARCHIVES = FILES + ZIPS


# ---- Names --------------------------------------------------------------------------------------

NAMES = {
    "a formula": "=cmd|' -C calc'!A0",
    "Markdown on a second line": "x\n\n# x: 100 of 100 points",
    "escapes of terminals": "x\x1b[2J\x1b]0;y\x07",
    "HTML and XML": "<img src=x onerror=alert(1)>]]>&amp;",
    "not UTF-8": os.fsdecode(b"x\xff\xfe"),
    "as long as a name can be": "n" * 255,
    "as long as a name can be, in Chinese": "学" * 85,
    "dots and spaces": " . ..  ",
    "the direction is reversed": "x\u202egpj.exe",
    "pytest's own signs": "x[param]::test --exitfirst -p no",
    "like an option": "--out=elsewhere",
    "a variable": "$USER", "a variable with the name of another student": "${NEIGHBOUR}",
    "a home": "~"}


def named(cohort, name):
    """A student of that name, with one right function."""
    path = cohort / name
    path.mkdir()
    shutil.copy(ROOT / "answers" / FILE, path / FILE)
    return Path(path)
