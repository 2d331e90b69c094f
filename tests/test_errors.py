"""Errors travel between processes whole, and can be caught by both habits."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import bge_integrations
from bge_integrations import errors

ALL = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.BGEError)]
HOST = [kind for kind in ALL if issubclass(kind, errors.HostError)]
HABITS = {
    errors.InputError: ValueError,
    errors.InputTypeError: TypeError,
    errors.ConfigError: ValueError,
    errors.UnknownModelError: ValueError,
    errors.MissingKeyError: ValueError,
    errors.MissingExtraError: ImportError,
    errors.ModelLoadError: OSError,
    errors.SpaceMismatchError: ValueError,
    errors.HostUnavailableError: ConnectionError,
    errors.BadAnswerError: ValueError,
    errors.DeadlineError: TimeoutError,
}


def raise_far_away(error):
    raise error


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle_and_copies(kind):
    error = kind("something went wrong", detail=("a", 1))
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == error.message == "something went wrong"
        assert twin.__dict__ == error.__dict__
        assert twin.detail == ("a", 1)


@pytest.mark.parametrize("kind", HOST, ids=lambda kind: kind.__name__)
def test_host_errors_carry_what_was_finished(kind):
    error = kind(
        "failed",
        provider="p",
        model="m",
        status=503,
        positions=[3],
        retry_after=90.0,
        finished=range(2),
        unfinished=[2, 3],
    )
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.provider, twin.model, twin.status, twin.retry_after) == ("p", "m", 503, 90.0)
    assert (twin.positions, twin.finished, twin.unfinished) == ((3,), (0, 1), (2, 3))


def test_input_errors_carry_positions_through_pickle():
    twin = pickle.loads(pickle.dumps(errors.InputTypeError("text 4 is int", positions=[4])))
    assert twin.positions == (4,)


@pytest.mark.parametrize("kind", HABITS, ids=lambda kind: kind.__name__)
def test_errors_can_be_caught_by_the_built_in_name(kind):
    with pytest.raises(HABITS[kind], match=r"^what happened$") as caught:
        raise kind("what happened")
    assert isinstance(caught.value, errors.BGEError)


def test_an_error_raised_in_a_spawned_process_comes_back_whole():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = errors.RateLimitError("wait", status=429, retry_after=1.5, finished=(0,), unfinished=(1,))
        with pytest.raises(errors.RateLimitError, match="wait") as caught:
            pool.submit(raise_far_away, error).result(timeout=60)
    assert (caught.value.retry_after, caught.value.unfinished) == (1.5, (1,))


def test_the_tree_in_the_docstring_names_every_error_with_its_built_in_bases():
    drawn = errors.__doc__
    for kind in ALL:
        (line,) = [
            line for line in drawn.splitlines() if line.replace("├", "").strip("─└│ ").split(" ")[0] == kind.__name__
        ]
        builtin = [base.__name__ for base in kind.__bases__ if not issubclass(base, errors.BGEError)]
        if kind is not errors.BGEError and builtin:
            assert f"({builtin[0]})" in line, line


def test_every_error_and_warning_is_public():
    warned = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Warning)]
    assert {kind.__name__ for kind in [*ALL, *warned]} <= set(bge_integrations.__all__)
