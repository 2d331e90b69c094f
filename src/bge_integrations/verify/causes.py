"""The known ways in which a host's vectors come to be another space than the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast, get_args

from ..catalog import MODELS
from ..catalog.local_folder import read_modules
from ..catalog.records import ModelCard, Role
from ..core.encoder import Encoder, Vectors
from ..errors import BGEError
from ..local.engine import LocalEngine
from ..options import Pooling


class Candidate(NamedTuple):
    """An explanation and the vectors that it foretells for all probes.

    Attributes:
        same_model: whether the vectors are still that model's.
    """

    name: str
    remedy: str
    vectors: Vectors
    same_model: bool = True


@dataclass(frozen=True)
class Wording:
    """How a query is put to the model.

    Attributes:
        instruction: the instruction; empty where the model wants none.
        query: puts it around a text.
    """

    instruction: str
    query: Callable[[str], str]

    def changed(self, instruction: str, text: str) -> str:
        """Return the query with another instruction in the place of its own."""
        return self.query(text).replace(self.instruction, instruction, 1) if self.instruction else text

    def read(self, text: str, role: Role) -> str:
        """Return what the model ought to read."""
        return self.query(text) if role == "query" else text


Rewrite = Callable[[Wording, str, Role], str]


def _queries(rewrite: Callable[[Wording, str], str]) -> Rewrite:
    return lambda wording, text, role: rewrite(wording, text) if role == "query" else text


def _read(change: Callable[[str], str]) -> Rewrite:
    return lambda wording, text, role: change(wording.read(text, role))


def _question(wording: Wording, text: str) -> str:
    asked = wording.instruction.replace("sentence", "question").replace("句子", "问题")
    return wording.changed(asked, text)


_HOST_ADDS = "the host adds the instruction by itself: if it does so for queries only, pass query_instruction=''"
_HOST_DROPS = "the host leaves the instruction out: at a Space, pass query_instruction= so that it is put in front here"
_HOST_PROMPT = (
    "the host puts a prompt in front of every text: remove it from the server's options (TEI: --default-prompt)"
)
_HOST_EDITS = "the host changes texts before it embeds them: switch that off, or embed all documents again through it"

TEXT_FAULTS: tuple[tuple[str, str, Rewrite], ...] = (
    ("instruction missing", _HOST_DROPS, _queries(lambda _, text: text)),
    ("instruction doubled", _HOST_ADDS, _queries(lambda wording, text: wording.query(wording.query(text)))),
    ("instruction on documents too", _HOST_PROMPT, lambda wording, text, _: wording.query(text)),
    (
        "instruction added to every text",
        _HOST_PROMPT,
        lambda wording, text, role: wording.query(wording.read(text, role)),
    ),
    ("'question' wording", "the host words the instruction with 'question', as older examples do", _queries(_question)),
    (
        "stray space after the instruction",
        "the host joins instruction and query with a space of its own",
        _queries(lambda wording, text: wording.changed(wording.instruction + " ", text)),
    ),
    (
        "lost space after the instruction",
        "the host strips the instruction before it joins it",
        _queries(lambda wording, text: wording.changed(wording.instruction.rstrip(), text)),
    ),
    ("newlines replaced by spaces", _HOST_EDITS, _read(lambda text: text.replace("\n", " "))),
    ("ends of texts stripped", _HOST_EDITS, _read(str.strip)),
    ("lower-cased", _HOST_EDITS, _read(str.lower)),
    ("E5's prefixes", _HOST_EDITS, lambda wording, text, role: f"{_E5[role]}{wording.read(text, role)}"),
)
_E5: dict[Role, str] = {"query": "query: ", "document": "passage: "}

_LIMITS = (64, 128, 256, 384)


def lower_limits(max_tokens: int, longest: int) -> list[int]:
    """Return the limits on tokens that hosts are known to set, below the model's own and what the probes reach."""
    top = min(max_tokens, longest)
    return sorted({limit for limit in (*_LIMITS, top // 2, top * 3 // 4) if 8 <= limit < top}, reverse=True)


@contextmanager
def pooled_otherwise(engine: LocalEngine) -> Iterator[list[tuple[Pooling, LocalEngine]]]:
    """Yield engines over the same weights with the other poolings; closed afterwards."""
    folder = _folder_of(engine)
    plain = folder is not None and not any(kind not in _POOLED for kind, _ in read_modules(folder))
    others = [pooling for pooling in get_args(Pooling) if plain and pooling != engine.card.pooling]
    made = [(pooling, sibling(engine, engine.card, pooling=pooling)) for pooling in others]
    try:
        yield made
    finally:
        for _, other in made:
            other.close()


_POOLED = ("Transformer", "Pooling", "Normalize")


def _folder_of(engine: LocalEngine) -> Path | None:
    from ..local.files import find_folder
    from ..local.select import find_device, usable_weights

    return find_folder(engine.card, usable_weights(engine.settings, find_device(engine.settings)))


def sibling(engine: LocalEngine, card: ModelCard, *, pooling: str | None = None) -> LocalEngine:
    """Return an engine for another card, or with another pooling, that works as this one does."""
    settings = engine.settings
    return type(engine)(
        card,
        query_instruction=engine.query_instruction,
        blank="keep",
        device=settings.device,
        devices=settings.devices,
        backend=settings.backend,
        precision=settings.precision,
        trust_remote_code=settings.trust_remote_code,
        pooling=pooling or settings.pooling,
    )


def other_models(card: ModelCard) -> list[Encoder]:
    """Return engines for the catalogue's other models of the same dimension whose weights are on this machine."""
    found: list[Encoder] = []
    for other in MODELS:
        if other.dimensions == card.dimensions and other.id != card.id:
            engine = LocalEngine(other, blank="keep")
            try:
                here = _folder_of(engine) is not None
            except BGEError:
                here = False
            if here:
                found.append(cast("Encoder", engine))
    return found
