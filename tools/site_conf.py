"""Sphinx's settings for the manual (tools/site.py copies this beside the pages)."""

import re
from importlib import metadata

project = "SAT"
copyright = "the SAT maintainers, Apache-2.0"
version = release = metadata.version("sat")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "SAT"
html_theme_options = {"source_directory": ""}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types and shapes
napoleon_custom_sections = [("Members", "params_style"), ("Source", "notes_style")]
napoleon_use_ivar = True
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # names that several classes have, in backticks


def setup(app):
    """Docstrings are for reading in a terminal: a * or | in a shape or formula is itself."""
    outside = re.compile(r"(`+[^`]*`+)|\*(?=\w[^*`]*\w\*)([^*`]+)\*|([*|])")

    def escaped(match):
        return "\\" + match[3] if match[3] else match[0]

    def plain(_, what, name, found, options, lines):
        for number, line in enumerate(lines):
            bullet = re.match(r" *\* ", line)
            head = bullet[0] if bullet else ""
            lines[number] = head + outside.sub(escaped, line[len(head) :])

    app.connect("autodoc-process-docstring", plain, priority=1)
