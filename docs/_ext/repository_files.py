"""Links that lead out of docs/ lead to pages with the text of these files of the repository.

So the site has what it talks about: the example apps, the tests of the gallery of bugs. A link to
nothing is a warning, which the build takes for an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parent.parent.parent
_LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
_SHOWN = re.compile(r"\.(py|md|toml|cjs|js|json)$|^(run|build)$")
_log = logging.getLogger(__name__)


def _lead_to_pages(_: Sphinx, name: str, source: list[str]) -> None:
    """Have the links of one page lead to our pages."""

    def page_of(link: re.Match[str]) -> str:
        path = link.group(1).rstrip("/")
        if not (ROOT / path).exists():
            _log.warning("there is no %s in the repository", path, location=name)
        return f"](repository:{path})"

    source[0] = _LINK.sub(page_of, source[0])


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked to, and for each in a folder that is."""
    linked = set()
    for name in app.env.found_docs:
        text = Path(app.env.doc2path(name)).read_text("utf-8")
        linked |= {path.rstrip("/") for path in _LINK.findall(text)}
    files = {ROOT / path for path in linked if (ROOT / path).is_file()}
    for folder in {ROOT / path for path in linked if (ROOT / path).is_dir()}:
        inside = sorted(path for path in folder.iterdir() if _SHOWN.search(path.name))
        files |= set(inside)
        yield _page(folder, _list(folder, inside))
    for file in sorted(files):
        yield _page(file, _text(file))


def _page(path: Path, body: str) -> tuple[str, dict[str, Any], str]:
    name = path.relative_to(ROOT).as_posix()
    title = f"<h1>{escape(name)}</h1>"
    return f"repository/{name}", {"title": name, "body": title + body}, "page.html"


def _list(folder: Path, inside: list[Path]) -> str:
    items = (f'<li><a href="{folder.name}/{p.name}.html">{escape(p.name)}</a></li>' for p in inside)
    readme = folder / "README.md"
    return f"<ul>{''.join(items)}</ul>" + (_text(readme) if readme.exists() else "")


def _text(file: Path) -> str:
    try:
        lexer = get_lexer_for_filename(file.name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(file.read_text("utf-8"), lexer, HtmlFormatter(cssclass="highlight"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entrance."""
    app.connect("source-read", _lead_to_pages)
    app.connect("html-collect-pages", _pages)
    app.connect("config-inited", _know_the_scheme)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _know_the_scheme(_: Sphinx, config: Any) -> None:
    schemes = dict.fromkeys(("http", "https", "mailto"))
    config.myst_url_schemes = {**schemes, "repository": "repository/{{path}}.html"}
