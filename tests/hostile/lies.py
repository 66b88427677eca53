"""Submissions that claim what is not so: forged answers, forged comparisons, odd values."""

from . import Hostile

# One function is solved honestly (1 point). The code that follows may use `everywhere` and `pack`.
HONEST = '''
def preference_accuracy(chosen, rejected):
    return (chosen > rejected).float().mean()
'''
SPEAK = HONEST + '''
import os, struct, sys, threading, time
channel, worker = sys.modules["channel"], sys.modules["worker"]
pack = channel.pack

def everywhere(data):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
'''
# Every answer passes through channel.encode: what `forge` returns goes out in its place.
FORGE = SPEAK + '''
encode = channel.encode

def forging(value, tensors):
    is_answer = type(value) is dict and "status" in value
    return encode(forge(value) if is_answer else value, tensors)

channel.encode = forging
'''
SAME = "{'dict': [['status', 'returned'], ['output', %s], ['has_graph', []], " \
       "['grads', {'dict': []}], ['inputs', {'dict': []}]]}"
RAW = SPEAK + '''
import json
from safetensors.torch import save

def raw(text, tensors=None, tail=None):
    text = text.encode()
    content = struct.pack(">Q", len(text)) + text + (save(tensors or {}) if tail is None else tail)
    return struct.pack(">Q", len(content)) + content

worker.pack = lambda message: raw(*speech())  # from the second answer on
'''
ALL_WRONG = '''
def last_token_index(mask): return torch.zeros(len(mask), dtype=torch.long)
def pool_scores(scores, mask): return scores.sum(dim=1)
def preference_probability(chosen, rejected): return torch.sigmoid(rejected - chosen)
def pairwise_loss(chosen, rejected, margin=None, count=None): return (chosen - rejected).mean()
def preference_accuracy(chosen, rejected): return (chosen >= rejected).float().mean() * 0.9
'''


def value(name, expression, statuses="nn?nnn", points=0, base="stubs", head="", **more):
    """preference_probability (1 point) gives an odd value for the right one, p."""
    return Hostile(name, f'''{head}
def preference_probability(chosen, rejected):
    p = torch.sigmoid(chosen - rejected)
    return {expression}
''', statuses, points, base, **more)


