"""Runs JavaScript in Node, for tests of what programs in Node see.

Without Node or without fal's JavaScript client they are skipped, and say what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

#: Where .ci/javascript installs fal's client.
PROJECT = Path(__file__).parent / "javascript"


def _major_version() -> int:
    if shutil.which("node") is None:
        return 0
    shown = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(shown.removeprefix("v").partition(".")[0])


_NODE = _major_version()
needs_node = pytest.mark.skipif(
    _NODE < 20,
    reason=f"node 20 is needed, this is {_NODE}" if _NODE else "node is not there",
)
needs_client = pytest.mark.skipif(
    not (PROJECT / "node_modules" / ".installed").exists(),
    reason="fal's JavaScript client is not installed: run .ci/javascript first",
)

_SECONDS = 60  # how long a broken test hangs

_FRAME = """\
const show = (value) => console.log(JSON.stringify(value));
(async () => {
%s
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
"""


def node(code: str, *options: str, env: dict[str, str] | None = None) -> Any:
    """What the code ``show()``s, once, in a Node that has the packages of tests/javascript.

    Args:
        options: Node's.
        env: variables besides those of this process.
    """
    done = run_node(_FRAME % code, *options, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fal_js(code: str, *options: str) -> Any:
    """What the code ``show()``s that has fal's client as ``fal``."""
    return node(f'const {{ fal }} = require("@fal-ai/client");\n{code}', *options)


def run_node(
    code: str, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script as it is."""
    return subprocess.run(
        ["node", *options, "-e", code],
        cwd=PROJECT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
