"""The server's log: a line or a JSON object per request with the request's id, and where it goes."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Collection
from contextvars import ContextVar
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from .asgi import App, Message, Receive, Scope, Send, respond, route_path
from .limits import APIError
from .metrics import Metrics

log = logging.getLogger("bge_integrations.server")
REQUEST_ID_HEADER = "x-request-id"
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Paths that are asked every few seconds: a request that succeeds is logged at the level DEBUG."""
_SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}", re.ASCII)
_request_id: ContextVar[str | None] = ContextVar("bge_request_id", default=None)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    return True


log.addFilter(_add_request_id)


class TextFormatter(logging.Formatter):
    """The time, the message, and the request's id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: D102
        line = super().formatMessage(record)
        request_id = getattr(record, "request_id", None)
        return f"{line} [{request_id}]" if request_id else line


class JSONFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and what is known about the request."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", None):
            fields["request_id"] = request_id
        fields |= getattr(record, "bge_request", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def show_log(log_format: str = "text", log_level: str = "info") -> None:
    """Send the log to stderr; as text, only where the program does not let it through to a place of its own.

    As JSON, what uvicorn, the rest of this package and ``warnings`` have to say goes there too, so that every line is
    an object.
    """
    if log_format == "json":
        logging.captureWarnings(True)
        _send_to_stderr(JSONFormatter(), log.name, "bge_integrations", "uvicorn", "py.warnings")
    elif not (log.hasHandlers() and log.isEnabledFor(logging.INFO)):
        _send_to_stderr(TextFormatter(), log.name)
    log.setLevel(log_level.upper())


def _send_to_stderr(formatter: logging.Formatter, *names: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    for logger in map(logging.getLogger, names):
        logger.handlers = [handler]
        logger.propagate = False


class AccessLog:
    """Counts every request and logs one line for it, without texts or keys; turns a crash into a 500.

    Every answer has an ``x-request-id``: the client's or the proxy's, where it is short and plain, or a new one.
    """

    def __init__(self, app: App, metrics: Metrics, routes: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = perf_counter(), 0
        request_id = id_of(scope)
        _request_id.set(request_id)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), request_id.encode())]
                message = {**message, "headers": headers}
            elif not message.get("more_body", False):
                # Counted before it is sent, so that a client that has its answer finds it in /metrics.
                self._record(scope, status, perf_counter() - start)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - uvicorn would log its message, which may hold a text or a key
            log.error("%s in %s", type(error).__name__, self._route(scope))
            if not status:
                await respond(scope, watched, APIError(500, f"the server failed ({type(error).__name__})"))
        if not status:
            self._record(scope, status, perf_counter() - start)
        return None

    def _route(self, scope: Scope) -> str:
        # The path is the client's to choose: only known ones become labels or reach the log.
        path = route_path(scope)
        return path if path in self.routes else "other"

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._route(scope)
        self.metrics.requests.labels(route, str(status or "gone")).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        work = scope.get("state", {}).get("bge_work", {})
        milliseconds = round(1000 * seconds)
        about = {"method": scope["method"][:8], "route": route, "status": status or "gone", "ms": milliseconds, **work}
        said = "".join(f", {value}" if isinstance(value, str) else f", {value} {name}" for name, value in work.items())
        line = "{method} {route} {status} {ms} ms".format_map(about)
        log.log(level_of(route, status), "%s%s", line, said, extra={"bge_request": about})


def level_of(route: str, status: int) -> int:
    """Return the level at which a request is logged."""
    if route in PROBES:  # a 503 of /ready means that the model is loading
        return logging.INFO if status >= 400 else logging.DEBUG
    return logging.WARNING if status >= 500 else logging.INFO


def id_of(scope: Scope) -> str:
    """Return the request's id: what came in, if it is at most 128 letters, digits and ``.:/+=@_-``, or a new one."""
    given: bytes = dict(scope["headers"]).get(REQUEST_ID_HEADER.encode(), b"")
    return given.decode() if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
