"""Stand-ins for apps of other people: what they answer, in place of an app."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel

from emulator.errors import EmulatorError
from emulator.fleets.gateway_headers import whole
from emulator.network.reply import json_reply, reply
from emulator.runners.body import Body
from emulator.runners.errors import HandshakeRefusedError
from emulator.runners.log import Log
from emulator.runners.runner import State
from emulator.runners.websocket import AppWebSocket
from emulator.sdk_apps import load_app_module

__all__ = ["SomebodyElses", "StandIn", "code_of"]

#: Answers a request that an app of somebody else's would get.
Answer = Callable[[httpx.Request], httpx.Response]

_EVENT_STREAM = "text/event-stream"


class SomebodyElses:
    """The code of a stand-in: nothing but what it answers."""

    max_multiplexing = 1000
    answer: staticmethod[[httpx.Request], httpx.Response]


class StandIn:
    """What a deployment has in place of runners, where nothing has to be booted.

    Args:
        answer: what it answers.
        log: collects what it prints, of its errors.
        in_background: does something in a thread of the test's.
        is_in_an_app: whether the calling thread is an app's: it has that app's /tmp and request.
        fail: fails the test, at its end, by an assertion of its own that did not hold.
    """

    def __init__(
        self,
        name: str,
        answer: Answer,
        log: Log,
        in_background: Callable[[str, Callable[[], object]], None],
        is_in_an_app: Callable[[], bool],
        fail: Callable[[BaseException], object],
    ) -> None:
        self.name = name
        self.log = log
        self._fail = fail
        self.state: State = "IDLE"
        self._answer = answer
        self._in_background = in_background
        self._is_in_an_app = is_in_an_app

    def send(self, request: httpx.Request) -> httpx.Response:
        """Its answer."""
        return whole(self.open(request))

    def open(self, request: httpx.Request) -> httpx.Response:
        """Its answer, made by the test: never where an app has called it from."""
        if not self._is_in_an_app():
            response = self._respond(request)
            response.stream = Body(response, request.method, _nothing)
            return response
        answered, is_there = list[httpx.Response](), threading.Event()

        def respond() -> None:
            try:
                answered.append(whole(self._respond(request)))
            finally:
                is_there.set()

        self._in_background(self.name, respond)
        is_there.wait()
        return answered[0]

    def connect(self, request: httpx.Request) -> AppWebSocket:
        """It has no websockets."""
        why = f"a stand-in has no websockets: {request.url.path} needs a real app"
        raise HandshakeRefusedError(why, json_reply({"detail": why}, 404))

    def catch_up(self) -> None:
        """Its log has all that it printed."""

    def stop(self) -> None:
        """It is needed no more."""
        self.state = "TERMINATED"

    def kill(self, reason: str = "") -> None:
        """It is ended."""
        self.state = "TERMINATED"

    def _respond(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path.endswith("/cancel"):
            return json_reply({"detail": "Not Found"}, 404)
        try:
            return self._answer(request)
        except Exception as error:
            response = _refused(error)
            if response.status_code == 500:  # the test's own function: its author wants to see it
                text = "".join(traceback.format_exception(error.with_traceback(_own(error))))
                self.log.append(text, "STDERR")
                sys.stderr.write(text)
            if isinstance(error, AssertionError):  # an app may catch what its caller gets
                self._fail(error)
            return response


def _own(error: Exception) -> TracebackType | None:
    """Where it was raised, without our own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


def _nothing(_error: object) -> None:
    """Nothing more is to be done when an answer is over."""


def code_of(name: str, given: object) -> type:
    """What was given to ``deploy``: an app's class, or one made of what a stand-in answers.

    Raises:
        EmulatorError: it is neither; says what to write.
    """
    if isinstance(given, type) and issubclass(given, load_app_module().App):
        return given
    if isinstance(given, type) or not (callable(given) or _is_content(given)):
        raise EmulatorError(
            f"{given!r} is neither a subclass of fal.App nor an answer. "
            f'Write deploy("{name}", MyApp), without instantiating it; or what an app of somebody '
            f'else\'s answers: deploy("{name}", {{"images": []}}), or a function of its arguments: '
            f'deploy("{name}", lambda arguments: {{"seed": arguments["seed"]}}).'
        )
    return type("a stand-in", (SomebodyElses,), {"answer": staticmethod(_answer(given))})


def _answer(given: object) -> Answer:
    if not callable(given):
        return lambda _request: _response(given)
    function, wants_request = given, _takes_two(given)

    def answer(request: httpx.Request) -> httpx.Response:
        arguments = _arguments(request)
        content = function(arguments, request) if wants_request else function(arguments)
        return _response(_awaited(content) if inspect.isawaitable(content) else content)

    return answer


def _awaited(awaitable: Awaitable[object]) -> object:
    """What an async function returns, on a loop of its own: this thread may have one that runs."""

    async def wait() -> object:
        return await awaitable

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def _is_content(given: object) -> bool:
    return given is None or isinstance(given, (dict, list, str, BaseModel, httpx.Response))


def _takes_two(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.default is one.empty for one in parameters) > 1


def _arguments(request: httpx.Request) -> Any:
    try:
        return json.loads(request.read() or b"{}")
    except (ValueError, RecursionError):
        return {}


def _response(content: object) -> httpx.Response:
    if isinstance(content, httpx.Response):
        return httpx.Response(
            content.status_code, headers=content.headers.raw, content=content.read()
        )
    if isinstance(content, BaseModel):
        return json_reply(content.model_dump(mode="json"))
    if isinstance(content, Iterator):
        events = (f"data: {json.dumps(_plain(event))}\n\n".encode() for event in content)
        response = reply(content_type=_EVENT_STREAM, stream=events)
        response.extensions["fal_may_wait"] = True
        return response
    return json_reply(content)


def _plain(event: object) -> object:
    return event.model_dump(mode="json") if isinstance(event, BaseModel) else event


def _refused(error: Exception) -> httpx.Response:
    """As a web framework answers: with the status that an exception names, else 500."""
    status, detail = getattr(error, "status_code", 500), getattr(error, "detail", None)
    if isinstance(status, int) and detail is not None:
        return json_reply({"detail": detail}, status)
    return reply(500, "Internal Server Error", content_type="text/plain; charset=utf-8")
