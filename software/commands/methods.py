"""``sat methods``: the research methods there are."""

from __future__ import annotations

import argparse
import json

from sat.commands.common import DONE
from sat.commands.tables import fit

SUMMARY = "list the research methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but what every command has."""


def run(args: argparse.Namespace) -> int:
    """List the methods."""
    from sat.methods import METHODS

    if args.json:
        print(json.dumps({"methods": [vars(method) for method in METHODS.values()]}))
    else:
        rows = [(m.slug, f"{m.title}: {m.summary} ({m.paper})") for m in METHODS.values()]
        print(fit(("method", "what its demo shows (paper)"), rows))
    return DONE
