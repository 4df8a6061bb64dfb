"""What every test shares: determinism and quiet, spawned workers; and their order."""

import os

import pytest

# A forked child of a process that used OpenMP hangs or is killed; and hubs are never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the workers in the order below; by their number of tests the long ones would come late."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: for one that is begun last, the other workers would wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
