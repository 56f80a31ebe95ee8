"""What a run file may hold: declared arrays, names, and the limits a reader believes in."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError

Array = NDArray[Any]
Json = Any

FORMAT_VERSION = "2"  # what is written; schema.SCHEMAS lists what is read
STEP = "step"  # the leading dimension of every per-step dataset; the writer adds it

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
NUMBERS = (
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
MIB = 2**20

# What a reader believes of a file before it allocates anything (docs/runfile.md, "Limits").
MAX_RANK = 8
MAX_STEPS = 10**6
MAX_DIMENSION = 2**24
MAX_OBJECTS = 10_000
MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_BYTES = 16 * MIB
MAX_CHUNK_BYTES = 64 * MIB
MAX_CHUNKS = 2**18
MAX_DATASET_BYTES = 2**40
MAX_READ_BYTES = 8 * 2**30
MAX_ALL_ATTRIBUTE_BYTES = 64 * MIB


@dataclass(frozen=True)
class Field:
    """One declared array: per step (its dataset gets a leading `step` dimension) or final.

    name  lower-case identifier, unique in the run file
    dims  dimension names of ONE value, without `step`; one name has one size in the whole file
    dtype "bool", a numpy integer or float name, or "S<n>" (UTF-8 text of at most n bytes)
    unit  "1" when it has none
    doc   one line; the dataset's `long_name`

    Raises WanlabError when one of these is not so.
    """

    name: str
    dims: tuple[str, ...] = ()
    dtype: str = "float32"
    unit: str = "1"
    doc: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        for name in (self.name, *self.dims):
            if not NAME.match(name):
                raise WanlabError(f"'{name}' is no name for a field or a dimension", "use letters, digits and _")
        if STEP in (self.name, *self.dims):
            raise WanlabError(f"field '{self.name}' uses the name '{STEP}'", f"the run file adds '{STEP}' itself")
        if {"steps", "final"} & set(self.dims):
            raise WanlabError(f"field '{self.name}' has a dimension 'steps' or 'final'", "these are groups")
        if len(set(self.dims)) != len(self.dims) or len(self.dims) >= MAX_RANK:
            raise WanlabError(f"field '{self.name}' has dims {self.dims}", f"name at most {MAX_RANK - 1}, each once")
        if not (self.dtype in NUMBERS or self.dtype == "bool" or re.match(r"S[1-9]\d{0,3}\Z", self.dtype)):
            raise WanlabError(f"field '{self.name}' has dtype '{self.dtype}'", "use bool, " + ", ".join(NUMBERS))
        check_text("unit", self.unit)
        check_text("doc", self.doc)

    @cached_property
    def stored(self) -> np.dtype[Any]:
        """The dtype in the file: little-endian, and bool as uint8 (netCDF has no bool)."""
        return np.dtype("u1" if self.dtype == "bool" else self.dtype).newbyteorder("<")

    @property
    def missing(self) -> Any:
        """What stands in the file where a step has no value: NaN, an integer's far end, or empty text."""
        kind = self.stored.kind
        if kind == "f":
            return math.nan
        if kind == "S":
            return b""
        return np.iinfo(self.stored).min if kind == "i" else np.iinfo(self.stored).max

    def convert(self, value: Any) -> Array:
        """A private C-contiguous copy of `value` in the stored dtype.

        Raises WanlabError when the rank differs or the values do not fit the dtype.
        """
        try:
            given = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # a bfloat16 or a device tensor, a ragged list
            raise WanlabError(f"'{self.name}' is no array: {error}", "hand over CPU numpy values") from error
        if given.ndim != len(self.dims):
            raise WanlabError(f"'{self.name}' has shape {given.shape}, declared {self.dims}", "declare it as it is")
        if 0 in given.shape:
            raise WanlabError(f"'{self.name}' is empty (shape {given.shape})", "leave it out of this step")
        if max(given.shape, default=1) > MAX_DIMENSION:
            raise WanlabError(f"'{self.name}' has shape {given.shape}", f"record at most {MAX_DIMENSION} along one")
        kind, target = given.dtype.kind, self.stored
        if self.dtype == "bool":
            fits = kind == "b"
        elif target.kind == "S":
            if kind == "U":
                given = np.char.encode(given, "utf-8")
            fits = given.dtype.kind == "S" and given.dtype.itemsize <= target.itemsize
        elif target.kind in "iu" and kind in "iu":
            bounds = np.iinfo(target)
            fits = int(given.min()) >= bounds.min and int(given.max()) <= bounds.max
        else:
            fits = target.kind == "f" and kind in "biuf"
        if not fits:
            raise WanlabError(f"'{self.name}' ({given.dtype}) does not fit {self.dtype}", "declare a wider dtype")
        with np.errstate(over="ignore"):
            made = np.array(given, dtype=target, order="C", copy=True)
        narrowed = target.kind == "f" and kind == "f" and target.itemsize < given.dtype.itemsize
        if narrowed and np.count_nonzero(np.isinf(made)) != np.count_nonzero(np.isinf(given)):
            raise WanlabError(f"'{self.name}' has values beyond {self.dtype}", "record it as float32")
        return made


def by_name(fields: Sequence[Field]) -> dict[str, Field]:
    named: dict[str, Field] = {}
    for field in fields:
        if field.name in named:
            raise WanlabError(f"field '{field.name}' is declared twice", "name each field once")
        named[field.name] = field
    dims = {d for f in fields for d in f.dims}
    if dims & set(named):
        raise WanlabError(f"{sorted(dims & set(named))} name both a field and a dimension", "rename one")
    return named


def check_text(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise WanlabError(f"'{name}' is no valid Unicode text", "write it as UTF-8") from error
        if "\0" in value or size > MAX_ATTRIBUTE_BYTES:
            raise WanlabError(f"'{name}' holds a NUL or more than 16 MiB of text", "shorten it")
