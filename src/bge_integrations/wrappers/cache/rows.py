"""The format of the cache: keys that hash all that a row depends on, and rows with a checksum."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ...catalog.records import Role
from ...core.encoder import Encoder
from ...core.outputs import Output, Rows
from ...core.token_outputs import Several

__all__ = ["Hits", "keyer", "pack", "unpack"]

_MAGIC = b"BGE1"
_FACTS = struct.Struct("<4sB3xI")  # magic, whether the text was truncated, numbers of four bytes in the row
_SUM = struct.Struct("<I")
_HEAD = _FACTS.size + _SUM.size
_KEY_BYTES = 20


def keyer(encoder: Encoder, role: Role, output: Output) -> Callable[[str], bytes]:
    """Return a function from text to key: a hash of spaces, role, effective instruction and text.

    The host is not in it, so that vectors of one space are shared; a document's key has no instruction in it.

    Raises:
        ConfigError: the model has no default query instruction and none was passed.
    """
    card = encoder.card
    instruction = card.instruction(encoder.query_instruction) if role == "query" else ""
    joined = card.query_format if instruction else ""
    start = blake2b(digest_size=_KEY_BYTES)
    spaces = encoder.document_space
    if isinstance(output, Several):
        spaces = "+".join(card.output_space(name, encoder.variant) for name in output.names)
    for part in (spaces, role, instruction, joined):
        raw = part.encode("utf-8", "surrogatepass")
        start.update(b"%d:" % len(raw) + raw)  # with lengths, no two lists of parts hash the same bytes

    def key(text: str) -> bytes:
        hashed = start.copy()
        hashed.update(text.encode("utf-8", "surrogatepass"))
        return hashed.digest()

    return key


def pack(key: bytes, packed: bytes, *, truncated: bool) -> bytes:
    """Return a stored row: facts, a checksum over facts, key and numbers, and the numbers."""
    facts = _FACTS.pack(_MAGIC, truncated, len(packed) // 4)
    return facts + _SUM.pack(_checksum(facts, key, packed)) + packed


def _checksum(facts: bytes, key: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(facts + key))


@dataclass(frozen=True)
class Hits:
    """Intact rows of a store.

    Attributes:
        indices: which of the keys that were looked up.
        rows: their rows, in that order.
        truncated: those indices whose texts were truncated when they were embedded.
    """

    indices: list[int]
    rows: Rows
    truncated: list[int]


def unpack(keys: Sequence[bytes], stored: Sequence[bytes | None], output: Output) -> Hits:
    """Return the intact rows; any other counts as missing."""
    indices = [i for i, row in enumerate(stored) if row is not None and _is_intact(keys[i], row, output)]
    good = [row for i in indices if (row := stored[i]) is not None]
    rows = output.unpack([memoryview(row)[_HEAD:] for row in good])
    return Hits(indices, rows, [i for i, row in zip(indices, good, strict=True) if row[4]])  # the byte after magic


def _is_intact(key: bytes, row: bytes, output: Output) -> bool:
    if not row.startswith(_MAGIC) or not output.fits(len(row) - _HEAD):
        return False
    (stated,) = _SUM.unpack_from(row, _FACTS.size)
    return bool(stated == _checksum(row[: _FACTS.size], key, memoryview(row)[_HEAD:]))
