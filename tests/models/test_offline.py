"""All models in one process that has no network, and that would notice if anything asked for one."""

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import socket, sys

def refuse(*arguments, **options):
    raise SystemExit(f"asked for the network: {arguments}")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse

import sparsebook.models
assert not {"torch", "transformers", "kornia"} & sys.modules.keys(), "importing the package must stay cheap"

from skimage.data import chelsea
from sparsebook.models.efficientnet import EfficientNetLite0
from sparsebook.models.gemma import Gemma
from sparsebook.models.local_features import DISK, LightGlue, XFeat
from sparsebook.models.minilm import MiniLM

image = chelsea()[:96, :128]
model = EfficientNetLite0.load()
assert model.logits(model.preprocess(image)).shape == (1, 1000)
assert len(XFeat.load().match_star(image, image)) > 0
found = DISK.load().extract(image, 50)
assert len(LightGlue.load().match(found, found)) > 0
assert MiniLM.load().embed("no network").shape == (1, 384)
gemma = Gemma.load()
tokens = gemma.tokenize("When Mary and John went to the store, John gave a drink to")
assert gemma.decode(gemma(tokens).logits.argmax(-1)) == " Mary"
print("all models answered")
"""


def _without_network():
    """A command prefix that starts a process in a network namespace without interfaces, where allowed."""
    if shutil.which("unshare"):
        for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
            if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
                return prefix
    return []


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_gemma")
def test_every_model_works_with_the_network_switched_off():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [*_without_network(), sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("all models answered")
    assert "http" not in done.stderr


@pytest.mark.usefixtures("prepared_gemma")
def test_preparing_again_reports_and_changes_nothing():
    from sparsebook import models

    lines = []
    models.prepare(lines.append)
    ready = [line.partition(" ")[0] for line in lines if "ready after" in line]
    assert ready == ["efficientnet", "gemma", "local_features", "minilm"]
    assert any("Gemma Terms of Use" in line for line in lines)
