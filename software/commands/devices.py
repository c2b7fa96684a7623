"""``sat devices``: the devices there are, and what is missing for the others."""

from __future__ import annotations

import argparse
import json

from sat.commands.common import DONE

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
        for info in found:
            state = "ready" if info.missing is None else info.missing
            print(f"{info.spec:<8}  {info.summary:<48}  {state}")
    return DONE
