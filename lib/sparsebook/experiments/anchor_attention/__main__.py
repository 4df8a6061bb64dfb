"""Record the tables of scale `full`: ``python -m sparsebook.experiments.anchor_attention [run ...]``."""

import sys

from sparsebook.experiments.anchor_attention.recording import RUNS, record
from sparsebook.experiments.anchor_attention.scales import Config

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or tuple(RUNS)
    unknown = [name for name in wanted if name not in RUNS]
    if unknown:
        sys.exit(f"unknown run {', '.join(unknown)}; there are {', '.join(RUNS)}")
    record(Config.at("full"), wanted)
