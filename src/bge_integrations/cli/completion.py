"""``bge completion``: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

from ..extras import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge completion``."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="shell to print the script for")


def run(parsed: argparse.Namespace) -> int:
    """Print the script."""
    from . import make_parser

    shtab = require("shtab", extra="cli", purpose="bge completion")
    print(shtab.complete(make_parser(), shell=parsed.shell))
    return 0
