"""A model's files on this machine: in a folder, in the hub's cache, or fetched from the hub."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..catalog.local_folder import read_modules
from ..catalog.records import ModelCard
from ..catalog.weights import HEAD_FILES, is_lfs_pointer
from ..environment import variable
from ..errors import ModelLoadError, warn
from .architecture import shards
from .hub import cached_snapshot, fetch, note_absent, open_hub, reason, unknown_files

Weights = Literal["onnx", "torch"]

ONNX_FILE = "onnx/model.onnx"
_ONNX_FILES = (ONNX_FILE, "model.onnx")  # optimum writes the second
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_FACTS = ("modules.json", "config_sentence_transformers.json", "tokenizer_config.json")
_WEIGHTED = ("Dense", "LayerNorm", "WeightedLayerPooling", "CNN", "LSTM")  # modules with weights of their own
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")


def find_folder(card: ModelCard, kinds: Sequence[Weights]) -> Path | None:
    """Return the folder that holds the model's weights in one of these kinds, or None; asks nobody.

    Raises:
        ModelLoadError: the card's own folder is not there.
        MissingExtraError: huggingface_hub is not installed and the model is not a folder.
    """
    if card.folder is not None:
        folder = Path(card.folder)
        if not folder.is_dir():
            raise ModelLoadError(f"{card.folder!r} no longer exists: download it again, or pass another folder")
        return folder
    hub = open_hub()
    for cache in _caches(hub):
        for name in ("config.json", "modules.json"):  # the first may lie in the transformer's own folder
            found = hub.try_to_load_from_cache(card.id, name, cache_dir=cache, revision=card.revision)
            if isinstance(found, str) and _is_whole(Path(found).parent, kinds):
                return Path(found).parent
    return None


def _caches(hub: Any) -> list[str]:
    """Return the folders in which the hub's cache lies, and sentence-transformers' own."""
    return [folder for folder in (hub.constants.HF_HUB_CACHE, variable("SENTENCE_TRANSFORMERS_HOME")) if folder]


def _is_whole(folder: Path, kinds: Sequence[Weights]) -> bool:
    inner = folder / _transformer(folder)
    tokenizer = any((inner / name).is_file() for name in _TOKENIZERS)
    return tokenizer and any(has_weights(folder, kind) for kind in kinds)


def get_folder(card: ModelCard, kinds: Sequence[Weights], *, code: bool = False) -> Path:
    """Return the model's folder; fetch what is missing from the hub, weights in the first kind that it has.

    Args:
        card: the model.
        kinds: what can be used, best first.
        code: whether Python files of the repository are wanted.

    Raises:
        ModelLoadError: the hub cannot be reached, refuses, or has no such weights.
        MissingExtraError: huggingface_hub is not installed.
    """
    found = find_folder(card, kinds)
    if found is not None:
        return found
    hub = open_hub()

    def wanted(names: Collection[str]) -> list[str]:
        return _patterns(card, names, kinds) + (["*.py"] if code else [])

    return fetch(hub, card.id, card.revision, wanted, lambda: _other_revisions(card, kinds, hub))


def fetch_facts(name: str, revision: str | None = None) -> Path:
    """Return a snapshot of a hub's model that has its configuration files; what is here already is not asked for again.

    Another program may have put some of these files into the cache and left others: a missing one may hold the pooling.
    A snapshot therefore counts as whole only if the cache knows of every such file, be it that there is none.

    Args:
        name: with its owner.
        revision: a commit, tag or branch; the main branch when None.

    Raises:
        ModelLoadError: the hub cannot be reached, or has no such model or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = open_hub()
    here = cached_snapshot(hub, name, revision, _SMALL)
    unknown = [] if here is None else unknown_files(hub, name, here.name, _facts(here))
    if here is not None and not unknown:
        return here
    try:
        folder = fetch(hub, name, revision, lambda _: _SMALL)
    except ModelLoadError as error:
        if here is None or set(unknown) & set(_needed(here)):
            raise
        warn(
            f"{name!r}: {unknown[0]} was never downloaded, and the hub cannot be reached "
            f"({reason(error.__cause__ or error, hub)}). If the model has this file, its pooling, modules "
            "or length are not applied, and the vectors are in another space; with a network, run: hf "
            f"download {name}"
        )
        return here
    note_absent(hub, name, folder.name, unknown_files(hub, name, folder.name, _facts(folder)))
    return folder


