"""Every data set loads in a process that has no network at all."""

import shutil
import subprocess
import sys

import pytest

LOAD_EVERYTHING = """
import socket
from importlib import import_module
from sparsebook.data.catalogue import CATALOGUE

assert [name for _, name in socket.if_nameindex()] in ([], ["lo"]), socket.if_nameindex()
for entry in CATALOGUE:
    if entry.is_wheel and not entry.available():
        print("not fetched", entry.name)
        continue
    module, function = entry.loader.split(":")
    load = getattr(import_module(module), function)
    if function == "clip":
        load(entry.name, count=2)
    elif function in ("photograph", "word_similarity"):
        load(entry.name)
    else:
        load()
    print("loaded", entry.name)
"""


def without_network():
    """The command that runs another without any network interface, or None where that is not allowed."""
    for options in ("-n", "-rn"):
        command = ["unshare", options]
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True).returncode == 0
        ):
            return command
    return None


def test_everything_loads_without_a_network():
    unshare = without_network()
    if unshare is None:
        pytest.skip("this machine does not allow a network namespace (unshare)")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", LOAD_EVERYTHING], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "loaded wikipedia" in lines
    assert "loaded docstrings" in lines
    assert set(lines) - {"not fetched ml-100k"} == {line for line in lines if line.startswith("loaded ")}
