"""A warm process that starts workers by forking, so that each need not import torch for seconds:
python -I -B nursery.py SOCKET (a file descriptor)

It is safe to fork from because it holds no secret: it has never seen a seed, an answer or an
expectation, and it never runs a student's code itself. Every worker begins from the same state.
Messages are JSON over the socket:
    {"start": folder}, with two pipe ends    -> {"pid": ...}
    {"end": pid}                             -> {"pid": pid}: it and all its children are gone"""

import ctypes
import json
import os
import signal
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import runs  # noqa: E402, F401  (it imports transformers, while no student is there yet)
from jail import lock  # noqa: E402
from worker import serve  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36


def become_worker(folder, requests, answers):
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, PATH="/usr/bin:/bin", LANG="C.UTF-8",
                      OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in (requests, answers):
            try:
                os.close(descriptor)
            except OSError:  # the one that listed the folder
                pass
    serve(folder, requests, answers, lock(folder))


def end(pid):
    """Kill the worker's group, wait for it, and kill what it left behind: orphans of a worker
    become children of this process."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    os.waitpid(pid, 0)


def end_orphans(known):
    while orphans := children() - known:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


def main(control):
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to handle
    workers = set()
    while True:
        text, pipes, _, _ = socket.recv_fds(control, 65536, 2)
        if not text:
            break
        message = json.loads(text)
        if "start" in message:
            pid = os.fork()
            if pid == 0:
                control.close()
                try:
                    become_worker(message["start"], *pipes)
                finally:
                    os._exit(1)
            for pipe in pipes:
                os.close(pipe)
            workers.add(pid)
        else:
            pid = message["end"]
            if pid in workers:  # else it was another nursery's
                end(pid)
                workers.remove(pid)
            end_orphans(workers)
        control.send(json.dumps({"pid": pid}).encode())
    for pid in workers:
        end(pid)
    end_orphans(set())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
