"""Starts the process that runs a student's code, asks it, and never waits for ever."""

import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from channel import pack, receive

from .language import say

WORKERS = Path(__file__).resolve().parent.parent / "worker"
START_SECONDS = 60  # importing torch on an old laptop
PATIENCE = 6  # a second of computing may last so many on the clock, for other programs run as well


class Worker:
    """One folder's code in a process of its own. After a crash or an endless loop the next request
    starts a new one."""

    def __init__(self, folder):
        self.folder, self.process, self.protections = Path(folder), None, []
        self.seconds_spent = 0.0  # computing, in all answers so far

    def start(self):
        """Start without waiting. (Two workers may then start side by side.)"""
        if self.process is None:
            self.process, requests, answers = self.open()
            self.requests, self.answers, self.is_ready = queue.Queue(), queue.Queue(), False
            threading.Thread(target=talk, args=(requests, self.requests), daemon=True).start()
            threading.Thread(target=listen, args=(answers, self.answers), daemon=True).start()

    def open(self):
        """-> (process, stream of requests, stream of answers)."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return open_process([sys.executable, str(WORKERS / "worker.py"), str(self.folder)], env)

    def send(self, request):
        """Ask without waiting for the answer. (Two workers can then think side by side.)"""
        self.start()
        self.request = {**request, "id": secrets.token_hex(8)}  # the answer has to repeat it
        self.requests.put(pack(self.request))

    def wait(self, seconds):
        """The answer to `send`, or {"status": "timeout"}, "crashed" or "tampered"."""
        answer = None
        try:
            if not self.is_ready:
                ready = self.next_answer(START_SECONDS) or {}
                self.is_ready = ready.get("status") == "ready"
                self.protections = ready.get("protections", [])
            if self.is_ready:
                answer = self.next_answer(seconds)
        except TimeoutError as error:
            self.stop()
            return {"status": "timeout", "message": error.args[0]}
        if answer is None:
            code = self.exit_code()
            self.stop()
            return {"status": "crashed",
                    "message": say("the process ended in the call ({code})", code=code)}
        good = checked(answer, self.request)
        if good is None:
            self.stop()
            problem = (answer if isinstance(answer, Exception)
                       else say("no answer that a worker gives"))
            return {"status": "tampered",
                    "message": say("what came from the process is {problem}", problem=problem)}
        return good

    def next_answer(self, seconds):
        """The next message. Raises TimeoutError after `seconds` of computing, or after PATIENCE
        times as many on the clock: a busy machine may make a process wait, and that is no fault
        of the code in it."""
        watch, left = Stopwatch(self.pid()), seconds
        try:
            while left > 0:
                try:
                    return self.answers.get(timeout=left)
                except queue.Empty:
                    left = watch.left(seconds)
            raise TimeoutError(watch.says(seconds))
        finally:
            self.seconds_spent += watch.computing()

    def pid(self):
        return self.process.pid

    def ask(self, request, seconds):
        self.send(request)
        return self.wait(seconds)

    def exit_code(self):
        return say("exit code {number}", number=self.process.wait())

    def stop(self):
        """End the process and whatever it has started."""
        if self.process is not None:
            self.end()
            self.requests.put(None)
            self.process = None

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError, PermissionError):  # Windows; already gone
            self.process.kill()
        self.process.wait()


class Stopwatch:
    """How long a process has been computing, and how long that was on the clock."""

    def __init__(self, pid):
        self.pid, self.begun, self.cpu = pid, time.monotonic(), cpu_seconds(pid)

    def on_the_clock(self):
        return time.monotonic() - self.begun

    def computing(self):
        """Where the system does not tell, time on the clock."""
        now = cpu_seconds(self.pid)
        return self.on_the_clock() if None in (now, self.cpu) else now - self.cpu

    def left(self, seconds):
        """For how long it need not be looked at again; 0 or less: it is too late."""
        return min(seconds - self.computing(), PATIENCE * seconds - self.on_the_clock())

    def says(self, seconds):
        """Which of the two limits was reached."""
        if self.computing() >= seconds:
            return say("no answer within {seconds} seconds of computing: does it loop for ever?",
                       seconds=f"{seconds:.0f}")
        return say("no answer within {seconds} seconds, of which it computed for {computed}: does "
                   "it sleep, or wait for something?", seconds=f"{PATIENCE * seconds:.0f}",
                   computed=f"{self.computing():.1f}")


def cpu_seconds(pid):
    """The CPU time of a process and its children so far; None where the system does not tell. (Only
    Linux does. A locked worker computes in a child, the first process of its own namespace.)"""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        stats = [Path(f"/proc/{one}/stat").read_text() for one in [pid, *children]]
    except OSError:
        return None
    ticks = [sum(map(int, stat.rpartition(")")[2].split()[11:15])) for stat in stats]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


class LockedWorker(Worker):
    """A worker that gives up what it can (jail.py) before it loads a file, for graders. With a
    nursery it is forked from there, else it starts cold."""

    def __init__(self, folder, nursery=None):
        super().__init__(folder)
        self.nursery = nursery

    def open(self):
        if self.nursery:
            return self.nursery.open(self.folder)
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
               "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        return open_process([sys.executable, "-I", "-B", str(WORKERS / "worker.py"),
                             str(self.folder), "--locked"], env, cwd=self.folder)

    def pid(self):
        return self.process if self.nursery else super().pid()

    def exit_code(self):
        return "it exited or was killed" if self.nursery else super().exit_code()

    def end(self):
        if self.nursery:
            self.nursery.end(self.process)
        else:
            super().end()


class Nursery:
    """The warm process of nursery.py. Linux only: other systems start workers cold."""

    def __init__(self):
        self.lock = threading.Lock()
        self.begin()

    def begin(self):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(WORKERS / "nursery.py"), str(theirs.fileno())],
            env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()

    def ask(self, message, pipes=()):
        """-> the pid in its answer. Should the nursery have been killed (nothing but a student's
        code without namespaces could), a new one takes its place."""
        with self.lock:
            for _ in range(2):
                try:
                    socket.send_fds(self.control, [json.dumps(message).encode()], pipes)
                    return json.loads(self.control.recv(65536))["pid"]
                except (OSError, ValueError):
                    self.stop()
                    self.begin()
            raise OSError("the warm process does not start")

    def open(self, folder):
        (request_end, requests), (answers, answer_end) = os.pipe(), os.pipe()
        pid = self.ask({"start": str(folder)}, [request_end, answer_end])
        os.close(request_end)
        os.close(answer_end)
        return pid, os.fdopen(requests, "wb"), os.fdopen(answers, "rb")

    def end(self, pid):
        self.ask({"end": pid})

    def stop(self):
        self.control.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def open_process(command, env, cwd=None):
    process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    return process, process.stdin, process.stdout


def talk(stream, requests):
    """Write what is in the queue, until there comes None. (A process that does not read would
    make the caller wait.)"""
    try:
        while (content := requests.get()) is not None:
            stream.write(content)
            stream.flush()
        stream.close()
    except OSError:  # the process has ended
        pass


def listen(stream, answers):
    """Put the messages of a stream into a queue, and None at its end. A worker is asked one thing
    at a time: one that talks without being asked is cut off."""
    try:
        while (message := receive(stream)) is not None and answers.qsize() < 4:
            answers.put(message)
    except (ValueError, MemoryError) as error:
        answers.put(error)
    answers.put(None)
    stream.close()


def checked(answer, request):
    """The answer with the parts that the judge looks at and no others, or None where one of them is
    not what a worker sends. (It may come from a hostile process.)"""
    import torch  # not above: a worker should start before we import it

    parts = {"raised": {"type": str, "message": str, "lines": list}, "not_started": {}}
    kinds = {"status": str, "id": str}
    if not isinstance(answer, dict) or type(answer.get("status")) is not str:
        return None
    if answer["status"] == "returned":
        kinds |= {"steps": list} if "run" in request else {
            "output": object, "has_graph": list, "grads": dict, "inputs": dict}
    else:
        kinds |= parts.get(answer["status"], {"message": str})
        kinds |= {"steps": list} if "steps" in answer else {}
    kinds |= {"printed": str} if "printed" in answer else {}
    if not all(name in answer and isinstance(answer[name], kind) for name, kind in kinds.items()):
        return None
    answer = {name: answer[name] for name in kinds}
    good = (answer["id"] == request["id"]
            and all(isinstance(step, dict) for step in answer.get("steps", []))
            and all(isinstance(line, str) for line in answer.get("lines", []))
            and all(isinstance(flag, bool) for flag in answer.get("has_graph", []))
            and all(grad is None or isinstance(grad, torch.Tensor)
                    for grad in answer.get("grads", {}).values()))
    return answer if good else None
