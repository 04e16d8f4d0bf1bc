"""python -m tljax: the same as the command tljax."""

import sys

from tljax.cli import main

sys.exit(main())
