"""Which server is this? Asked where nobody says, by what only one kind of server answers."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from ..errors import HostError, HostUnavailableError
from .transport import Transport
from .vectors import read_json

__all__ = ["ask_server"]

_MOST_BYTES = 10_000_000


def _is_infinity(api: dict[str, Any]) -> bool:
    about = api.get("info")
    return isinstance(about, dict) and "infinity" in str(about.get("title")).lower()


def _is_xinference(api: dict[str, Any]) -> bool:
    paths = api.get("paths")
    return isinstance(paths, dict) and any("/cluster/" in path for path in paths)


_SIGNS: tuple[tuple[str, Callable[[dict[str, Any]], bool], str], ...] = (
    ("/info", lambda about: "outputs" in about, "bge"),
    ("/info", lambda about: "max_client_batch_size" in about, "tei"),
    ("/props", lambda about: "default_generation_settings" in about, "llama.cpp"),
    ("/get_model_info", lambda about: "model_path" in about, "sglang"),
    ("/openapi.json", _is_infinity, "infinity"),
    ("/openapi.json", _is_xinference, "xinference"),
    ("/version", lambda about: "version" in about, "vllm"),  # last: any server may have such a path
)
"""What servers tell about themselves, and which one that is."""


async def ask_server(transport: Transport, root: str, known: Container[str]) -> tuple[str | None, dict[str, Any]]:
    """Return which of the known dialects a server speaks, and what it tells of itself; None where it does not tell.

    Raises:
        HostUnavailableError: nobody answers.
        AuthenticationError: the key is wrong.
    """
    answers: dict[str, dict[str, Any]] = {}
    for path, tells, dialect in _SIGNS:
        if dialect not in known:
            continue
        if path not in answers:
            answers[path] = await _get(transport, root + path)
        if tells(answers[path]):
            return dialect, answers[path]
    return None, {}


async def _get(transport: Transport, url: str) -> dict[str, Any]:
    try:
        answer = read_json(await transport.send(url, None, _MOST_BYTES))
    except HostUnavailableError as error:
        if error.status is None:
            raise
        return {}
    except HostError as error:
        if error.status == 401:  # else a wrong key would look like a server that does not tell
            raise
        return {}
    return answer if isinstance(answer, dict) else {}