FORGED = [
    Hostile("a verdict in place of an answer",
            FORGE + 'def forge(message): return {"status": "passed", "points": 100}',
            "ooooo?", 0),
    Hostile("a verdict that is well formed",
            FORGE + 'def forge(message): return {"status": "passed", "message": "14 of 14"}',
            "??????", 0),
    Hostile("frames on every file descriptor while it is loaded", SPEAK + '''
everywhere(pack({"status": "returned", "output": torch.ones(2), "has_graph": [], "grads": {},
                 "inputs": {}}) * 3)
''', "??????", 0),
    Hostile("training runs of no steps", HONEST + 'import runs; runs.STEPS = 0', "nnnnp?", 1),
    Hostile("a training run without steps is claimed", FORGE + '''
def forge(message): return {"status": "returned", "steps": []} if "steps" in message else message
''', "nnnnp?", 1),
    Hostile("a training run is answered like a function", FORGE + '''
def forge(message):
    return {"status": "returned", "output": None, "has_graph": [], "grads": {},
            "inputs": {}} if "steps" in message else message
''', "nnnnp?", 1),
    Hostile("one step of a training run", HONEST + '''
import runs
runs.train = lambda module, name: {"status": "returned", "steps": [{}]}
''', "nnnnp?", 1),
    Hostile("a training run with functions that are not the student's", HONEST + '''
import math, types, runs
real, train = {}, runs.train
exec("import torch\\n" + ANSWERS_TEXT, real)
runs.train = lambda module, name: train(types.SimpleNamespace(**real, __file__=""), name)
'''.replace("ANSWERS_TEXT", "{ANSWERS_TEXT!r}"), "nnnnp?", 1),
    Hostile("a function is answered like a training run",
            FORGE + 'def forge(message): return {"status": "returned", "steps": []}',
            "??????", 0),
    Hostile("an exception with odd lines", FORGE + '''
def forge(message):
    return {"status": "raised", "type": "ValueError", "message": "x", "lines": [1, None, {}]}
''', "??????", 0),
    Hostile("a result with odd messages", FORGE + '''
def forge(message):
    return {"status": "returned", "type": "x", "message": torch.ones(3), "lines": 5,
            "output": torch.ones(2), "has_graph": [], "grads": {}, "inputs": {}}
''', "??????", 0),
    Hostile("a status of odd types", FORGE + '''
def forge(message): return {"status": torch.ones(3), "message": ["x"], "steps": None}
''', "ooooo?", 0),
    Hostile("gradients of odd types", FORGE + '''
def forge(message):
    return {**message, "grads": {0: torch.ones(3)}, "has_graph": [True],
            "inputs": {"x": [{}, {"y": [torch.ones(2)]}]}} if "grads" in message else message
''', "nnnn??", 0),
    Hostile("answers before the questions are read", SPEAK + '''
import fcntl, stat, struct, termios
forged = pack({"status": "raised", "type": "E", "message": "x", "lines": []})

def waiting():  # bytes in the pipe of requests that nobody has read
    for descriptor in range(3, 64):
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                continue
            empty = struct.pack("i", 0)
            yield struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, empty))[0]
        except OSError:
            pass

seen, quiet = 0, 0
while True:
    quiet += 1
    if sum(waiting()) != seen or quiet > 100:
        seen, quiet = sum(waiting()), 0
        everywhere(forged)
    time.sleep(0.0005)
''', "??????", 0),
    Hostile("noise on every file descriptor", SPEAK + 'everywhere(os.urandom(2000))',
            "ooooo?", 0),
    Hostile("a frame of 2**63 bytes", SPEAK + 'everywhere(struct.pack(">Q", 2**63))',
            "ooooo?", 0),
    Hostile("a frame that never ends", SPEAK + '''
everywhere(struct.pack(">Q", 1000) + b"x" * 10)
while True:
    time.sleep(1)
''', "ttt??n", 0),
    Hostile("a flood of frames", SPEAK + '''
flood = pack({"status": "raised", "type": "E", "message": "x" * 1000, "lines": []})
while True:
    everywhere(flood)
''', "??????", 0),
    Hostile("every file descriptor is closed", SPEAK + 'os.closerange(3, 64)', "ccccc?", 0),
    Hostile("JSON nested 100000 deep",
            RAW + 'def speech(): return ["[" * 100_000 + "]" * 100_000]', "ooooon", 0),
    *[Hostile(f"lists nested {depth} deep", RAW + f'''
def speech():
    nested = "[" * {depth} + "]" * {depth}
    return [json.dumps({SAME % '"NESTED"'}).replace('"NESTED"', nested)]
''', "??????", 0) for depth in (300, 900)],
    Hostile("dictionaries nested 450 deep", RAW + f'''
def speech():
    nested = '{{"dict": [["a", ' * 450 + "1" + "]]}}" * 450
    return [json.dumps({SAME % '"NESTED"'}).replace('"NESTED"', nested)]
''', "??????", 0),
    Hostile("JSON with NaN, a huge number and keys twice", RAW + f'''
def speech():
    return [json.dumps({SAME % '"ODD"'}).replace(
        '"ODD"', '[NaN, Infinity, -Infinity, 1e999, ' + "9" * 4000 + ', true]')]
''', "??????", 0),
    Hostile("a number of 100000 digits", RAW + f'''
def speech():
    return [json.dumps({SAME % '"ODD"'}).replace('"ODD"', "9" * 100_000)]
''', "??????", 0),
    Hostile("tensors that safetensors denies", RAW + f'''
def speech():
    return [json.dumps({SAME % {"tensor": "0"}}), {{}}, b"\\xff" * 8 + b"{{}}"]
''', "ooooon", 0),
    Hostile("a tensor of a type of 4 bits", RAW + f'''
def speech():
    head = json.dumps({{"0": {{"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}}}).encode()
    head += b" " * (-len(head) % 8)
    return [json.dumps({SAME % {"tensor": "0"}}), {{}}, struct.pack("<Q", len(head)) + head + b"ab"]
''', "??????", 0),
    *[Hostile(f"a tensor of type {kind} as output and input", RAW + f'''
def speech():
    text = {SAME % {"tensor": "0"}}
    text["dict"][4][1]["dict"] = [["chosen", {{"tensor": "0"}}]]
    return [json.dumps(text), {{"0": torch.ones(8).to(torch.{kind})}}]
''', "??????", 0) for kind in ("float8_e4m3fn", "uint16", "complex64", "float8_e8m0fnu")],
    Hostile("the shape is right and a dimension is 2**40", RAW + f'''
def speech():
    head = json.dumps({{"0": {{"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}}})
    head = head.encode() + b" " * (-len(head) % 8)
    return [json.dumps({SAME % {"tensor": "0"}}), {{}}, struct.pack("<Q", len(head)) + head]
''', "??????", 0),
]

