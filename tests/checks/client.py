"""Starts the process that runs a student's code, asks it, and never waits for ever."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from channel import pack, receive

WORKER = Path(__file__).resolve().parent.parent / "worker" / "worker.py"
START_SECONDS = 60  # importing torch on a busy laptop


class Worker:
    """One folder's code in a process of its own. After a crash or an endless loop the next request
    starts a new one."""

    def __init__(self, folder):
        self.folder, self.process, self.answers = Path(folder), None, None

    def start(self):
        """Start without waiting. (Two workers may then start side by side.)"""
        if self.process:
            return
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(self.folder)], env=env, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self.answers, self.is_ready = queue.Queue(), False
        threading.Thread(target=self.listen, args=(self.process.stdout, self.answers),
                         daemon=True).start()

    @staticmethod
    def listen(stream, answers):
        try:
            while (message := receive(stream)) is not None:
                answers.put(message)
        except ValueError as error:
            answers.put({"status": "tampered", "message": str(error)})
        answers.put(None)

    def send(self, request):
        """Ask without waiting for the answer. (Two workers can then think side by side.)"""
        self.start()
        try:
            self.process.stdin.write(pack(request))
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended: `wait` will say so

    def wait(self, seconds):
        """The answer to `send`, or {"status": "timeout"}, "crashed" or "tampered"."""
        try:
            if not self.is_ready:
                self.is_ready = self.answers.get(timeout=START_SECONDS) == {"status": "ready"}
            answer = self.answers.get(timeout=seconds) if self.is_ready else None
        except queue.Empty:
            answer = {"status": "timeout", "message": f"no answer within {seconds} seconds: does "
                      "it loop for ever?"}
        if answer is None:
            code = self.process.wait()
            answer = {"status": "crashed", "message": f"the process ended with exit code {code}"}
        if answer["status"] in ("timeout", "crashed", "tampered"):
            self.stop()
        return answer

    def ask(self, request, seconds):
        self.send(request)
        return self.wait(seconds)

    def stop(self):
        """End the process and whatever it has started."""
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (AttributeError, ProcessLookupError, PermissionError):  # Windows; already gone
                self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process = None
