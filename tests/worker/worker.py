"""The process that runs a student's code, and judges nothing: python worker.py FOLDER [--locked]

Requests come in on standard input and answers go out on what was standard output when it began;
what the student's code prints is thrown away or, without --locked, its end comes with the answer.
One request, one answer:
    {"file", "function", "inputs", "grad"}     -> what perform.py notes
    {"file", "run"}                            -> what a training run with the functions records
A file is loaded when it is first asked for. --locked: give up first what jail.py lists."""

import os
import sys
import traceback

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import contextlib  # noqa: E402
import importlib.util  # noqa: E402
import io  # noqa: E402

import torch  # noqa: E402

from channel import pack, receive  # noqa: E402
from perform import perform  # noqa: E402


def load(folder, name):
    """The module folder/name.py, run anew at every call, and not among sys.modules: nobody else's
    copy of it changes. It is here, and not with the checks, because this folder is run and copied
    without them."""
    path = os.path.join(folder, f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(request, folder, modules):
    name = request["file"]
    path = os.path.join(folder, f"{name}.py")
    if not os.path.isfile(path):
        return {"status": "missing", "message": f"there is no {name}.py"}
    try:
        if name not in modules:
            modules[name] = load(folder, name)
    except Exception as error:
        text = "".join(traceback.format_exception_only(error)).strip()
        lines = [f"\n    line {frame.lineno}: {frame.line}"
                 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        return {"status": "not_loaded", "message": text[-2000:] + "".join(lines[-1:])}
    if "run" in request:
        from runs import train
        return train(modules[name], request["run"])
    function = getattr(modules[name], request["function"], None)
    if not callable(function):
        return {"status": "missing", "message": f"{name}.py has no {request['function']}"}
    return perform(function, request["inputs"], request["grad"])


class Printed(io.TextIOBase):
    """Keeps the end of what is printed: a loop may print for ever."""

    end = ""

    def write(self, text):
        self.end = (self.end + text)[-2000:]
        return len(text)


def serve(folder, requests, answers, protections=(), tells=False):
    """Answer requests until there are no more. `requests` and `answers` are file descriptors.
    tells: the end of what was printed comes with the answer."""
    torch.set_num_threads(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in 0, 1, 2:
        os.dup2(nothing, descriptor)
    requests, answers = os.fdopen(requests, "rb"), os.fdopen(answers, "wb")
    modules = {}
    answers.write(pack({"status": "ready", "protections": list(protections)}))
    answers.flush()
    while (request := receive(requests)) is not None:
        printed = Printed()
        try:
            with contextlib.redirect_stdout(printed if tells else sys.stdout):
                message = pack({**answer(request, folder, modules), "id": request["id"],
                                **({"printed": printed.end} if tells else {})})
        except Exception as error:  # such as an output that is too odd to be sent
            message = pack({"status": "raised", "type": type(error).__name__, "lines": [],
                            "message": f"{type(error).__name__}: {error}"[:2000],
                            "id": request["id"]})
        answers.write(message)
        answers.flush()


if __name__ == "__main__":
    pipes = os.dup(0), os.dup(1)
    if "--locked" in sys.argv:
        from jail import lock
        serve(sys.argv[1], *pipes, lock(sys.argv[1]))
    else:
        serve(sys.argv[1], *pipes, tells=True)
