"""One pass for several outputs: what was computed beside what was asked for is kept until it is asked for.

Stores that search by dense and sparse vectors ask for one list of texts twice, dense first; LlamaIndex asks for the
sparse vectors when nodes are stored, up to 2,048 of them later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from ..catalog.records import OutputName, Role
from ..core.batches import Placed
from ..core.encoder import Batch, Encoder, Stream
from ..core.lock import Lock
from ..core.outputs import Output, Rows
from ..core.token_outputs import Several, output_of, select
from ..errors import BGEError
from .base import Wrapper

__all__ = ["MemoEncoder"]

_BYTES = 64 << 20  # some 40,000 sparse vectors of a passage, or 80 times the token vectors of one


class MemoEncoder(Wrapper):
    """An encoder that computes all outputs in use from one forward pass and keeps those that nobody asked for yet.

    Args:
        inner: the encoder that computes.
        max_bytes: of what is kept; the least recently used goes first.

    Attributes:
        wanted: outputs in use; while it is one, nothing is kept.
    """

    def __init__(self, inner: Encoder, *, max_bytes: int = _BYTES) -> None:
        super().__init__(inner)
        self.max_bytes = max_bytes
        self.wanted: set[OutputName] = set()
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()  # guards _kept and _bytes: callers take rows while the engine's thread keeps some
        self._kept: OrderedDict[tuple[bytes, str], tuple[bytes, bool]] = OrderedDict()
        self._bytes = 0

    def use(self, *names: OutputName) -> None:
        """Compute these outputs with every pass from now on."""
        self.output_for(names)
        self.wanted.update(names)

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to embed what is not kept."""
        # What nobody is known to ask for (a second stage's passages) is not worth computing, at a host least of all.
        in_use = self.wanted.issuperset(stream.output.names)
        together = output_of(self.card, self.wanted) if in_use else stream.output
        if together == stream.output:
            self.inner.batches(texts, role, stream)
            return
        places: dict[bytes, list[int]] = {}
        for position, text in enumerate(texts):
            places.setdefault(_key(role, text), []).append(position)
        held = self._take([*places], stream.output)
        missing = {key: where for key, where in places.items() if key not in held}
        _put(stream, held, places)
        if not missing:
            stream.finish()
            return
        computed = _Computed(self, stream, together, missing)
        try:
            self.inner.batches([texts[first] for first, *_ in missing.values()], role, computed)
        except BGEError as error:
            if not held:  # raised only while the stream is untouched, as Encoder.batches promises
                raise
            computed.fail(error)

    def _take(self, keys: Sequence[bytes], output: Output) -> dict[bytes, list[tuple[bytes, bool]]]:
        """Return for each key that is kept the packed rows of an output's parts, and whether the text was truncated."""
        taken = {}
        with self._lock:
            for key in keys:
                rows = [self._kept.get((key, name)) for name in output.names]
                found = [row for row in rows if row is not None]
                if len(found) == len(rows):
                    taken[key] = found
                    for name in output.names:
                        self._kept.move_to_end((key, name))
        return taken

    def keep(self, entries: Iterable[tuple[bytes, str, bytes, bool]]) -> None:
        """Keep packed rows: the text's key, the output's name, the row, whether the text was truncated."""
        with self._lock:
            for key, name, packed, truncated in entries:
                old = self._kept.pop((key, name), None)
                self._bytes += len(packed) - (len(old[0]) if old else 0)
                self._kept[key, name] = packed, truncated
            while self._bytes > self.max_bytes:
                _, (packed, _) = self._kept.popitem(last=False)
                self._bytes -= len(packed)

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "max_bytes": self.max_bytes, "wanted": self.wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _key(role: Role, text: str) -> bytes:
    return blake2b(f"{role}:{text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _put(stream: Stream, held: dict[bytes, list[tuple[bytes, bool]]], places: dict[bytes, list[int]]) -> None:
    if not held:
        return
    truncated = [i for i, rows in enumerate(held.values()) if rows[0][1]]  # the same for all outputs of a text
    batch = Batch(range(len(held)), _unpacked(stream.output, list(held.values())), truncated=truncated, computed=0)
    stream.put(batch.at([places[key] for key in held]))


def _unpacked(output: Output, rows: list[list[tuple[bytes, bool]]]) -> Rows:
    if not isinstance(output, Several):
        return output.unpack([row[0][0] for row in rows])
    unpacked = output.empty(len(rows))
    for index, part in enumerate(output.parts):
        unpacked[part.name] = part.unpack([row[index][0] for row in rows])
    return unpacked


class _Computed(Placed):
    """Passes on what was asked for, and keeps what else was computed."""

    def __init__(self, memo: MemoEncoder, outer: Stream, output: Output, places: dict[bytes, list[int]]) -> None:
        super().__init__(outer, list(places.values()))
        self.output = output
        self._memo, self._keys = memo, list(places)

    def put(self, batch: Batch) -> None:
        """Keep what was not asked for, and pass on the rest."""
        assert isinstance(self.output, Several)
        truncated = set(batch.truncated)
        self._memo.keep(
            (self._keys[i], part.name, part.pack(row[part.name]), i in truncated)
            for part in self.output.parts
            if part.name not in self.outer.output.names
            for i, row in zip(batch.positions, batch.rows, strict=True)
        )
        super().put(replace(batch, rows=select(batch.rows, self.outer.output)))
