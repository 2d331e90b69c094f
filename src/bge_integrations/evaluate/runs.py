"""One configuration to be measured: ``"bge-m3,hybrid,reranker=bge-reranker-v2-m3"``, or a mapping of the same keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args

from ..bulk.hybrid import Hybrid
from ..catalog.records import OutputName
from ..environment import variable
from ..errors import ConfigError
from ..load.encoder import DEFAULT_MODEL
from ..options import OPTIONS, RERANKER_OPTIONS, Option

__all__ = ["Run", "parse_run"]

Search = Literal["dense", "sparse", "hybrid"]

_OURS = ("model_name", "cache", "show_progress")  # decided by the evaluation
_PREFIX = "reranker_"
_SWITCHES = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}

_OWN = (
    Option("model", Any, "of the embeddings"),
    Option("name", str, "name of the run in the table"),
    Option("dense", bool, "search by dense vectors (default)"),
    Option("sparse", bool, "search by sparse vectors"),
    Option("hybrid", Any, "search by both; rrf for reciprocal rank fusion, 0.4:0.2 for other weights"),
    Option("instruction", Any, "on (the model's own, the default), off, or another text"),
    Option("reranker", Any, "model of a second stage"),
    Option("candidates", int, "how many of the first passages the reranker reads (default: all that are kept)"),
)
_KEYS: dict[str, Option] = {
    **{option.name: option for option in _OWN},
    **{name: option for name, option in OPTIONS.items() if name not in _OURS},
    **{_PREFIX + name: option for name, option in RERANKER_OPTIONS.items() if name not in _OURS},
}


@dataclass(frozen=True)
class Run:
    """One configuration.

    Attributes:
        name: its name in the table.
        model: of the embeddings.
        search: the output to search by.
        hybrid: how dense and sparse scores are combined.
        options: of ``load_encoder``.
        reranker: model of the second stage, or None.
        reranker_options: of ``load_reranker``.
        candidates: how many of the first passages are reranked; all that are kept when None.
    """

    name: str
    model: Any
    search: Search = "dense"
    hybrid: Hybrid = field(default_factory=Hybrid)
    options: dict[str, Any] = field(default_factory=dict)
    reranker: Any = None
    reranker_options: dict[str, Any] = field(default_factory=dict)
    candidates: int | None = None

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """What is searched by."""
        return {"dense": ("dense",), "sparse": ("sparse",), "hybrid": ("dense", "sparse")}[self.search]  # type: ignore[return-value]


def parse_run(spec: str | Mapping[str, Any]) -> Run:
    """Return the run that a text or a mapping describes.

    Args:
        spec: keys with values, and words by themselves, with commas between; a word that is no key and comes first is
            the model. A text that begins with ``{`` is JSON. Keys are those of ``load_encoder``, of ``load_reranker``
            with ``reranker_`` in front, and:

            - ``model``; ``name`` for the table;
            - ``dense`` (the default), ``sparse`` or ``hybrid``; ``hybrid=rrf``, or ``hybrid=0.4:0.2`` for weights;
            - ``instruction``: ``on`` (the model's own, the default), ``off``, or another text;
            - ``reranker``, and ``candidates``: how many of the first passages it reads (default: all that are kept).

    Raises:
        ConfigError: an unknown key, with the one that was meant, or a value that means nothing.
    """
    given = dict(spec) if isinstance(spec, Mapping) else _of_text(spec)
    given = {str(key).strip().replace("-", "_"): value for key, value in given.items()}
    for key in given:
        if key not in _KEYS:
            ours = ", ".join(option.name for option in _OWN)
            raise ConfigError(
                f"a run has no setting {key!r}{_meant(key)} (settings: {ours}, the options of load_encoder, "
                f"and those of load_reranker with {_PREFIX} in front)"
            )
    given = {key: _typed(key, value) for key, value in given.items()}
    alone = [key for key in given if key.startswith(_PREFIX) or key == "candidates"]
    if alone and given.get("reranker") is None:
        raise ConfigError(f"{alone[0]} needs reranker=, the model that reranks")
    search, hybrid = _search(given)
    options = {key: value for key, value in given.items() if key in OPTIONS}
    model = given.get("model") or variable("BGE_MODEL") or DEFAULT_MODEL
    return Run(
        name=str(given.get("name") or _label(model, given)),
        model=model,
        search=search,
        hybrid=hybrid,
        options={**options, **_instruction(given)},
        reranker=given.get("reranker"),
        reranker_options={key.removeprefix(_PREFIX): given[key] for key in given if key.startswith(_PREFIX)},
        candidates=given.get("candidates"),
    )


def _of_text(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise ConfigError(f"the run {text!r} is not JSON: {error}") from None
    given: dict[str, Any] = {}
    for place, part in enumerate(text.split(",")):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not part.strip():
            continue
        if place == 0 and not equals and key.replace("-", "_") not in _KEYS:
            key, value = "model", key
        if key in given:
            raise ConfigError(f"the run {text!r} has {key!r} twice")
        given[key] = value if equals or key == "model" else True
    return given


def _meant(key: str) -> str:
    near = get_close_matches(key, _KEYS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _typed(key: str, value: Any) -> Any:
    """Return a value as its option takes it; texts are read as what they stand for.

    Raises:
        ConfigError: it cannot be that.
    """
    option = _KEYS[key]
    try:
        typed = _read(option.type, value) if isinstance(value, str) else value
    except (ValueError, KeyError):
        typed = ...
    if typed is ... or not (typed is None or option.check(typed)):
        needs = f" ({key}=...)" if value is True else f", not {value!r}" * (option.decides != "secret")
        raise ConfigError(f"{key} must be {option.wanted}{needs}")
    return typed


def _read(kind: Any, text: str) -> Any:
    if kind in (int, float):
        return kind(text)
    if kind is bool:
        return _SWITCHES[text.lower()]
    return tuple(map(float, text.split(":"))) if kind == "weights" else text


def _search(given: Mapping[str, Any]) -> tuple[Search, Hybrid]:
    how = given.get("hybrid")
    how = _SWITCHES.get(how.lower(), how) if isinstance(how, str) else how
    chosen = [name for name in get_args(Search) if (how if name == "hybrid" else given.get(name))]
    if len(chosen) > 1:
        raise ConfigError(f"a run searches by one of {', '.join(get_args(Search))}, not by {' and '.join(chosen)}")
    hybrid = _hybrid(how) if isinstance(how, str) else how
    return (chosen or ["dense"])[0], hybrid if isinstance(hybrid, Hybrid) else Hybrid()


def _hybrid(text: str) -> Hybrid:
    """Return how scores are fused: ``rrf``, ``0.4:0.2``, ``rrf:1:0.5``."""
    fusion, *weights = text.split(":") if text[:1].isalpha() else ("sum", *text.split(":"))
    try:
        return Hybrid(fusion, tuple(map(float, weights)) or None)  # type: ignore[arg-type]
    except ValueError as error:
        why = f": {error}" if isinstance(error, ConfigError) else ""
        raise ConfigError(f"hybrid= takes rrf, or weights of dense and sparse as 0.4:0.2, not {text!r}{why}") from None


def _instruction(given: Mapping[str, Any]) -> dict[str, str]:
    text = given.get("instruction")
    if text is None or text is True or text == "on":
        return {}
    if "query_instruction" in given:
        raise ConfigError("instruction and query_instruction are the same: pass one of the two")
    if text is not False and not isinstance(text, str):
        raise ConfigError(f"instruction must be on, off or a text, not {text!r}")
    return {"query_instruction": "" if text in (False, "off") else str(text)}


def _label(model: Any, given: Mapping[str, Any]) -> str:
    """Return what was asked for, without secrets and without options that change no vector."""
    parts = [str(model)]
    for key, value in given.items():
        option = _KEYS[key]
        if key in ("model", "name", "dense") or value is False or option.decides != "vectors":
            continue
        parts.append(key if value is True else f"{key}={value}")
    return " ".join(parts)
