"""What is stored: a key that says what a vector depends on, and a row that proves itself whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ...catalog.records import Role
from ...core.encoder import FutureEncoder, Vectors

__all__ = ["Found", "keyer", "pack", "unpack"]

_MAGIC = b"BGE1"
_FACTS = struct.Struct("<4sB3xI")  # magic, whether the text was cut, dimensions
_SUM = struct.Struct("<I")
_HEAD = _FACTS.size + _SUM.size
_KEY_BYTES = 20


def keyer(encoder: FutureEncoder, role: Role) -> Callable[[str], bytes]:
    """Return what turns a text into its key: a hash of space, role, effective instruction and text.

    The host is not in it, so that vectors of one space are shared; a document's key has no instruction in it.

    Raises:
        ConfigError: the model has no default query instruction and none was given.
    """
    card = encoder.card
    instruction = card.instruction(encoder.query_instruction) if role == "query" else ""
    joined = card.query_format if instruction else ""
    start = blake2b(digest_size=_KEY_BYTES)
    for part in (encoder.document_space, role, instruction, joined):
        raw = part.encode("utf-8", "surrogatepass")
        start.update(b"%d:" % len(raw) + raw)

    def key(text: str) -> bytes:
        hashed = start.copy()
        hashed.update(text.encode("utf-8", "surrogatepass"))
        return hashed.digest()

    return key


def pack(key: bytes, vector: Vectors, *, cut: bool) -> bytes:
    """Return the row of a vector: its facts, a checksum over facts, key and numbers, and the float32 numbers."""
    facts, numbers = _FACTS.pack(_MAGIC, cut, len(vector)), vector.astype("<f4", copy=False).tobytes()
    return facts + _SUM.pack(_checksum(facts, key, numbers)) + numbers


def _checksum(facts: bytes, key: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(facts + key))


@dataclass(frozen=True)
class Found:
    """What came out of a store.

    Attributes:
        indices: which of the keys that were asked for.
        vectors: their vectors, in that order.
        cut: those indices whose texts were cut when they were embedded.
    """

    indices: list[int]
    vectors: Vectors
    cut: list[int]


def unpack(keys: Sequence[bytes], rows: Sequence[bytes | None], dimensions: int) -> Found:
    """Return the vectors of the rows that are whole; any other row counts as not there."""
    indices = [i for i, row in enumerate(rows) if row is not None and _whole(keys[i], row, dimensions)]
    good = [row for i in indices if (row := rows[i]) is not None]
    table = np.frombuffer(b"".join(good), np.uint8).reshape(len(good), _HEAD + 4 * dimensions)
    vectors = np.ascontiguousarray(table[:, _HEAD:]).view("<f4").astype(np.float32, copy=False)
    return Found(indices, vectors, [i for i, row in zip(indices, good, strict=True) if row[4]])


def _whole(key: bytes, row: bytes, dimensions: int) -> bool:
    if len(row) != _HEAD + 4 * dimensions or not row.startswith(_MAGIC):
        return False
    view = memoryview(row)
    (stated,) = _SUM.unpack_from(row, _FACTS.size)
    return bool(stated == _checksum(row[: _FACTS.size], key, view[_HEAD:]))
