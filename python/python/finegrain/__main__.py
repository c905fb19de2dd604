"""The command line, as ``finegrain`` and ``python -m finegrain``."""

import signal
import sys

from finegrain._finegrain import run_cli


def main() -> int:
    """Run the command line with this process's arguments."""
    # The program handles its signals itself: Python's handler would wait for its end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run_cli(["finegrain", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
