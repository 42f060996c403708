"""Sphinx's configuration: `make docs` builds docs/ into site/, and fails on a broken link."""

from fastvec import __version__

project = "fastvec"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links such as embed.md#options
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
html_theme = "furo"
html_title = "fastvec"
html_show_copyright = False
