"""Fetch files of the hub: all of one commit, each wait bounded, and an error that says what to do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import BGEError, ModelLoadError, no_thread
from ..extras import require
from .architecture import brief

T = TypeVar("T")
Wanted = Callable[[Collection[str]], list[str]]

_CONNECT_SECONDS = 4.0  # offline must be clear in under five


def open_hub() -> Any:
    """Return ``huggingface_hub``.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Imported by name: huggingface_hub loads what it holds at first use, and does not load this module as an attribute.
    require("huggingface_hub.constants", extra="local", purpose="a model of the hub on this machine")
    return require("huggingface_hub", extra="local")


def cached_snapshot(hub: Any, name: str, revision: str | None, patterns: list[str]) -> Path | None:
    """Return the folder of a revision in the cache, or None where files that match are known to be missing in it."""
    with suppress(OSError, ValueError):  # neither the revision nor its files are here
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
    return None


def unknown_files(hub: Any, name: str, commit: str, files: Collection[str]) -> list[str]:
    """Return those that are neither in the cache nor noted in it as absent from the repository."""
    unknown = [file for file in files if hub.try_to_load_from_cache(name, file, revision=commit) is None]
    with suppress(Exception):  # the list that snapshot_download keeps; older versions keep none
        names = {file.path for file in hub.get_cached_repo_tree(name, revision=commit)}
        return [file for file in unknown if file in names]
    return unknown


def note_absent(hub: Any, name: str, commit: str, files: Collection[str]) -> None:
    """Ask for files that a repository does not have: the cache notes the answer, so that they are asked for once."""
    for file in files:
        try:
            _get(hub, name, file, commit)
        except hub.errors.EntryNotFoundError:
            continue
        except Exception:  # noqa: BLE001 - what was wanted is here; the next call asks again
            return


def fetch(hub: Any, name: str, revision: str | None, wanted: Wanted, more: Callable[[], str] = str) -> Path:
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
            f"({reason(error, hub)}){more()}. Without a network: use model='demo' (bundled), a local "
            "folder as the model, a host with provider=, or download it where there is a network: hf "
            f"download {name}"
        ) from error


def _download(hub: Any, name: str, revision: str | None, wanted: Wanted) -> Path:
    commit, files = _list(hub, name, revision, wanted)
    # The first is asked for by the revision's name, so that the cache learns which commit it is.
    folder = _get(hub, name, files[0], revision)
    if folder.name != commit:  # a push in between: all files must be of one commit
        _, files = _list(hub, name, folder.name, wanted)
    for file in files:
        _get(hub, name, file, folder.name)
    return folder


def _list(hub: Any, name: str, revision: str | None, wanted: Wanted) -> tuple[str, list[str]]:
    """Return a revision's commit and the files that are wanted of it, in the order in which to fetch them."""
    # Not snapshot_download: it lists the files with no time limit, and a hub that never answers would hang it.
    with _limit(hub, "HF_HUB_ETAG_TIMEOUT") as seconds:
        info = hub.HfApi().model_info(name, revision=revision, timeout=seconds)
    names = {file.rfilename for file in info.siblings or ()}
    patterns = wanted(names)
    files = sorted((each for each in names if any(fnmatch(each, one) for one in patterns)), reverse=True)
    if not files:
        raise ModelLoadError(f"{name!r} has no files of a model on the hub")
    return info.sha, sorted(files, key=_last)


def _last(file: str) -> tuple[bool, ...]:
    """Return a sort key that puts the files by which a folder counts as whole last: a download may end at any file.

    The sort is stable and the names come in reverse order: of modules with folders, the first one's weights, the
    transformer's, are the last.
    """
    return file == "config.json", file == "modules.json", file.endswith((".safetensors", ".bin", ".onnx"))


def _get(hub: Any, name: str, file: str, revision: str | None) -> Path:
    """Fetch one file, unless it is here; return the snapshot's folder."""
    if hub.try_to_load_from_cache(name, file, revision=revision) is None:
        # hf_hub_download asks for minutes where this is not answered: its second look-up waits 60 s, six times.
        with _limit(hub, "HF_HUB_ETAG_TIMEOUT") as seconds:
            _ask(hub, hub.hf_hub_url(name, file, revision=revision), seconds)
    with _limit(hub, "HF_HUB_DOWNLOAD_TIMEOUT"):
        found = hub.hf_hub_download(name, file, revision=revision, etag_timeout=hub.constants.HF_HUB_ETAG_TIMEOUT)
    return Path(found).parents[file.count("/")]


def _ask(hub: Any, url: str, seconds: float) -> None:
    with suppress(hub.errors.EntryNotFoundError):  # said once more, and noted, by the download
        hub.get_hf_file_metadata(url, timeout=seconds)


@contextmanager
def _limit(hub: Any, variable: str) -> Iterator[float]:
    """Turn a timeout into an error that names its variable: look-ups and downloads have one each."""
    seconds = getattr(hub.constants, variable)
    try:
        yield seconds
    except Exception as error:
        # By name: huggingface_hub raises those of requests or, since 1.0, of httpx, which share no class.
        if "timeout" not in type(error).__name__.lower():
            raise
        raise _NoAnswerError(f"no answer in {seconds} s; a larger {variable}= waits longer") from error


def reason(error: BaseException, hub: Any) -> str:
    """Say in a few words why something could not be fetched."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{status}: the hub requires a token with read access: `hf auth login`, or set HF_TOKEN"
    if status is not None:
        return f"it answered {status}"
    if isinstance(error, _NoAnswerError):
        return str(error)
    cache = Path(hub.constants.HF_HUB_CACHE)
    if not _can_write(cache):
        return f"its cache {str(cache)!r} cannot be written: set HF_HOME to another folder"
    return brief(error)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


class _NoAnswerError(OSError):
    pass


def _connect(endpoint: str) -> None:
    """Open a connection to the hub, or to the proxy on the way, and close it."""
    from urllib.request import getproxies, proxy_bypass  # slow to import, and a model that is here needs no hub

    url = urlsplit(endpoint)
    proxy = getproxies().get(url.scheme) or getproxies().get("all")
    if proxy and url.hostname and not proxy_bypass(url.hostname):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _NoAnswerError(f"no connection to {url.hostname}:{port}: {error.strerror or error}") from None


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
        raise _NoAnswerError(f"no connection in {seconds:g} s")
    return answers[0]
