"""``sat methods``: the research methods there are."""

from __future__ import annotations

import argparse
import json

from sat.commands.common import DONE

SUMMARY = "list the research methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but what every command has."""


def run(args: argparse.Namespace) -> int:
    """List the methods."""
    from sat.methods import METHODS

    if args.json:
        print(json.dumps({"methods": [vars(method) for method in METHODS.values()]}))
    else:
        for method in METHODS.values():
            print(f"{method.slug:<10}  {method.title}: {method.summary} ({method.paper})")
    return DONE
