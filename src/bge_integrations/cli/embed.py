"""``bge embed``: rows of files into Parquet shards."""

from __future__ import annotations

import argparse
import sys
import time

from .options import add_encoder_arguments, make_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge embed``."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, glob or folder; - is JSONL on standard input")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="of the shards; a job there goes on")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column to embed (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="the column of ids (default: the row's number)")
    parser.add_argument("--keep", nargs="*", default=[], metavar="COLUMN", help="columns to keep, as strings")
    parser.add_argument("--shard-rows", type=int, default=10_000, metavar="N")
    parser.add_argument("--half", action="store_true", help="write float16")
    parser.add_argument("--on-error", choices=("record", "stop"), default="record", help="what to do with bad rows")
    parser.add_argument("--dry-run", action="store_true", help="count rows, tokens, cut texts and cost; send nothing")
    add_encoder_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Embed, and print what it came to."""
    from ..bulk import Report, embed_files, plan_files
    from ..bulk.sources import Columns

    columns, began = Columns(parsed.text, parsed.id, tuple(parsed.keep)), time.monotonic()

    def told(report: Report) -> None:
        rate = report.rows / (time.monotonic() - began)
        print(f"{report.rows} rows, {rate:.0f} rows/s, {report.errors} bad, {report.shards} shards", file=sys.stderr)

    with make_encoder(parsed, show_progress=False) as encoder:
        if parsed.dry_run:
            for name, value in plan_files(parsed.inputs, encoder, columns=columns).items():
                print(f"{name:10} {'unknown' if value is None else value}")
            return 0
        report = embed_files(
            parsed.inputs,
            parsed.out,
            encoder,
            columns=columns,
            shard_rows=parsed.shard_rows,
            half=parsed.half,
            on_error=parsed.on_error,
            on_shard=told,
        )
    for name, value in vars(report).items():
        print(f"{name:10} {value}")
    return 0
