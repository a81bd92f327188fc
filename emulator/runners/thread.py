"""A runner in a thread: the real app, with a mount namespace and an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx

from emulator import sdk
from emulator.runners.asgi import Answer
from emulator.runners.lifespan import Lifespan
from emulator.runners.log import Log
from emulator.runners.runner import Result, Runner, RunnerKilled, Surroundings
from emulator.runners.websocket import AppWebSocket, ThreadWebSocket

__all__ = ["ThreadRunner"]

_STEPS = 10

_counting = threading.Lock()
#: How many threads of runners live that older objects are set aside for.
_set_aside_for = 0


class ThreadRunner(Runner):
    """Boots an app in a thread.

    What cannot be told apart between runners in one process is shared: environment variables,
    module globals, the working directory of other threads. Python code that is running cannot be
    ended from outside: ``kill`` leaves a blocking endpoint to finish by itself, unless it sleeps on
    the clock.
    """

    def __init__(self, name: str, app_class: type, around: Surroundings) -> None:
        super().__init__(name, app_class, around)
        self.tmp.remount = self._remount
        self.log = Log(around.clock.now, self._request_here)
        #: Its number, that of its mount namespace where it has one; None before that.
        self.namespace: int | None = None
        #: The app instance, once it is made.
        self.app: Any = None
        self._asgi: Any = None
        #: Those whose endpoints have not returned.
        self._websockets: set[ThreadWebSocket] = set()
        self._loop = asyncio.new_event_loop()
        self._pool = _Pool()
        self._loop.set_default_executor(self._pool)
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._thread = threading.Thread(target=self._live, name=f"fal-{name}", daemon=True)

    # --- for tests -------------------------------------------------------------------------------

    @property
    def isolation(self) -> str:
        """How it is told apart from other runners."""
        return "thread"

    @property
    def output(self) -> str:
        """What the app printed, to stdout and stderr."""
        return self.log.text

    def catch_up(self) -> None:
        """It is there as soon as it is printed."""

    def _call(
        self, function: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Result:
        self._around.changed(self, "request")  # pytest has other streams in each phase of a test
        if inspect.iscoroutinefunction(function):
            return self._submit(function(*args, **kwargs), "run()")  # type: ignore[no-any-return]
        call = functools.partial(function, *args, **kwargs)
        return self._submit(asyncio.to_thread(call), "run()")

    # --- its life --------------------------------------------------------------------------------

    def _boot(self) -> None:
        self._thread.start()

    def _terminate(self) -> None:
        self._loop.call_soon_threadsafe(self._orders.put_nowait, "stop")

    def _destroy(self) -> None:
        # A killed process calls nothing more, but the SDK's lifespan ends by calling these.
        nothing: dict[str, Callable[[], None]] = {"teardown": _nothing, "handle_exit": _nothing}
        if self.app is not None:
            self.app.__dict__.update(nothing)
        self._around.disk.disconnect()
        with suppress(RuntimeError):  # the loop is closed: it has just ended
            self._loop.call_soon_threadsafe(self._cancel_everything, _STEPS)
        if self._is_on_it():
            quietly = sdk.end_of_upload()
            raise RunnerKilled(self.end) if quietly is None else quietly

    def _dispose(self) -> None:
        if self._thread.ident is not None:  # else it was killed before it began
            self._thread.join(timeout=1.0)

    def _show(self) -> None:
        pass  # it prints in this process, where OutputSplitter stands

    def is_here(self) -> bool:
        """Whether the calling thread must not wait for this runner."""
        return threading.current_thread() is self._thread

    def _request_here(self) -> str | None:
        """The request that the calling thread is at work on, as the SDK knows it."""
        request = getattr(self.app, "current_request", None)
        return None if request is None else request.request_id

    def _is_on_it(self) -> bool:
        """Whether the calling thread is one of the app's."""
        return self.is_here() or (
            self.namespace is not None and self._around.disk.here() == self.namespace
        )

    # --- requests --------------------------------------------------------------------------------

    def begin(self, request: httpx.Request) -> httpx.Response:
        """Have the app answer, until its head is there."""
        self._around.changed(self, "request")
        what = f"{request.method} {request.url.path}"
        answer = Answer(self._asgi, request, self._loop, lambda error: self._broken(what, error))
        answer.begin()
        if self.end is not None:  # what is there is what the web framework makes of it, a 500
            answer.close()
            raise self._lost(what)
        if not answer.has_head:
            self._raise_unless_for_500(what, answer.error)
        return answer.response

    def dial(self, request: httpx.Request) -> AppWebSocket:
        """Have the app accept a websocket."""
        self._around.changed(self, "request")
        what = f"the websocket {request.url.path}"
        opened = ThreadWebSocket(self._asgi, request, self._loop, self._websockets.discard)
        self._websockets.add(opened)
        opened.begin()
        if self.end is not None:
            opened.close()
            raise self._lost(what)
        if opened.refusal is not None:
            self._raise_unless_for_500(what, opened.error)
            raise self._refused(request, opened.refusal)
        return opened

    def _raise_unless_for_500(self, what: str, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            raise self._lost(what)
        if error is not None and not isinstance(error, Exception):
            raise error

    def _broken(self, what: str, error: BaseException | None) -> BaseException:
        """What a reader is told of a body that the app broke off by raising this, or the end."""
        is_of_the_app = self.end is None and not isinstance(error, asyncio.CancelledError)
        if error is not None and is_of_the_app and not isinstance(error, Exception):
            return error
        broken = self._cut_short(what)
        broken.__cause__ = error if is_of_the_app else None
        return broken

    def _submit(self, coroutine: Coroutine[Any, Any, Result], what: str) -> Result:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            result = future.result()
        except BaseException as error:
            if self.end is None and not isinstance(error, concurrent.futures.CancelledError):
                raise
            raise self._lost(what) from None
        if self.end is not None:  # what the web framework makes of it, a 500
            raise self._lost(what)
        return result

    # --- the runner's own thread -----------------------------------------------------------------

    def _live(self) -> None:
        _set_aside()
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._main())
        error: BaseException | None = None
        try:
            self._loop.run_until_complete(main)
        except asyncio.CancelledError:
            error = RunnerKilled(self.end)
        except BaseException as raised:
            error = raised
        finally:
            self._close_loop()
            # What the app leaves to its objects' finalizers happens here, in its own /tmp, and not
            # whenever Python collects them: in another test's.
            self.app = self._asgi = None
            self._around.changed(self, "END")
            _collect()
            for future in (self._ready, self._ended):
                _settle(future, error)

    async def _main(self) -> None:
        self.namespace = self._around.disk.enter()
        self.app = self.app_class(_allow_init=True)
        self._move("SETUP")
        self._asgi = self.app._build_app()
        lifespan = Lifespan(self._asgi)
        await lifespan.startup()
        self._move("IDLE")
        self._ready.set_result(None)
        await self._orders.get()
        try:
            self.app.handle_exit()
        except Exception as error:  # the SDK swallows it too, inside its signal handler
            self.log.append(f"[pytest-fal] handle_exit raised {error!r}\n")
        for websocket in list(self._websockets):
            websocket.shut_down()
        while self.in_flight or self._websockets:
            await asyncio.sleep(0.001)
        self._move("TERMINATING")
        await lifespan.shutdown()

    def _cancel_everything(self, steps: int) -> None:
        if steps:  # what was only just created begins: else it complains
            self._loop.call_soon(self._cancel_everything, steps - 1)
            return
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _close_loop(self) -> None:
        try:
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            if pending:
                self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            with suppress(asyncio.CancelledError):  # it is killed meanwhile
                self._loop.run_until_complete(self._wind_up())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _wind_up(self) -> None:
        await self._loop.shutdown_asyncgens()
        if self.end is None:
            await self._pool.end()

    def _remount(self) -> None:
        if self.namespace is not None:
            self.run(self._around.disk.remount_tmp)


class _Pool(concurrent.futures.ThreadPoolExecutor):
    """The threads of an app's loop, as asyncio makes them; who waits for their end can give up.

    asyncio's own way to wait, once cancelled, complains when they end later.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._is_used = False

    def submit(self, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        self._is_used = True
        return super().submit(*args, **kwargs)

    async def end(self) -> None:
        """Wait until they have ended."""
        if self._is_used:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()

            def wait() -> None:
                self.shutdown()
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(ended.set)

            threading.Thread(target=wait, name="fal-pool", daemon=True).start()
            await ended.wait()


def _settle(future: concurrent.futures.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _nothing() -> None:
    return None


def _set_aside() -> None:
    """Have what is older than the first of the runners looked at by no collection."""
    global _set_aside_for
    with _counting:
        if not _set_aside_for:
            gc.freeze()
        _set_aside_for += 1


def _collect() -> None:
    """Collect what has become garbage since the first of the runners that live was booted."""
    global _set_aside_for
    try:
        gc.collect()  # without the lock: a finalizer may do anything
    finally:
        with _counting:
            _set_aside_for -= 1
            if not _set_aside_for:
                gc.unfreeze()
