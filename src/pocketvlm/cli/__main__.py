"""python -m pocketvlm.cli"""

import sys

from pocketvlm.cli import main

sys.exit(main())
