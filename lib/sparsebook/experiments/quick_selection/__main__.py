"""Record the tables of scale `full`.

``python -m sparsebook.experiments.quick_selection [experiment ...]``
"""

import sys

from sparsebook.experiments.quick_selection.recording import RECORDED, record
from sparsebook.experiments.quick_selection.scales import Config

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or RECORDED
    unknown = [name for name in wanted if name not in RECORDED]
    if unknown:
        sys.exit(f"unknown experiment {', '.join(unknown)}; there are {', '.join(RECORDED)}")
    record(Config.at("full"), wanted)
