"""A runner in a thread: the real app, with a mount namespace and an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import inspect
import threading
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any

import httpx

from emulator.runners.lifespan import Lifespan
from emulator.runners.runner import Result, Runner, RunnerError, State
from emulator.storage.disk import RunnerDisk

__all__ = ["ThreadRunner"]


class ThreadRunner(Runner):
    """Boots an app in a thread.

    What cannot be told apart between runners in one process is shared: environment variables,
    module globals, the working directory of other threads. Python code that is running cannot be
    ended from outside: ``kill`` leaves a blocking endpoint to finish by itself.

    Args:
        changed: called whenever the runner's state or current app changes.
        grace: termination grace period.
        intercept: what fal's gateway answers a request itself; None lets it through to the app.
    """

    def __init__(
        self,
        name: str,
        app_class: type,
        disk: RunnerDisk,
        gateway: Mapping[str, str],
        changed: Callable[[ThreadRunner, str], None],
        grace: timedelta,
        intercept: Callable[[ThreadRunner, httpx.Request], httpx.Response | None],
    ) -> None:
        super().__init__(name, app_class, disk.tmp, gateway)
        disk.tmp.remount = self._remount
        self._disk = disk
        self._changed = changed
        self._grace = grace
        self._intercept = intercept
        self.printed: list[str] = []
        #: Number of its mount namespace, once it has one.
        self.namespace: int | None = None
        #: The app instance, once it is made.
        self.app: Any = None
        self._asgi: Any = None
        self._life: State = "SETUP"
        self._in_flight = 0
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._orders: asyncio.Queue[str] = asyncio.Queue()
        self._thread = threading.Thread(target=self._live, name=f"fal-{name}", daemon=True)

    # --- for tests -------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where it is in its life."""
        if self._life == "IDLE" and self._in_flight:
            return "RUNNING"
        return self._life

    @property
    def output(self) -> str:
        """What the app printed, to stdout and stderr."""
        return "".join(self.printed)

    def start(self) -> None:
        """Boot.

        Raises:
            BaseException: whatever the app's ``setup`` raised.
        """
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._finish()
            raise

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function on the runner; an async one on its event loop."""
        self._check_alive()
        if inspect.iscoroutinefunction(function):
            return self._submit(function(*args, **kwargs))  # type: ignore[no-any-return]
        call = functools.partial(function, *args, **kwargs)
        return self._submit(asyncio.to_thread(call))

    def stop(self) -> None:
        """Shut down as on SIGTERM."""
        if self._life == "TERMINATED":
            return
        if threading.current_thread() is self._thread:
            raise RunnerError("a runner cannot stop itself. Call runner.stop() from the test.")
        self._move("DRAINING")
        self._loop.call_soon_threadsafe(self._orders.put_nowait, "stop")
        try:
            self._ended.result(self._grace.total_seconds())
        except concurrent.futures.TimeoutError:
            seconds = self._grace.total_seconds()
            self.printed.append(f"[pytest-fal] killed: not ended {seconds:g} s after SIGTERM\n")
            self.kill()
        except Exception:
            self._finish()
            raise
        else:
            self._finish()

    def kill(self) -> None:
        """End it at once."""
        if self._life == "TERMINATED":
            return
        # A killed process calls nothing more, but the SDK's lifespan ends by calling these.
        nothing: dict[str, Callable[[], None]] = {"teardown": _nothing, "handle_exit": _nothing}
        self.app.__dict__.update(nothing)
        self._disk.disconnect()
        self._loop.call_soon_threadsafe(self._cancel_everything)
        self._finish()

    # --- requests --------------------------------------------------------------------------------

    def _transport(self) -> httpx.BaseTransport:
        return _Transport(self)

    async def serve(self, request: httpx.Request) -> httpx.Response:
        """Let the app answer one request, on its loop."""
        transport = httpx.ASGITransport(self._asgi, raise_app_exceptions=False)
        self._in_flight += 1  # only ever on the loop's thread
        try:
            response = await transport.handle_async_request(request)
            await response.aread()
            return response
        finally:
            self._in_flight -= 1

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the app and wait for its answer."""
        self._check_alive()
        if threading.current_thread() is self._thread:
            raise RunnerError(
                "this call would wait for the event loop it runs on. Use a sync endpoint or "
                "asyncio.to_thread to call a runner from itself."
            )
        self._changed(self, "request")
        refusal = self._intercept(self, request)
        return self._submit(self.serve(request)) if refusal is None else refusal

    def _submit(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RunnerError(f"{self.name} was killed before it answered") from None

    def _check_alive(self) -> None:
        if self._life in ("DRAINING", "TERMINATED"):
            raise RunnerError(
                f"{self.name} is {self._life} and takes no more requests. "
                f"Boot another one: fal_runner({self.app_class.__name__})."
            )

    # --- the runner's own thread -----------------------------------------------------------------

    def _live(self) -> None:
        gc.freeze()  # so that collecting the app's objects later looks at nothing older
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._main())
        try:
            self._loop.run_until_complete(main)
        except asyncio.CancelledError:
            self._settle(self._ended)
        except BaseException as error:
            self._settle(self._ready if not self._ready.done() else self._ended, error)
        else:
            self._settle(self._ended)
        finally:
            self._close_loop()
            # What the app leaves to its objects' finalizers happens here, in its own /tmp, and not
            # whenever Python collects them: in another test's.
            self.app = self._asgi = None
            self._changed(self, "END")
            _collect_since_boot()

    async def _main(self) -> None:
        self.namespace = self._disk.enter()
        self.app = self.app_class(_allow_init=True)
        self._changed(self, "SETUP")
        self._asgi = self.app._build_app()
        lifespan = Lifespan(self._asgi)
        await lifespan.startup()
        self._move("IDLE")
        self._ready.set_result(None)
        await self._orders.get()
        try:
            self.app.handle_exit()
        except Exception as error:  # the SDK swallows it too, inside its signal handler
            self.printed.append(f"[pytest-fal] handle_exit raised {error!r}\n")
        while self._in_flight:
            await asyncio.sleep(0.001)
        await lifespan.shutdown()

    def _settle(
        self, future: concurrent.futures.Future[None], error: BaseException | None = None
    ) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _cancel_everything(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _close_loop(self) -> None:
        try:
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            if pending:
                self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            if self._life != "TERMINATED":
                self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def _finish(self) -> None:
        self._life = "TERMINATED"
        self._thread.join(timeout=1.0)
        self._close_client()
        self._changed(self, "TERMINATED")
        self._disk.discard()

    def _move(self, state: State) -> None:
        self._life = state
        self._changed(self, state)

    def _remount(self) -> None:
        if self.namespace is not None:
            self.run(self._disk.remount_tmp)


class _Transport(httpx.BaseTransport):
    """Takes a client's requests to the runner's loop."""

    def __init__(self, runner: ThreadRunner) -> None:
        self._runner = runner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sent = httpx.Request(
            request.method, request.url, headers=request.headers, content=request.read()
        )
        response = self._runner.send(sent)
        return httpx.Response(
            response.status_code, headers=response.headers.raw, content=response.content
        )


def _nothing() -> None:
    return None


def _collect_since_boot() -> None:
    try:
        gc.collect()
    finally:
        gc.unfreeze()
