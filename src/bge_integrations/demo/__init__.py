"""The bundled small models, for demos and tests without a download. Not BGE models; see their README.md."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
RERANKER_FOLDER = Path(__file__).parent / "reranker"
