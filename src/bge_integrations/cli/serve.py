"""``bge serve``: serve a model over HTTP."""

from __future__ import annotations

import argparse

from .options import add_encoder_arguments, make_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="variable that holds the keys, split by commas")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own")
    add_encoder_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to stop."""
    raise SystemExit("not yet")


__all__ = ["add_arguments", "make_encoder", "run"]
