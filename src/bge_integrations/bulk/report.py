"""What a job has come to."""

from __future__ import annotations

from dataclasses import dataclass, field

from .sources import BytesRead

__all__ = ["Report"]


@dataclass
class Report:
    """The progress and result of a job; the same object throughout, so that it can be watched.

    Attributes:
        rows: rows in finished shards, bad ones included.
        errors: rows that could not be embedded.
        shards: finished shards in the folder.
        resumed: shards that were already there.
        resumed_rows: rows in them.
        kept: of an update, rows whose vectors were not computed again.
        dropped: of an update, rows that are gone: neither their id is in the inputs nor, under a new id, their text.
        cut: texts in the shards that were truncated to what the model reads, where that is known.
        repeated: rows whose id another row has, once all are read; a store keeps the last of them.
        embedded: rows embedded by this call.
        read: rows read from the inputs.
        bytes: size of the inputs; None where it is not known.
        tally: what of that has been read.
    """

    rows: int = 0
    errors: int = 0
    shards: int = 0
    resumed: int = 0
    resumed_rows: int = 0
    kept: int = 0
    dropped: int = 0
    cut: int = 0
    repeated: int = 0
    embedded: int = 0
    read: int = 0
    bytes: int | None = None
    tally: BytesRead = field(default_factory=BytesRead)

    @property
    def total(self) -> int | None:
        """Rows of the whole input, by the size of those read so far; None where that is not known."""
        if not self.bytes or not self.tally.read:
            return None
        return max(self.read, round(self.read * self.bytes / self.tally.read))
