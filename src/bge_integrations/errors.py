"""Every error the package raises.

BGEError
├── InputError (ValueError)              a text that cannot be embedded; see positions
│   ├── InputTypeError (TypeError)       not a text at all
│   ├── TextError                        the model or its tokenizer fails at a text
│   └── TooLongError                     longer than the model reads, with truncate="error"
├── ConfigError (ValueError)             the call names something that cannot work
│   ├── UnknownModelError                no such model; names near matches
│   ├── UnknownProviderError             no such provider; names near matches
│   ├── NotServedError                   the host does not serve that model, or not in that space
│   ├── InsecureHostError                plain http to a host that is not loopback
│   ├── MissingKeyError                  the host needs a key and none was found
│   └── ReadOnlyError (AttributeError)   an attribute that is decided when the object is made
├── MissingExtraError (ImportError)      an optional dependency is not installed
├── ModelLoadError (OSError)             a local model could not be read, or not be downloaded
├── CacheError (OSError)                 a cache file is not ours, is damaged, or cannot be opened
├── SpaceMismatchError (ValueError)      vectors of two spaces would have been mixed
└── HostError                            the host failed; carries what was finished and what was not
    ├── AuthenticationError              401, 403
    ├── QuotaError                       402, or a 429 that mentions an exhausted quota
    ├── RateLimitError                   429 that outlasted the retries; see retry_after
    ├── RequestRefusedError              400, 404, 422 and other answers that a retry would not change
    │   └── TooLargeError                413, or a refusal that mentions size, for a single text
    ├── HostUnavailableError (ConnectionError)   connection faults, 408, 409, 5xx
    ├── BadAnswerError (ValueError)      an answer that is not the vectors asked for
    └── DeadlineError (TimeoutError)     the whole-call timeout ran out

BGEWarning (UserWarning)
├── InstructionWarning                   a model is used without a known query instruction
├── RepairWarning                        something was repaired on the way
├── TruncationWarning                    texts are longer than the model reads and were truncated
└── UnverifiedWarning                    verify="first-use" for a model without published values
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    from types import FrameType

Places = Sequence[int] | Sequence[Sequence[int]]
"""For each position in a part of a list, its position or positions in the whole list."""


class BGEError(Exception):
    """Base of every error of this package. Flat, so that it can be pickled and logged.

    Attributes:
        message: what happened and what to do next, without positions.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.__dict__)

    def add(self, text: str) -> Self:
        """Return this error with ``text`` appended to its message."""
        other = self._copy()
        other.message += text
        other.args = (other.message,)
        return other

    def at(self, places: Places) -> Self:
        """Return this error about a part of a list as an error about the whole list.

        Args:
            places: where each text of the part stands in the whole list; several positions for a text that
                stands there more than once.
        """
        del places
        return self

    def _copy(self) -> Self:
        # One error may belong to several calls, each with positions of its own.
        other = copy.copy(self)
        other.__cause__, other.__suppress_context__ = self.__cause__, self.__suppress_context__
        return other.with_traceback(self.__traceback__)


def _rebuild(kind: type[BGEError], message: str, state: dict[str, Any]) -> BGEError:
    error = kind.__new__(kind, message)
    error.args = (message,)  # OSError's own __new__ leaves them to an __init__ that is not called here
    error.__dict__.update(state)
    return error


def _moved(positions: Iterable[int], places: Places) -> tuple[int, ...]:
    whole: list[int] = []
    for i in positions:
        place = places[i]
        whole += [place] if isinstance(place, int) else place
    return tuple(sorted(whole))


def shorten(positions: Sequence[int], most: int = 10) -> str:
    """Return positions as text, the first ``most`` of them."""
    return ", ".join(map(str, positions[:most])) + (", …" if len(positions) > most else "")


class InputError(BGEError, ValueError):
    """A text cannot be embedded.

    Attributes:
        positions: indices of the texts concerned, in the list that the caller passed.
    """

    def __init__(self, message: str, *, positions: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)

    def at(self, places: Places) -> Self:
        """Return this error with the positions of the whole list."""
        other = self._copy()
        other.positions = _moved(self.positions, places)
        return other


class InputTypeError(InputError, TypeError):
    """Something other than a text was passed as a text."""


class TextError(InputError):
    """A local model or its tokenizer fails on a text; the message names its position."""

    def __str__(self) -> str:
        return f"{self.message} (text {shorten(self.positions, 5)})" if self.positions else self.message


class TooLongError(InputError):
    """Texts are longer than the model reads, and ``truncate="error"`` forbids truncating them."""

    def __str__(self) -> str:
        if not self.positions:
            return self.message
        return f"{len(self.positions)} text(s) are {self.message} (positions {shorten(self.positions)})"


class ConfigError(BGEError, ValueError):
    """The call names a model, host or option that cannot work."""


class UnknownModelError(ConfigError):
    """No such model; the message names near matches."""


class UnknownProviderError(ConfigError):
    """No such provider; the message names near matches."""


class NotServedError(ConfigError):
    """The host does not serve this model, or no longer does, or serves it in another vector space."""


class InsecureHostError(ConfigError):
    """Plain http to another machine."""


class MissingKeyError(ConfigError):
    """The host needs a key, and none was passed or found in the environment."""


class ReadOnlyError(ConfigError, AttributeError):
    """An attribute was assigned that can no longer change the encoder; the message says what to do instead."""


