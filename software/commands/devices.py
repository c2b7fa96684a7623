"""``sat devices``: the devices there are, and what is missing for the others."""

from __future__ import annotations

import argparse
import json

from sat.commands.common import DONE
from sat.commands.tables import fit

SUMMARY = "list the devices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but what every command has."""


def run(args: argparse.Namespace) -> int:
    """List the devices."""
    from sat.devices import available

    found = available()
    if args.json:
        print(json.dumps({"devices": [vars(info) for info in found]}))
    else:
        rows = [(info.spec, info.summary, info.missing or "ready") for info in found]
        print(fit(("device", "what it is", "state"), rows))
    return DONE
