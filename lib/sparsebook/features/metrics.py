"""How good, how sparse and how alike dictionaries are.

Tables of activations are ``[*seeds, tokens, width]``, dictionaries ``[*seeds, latents, width]`` with one
atom a row, densities ``[*seeds, latents]``: the share of tokens that a latent is active for. Results have the
leading axes that the inputs have.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparsebook.features.codes import Codes

# --- reconstruction -----------------------------------------------------------------------------------------


def squared_error(
    x: Float[Tensor, "*batch tokens width"], reconstruction: Float[Tensor, "*seeds tokens width"]
) -> Float[Tensor, "*seeds"]:
    """Squared error of a token, summed over the width, mean over the tokens."""
    return (reconstruction - x).square().sum(-1).mean(-1)


def normalized_mse(
    x: Float[Tensor, "*batch tokens width"], reconstruction: Float[Tensor, "*seeds tokens width"]
) -> Float[Tensor, "*seeds"]:
    """Squared error over the squared deviation from the batch's mean: 1 for that mean, 0 without error.

    NaN or infinite where all tokens are the same.
    """
    return squared_error(x, reconstruction) / (x - x.mean(-2, keepdim=True)).square().sum(-1).mean(-1)


def r_squared(
    x: Float[Tensor, "*batch tokens width"], reconstruction: Float[Tensor, "*seeds tokens width"]
) -> Float[Tensor, "*seeds"]:
    """Share of the total variance about the mean that is explained: ``1 - normalized_mse``."""
    return 1 - normalized_mse(x, reconstruction)


# --- use of the latents -------------------------------------------------------------------------------------


def l0(codes: Codes) -> Float[Tensor, "*seeds"]:
    """Mean number of active latents a token."""
    return codes.active_per_token().double().mean(-1)


def densities(codes: Codes) -> Float[Tensor, "*seeds latents"]:
    """Share of the tokens that each latent is active for."""
    return codes.active_per_latent().double() / codes.n_tokens


def dead_fraction(
    density: Float[Tensor, "*seeds latents"], least: float | int = 0.0
) -> Float[Tensor, "*seeds"]:
    """Share of latents with a density of at most `least`."""
    return (density <= least).double().mean(-1)


def alive_fraction(
    density: Float[Tensor, "*seeds latents"], least: float | int = 0.0
) -> Float[Tensor, "*seeds"]:
    """Share of latents with a density above `least`."""
    return 1 - dead_fraction(density, least)


def underused_fraction(
    density: Float[Tensor, "*seeds latents"], expected: Float[Tensor, "*seeds latents"], share: float = 0.5
) -> Float[Tensor, "*seeds"]:
    """Share of latents that are active, but for less than `share` of the tokens expected of them."""
    return ((density > 0) & (density < share * expected)).double().mean(-1)


def effective_features(density: Float[Tensor, "*seeds latents"]) -> Float[Tensor, "*seeds"]:
    """``exp H`` of the densities as shares of their sum: how many latents, used alike, would be as varied.

    Raises
    ------
    ValueError : negative densities, or none above 0
    """
    return _entropy(density, "density").exp()


def gini(density: Float[Tensor, "*seeds latents"]) -> Float[Tensor, "*seeds"]:
    """Gini coefficient of the densities: 0 if all are equal, ``1 - 1/n`` if one latent is used alone.

    Raises
    ------
    ValueError : negative densities, or none above 0
    """
    share = _shares(density, "density").sort(-1).values
    n = share.shape[-1]
    rank = torch.arange(1, n + 1, device=share.device, dtype=share.dtype)
    return (2 * rank - n - 1).mul(share).sum(-1) / n


def _shares(values: Tensor, name: str) -> Tensor:
    total = values.double().sum(-1, keepdim=True)
    if not bool((values >= 0).all()) or not bool((total > 0).all()):
        raise ValueError(f"{name} has negative values or is zero altogether: expected shares of something")
    return values.double() / total


def _entropy(values: Tensor, name: str) -> Tensor:
    share = _shares(values, name)
    return torch.special.entr(share).sum(-1)


# --- dictionaries -------------------------------------------------------------------------------------------


def atom_norms(
    dictionary: Float[Tensor, "*seeds latents width"], name: str = "dictionary"
) -> Float[Tensor, "*seeds latents 1"]:
    """Lengths of the atoms.

    Raises
    ------
    ValueError : an atom is zero or not finite
    """
    norms = dictionary.norm(dim=-1, keepdim=True)
    unfit = ~((norms > 0) & norms.isfinite()).squeeze(-1)
    if bool(unfit.any()):
        place = unfit.nonzero()[0].tolist()
        raise ValueError(f"{name} has a zero or infinite atom at {place}: expected atoms of finite length")
    return norms


def max_cosine(
    atoms: Float[Tensor, "latents width"], others: Float[Tensor, "others width"], block: int = 4096
) -> Float[Tensor, " latents"]:
    """Each atom's largest cosine with any of the others, in blocks: no table of all pairs is kept.

    Parameters
    ----------
    block : atoms of either side at a time

    Raises
    ------
    ValueError : a zero atom, or no other atoms
    """
    if not len(others):
        raise ValueError("others is empty: expected at least one atom")
    atoms, others = atoms / atom_norms(atoms, "atoms"), others / atom_norms(others, "others")
    found = [
        torch.stack([(rows @ columns.T).amax(1) for columns in others.split(block)]).amax(0)
        for rows in atoms.split(block)
    ]
    return torch.cat(found) if found else atoms.new_zeros(0)


def mean_max_cosine(
    atoms: Float[Tensor, "latents width"], others: Float[Tensor, "others width"]
) -> Float[Tensor, ""]:
    """Mean over the atoms of :func:`max_cosine`: how much of one dictionary the other one has."""
    return max_cosine(atoms, others).mean()


def seed_consistency(dictionaries: Float[Tensor, "seeds latents width"]) -> Float[Tensor, "seeds seeds"]:
    """:func:`mean_max_cosine` of every ordered pair of seeds: row's atoms in the column's dictionary."""
    return torch.stack([torch.stack([mean_max_cosine(a, b) for b in dictionaries]) for a in dictionaries])


def feature_recovery_rate(
    dictionary: Float[Tensor, "latents width"], features: Float[Tensor, "features width"], tau: float = 0.9
) -> Float[Tensor, ""]:
    """Share of true features with an atom of cosine `tau` or more."""
    return (max_cosine(features, dictionary) >= tau).double().mean()


def babel(
    dictionary: Float[Tensor, "latents width"],
    sizes: Int64[Tensor, " sizes"] | None = None,
    block: int = 4096,
) -> Float[Tensor, " sizes"]:
    """Babel function: ``max_i max_{|L| = r, i not in L} sum_{j in L} |D_i . D_j|`` (unit atoms).

    Parameters
    ----------
    sizes : values of `r`, 1 to latents - 1; None for all of them
    block : atoms at a time

    Raises
    ------
    ValueError : a zero atom, fewer than two atoms, or sizes out of range
    """
    n = len(dictionary)
    sizes = torch.arange(1, n, device=dictionary.device) if sizes is None else sizes
    if n < 2 or not len(sizes) or int(sizes.min()) < 1 or int(sizes.max()) > n - 1:
        raise ValueError(f"sizes: expected 1 to {n - 1}, for a dictionary of at least two atoms")
    unit = dictionary / atom_norms(dictionary)
    largest = unit.new_zeros(len(sizes))
    for start in range(0, n, block):
        cosines = (unit[start : start + block] @ unit.T).abs()
        here = torch.arange(len(cosines), device=cosines.device)
        cosines[here, start + here] = 0
        sums = cosines.topk(int(sizes.max()), dim=1).values.cumsum(1)
        largest = torch.maximum(largest, sums[:, sizes - 1].amax(0))
    return largest


def active_babel(codes: Codes, dictionary: Float[Tensor, "latents width"]) -> Float[Tensor, " tokens"]:
    """Babel function of each token's own active atoms, at its largest size; 0 for fewer than two atoms."""
    unit = dictionary / atom_norms(dictionary)
    found = []
    for row in codes.dense():
        atoms = unit[row != 0]
        cosines = (atoms @ atoms.T).abs().fill_diagonal_(0)
        found.append(cosines.sum(1).max() if len(atoms) > 1 else cosines.new_zeros(()))
    return torch.stack(found)


