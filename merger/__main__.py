"""`python -m merger`: the same as the console command `merger`."""

import sys

from merger.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
