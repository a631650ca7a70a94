"""`python -m benchmark MODEL...`."""

import sys

from benchmark.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
