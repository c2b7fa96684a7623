"""Sphinx's settings for the manual (tools/site.py copies this beside the pages)."""

import enum
import inspect
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
html_static_path = ["_static"]
html_css_files = ["site.css"]
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

    def signature(_, what, name, found, options, arguments, returned):
        if what != "class":
            return None
        if issubclass(found, enum.Enum):  # nobody makes a member
            return "", None
        if "src_loc_at" in (arguments or ""):  # Amaranth's, in front of the component's own
            own = inspect.signature(found.__init__)
            return str(own.replace(parameters=list(own.parameters.values())[1:])), None
        return None

    app.connect("autodoc-process-docstring", plain, priority=1)
    app.connect("autodoc-process-signature", signature)
