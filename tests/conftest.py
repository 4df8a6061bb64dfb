"""What every test shares: determinism and quiet, spawned workers."""

import os

# A forked child of a process that used OpenMP hangs or is killed; and hubs are never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
