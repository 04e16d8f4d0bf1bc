"""Starts a run here: python launch.py --config=configs/clinc150_minilm.py --workdir=runs/clinc150."""

import sys

from tljax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
