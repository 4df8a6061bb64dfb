"""Record the tables of scale `full`: ``python -m sparsebook.experiments.selection_kernels [table ...]``."""

import sys

from sparsebook.experiments.selection_kernels.results import EXPERIMENTS, record
from sparsebook.experiments.selection_kernels.scales import Config

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or tuple(EXPERIMENTS)
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown:
        sys.exit(f"unknown table {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    sys.exit(1 if record(Config.at("full"), wanted) else 0)
