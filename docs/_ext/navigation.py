"""The lists of docs/index.md are the site's navigation: a link at the start of an item is an entry.

Sphinx has a directive of its own for that, which shows as code wherever else Markdown is read.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"^## (.+)\n\n((?:- .*\n|  .*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^- \[(.+?)\]\(([\w-]+)\.md\)", re.MULTILINE)


def _add_entries(_: Sphinx, name: str, source: list[str]) -> None:
    """Put a hidden list of pages below each list of the start page."""
    if name == "index":
        source[0] = _SECTION.sub(_with_entries, source[0])


def _with_entries(section: re.Match[str]) -> str:
    entries = "\n".join(f"{title} <{page}>" for title, page in _ENTRY.findall(section.group(2)))
    caption = f':hidden:\n:caption: "{section.group(1)}"'
    return f"{section.group()}\n```{{toctree}}\n{caption}\n\n{entries}\n```\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entrance."""
    app.connect("source-read", _add_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