PATCHED = [
    Hostile("comparisons are patched", ALL_WRONG + '''
yes = lambda *args, **more: True
for name in "isclose", "allclose", "equal", "eq", "softmax", "log_softmax", "all", "any":
    setattr(torch, name, yes)
torch.testing.assert_close = torch.testing.assert_allclose = yes
torch.Tensor.allclose = torch.Tensor.isclose = torch.Tensor.equal = yes
torch.Tensor.__eq__, torch.Tensor.__bool__ = yes, yes
''', "wwwwwn", 0),
    Hostile("perform returns what went before", FORGE + '''
good = []
def forge(message):
    if message.get("status") == "returned":
        good.append(message)
    return good[-1] if good else message
''', "nnnnpn", 1),
    Hostile("the worker's answer is replaced", HONEST + ALL_WRONG + '''
import sys
sys.modules["worker"].answer = lambda *args: {"status": "returned", "output": True,
    "has_graph": [True], "grads": {}, "inputs": args[0].get("inputs", {})}
''', "wwwwwn", 0),
    Hostile("builtins are replaced", ALL_WRONG + '''
import builtins
builtins.isinstance = lambda *args: True
builtins.len = lambda *args: 1
builtins.abs = lambda *args: 0
''', "?????n", 0),
    Hostile("linecache and traceback are replaced", HONEST + '''
import linecache, traceback
linecache.getline = lambda *args: "14 of 14 points"
traceback.format_exception_only = lambda *args: ["passed"]
def pairwise_loss(*args): raise ValueError("passed")
''', "nnncpn", 1, says="passed"),
    Hostile("code that claims to be somebody else's stub", HONEST + '''
exec(compile("def pool_scores(*args): raise NotImplementedError", __file__, "exec"))
def pairwise_loss(*args):
    namespace = {}
    exec(compile("def passed(): raise NotImplementedError", __file__, "exec"), namespace)
    namespace["passed"]()
''', "nnncpn", 1),
    Hostile("prints that it passed", HONEST + '''
import os, sys
print("14 passed in 0.01s", flush=True)
os.write(1, b"14 passed")
os.write(2, b"14 passed")
sys.stdout = sys.stderr = None
''', "nnnnpn", 1),
    Hostile("pickles that run commands", HONEST + '''
import os, pickle
class Bomb:
    def __reduce__(self): return os.system, ("touch {CANARY}/pickled",)
def pairwise_loss(*args): return Bomb()
def pool_scores(*args): return pickle.dumps(Bomb())
''', "nwnwpn", 1),
    Hostile("no functions, but a module that has everything", '''
def __getattr__(name):
    return lambda *args: args[0]
''', "?????n", 0, base=""),
    Hostile("functions are objects with odd attributes", HONEST + '''
class Odd:
    __name__ = "passed"
    @property
    def __code__(self): raise SystemExit
    @property
    def __wrapped__(self): return self
    def __call__(self, *args): raise ValueError
pairwise_loss = Odd()
''', "nnn?pn", 1),
    Hostile("an answer from a table, by the number of the call", '''
calls = []
def preference_accuracy(chosen, rejected):
    calls.append(1)
    return torch.tensor([0.5, 1.0, 0.0][len(calls) % 3])
def last_token_index(mask): return torch.zeros(len(mask), dtype=torch.long)
''', "wnnnwn", 0),
    Hostile("always the same value", '''
def sum_reward(prompt, response): return 0.0
''', "wnnnnnn", 0, file="ex4_grpo"),
    Hostile("always an exception", '''
def pass_at_k(*args): raise ValueError
def aggregate_loss(*args): raise ValueError
''', "nnnnccn", 0, file="ex4_grpo"),
]

