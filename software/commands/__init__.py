"""The subcommands of ``sat``, a file each.

A command's module has ``SUMMARY`` (a line of ``sat --help``), ``add_arguments(parser)`` and
``run(args)``, which returns the exit code. What it needs beyond arguments it imports when it runs,
so that ``sat --help`` does not wait for torch.
"""

COMMANDS = (
    "simulate", "train", "schedule", "explore", "devices", "methods", "run", "demo", "board",
    "synth", "program",
)  # fmt: skip
"""Names, in the order of ``sat --help``; a new command is its module and its name here."""
