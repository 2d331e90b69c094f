"""What the server accepts: bounds on one request, the queue of those that wait, and the error for the rest."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic


@dataclass(frozen=True)
class Limits:
    """Limits on a request and on everything that waits.

    Attributes:
        body_bytes: size of a request's body.
        items: texts in one request.
        characters: characters in all texts of a request together.
        tokens: tokens of all texts of a request together, counted before truncation.
        multivector_tokens: tokens in all texts of a request for token vectors, each about 12 kB of JSON.
        queued_texts: texts that may wait for the encoder; beyond it, 429.
        queued_bytes: bytes of bodies held in memory, over all requests; beyond it, 429.
        connections: open connections; beyond it, idle ones are closed, and requests beyond it get a 503.
        header_seconds: time for a request's header to arrive.
        body_seconds: time for its body to arrive.
        answer_seconds: time for the encoder to answer; beyond it, 504.
        idle_seconds: time between two requests of a connection; longer than clients keep theirs, so that it is they
            who hang up.
        send_seconds: time for which the client may not read its response.
        drain_seconds: time that requests in flight get after SIGTERM.
    """

    body_bytes: int = 4 << 20
    items: int = 2048
    characters: int = 1_000_000
    tokens: int = 300_000
    multivector_tokens: int = 8192
    queued_texts: int = 4096
    queued_bytes: int = 64 << 20
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    answer_seconds: float = 300.0
    idle_seconds: int = 75
    send_seconds: float = 30.0
    drain_seconds: int = 30

    def check_size(self, texts: Sequence[str]) -> None:
        """Refuse a request with too many or too long texts.

        Raises:
            APIError: 422, with the limit.
        """
        if len(texts) > self.items:
            raise too_much(len(texts), "texts", self.items)
        characters = sum(map(len, texts))
        if characters > self.characters:
            raise too_much(characters, "characters", self.characters)

    def check_tokens(self, counts: Sequence[int], *, multivector: bool = False) -> None:
        """Refuse a request with too many tokens.

        Raises:
            APIError: 422, with the limit.
        """
        tokens = sum(counts)
        if tokens > self.tokens:
            raise too_much(tokens, "tokens", self.tokens)
        if multivector and tokens > self.multivector_tokens:
            raise too_much(tokens, "tokens for token vectors", self.multivector_tokens)


LIMITS = Limits()


class APIError(Exception):
    """A request that is refused or failed: what the client gets.

    Attributes:
        status: HTTP status; under ``/v1``, ``openai_status``.
        message: for the client.
        param: the field concerned.
        headers: headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        openai_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        # OpenAI's own status for a request that it cannot read is 400, not 422.
        self.openai_status = openai_status or (400 if status == 422 else status)
        self.headers = dict(headers or {})


def too_much(count: int, unit: str, limit: int) -> APIError:
    """Return the error for a request that holds too much.

    Under ``/v1`` it is a 413, so that clients can tell "send less" from other mistakes.
    """
    return APIError(422, f"{count} {unit} in one request are too many: at most {limit}", openai_status=413)


class RequestQueue:
    """Bounds the texts that wait for the encoder.

    Args:
        limits: ``queued_texts`` is the bound; one request is admitted to an empty queue whatever its size.
        report: called with the number of texts that wait, whenever it changes.
    """

    def __init__(self, limits: Limits, report: Callable[[int], object]) -> None:
        self._limits, self._report = limits, report
        self._waiting = 0
        self._pace: deque[tuple[float, int]] = deque(maxlen=64)

    @contextlib.contextmanager
    def place(self, texts: int) -> Iterator[None]:
        """Hold a place for ``texts`` texts.

        Raises:
            APIError: 429; too many are waiting.
        """
        if self._waiting and self._waiting + texts > self._limits.queued_texts:
            wait = retry_after(self._waiting, self._pace, monotonic())
            raise APIError(429, f"{self._waiting} texts are already waiting", headers={"retry-after": str(wait)})
        self._add(texts)
        try:
            yield
        finally:
            self._add(-texts)
            self._pace.append((monotonic(), texts))

    def _add(self, texts: int) -> None:
        self._waiting += texts
        self._report(self._waiting)


def retry_after(waiting: int, pace: Sequence[tuple[float, int]], now: float) -> int:
    """Return after how many seconds, 1 to 60, the texts that wait now will be done at the recent pace."""
    if not pace:
        return 1
    seconds = max(now - pace[0][0], 0.001)
    return int(min(60, max(1, waiting * seconds / max(1, sum(texts for _, texts in pace)))))
