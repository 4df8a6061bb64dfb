"""Record the tables of scale `full`.

``python -m sparsebook.experiments.fast_sparse_convnets [experiment ...]``
"""

import sys

from sparsebook.experiments.fast_sparse_convnets.scales import Config
from sparsebook.experiments.fast_sparse_convnets.verdicts import RECORDED, record

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or RECORDED
    unknown = [name for name in wanted if name not in RECORDED]
    if unknown:
        sys.exit(f"unknown experiment {', '.join(unknown)}; there are {', '.join(RECORDED)}")
    record(Config.at("full"), wanted)
