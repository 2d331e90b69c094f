"""``bge export``: write an ONNX file from a torch model."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge export``."""
    parser.add_argument("model", metavar="MODEL", help="model name or folder")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="output folder; onnx/model.onnx is written into it"
    )


def run(parsed: argparse.Namespace) -> int:
    """Export and print where to."""
    from ..catalog import find_model
    from ..catalog.rerankers import find_reranker, is_reranker
    from ..local.export import export_onnx

    card = find_reranker(parsed.model) if is_reranker(parsed.model) else find_model(parsed.model)
    path = export_onnx(card, Path(parsed.output))
    print(f"wrote {path}")
    return 0
