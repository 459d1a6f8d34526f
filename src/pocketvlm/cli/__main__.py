"""python -m pocketvlm.cli"""

import sys

from pocketvlm.cli import main

if __name__ == "__main__":  # processes that are started for media import it too
    sys.exit(main())
