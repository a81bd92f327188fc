"""Threads that belong to the test, whoever asks for them.

A thread sees the mounts of the one that started it. What the gateway does must not happen in the
mounts of an app that happened to move the clock, so its threads are all started by one that the
test itself has started.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["Crew"]

Job = Callable[[], object]
_PATIENCE = 10.0


class Crew:
    """Starts threads. Begin it in the test's thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[str, Job] | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._leader: threading.Thread | None = None
        #: What jobs raised, which nobody expected.
        self.errors: list[BaseException] = []

    def begin(self) -> None:
        """Be there; a second call does nothing."""
        if self._leader is None:
            self._leader = threading.Thread(target=self._lead, name="fal-gateway", daemon=True)
            self._leader.start()

    def start(self, name: str, job: Job) -> None:
        """Do something in a thread of its own."""
        self._jobs.put((f"fal-{name}", job))

    def end(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: what a job raised.
        """
        if self._leader is None:
            return
        self._jobs.put(None)
        self._leader.join(_PATIENCE)
        for worker in self._workers:
            worker.join(_PATIENCE)
        self._workers.clear()
        self._leader = None
        errors, self.errors = self.errors, []
        if errors:
            raise errors[0]

    def _lead(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._workers = [worker for worker in self._workers if worker.is_alive()]
            worker = threading.Thread(target=self._do, args=(job[1],), name=job[0], daemon=True)
            self._workers.append(worker)
            worker.start()

    def _do(self, job: Job) -> None:
        try:
            job()
        except BaseException as error:
            self.errors.append(error)
