"""Keys and other secrets: read, checked, and hidden from tracebacks, pickles and logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from .environment import variable
from .errors import BGEError, ConfigError, MissingKeyError

__all__ = [
    "SECRET_NAMES",
    "Hidden",
    "HiddenValues",
    "Key",
    "Secret",
    "hide_in_url",
    "hide_secrets",
    "keys_from",
]


@runtime_checkable
class Secret(Protocol):
    """What pydantic's SecretStr is, without pydantic."""

    def get_secret_value(self) -> str:
        """Return the secret."""
        ...


class Hidden:
    """A value that is neither shown nor pickled, so that tracebacks with locals do not hold it."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def get_secret_value(self) -> Any:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return "'***'"

    def __deepcopy__(self, memo: dict[int, Any]) -> Hidden:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, (None,)


class HiddenValues(Mapping[str, Any]):
    """A mapping that shows its names and no value; the values are not pickled."""

    _values: Mapping[str, Hidden] = {}  # a half-made one can be shown

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: Hidden(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> Any:
        return self._values[name].get_secret_value()

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def hide_secrets(options: dict[str, Any]) -> None:
    """Wrap ``api_key`` and the values of ``headers`` in place: call it first, before anything can fail.

    Of a ``base_url`` that holds a password or a key, which is refused later, the secret is taken out here.
    """
    if isinstance(options.get("base_url"), str):
        options["base_url"] = hide_in_url(options["base_url"])
    key, headers = options.get("api_key"), options.get("headers")
    if key is not None and not callable(key) and not isinstance(key, Secret):
        options["api_key"] = Hidden(key)
    if isinstance(headers, Mapping):
        options["headers"] = HiddenValues(headers)
    elif headers is not None:
        options["headers"] = Hidden(headers)


SECRET_NAMES = ("key", "token", "secret", "password", "sig")
"""Words in the name of a query's field whose value is a secret."""
_USER = re.compile(r"(?<=//)[^/?#]*(?=@)")
_FIELD = re.compile(rf"(?<=[?&#])([^=&#]*(?:{'|'.join(SECRET_NAMES)})[^=&#]*=)[^&#]+", re.IGNORECASE)


def hide_in_url(url: str) -> str:
    """Return a URL with ``***`` in place of its user, password, and fields that are named like a key."""
    return _FIELD.sub(r"\1***", _USER.sub("***", url))


class Key:
    """A host's key. Pickled without its value: the other side reads its own environment.

    Args:
        value: the key, a ``Secret``, or a function that returns the key and is asked for each request.
        variables: read in this order where there is no value.
        needed: whether the host answers nobody without a key.
        host: named in errors.

    Raises:
        ConfigError: the key holds what an HTTP header cannot carry; the message does not show it.
    """

    def __init__(self, value: object, variables: tuple[str, ...], *, needed: bool, host: str) -> None:
        self.variables, self.needed, self.host = variables, needed, host
        self._ask, self._value = None, None
        secret = value if callable(value) or isinstance(value, (Secret, type(None))) else Hidden(value)
        del value
        self._ask = secret if callable(secret) else None
        self._value = self._from_environment()
        if isinstance(secret, Secret):
            self._value = _clean(Hidden(secret.get_secret_value()), "api_key") or self._value
        self._passed, self._travelled = secret is not None, False

    def _from_environment(self) -> str | None:
        return next((value for name in self.variables if (value := _secret(name))), None)

    @property
    def changes(self) -> bool:
        """Whether the key comes from a function, and may be another one for the next request."""
        return self._ask is not None

    @property
    def value(self) -> str | None:
        """The key, or None where there is none or a function returns it."""
        return None if self._ask else self._value

    @property
    def advice(self) -> str:
        """What to do where the host refuses the key."""
        names = " or ".join(self.variables) or "BGE_API_KEY"
        if self._travelled and self._passed and self._value is None:
            return f"the key passed as api_key= is not sent to other processes: set {names} there"
        return f"is the key right? It is passed as api_key=, or read from {names}"

    def __call__(self) -> str | None:
        """Return the key.

        Raises:
            MissingKeyError: the host needs one and there is none.
            ConfigError: the function returned no key that a header can carry.
        """
        if self._ask is not None:
            return _clean(self._asked(self._ask), "what api_key= returned")
        if self._value is None and self.needed:
            names = " or ".join(self.variables) or "BGE_API_KEY"
            if self._travelled and self._passed:
                raise MissingKeyError(f"{self.host} needs a key, and {self.advice}")
            raise MissingKeyError(f"{self.host} needs a key: set {names} in the environment, or pass api_key=")
        return self._value

    def _asked(self, ask: Callable[[], Any]) -> Hidden:
        try:
            return Hidden(ask())
        except BGEError:
            raise
        except Exception as error:  # its message may hold what it was about to return
            raise MissingKeyError(
                f"{self.host} needs a key, and the function that was passed as api_key= raised {type(error).__name__}"
            ) from error

    def __repr__(self) -> str:
        return f"Key({self.host}, {'set' if self._value or self._ask else 'not set'})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Key:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"variables": self.variables, "needed": self.needed, "host": self.host, "_passed": self._passed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ask, self._travelled = None, True
        self._value = self._from_environment()


def _clean(secret: Secret, origin: str) -> str | None:
    """Return a key without the white space around it, which secret files end in; None for an empty one.

    Raises:
        ConfigError: HTTP libraries quote a header that they refuse, and so the key, in errors and logs.
    """
    # The value gets no name here: a traceback with locals would show it.
    kind = type(secret.get_secret_value()).__name__
    if kind not in ("str", "NoneType"):
        raise ConfigError(f"{origin} must be a string, not {kind}")
    if any(not " " <= c <= "~" for c in (secret.get_secret_value() or "").strip()):
        raise ConfigError(
            f"{origin} contains a control or non-ASCII character, which an HTTP header cannot hold: is it really a key?"
        )
    return (secret.get_secret_value() or "").strip() or None


def _secret(name: str) -> str | None:
    """Return a key that the environment holds, or None.

    Raises:
        ConfigError: no HTTP header can carry it.
    """
    return _clean(Hidden(variable(name)), name)


def keys_from(name: str | None) -> list[str]:
    """Return the keys, separated by commas, that an environment variable holds; none where none is named.

    Raises:
        MissingKeyError: the variable is named but not set, so that a server would stand open by mistake.
    """
    if name is None:
        return []
    keys = [key.strip() for key in (_secret(name) or "").split(",") if key.strip()]
    if not keys:
        raise MissingKeyError(f"{name} is not set: put the server's keys into it, separated by commas")
    return keys
