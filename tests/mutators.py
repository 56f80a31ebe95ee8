"""Files made wrong: bytes changed, metadata changed under a right checksum, structures in place of others."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ODD = (0, 1, 2, 3, 127, 128, 254, 255)


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, a piece cut out or doubled, or the end cut off."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(len(out)), chance.randint(1, 16)
        kind = chance.randrange(6)
        if kind == 0 and len(out) > 64:
            del out[at : at + length]
        elif kind == 1:
            out[at:at] = out[at : at + length]
        elif kind == 2 and len(out) > 64 and chance.random() < 0.2:
            del out[max(64, at) :]
        else:
            out[at : at + 1] = bytes([chance.choice([*ODD, chance.randrange(256)])])
    return bytes(out)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash, which HDF5 seals its metadata with."""
    m = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & m

    a = b = c = 0xDEADBEEF + len(data) & m
    at = 0
    while len(data) - at > 12:
        a, b, c = ((x + int.from_bytes(data[at + i : at + i + 4], "little")) & m for x, i in ((a, 0), (b, 4), (c, 8)))
        for k in (4, 6, 8, 16, 19, 4):
            a = (a - c & m) ^ rot(c, k)
            c = c + b & m
            a, b, c = b, c, a
        at += 12
    if at < len(data):
        rest = data[at:].ljust(12, b"\0")
        a, b, c = ((x + int.from_bytes(rest[i : i + 4], "little")) & m for x, i in ((a, 0), (b, 4), (c, 8)))
        for k in (14, 11, 25, 16, 4, 14, 24):
            c = (c ^ b) - rot(b, k) & m
            a, b, c = b, c, a
        c = b  # the last round changed what is now b
    return c


@lru_cache(2)
def sealed_blocks(data: bytes) -> tuple[tuple[int, int], ...]:
    """(start, end) of the pieces of an HDF5 file's metadata that a checksum follows."""
    found = [(0, 44)]
    for sign in (b"OHDR", b"OCHK", b"FAHD", b"FADB", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN"):
        at = -1
        while (at := data.find(sign, at + 1)) >= 0:
            ends = range(at + 10, min(at + 700, len(data) - 4))
            if sign == b"OHDR":
                flags = data[at + 5]
                size = at + 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
                first = size + (1 << (flags & 3))
                ends = range(e := first + int.from_bytes(data[size:first], "little"), e + 1)
            for end in ends:
                if lookup3(data[at:end]).to_bytes(4, "little") == data[end : end + 4]:
                    found.append((at, end))
                    break
    return tuple(found)


def of_sealed(data: bytes, chance: random.Random) -> bytes:
    """Metadata of an HDF5 file changed, and its checksum with it: what the library believes."""
    out, blocks = bytearray(data), sealed_blocks(data)
    for _ in range(chance.randint(1, 3)):
        start, end = chance.choice(blocks)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(start + 4, end)
            if chance.random() < 0.3:
                width = chance.choice([2, 4, 8])
                value = chance.choice([0, 1, 2**15, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), start, end])
                out[at : min(end, at + width)] = value.to_bytes(8, "little")[: min(end, at + width) - at]
            else:
                out[at] = chance.choice([*ODD, out[at] ^ 1 << chance.randrange(8), chance.randrange(256)])
        out[end : end + 4] = lookup3(bytes(out[start:end])).to_bytes(4, "little")
    return bytes(out)


TEXTS = (
    "",
    "x",
    "NaN",
    "wanlab-run",
    "dimension",
    "array",
    "complete",
    "{}",
    "[]",
    "null",
    "1e999",
    "-1",
    "[" * 100_000,
    '{"a":' * 5000 + "1" + "}" * 5000,
    "9" * 5000,
    '"\\ud800"',
    "\u202e\x1b[31m",
    "a" * 60_000,
    "/",
    "../x",
)
NUMBERS = (0, 1, -1, 2, 5, 10**6, 2**31, 2**53, 2**63 - 1, -(2**63), 0.5, 1e308, -0.0, float("nan"), float("inf"))


