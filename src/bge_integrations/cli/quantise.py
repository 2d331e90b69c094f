"""``bge quantise``: shards with smaller vectors."""

from __future__ import annotations

import argparse

from .upload import tell_rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge quantise``."""
    parser.add_argument(
        "folder",
        metavar="SHARDS",
        help="output folder of a finished bge embed, in Parquet or NumPy format",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="output folder: new, empty, or an unfinished run to resume",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("int8", "binary"),
        help="int8: one byte per dimension, 1/4 of float32; binary: one bit, 1/32",
    )


def run(parsed: argparse.Namespace) -> int:
    """Quantise, and print what became of the size."""
    from ..bulk import quantise_files

    done = quantise_files(parsed.folder, parsed.output, parsed.to, on_rows=tell_rate("quantised"))
    print(f"{done.rows:,} rows; {done.bytes:,} bytes per vector before, {done.small_bytes:,} now")
    print(f"{done.folder_bytes:,} bytes of shards before, {done.small_folder_bytes:,} now, texts and all")
    print(f"space: {done.stamp['space']}")
    return 0
