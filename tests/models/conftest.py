"""Models loaded once per worker, and the stereo pair that matchers are judged on."""

import os

import numpy as np
import pytest
import torch

from sparsebook import files
from sparsebook.models import gemma as gemma_module


class NotPreparedError(Exception):
    pass


def _refuse(_):
    raise NotPreparedError


@pytest.fixture(scope="session")
def prepared_gemma():
    """Gemma's converted weights are in the cache; otherwise skip, or fail where CI=true."""
    try:
        return files.cached("gemma-3-270m", _refuse, gemma_module.VERSION)
    except NotPreparedError:
        message = "Gemma is not in the cache: run `make prepare`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def gemma(prepared_gemma):
    return gemma_module.Gemma.load()


@pytest.fixture(scope="session")
def minilm():
    from sparsebook.models.minilm import MiniLM

    return MiniLM.load()


@pytest.fixture(scope="session")
def motorcycle():
    from sparsebook.data.stereo import motorcycle

    return motorcycle()


@pytest.fixture(scope="session")
def disparity_errors(motorcycle):
    """A function of matched left and right points: absolute disparity errors in pixels, where it is known."""

    def errors(left, right):
        left, right = np.asarray(left), np.asarray(right)
        height, width = motorcycle.disparity.shape
        columns = np.rint(left[:, 0]).astype(int).clip(0, width - 1)
        rows = np.rint(left[:, 1]).astype(int).clip(0, height - 1)
        error = np.abs(left[:, 0] - right[:, 0] - motorcycle.disparity[rows, columns])
        return error[np.isfinite(error)]

    return errors


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
