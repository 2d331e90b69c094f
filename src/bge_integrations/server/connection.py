"""HTTP connections that do not wait for ever: uvicorn itself bounds only the pause between two requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import LIMITS, Limits

_RESET = struct.pack("ii", 1, 0)


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, and our limits."""

    limits: Limits = LIMITS


class PatientProtocol(H11Protocol):
    """Hangs up on half a header and on a client that does not take its answer."""

    config: ServerConfig
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        super().data_received(data)
        if self._answering():
            self._stop_waiting()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:  # noqa: D102
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_sending(self.transport.get_write_buffer_size() + 1)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        # Not started anew by each byte: a dripped header would last for ever.
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.config.limits.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self._answering():
            self.transport.abort()

    def _watch_sending(self, before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= before:
            # Without it the kernel would go on holding what nobody takes.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        elif unsent:
            self.loop.call_later(self.config.limits.send_seconds, self._watch_sending, unsent)


def config_of(app: Any, limits: Limits, **options: Any) -> ServerConfig:
    """Configure uvicorn: our connections, our log, nothing that tells what runs here."""
    config = ServerConfig(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        **options,
    )
    config.limits = limits
    return config
