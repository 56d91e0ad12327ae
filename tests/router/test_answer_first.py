"""An answer goes out before its request's accounts are closed; an error does not."""

import asyncio
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import pytest
from stagemesh.services.router.answer_first import AnswerFirst

from stagemesh.errors import StagemeshError

from .test_core_infer import ask


@contextmanager
def noted(seen, name):
    seen.append(f"+{name}")
    try:
        yield name
    except BaseException as error:
        seen.append(f"{type(error).__name__} {name}")
        raise
    else:
        seen.append(f"-{name}")


async def test_what_was_entered_is_left_in_reverse_after_the_answer():
    seen = []
    with AnswerFirst() as accounts:
        assert accounts.enter(noted(seen, "a")) == "a"
        accounts.enter(noted(seen, "b"))
        accounts.push(lambda *_: seen.append("pushed"))
    assert seen == ["+a", "+b"]
    await asyncio.sleep(0)
    assert seen == ["+a", "+b", "pushed", "-b", "-a"]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_an_error_leaves_at_once_and_is_told(error):
    seen = []

    def request():
        with AnswerFirst() as accounts:
            for name in "ab":
                accounts.push(lambda kind, *_, name=name: seen.append((name, kind)))
            raise error

    with pytest.raises(error):
        request()
    assert seen == [("b", error), ("a", error)]


@pytest.mark.parametrize("fails", [False, True])
async def test_an_exit_that_fails_keeps_no_other_from_running(fails, caplog):
    seen = []

    def broken(*_):
        raise KeyError("an exit of a test")

    with pytest.raises(ValueError) if fails else noted(seen, "body"), AnswerFirst() as accounts:
        accounts.push(lambda *_: seen.append("left"))
        accounts.push(broken)
        if fails:
            raise ValueError
    await asyncio.sleep(0)
    assert seen[-1] == "left"
    assert "an exit of a test" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
async def test_what_belongs_to_the_task_is_left_with_the_body(fails):
    variable = ContextVar("variable", default="outside")

    @contextmanager
    def inside():
        token = variable.set("inside")
        try:
            yield
        finally:
            variable.reset(token)

    with pytest.raises(ValueError) if fails else noted([], ""), AnswerFirst() as accounts:
        accounts.within(inside())
        assert variable.get() == "inside"
        if fails:
            raise ValueError
    assert variable.get() == "outside"


async def test_a_requests_place_is_free_in_the_next_turn_of_the_loop(mesh):
    core = await mesh.start({"0a": "good"}, task="embed")
    admission = core._gate.admission
    await core.infer(ask(np.array([[1, 2, 3]])), core.context({}))
    assert admission.active == 1, "the answer did not wait for it"
    draining = asyncio.create_task(core.drained())
    await asyncio.sleep(0)
    assert admission.active == 0
    await asyncio.wait_for(draining, 5)


async def test_a_request_that_fails_leaves_nothing_behind_with_its_error(mesh):
    core = await mesh.start({"0a": "missing row"}, task="embed")
    with pytest.raises(StagemeshError):
        await core.infer(ask(np.array([[1, 2, 3]])), core.context({}))
    assert core._gate.admission.active == 0
