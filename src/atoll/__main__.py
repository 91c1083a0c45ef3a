"""`python -m atoll` is the command `atoll`."""

import sys

from .control.cli import main

sys.exit(main())
