"""What a job would come to, before it is begun: texts, tokens, time, and what it would cost where."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ..catalog import find_provider, who_serves
from ..core.encoder import Encoder
from ..errors import ConfigError
from .chunking import chunker_for
from .folder import read_manifest
from .known import Known, text_digests
from .manifest import check_same
from .readers import read_rows
from .rows import Columns, RowParser, cut_shards
from .sources import find_inputs
from .splitting import TextSplitter, find_counter
from .staging import staged_shards

__all__ = ["PROBE_TEXTS", "Plan", "estimate", "plan_files"]

PROBE_TEXTS = 64
_TIMED_TEXTS = 256
_TIMED_SECONDS = 3.0
_MAX_INPUTS = 64  # texts of a request, where nothing else is known


@dataclass
class Plan:
    """An estimate of a job; None where a value cannot be known.

    Attributes:
        rows: rows of the input (chunks, where it is chunked), bad ones included.
        errors: rows that cannot be embedded.
        kept: of an update, rows whose text has a vector in the folder; all that follows is of the others.
        characters: of the texts.
        tokens: that the model would read, special tokens included.
        tokens_error: half the width of the 95 % interval of ``tokens``; 0 where all texts were counted.
        cut: texts that are longer than the model reads; from a sample, their share of it times the texts.
        seconds: time to embed them.
        how: where ``seconds`` comes from.
        usd: price of the tokens at this encoder's host, or at the price that was passed.
        usd_by_provider: price of the tokens at each provider of the catalogue that serves the model; None where it
            states no price.
    """

    rows: int = 0
    errors: int = 0
    kept: int | None = None
    characters: int = 0
    tokens: int | None = None
    tokens_error: int | None = None
    cut: int | None = None
    seconds: float | None = None
    how: str = ""
    usd: float | None = None
    usd_by_provider: dict[str, float | None] = field(default_factory=dict)


def estimate(
    inputs: str | Sequence[str],
    encoder: Encoder,
    *,
    columns: Columns | None = None,
    chunk: int | None = None,
    overlap: int = 0,
    update: str | Path | None = None,
    sample: int | None = None,
    probe: bool = False,
    usd_per_million_tokens: float | None = None,
) -> Plan:
    """Count rows, tokens, texts that would be truncated, time and price, before a job is begun.

    Without ``probe``, nothing is sent to any host. An engine on this machine embeds some texts of the input to see how
    fast it is.

    Args:
        inputs: as of ``embed_files``.
        encoder: what would embed them.
        columns: as of ``embed_files``.
        chunk: as of ``embed_files``.
        overlap: as of ``embed_files``.
        update: a folder of shards; texts that have a vector there are left out, as ``embed_files(update=True)`` would.
        sample: count the tokens of so many texts, chosen at random, instead of all; all are read all the same.
        probe: embed 64 texts, chosen at random, for the time; where the model's tokenizer is not here, for the tokens
            as well, from what the host counts. A host bills them.
        usd_per_million_tokens: price instead of the catalogue's.

    Raises:
        ConfigError: an input cannot be read, ``sample`` is not at least 2, or the shards in ``update`` are of other
            columns or chunks.
        SpaceMismatchError: the folder of ``update`` holds vectors of another space.
        HostError: the probe failed.
    """
    if sample is not None and sample < 2:
        raise ConfigError(f"sample must be at least 2 texts, not {sample}")
    count, plan = find_counter(encoder), Plan()
    split = TextSplitter(count, encoder.card.max_tokens) if count else None
    chunker = chunker_for(encoder, chunk, overlap)
    parser = RowParser(columns or Columns(), blank=encoder.blank == "keep", split=split, chunk=chunker)
    timed, counted = _Sample(PROBE_TEXTS if probe else _TIMED_TEXTS), _Sample(sample or 0)
    tokens = _Tokens(encoder.card.max_tokens)
    known = _known_texts(Path(update), encoder, parser) if update else None
    plan.kept = None if known is None else 0
    besides = Path(update) if update else None
    for shard in cut_shards(read_rows(find_inputs(inputs, besides, documents=chunk is not None), parser), 1000):
        texts = [row.text for row in shard.good]
        plan.rows, plan.errors = plan.rows + len(shard.rows), plan.errors + len(shard.bad)
        if known is not None:
            new = known.find(text_digests(texts)) < 0
            plan.kept = (plan.kept or 0) + len(texts) - int(new.sum())
            texts = [text for text, is_new in zip(texts, new, strict=True) if is_new]
        plan.characters += sum(map(len, texts))
        timed.add(texts)
        counted.add(texts)
        if count and sample is None and texts:
            tokens.add(texts, count(texts))
    if count and sample is not None and counted.texts:
        tokens.add(counted.texts, count(counted.texts))
    good = plan.rows - plan.errors - (plan.kept or 0)
    if count:
        tokens.fill(plan, good)
    if probe and timed.texts:
        _probe(plan, encoder, timed.texts, known=count is not None)
    else:
        _add_time(plan, encoder, timed.texts)
    _add_prices(plan, encoder, usd_per_million_tokens)
    return plan


def _known_texts(folder: Path, encoder: Encoder, parser: RowParser) -> Known | None:
    """Return which texts an update of a folder would not embed; None where there are no shards."""
    record = read_manifest(folder)
    if record is None or not record.shards:
        return None
    options, chunk = record.job.get("options", {}), parser.chunk
    now = {"columns": json.loads(json.dumps(vars(parser.columns))), "blank": parser.blank}
    now |= {"chunk": chunk and chunk.size, "overlap": chunk and chunk.overlap}
    check_same(
        {"stamp": record.job["stamp"], "options": {name: options.get(name) for name in now}},
        {"stamp": encoder.stamp(sparse="sparse_space" in record.job["stamp"]), "options": now},
        folder,
        update=True,
    )
    files = [folder / line["file"] for line in record.shards]
    return Known([file for file in files if file.is_file()], staged_shards(folder), [])


plan_files = estimate
"""The first name of ``estimate``."""


class _Tokens:
    """Token counts of some or all texts, and what they say of all texts."""

    def __init__(self, limit: int) -> None:
        self.limit, self.texts, self.tokens, self.cut = limit, 0, 0, 0
        self.sizes: list[tuple[int, int]] = []

    def add(self, texts: Sequence[str], counts: Sequence[int]) -> None:
        read = [min(number, self.limit) for number in counts]
        self.texts, self.tokens = self.texts + len(texts), self.tokens + sum(read)
        self.cut += sum(number > self.limit for number in counts)
        if len(self.sizes) < 100_000:  # a sample's; of all texts nobody asks for the error
            self.sizes += zip(map(len, texts), read, strict=True)

    def fill(self, plan: Plan, good: int) -> None:
        """Note tokens and cut texts of ``good`` texts, by the ratio of tokens to characters in those counted."""
        if self.texts == good:
            plan.tokens, plan.tokens_error, plan.cut = self.tokens, 0, self.cut
            return
        plan.tokens, plan.tokens_error = _ratio(self.sizes, plan.characters, good)
        plan.cut = round(self.cut * good / self.texts)


def _ratio(sizes: Sequence[tuple[int, int]], characters: int, texts: int) -> tuple[int, int]:
    """Return tokens and their error by the ratio estimator (Cochran, Sampling Techniques, 1977, chapter 6)."""
    lengths, tokens = np.array(sizes, np.float64).T
    ratio = tokens.sum() / lengths.sum()
    n = len(sizes)
    residuals = tokens - ratio * lengths
    deviation = sqrt((residuals @ residuals) / (n - 1) * (1 - n / texts) / n) if n > 1 else 0.0
    return round(ratio * characters), round(1.96 * texts * deviation)


class _Sample:
    """A random sample of texts, each with the same chance (reservoir sampling)."""

    def __init__(self, size: int) -> None:
        self.size, self.texts = size, list[str]()
        self._seen, self._random = 0, random.Random(0)  # the same input gives the same estimate

    def add(self, texts: Sequence[str]) -> None:
        for text in texts:
            self._seen += 1
            if len(self.texts) < self.size:
                self.texts.append(text)
            elif (place := self._random.randrange(self._seen)) < self.size:
                self.texts[place] = text


def _probe(plan: Plan, encoder: Encoder, texts: Sequence[str], *, known: bool) -> None:
    engine = encoder.engine
    _embed(engine, texts[:1])  # loads a model, opens a connection
    before, began = engine.usage.tokens, time.perf_counter()
    _embed(engine, texts)
    spent, tokens = time.perf_counter() - began, engine.usage.tokens - before
    size = sum(map(len, texts))
    plan.seconds = spent * plan.characters / size
    plan.how = f"from {len(texts)} texts that were embedded in {spent:.2f} s, one call"
    if not known and tokens:
        plan.tokens, plan.tokens_error = round(tokens * plan.characters / size), None
    paced, how = _paced(plan, encoder.describe()) if encoder.remote else (None, "")
    if paced is not None and paced > plan.seconds:
        plan.seconds, plan.how = paced, how


def _embed(engine: Encoder, texts: Sequence[str]) -> None:
    engine.submit(texts, role="document", on_truncated=lambda _: None).result()


def _add_time(plan: Plan, encoder: Encoder, sample: Sequence[str]) -> None:
    if encoder.remote:
        plan.seconds, plan.how = _paced(plan, encoder.describe())
    elif not sample:
        plan.seconds, plan.how = 0.0, "nothing to embed"
    else:
        rate, texts = _measured(encoder.engine, sample)
        plan.seconds = (plan.characters / rate) if rate else None
        plan.how = f"from {texts} of its texts, embedded on this machine"


def _paced(plan: Plan, host: Mapping[str, Any]) -> tuple[float | None, str]:
    good = plan.rows - plan.errors - (plan.kept or 0)
    times = []
    if "requests_per_minute" in host:
        requests = -(-good // host.get("max_inputs", _MAX_INPUTS))
        times.append(requests / host["requests_per_minute"] * 60)
    if "tokens_per_minute" in host and plan.tokens is not None:
        times.append(plan.tokens / host["tokens_per_minute"] * 60)
    if not times:
        return None, "the host's speed is unknown; --probe measures it"
    return max(times), "at the rate limit that was set; the host may be slower"


def _measured(engine: Encoder, sample: Sequence[str]) -> tuple[float, int]:
    """Return characters per second on this machine, and how many texts that was measured with."""
    _embed(engine, sample[:4])  # loads the model
    done = size = 0
    spent = 0.0
    while done < len(sample) and spent < _TIMED_SECONDS:
        part = sample[done : done + max(16, done)]  # twice as many each time: small batches are slower
        began = time.perf_counter()
        _embed(engine, part)
        spent += time.perf_counter() - began
        done, size = done + len(part), size + sum(map(len, part))
    return size / spent, done


def _add_prices(plan: Plan, encoder: Encoder, price: float | None) -> None:
    price = encoder.price if price is None else price
    if plan.tokens is None:
        return
    plan.usd = None if price is None else price * plan.tokens / 1e6
    for name in who_serves(encoder.card.id):
        offer = find_provider(name).offer(encoder.card.id)
        stated = offer.usd_per_million_tokens if offer else None
        plan.usd_by_provider[name] = None if stated is None else stated * plan.tokens / 1e6