def any_value(chance: random.Random) -> Any:
    """What an attribute or a dataset may be given: every type that HDF5 has."""
    number, text = chance.choice(NUMBERS), chance.choice(TEXTS)
    some = chance.choice([0, 1, 2, 4, 300])
    return chance.choice(
        [
            number,
            text,  # of variable length
            np.bytes_(text.encode("utf-8", "surrogatepass")),
            np.bytes_(b"\xff\xfe\x00a"),
            np.float16(2),
            np.longdouble(1),
            np.complex64(1j),
            np.bool_(True),
            np.void(b"abc"),
            h5py.Empty("f8"),
            h5py.Empty("S4"),
            np.zeros(some),
            np.full(some, number, "f8"),
            np.arange(some, dtype="i4")[::-1],
            np.full(some, -1, "i8"),
            np.array([text.encode("utf-8", "surrogatepass")[:60]] * max(1, some), "S"),
            np.zeros((2, 3, 4), "u1"),
            np.zeros((1,) * 12),
            np.zeros(2, [("a", "i4"), ("b", "f8")]),
            np.array([1, 2], h5py.enum_dtype({"A": 1, "B": 2})),
            np.array(["a", "é"], h5py.string_dtype()),
            np.zeros(3, ">f4"),
            np.zeros(3, "u8"),
        ]
    )


def put_dataset(file: h5py.File, where: str, chance: random.Random) -> None:
    """A dataset as a stranger may make one: huge and empty, elsewhere, filtered, without chunks, of any type."""
    shape = chance.choice([(), (0,), (1,), (4,), (4, 3), (2**40,), (2**20, 2**20), (4,) * 10, (4, 2**24), (2**16,)])
    dtype = chance.choice(["u1", "f8", "i4", ">f4", "f2", "S4", "S60000", "c8", h5py.string_dtype(), [("a", "i4")]])
    kind = chance.randrange(8)
    if kind == 0:
        layout = h5py.VirtualLayout((4,), "f8")
        layout[:] = h5py.VirtualSource(chance.choice([".", "/etc/passwd", "gone.h5"]), "x", (4,))
        file.create_virtual_dataset(where, layout)
    elif kind == 1:
        file.create_dataset(where, (4,), "u1", external=[(chance.choice(["/etc/passwd", "/dev/zero", "gone"]), 0, 4)])
    elif kind == 2:
        filters: list[dict[str, Any]] = [
            {"compression": "lzf"},
            {"scaleoffset": 2},
            {"shuffle": True},
            {"compression": 9},
            {"fletcher32": True},
        ]
        file.create_dataset(where, (4, 3), "i4", chunks=(2, 3), **chance.choice(filters))
    elif kind == 3:
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_chunk((4,))
        create.set_filter(chance.choice([32015, 32001, 300]), h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, where.encode(), h5py.h5t.NATIVE_INT, space, dcpl=create)
    elif kind == 4:
        data = any_value(chance)
        file.create_dataset(where, data=data)
    elif kind == 5:
        file.create_dataset(where, (4,), "f8", chunks=(2,), maxshape=(None,), fillvalue=chance.choice([np.nan, 1e308]))
    else:
        # Nothing is written: HDF5 allocates chunks when they are filled, and a contiguous dataset's bytes then too.
        chunks = tuple(max(1, min(n, chance.choice([1, 64, 4096]))) for n in shape) if chance.random() < 0.7 else None
        file.create_dataset(where, shape, dtype, chunks=chunks or None if shape else None)


def put_link(file: h5py.File, where: str, chance: random.Random) -> None:
    """A link of any kind: soft ones that lead nowhere or round, external ones, a second hard one, a named type."""
    kind = chance.randrange(6)
    if kind == 0:
        file[where] = h5py.SoftLink(chance.choice(["/gone", where, "/", "/steps"]))
    elif kind == 1:
        file[where] = h5py.ExternalLink(chance.choice(["gone.h5", "/dev/zero", "/etc/passwd"]), "/")
    elif kind == 2:
        file[where] = file[chance.choice(["/", "/steps", "/step", "/steps/sigma"])]
    elif kind == 3:
        file[where] = np.dtype("f8")
    elif kind == 4:
        file[where + "/a" * chance.randint(1, 20)] = 1
    else:
        file[where] = h5py.SoftLink(where + "2")
        file[where + "2"] = h5py.SoftLink(where)


