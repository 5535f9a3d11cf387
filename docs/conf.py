"""Sphinx's settings for the documentation site; `make docs` builds it."""

from hpo import __version__

project = "hpo"
author = "the hpo developers"
release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"hpo {release}"
exclude_patterns = ["_build"]
