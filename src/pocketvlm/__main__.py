"""`python -m pocketvlm`: the command line, where scripts are not on the path."""

import sys

from pocketvlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
