"""Submissions that crash, hang, flood or leave something behind."""

from . import Hostile
from .lies import HONEST

# What has no evidence of its own: as in spies.py, a file that succeeds loses its points.
CRASHES = [
    Hostile("ends at import", "import os; os._exit(0)", "ccccc?", 0, base="answers"),
    Hostile("ends in a call", HONEST + '''
import os
def pairwise_loss(*args): os._exit(0)
''', "nnncpn", 1),
    Hostile("ends when it is asked to end", '''
import atexit, os
atexit.register(os._exit, 0)
''', "pppppp", 14, base="answers"),
    Hostile("sys.exit at import", "import sys; sys.exit(0)", "ccccc?", 0, base="answers"),
    Hostile("sys.exit in a call", HONEST + '''
import sys
def pairwise_loss(*args): sys.exit("14 of 14")
''', "nnncpn", 1),
    Hostile("crashes the interpreter", HONEST + '''
import ctypes
def pairwise_loss(*args): ctypes.string_at(0)
''', "nnncpn", 1),
    Hostile("aborts", HONEST + '''
import os
def pairwise_loss(*args): os.abort()
''', "nnn?pn", 1),
    Hostile("recurses", HONEST + '''
def pairwise_loss(*args): return pairwise_loss(*args)
''', "nnncpn", 1),
    Hostile("recurses without a limit", HONEST + '''
import sys
sys.setrecursionlimit(10**9)
class Deep:
    def __repr__(self): return repr([self])
def pairwise_loss(*args): return repr(Deep())
''', "nnncpn", 1),
    Hostile("ends through faulthandler", HONEST + '''
import faulthandler, time
faulthandler.enable()
def pairwise_loss(*args):
    faulthandler.dump_traceback_later(0.05, exit=True)
    time.sleep(20)
''', "nnncpn", 1),
    Hostile("spoils the interpreter", HONEST + '''
import gc, sys
def pairwise_loss(*args):
    sys.modules.clear()
    gc.disable()
    import builtins
    vars(builtins).clear()
''', "nnn?*?", None),  # preference_accuracy is right: a new process may say so
]

HANGS = [
    Hostile("loops at import", "while True: pass", "ttt??n", 0, base="answers"),
    Hostile("loops in a call", '''
def pairwise_loss(*args):
    while True: pass
''', "ppptpn", 8, base="answers"),
    Hostile("loops and ignores every signal and exception", HONEST + '''
import signal
def pairwise_loss(*args):
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True: pass
        except BaseException:
            pass
''', "nnntpn", 1),
    Hostile("sleeps", HONEST + '''
import time
def pairwise_loss(*args): time.sleep(10**6)
''', "nnntpn", 1),
    Hostile("waits for ever without the lock of the interpreter", HONEST + '''
import threading
def pairwise_loss(*args):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
''', "nnntpn", 1),
    Hostile("is slow in every call", '''
import time
def slow(function):
    def slowed(*args, **more):
        time.sleep(0.9)
        return function(*args, **more)
    return slowed
for name in ("last_token_index", "pool_scores", "preference_probability", "pairwise_loss",
             "preference_accuracy"):
    globals()[name] = slow(globals()[name])
''', "****t?", None, base="answers"),
    Hostile("a regular expression that takes for ever", '''
import re
def format_prompt(*args): return re.match("(a+)+$", "a" * 60 + "b")
''', "tnnnnn", 0, file="ex1_sft"),
    Hostile("stops itself", HONEST + '''
import ctypes, os, signal
def pairwise_loss(*args):
    for stop in (lambda: os.kill(os.getpid(), signal.SIGSTOP),
                 lambda: signal.raise_signal(signal.SIGSTOP),
                 lambda: ctypes.CDLL(None).syscall(129, os.getpid(), signal.SIGSTOP, 0)):
        try:
            stop()
        except OSError:
            pass
    raise ValueError("it goes on")
''', "nnn?pn", 1),
    Hostile("threads that go on", '''
import threading, time
def busy():
    while True: time.sleep(0.001)
for daemon in True, False:
    threading.Thread(target=busy, daemon=daemon).start()
''', "cccccn", 0, base="answers"),
    Hostile("does not end when it is asked to", '''
import atexit, time
atexit.register(time.sleep, 10**6)
class Last:
    def __del__(self): time.sleep(10**6)
last = Last()
''', "pppppp", 14, base="answers"),
    Hostile("an alarm that ends it later", HONEST + '''
import signal
signal.setitimer(signal.ITIMER_REAL, 0.3)
def pairwise_loss(*args):
    while True: pass
''', "nnn?pn", 1),
]

