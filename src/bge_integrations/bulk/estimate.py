"""What a job would come to, before anything is sent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.encoder import Encoder
from .readers import read_rows
from .rows import Columns, RowParser, cut_shards
from .sources import find_inputs
from .splitting import TextSplitter, find_counter

_SAMPLE = 256
_SAMPLE_SECONDS = 3.0
_MAX_INPUTS = 64  # texts of a request, where nothing else is known


@dataclass
class Plan:
    """What a job would come to; None where that cannot be known.

    Attributes:
        rows: rows of the input, bad ones included.
        errors: rows that cannot be embedded.
        characters: of the texts.
        tokens: that the model would read, special tokens included.
        cut: texts that are longer than the model reads.
        seconds: time to embed them.
        how: where ``seconds`` comes from.
        usd: price of the tokens at the host's stated rate.
    """

    rows: int = 0
    errors: int = 0
    characters: int = 0
    tokens: int | None = 0
    cut: int | None = 0
    seconds: float | None = None
    how: str = ""
    usd: float | None = None


def plan_files(inputs: str | Sequence[str], encoder: Encoder, *, columns: Columns | None = None) -> Plan:
    """Count rows, tokens, texts that would be cut, time and price; nothing is sent to any host.

    An engine on this machine embeds some texts of the input to see how fast it is.

    Raises:
        ConfigError: an input cannot be read.
    """
    count, plan, sample = find_counter(encoder), Plan(), _Sample()
    split = TextSplitter(count, encoder.card.max_tokens) if count else None
    parser = RowParser(columns or Columns(), blank=encoder.blank == "keep", split=split)
    for shard in cut_shards(read_rows(find_inputs(inputs), parser), 1000):
        texts = [row.text for row in shard.good]
        plan.rows, plan.errors = plan.rows + len(shard.rows), plan.errors + len(shard.bad)
        plan.characters += sum(map(len, texts))
        sample.add(texts)
        _add_tokens(plan, count, texts, encoder.card.max_tokens)
    if count is None:
        plan.tokens = plan.cut = None
    _add_time(plan, encoder, sample.texts)
    if encoder.price is not None and plan.tokens is not None:
        plan.usd = encoder.price * plan.tokens / 1e6
    return plan


def _add_tokens(plan: Plan, count: Callable[[Sequence[str]], list[int]] | None, texts: list[str], limit: int) -> None:
    if count is None or not texts:
        return
    counts = count(texts)
    plan.tokens = (plan.tokens or 0) + sum(min(number, limit) for number in counts)
    plan.cut = (plan.cut or 0) + sum(number > limit for number in counts)


class _Sample:
    """Texts from all over the input, each with the same chance."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._seen, self._random = 0, random.Random(0)

    def add(self, texts: Sequence[str]) -> None:
        for text in texts:
            self._seen += 1
            if len(self.texts) < _SAMPLE:
                self.texts.append(text)
            elif (place := self._random.randrange(self._seen)) < _SAMPLE:
                self.texts[place] = text


def _add_time(plan: Plan, encoder: Encoder, sample: Sequence[str]) -> None:
    if encoder.remote:
        plan.seconds, plan.how = _paced(plan, encoder.describe())
    elif not sample:
        plan.seconds, plan.how = 0.0, "nothing to embed"
    else:
        rate, texts = _measured(encoder.engine, sample)
        plan.seconds = (plan.characters / rate) if rate else None
        plan.how = f"from {texts} texts of it, embedded on this machine"


def _paced(plan: Plan, host: Mapping[str, Any]) -> tuple[float | None, str]:
    good = plan.rows - plan.errors
    times = []
    if "requests_per_minute" in host:
        requests = -(-good // host.get("max_inputs", _MAX_INPUTS))
        times.append(requests / host["requests_per_minute"] * 60)
    if "tokens_per_minute" in host and plan.tokens is not None:
        times.append(plan.tokens / host["tokens_per_minute"] * 60)
    if not times:
        return None, "the host's speed is not known before it is asked"
    return max(times), "at the pace that was set; the host may be slower"


def _measured(engine: Encoder, sample: Sequence[str]) -> tuple[float, int]:
    """Return characters per second on this machine, and by how many texts that is known."""
    engine.submit(sample[:4], role="document", on_truncated=lambda _: None).result()  # loads the model
    done = size = 0
    spent = 0.0
    while done < len(sample) and spent < _SAMPLE_SECONDS:
        part = sample[done : done + max(16, done)]
        began = time.perf_counter()
        engine.submit(part, role="document", on_truncated=lambda _: None).result()
        spent += time.perf_counter() - began
        done, size = done + len(part), size + sum(map(len, part))
    return size / spent, done
