"""What a host does with requests: order, duplicates, size, blanks, usage figures, repeats, encodings, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ..catalog.golden import read_golden
from ..core.encoder import Vectors
from .probes import CountTokens, long_text
from .report import Finding
from .wire import Direct, RawAnswer, Wire, decode

Host = Wire | Direct
_TEXTS = (
    "Paris is the capital of France.",
    "how do I reset my password",
    "She sold the boat and kept the oars.",
    "為什麼天空是藍色的",
    "def add(a, b): return a + b",
    "42",
)
# The same text in another batch differs by float16 arithmetic at most.
_SAME = 0.999
# A vector read wrongly is nowhere near; a host that is not quite deterministic is.
_SIMILAR = 0.9
_BATCHES = (1, 8, 32)
_CAPS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
# A host that computes on a CPU would need minutes for a text beyond the 8,192 tokens of bge-m3.
_LONGEST = 2048


def look_at(host: Host, count: CountTokens | None = None) -> tuple[Finding, ...]:
    """Ask a host some forty small requests and say what it does.

    Args:
        host: takes the requests.
        count: counts tokens as the model does, to compare with the host's figures.
    """
    found = [order(host), duplicates(host), determinism(host), speed(host)]
    if isinstance(host, Wire):
        found += [lengths(host), cap(host), over_long(host), blank(host), usage(host, count)]
    if not host.space:
        found += [encoding(host), name(host)]
    return tuple(found)


def order(host: Host) -> Finding:
    """See whether vectors come back in the order of the texts."""
    batch = _largest(host, _TEXTS)
    if batch is None:
        return Finding("order", None, "could not be checked (one text per request)", {})
    together = batch.vectors
    alone = _stack([host.post([text]) for text in _TEXTS[: len(batch.rows)]])
    if together is None or alone is None or together.shape != alone.shape:
        return Finding("order", False, f"several texts: {_said(batch)}", {"status": batch.status})
    nearest = (_unit(together) @ _unit(alone).T).argmax(axis=1).tolist()
    data = {"order": nearest, "rows_sorted": batch.in_order}
    if nearest != list(range(len(alone))):
        return Finding("order", False, f"vectors belong to other texts: {nearest}", data)
    return Finding("order", True, "kept" if batch.in_order else "rows are shuffled, with right indexes", data)


def duplicates(host: Host) -> Finding:
    """See whether the same text several times in a request gets a vector each."""
    answer = host.post([_TEXTS[0], _TEXTS[1], _TEXTS[0], _TEXTS[0]])
    vectors, rows = answer.vectors, len(answer.rows)
    if answer.status != 200:
        return Finding("duplicates", None, f"could not be checked: {_said(answer)}", {"status": answer.status})
    if vectors is None or rows != 4:
        return Finding("duplicates", False, f"{rows} vectors for 4 texts, 3 of them alike", {"rows": rows})
    cosines = _unit(vectors) @ _unit(vectors)[0]
    alike = bool(min(cosines[2], cosines[3]) > _SAME > cosines[1])
    says = "a vector each" if alike else "the same text gets different vectors within one request"
    return Finding("duplicates", alike, says, {"cosines": [round(float(c), 6) for c in cosines]})


def determinism(host: Host) -> Finding:
    """See whether the same request gets the same vectors again."""
    vectors = _stack([host.post([_TEXTS[2]]) for _ in range(4)])
    if vectors is None:
        return Finding("determinism", False, "no vectors were returned", {})
    exact = bool((vectors == vectors[0]).all())
    cosine = float((_unit(vectors) @ _unit(vectors)[0]).min())
    says = "bit for bit" if exact else f"cosine {cosine:.6f} at least"
    return Finding("determinism", cosine > _SAME, says, {"exact": exact, "cosine": cosine})


def speed(host: Host) -> Finding:
    """Measure how long requests of several sizes take; the best of three."""
    seconds = {}
    for size in _BATCHES:
        texts = [f"{i}: the quick brown fox jumps over the lazy dog, and then it sleeps" for i in range(size)]
        times = [answer.seconds for answer in (host.post(texts) for _ in range(3)) if answer.status == 200]
        if times:
            seconds[size] = min(times)
    says = "; ".join(f"{n} in {1000 * s:.0f} ms ({n / s:.0f} texts/s)" for n, s in seconds.items())
    data = {str(n): {"seconds": s, "texts_per_second": n / s} for n, s in seconds.items()}
    return Finding("speed", None, says or "no answers", data)


def lengths(host: Host) -> Finding:
    """See whether vectors have length 1."""
    vectors = host.post(_TEXTS[:3]).vectors
    if vectors is None:
        return Finding("normalisation", False, "no vectors were returned", {})
    found = np.linalg.norm(vectors.astype(np.float64), axis=1)
    low, high = float(found.min()), float(found.max())
    if 0.99 < low <= high < 1.01:
        return Finding("normalisation", True, "vectors of length 1", {"lengths": [low, high]})
    says = f"no normalisation: vectors of length {low:.3g} to {high:.3g}; they are made unit length here"
    return Finding("normalisation", None, says, {"lengths": [low, high]})


def cap(host: Host) -> Finding:
    """See how many texts a request may have; the largest first, since a refusal costs nothing."""
    refused = None
    for size in _CAPS:
        answer = host.post([str(i) for i in range(size)])
        data = {"taken": size, "refused": refused}
        if answer.status == 200 and len(answer.rows) != size:
            return Finding("batch cap", False, f"{len(answer.rows)} vectors were returned for {size} texts", data)
        if answer.status == 200:
            more = f"; refuses {refused}" if refused else ", perhaps more"
            return Finding("batch cap", None, f"accepts {size} texts in a request{more}", data)
        refused = size
    return Finding("batch cap", False, "refuses even a single text", {"taken": 0, "refused": refused})


def over_long(host: Host) -> Finding:
    """See what happens to a text longer than the model reads: refused, cut, or something else."""
    if host.card.max_tokens > _LONGEST:
        return Finding("over-long text", None, f"not tried: the model reads {host.card.max_tokens} tokens", {})
    head = long_text(2 * host.card.max_tokens)
    answer = host.post([f"{head} and the end is a"])
    data = {"status": answer.status}
    if answer.status != 200:
        return Finding("over-long text", None, f"refused ({answer.status})", data)
    vectors = _stack([answer, host.post([f"{head} {' '.join(['banana'] * 40)}"])])
    if vectors is None:
        return Finding("over-long text", False, "no vectors were returned", data)
    cosine = float(_unit(vectors)[0] @ _unit(vectors)[1])
    data["cosine"] = cosine  # type: ignore[assignment]
    if cosine > 1 - 1e-4:
        return Finding("over-long text", None, "silently truncated", data)
    return Finding("over-long text", None, f"not cut: its end changes the vector (cosine {cosine:.4f})", data)


def blank(host: Host) -> Finding:
    """See what a blank text gets."""
    answers = {"empty": host.post([""]), "space": host.post([" "])}
    data = {kind: answer.status for kind, answer in answers.items()}
    says = ", ".join(f"{kind}: {_said(answer)}" for kind, answer in answers.items())
    return Finding("blank text", None, says, data)


def usage(host: Host, count: CountTokens | None) -> Finding:
    """Compare the host's count of tokens with the model's."""
    known = _counts(host, count)
    told = {text: tokens for text in known if (tokens := host.post([text]).prompt_tokens) is not None}
    if not told:
        return Finding("token count", None, "the host gives no usage figures", {})
    surplus = sorted({tokens - known[text] for text, tokens in told.items()})
    data = {"surplus": surplus}
    if surplus == [0]:
        return Finding("token count", True, "as the model counts", data)
    if surplus == [-2]:
        return Finding("token count", True, "as the model counts, without the two special tokens", data)
    if len(surplus) == 1 and surplus[0] > 0:
        says = f"{surplus[0]} tokens more than each text has: does the host put a prompt in front of it?"
        return Finding("token count", False, says, data)
    return Finding("token count", None, f"not the model's: {surplus[0]:+d} to {surplus[-1]:+d} tokens", data)


def _counts(host: Host, count: CountTokens | None) -> dict[str, int]:
    texts = [*read_golden().token_counts, *_TEXTS]
    if count is not None:
        return dict(zip(texts, count(texts), strict=True))
    english = host.card.id.startswith("BAAI/bge-") and host.card.languages == ("en",) and host.card.pooling == "cls"
    return dict(read_golden().token_counts) if english else {}


def encoding(host: Host) -> Finding:
    """See which of the two encodings of vectors the host knows."""
    plain, packed = host.post(_TEXTS[:1]), host.post(_TEXTS[:1], encoding="base64")
    if packed.status != 200:
        return Finding("encoding_format", None, f"float only; base64 is refused ({packed.status})", {"base64": False})
    vector, expected = decode(next(iter(packed.rows), None)), plain.vectors
    if vector is None:
        return Finding("encoding_format", None, "float only; base64 is ignored", {"base64": False})
    right = expected is not None and vector.shape == expected[0].shape and _cosine(vector, expected[0]) > _SIMILAR
    return Finding("encoding_format", right, "float and base64" if right else "base64 is broken", {"base64": right})


def name(host: Host) -> Finding:
    """Note which model the host says that it served."""
    answer = host.post(_TEXTS[:1])
    said = answer.body.get("model") if isinstance(answer.body, dict) else None
    return Finding("model in the answer", None, f"{said!r}", {"model": said})


def _largest(host: Host, texts: Sequence[str]) -> RawAnswer | None:
    """Return the answer for as many of the texts as a request may have, at least two."""
    for size in (len(texts), len(texts) // 2, 2):
        answer = host.post(texts[:size])
        if answer.status == 200:
            return answer
    return None


def _stack(answers: Sequence[RawAnswer]) -> Vectors | None:
    rows = [answer.vectors for answer in answers]
    if any(row is None or len(row) != 1 for row in rows):
        return None
    shapes = {row.shape for row in rows if row is not None}
    return np.concatenate([row for row in rows if row is not None]) if len(shapes) == 1 else None


def _unit(vectors: Vectors) -> Vectors:
    with np.errstate(all="ignore"):
        wide = vectors.astype(np.float64)
        unit = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return cast("Vectors", np.nan_to_num(unit).astype(np.float32))


def _cosine(one: Vectors, other: Vectors) -> float:
    return float(_unit(one) @ _unit(other))


def _said(answer: RawAnswer) -> str:
    if answer.status != 200:
        return f"refused ({answer.status})" if answer.status else f"no answer ({answer.text})"
    vectors = answer.vectors
    if vectors is None:
        return "an answer without vectors"
    return f"{len(vectors)} vectors" if np.isfinite(vectors).all() and vectors.any() else "a zero or broken vector"
