"""Smaller vectors: a byte or a bit for each dimension instead of four bytes, and floats of these again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.encoder import Vectors
from ..errors import ConfigError, InputError

__all__ = [
    "Codes",
    "Quantisation",
    "dequantise",
    "float_stamp",
    "floats_of",
    "is_quantised",
    "quantise",
    "quantised_stamp",
    "value_ranges",
]

Quantisation = Literal["int8", "binary"]
Codes: TypeAlias = NDArray[np.int8] | NDArray[np.uint8]
_STAMPED, _RANGES = "quantised", "ranges"


def quantise(vectors: ArrayLike, to: Quantisation, *, ranges: ArrayLike | None = None) -> Codes:
    """Return vectors in a quarter (int8) or a 32nd (binary) of their space.

    The codes are those of sentence-transformers' ``quantize_embeddings`` (``"int8"`` and ``"ubinary"``).

    Args:
        vectors: floats, shape (n, dimensions).
        to: ``"int8"`` divides the range of each dimension into 255 steps; ``"binary"`` keeps the sign, 1 where a value
            is above 0, eight dimensions a byte, the first in the highest bit.
        ranges: for int8: least and largest value of each dimension, shape (2, dimensions); values beyond are clipped.
            Those of ``vectors`` when None. Codes of other ranges cannot be compared.

    Returns:
        int8, shape (n, dimensions), or uint8, shape (n, dimensions / 8 rounded up).

    Raises:
        ConfigError: no such kind, or ranges of another shape.
        InputError: the vectors are not floats of shape (n, dimensions), or int8 has neither ranges nor rows.

    Example:
        >>> quantise([[0.5, -0.5, 0.1, -0.1]], "binary")
        array([[160]], dtype=uint8)
    """
    rows = np.asarray(vectors)
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise InputError(f"vectors must be floats of shape (n, dimensions), not {rows.dtype} of shape {rows.shape}")
    if to == "binary":
        if ranges is not None:
            raise ConfigError("ranges are for int8: binary only keeps signs")
        return np.packbits(rows > 0, axis=1)
    if to != "int8":
        raise ConfigError(f"vectors are quantised to one of {', '.join(get_args(Quantisation))}, not {to!r}")
    starts, steps = _buckets(value_ranges(rows) if ranges is None else ranges, rows.shape[1])
    places = np.floor((rows - starts) / np.where(steps == 0, 1, steps))
    return (np.clip(places, 0, 255) - 128).astype(np.int8)


def dequantise(codes: Codes, to: Quantisation, dimensions: int, *, ranges: ArrayLike | None = None) -> Vectors:
    """Return the floats that ``codes`` represent.

    Args:
        codes: of ``quantise``.
        to: as they were made.
        dimensions: of the vectors.
        ranges: as they were made; for int8.

    Returns:
        float32, shape (n, dimensions): the middle of each step, so of a length of nearly 1; for binary signs of one
        size, so of length 1.
    """
    if to == "binary":
        signs = np.unpackbits(codes.astype(np.uint8, copy=False), axis=1, count=dimensions).astype(np.float32)
        signs *= 2 / dimensions**0.5
        signs -= 1 / dimensions**0.5
        return signs
    if ranges is None:
        raise ConfigError("int8 codes can only be read with their own ranges: pass ranges=")
    starts, steps = _buckets(ranges, dimensions)
    floats = codes.astype(np.float32)
    floats += np.float32(128.5)  # the middle of a step
    floats *= steps
    floats += starts
    return floats


def value_ranges(vectors: ArrayLike) -> Vectors:
    """Return the least and the largest value of each dimension, shape (2, dimensions), of all or of a good sample.

    Raises:
        InputError: there is no row.
    """
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2 or not len(rows):
        raise InputError("the int8 ranges are computed from vectors, but there are none")
    return np.stack([rows.min(0), rows.max(0)])


def _buckets(ranges: ArrayLike, dimensions: int) -> tuple[Vectors, Vectors]:
    """Return where the steps of each dimension begin, and their size."""
    found = np.asarray(ranges, np.float32)
    if found.shape != (2, dimensions) or not (found[0] <= found[1]).all():
        raise ConfigError(f"ranges must be the smallest and the largest values, of shape (2, {dimensions})")
    return found[0], (found[1] - found[0]) / np.float32(255)


# ---- what a stamp says of it


def quantised_stamp(stamp: Mapping[str, Any], to: Quantisation, ranges: Vectors | None) -> dict[str, Any]:
    """Return the stamp of quantised vectors: another space, with the ranges; codes of other ranges are a third one."""
    named: str = to
    if ranges is not None:
        named = f"{to}-{hashlib.sha256(np.ascontiguousarray(ranges, '<f4').tobytes()).hexdigest()[:8]}"
    space, slash, query = str(stamp["space"]).partition("/query:")
    kept = {} if ranges is None else {_RANGES: ranges.tolist()}
    return {**stamp, "space": f"{space}/quantised:{named}{slash}{query}", _STAMPED: named, **kept}


def is_quantised(stamp: Mapping[str, Any] | None) -> bool:
    """Tell whether a stamp is one of quantised vectors."""
    return bool(stamp and stamp.get(_STAMPED))


def float_stamp(stamp: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stamp of the vectors that quantised ones were made of: what a query has to be."""
    return {name: value for name, value in stamp.items() if name not in (_STAMPED, _RANGES)}


def floats_of(codes: Any, stamp: Mapping[str, Any]) -> Vectors:
    """Return vectors of shards as floats, as their stamp says."""
    if not is_quantised(stamp):
        return np.asarray(codes, np.float32)
    to: Quantisation = "binary" if stamp[_STAMPED] == "binary" else "int8"
    return dequantise(codes, to, int(stamp["dimensions"]), ranges=stamp.get(_RANGES))
