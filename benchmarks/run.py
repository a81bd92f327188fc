"""Measure pytest-fal against its alternatives: ``python benchmarks/run.py [--quick] [topic...]``.

Both sides are measured in turn, in one run, on one machine; nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Topic and the module that measures it; imported when it is its turn.
TOPICS = {
    "test": "tests_cost",
    "transfer": "transfer",
    "boot": "boot",
    "process": "process_boot",
    "queue": "through_the_queue",
    "startup": "startup",
    "storage": "storage",
    "growth": "growth",
    "rungs": "rungs_cost",
}

LEGEND = """\
Each cell is the median, with minimum and maximum in brackets. The ratio is the alternative's time
divided by ours: above 1 ours is faster."""


def main() -> None:
    """Run the topics that the command line names."""
    arguments = parse()
    parts = [f"# Benchmarks\n\n{machine()}\n\n{LEGEND}\n"]
    print(parts[0])
    for topic in arguments.topics or TOPICS:
        start = time.perf_counter()
        module: Any = importlib.import_module(TOPICS[topic])
        parts.append(module.measure(arguments.quick).markdown())
        print(parts[-1], flush=True)
        print(f"({topic}: {time.perf_counter() - start:.0f} s)", file=sys.stderr)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(parts))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--quick", action="store_true", help="fewer samples, about a minute")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    arguments = parser.parse_args()
    for topic in arguments.topics:
        if topic not in TOPICS:
            parser.error(f"{topic!r} is no topic. The topics are {', '.join(TOPICS)}.")
    return arguments


def machine() -> str:
    """What this was measured on."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{processor()}, {cores} cores, load {os.getloadavg()[0]:.1f}; "
        f"Linux {platform.release()}; Python {platform.python_version()}; fal {version('fal')}"
    )


def processor() -> str:
    """The model of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
