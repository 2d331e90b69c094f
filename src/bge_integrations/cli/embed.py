"""``bge embed``: rows of files into shards."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .embed_progress import watch
from .options import add_encoder_arguments, make_encoder, require_packages_of

if TYPE_CHECKING:
    from ..bulk import Columns, Plan, Report
    from ..core.encoder import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge embed``."""
    kinds = "JSON lines, CSV, TSV, Parquet or text; with --chunk also code, HTML, PDF; also as .gz, .bz2, .xz, .zst"
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=f"file, glob or folder ({kinds}), or a URL (s3://, gs://, hf://, https://); -: JSON lines on standard "
        "input",
    )
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="output folder; resumes an unfinished job")
    parser.add_argument(
        "--update",
        action="store_true",
        help="bring the folder up to date with a changed input: embed new rows, drop removed ones, keep the rest",
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column to embed (default: text)")
    parser.add_argument("--id", metavar="COLUMN", help="column with the ids (default: the row number)")
    parser.add_argument(
        "--keep", nargs="+", action="extend", default=[], metavar="COLUMN", help="columns to keep in the shards"
    )
    parser.add_argument("--chunk", type=int, metavar="N", help="split every text into chunks of at most N tokens")
    parser.add_argument("--overlap", type=int, default=0, metavar="N", help="tokens that neighbouring chunks share")
    parser.add_argument("--format", choices=("parquet", "numpy", "jsonl"), default="parquet", help="file format")
    parser.add_argument("--half", action="store_true", help="store vectors as float16")
    parser.add_argument(
        "--outputs", default="dense", metavar="NAMES", help="dense (default), or dense,sparse if the model has both"
    )
    parser.add_argument("--shard-rows", type=int, default=10_000, metavar="N", help="rows per shard (default: 10000)")
    parser.add_argument(
        "--on-error", choices=("record", "stop"), default="record", help="bad rows: list them in .errors.jsonl, or stop"
    )
    _add_dry_run(parser)
    _add_places(parser)
    add_encoder_arguments(parser)


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cost and time before the job")
    group.add_argument(
        "--dry-run", action="store_true", help="estimate rows, tokens, truncated texts, time and cost, and exit"
    )
    group.add_argument(
        "--sample", type=int, metavar="N", help="with --dry-run: count the tokens of N random texts only"
    )
    group.add_argument(
        "--probe",
        action="store_true",
        help="with --dry-run: embed 64 texts to measure the speed (a provider bills them)",
    )
    group.add_argument(
        "--usd-per-million-tokens",
        type=float,
        metavar="N",
        help="with --dry-run: your price, instead of the catalogue's",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--on", choices=("here", "ray"), default="here", help="embed on this machine, or on Ray's workers"
    )
    group.add_argument(
        "--address", metavar="HOST:PORT", help="address of the Ray cluster (default: RAY_ADDRESS, or a new local one)"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="shards embedded at the same time on Ray (default: as many as fit)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Embed, and print what it came to; 1 where rows came in and not one could be embedded."""
    from ..bulk import Columns

    if not parsed.dry_run:
        needs = {"bulk": ("pyarrow",) if parsed.format == "parquet" else (), "ray": ("ray",) * (parsed.on == "ray")}
        require_packages_of(parsed, needs, "bge embed")
    columns = Columns(parsed.text, parsed.id, tuple(parsed.keep))
    with make_encoder(parsed, show_progress=False) as encoder:
        if parsed.dry_run:
            _show_plan(_estimate(parsed, encoder, columns))
            return 0
        _refuse_alone(parsed)
        report = _embed(parsed, encoder, columns, _place(parsed))
        _show_report(report, encoder, parsed)
    return int(report.rows > 0 and report.errors == report.rows)


def _estimate(parsed: argparse.Namespace, encoder: Encoder, columns: Columns) -> Plan:
    from ..bulk import estimate

    return estimate(
        parsed.inputs,
        encoder,
        columns=columns,
        chunk=parsed.chunk,
        overlap=parsed.overlap,
        update=parsed.out if parsed.update else None,
        sample=parsed.sample,
        probe=parsed.probe,
        usd_per_million_tokens=parsed.usd_per_million_tokens,
    )


def _refuse_alone(parsed: argparse.Namespace) -> None:
    if parsed.probe or parsed.sample is not None or parsed.usd_per_million_tokens is not None:
        raise ConfigError("--sample, --probe and --usd-per-million-tokens are for --dry-run")


def _place(parsed: argparse.Namespace) -> dict[str, Any]:
    if parsed.on == "here":
        if parsed.address or parsed.workers:
            raise ConfigError("--address and --workers are for --on ray")
        return {}
    if parsed.api_key:
        raise ConfigError("--api-key is not sent to Ray's workers: set the provider's variable in their environment")
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
            chunk=parsed.chunk,
            overlap=parsed.overlap,
            update=parsed.update,
            on_error=parsed.on_error,
            on_shard=on_shard,
            on_progress=on_progress,
            **place,
        )


def _show_plan(plan: Plan) -> None:
    _print("rows", f"{plan.rows:,}")
    if plan.kept is not None:
        _print("kept", f"{plan.kept:,}")
        _print("to embed", f"{plan.rows - plan.errors - plan.kept:,}")
    _print("bad rows", f"{plan.errors:,}")
    _print("characters", f"{plan.characters:,}")
    about = f" ± {plan.tokens_error:,} (95 %, from a sample)" if plan.tokens_error else ""
    no_tokenizer = "the model's tokenizer is not on this machine: pass --tokenizer"
    _print("tokens", _or_unknown(plan.tokens, ",", f"{no_tokenizer} or --probe") + about)
    _print("truncated", _or_unknown(plan.cut, ",", no_tokenizer))
    _print("seconds", f"{_or_unknown(plan.seconds, ',.0f')} ({plan.how})")
    priced = "no price is known: pass --usd-per-million-tokens"
    why = priced if plan.tokens is not None else "tokens could not be counted: pass --tokenizer"
    _print("cost in $", _or_unknown(plan.usd, ".4f", why))
    for name, usd in sorted(plan.usd_by_provider.items(), key=lambda item: (item[1] is None, item[1] or 0, item[0])):
        _print("", f"{name:14} " + ("states no price" if usd is None else f"{usd:.4f}"))


def _or_unknown(value: float | None, shown: str, why: str = "") -> str:
    if value is None:
        return f"unknown ({why})" if why else "unknown"
    return format(value, shown)


def _show_report(report: Report, encoder: Encoder, parsed: argparse.Namespace) -> None:
    from ..bulk.folder import side_files

    _print("rows", f"{report.rows:,}")
    if parsed.update:
        _print("kept", f"{report.kept:,}")
        _print("embedded", f"{report.embedded:,}")
        _print("dropped", f"{report.dropped:,}")
    _print("bad rows", f"{report.errors:,}" + (f" (see {side_files(Path(parsed.out))[1]})" if report.errors else ""))
    _print("shards", f"{report.shards:,}" + (f" ({report.resumed:,} were already there)" if report.resumed else ""))
    _print("truncated", f"{report.cut:,}" + (" (pass --chunk to split long texts)" if report.cut else ""))
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