HOGS = [
    Hostile("takes all memory", HONEST + '''
def pairwise_loss(*args):
    import mmap
    taken = [mmap.mmap(-1, 2**28) for _ in range(1000)]  # addresses; nothing is written to them
    return "it took 250 GB"
''', "nnncpn", 1, says="Cannot allocate memory", needs="limits"),
    Hostile("takes a terabyte at once", HONEST + '''
def pairwise_loss(*args): return torch.empty(2**38)
''', "nnncpn", 1, says="pairwise_loss"),
    Hostile("starts many threads", '''
import threading
wait, started = threading.Event(), 0
threading.stack_size(65536)
try:
    while started < 500:
        threading.Thread(target=wait.wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
wait.set()
if started == 500:
    raise RuntimeError("it has 500 threads")
''', "pppppp", 14, base="answers"),
    Hostile("prints 50 MB", HONEST + '''
import os, sys
def pairwise_loss(*args):
    for _ in range(50):
        print("x" * 2**20)
        os.write(2, b"x" * 2**20)
''', "nnnwpn", 1),
    Hostile("floods the disk", HONEST + '''
import os
def pairwise_loss(*args):
    written = 0
    for place in (".", "..", "/dev/shm", "/var/tmp", os.path.expanduser("~")):
        try:
            with open(f"{place}/flood", "wb") as file:
                for _ in range(100):
                    written += file.write(b"x" * 2**20)
        except OSError:
            pass
    raise ValueError(f"{written} bytes written")
''', "nnncpn", 1, says="ValueError: 0 bytes written", needs="landlock"),
    Hostile("a file in memory larger than any file may be", HONEST + '''
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def pairwise_loss(*args):
    file = os.memfd_create("flood")
    os.ftruncate(file, 2**24)
''', "nnncpn", 1, says="File too large", needs="limits"),
    Hostile("opens files without end", HONEST + '''
import os
def pairwise_loss(*args):
    for n in range(5000): os.dup(0)
''', "nnnccn", None, says="Too many open files", needs="limits"),
]

FORKS = [
    Hostile("a fork bomb", '''
import os, time
made = 0
for _ in range(50):
    try:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        made += 1
    except OSError:
        pass
if made:
    raise RuntimeError(f"{made} processes")
''', "pppppp", 14, base="answers"),
    Hostile("a daemon with a double fork", '''
import os, time
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
try:
    daemon()
except OSError:
    pass
else:
    raise RuntimeError("there is a daemon")
''', "pppppp", 14, base="answers"),
    Hostile("processes of multiprocessing, torch and vfork", '''
import ctypes, multiprocessing, os, torch.multiprocessing
libc = ctypes.CDLL(None)
for start in (lambda: multiprocessing.get_context("fork").Process(target=int).start(),
              lambda: multiprocessing.get_context("spawn").Process(target=int).start(),
              lambda: torch.multiprocessing.spawn(int, nprocs=2)):
    try:
        start()
    except OSError:
        continue
    raise RuntimeError("it started a process")
if ctypes.CDLL(None).syscall(56, 0x4000 | 0x100 | 17, 0, 0, 0, 0) == 0:  # clone(CLONE_VFORK | VM)
    os._exit(0)
''', "pppppp", 14, base="answers"),
]

HARM = CRASHES + HANGS + HOGS + FORKS
