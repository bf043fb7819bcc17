"""Run a Snakemake command, after clearing up where its last driver was killed.

usage: drive.py snakemake all --profile slurm ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.pipeline.driver import main

if __name__ == "__main__":
    main(sys.argv[1:])
