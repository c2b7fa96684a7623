"""Build the manual: README and docs/ as they are, and the API from docstrings, in build/site.

    python tools/site.py            # any warning is an error

Pages are copied into a tree like the project's, so that their links lead to the same files.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
PROJECT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
FILES = ("LICENSE", "CITATION.cff")

CONTENTS = {
    "Learn": (
        "terms", "tutorials/first-layer", "tutorials/training", "tutorials/offload",
        "tutorials/schedule", "tutorials/explore", "tutorials/change-the-rtl", "tutorials/board",
        "tutorials/add-a-method",
    ),
    "Use": (
        "layers", "offload", "methods", "gallery", "schedules", "simulation", "fpga", "vcu1525",
        "troubleshooting",
    ),
    "Hardware": (
        "architecture", "numerics", "isa", "csr", "ports", "cycle-model", "verification", "paper",
    ),
}  # fmt: skip
PACKAGES = {
    "sat.rtl": "The hardware in Amaranth, and its configuration.",
    "sat.dataflow": "Mappings, programs, the compiler, the exact cycle model.",
    "sat.fpga": "Boards: memory, host link, synthesis, simulation at the pins.",
}
"""Packages whose modules are documented whole."""


def main() -> int:
    """Return Sphinx's exit code."""
    from sphinx.cmd.build import main as sphinx

    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    for name in (*PROJECT, *FILES):
        shutil.copy(ROOT / name, SOURCE / name)
    docs = SOURCE / "docs"
    pages = sorted(
        path.relative_to(docs).with_suffix("").as_posix()
        for path in docs.rglob("*.md")
        if path.parent.name != "bitstreams"
    )
    listed = [page for group in CONTENTS.values() for page in group]
    if sorted(listed) != pages:
        raise SystemExit(
            f"site: pages of docs/ and CONTENTS differ: {sorted(set(pages) ^ set(listed))}; "
            "enter each page once in tools/site.py"
        )
    shutil.copy(ROOT / "tools" / "site_conf.py", SOURCE / "conf.py")
    (SOURCE / "_static").mkdir()
    shutil.copy(ROOT / "tools" / "site.css", SOURCE / "_static")
    # The README is the front page; other pages link to it by its name.
    front = (SOURCE / "README.md").read_text()
    groups = [
        toctree(title, [f"docs/{page}" for page in group]) for title, group in CONTENTS.items()
    ]
    groups.append(toctree("API", write_api()))
    groups.append(toctree("Project", [Path(name).stem for name in PROJECT[1:]]))
    reports = sorted(path.stem for path in (docs / "bitstreams").glob("*.md"))
    groups.append(toctree("Bitstreams", [f"docs/bitstreams/{page}" for page in reports]))
    (SOURCE / "README.md").write_text("\n".join([front, *groups]))
    options = ["-D", "root_doc=README", "-W", "--keep-going", "-q"]
    code = sphinx(["-b", "html", *options, str(SOURCE), str(SITE)])
    if code == 0:
        (SITE / "index.html").write_text(
            '<!doctype html><meta http-equiv="refresh" content="0; url=README.html">\n'
        )
        print(f"{len(list(SITE.rglob('*.html')))} pages: {SITE / 'index.html'}")
    return code


def toctree(title: str, pages: list[str]) -> str:
    """Return a part of the table of contents, shown at the side alone."""
    return "\n".join(("", "```{toctree}", f":caption: {title}", ":hidden:", "", *pages, "```", ""))


def write_api() -> list[str]:
    """Write the pages of the API; return their names."""
    folder = SOURCE / "api"
    folder.mkdir()
    sat = importlib.import_module("sat")
    lines = ["# sat", "", "What `import sat` gives.", ""]
    for name in sorted(sat.__all__, key=str.lower):
        if not name.startswith("_"):
            lines += [f"## {name}", "", *directive(sat, name), ""]
    (folder / "sat.md").write_text("\n".join(lines))
    pages = ["api/sat"]
    for package, text in PACKAGES.items():
        lines = [f"# {package}", "", text, ""]
        for module in modules(package):
            if members(module):
                lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}"]
                lines += ["   :members: " + ", ".join(members(module)), "```", ""]
        (folder / f"{package}.md").write_text("\n".join(lines))
        pages.append(f"api/{package}")
    lines = ["# sat.methods", "", "What each research method's package gives.", ""]
    for info in pkgutil.iter_modules(importlib.import_module("sat.methods").__path__):
        name = f"sat.methods.{info.name}"
        module = importlib.import_module(name)
        if info.ispkg and info.name != "template" and hasattr(module, "__all__"):
            lines += [f"## {info.name}", "", inspect.getdoc(module) or "", ""]
            for each in module.__all__:
                lines += [*directive(module, each), ""]
    (folder / "sat.methods.md").write_text("\n".join(lines))
    return [*pages, "api/sat.methods"]


def directive(module: object, name: str) -> list[str]:
    """Return what documents a name of a module."""
    value = getattr(module, name)
    place = f"{module.__name__}.{name}"  # type: ignore[attr-defined]
    if not callable(value):  # its docstring would be its type's
        return [f"`{name}` is `{value!r}`."]
    kind = "class" if inspect.isclass(value) else "function"
    if inspect.isclass(value) and issubclass(value, BaseException):
        kind = "exception"
    lines = ["```{eval-rst}", f".. auto{kind}:: {place}"]
    if kind == "class":
        own = [each for each in vars(value) if not each.startswith("_")]
        documented = [each for each in own if inspect.getdoc(getattr(value, each, None))]
        if documented:
            lines.append("   :members: " + ", ".join(documented))
    return [*lines, "```"]


def modules(package: str) -> list[str]:
    """Return a package's modules, by their names, what is in its packages included."""
    found = importlib.import_module(package)
    walked = pkgutil.walk_packages(found.__path__, package + ".")
    return [info.name for info in walked if not info.ispkg]


def members(module: str) -> list[str]:
    """Return the public classes and functions that a module defines, and constants with a text."""
    from sphinx.pycode import ModuleAnalyzer

    analyzer = ModuleAnalyzer.for_module(module)
    found = vars(importlib.import_module(module))
    told = [name for scope, name in analyzer.find_attr_docs() if not scope]
    told = [name for name in told if len(repr(found[name])) < 500]  # a table is read in its source
    return [
        name
        for name, value in found.items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and getattr(value, "__module__", None) == module
    ] + [name for name in told if not name.startswith("_")]


if __name__ == "__main__":
    sys.exit(main())
