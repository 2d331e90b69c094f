"""The files of weights in a model's folder: which they are, whether they are the published ones, their fingerprint."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import get_args

from ..errors import ModelLoadError
from .records import ModelCard, OutputName

__all__ = ["HEAD_FILES", "find_head", "fingerprint", "is_lfs_pointer", "is_published", "read_heads", "weight_files"]

HEAD_FILES: dict[str, str] = {"sparse": "sparse_linear", "multivector": "colbert_linear"}
"""The file, without its ending, that holds the head of an output beside the dense one."""


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what git leaves of a large one that git-lfs did not fetch."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def find_head(folder: Path, name: str) -> Path | None:
    """Return the file of a head in a model's folder, or None."""
    files = (folder / f"{HEAD_FILES[name]}{ending}" for ending in (".safetensors", ".pt"))
    return next((file for file in files if file.is_file() and not is_lfs_pointer(file)), None)


def read_heads(folder: Path) -> tuple[tuple[OutputName, ...], str]:
    """Return the outputs for which a folder has heads, and a fingerprint of these."""
    outputs: tuple[OutputName, ...] = ("dense",)
    digest = hashlib.sha256()
    for name in get_args(OutputName):
        file = find_head(folder, name) if name in HEAD_FILES else None
        if file is not None:
            outputs += (name,)
            digest.update(file.read_bytes())
    return outputs, digest.hexdigest()[:8] if len(outputs) > 1 else ""


def is_published(path: Path, folder: Path, card: ModelCard) -> bool:
    """Return whether a file of weights is the one that the card's authors published.

    The hub's own download leaves a note with the commit; it counts while the file is not newer than the note, which is
    huggingface_hub's rule too. Otherwise the whole file is compared with the digests that the card knows.
    """
    note = folder / ".cache" / "huggingface" / "download" / f"{path.relative_to(folder).as_posix()}.metadata"
    try:
        status = path.stat()
        if note.is_file():
            commit, _, written = note.read_text("utf-8").split()[:3]
            if commit == card.revision and status.st_mtime <= float(written) + 1:
                return True
    except (OSError, ValueError):
        return False
    return bool(card.weights) and _digest(path, status.st_size, status.st_mtime_ns) in card.weights


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # part of the cache's key alone
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a digest of the weights that is the same wherever the folder lies: sizes, and samples of every file.

    A copy in another format beside them, such as what ``bge export`` writes, does not change it.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        try:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix().removeprefix('onnx/')}:{size}".encode())
            with path.open("rb") as file:
                for offset in range(0, size, max(65_536, size // 256)):
                    file.seek(offset)
                    digest.update(file.read(65_536))
        except OSError as error:
            raise ModelLoadError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    """Return the files that are loaded: of the folder itself, then of its modules, such as a Dense layer."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern)) + sorted(folder.glob(f"[0-9]*_*/{pattern}"))
        found = [path for path in found if path.stem not in HEAD_FILES.values()]
        if found:
            return found
    return sorted(path for path in folder.glob("onnx/*") if path.is_file())
