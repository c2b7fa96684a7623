"""``python -m sat`` is the command ``sat``."""

import sys

from sat.cli import main

if __name__ == "__main__":
    sys.exit(main())