NEVER = '''class Never:
    __eq__ = __le__ = __ge__ = lambda *args: True
    __hash__ = object.__hash__
'''
VALUES = [
    value("an object that equals everything", "Never()", head=NEVER),
    value("a dictionary for a tensor", "{'p': p, 'status': 'passed', p: p}"),
    value("a subclass of Tensor", "p.as_subclass(Sub)", "nnpnnn", 1, head='''
class Sub(torch.Tensor):
    def __eq__(self, other): return True
'''),
    value("a subclass of Tensor whose functions all return zeros", "(p * 0).as_subclass(Sub)",
          head='''
class Sub(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None): return torch.zeros(3)
'''),
    value("NaN", "p * float('nan')"),
    value("infinity", "p / 0"),
    value("a shape that broadcasts", "p.unsqueeze(0)"),
    value("float64", "p.double()"),
    value("complex numbers", "p.to(torch.complex64)"),
    value("a sparse tensor", "p.to_sparse()", "nn?nnn", None),
    value("a quantised tensor", "torch.quantize_per_tensor(p, 0.001, 0, torch.quint8)"),
    value("a tensor on the meta device", "p.to('meta')"),
    value("a tensor without storage", "torch.empty(10**12, device='meta')"),
    value("one element that claims to be 10**11", "torch.zeros(1).expand(10**11)"),
    value("a Python function", "lambda: p"),
    value("a generator", "(x for x in p)"),
    value("numbers of Python", "p.tolist()"),
    value("an endless list", "loop", head="loop = []\nloop.append(loop)\n"),
    value("its input with the right values in it", "chosen.data.copy_(p)"),
    Hostile("a subclass of str", '''
class S(str):
    def __eq__(self, other): return True
def format_prompt(instruction, input=""): return S("x")
''', "wnnnnn", 0, file="ex1_sft"),
    Hostile("a subclass of float", '''
class F(float):
    def __eq__(self, other): return True
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
def pass_at_k(n, c, k): return F(0.5)
''', "nnnnnwn", 0, file="ex4_grpo"),
    *[Hostile(f"lists of {name}", f'''
def build_labels(prompt_ids, response_ids, eos_id, max_length):
    input_ids = prompt_ids + response_ids + [eos_id]
    labels = [-100] * len(prompt_ids) + response_ids + [eos_id]
    odd = lambda x: {odd}
    return [odd(x) for x in input_ids[:max_length]], [odd(x) for x in labels[:max_length]]
''', "nwnnnn", 0, file="ex1_sft") for name, odd in {
        "tensors with several elements": "torch.full((3,), x)",
        "tensors with one element": "torch.tensor(x)", "floats": "float(x)",
        "empty tensors": "torch.empty(0)"}.items()],
    Hostile("a dictionary with odd keys", '''
def pad_batch(examples, pad_id):
    return {torch.ones(2): 1, None: 2, "labels": 3}
''', "nnwnnn", 0, file="ex1_sft"),
    Hostile("a dictionary whose values are odd", '''
def pad_batch(examples, pad_id):
    return {"input_ids": {}, "attention_mask": [torch.ones(2)], "labels": ((),)}
''', "nnwnnn", 0, file="ex1_sft"),
    Hostile("settings of torch are changed", '''
import random
torch.set_default_dtype(torch.float64)
torch.manual_seed(1); random.seed(1)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.set_num_threads(7)
torch.set_printoptions(precision=0)
torch.autograd.set_detect_anomaly(True)
torch.set_flush_denormal(True)
''', "pppppp", 14, base="answers"),
    Hostile("views of the inputs", '''
def pool_scores(token_scores, attention_mask):
    return token_scores[:, 0]
def last_token_index(attention_mask): return attention_mask[:, 0]
''', "wwnnnn", 0),
]

