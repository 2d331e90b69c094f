"""What a precision costs: vectors of trained weights in each, against float32, and how a search changes.

    python benchmarks/precision.py          the table, and results/precision.json

MiniLM's weights (random ones flatter int8) and the bundled model; texts are the paragraphs of Python's own reference.
Every second text looks for its ten nearest among all.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
COUNT, NEAREST = 600, 10
WAYS: dict[str, dict[str, Any]] = {
    "torch, float32": {"backend": "torch"},
    "onnx, float32": {"backend": "onnx"},
    "torch, bfloat16": {"backend": "torch", "precision": "bfloat16"},
    "onnx, int8": {"backend": "onnx", "precision": "int8"},
}


def texts() -> list[str]:
    paragraphs = [part.strip() for page in pydoc_data.topics.topics.values() for part in page.split("\n\n")]
    long_enough = sorted({" ".join(part.split()) for part in paragraphs if len(part) > 120})
    return long_enough[:: max(1, len(long_enough) // COUNT)][:COUNT]


def nearest(vectors: np.ndarray) -> np.ndarray:
    scores = vectors[::2] @ vectors.T
    scores[np.arange(len(scores)), np.arange(0, len(vectors), 2)] = -np.inf
    return np.argsort(-scores, axis=1)[:, :NEAREST]


def compare(folder: Path, query: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return for each way how near its vectors are to float32's by sentence-transformers, at least and on average."""
    from sentence_transformers import SentenceTransformer

    from bge_integrations import load_encoder

    given = texts()
    truth = SentenceTransformer(str(folder), device="cpu").encode(given, normalize_embeddings=True)
    found = {}
    for name, options in WAYS.items():
        with load_encoder(str(folder), show_progress=False, **query, **options) as encoder:
            vectors = encoder.encode(given, role="document")
        cosine = (vectors * truth).sum(1)
        same = [len(set(a) & set(b)) / NEAREST for a, b in zip(nearest(vectors), nearest(truth), strict=True)]
        found[name] = {
            "cosine, least": round(float(cosine.min()), 6),
            "cosine, mean": round(float(cosine.mean()), 6),
            "of the ten nearest, the same": round(float(np.mean(same)), 4),
        }
    return found


def main() -> None:
    import models
    from bge_integrations.catalog import find_model
    from bge_integrations.local.export import export_onnx

    report: dict[str, Any] = {"texts": len(texts())}
    with tempfile.TemporaryDirectory() as scratch:
        for name, source in (("MiniLM", models.minilm()), ("bundled model", models.demo())):
            folder = Path(scratch) / name
            shutil.copytree(source, folder)
            export_onnx(find_model(str(folder)), folder)
            report[name] = compare(folder, {"query_instruction": ""})
    out = HERE / "results" / "precision.json"
    out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(out.read_text("utf-8"))


if __name__ == "__main__":
    main()
