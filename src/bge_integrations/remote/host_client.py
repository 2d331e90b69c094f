"""What every client of a host does, whatever it asks for: its loop, its session, its errors, and how it travels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from ..catalog import spellings
from ..catalog.records import ModelCard
from ..core.batches import Stream
from ..core.event_loop import BackgroundLoop
from ..core.tokenizer import TextTokenizer, find_tokenizer
from ..core.usage import Usage
from ..errors import BGEError, HostError, HostUnavailableError, MissingKeyError
from .endpoint import Endpoint, HostLimits
from .host import HostSession
from .rate_limit import PortableLimiter

__all__ = ["HostClient"]

_LEFT_BEHIND: list[HostSession] = []
"""After a fork: the parent's connections. The child shares their sockets and epoll; it must not use or close them."""

_MADE_HERE = {"_loop", "_session", "_cutter", "_looked", "_exchange", "_pairs_cutter"}


class HostClient:
    """The part of an engine for hosts that does not depend on what the host is asked for.

    Attributes:
        card: the model.
        endpoint: the host.
        limits: bounds on requests and on waiting.
        base_url: the host's address.
        max_concurrency: requests in flight.
        price: USD per million tokens, if the provider states it.
    """

    remote: bool = True
    card: ModelCard
    endpoint: Endpoint
    limits: HostLimits
    usage: Usage
    base_url: str | None
    max_concurrency: int
    price: float | None

    def open(self, tokenizer: Any, rate_limiter: Any) -> None:
        """Set what all clients have; called once, when the engine is made."""
        self.given_tokenizer = tokenizer
        known = rate_limiter is None or isinstance(rate_limiter, PortableLimiter)
        self.rate_limiter = rate_limiter if known else PortableLimiter(rate_limiter)
        offer = self.endpoint.provider.offer(self.card.id)
        self.base_url, self.max_concurrency = self.endpoint.base_url, self.limits.max_concurrency
        self.price = offer.usd_per_million_tokens if offer else None
        self.usage = Usage(usd=0.0 if self.price else None)
        self._start()

    def _start(self) -> None:
        self._loop = BackgroundLoop("bge-remote")
        self._session: HostSession | None = None
        self._cutter: TextTokenizer | None = None
        self._looked = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MADE_HERE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        try:
            return self.endpoint.secret()
        except MissingKeyError:
            return None

    @property
    def cutter(self) -> TextTokenizer | None:
        """The model's tokenizer where it is on this machine; looked for once."""
        if not self._looked:
            self._cutter, self._looked = find_tokenizer(self.card, self.given_tokenizer), True
        return self._cutter

    def launch(self, work: Callable[[], Awaitable[None]], stream: Stream) -> None:
        """Run ``work``, which begins to put batches into ``stream``, on the client's loop, and return at once.

        Raises:
            MissingKeyError: the host needs a key and none was found; nothing was begun.
            ConfigError: the key cannot be sent.
        """
        if not self.endpoint.key_changes:  # else the key may come from a service: the transport asks, in a thread
            self.endpoint.secret()
        task = self._loop.run(self._guarded(work, stream))
        stream.on_cancel(task.cancel)
        task.add_done_callback(partial(self._fail_unless_run, stream))

    async def _guarded(self, work: Callable[[], Awaitable[None]], stream: Stream) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            stream.fail(self._complete(_closed()))
            raise
        except BGEError as error:
            stream.fail(error)
        except BaseException as error:  # noqa: BLE001 - also a panic in a tokenizer: raised here, it would end the loop
            failure = BGEError(f"{self.endpoint.name}, {self.card.id!r}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            stream.fail(failure)
        else:
            stream.finish()

    def _fail_unless_run(self, stream: Stream, work: Future[None]) -> None:
        # Where the loop was closed before the coroutine's first step, nothing in it could end the stream.
        if work.cancelled() and not stream.cancelled:
            stream.fail(self._complete(_closed()))

    def _here(self) -> HostSession:
        session = self._session  # read once: another thread may close the client meanwhile
        if session is None or session.loop is not asyncio.get_running_loop():
            if session is not None:
                _LEFT_BEHIND.append(session)
            session = self._session = HostSession(self.endpoint, self.limits, self.rate_limiter)
            self._loop.at_end(session.transport.close)
        return session

    def _complete(self, error: HostError) -> HostError:
        """Return an error that says which host and model it is about, what to do, how long to wait, and no secret."""
        error.provider, error.model = self.endpoint.name, self.card.id
        message = error.message
        if not message.startswith(error.provider):
            message = f"{error.provider}, {error.model!r}: {message}"
        if error.status == 404:
            message += self._other_names()
        if error.retry_after:
            message = f"{message}; it asks to wait {error.retry_after:.0f} s"
        error.message = self.endpoint.scrub(message)
        error.args = (error.message,)
        error.__context__ = None  # the tries before it, with what the host said to them
        error.__traceback__ = None  # frames that hold the answer, in which a host may repeat the key
        return error

    def _other_names(self) -> str:
        offers = ", ".join(offer.wire for offer in self.endpoint.provider.offers)
        known = f"it is known to serve {offers}" if offers else f"hosts call it {', '.join(spellings(self.card)[:4])}"
        asked = f"{self.endpoint.wire_model!r} was requested from {self.endpoint.address}"
        return f"; {asked}; {known}: pass the right name as wire_model="

    def close(self) -> None:
        """Close the connections and the loop, and end the calls under way; a later call makes them anew."""
        session, self._session = self._session, None
        if session is not None:  # before the loop ends: calls that this cancels then say why
            session.closing = True
        self._loop.close()


def _closed() -> HostUnavailableError:
    return HostUnavailableError("the encoder was closed during the call")
