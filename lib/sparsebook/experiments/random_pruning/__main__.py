"""Record the tables of scale `full`.

``python -m sparsebook.experiments.random_pruning [experiment ...]``
"""

import sys

from sparsebook.experiments.random_pruning.scales import Config
from sparsebook.experiments.random_pruning.verdicts import RECORDED, record

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or RECORDED
    unknown = [name for name in wanted if name not in RECORDED]
    if unknown:
        sys.exit(f"unknown experiment {', '.join(unknown)}; there are {', '.join(RECORDED)}")
    record(Config.at("full"), wanted)
