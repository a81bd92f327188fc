"""The site: Sphinx reads the Markdown of this folder. Build it with ``bash docs/build``."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import pytest_fal  # noqa: E402 - it stands beside this folder

project = "pytest-fal"
author = "pytest-fal contributors"
copyright = "pytest-fal contributors, MIT licence"
version = release = pytest_fal.__version__

extensions = ["myst_parser", "navigation", "repository_files"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
# Lines that read themselves as Python, console or output are coloured; nothing is guessed.
highlight_language = "none"
smartquotes = False

html_theme = "furo"
html_title = f"pytest-fal {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