def of_structure(data: bytes, chance: random.Random) -> bytes:
    """An HDF5 file with some of its attributes, datasets, groups and links replaced, removed or added."""
    held = io.BytesIO(data)
    with h5py.File(held, "r+", libver=("v110", "v110")) as file:
        places: list[str] = ["/"]
        file.visit(lambda name: places.append(f"/{name}"))
        for _ in range(chance.randint(1, 3)):
            where = chance.choice(places)
            kind = chance.randrange(8)
            try:
                element = file[where]
                names = [*element.attrs.keys(), "units", "recorded_shapes", "values", "fps", "shift", "x_json"]
                if kind < 3:
                    element.attrs[chance.choice(names)] = any_value(chance)
                elif kind == 3:
                    del element.attrs[chance.choice(names)]
                elif kind == 4 and where != "/":
                    del file[where]
                elif kind == 5:
                    put_dataset(file, f"{where.rstrip('/')}{chance.choice(['', '', '_'])}x", chance)
                elif kind == 6:
                    put_link(file, f"{where.rstrip('/')}{chance.choice(['/y', 'y', '/é', '/' + 'y' * 70])}", chance)
                elif where != "/":
                    kept = dict(element.attrs)
                    del file[where]
                    (put_dataset if chance.random() < 0.8 else put_link)(file, where, chance)
                    if where in file:  # a field of another shape under its own attributes
                        for name, value in kept.items():
                            if name not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                                file[where].attrs[name] = value
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError):
                continue  # this version of the library does not make it
    return held.getvalue()


