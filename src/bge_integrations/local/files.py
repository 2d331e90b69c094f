"""A model's files on this machine: in a folder, in the hub's cache, or fetched from the hub."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from ..catalog.local_folder import read_modules
from ..catalog.records import ModelCard
from ..catalog.weights import HEAD_FILES, is_lfs_pointer
from ..environment import variable
from ..errors import BGEError, ModelLoadError, no_thread
from ..extras import require
from .architecture import brief, shards

T = TypeVar("T")
Weights = Literal["onnx", "torch"]

ONNX_FILE = "onnx/model.onnx"
_ONNX_FILES = (ONNX_FILE, "model.onnx")  # optimum writes the second
_CONNECT_SECONDS = 4.0  # offline must be clear in under five
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
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
    hub = _hub()
    for cache in _caches(hub):
        config = hub.try_to_load_from_cache(card.id, "config.json", cache_dir=cache, revision=card.revision)
        if isinstance(config, str) and _is_whole(Path(config).parent, kinds):
            return Path(config).parent
    return None


def _caches(hub: Any) -> list[str]:
    """Return the folders in which the hub's cache lies, and sentence-transformers' own."""
    return [folder for folder in (hub.constants.HF_HUB_CACHE, variable("SENTENCE_TRANSFORMERS_HOME")) if folder]


def _is_whole(folder: Path, kinds: Sequence[Weights]) -> bool:
    tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
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
    hub = _hub()

    def wanted(names: Collection[str]) -> list[str]:
        return _patterns(card, names, kinds) + (["*.py"] if code else [])

    return _fetched(hub, card.id, card.revision, wanted, lambda: _other_revisions(card, kinds, hub))


def fetch_facts(name: str, revision: str | None = None) -> Path:
    """Return a snapshot of a hub's model that has its configuration files; what is here already is not asked for again.

    Args:
        name: with its owner.
        revision: a commit, tag or branch; the main branch when None.

    Raises:
        ModelLoadError: the hub cannot be reached, or has no such model or revision.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = _hub()
    patterns = [*_SMALL, "*/*.json"]
    with suppress(OSError, ValueError):  # neither the revision nor its files are here
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        if _has_facts(folder):
            return folder
    return _fetched(hub, name, revision, lambda _: patterns)


def _has_facts(folder: Path) -> bool:
    """Tell whether the file is there that comes last: the configuration, which may lie in a module's folder."""
    inner = next((path for name, path in read_modules(folder) if name == "Transformer"), "")
    return (folder / inner / "config.json").is_file()


def _fetched(
    hub: Any,
    name: str,
    revision: str | None,
    wanted: Callable[[Collection[str]], list[str]],
    more: Callable[[], str] = str,
) -> Path:
    """Fetch the files of a repository whose names match the patterns that ``wanted`` chooses; return their folder.

    Raises:
        ModelLoadError: says why it failed, what ``more`` says, and what to do.
    """
    try:
        if not hub.constants.HF_HUB_OFFLINE:
            _within(_CONNECT_SECONDS, lambda: _connect(hub.constants.ENDPOINT))
        return _download(hub, name, revision, wanted)
    except BGEError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{name!r} is not on this machine and could not be fetched from the hub "
            f"({_reason(error, hub)}){more()}. Without a network: use "
            "model='demo' (bundled), a local folder as the model, a host with provider=, or fetch it beforehand where "
            f"there is one: hf download {name}"
        ) from error


def _download(hub: Any, name: str, revision: str | None, wanted: Callable[[Collection[str]], list[str]]) -> Path:
    # Not snapshot_download: it lists the files with no time limit, and a hub that never answers would hang it.
    patience = hub.constants.HF_HUB_ETAG_TIMEOUT
    info = hub.HfApi().model_info(name, revision=revision, timeout=patience)
    names = {file.rfilename for file in info.siblings or ()}
    patterns = wanted(names)
    files = sorted((each for each in names if any(fnmatch(each, one) for one in patterns)), key=_last)
    if not files:
        raise ModelLoadError(f"{name!r} has no files of a model on the hub")
    folder: Path | None = None
    for file in files:
        # The first is asked for by the revision's name, so that the cache learns which commit it is.
        commit = revision if folder is None else info.sha
        found = hub.hf_hub_download(name, file, revision=commit, etag_timeout=patience)
        folder = Path(found).parents[file.count("/")]
    assert folder is not None
    return folder


def _last(file: str) -> tuple[bool, ...]:
    """Order files so that those by which a folder counts as whole come last: it may be killed in between."""
    return file == "config.json", file == "modules.json", file.endswith((".safetensors", ".bin", ".onnx"))


def _reason(error: Exception, hub: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{status}: the hub requires a token with read access: `hf auth login`, or set HF_TOKEN"
    if status is not None:
        return f"it answered {status}"
    if "timeout" in type(error).__name__.lower() and not isinstance(error, _NoConnectionError):
        return f"no answer in {hub.constants.HF_HUB_ETAG_TIMEOUT} s, HF_HUB_ETAG_TIMEOUT= waits longer"
    cache = Path(hub.constants.HF_HUB_CACHE)
    if not isinstance(error, _NoConnectionError) and not _can_write(cache):
        return f"its cache {str(cache)!r} cannot be written: HF_HOME names another folder"
    return str(error) if isinstance(error, _NoConnectionError) else brief(error)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


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
    inner = folder / next((path for name, path in read_modules(folder) if name == "Transformer"), "")
    names = shards(inner / "model.safetensors.index.json")
    if names:
        return all(_is_here(inner / name) for name in names)
    return any(
        _is_here(file) for pattern in ("model*.safetensors", "pytorch_model*.bin") for file in inner.glob(pattern)
    )


def _is_here(file: Path) -> bool:
    return file.is_file() and not is_lfs_pointer(file)


def _patterns(card: ModelCard, names: Collection[str], kinds: Sequence[Weights]) -> list[str]:
    safe = any(name.endswith(".safetensors") for name in names)
    pickled = ["pytorch_model*.bin", "*/pytorch_model.bin"] if "pytorch_model.bin" in names else []
    torch = ["*.safetensors"] if safe else pickled
    file = next((name for name in _ONNX_FILES if name in names), None)
    onnx = [file, f"{file}_data"] if file else []
    weights = next((found for kind in kinds if (found := onnx if kind == "onnx" else torch)), None)
    if weights is None:
        raise ModelLoadError(f"{card.id!r} has no weights on the hub for {' or '.join(kinds)}: choose another backend=")
    heads = [f"{HEAD_FILES[output]}.*" for output in card.outputs if output in HEAD_FILES]
    return _SMALL + weights + heads


def _hub() -> Any:
    require("huggingface_hub.constants", extra="local", purpose="a model of the hub on this machine")
    return require("huggingface_hub", extra="local")


class _NoConnectionError(OSError):
    pass


def _connect(endpoint: str) -> None:
    """Open a connection to the hub, or to the proxy on the way, and close it."""
    from urllib.request import getproxies, proxy_bypass

    url = urlsplit(endpoint)
    proxy = getproxies().get(url.scheme) or getproxies().get("all")
    if proxy and url.hostname and not proxy_bypass(url.hostname):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _NoConnectionError(f"no connection to {url.hostname}:{port}: {error.strerror or error}") from None


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what ``ask`` returns, or give up: a name server that is gone holds a look-up longer than any timeout.

    Raises:
        OSError: no answer in time.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="bge-hub", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread("the hub", error) from error
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise _NoConnectionError(f"no connection in {seconds:g} s")
    return answers[0]
