"""Starts a run: python launch.py --config=configs/clinc150_minilm.py --workdir=runs/clinc150; see launch.py --help."""

import sys
from pathlib import Path

from tljax.launch.start import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