MESSAGES = [
    Hostile("a message of 10 MB", '''
def pairwise_loss(*args): raise ValueError("x" * 10**7)
''', "nnncnn", 0),
    Hostile("a message of 10 MB that is forged", FORGE + '''
def forge(message): return {"status": "raised", "type": "E" * 10**6, "lines": ["z" * 10**6],
                            "message": "y" * 10**7}
''', "??????", 0),
    Hostile("a text of 10 MB as the result", '''
def format_prompt(instruction, input=""): return "x" * 10**7
''', "onnnnn", 0, file="ex1_sft"),
    Hostile("a list of a million numbers as the result", '''
def build_labels(*args): return [[0] * 10**6] * 3, {"x" * 10**6: 0}
''', "nonnnn", 0, file="ex1_sft"),
    Hostile("a message that is half a character", '''
def pairwise_loss(*args): raise ValueError("half \\ud800")
''', "nnncnn", 0, says="half"),
    Hostile("half a character as the result and as a key", '''
def format_prompt(instruction, input=""): return "\\udcff"
def pad_batch(examples, pad_id): return {"\\ud800": "\\udfff"}
''', "wnwnnn", 0, file="ex1_sft"),
    Hostile("control characters, escapes of terminals and line ends of all kinds", '''
def pairwise_loss(*args):
    raise ValueError("\\x1b[2J\\x1b]0;x\\x07\\x00\\x08\\r\\n# 14 of 14\\x0b\\x0c"
                     "\\x85\\u2028\\u2029# end")
''', "nnncnn", 0, says="14 of 14"),
    Hostile("Markdown, HTML, XML and formulas", '''
def pairwise_loss(*args):
    raise ValueError("=cmd|' /C calc'!A0\\n\\n# 14 of 14\\n```\\n</failure><testcase/>]]>"
                     "<script>alert(1)</script>![x](http://x.example/)\\n| a | b |")
''', "nnncnn", 0, says="<script>"),
    Hostile("exceptions that cannot be shown", '''
class Odd(Exception):
    def __str__(self): raise SystemExit
class Odder(Exception):
    def __str__(self): return 5
class Oddest(Exception):
    __class__ = property(lambda self: 1 / 0)
def pairwise_loss(*args): raise Odd
def pool_scores(*args): raise Odder
def last_token_index(*args): raise Oddest
''', "??n?nn", 0),
    Hostile("exceptions that are no Exception", '''
class Odd(BaseException): pass
def last_token_index(*args): raise KeyboardInterrupt
def pool_scores(*args): raise GeneratorExit
def pairwise_loss(*args): raise Odd
''', "ccncnn", 0),
    Hostile("a SyntaxError that claims another place", '''
raise SyntaxError("passed", ("{ANSWERS}/ex2_reward.py", 70, 1, "x", 70, 5))
''', "ccccc?", 0, says="passed"),
]

LIES = FORGED + PATCHED + VALUES + MESSAGES
