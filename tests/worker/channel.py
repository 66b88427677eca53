"""Messages between the process that judges and the one that runs a student's code.

A message is a tree of dictionaries, lists, tuples, strings, numbers, None and tensors. It travels
as JSON, with the tensors beside it as safetensors: reading one never runs code, unlike unpickling.
Layout: 8 bytes length of the whole, 8 bytes length of the JSON, the JSON, the tensors."""

import json
import struct

MAX_BYTES = 2**18  # of one message; the largest honest one has a tenth of that
MAX_VALUES = 2**11  # in one message: four bytes of JSON, an empty list, take 64 in memory


def encode(value, tensors):
    """The JSON form of a value; its tensors are put aside in the dictionary `tensors`."""
    import torch  # not above: who starts a worker need not wait for it

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, float):  # a subclass, such as numpy.float64
        return float(value)
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        plain = torch.Tensor.detach(value).as_subclass(torch.Tensor)
        tensors[name] = plain.to("cpu").to_dense().resolve_conj().resolve_neg().contiguous().clone()
        return {"tensor": name}
    if type(value) is list:
        return [encode(item, tensors) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, tensors), encode(item, tensors)]
                         for key, item in value.items()]}
    return {"other": f"{type(value).__module__}.{type(value).__qualname__}"}


class Other:
    """What stands for a value of a type that no exercise returns."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return isinstance(other, Other) and self.name == other.name

    def __repr__(self):
        return f"<an object of the type {self.name}>"


def decode(value, tensors):
    if type(value) is list:
        return [decode(item, tensors) for item in value]
    if type(value) is dict:
        (kind, content), = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(decode(item, tensors) for item in content)
        if kind == "dict":
            return {decode(key, tensors): decode(item, tensors) for key, item in content}
        return Other(content)
    return value


def pack(message):
    """A message -> bytes. Raises TypeError or ValueError for what JSON cannot hold."""
    from safetensors.torch import save

    tensors = {}
    text = json.dumps(encode(message, tensors)).encode("utf-8")
    content = struct.pack(">Q", len(text)) + text + save(tensors)
    return struct.pack(">Q", len(content)) + content


def values_in(text):
    """At least as many values as JSON will make of this text."""
    return 1 + sum(map(text.count, (b",", b"[", b"{")))


def unpack(content):
    """The bytes after the first length -> the message. Raises ValueError where they are none."""
    from safetensors.torch import load

    try:
        end = 8 + struct.unpack(">Q", content[:8])[0]
        text, tensors = content[8:end], content[end:]
        names = tensors[8:8 + struct.unpack("<Q", tensors[:8])[0]]  # JSON, too
        number = values_in(text) + values_in(names)
        if number <= MAX_VALUES:
            return decode(json.loads(text), load(tensors))
    except Exception as error:
        raise ValueError(f"this is no message: {error}") from None
    raise ValueError(f"a message of {number} values")


def receive(stream):
    """The next message of a binary stream, or None at its end."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    length = struct.unpack(">Q", head)[0]
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length} bytes")
    content = stream.read(length)
    return unpack(content) if len(content) == length else None
