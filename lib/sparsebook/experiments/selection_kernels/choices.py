"""What the three rules choose, how exact the kernels are, and what they refuse: nothing here is timed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sparsebook.experiments.selection_kernels.scales import Config
from sparsebook.experiments.selection_kernels.tidy import Rows, row
from sparsebook.kernels import sparse_codes
from sparsebook.kernels.pursuit import (
    Rule,
    matching_pursuit,
    matching_pursuit_reference,
    orthogonal_matching_pursuit,
    orthogonal_matching_pursuit_reference,
)
from sparsebook.kernels.selection import (
    Selected,
    column_topm,
    column_topm_reference,
    global_topm,
    global_topm_reference,
    row_topk,
    row_topk_reference,
)
from sparsebook.kernels.selection.cpu import sampled_limit


def affinities(rows: int, columns: int, seed: int) -> Tensor:
    """A batch of affinities: standard normal, float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def uneven_counts(columns: int, total: int, rows: int) -> Tensor:
    """How many each column may take if column r's share goes with 1 / (r + 3); about `total` in all."""
    share = 1 / (torch.arange(columns) + 3.0)
    return (share / share.sum() * total).round().long().clamp(max=rows)


# What the rules choose -----------------------------------------------------------------------------------


def run_allocations(rows: int = 12, columns: int = 24, k: int = 3, seed: int = 5) -> dict[str, Tensor]:
    """A small batch of affinities and what each rule takes of it, all with the same budget."""
    x = affinities(rows, columns, seed)
    # Some rows are richer than others, and some columns stronger: otherwise the rules would hardly differ.
    x = x + torch.linspace(1.0, -0.6, rows)[:, None] + torch.linspace(0.9, -0.7, columns)
    per_column = rows * k / columns
    m = torch.full((columns,), int(per_column))
    m[: rows * k - int(m.sum())] += 1
    mask = torch.zeros_like(x).scatter(1, row_topk(x, k).indices, 1.0)
    return {
        "affinities": x,
        "rows": mask,
        "columns": _mask(column_topm(x, m)),
        "matrix": _mask(global_topm(x, rows * k)),
    }


def _mask(found: Selected) -> Tensor:
    return torch.zeros(found.shape).index_put((found.rows, found.columns), torch.ones(len(found)))


# Exactness -----------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "after a ReLU": torch.relu,
    "many ties": lambda x: (2 * x).round(),
    "all equal": torch.zeros_like,
    "with infinities": lambda x: torch.where(x > 2, torch.inf, torch.where(x < -2, -torch.inf, x)),
    "ascending": lambda x: x.flatten().sort().values.view(x.shape),
    "bfloat16": lambda x: x.bfloat16(),
}


def run_exactness(rows: int = 300, columns: int = 700, seed: int = 0) -> pd.DataFrame:
    """Elements in which a selection differs from a stable sort, for kinds of matrices that are hard."""
    out = []
    m = torch.randint(0, 20, (columns,), generator=torch.Generator().manual_seed(seed))
    for kind, change in KINDS.items():
        x = change(affinities(rows, columns, seed))
        by_row = row_topk(x, 20).indices != row_topk_reference(x, 20)[1]
        all_rows = column_topm(x, m), column_topm_reference(x, m)
        matrix = global_topm(x, 5000), global_topm_reference(x, 5000)
        counts = [int(by_row.sum()), *(_differences(*pair) for pair in (all_rows, matrix))]
        out.append({"matrix": kind} | dict(zip(("rows", "columns", "all"), counts, strict=True)))
    return pd.DataFrame(out).set_index("matrix")


def _differences(found: Selected, expected: tuple[Tensor, ...]) -> int:
    values, rows, columns, offsets = expected
    return int((_mask(found) != _mask(Selected(values, rows, columns, offsets, found.shape))).sum())


