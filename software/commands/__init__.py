"""The subcommands of ``sat``, a file each."""