def of_hdf5(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    if kind == 0:
        return of_bytes(data, chance)
    if kind in (1, 2):
        return of_sealed(data, chance)
    changed = of_structure(data, chance)
    return of_bytes(changed, chance) if chance.random() < 0.1 else changed


def of_unsealed(data: bytes, chance: random.Random) -> bytes:
    """As damage and other programs change a file: nothing that a checksum holds for, and is not so."""
    return of_structure(data, chance) if chance.random() < 0.8 else of_bytes(data, chance)


def any_json(chance: random.Random) -> Any:
    deep: Any = 0
    for _ in range(chance.choice([1, 2, 400])):
        deep = [deep]
    texts = [t for t in TEXTS if len(t) < 10_000]
    return chance.choice(
        [None, True, False, {}, [], deep, 10**400, [[]] * 1000, {"": 0}, *NUMBERS, *texts, "\ud800", "a\0b"]
    )


def of_tree(value: Any, chance: random.Random) -> Any:
    """A JSON value with some of what is in it replaced, removed, repeated or put elsewhere."""
    root = [copy.deepcopy(value)]
    for _ in range(chance.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        waiting: list[Any] = [root]
        while waiting and len(places) < 2000:
            held = waiting.pop()
            for key in list(held) if isinstance(held, dict) else range(len(held)):
                places.append((held, key))
                if isinstance(held[key], dict | list) and held[key]:
                    waiting.append(held[key])
        held, key = chance.choice(places)
        kind = chance.randrange(6)
        if kind == 0 and held is not root:
            del held[key]
        elif kind == 1 and isinstance(held, list) and held is not root:
            held.insert(key, any_json(chance))
        elif kind == 2:
            other, at = chance.choice(places)
            held[key] = copy.deepcopy(other[at]) if at in other or (isinstance(other, list) and at < len(other)) else 0
        elif kind == 3 and isinstance(held, dict):
            held[chance.choice(["", "é", "\ud800", "x" * 300, "format"])] = any_json(chance)
        else:
            held[key] = any_json(chance)
    return root[0]


def of_json(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.25:
        return of_bytes(data, chance)
    return json.dumps(of_tree(json.loads(data), chance), ensure_ascii=chance.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def of_text(data: bytes, chance: random.Random) -> bytes:
    """A file of lines with a few of its words, numbers or brackets replaced."""
    if chance.random() < 0.3:
        return of_bytes(data, chance)
    pieces = re.split(r"(\w+|[\[\]{}\"=])", data.decode())
    for _ in range(chance.randint(1, 3)):
        odd = chance.choice(
            ["", "[" * 3000, "9" * chance.choice([400, 5000]), *map(str, NUMBERS), "true", '"x"', "[]", "\0"]
        )
        pieces[chance.randrange(len(pieces))] = chance.choice([odd, chance.choice(pieces)])
    return "".join(pieces).encode()


def of_shard(data: bytes, chance: random.Random) -> bytes:
    """A shard with another header or other bytes, mostly under a right checksum."""
    if chance.random() < 0.2:
        return of_bytes(data, chance)
    length = int.from_bytes(data[8:16], "little")
    head, rest = data[16 : 16 + length], data[16 + length : -4]
    head = of_json(head, chance)
    if chance.random() < 0.3:
        rest = of_bytes(rest or b"\0", chance)
    size = chance.choice([len(head)] * 6 + [0, 1, len(data), 2**31, 2**63, 2**64 - 1])
    out = data[:8] + size.to_bytes(8, "little") + head + rest
    return out + zlib.crc32(out).to_bytes(4, "little")


def of_safetensors(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return of_bytes(data, chance)
    length = int.from_bytes(data[:8], "little")
    head = of_json(data[8 : 8 + length], chance)
    return chance.choice([len(head)] * 6 + [0, 2**63, 2**64 - 1]).to_bytes(8, "little") + head + data[8 + length :]


def of_torch(data: bytes, chance: random.Random) -> bytes:
    """A zip of torch.save with another pickle, or other members, mostly under right checksums."""
    if chance.random() < 0.3:
        return of_bytes(data, chance)
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(held, "w") as made:
        for member in whole.infolist():
            content = whole.read(member)
            if member.filename.endswith(".pkl") or chance.random() < 0.05:
                out = bytearray(content)
                for _ in range(chance.randint(1, 4)):
                    at = chance.randrange(len(out) or 1)
                    if chance.random() < 0.2:
                        out[at:at] = chance.choice([b".", b"(", b"}", b"]", b"Q", b"h\0", b"R", b"t", b"K\xff", b"2"])
                    elif out:
                        out[at] = chance.choice([*ODD, *b".(}]QhRtKMJ", chance.randrange(256)])
                content = bytes(out)
            if chance.random() < 0.02:
                continue
            kind = zipfile.ZIP_DEFLATED if chance.random() < 0.02 else zipfile.ZIP_STORED
            made.writestr(member.filename, content, kind)
    return held.getvalue()


def of_mp4(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed anywhere, or in what the file says of itself: sizes, counts, times."""
    if chance.random() < 0.4:
        return of_bytes(data, chance)
    out, start = bytearray(data), max(0, data.find(b"moov"))
    end = len(data) if data.find(b"mdat") < start else data.find(b"mdat")
    for _ in range(chance.randint(1, 6)):
        at, width = chance.randrange(start, max(start + 1, end - 8)), chance.choice([1, 1, 2, 4])
        value = chance.choice([0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, chance.randrange(2**32)])
        out[at : at + width] = value.to_bytes(4, "big")[4 - width :]
    return bytes(out)


Mutator = Callable[[bytes, random.Random], bytes]
BY_SUFFIX: dict[str, Mutator] = {
    ".h5": of_hdf5,
    ".hdf5": of_unsealed,
    ".json": of_json,
    ".wls": of_shard,
    ".safetensors": of_safetensors,
    ".pt": of_torch,
    ".pth": of_torch,
    ".mp4": of_mp4,
    ".toml": of_text,
    ".jsonl": of_text,
}


def mutate(sample: Path | str, data: bytes, chance: random.Random) -> bytes:
    return BY_SUFFIX[Path(sample).suffix](data, chance)