def effective_rank(matrix: Float[Tensor, "*seeds rows columns"]) -> Float[Tensor, "*seeds"]:
    """``exp H`` of the eigenvalues of ``Z^T Z`` as shares of their sum, for codes or activations ``Z``.

    Raises
    ------
    ValueError : a matrix of zeros
    """
    z = matrix.double()
    gram = z.mT @ z if z.shape[-1] <= z.shape[-2] else z @ z.mT
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    return _entropy(eigenvalues, "matrix").exp()


def modality_score(
    codes: Codes, first: Bool[Tensor, " tokens"], scale: float | int = 1.0
) -> Float[Tensor, "*seeds latents"]:
    """Share of each latent's energy that comes from the first of two modalities; NaN for one without any.

    Parameters
    ----------
    first : which tokens are of the first modality
    scale : weight of the other one's energy, for instance 1/5 where an image has five captions

    Raises
    ------
    ValueError : a length other than that of the codes, all tokens of one modality, or `scale` not above 0
    """
    if first.shape != (codes.n_tokens,) or bool(first.all()) or not bool(first.any()):
        raise ValueError(f"first has shape {tuple(first.shape)}: expected tokens of both modalities")
    if not scale > 0:
        raise ValueError(f"scale={scale}: expected above 0")
    energy = codes.dense().double().square()
    of_first, of_second = energy[..., first, :].sum(-2), scale * energy[..., ~first, :].sum(-2)
    return of_first / (of_first + of_second)
