import os
import pickle

import pytest
import torch

from sparsebook.files import MissingInput
from sparsebook.models.loading import hub_offline, optional, read_checkpoint


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        MissingInput, match=r'"no-such-package" is needed .* pip install "sparsebook\[book\]"'
    ):
        optional("no_such_package.module", "no-such-package")


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, capsys):
    path = tmp_path / "harmful.pth"
    torch.save({"weight": Harmful()}, path)
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("before", [None, "0"])
def test_the_hub_is_off_only_within_the_block(monkeypatch, before):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if before is None:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", before)
    seen = []
    with pytest.raises(ZeroDivisionError), hub_offline():
        seen.append((constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"], 1 / len(seen)))
    with hub_offline():
        seen.append((constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]))
    assert seen == [(True, "1")]
    assert constants.HF_HUB_OFFLINE is False
    assert os.environ.get("HF_HUB_OFFLINE") == before
