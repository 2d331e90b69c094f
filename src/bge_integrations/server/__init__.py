"""A small embedding service on any encoder: ``POST /embed``, ``POST /v1/embeddings``, and a page to try it on.

Needs the extra ``server``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from ..core.encoder import Encoder
from ..core.reranker import Reranker
from ..extras import require
from .limits import LIMITS, Limits

__all__ = ["Limits", "background", "create_app", "serve"]


def create_app(
    encoder: Encoder,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits = LIMITS,
    model_names: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    reranker: Reranker | Callable[[], Reranker] | None = None,
    root_path: str = "",
) -> Any:
    """Build the ASGI app (a ``fastapi.FastAPI``) that serves an encoder; it may be mounted under a prefix.

    ``POST /embed`` takes ``normalize`` either way: a BGE model ends in a normalisation layer, so its vectors have
    length 1 in any case, here as in sentence-transformers. Where another program runs several workers, such as
    gunicorn, ``/metrics`` shows the counters of all if ``PROMETHEUS_MULTIPROC_DIR`` names an empty folder.

    Args:
        encoder: what embeds; the caller closes it.
        api_keys: with any, ``/embed``, ``/v1``, ``/tokens`` and ``/metrics`` require one as ``Authorization: Bearer``.
        limits: bounds on requests and on what waits. ``connections`` and the times of connections are kept by
            ``serve`` and ``background`` only, as an app does not see its connections.
        model_names: further names under which clients may ask for the model at ``/v1/embeddings``.
        cors_origins: origins of web pages that may call this server; none by default.
        reranker: what answers ``/rerank``, ``/v1/rerank`` and ``/v2/rerank``, or a function that makes it.
        root_path: the prefix under which clients see the server, such as ``"/ml/bge"``. Paths are read with and without
            it, so a proxy may strip it or not. Leave it out where the app is mounted, or the ASGI server has its own
            option for it.

    Raises:
        MissingExtraError: the extra ``server`` is not installed.
        ConfigError: a key is empty, a string was passed instead of a list, or the prefix is not a path.
    """
    _check_extra()
    from .app import build_app

    return build_app(
        encoder,
        api_keys=api_keys,
        limits=limits,
        model_names=model_names,
        cors_origins=cors_origins,
        reranker=reranker,
        root_path=root_path,
    )


def serve(
    encoder: Encoder | Callable[[], Encoder],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    api_keys: Sequence[str] | Callable[[], Sequence[str]] = (),
    workers: int = 1,
    limits: Limits = LIMITS,
    model_names: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    reranker: Reranker | Callable[[], Reranker] | None = None,
    root_path: str = "",
    log_format: Literal["text", "json"] = "text",
    log_level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Serve an encoder until SIGTERM or SIGINT; requests in flight are finished first.

    Each of several workers is a process with its own copy of the model and its own queue; ``/metrics`` shows the
    counters of all. Without keys on loopback, requests must name a local host. Log lines go to the logger
    ``bge_integrations.server``. SIGHUP reads the keys again where ``api_keys`` is a function, and else stops the server
    as SIGTERM does.

    Args:
        encoder: what embeds, or a function that makes it: with several workers it is called in each, so that a host's
            key gets there, which an encoder's pickle does not hold.
        host: address to listen on.
        port: 0 for any free one.
        api_keys: as for ``create_app``, or a function that returns them, which is called again at SIGHUP: if that
            fails, the previous keys stay valid.
        workers: number of processes.
        limits: as for ``create_app``; of each worker.
        model_names: as for ``create_app``.
        cors_origins: as for ``create_app``.
        reranker: as for ``create_app``.
        root_path: as for ``create_app``.
        log_format: ``"json"`` for one object per line, of everything that is logged.
        log_level: of this server's log. Requests are logged at ``"info"``, those that failed at ``"warning"``, probes
            at ``"debug"``.

    Raises:
        MissingExtraError: the extra ``server``, or the model's, is not installed.
        ModelLoadError: the model could not be loaded.
        ConfigError: the address cannot be bound, a key is empty, an option has no such value, or a host's key would not
            reach the workers.
    """
    _check_extra()
    from .run import run_server

    run_server(
        encoder,
        host=host,
        port=port,
        api_keys=api_keys,
        workers=workers,
        limits=limits,
        model_names=model_names,
        cors_origins=cors_origins,
        reranker=reranker,
        root_path=root_path,
        log_format=log_format,
        log_level=log_level,
    )


def background(
    encoder: Encoder,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_keys: Sequence[str] = (),
    limits: Limits = LIMITS,
    model_names: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    reranker: Reranker | Callable[[], Reranker] | None = None,
) -> AbstractContextManager[str]:
    """Serve an encoder on a thread during a ``with`` block, which gets the base URL (without ``/v1``).

    Args:
        encoder: what embeds; the caller closes it.
        host: address to listen on.
        port: 0 for any free one.
        api_keys: as for ``create_app``.
        limits: as for ``create_app``.
        model_names: as for ``create_app``.
        cors_origins: as for ``create_app``.
        reranker: as for ``create_app``.

    Raises:
        MissingExtraError: the extra ``server`` is not installed.
        ConfigError: the address cannot be bound, or a key is empty.
        BGEError: the server cannot start.
    """
    _check_extra()
    from .run import run_background

    return run_background(
        encoder,
        host=host,
        port=port,
        api_keys=api_keys,
        limits=limits,
        model_names=model_names,
        cors_origins=cors_origins,
        reranker=reranker,
    )


def _check_extra() -> None:
    for package in ("fastapi", "prometheus_client", "uvicorn"):
        require(package, extra="server", purpose="the server")
