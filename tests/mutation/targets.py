"""Which modules are changed, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "TARGETS", "Target"]

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Target:
    """A module, and the tests of it that need neither a platform nor a server."""

    #: Below the top of the checkout.
    path: str
    tests: tuple[str, ...]
    #: Whether the quick form covers it.
    quick: bool = False
    #: The functions that count; empty: all.
    only: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        return self.path.removesuffix(".py").replace("/", ".")

    @property
    def name(self) -> str:
        """The name for the command line: ``lifecycle``."""
        return Path(self.path).stem

    @property
    def source(self) -> str:
        """Its text."""
        return (ROOT / self.path).read_text("utf-8")


TARGETS = (
    Target("emulator/storage/lifecycle.py", ("test_lifecycle.py",), quick=True),
    Target("emulator/timeline.py", ("test_timeline.py",), quick=True),
    Target("emulator/schedule.py", ("test_schedule.py", "test_clock.py"), quick=True),
    Target(
        "emulator/clock.py",
        ("test_clock.py", "test_schedule.py"),
        quick=True,
        only=(
            "Clock.freeze",
            "Clock.advance",
            "Clock.move_to",
            "Clock.on",
            "Clock.keep_appointments",
            "Clock._travel",
            "_moment",
            "_since_epoch",
            "_nanoseconds_of",
        ),
    ),
    Target("emulator/network/matching.py", ("test_matching.py",), quick=True),
    Target("emulator/network/bodies.py", ("test_bodies.py",)),
    Target("emulator/distributed/visibility.py", ("test_visibility.py",)),
    Target("emulator/fleets/scaling.py", ("test_scaling.py",)),
    Target("emulator/fleets/retries.py", ("test_retries.py",)),
    Target("emulator/fleets/endpoint_ids.py", ("test_endpoint_ids.py",)),
    Target("emulator/fleets/gateway_headers.py", ("test_gateway_headers.py",)),
    Target("emulator/storage/signatures.py", ("test_signatures.py",)),
    Target("emulator/storage/presigning.py", ("test_signatures.py",)),
    Target("emulator/storage/post_policy.py", ("test_post_forms.py",)),
    Target("emulator/storage/upload_policy.py", ("test_upload_policy_read.py",)),
    Target("emulator/storage/media.py", ("test_strictness.py",)),
)
