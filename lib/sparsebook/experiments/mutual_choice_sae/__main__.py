"""Record the tables of scale `full`: ``python -m sparsebook.experiments.mutual_choice_sae``."""

import torch

from sparsebook.experiments.mutual_choice_sae.recording import record
from sparsebook.experiments.mutual_choice_sae.scales import Config

if __name__ == "__main__":
    torch.set_num_threads(1)
    record(Config.at("full"))
