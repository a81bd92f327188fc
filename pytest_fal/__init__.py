"""pytest plugin: tests of fal apps on an emulated platform. See :mod:`emulator` for the library.

The types of the fixtures can be imported from here, for annotations::

    from pytest_fal import CDN, Clock, RunnerFactory
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from respx import MockRouter

    from emulator.account import Emulator
    from emulator.clock import Clock
    from emulator.fleets.call import Attempt, Call
    from emulator.fleets.deployment import Deployment
    from emulator.fleets.gateway import Gateway
    from emulator.fleets.options import Scaling
    from emulator.fleets.webhook_messages import WebhookNotVerifiedError
    from emulator.fleets.webhooks import Delivery
    from emulator.hosts.git import Git, GitRequest, Submodule
    from emulator.hosts.origin import Origin, ServedFile
    from emulator.hosts.webhooks import Webhook, WebhookReceiver
    from emulator.ledger import Event, Exchange, Ledger
    from emulator.network.fault import Fault, Gate
    from emulator.network.faults import Faults
    from emulator.runners.errors import (
        HandshakeRefusedError,
        IncompleteAnswerError,
        RunnerError,
        StartupError,
    )
    from emulator.runners.runner import Runner, RunnerFactory
    from emulator.runners.websocket import AppWebSocket
    from emulator.schedule import Appointment
    from emulator.settings import Settings
    from emulator.storage.buckets import Bucket, Buckets
    from emulator.storage.cdn import CDN
    from emulator.storage.cdn_files import CDNFile
    from emulator.storage.kv import KV, KVEntry
    from emulator.storage.node_uploader import NodeUpload, Uploader
    from emulator.storage.volume import Volume
    from emulator.users import User
    from pytest_fal.warnings import MemoryNotGivenBackWarning, UnusedFaultWarning

__version__ = "0.1.0"

__all__ = [
    "CDN",
    "KV",
    "AppWebSocket",
    "Appointment",
    "Attempt",
    "Bucket",
    "Buckets",
    "CDNFile",
    "Call",
    "Clock",
    "Delivery",
    "Deployment",
    "Emulator",
    "Event",
    "Exchange",
    "Fault",
    "Faults",
    "Gate",
    "Gateway",
    "Git",
    "GitRequest",
    "HandshakeRefusedError",
    "IncompleteAnswerError",
    "KVEntry",
    "Ledger",
    "MemoryNotGivenBackWarning",
    "MockRouter",
    "NodeUpload",
    "Origin",
    "Runner",
    "RunnerError",
    "RunnerFactory",
    "Scaling",
    "ServedFile",
    "Settings",
    "StartupError",
    "Submodule",
    "UnusedFaultWarning",
    "Uploader",
    "User",
    "Volume",
    "Webhook",
    "WebhookNotVerifiedError",
    "WebhookReceiver",
]

# Imported when asked for: this package is loaded in every pytest run of its environment.
_MODULES = {
    "AppWebSocket": "emulator.runners.websocket",
    "Appointment": "emulator.schedule",
    "Attempt": "emulator.fleets.call",
    "Bucket": "emulator.storage.buckets",
    "Buckets": "emulator.storage.buckets",
    "CDN": "emulator.storage.cdn",
    "CDNFile": "emulator.storage.cdn_files",
    "Call": "emulator.fleets.call",
    "Clock": "emulator.clock",
    "Delivery": "emulator.fleets.webhooks",
    "Deployment": "emulator.fleets.deployment",
    "Emulator": "emulator.account",
    "Event": "emulator.ledger",
    "Exchange": "emulator.ledger",
    "Fault": "emulator.network.fault",
    "Faults": "emulator.network.faults",
    "Gate": "emulator.network.fault",
    "Gateway": "emulator.fleets.gateway",
    "KV": "emulator.storage.kv",
    "KVEntry": "emulator.storage.kv",
    "Git": "emulator.hosts.git",
    "GitRequest": "emulator.hosts.git",
    "HandshakeRefusedError": "emulator.runners.errors",
    "IncompleteAnswerError": "emulator.runners.errors",
    "Ledger": "emulator.ledger",
    "MemoryNotGivenBackWarning": "pytest_fal.warnings",
    "MockRouter": "respx",
    "NodeUpload": "emulator.storage.node_uploader",
    "Origin": "emulator.hosts.origin",
    "Runner": "emulator.runners.runner",
    "RunnerError": "emulator.runners.errors",
    "RunnerFactory": "emulator.runners.runner",
    "Scaling": "emulator.fleets.options",
    "ServedFile": "emulator.hosts.origin",
    "Settings": "emulator.settings",
    "StartupError": "emulator.runners.errors",
    "Submodule": "emulator.hosts.git",
    "UnusedFaultWarning": "pytest_fal.warnings",
    "Uploader": "emulator.storage.node_uploader",
    "User": "emulator.users",
    "Volume": "emulator.storage.volume",
    "Webhook": "emulator.hosts.webhooks",
    "WebhookNotVerifiedError": "emulator.fleets.webhook_messages",
    "WebhookReceiver": "emulator.hosts.webhooks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