def run_decode_error(batch: int = 256, atoms: int = 1000, k: int = 16, width: int = 200) -> pd.DataFrame:
    """Largest error of the product and its gradients over the largest value, against float64."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*s, generator=generator) for s in ((batch, k), (atoms, width))]
    indices = torch.randint(0, atoms, (batch, k), generator=generator)
    weights = torch.randn(batch, width, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        values, dictionary = (leaf.to(dtype, copy=True).requires_grad_() for leaf in leaves)
        out = sparse_codes.decode(values, indices, dictionary)
        grads = torch.autograd.grad(out, (values, dictionary), weights.to(dtype))
        found.append([t.detach().double() for t in (out, *grads)])
    errors = [
        float((mine - exact).abs().max() / exact.abs().max()) for mine, exact in zip(*found, strict=True)
    ]
    names = ("product", "gradient of the values", "gradient of the dictionary")
    return pd.DataFrame({"largest relative error": errors}, index=pd.Index(names, name="of"))


def run_pursuit_error(rows: int = 500, dim: int = 48, atoms: int = 300, steps: int = 8) -> pd.DataFrame:
    """Both pursuits against their references in float64: equal picks, and the error of such."""
    x, dictionary = unit_problem(rows, dim, atoms, seed=0)
    exact = x.double()[None], dictionary.double()[None]
    matching = matching_pursuit_reference(*exact, steps, 0.0, int(Rule.POSITIVE), False)
    expected = {
        "matching pursuit": (matching, partial(matching_pursuit, x, dictionary, n_steps=steps)),
        "orthogonal matching pursuit": (
            orthogonal_matching_pursuit_reference(*exact, steps, 0.0),
            partial(orthogonal_matching_pursuit, x, dictionary, n_steps=steps),
        ),
    }
    found = []
    for name, ((picks, coefficients, _), call) in expected.items():
        for form, use_gram in (("Gram form", True), ("direct form", False)):
            codes = call(use_gram=use_gram)
            same = (codes.indices == picks[0]).all(1)
            error = (codes.coefficients.double() - coefficients[0])[same].abs()
            found.append(
                {"method": name, "form": form, "vectors with equal picks": f"{same.double().mean():.1%}",
                 "error below 1e-5": bool(same.any() and (error < 1e-5).all())}
            )  # fmt: skip
    return pd.DataFrame(found).set_index(["method", "form"])


def unit_problem(rows: int, dim: int, atoms: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normal vectors and a dictionary of random directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator)
    return x, torch.nn.functional.normalize(torch.randn(atoms, dim, generator=generator), dim=1)


# Bad input -----------------------------------------------------------------------------------------------


def run_refusals() -> pd.DataFrame:
    """What the public functions say to input that has no answer."""
    x, dictionary = unit_problem(4, 6, 6, seed=0)
    holed, endless, zeroed = x.clone(), x.clone(), dictionary.clone()
    holed[2, 1], endless[2, 1], zeroed[3] = torch.nan, torch.inf, 0
    values, indices = row_topk(x, 2)
    calls: dict[str, Callable[[], object]] = {
        "k larger than the columns": lambda: row_topk(x, 7),
        "more of a column than it has": lambda: column_topm(x, 5),
        "an empty batch": lambda: global_topm(x[:0], 3),
        "NaN in the affinities": lambda: global_topm(holed, 3),
        "an atom that is not there": lambda: sparse_codes.decode(values, indices + 6, dictionary),
        "an empty batch, pursued": lambda: matching_pursuit(x[:0], dictionary, n_steps=2),
        "NaN in a vector": lambda: matching_pursuit(holed, dictionary, n_steps=2),
        "infinity in a vector": lambda: matching_pursuit(endless, dictionary, n_steps=2),
        "a zero atom": lambda: orthogonal_matching_pursuit(x, zeroed, n_steps=2),
        "more steps than dimensions": lambda: orthogonal_matching_pursuit(x, dictionary, n_steps=7),
    }
    answers = {name: _refusal(call) for name, call in calls.items()}
    return pd.DataFrame({"ValueError": answers}).rename_axis("input")


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "(accepted)"


# How selection works: the limit --------------------------------------------------------------------------


def run_histogram(rows: int = 1024, columns: int = 4096, k: int = 8, seed: int = 0) -> dict[str, Any]:
    """A histogram of a matrix, the limit that its sample gives, the smallest selected value, and counts."""
    x = affinities(rows, columns, seed)
    m = rows * k
    limit = sampled_limit(x.view(-1).numpy(), m)
    counts, edges = np.histogram(x.numpy(), bins=120)
    return {
        "counts": counts, "edges": edges, "limit": limit, "threshold": float(global_topm(x, m).threshold),
        "selected": m, "candidates": int((x >= limit).sum()), "elements": x.numel(),
    }  # fmt: skip


def count_candidates(config: Config, seed: int) -> dict[str, float]:
    """Share of a matrix that is touched singly, over the share that is selected."""
    x = affinities(config.sweep_rows, config.columns, seed)
    m = config.sweep_rows * config.k
    reached = int((x >= sampled_limit(x.view(-1).numpy(), m)).sum())
    return {"listed over selected": reached / m}


def run_candidates(config: Config) -> pd.DataFrame:
    """How many elements reach the limit that the sample gives, over those wanted, for several matrices."""
    out: Rows = []
    for seed in config.seeds:
        for metric, value in count_candidates(config, seed).items():
            out.append(row("candidates", "ours", seed, metric, value, task="matrix"))
    return pd.DataFrame(out)
