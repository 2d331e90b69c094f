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
    error = kind("something went wrong")
    error.add_note("a note")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == error.message == "something went wrong"
        assert twin.args == error.args
        assert twin.__dict__ == error.__dict__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_detail_that_no_error_has_is_a_type_error(kind):
    with pytest.raises(TypeError):
        kind("something went wrong", detial=1)


@pytest.mark.parametrize("kind", HOST, ids=lambda kind: kind.__name__)
def test_host_errors_carry_what_was_finished(kind):
    error = kind("failed", provider="p", model="m", status=503, positions=[3], retry_after=90.0)
    twin = pickle.loads(pickle.dumps(error.after(range(2), [2, 3])))
    assert (twin.provider, twin.model, twin.status, twin.retry_after) == ("p", "m", 503, 90.0)
    assert (twin.positions, twin.finished, twin.unfinished) == ((3,), (0, 1), (2, 3))
    assert twin.retryable is error.retryable is (kind in (errors.RateLimitError, errors.HostUnavailableError))


def test_an_error_about_a_part_of_a_list_becomes_one_about_the_whole_list():
    error = errors.BadAnswerError("a row is zero", positions=[1]).after([0], [1, 2])
    whole = error.at([4, 5, 6])
    assert (whole.positions, whole.finished, whole.unfinished) == ((5,), (4,), (5, 6))
    assert (str(error), str(whole)) == ("a row is zero (text 1)", "a row is zero (text 5)")
    repeated = error.at([[0, 3], [1, 7], [2]])
    assert (repeated.positions, repeated.finished, repeated.unfinished) == ((1, 7), (0, 3), (1, 2, 7))
    assert errors.TooLongError("longer than it reads", positions=[0]).at([[2, 9]]).positions == (2, 9)
    assert errors.ConfigError("no such thing").at([5]).message == "no such thing"


def test_a_longer_message_keeps_all_that_the_error_carries():
    def fail():
        raise errors.HostUnavailableError("down", status=503, positions=[2]) from OSError("refused")

    with pytest.raises(errors.HostError) as caught:
        fail()
    error = caught.value
    longer = error.add("; asleep")
    assert (str(longer), longer.status, longer.positions) == ("down; asleep", 503, (2,))
    assert (longer.args, error.message) == (("down; asleep",), "down")
    assert longer.__cause__ is error.__cause__
    assert longer.__traceback__ is error.__traceback__


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
        error = errors.RateLimitError("wait", status=429, retry_after=1.5).after((0,), (1,))
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
