"""Record the tables of scale `full`.

``python -m sparsebook.experiments.mutual_choice_sae [source]``, a source being zipf, real or uniform: then
its cells alone are measured anew.
"""

import sys

import torch

from sparsebook.experiments.mutual_choice_sae.recording import record
from sparsebook.experiments.mutual_choice_sae.scales import Config

if __name__ == "__main__":
    torch.set_num_threads(1)
    record(Config.at("full"), *sys.argv[1:2])
