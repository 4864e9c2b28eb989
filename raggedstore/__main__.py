"""``python -m raggedstore``: the same as the command `raggedstore`."""

import sys

from raggedstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
