"""Record the tables of scale `full`: ``python -m sparsebook.experiments.matching_pursuit_sae [run ...]``."""

import sys

from sparsebook.experiments.matching_pursuit_sae.recording import RUNS, record
from sparsebook.experiments.matching_pursuit_sae.scales import Config

if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or tuple(RUNS)
    unknown = [name for name in wanted if name not in RUNS]
    if unknown:
        sys.exit(f"unknown run {', '.join(unknown)}; there are {', '.join(RUNS)}")
    record(Config.at("full"), wanted)