class MissingExtraError(BGEError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class ModelLoadError(BGEError, OSError):
    """A local model could not be read, or could not be downloaded."""


class CacheError(BGEError, OSError):
    """A cache file cannot be used: it is not ours, damaged, or cannot be opened."""


class SpaceMismatchError(BGEError, ValueError):
    """Vectors of two different spaces would have been mixed.

    Attributes:
        model: id of the model, where a host was checked.
        differences: what differs, as ``{name: (stored, here)}``, where two stamps were compared.
        reembed: whether the documents have to be embedded again.
        verdict: how the host's vectors compare with the published ones, where a host was checked.
        cosine: to the published vector, where a host was checked.
    """

    def __init__(
        self,
        message: str,
        *,
        model: str = "",
        differences: dict[str, tuple[Any, Any]] | None = None,
        reembed: bool | None = None,
        verdict: str = "",
        cosine: float | None = None,
    ) -> None:
        super().__init__(message)
        self.model, self.differences, self.reembed = model, differences or {}, reembed
        self.verdict, self.cosine = verdict, cosine


class HostError(BGEError):
    """A host failed.

    Attributes:
        provider: name of the provider, or the host part of its URL.
        model: id of the model.
        status: HTTP status, or None where there was no answer.
        positions: indices of the caller's texts affected by the failure.
        retry_after: seconds that the host asked to wait, or None.
        finished: indices whose vectors reached ``on_batch`` before the failure.
        unfinished: the other indices; repeating the call only needs these.
        retryable: whether the same request may succeed when sent again.
    """

    retryable: bool = False
    _about_texts: ClassVar[bool] = False  # the failure is the texts' own, so the message names their positions

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        positions: Iterable[int] = (),
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.provider, self.model, self.status = provider, model, status
        self.positions, self.retry_after = tuple(positions), retry_after
        self.finished: tuple[int, ...] = ()
        self.unfinished: tuple[int, ...] = ()
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        if self._about_texts and self.positions:
            return f"{self.message} (text {shorten(self.positions, 5)})"
        return self.message

    def at(self, places: Places) -> Self:
        """Return this error with the positions of the whole list."""
        other = self._copy()
        other.positions = _moved(self.positions, places)
        other.finished, other.unfinished = _moved(self.finished, places), _moved(self.unfinished, places)
        return other

    def after(self, finished: Iterable[int], unfinished: Iterable[int]) -> Self:
        """Return this error with what was finished before it."""
        other = self._copy()
        other.finished, other.unfinished = tuple(finished), tuple(unfinished)
        return other


class AuthenticationError(HostError):
    """The host refused the key (401, 403)."""


class QuotaError(HostError):
    """The account has no credit or quota left (402, or such a 429)."""


class RateLimitError(HostError):
    """The host kept answering 429; ``retry_after`` says how long it asked to wait."""

    retryable = True


class RequestRefusedError(HostError):
    """The host refused the request, and would refuse it again."""


class TooLargeError(RequestRefusedError):
    """A single text is too large for the host.

    Attributes:
        limit: whether a request held too many texts, or too many bytes or tokens.
    """

    _about_texts = True

    def __init__(self, message: str, *, limit: Literal["texts", "bytes"] = "texts", **about: Any) -> None:
        super().__init__(message, **about)
        self.limit = limit


class HostUnavailableError(HostError, ConnectionError):
    """The host could not be reached or kept failing.

    Attributes:
        timed_out: whether the host was reached, but did not answer within ``read_timeout``.
        unconnected: whether no connection could be made: nothing listens there, or the host name is unknown.
    """

    retryable = True
    timed_out: bool = False
    unconnected: bool = False


class BadAnswerError(HostError, ValueError):
    """The host's response does not contain the requested vectors.

    Attributes:
        rows: how many were returned, if not one for each text.
    """

    _about_texts = True
    rows: int | None = None


class DeadlineError(HostError, TimeoutError):
    """The whole-call ``timeout`` ran out before all texts were embedded."""


class BGEWarning(UserWarning):
    """Base of every warning of this package."""


class InstructionWarning(BGEWarning):
    """A model is used without a known query instruction."""


class TruncationWarning(BGEWarning):
    """Texts are longer than the model reads and were truncated."""


class UnverifiedWarning(BGEWarning):
    """``verify="first-use"`` was requested for a model without published values."""


class RepairWarning(BGEWarning):
    """Something was repaired: a lone surrogate, rows without an index, an unusable cache."""


def no_thread(purpose: str, error: BaseException) -> BGEError:
    """Return the error for a thread that the system does not grant; what was asked for was not begun."""
    return BGEError(
        f"cannot start a thread for {purpose} ({error}): raise the limit of threads or processes "
        "(ulimit -u, pids.max) or end others, and call again"
    )


# What stands between this package and the line of a user: the frameworks with their integrations, and what runs them.
_FRAMEWORKS = ("langchain", "langgraph", "langsmith", "llama_index")
_RUNNERS = ("asyncio", "concurrent", "contextlib", "threading", "wrapt")


def warn(message: str, category: type[BGEWarning] = BGEWarning) -> None:
    """Warn at the first line outside this package and the frameworks, so that users see which call of theirs it is.

    In a thread that a framework started, no line is a user's: then it is the first one outside this package.
    """
    package, level, outside = __name__.partition(".")[0], 1, 0
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - warnings' own skip_file_prefixes needs Python 3.12
    while frame is not None:
        level += 1
        name = str(frame.f_globals.get("__name__")).partition(".")[0]
        if name not in (package, *_RUNNERS):
            outside = outside or level
            if not name.startswith(_FRAMEWORKS):
                break
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level if frame is not None else outside or level)
