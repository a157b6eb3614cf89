"""Ways to spoil a file: bytes, and what a format means by them, so that damage gets past the parser.

Everything is drawn from one generator: a seed tells the file.
"""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Random = random.Random
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 10**12, 10**400, 1e308, 0.5, float("nan"), float("inf"), "", "x", "x" * 5000),
    *([], {}, [[]], [0], [1, 2, 3], ["x"] * 3, {"a": 1}, "\ud800", "../x", "/etc/passwd", "a\0b", "F16", "BF16", "I8"),
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
Spoil = Callable[[bytes, Random], bytes]


def bytes_(content: bytes, rng: Random) -> bytes:
    """Bits flipped, bytes set, parts cut, doubled, moved, put in; the end lost; a number that is a limit."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 4, 8, 40, 500))
        match rng.randrange(9):
            case 0 if out:
                out[at - 1] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at - 1] = rng.randrange(256)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                out[at : at + size] = rng.randbytes(size)
            case 5:
                out[at:at] = out[at : at + size]
            case 6:
                del out[at:]
            case 7:
                number, width = rng.choice(NUMBERS), rng.choice((1, 2, 4, 8))
                out[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
            case 8:
                part = out[at : at + size]
                del out[at : at + size]
                place = rng.randrange(len(out) + 1)
                out[place:place] = part
    return bytes(out)


def beginning(content: bytes, rng: Random) -> bytes:
    """Only the first bytes, where formats say what they are."""
    size = min(len(content), rng.choice((16, 64, 400)))
    return bytes_(content[:size], rng) + content[size:]


def ending(content: bytes, rng: Random) -> bytes:
    """Only the last bytes, where archives keep their list."""
    size = min(len(content), rng.choice((22, 100, 1000)))
    return content[: len(content) - size] + bytes_(content[len(content) - size :], rng)


def tree(content: Any, rng: Random) -> Any:
    """A parsed JSON with one place changed."""
    content = json.loads(json.dumps(content))
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        places += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    if not places:
        return rng.choice(NASTY)
    above, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1:
            above[key] = rng.choice(NASTY)
        case 2:
            del above[key]
        case 3 if isinstance(above, dict):
            above[rng.choice((f"{key}x", str(key)[1:], "", "__metadata__", "a.b", f"module.{key}"))] = above.pop(key)
        case 4:
            other, name = rng.choice(places)
            above[key] = json.loads(json.dumps(other[name] if name in other or isinstance(name, int) else None))
        case _ if isinstance(above[key], int | float) and not isinstance(above[key], bool):
            above[key] = rng.choice((above[key] + 1, -above[key], above[key] * 2, above[key] * 10**9, above[key] / 3))
        case _:
            above[key] = [above[key]]
    return content


def text(content: Any, rng: Random) -> bytes:
    """As JSON; now and then with a key twice, brackets without end, or another encoding."""
    words = json.dumps(content)
    match rng.randrange(12):
        case 0 if isinstance(content, dict) and content:
            key = rng.choice(list(content))
            words = f"{words[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(NASTY))}}}"
        case 1:
            words = "[" * rng.choice((10, 100_000)) + words
        case 2:
            return words.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")))
    return words.encode("utf-8", "surrogatepass")


def json_(content: bytes, rng: Random) -> bytes:
    """A JSON file whose meaning is changed."""
    return text(tree(json.loads(content), rng), rng)


def safetensors(content: bytes, rng: Random) -> bytes:
    """A header that says something else, of the right length, before the same numbers."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    match rng.randrange(7):
        case 0:
            entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I32", "I8", "BOOL", "F8_E4M3", "U32", "C64", "F4", ""))
        case 1:
            entry["shape"] = rng.choice(
                (entry["shape"][::-1], [*entry["shape"], 1], [0], [2**40, 2**40], [], [-1], [1.0])
            )
        case 2:
            other = header[rng.choice(names)]
            entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
        case 3:
            other = header[rng.choice(names)]
            entry["shape"], other["shape"] = other["shape"], entry["shape"]
        case 4:
            name, new = rng.choice(names), rng.choice(("a", "module.a", "lora_A", "\ud800", "x" * 5000))
            header[rng.choice((new, f"module.{name}", name[1:]))] = header.pop(name)
        case _:
            header = tree(header, rng)
    words = text(header, rng)
    return struct.pack("<Q", len(words)) + words + content[8 + length :]


def archive(content: bytes, rng: Random) -> bytes:
    """A zip with other members, each with the right checksum: spoilt, twice, renamed, packed otherwise."""
    with zipfile.ZipFile(io.BytesIO(content)) as given:
        members = {name: given.read(name) for name in given.namelist()}
        method = given.infolist()[0].compress_type
    name, listed = rng.choice(list(members)), list(members.items())
    # the member that describes the others, where there is one
    name = next((one for one in members if one.endswith("data.pkl")), name) if rng.random() < 0.7 else name
    match rng.randrange(7):
        case 0 | 1 | 2:
            how = beginning if rng.random() < 0.5 and not name.endswith(".pkl") else bytes_
            listed = [(one, how(data, rng) if one == name else data) for one, data in listed]
        case 3:
            listed = [(one, _array(data, rng) if one == name else data) for one, data in listed]
        case 4:
            listed.append((rng.choice((name, name.removesuffix(".npy"), "x.npy", "../x", "")), rng.choice(listed)[1]))
        case 5:
            listed = [(one[1:] if one == name else one, data) for one, data in listed]
        case 6:
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for one, data in listed:
            made.writestr(one or "x", data)
    return out.getvalue()


KINDS = ("<f8", ">f4", "<f2", "<i4", "<i8", "|b1", "<c8", "|V2", "|V4", "|O", "|S4", "<U1", "<M8[s]", "|V0", "<f16")


def _array(data: bytes, rng: Random) -> bytes:
    """An .npy whose header says something else."""
    if data[:6] != b"\x93NUMPY":
        return bytes_(data, rng)
    size = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + size].decode("latin-1")
    shape = header[header.index("(") : header.index(")") + 1]
    changed = {
        0: header.replace("'<f4'", repr(rng.choice(KINDS))),
        1: header.replace("False", "True"),
        2: header.replace(
            shape, rng.choice(("()", "(-1,)", "(10**9,)", "(1000000000000,)", "(0,)", "(1.5,)", "('a',)", "5"))
        ),
        3: header.replace("{", rng.choice(("{'a': 1, ", "{1: 2, ", "[", "", "{" * 99, "\x0c\n  {"))),
        4: header.replace("'<f4'", rng.choice(("[]", "[('a', '<f4')]", "('<f4', (2,))", "None", "7", "'x'", "{}"))),
    }[rng.randrange(5)]
    words = changed.encode("latin-1")
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00"))
    length = struct.pack("<H" if version[0] == 1 else "<I", len(words))
    return b"\x93NUMPY" + version + length + words + data[10 + size :]


def splice(content: bytes, other: bytes, rng: Random) -> bytes:
    """The beginning of one file, the end of another."""
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]
