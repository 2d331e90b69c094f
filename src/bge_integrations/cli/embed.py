"""``bge embed``: rows of files into shards."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .embed_progress import watch
from .options import add_encoder_arguments, make_encoder, require_packages_of

if TYPE_CHECKING:
    from ..bulk import Columns, Plan, Report
    from ..core.encoder import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge embed``."""
    kinds = "JSON lines, CSV, TSV, Parquet or text; also .gz, .bz2, .xz, .zst"
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help=f"file, glob or folder ({kinds}); - is JSON lines on standard input"
    )
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="for the shards; a job there is resumed")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column to embed (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="the column of ids (default: the row's number)")
    parser.add_argument("--keep", nargs="+", action="extend", default=[], metavar="COLUMN", help="columns to keep")
    parser.add_argument("--format", choices=("parquet", "numpy", "jsonl"), default="parquet", help="of the shards")
    parser.add_argument("--half", action="store_true", help="write float16")
    parser.add_argument(
        "--outputs", default="dense", metavar="NAMES", help="dense, or dense,sparse where the model gives both"
    )
    parser.add_argument("--shard-rows", type=int, default=10_000, metavar="N", help="rows per shard (default: 10000)")
    parser.add_argument(
        "--on-error", choices=("record", "stop"), default="record", help="bad rows: into errors.jsonl, or stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="count rows, tokens, truncated texts, time and cost; send nothing"
    )
    _add_places(parser)
    add_encoder_arguments(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--on", choices=("here", "ray"), default="here", help="embed on this machine, or on Ray's workers"
    )
    group.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster (default: RAY_ADDRESS, or a new one)")
    group.add_argument("--workers", type=int, metavar="N", help="shards at a time on Ray (default: what has room)")


def run(parsed: argparse.Namespace) -> int:
    """Embed, and print what it came to; 1 where rows came in and not one could be embedded."""
    from ..bulk import Columns, plan_files

    if not parsed.dry_run:
        needs = {"bulk": ("pyarrow",) if parsed.format == "parquet" else (), "ray": ("ray",) * (parsed.on == "ray")}
        require_packages_of(parsed, needs, "bge embed")
    columns = Columns(parsed.text, parsed.id, tuple(parsed.keep))
    with make_encoder(parsed, show_progress=False) as encoder:
        if parsed.dry_run:
            _show_plan(plan_files(parsed.inputs, encoder, columns=columns), encoder)
            return 0
        report = _embed(parsed, encoder, columns, _place(parsed))
        _show_report(report, encoder, parsed.out)
    return int(report.rows > 0 and report.errors == report.rows)


def _place(parsed: argparse.Namespace) -> dict[str, Any]:
    if parsed.on == "here":
        if parsed.address or parsed.workers:
            raise ConfigError("--address and --workers are for --on ray")
        return {}
    if parsed.api_key:
        raise ConfigError("--api-key does not travel: set the host's variable in the environment of Ray's workers")
    from ..ray import RayShards

    return {"on": partial(RayShards, address=parsed.address, workers=parsed.workers)}


def _embed(parsed: argparse.Namespace, encoder: Encoder, columns: Columns, place: dict[str, Any]) -> Report:
    from ..bulk import embed_files

    with watch(encoder) as (on_shard, on_progress):
        return embed_files(
            parsed.inputs,
            parsed.out,
            encoder,
            columns=columns,
            shard_rows=parsed.shard_rows,
            format=parsed.format,
            half=parsed.half,
            outputs=parsed.outputs.replace(" ", "").split(","),
            on_error=parsed.on_error,
            on_shard=on_shard,
            on_progress=on_progress,
            **place,
        )


def _show_plan(plan: Plan, encoder: Encoder) -> None:
    _print("rows", f"{plan.rows:,}")
    _print("bad rows", f"{plan.errors:,}")
    _print("characters", f"{plan.characters:,}")
    _print("tokens", _or_unknown(plan.tokens, ",", "the model's tokenizer is not here: --tokenizer"))
    _print("cut texts", _or_unknown(plan.cut, ",", "the model's tokenizer is not here: --tokenizer"))
    _print("seconds", f"{_or_unknown(plan.seconds, ',.0f')} ({plan.how})")
    why = "no price is known" if encoder.price is None else "the tokens are not counted: --tokenizer"
    _print("cost in $", _or_unknown(plan.usd, ".4f", why))


def _or_unknown(value: float | None, shown: str, why: str = "") -> str:
    if value is None:
        return f"unknown ({why})" if why else "unknown"
    return format(value, shown)


def _show_report(report: Report, encoder: Encoder, folder: str) -> None:
    _print("rows", f"{report.rows:,}")
    _print("bad rows", f"{report.errors:,}" + (f" (see {folder}/errors.jsonl)" if report.errors else ""))
    _print("shards", f"{report.shards:,}" + (f" ({report.resumed:,} were there)" if report.resumed else ""))
    if report.repeated:
        _print("repeated", f"{report.repeated:,} rows have the id of another row; a store keeps the last of them")
    usage = encoder.usage
    if usage.tokens:
        _print("tokens", f"{usage.tokens:,}")
    if usage.retries:
        _print("retries", f"{usage.retries:,}")
    if usage.usd is not None:
        _print("cost in $", f"{usage.usd:.4f}")


def _print(name: str, value: str) -> None:
    print(f"{name:10} {value}")
