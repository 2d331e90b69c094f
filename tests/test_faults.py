"""Each fault over real sockets: once at the encoder in both protocols, and one of each kind through the adapters.

For each: the number of requests, the error's type and what it carries, what the cache holds, what the same call sends
when it is made again, and that the key is nowhere.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

import rig as faults
from bge_integrations import errors
from fault_faces import FACES, Face, Outcome, leaks
from rig import Rig, cap, cut, first_is, latency, raw, refuse_marked, reset_peer, rows, spoilt, status

TEXTS = [f"document number {i}" for i in range(8)]
MARK = "poison"


def marked(at: int = 5) -> list[str]:
    return [f"{text} {MARK}" if i == at else text for i, text in enumerate(TEXTS)]


@pytest.fixture
def face_of(request, tmp_path):
    name = getattr(request, "param", "encoder")
    made = []

    def make(host: Rig, **options: Any) -> Face:
        where = {"provider": "space", "base_url": host.space_url} if options.pop("space", 0) else {"base_url": host.url}
        options = {**where, "max_concurrency": 1, "max_retries": 3, **options}
        made.append(Face(name, tmp_path / "cache.sqlite", options))
        return made[-1]

    yield make
    for face in made:
        face.close()


@dataclass
class Case:
    """What is done to a call, and what is to come of it.

    Attributes:
        space: whether the Space protocol can have this fault too; it knows no index, no base64 and no other lengths.
        adapters: whether it stands for its kind at the adapters.
    """

    name: str
    script: tuple[Any, ...] = ()
    default: Any = None
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    options: dict[str, Any] = field(default_factory=dict)
    error: type[errors.BGEError] | None = None
    requests: int | tuple[int, int] = 1
    check: Callable[[Outcome], object] = lambda _: True
    finished: set[int] = field(default_factory=set)
    space: bool = True
    adapters: bool = False


TRANSIENT = {
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "429 Retry-After 0": status(429, Retry_After=0),
    "429 Retry-After -5": status(429, Retry_After=-5),
    "429 Retry-After inf": status(429, Retry_After="inf"),
    "429 Retry-After nonsense": status(429, Retry_After="soon"),
    "429 Retry-After ms": status(429, Retry_After_Ms=20),
    "429 Retry-After fraction": status(429, Retry_After=0.02),
    "500": status(500),
    "502 html": raw("<html>Bad gateway</html>", "text/html", 502),
    "503 Retry-After 0": status(503, Retry_After=0),
    "529": status(529),
    "reset before the head": reset_peer(),
    "reset in the body": reset_peer(100),
    "short body": cut(),
    "short body, nearly whole": cut(0.99),
    "JSON cut, honest length": cut(honest=True),
    "empty body": raw(b""),
    "HTML with 200": raw("<html>Sign in</html>", "text/html"),
    "not JSON": raw("hello"),
    "JSON null": raw("null"),
    "one row less": rows(lambda d: d[:-1]),
    "one row more": rows(lambda d: [*d, {**d[0], "index": len(d)}]),
    "no rows": rows(lambda d: []),
    "NaN": spoilt(first_is("@NaN@")),
    "1e999": spoilt(first_is("@1e999@")),
    "null in a row": spoilt(first_is(None)),
    "text in a row": spoilt(first_is("1.0")),
    "a row is null": spoilt(lambda row: None),
    "zero vector": spoilt(lambda row: [0.0] * len(row)),
    "ragged": rows(lambda d: [{**d[0], "embedding": d[0]["embedding"][:-1]}, *d[1:]]),
}
TRANSIENT_AT_OPENAI = {
    "JSON list": raw("[]"),
    "no data": raw('{"object": "list"}'),
    "data null": raw('{"object": "list", "data": null}'),
    "an index twice": rows(lambda d: [*d[:-1], {**d[-1], "index": 0}]),
    "some without index": rows(lambda d: [d[0], *({"embedding": row["embedding"]} for row in d[1:])]),
    "index out of range": rows(lambda d: [{**row, "index": row["index"] + 1} for row in d]),
    "index is text": rows(lambda d: [{**row, "index": "x"} for row in d]),
    "true in a row": spoilt(first_is(True)),
    "bad base64": spoilt(lambda row: "!!!" + "A" * 7),
    "base64 of half a row": spoilt(lambda row: "AAAA" * len(row)),
}


def transient() -> list[Case]:
    def case(name: str, fault: Any, **more: Any) -> Case:
        return Case(f"{name}, then well", (fault,), requests=2, **more)

    shown = ("429", "reset in the body", "HTML with 200", "one row less")
    everywhere = [case(name, fault, adapters=name in shown) for name, fault in TRANSIENT.items()]
    return everywhere + [case(name, fault, space=False) for name, fault in TRANSIENT_AT_OPENAI.items()]


def fatal() -> list[Case]:
    quota = status(429, body=b'{"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}')
    refused, auth = errors.RequestRefusedError, errors.AuthenticationError
    table: list[tuple[str, Any, type[errors.BGEError]]] = [
        ("400", status(400, "no such thing"), refused),
        ("401", status(401), auth),
        ("401 with the key in it", faults.echo_key(), auth),
        ("400 with the key in it", faults.echo_key(400), refused),
        ("402", status(402), errors.QuotaError),
        ("403", status(403), auth),
        ("404", status(404), refused),
        ("404 with the key in it", faults.echo_key(404), refused),
        ("quota exhausted", quota, errors.QuotaError),
        ("error object with 200", raw('{"error": {"message": "overloaded"}}'), errors.HostError),
        ("error object with 200 and the key in it", faults.echo_key(200), errors.BadAnswerError),
        ("400 with the texts in it", echo_texts, refused),
        ("redirect within the host", redirect_home, errors.HostError),
    ]
    shown = ("401 with the key in it", "quota exhausted")
    return [Case(name, default=fault, error=error, adapters=name in shown) for name, fault, error in table]


def echo_texts(exchange: Any) -> None:
    status(400, f"not understood: {exchange.texts}")(exchange)


def echo_all(exchange: Any) -> None:
    raw(f"cannot serve {exchange.request.headers['authorization']} {exchange.texts}")(exchange)


def redirect_home(exchange: Any) -> None:
    faults.redirect(307, exchange.rig.space_url + "/elsewhere")(exchange)


def lasting() -> list[Case]:
    down, bad = errors.HostUnavailableError, errors.BadAnswerError
    few = {"max_retries": 1}
    return [
        Case("429 for ever", default=status(429), options=few, error=errors.RateLimitError, requests=2),
        Case("500 for ever", default=status(500), options=few, error=down, requests=2, adapters=True),
        Case("reset for ever", default=reset_peer(), options=few, error=down, requests=2),
        Case("500, no retries", default=status(500), options={"max_retries": 0}, error=down, requests=1),
        Case("empty for ever", default=raw(b""), options=few, error=bad, requests=(2, 16)),
        Case("key and texts instead of JSON for ever", default=echo_all, options=few, error=bad, requests=(2, 16)),
        Case("HTML for ever", default=raw("<html>", "text/html"), options=few, error=bad, requests=(2, 16)),
        Case("no rows for ever", default=rows(lambda d: []), options=few, error=bad, requests=(2, 16)),
        Case("wrong dimension", default=rows(lambda d: [{**r, "embedding": [*r["embedding"], 1.0]} for r in d]),
             error=bad, requests=(1, 16)),
        # A call that waited for this would not end within the test's time.
        Case("429 beyond the deadline", default=status(429, Retry_After=601), options={"timeout": 600},
             error=errors.RateLimitError, check=lambda o: o.error.retry_after == 601),
        # These three last until the rig closes: the call ends by its own deadline or not at all.
        Case("hang", default=faults.timeout(), options={"timeout": 0.6}, error=errors.DeadlineError, adapters=True),
        Case("slow drip", default=faults.slicer(), options={"timeout": 0.6}, error=errors.DeadlineError),
        Case("never closed", default=faults.slow_close(), options={"timeout": 0.6}, error=errors.DeadlineError),
        Case("gzip bomb", default=faults.gzip_bomb(), error=errors.HostError, requests=(1, 16)),
    ]  # fmt: skip


def harmless() -> list[Case]:
    return [
        Case("rows in reverse", default=rows(lambda d: d[::-1]), space=False, adapters=True),
        Case("no index at all", default=rows(lambda d: [{"embedding": row["embedding"]} for row in d]),
             check=lambda o: len(o.warnings) == 1 and "index" in o.warnings[0], space=False, adapters=True),
        Case("seven times as long", default=spoilt(lambda row: [7 * x for x in row]), space=False),
        Case("slowly", default=latency(0.1)),
        Case("in slices", default=faults.slicer(8192, 0.005)),
        Case("at most 4 (413)", default=cap(4), requests=3, adapters=True),
        Case("at most 4 (422)", default=cap(4, 422), requests=3),
        Case("at most 4 (400)", default=cap(4, 400, "batch size {} exceeds the limit of {}"), requests=3),
        Case("at most 1", default=cap(1), requests=(11, 15)),
    ]  # fmt: skip


def poisoned() -> list[Case]:
    kinds = {
        "NaN": spoilt(first_is("@NaN@"), MARK),
        "1e999": spoilt(first_is("@1e999@"), MARK),
        "null": spoilt(first_is(None), MARK),
        "text": spoilt(first_is("1.0"), MARK),
        "zero": spoilt(lambda row: [0.0] * len(row), MARK),
        "missing row": without_marked,
    }
    rest = set(range(8)) - {5}
    named = [
        Case(f"poison: {name}", default=fault, texts=marked(), error=errors.BadAnswerError, requests=(3, 16),
             check=lambda o: o.error.positions == (5,), finished=rest, adapters=name == "NaN")
        for name, fault in kinds.items()
    ]  # fmt: skip
    large = refuse_marked(MARK, 413, "request entity too large")
    return [*named, Case("one text too large", default=large, texts=marked(), error=errors.TooLargeError,
                         requests=(4, 16), check=lambda o: o.error.positions == (5,), finished=rest,
                         adapters=True)]  # fmt: skip


def without_marked(exchange: Any) -> None:
    data = [row for row, text in zip(exchange.rows(), exchange.texts, strict=True) if MARK not in text]
    exchange.send(exchange.payload(data))


CASES = [*transient(), *fatal(), *lasting(), *harmless(), *poisoned()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fault(case, face_of, caplog):
    hold(case, face_of, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.space], ids=lambda case: case.name)
def test_fault_at_a_space(case, face_of, caplog):
    hold(replace(case, options={**case.options, "space": True}), face_of, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.adapters], ids=lambda case: case.name)
@pytest.mark.parametrize("face_of", FACES, indirect=True)
def test_fault_at_the_adapters(case, face_of, caplog):
    hold(case, face_of, caplog)


def hold(case: Case, face_of: Callable[..., Face], caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    with Rig(default=case.default) as host:
        face = face_of(host, **case.options)
        host.script(*case.script)
        outcome = face.call(case.texts)
        least, most = case.requests if isinstance(case.requests, tuple) else (case.requests, case.requests)
        assert least <= len(host.sent) <= most, [len(texts) for texts in host.sent]
        assert_as_told(case, host, face, outcome)
        assert not leaks(face, outcome.error, caplog.records)
        assert_rest_is_sent(case, host, face)


def assert_as_told(case: Case, host: Rig, face: Face, outcome: Outcome) -> None:
    if case.error is None:
        assert outcome.error is None
        np.testing.assert_allclose(outcome.vectors, host.truth(case.texts), atol=1e-6)
        finished = set(range(len(case.texts)))
    else:
        error, finished = outcome.error, case.finished
        assert isinstance(error, case.error), repr(error)
        assert "bge-small" in error.model
        assert error.provider in (f"127.0.0.1:{host.port}", "space")
        assert error.provider in str(error)
        assert set(error.finished) == finished
        assert set(error.unfinished) == set(range(len(case.texts))) - finished
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        assert not any(text in str(error) for text in case.texts)
    assert case.check(outcome), (outcome, outcome.error and vars(outcome.error))
    assert_holds(face, host, [case.texts[i] for i in sorted(finished)], case.texts)


def assert_holds(face: Face, host: Rig, expected: list[str], asked: list[str]) -> None:
    held = face.held(asked)
    assert list(held) == expected
    for text, vector in held.items():
        np.testing.assert_allclose(vector, host.truth([text])[0], atol=1e-6)


def assert_rest_is_sent(case: Case, host: Rig, face: Face) -> None:
    host.forget().default = None
    outcome = face.call(case.texts)
    assert outcome.error is None
    np.testing.assert_allclose(outcome.vectors, host.truth(case.texts), atol=1e-6)
    finished = case.finished if case.error else set(range(len(case.texts)))
    expected = [text for i, text in enumerate(case.texts) if i not in finished]
    assert [text for texts in host.sent for text in texts] == expected
