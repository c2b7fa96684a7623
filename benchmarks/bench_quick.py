"""What every method's quick demo takes on golden, beside the minute that it is allowed.

Each runs in a process of its own, one thread; the processor's time is taken, start of Python
included.

    python benchmarks/bench_quick.py [METHOD ...]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

from sat.methods import METHODS

BOUND = 60


def children() -> float:
    """Return the processor's seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all, if none is given")
    args = parser.parse_args()
    over = 0
    print(f"{'':<6}{'method':<14}{'CPU s':>6}  (<= {BOUND})  checks  on the device")
    for slug in args.methods or METHODS:
        before = children()
        done = subprocess.run(
            [sys.executable, "-m", "sat", "run", slug, "--device", "golden", "--quick", "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        seconds = children() - before
        if not done.stdout:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            print(f"over  {slug:<14}{seconds:>6.1f}  {said}", flush=True)
            over += 1
            continue
        values = json.loads(done.stdout)
        kept = sum(check["passed"] for check in values["checks"])
        good = seconds <= BOUND and values["passed"]
        over += not good
        print(
            f"{'PASS' if good else 'over':<6}{slug:<14}{seconds:>6.1f}  {'':<7}"
            f"{kept:>3} of {len(values['checks'])}  {values['offload']['coverage']:.1%}",
            flush=True,
        )
    print(f"{over} over their bounds" if over else "all keep their bounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
