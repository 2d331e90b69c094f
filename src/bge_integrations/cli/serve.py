"""``bge serve``: serve a model over HTTP."""

from __future__ import annotations

import argparse

from ..environment import keys_from
from .options import add_encoder_arguments, make_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="variable that holds the keys, split by commas")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a model of its own")
    parser.add_argument("--cors-origin", action="append", default=[], help="a web page's origin that may call it")
    add_encoder_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from .. import server

    server.serve(
        make_encoder(parsed),
        host=parsed.host,
        port=parsed.port,
        api_keys=keys_from(parsed.api_key_env),
        workers=parsed.workers,
        cors_origins=parsed.cors_origin,
        model_names=[parsed.model] if parsed.model else [],
    )
    return 0
