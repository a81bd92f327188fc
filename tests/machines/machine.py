"""What the state machines share: how long one runs, and how its steps are counted."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

if TYPE_CHECKING:
    from emulator.account import Emulator

__all__ = ["NOON", "EmulatorMachine", "run"]

#: Every example begins here, on a stopped clock.
NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
#: At least this many steps in each machine, another way each time; unset: a few, always the same.
STEPS = "STATE_MACHINE_STEPS"
STEPS_OF_AN_EXAMPLE = 40


class EmulatorMachine(RuleBasedStateMachine):
    """A machine on an emulator that it starts anew for each example."""

    #: Steps of all examples since the class was run.
    steps: ClassVar[int] = 0

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self.emulator = emulator

    @invariant()
    def what_always_holds_does(self) -> None:
        """One for all, as a failure's program names each after each step."""
        type(self).steps += 1
        self.check()

    def check(self) -> None:
        """Compare what is there with the model."""
        raise NotImplementedError

    def teardown(self) -> None:
        # Hypothesis measures time between examples, and shall measure real time.
        self.emulator.clock.reset()
        # An example may well end before its fault strikes.
        self.emulator.faults.reset()


def run(machine: type[EmulatorMachine], emulator: Emulator, examples: int) -> None:
    """Run a machine: *examples* of it, or as many steps as the environment asks for."""
    wanted = int(os.environ.get(STEPS, 0))
    machine.steps = 0
    if not wanted:
        _play(machine, emulator, examples, always_the_same=True)
    while machine.steps < wanted:  # some examples are shorter
        missing = wanted - machine.steps
        _play(machine, emulator, missing // STEPS_OF_AN_EXAMPLE + 1, always_the_same=False)
    print(f"{machine.__name__}: {machine.steps} steps")


def _play(
    machine: type[EmulatorMachine], emulator: Emulator, examples: int, always_the_same: bool
) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS_OF_AN_EXAMPLE,
        derandomize=always_the_same,
        # What fails is printed as a program; nothing has to be kept between runs.
        database=None,
        deadline=None,
        # Virtual time passes between two looks at the clock.
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(lambda: machine(emulator), settings=chosen)
