"""Record tables of scale `full`: ``python -m sparsebook.experiments.sparse_matmul_kernels [table ...]``."""

import sys

from sparsebook.experiments.sparse_matmul_kernels.results import EXPERIMENTS, record
from sparsebook.experiments.sparse_matmul_kernels.scales import Config

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or tuple(EXPERIMENTS)
    unknown = [name for name in wanted if name not in EXPERIMENTS]
    if unknown:
        sys.exit(f"unknown table {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    record(Config.at("full"), wanted)