def _facts(folder: Path) -> list[str]:
    """Return the files from which a model's card is read, as far as the folder's own list of modules names them."""
    inner = PurePosixPath(_transformer(folder))
    # Where there is no list of modules, a pooling may still lie in its usual place.
    plain = [] if (folder / "modules.json").is_file() else ["1_Pooling/config.json"]
    optional = [*_FACTS, (inner / "sentence_bert_config.json").as_posix(), *plain]
    return [*_needed(folder), *optional]


def _needed(folder: Path) -> list[str]:
    """Return the configuration files that a model of these modules cannot do without."""
    inner = PurePosixPath(_transformer(folder))
    others = [path for name, path in read_modules(folder) if path and name not in ("Transformer", "Normalize")]
    return [(place / "config.json").as_posix() for place in (inner, *map(PurePosixPath, others))]


def _transformer(folder: Path) -> str:
    """Return where in a folder its transformer lies."""
    return next((path for name, path in read_modules(folder) if name == "Transformer"), "")


def _other_revisions(card: ModelCard, kinds: Sequence[Weights], hub: Any) -> str:
    """Say which other revisions of the model are here: other weights, so never used without the user's word."""
    name = f"models--{card.id.replace('/', '--')}"
    folders = [folder for cache in _caches(hub) for folder in sorted(Path(cache).glob(f"{name}/snapshots/*"))]
    here = [str(folder) for folder in folders if folder.name != card.revision and _is_whole(folder, kinds)]
    return f"; another revision of it is here, and its folder can be the model: {here[-1]!r}" if here else ""


def find_onnx(folder: Path) -> Path | None:
    """Return the model's ONNX file, or None."""
    files = (folder / name for name in _ONNX_FILES)
    return next((file for file in files if _is_here(file)), None)


def has_weights(folder: Path, kind: Weights) -> bool:
    """Return whether the folder holds weights of that kind, whole.

    Raises:
        ModelLoadError: a configuration file cannot be read.
    """
    if kind == "onnx":
        return find_onnx(folder) is not None
    others = (folder / path for name, path in read_modules(folder) if name in _WEIGHTED)
    return all(_has_torch(place) for place in (folder / _transformer(folder), *others))


def _has_torch(folder: Path) -> bool:
    for kind, pattern in (("model.safetensors", "model*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        names = shards(folder / f"{kind}.index.json")
        if names:
            return all(_is_here(folder / name) for name in names)
        if any(map(_is_here, folder.glob(pattern))):
            return True
    return False


def _is_here(file: Path) -> bool:
    return file.is_file() and not is_lfs_pointer(file)


def _patterns(card: ModelCard, names: Collection[str], kinds: Sequence[Weights]) -> list[str]:
    # The folder of each module has weights of its own, pickled ones where it has no others.
    paths = [PurePosixPath(name) for name in names]
    safe = {path.parent for path in paths if path.match("model*.safetensors")}
    pickled = [path for path in paths if path.match("pytorch_model*.bin") and path.parent not in safe]
    torch = ["*.safetensors"] if any(path.suffix == ".safetensors" for path in paths) else []
    torch += [path.as_posix() for path in pickled]
    file = next((name for name in _ONNX_FILES if name in names), None)
    onnx = [file, f"{file}_data"] if file else []
    weights = next((found for kind in kinds if (found := onnx if kind == "onnx" else torch)), None)
    if weights is None:
        raise ModelLoadError(f"{card.id!r} has no weights on the hub for {' or '.join(kinds)}: choose another backend=")
    heads = [f"{HEAD_FILES[output]}.*" for output in card.outputs if output in HEAD_FILES]
    return _SMALL + weights + heads
