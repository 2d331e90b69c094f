"""``bge quantise``: shards with smaller vectors."""

from __future__ import annotations

import argparse

from .upload import tell_rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge quantise``."""
    parser.add_argument("folder", metavar="SHARDS", help="output folder of bge embed, finished, Parquet or NumPy")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="for the smaller shards: new or empty")
    parser.add_argument(
        "--to",
        required=True,
        choices=("int8", "binary"),
        help="int8: a byte for each dimension, a quarter of float32; binary: a bit, a 32nd",
    )


def run(parsed: argparse.Namespace) -> int:
    """Quantise, and print what became of the size."""
    from ..bulk import quantise_files

    done = quantise_files(parsed.folder, parsed.output, parsed.to, on_rows=tell_rate("quantised"))
    print(f"{done.rows:,} rows; {done.bytes:,} bytes a vector before, {done.small_bytes:,} now")
    print(f"{done.folder_bytes:,} bytes of shards before, {done.small_folder_bytes:,} now, texts and all")
    print(f"space: {done.stamp['space']}")
    return 0
