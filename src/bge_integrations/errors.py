"""Every error the package raises.

BGEError
├── InputError (ValueError)              a text that cannot be embedded; see ``positions``
│   └── InputTypeError (TypeError)       not a text at all
├── ConfigError (ValueError)             the call names something that cannot work
│   ├── UnknownModelError                no such model; names near matches
│   ├── UnknownProviderError             no such provider; names near matches
│   ├── NotServedError                   the host does not serve that model, or not in that space
│   ├── InsecureHostError                plain http to a host that is not loopback
│   └── MissingKeyError                  the host needs a key and none was found
├── MissingExtraError (ImportError)      an optional dependency is not installed
├── ModelLoadError (OSError)             a local model could not be read, or not be downloaded
├── SpaceMismatchError (ValueError)      vectors of two spaces would have been mixed
└── HostError                            the host failed; carries what was finished and what was not
    ├── AuthenticationError              401, 403
    ├── QuotaError                       402, or a 429 that speaks of an exhausted quota
    ├── RateLimitError                   429 that outlasted the retries; see ``retry_after``
    ├── RequestRefusedError              400, 404, 422 and other answers that a retry would not change
    │   └── TooLargeError                413, or a refusal that speaks of size, for a single text
    ├── HostUnavailableError (ConnectionError)   connection faults, 408, 409, 5xx
    ├── BadAnswerError (ValueError)      an answer that is not the vectors asked for
    └── DeadlineError (TimeoutError)     the whole-call ``timeout`` ran out
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class BGEError(Exception):
    """Base of every error of this package; flat, so that it can be pickled and logged."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.__dict__.update(details)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {k: v for k, v in self.__dict__.items() if k != "message"})


def _rebuild(kind: type[BGEError], message: str, details: dict[str, Any]) -> BGEError:
    return kind(message, **details)


class InputError(BGEError, ValueError):
    """A text cannot be embedded.

    Attributes:
        positions: indices of the texts concerned, in the list that the caller gave.
    """

    def __init__(self, message: str, *, positions: Iterable[int] = (), **details: Any) -> None:
        super().__init__(message, positions=tuple(positions), **details)

    positions: tuple[int, ...]


class InputTypeError(InputError, TypeError):
    """Something that is not a text was given where a text belongs."""


class ConfigError(BGEError, ValueError):
    """The call names a model, host or option that cannot work."""


class UnknownModelError(ConfigError):
    """No such model; the message names near matches."""


class UnknownProviderError(ConfigError):
    """No such provider; the message names near matches."""


class NotServedError(ConfigError):
    """The host does not serve that model (any more), or serves it in another vector space."""


class InsecureHostError(ConfigError):
    """Plain http to a host that is not loopback."""


class MissingKeyError(ConfigError):
    """The host needs a key and none was given or found in the environment."""


class MissingExtraError(BGEError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class ModelLoadError(BGEError, OSError):
    """A local model could not be read, or could not be downloaded."""


class SpaceMismatchError(BGEError, ValueError):
    """Vectors of two different spaces would have been mixed."""


class HostError(BGEError):
    """A host failed.

    Attributes:
        provider: name of the provider, or the host part of its URL.
        model: id of the model asked for.
        status: HTTP status, or None where there was no answer.
        positions: indices of the caller's texts that the failure concerns.
        retry_after: seconds that the host asked to wait, or None.
        finished: indices whose vectors reached ``on_batch`` before the failure.
        unfinished: the other indices; the same call again needs only these.
    """

    provider: str
    model: str
    status: int | None
    positions: tuple[int, ...]
    retry_after: float | None
    finished: tuple[int, ...]
    unfinished: tuple[int, ...]

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        positions: Iterable[int] = (),
        retry_after: float | None = None,
        finished: Iterable[int] = (),
        unfinished: Iterable[int] = (),
        **details: Any,
    ) -> None:
        super().__init__(
            message,
            provider=provider,
            model=model,
            status=status,
            positions=tuple(positions),
            retry_after=retry_after,
            finished=tuple(finished),
            unfinished=tuple(unfinished),
            **details,
        )


class AuthenticationError(HostError):
    """The host refused the key (401, 403)."""


class QuotaError(HostError):
    """The account has no credit or quota left (402, or such a 429)."""


class RateLimitError(HostError):
    """The host kept answering 429; ``retry_after`` says how long it asked to wait."""


class RequestRefusedError(HostError):
    """The host refused the request in a way that sending it again would not change."""


class TooLargeError(RequestRefusedError):
    """A single text is too large for the host."""


class HostUnavailableError(HostError, ConnectionError):
    """The host could not be reached or kept failing."""


class BadAnswerError(HostError, ValueError):
    """The host's answer is not the vectors that were asked for."""


class DeadlineError(HostError, TimeoutError):
    """The whole-call ``timeout`` ran out before all texts were embedded."""


class BGEWarning(UserWarning):
    """Base of every warning of this package."""


class InstructionWarning(BGEWarning):
    """A model is used without a known query instruction."""


class TruncationWarning(BGEWarning):
    """Texts are longer than the model reads and were cut."""


class RepairWarning(BGEWarning):
    """Something was put right on the way: a lone surrogate, rows without an index, a cache set aside."""
