"""Fail where a link of the built site leads to no page, or to no place in it.

Sphinx checks the links that stand in Markdown; this sees the pages as a reader gets them, with
those that our extensions make: python docs/check_links.py docs/_build
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places in it that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = {"", "top"}
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag says of links and places."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.add(value)


def broken(site: Path) -> list[str]:
    """Each link within the site that leads nowhere, with its page."""
    pages = {file.resolve(): Page(file) for file in sorted(site.resolve().rglob("*.html"))}
    return [
        f"{file.relative_to(site.resolve())}: {link}"
        for file, page in pages.items()
        for link in sorted(page.links)
        if not _leads_somewhere(link, file, pages)
    ]


def _leads_somewhere(link: str, file: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target not in pages:
        return target.is_file()
    return unquote(parts.fragment) in pages[target].places


if __name__ == "__main__":
    found = broken(Path(sys.argv[1]))
    if found:
        sys.exit("\n".join(["These links lead nowhere:", *found]))
