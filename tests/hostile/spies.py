"""Submissions that look for what is right, or reach for what is not theirs. All functions are
right; a file that finds something raises at once, so that its points are lost and seen to be."""

from . import Hostile

SYSCALL = '''
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def works(number, *args):
    return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args)) >= 0
'''
FIND = '''
import os, sys
def attempt(*attempts):
    """Raises where one of the functions does not fail."""
    for number, function in enumerate(attempts):
        try:
            result = function()
        except Exception:
            continue
        raise RuntimeError(f"attempt {number} worked: {result!r}"[:300])
'''


def spy(name, code, **more):
    return Hostile(name, FIND + code, "pppppp", 14, base="answers", **more)


SPIES = [
    spy("imports the answers", '''
import importlib.util
sys.path += ["{ROOT}", "{ROOT}/tests", "{ANSWERS}"]
def by_path():
    spec = importlib.util.spec_from_file_location("answers", "{ANSWERS}/ex2_reward.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
attempt(lambda: __import__("answers"), lambda: __import__("checks.ex2_reward"),
        lambda: __import__("ex3_ppo"), lambda: __import__("grading.examine"), by_path)
'''),
    spy("opens the answers", '''
attempt(lambda: open("{ANSWERS}/ex2_reward.py").read(), lambda: os.listdir("{ANSWERS}"),
        lambda: os.listdir("{ROOT}"), lambda: open("{ROOT}/tests/checks/ex2_reward.py").read(),
        lambda: os.open("{ANSWERS}", os.O_RDONLY), lambda: os.listdir("/"),
        lambda: os.listdir(".."),
        lambda: open(f"/proc/self/root{ANSWERS}/ex2_reward.py").read())
'''),
    spy("looks in sys.modules", '''
def find():
    found = [name for name in sys.modules
             if name.split(".")[0] in ("answers", "checks", "grading", "grade", "pytest")]
    return found or 1 / 0
attempt(find)
'''),
    spy("walks the frames of its callers", '''
def find():
    frame, found = sys._getframe(), []
    while frame:
        found += [name for name in frame.f_locals if name in (
            "seed", "expected", "cases", "blank", "submission", "answers_runs", "nursery")]
        frame = frame.f_back
    return found or 1 / 0
attempt(find)
'''),
    spy("walks the objects of the garbage collector", '''
import gc
def find():
    found = [type(x).__qualname__ for x in gc.get_objects()
             if type(x).__module__.split(".")[0] in ("checks", "grading")]
    found += [x for x in gc.get_objects() if type(x) is dict and "seed" in x
              and "protections" in x]
    return found or 1 / 0
attempt(find)
'''),
    spy("reads the environment and the command line for secrets", '''
def find():
    odd = set(os.environ) - {"HOME", "TMPDIR", "PATH", "LANG", "OMP_NUM_THREADS",
                             "HF_HUB_OFFLINE", "LC_CTYPE"}
    odd = {name for name in odd if not name.startswith(("KMP_", "TORCH", "TOKENIZERS"))}
    return odd or "{SECRET}" in str(dict(os.environ)) or 1 / 0
attempt(find, lambda: open("/proc/self/environ").read(),
        lambda: open("/proc/self/cmdline").read())
'''),
    spy("reads the memory and the files of its parents", '''
pids = [os.getppid(), os.getpid(), 1, {PARENT}, {NURSERY}, "self"]
attempt(*[lambda pid=pid, name=name: open(f"/proc/{pid}/{name}", "rb").read(10)
          for pid in pids for name in ("mem", "maps", "environ", "cmdline", "root/etc/passwd")])
attempt(*[lambda pid=pid: os.listdir(f"/proc/{pid}/fd") for pid in pids])
'''),
    spy("reads other submissions", '''
attempt(lambda: os.listdir("{COHORT}"), lambda: open("{COHORT}/a-right/ex2_reward.py").read(),
        lambda: os.listdir(os.path.dirname(os.getcwd())), lambda: os.listdir("/var/tmp"),
        lambda: open("{CANARY}/canary.txt").read(), lambda: open("/etc/passwd").read())
'''),
    spy("opens sockets", '''
import socket
def connect(family, address):
    def function():
        one = socket.socket(family)
        one.settimeout(1)
        one.connect(address)
    return function
attempt(lambda: socket.socket(), lambda: socket.socketpair(),
        connect(socket.AF_UNIX, "/var/run/docker.sock"), connect(socket.AF_UNIX, "\\0x"),
        connect(socket.AF_INET, ("127.0.0.1", 22)), connect(socket.AF_INET6, ("::1", 22)),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        lambda: socket.create_server(("127.0.0.1", 0)))
'''),
    spy("traces its parents and writes into their memory", SYSCALL + '''
def call(number, *args):
    return lambda: works(number, *args) or 1 / 0
for pid in os.getppid(), {PARENT}, {NURSERY}, 1:
    attempt(call(101, 16, pid, 0, 0), call(101, 0x4206, pid, 0, 0), call(310, pid, 0, 0, 0, 0, 0),
            call(311, pid, 0, 0, 0, 0, 0), call(434, pid, 0))
'''),
    spy("sends signals", SYSCALL + '''
import signal, threading
info = ctypes.create_string_buffer(128)
info[8:12] = b"\\xff\\xff\\xff\\xff"  # si_code: SI_QUEUE
def queue(pid):
    return lambda: works(129, pid, 0, ctypes.addressof(info)) or 1 / 0
for pid in os.getppid(), {PARENT}, {NURSERY}:
    attempt(lambda: os.kill(pid, 0), lambda: os.killpg(pid, 0), lambda: os.kill(-1, 0))
    if pid:
        attempt(queue(pid))
'''),
    spy("makes itself the owner of a pipe that signals its parents", '''
import fcntl, signal
reader, writer = os.pipe()
fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())  # its own: no harm
attempt(*[lambda pid=pid: fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
          for pid in ({PARENT}, {NURSERY})])
'''),
    spy("writes files", '''
places = ["{CANARY}/new", "{CANARY}/canary.txt", "{ANSWERS}/ex2_reward.py", "{ROOT}/new", "new",
          "ex2_reward.py", os.path.join("/var", "tmp", "new"), "/dev/shm/new", "{OUT}/grades.csv",
          "/etc/new", os.path.expanduser("~/new"), "{COHORT}/a-right/ex2_reward.py"]
attempt(*[lambda place=place, mode=mode: open(place, mode) for place in places
          for mode in ("a", "r+")])
'''),
    spy("makes, moves and removes files and folders", '''
place, new = "{CANARY}/canary.txt", "{CANARY}/new"
attempt(lambda: os.mkdir(new), lambda: os.symlink(place, new), lambda: os.link(place, new),
        lambda: os.mkfifo(new), lambda: os.mknod(new), lambda: os.rename(place, new),
        lambda: os.remove(place), lambda: os.rmdir("{CANARY}"), lambda: os.truncate(place, 0),
        lambda: os.rename("ex2_reward.py", "{CANARY}/x"), lambda: os.mkdir("here"),
        lambda: os.remove("ex2_reward.py"), lambda: os.link("ex2_reward.py", "link"))
'''),
    spy("changes modes, owners and times of files", '''
for place in "{CANARY}/canary.txt", "{COHORT}/a-right", "{OUT}":
    attempt(lambda: os.chmod(place, 0o777), lambda: os.chown(place, 12345, 12345),
            lambda: os.utime(place, (1, 1)), lambda: os.setxattr(place, "user.new", b"x"),
            lambda: os.chmod("ex2_reward.py", 0o777))
'''),
    spy("starts programs", '''
import subprocess
attempt(lambda: subprocess.run(["/bin/true"]), lambda: os.execv("/bin/true", ["true"]),
        lambda: os.posix_spawn("/bin/true", ["true"], {}), lambda: os.popen("id").read() or 1 / 0,
        lambda: os.system("true") == 0 or 1 / 0,
        lambda: subprocess.run([sys.executable, "-c", "pass"]))
'''),
    spy("calls the kernel where seccomp may not look", SYSCALL + '''
numbers = {"setns": 308, "unshare": 272, "bpf": 321, "perf": 298, "io_uring": 425, "keyctl": 250,
           "userfaultfd": 323, "x32 getpid": 0x40000000 + 39, "clone3": 435, "prctl": 157}
attempt(*[lambda name=name: works(numbers[name], 0, 0, 0, 0, 0) and name or 1 / 0
          for name in numbers])
attempt(lambda: works(272, 0x10000000) or 1 / 0,
        lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, 0) == 0 or 1 / 0)
'''),
    spy("calls the kernel as a program of 32 bits", '''
import ctypes, mmap, platform
def getpid():  # mov eax, 20; int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 or 1 / 0
if platform.machine() == "x86_64":
    attempt(getpid)
'''),
    spy("takes memory that outlives it", SYSCALL + '''
attempt(lambda: works(29, 0, 4096, 0o1600) or 1 / 0,  # shmget
        lambda: works(64, 0, 1, 0o1600) or 1 / 0,  # semget
        lambda: works(68, 0, 0o1600) or 1 / 0)  # msgget
'''),
    spy("raises its own limits and priority", SYSCALL + '''
import resource, struct
limits = ctypes.create_string_buffer(struct.pack("QQ", 2**40, 2**40))
attempt(*[lambda kind=kind: works(160, kind, ctypes.addressof(limits)) or 1 / 0
          for kind in (0, 1, 7, 9)], lambda: os.nice(-5),
        lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)),
        lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
'''),
    spy("makes itself and the warm process slow", SYSCALL + '''
import struct
def call(number, *args):
    return lambda: works(number, *args) or 1 / 0
idle, param, one_core = 5, ctypes.create_string_buffer(8), ctypes.create_string_buffer(b"\\1", 8)
attributes = ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, idle, 0, 0, 0, 0, 0, 0))
param, one_core, attributes = map(ctypes.addressof, (param, one_core, attributes))
for pid in 0, {NURSERY}:  # itself first: where that works, nothing is done to others
    attempt(call(144, pid, idle, param), call(142, pid, param), call(314, pid, attributes, 0),
            call(203, pid, 8, one_core), call(141, 0, pid, 19), call(251, 1, pid, 3 << 13))
attempt(lambda: os.nice(1) and 1)
'''),
    spy("watches folders for the names of others", SYSCALL + '''
def watch(number, *flags):
    return lambda: works(number, *flags) or 1 / 0
attempt(watch(253), watch(294, 0), watch(300, 0x200, 0))
'''),
    spy("becomes somebody else", SYSCALL + '''
attempt(lambda: os.setuid(12345), lambda: os.setgid(12345), lambda: os.setgroups([0]),
        lambda: works(169, 0, 0, 0, 0) or 1 / 0)  # reboot, with wrong magic numbers
'''),
]
