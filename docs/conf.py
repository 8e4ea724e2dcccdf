"""Sphinx configuration; ``nox -s docs`` builds with it, and any warning is an error."""

from __future__ import annotations

import pgsnap

project = "pgsnap"
author = "the pgsnap authors"
copyright = "2026, the pgsnap authors"
release = version = pgsnap.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "changelog.d"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pgsnap {release}"
nitpicky = True
# Links from the documents to files of the repository, which are no pages, are written as code or as full addresses.
suppress_warnings: list[str] = []
