"""The bundled small model, for demos and tests without a download. Not a BGE model; see model/README.md."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
