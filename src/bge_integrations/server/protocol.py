"""HTTP connections with timeouts, and room for new ones: uvicorn itself bounds only the pause between two requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import LIMITS, Limits

_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing drops what is unsent


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration, and our limits."""

    limits: Limits = LIMITS
    most_connections: int = LIMITS.connections


def config_of(app: Any, limits: Limits, **options: Any) -> ServerConfig:
    """Configure uvicorn: our connections, our log, no header that names the software."""
    config = ServerConfig(
        app,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        **options,
    )
    config.limits = limits
    config.most_connections = min(limits.connections, 3 * _open_files() // 4)
    return config


def _open_files() -> int:
    """Return how many files this process may open: beyond it, no connection is accepted, and none refused either."""
    try:
        import resource
    except ImportError:  # Windows
        return 1 << 20
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return files if files > 0 else 1 << 20  # -1 is RLIM_INFINITY


class TimeoutProtocol(H11Protocol):
    """Hangs up on half a header, on a client that does not read its answer, and on idle clients when others wait."""

    config: ServerConfig
    _head_timer: asyncio.TimerHandle | None = None
    idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        if len(self.connections) > self.config.most_connections:
            self._close_one_idle()
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
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_sending(self.transport.get_write_buffer_size() + 1)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def is_idle(self) -> bool:
        """Return whether nothing is being answered or sent."""
        sent = not self.transport.get_write_buffer_size()
        return sent and not self._answering() and not self.transport.is_closing()

    def _close_one_idle(self) -> None:
        """Make room for this connection: close the one that has been without a request for longest."""
        others = (other for other in self.connections if isinstance(other, TimeoutProtocol) and other is not self)
        idle = [other for other in others if other.is_idle()]
        if idle:
            min(idle, key=lambda other: other.idle_since).transport.abort()

    def _await_head(self) -> None:
        # Not restarted by each byte: a header that drips would last for ever.
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
            # Without it the kernel would keep what nobody reads.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        elif unsent:
            self.loop.call_later(self.config.limits.send_seconds, self._watch_sending, unsent)
