"""QuickSelection: features are ranked by how strongly a sparse autoencoder ends up connected to them.

Atashgahi et al. 2022 (arXiv 2012.00560), on the sparse evolutionary training (SET) of Mocanu et al. 2018.

    chosen = QuickSelection(50, random_state=0).fit(x)       # x: samples x features, standardised
    chosen.get_support(indices=True), chosen.ranking_, chosen.strength_, chosen.transform(x)

The autoencoder has one hidden layer and is sparse from its first step to its last: weights are lists of
connections (values, columns, row offsets, momentum), and nothing of the size inputs x hidden neurons is ever
there. Activations lie feature by feature, [features, batch]; the products are those of
`sparsebook.kernels.sparse_matmul`, everything between them is one pass over memory.

Three habits of the released code change what is computed. They are on by default and can be turned off
(`SparseDAE.clean`): dropout is missing in the backward pass and activations are not rescaled
(``dropout_rule``), the derivative of tanh is taken at the output (``tanh_rule``), and the strengths are those
of the weights that survive the last removal, before the last epoch (``snapshot`` of `QuickSelection`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numba import njit
from torch import Tensor

from sparsebook.kernels.sparse_matmul import sddmm_csr, spmm_csr, spmm_t_csr

_SPREAD = 0.1  # of new weights
_SIXTEEN_BITS = 1 << 16


# Connections ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Connections:
    """A sparse matrix as rows of entries (CSR), rows being outputs; columns ascend within a row.

    Attributes
    ----------
    values : float [connections]
    columns : int32 [connections]
    offsets : int32 [n_out + 1]
    n_in : int
        Number of columns of the matrix.
    """

    values: Float[Tensor, " connections"]
    columns: Int[Tensor, " connections"]
    offsets: Int[Tensor, " rows_and_one"]
    n_in: int

    @property
    def n_out(self) -> int:
        """Number of rows."""
        return self.offsets.shape[0] - 1

    @property
    def density(self) -> float:
        """Connections over all that there could be."""
        return self.values.shape[0] / (self.n_in * self.n_out)

    def keys(self) -> Int[np.ndarray, " connections"]:
        """Place of each connection, row * n_in + column, ascending."""
        rows = np.repeat(np.arange(self.n_out, dtype=np.int64), np.diff(self.offsets.numpy()))
        return rows * self.n_in + self.columns.numpy()

    def csr(self) -> Tensor:
        """The same as a `torch.sparse_csr` tensor [n_out, n_in]."""
        return torch.sparse_csr_tensor(self.offsets, self.columns, self.values, (self.n_out, self.n_in))

    def strength(self) -> Float[np.ndarray, " n_in"]:
        """Sum of the absolute weights that leave each input."""
        return np.bincount(self.columns.numpy(), self.values.abs().numpy(), self.n_in)

    def degree(self) -> Int[np.ndarray, " n_in"]:
        """Number of connections that leave each input."""
        return np.bincount(self.columns.numpy(), minlength=self.n_in)


def _connections(keys: np.ndarray, values: np.ndarray, n_in: int, n_out: int) -> Connections:
    rows, columns = np.divmod(keys, n_in)
    offsets = np.concatenate([[0], np.bincount(rows, minlength=n_out).cumsum()])
    return Connections(
        torch.from_numpy(values), torch.from_numpy(columns.astype(np.int32)),
        torch.from_numpy(offsets.astype(np.int32)), n_in,
    )  # fmt: skip


def erdos_renyi(
    n_in: int, n_out: int, epsilon: float | int, rng: np.random.Generator, *, dtype: Any = np.float32
) -> Connections:
    """Random connections: epsilon (n_in + n_out) places drawn with replacement, weights N(0, 0.1^2).

    Parameters
    ----------
    n_in, n_out : int
        Numbers of inputs and outputs.
    epsilon : float
        Draws per neuron; what is drawn twice is one connection (see `expected_connections`).

    Raises
    ------
    ValueError
        A layer without neurons or one that would stay without any connection.
    """
    draws = _draws(n_in, n_out, epsilon)
    keys = _unique(rng.integers(0, n_in * n_out, draws))
    return _connections(keys, _new_weights(len(keys), rng, dtype), n_in, n_out)


def expected_connections(n_in: int, n_out: int, epsilon: float | int) -> float:
    """Mean number of connections that `erdos_renyi` makes.

    >>> round(expected_connections(784, 1000, 13))
    22852
    """
    cells = n_in * n_out
    return float(-cells * np.expm1(_draws(n_in, n_out, epsilon) * np.log1p(-1 / cells))) if cells > 1 else 1.0


def _draws(n_in: int, n_out: int, epsilon: float | int) -> int:
    if n_in < 1 or n_out < 1:
        raise ValueError(f"layer {n_in} x {n_out}: expected at least one input and one output")
    draws = int(epsilon * (n_in + n_out))
    if draws < 1:
        raise ValueError(f"epsilon={epsilon}: expected more, {n_in} x {n_out} would have no connection")
    return draws


def _new_weights(n: int, rng: np.random.Generator, dtype: Any) -> np.ndarray:
    return (_SPREAD * rng.standard_normal(n, dtype=np.float32)).astype(dtype)


class Evolved(NamedTuple):
    """A layer after a step of SET.

    `weights` and `momentum` are those to go on with; `pruned` are the connections that survived, before new
    ones were added.
    """

    weights: Connections
    momentum: Float[Tensor, " connections"]
    pruned: Connections


def set_evolve(
    weights: Connections, momentum: Float[Tensor, " connections"], zeta: float | int,
    rng: np.random.Generator,
) -> Evolved:  # fmt: skip
    """Remove the weakest share zeta of positive and of negative weights, add as many at random places.

    The rule is that of `sparsebook.networks.exchange.drop_signed`, on a list. New weights are N(0, 0.1^2),
    their momentum is zero; a place that was emptied a moment ago may be taken again, as in the released code.

    Raises
    ------
    ValueError
        A share outside [0, 1).
    """
    if not 0 <= zeta < 1:
        raise ValueError(f"zeta={zeta}: expected 0 to below 1")
    low, high = signed_thresholds(weights.values.numpy(), zeta)
    keep = (weights.values.numpy() < low) | (weights.values.numpy() > high)
    old = weights.keys()[keep]
    values, speed = weights.values.numpy()[keep], momentum.numpy()[keep]
    new = _empty_places(old, len(keep) - len(old), weights.n_in * weights.n_out, rng)
    order = np.argsort(np.concatenate([old, new]), kind="stable")
    fresh = _new_weights(len(new), rng, values.dtype)
    grown = _connections(
        np.concatenate([old, new])[order], np.concatenate([values, fresh])[order], weights.n_in, weights.n_out
    )
    speed = np.concatenate([speed, np.zeros_like(fresh)])[order]
    return Evolved(grown, torch.from_numpy(speed), _connections(old, values, weights.n_in, weights.n_out))


def signed_thresholds(values: Float[np.ndarray, " weights"], zeta: float | int) -> tuple[float, float]:
    """Weights from the first to the second number, both included, are removed; see `set_evolve`.

    The first is the weight below which a share 1 - zeta of those before the one nearest to zero lie, the
    second is found from the other end; with zeta = 0 nothing is removed.
    """
    if zeta == 0 or not len(values):
        return np.inf, -np.inf
    # NumPy's vectorised sort: on a list as long as a layer's it is tens of times faster than PyTorch's.
    ordered = np.sort(values)
    size = np.abs(ordered)
    nearest = np.flatnonzero(size == size.min())
    first, after = int(nearest[0]), int(nearest[-1]) + 1
    high = ordered[min(len(ordered) - 1, int(after + zeta * (len(ordered) - after)))]
    return float(ordered[int((1 - zeta) * first)]), float(high)


def _unique(numbers: np.ndarray) -> np.ndarray:
    """Ascending, each once (`numpy.unique` hashes, which takes ten times as long here)."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


def _empty_places(taken: np.ndarray, count: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different numbers below `cells` that are not among `taken` (ascending), uniformly.

    By drawing again what is taken, without a map of all cells; where most are taken, their complement is as
    small as they are.
    """
    if 2 * (len(taken) + count) > cells:
        return np.sort(rng.choice(np.setdiff1d(np.arange(cells), taken, assume_unique=True), count, False))
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        drawn = _unique(rng.integers(0, cells, count - len(found)))
        place = np.minimum(np.searchsorted(taken, drawn), max(0, len(taken) - 1))
        free = drawn[taken[place] != drawn] if len(taken) else drawn
        found = _unique(np.concatenate([found, free]))
    return found


# Passes over memory between the products -----------------------------------------------------------------

# Sums may be taken in any order, so that they are taken in vectors; nothing else is relaxed: NaN stays NaN.
_FAST = {"reassoc", "contract"}


@njit(cache=True)
@no_type_check
def _pick(data, order, out):
    """Rows `order` of the data as columns, two cache lines of features at a time."""
    features = data.shape[1]
    for start in range(0, features, 32):
        for i in range(start, min(features, start + 32)):
            for b in range(len(order)):
                out[i, b] = data[order[b], i]


@njit(cache=True)
@no_type_check
def _drop(active, bits, below, scale, out):
    """Activations times a random mask: kept where the bits are below."""
    for i in range(active.size):
        out[i] = active[i] * scale if bits[i] < below else active.dtype.type(0)


@njit(cache=True, fastmath=_FAST)
@no_type_check
def _error(out, target, bent, curved, means):
    """Error times the output's derivative, in place; its mean per output; returns the squared error.

    The derivative is 1 - bent^2 if `curved`, else 1.
    """
    loss = 0.0
    for i in range(out.shape[0]):
        total = squares = out.dtype.type(0)
        for b in range(out.shape[1]):
            error = out[i, b] - target[i, b]
            squares += error * error
            if curved:
                error *= 1 - bent[i, b] * bent[i, b]
            out[i, b] = error
            total += error
        means[i] = total / out.shape[1]
        loss += squares
    return loss


@njit(cache=True, fastmath=_FAST)
@no_type_check
def _through_sigmoid(back, active, bits, below, scale, masked, means):
    """Gradient times the sigmoid's derivative (and the mask if `masked`), in place; its mean per neuron."""
    zero = back.dtype.type(0)
    for i in range(back.shape[0]):
        total = zero
        for b in range(back.shape[1]):
            slope = back[i, b] * active[i, b] * (1 - active[i, b])
            if masked:
                slope = slope * scale if bits[i, b] < below else zero
            back[i, b] = slope
            total += slope
        means[i] = total / back.shape[1]


@njit(cache=True)
@no_type_check
def _move(weights, speed, gradient, rate, inertia, decay):
    """Heavy ball; the decay is not multiplied by the rate."""
    for i in range(len(weights)):
        speed[i] = inertia * speed[i] - rate * gradient[i]
        weights[i] += speed[i] - decay * weights[i]


# The network ---------------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Of the mean over the batch of half the squared error; `loss` is the mean squared error of an entry."""

    input_weights: Float[Tensor, " connections"]
    output_weights: Float[Tensor, " connections_out"]
    input_bias: Float[Tensor, " hidden"]
    output_bias: Float[Tensor, " features"]
    loss: float


class SparseNetwork:
    """Weights of both layers, and one step of training on them.

    Parameters
    ----------
    options : SparseDAE
    n_features : int
    rng : of connections and dropout
    dtype : float32, or float64 for the reference
    """

    def __init__(
        self, options: "SparseDAE", n_features: int, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        d, n = n_features, options.n_hidden
        self.options, self.rng = options, rng
        self.input = erdos_renyi(d, n, options.epsilon, rng, dtype=dtype)
        self.output = erdos_renyi(n, d, options.epsilon, rng, dtype=dtype)
        kind = self.input.values.dtype
        self.input_bias, self.output_bias = torch.zeros(n, dtype=kind), torch.zeros(d, dtype=kind)
        self.input_bias_speed, self.output_bias_speed = torch.zeros(n, dtype=kind), torch.zeros(d, dtype=kind)
        self.input_speed = torch.zeros_like(self.input.values)
        self.output_speed = torch.zeros_like(self.output.values)
        self.pruned: Connections | None = None

    def gradients(
        self, x: Float[Tensor, "features batch"], target: Float[Tensor, "features batch"]
    ) -> Gradients:
        """Gradients at the present weights, on the existing connections only."""
        options, batch = self.options, x.shape[1]
        active = self._active(x)
        bits, below, scale = self._mask(active.shape)
        hidden = active
        if below < _SIXTEEN_BITS:
            hidden = torch.empty_like(active)
            _drop(_flat(active), bits.reshape(-1), below, _flat(active).dtype.type(scale), _flat(hidden))
        out = spmm_csr(*_lists(self.output), hidden, self.output_bias)
        means = torch.empty_like(self.output_bias), torch.empty_like(self.input_bias)
        curved = options.output == "tanh"
        bent = out
        if curved:
            torch.tanh(out, out=out)
            bent = torch.tanh(out) if options.tanh_rule == "released" else out.clone()
        loss = _error(out.numpy(), target.numpy(), bent.numpy(), curved, means[0].numpy())
        back = spmm_t_csr(*_lists(self.output), out, options.n_hidden)
        masked = options.dropout_rule == "inverted" and below < _SIXTEEN_BITS
        scale = back.numpy().dtype.type(scale)
        _through_sigmoid(back.numpy(), active.numpy(), bits, below, scale, masked, means[1].numpy())
        inner = sddmm_csr(self.input.columns, self.input.offsets, back, x)
        outer = sddmm_csr(self.output.columns, self.output.offsets, out, hidden)
        return Gradients(inner / batch, outer / batch, means[1], means[0], loss / (batch * x.shape[0]))

    def update(self, gradients: Gradients) -> None:
        """W <- W + v - decay W with v <- momentum v - lr gradient; biases likewise."""
        for weights, speed, gradient in (
            (self.input.values, self.input_speed, gradients.input_weights),
            (self.output.values, self.output_speed, gradients.output_weights),
            (self.input_bias, self.input_bias_speed, gradients.input_bias),
            (self.output_bias, self.output_bias_speed, gradients.output_bias),
        ):
            own = weights.numpy().dtype.type
            rate, inertia = own(self.options.lr), own(self.options.momentum)
            decay = own(self.options.weight_decay)
            _move(weights.numpy(), speed.numpy(), gradient.numpy(), rate, inertia, decay)

    def evolve(self) -> None:
        """A step of SET in both layers; keeps what survived of the first in `pruned`."""
        zeta = self.options.zeta
        self.input, self.input_speed, self.pruned = set_evolve(self.input, self.input_speed, zeta, self.rng)
        self.output, self.output_speed, _ = set_evolve(self.output, self.output_speed, zeta, self.rng)

    def epoch(
        self, data: Float[np.ndarray, "samples features"], noisy: Float[np.ndarray, "samples features"]
    ) -> float:
        """Train on all samples once, in random order; returns the mean squared error of an entry.

        `noisy` are the inputs; with ``noise_rule="batch"`` they are not read and noise is drawn.
        """
        samples, features = data.shape
        batch = min(self.options.batch_size, samples)
        order, losses = self.rng.permutation(samples), []
        target, x = np.empty((features, batch), np.float32), np.empty((features, batch), np.float32)
        for start in range(0, samples - batch + 1, batch):
            _pick(data, order[start : start + batch], target)
            if self.options.noise_rule == "batch":
                np.add(target, self.noise(x.shape), out=x)
            else:
                _pick(noisy, order[start : start + batch], x)
            gradients = self.gradients(torch.from_numpy(x), torch.from_numpy(target))
            self.update(gradients)
            losses.append(gradients.loss)
        return float(np.mean(losses))

    def noise(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """Gaussian, of the options' standard deviation."""
        return np.float32(self.options.noise) * self.rng.standard_normal(shape, dtype=np.float32)

    def predict(self, x: Float[Tensor, "features batch"]) -> Float[Tensor, "features batch"]:
        """The reconstruction without dropout; released: the output before tanh, bias included, times keep."""
        out = spmm_csr(*_lists(self.output), self._active(x), self.output_bias)
        if self.options.dropout_rule == "released":
            out *= 1 - self.options.dropout
        return out.tanh_() if self.options.output == "tanh" else out

    def _active(self, x: Tensor) -> Tensor:
        return spmm_csr(*_lists(self.input), x, self.input_bias).sigmoid_()

    def _mask(self, shape: Any) -> tuple[np.ndarray, int, float]:
        """Random 16-bit numbers, the bound under which an activation is kept, and what it is scaled by."""
        keep = 1 - self.options.dropout
        scale = 1 / keep if self.options.dropout_rule == "inverted" else 1.0
        if keep == 1:
            return np.empty((0, 0), dtype=np.uint16), _SIXTEEN_BITS, 1.0
        count = -(-shape[0] * shape[1] // 4)
        words = self.rng.integers(0, 2**64, count, dtype=np.uint64)
        bits = words.view(np.uint16)[: shape[0] * shape[1]].reshape(tuple(shape))
        return bits, round(keep * _SIXTEEN_BITS), scale


def _lists(layer: Connections) -> tuple[Tensor, Tensor, Tensor]:
    return layer.values, layer.columns, layer.offsets


def _flat(x: Tensor) -> np.ndarray:
    return x.numpy().reshape(-1)


# Estimators ----------------------------------------------------------------------------------------------

Watch = Callable[[int, SparseNetwork], object]


@dataclass(kw_only=True, eq=False)
class SparseDAE:
    """A sparse denoising autoencoder, trained by sparse evolutionary training (SET).

    Parameters
    ----------
    n_hidden : neurons of the hidden layer
    epsilon : connections a neuron at the start; their number stays
    zeta : share of the connections that move after every epoch but the last, 0 to below 1
    noise : standard deviation of what is added to the inputs
    dropout : share of hidden activations that are left out of a step
    lr, momentum, weight_decay : of the updates; the decay is not multiplied by the rate
    batch_size : samples a step; the last, incomplete batch of an epoch is left out, unless it is the only one
    epochs : how often the data are gone through
    output : "linear", or "tanh" for targets within [-1, 1]
    tanh_rule : "released" takes the derivative 1 - tanh(out)^2 at the output, "right" takes 1 - out^2
    dropout_rule : "released" has no mask in the backward pass and scales when predicting, "inverted" scales
        and masks in training, forward and backward
    noise_rule : "once" before training, or new for every "batch"
    random_state : seed (a number or several), or a numpy Generator

    Attributes
    ----------
    network_ : SparseNetwork
        The trained weights.
    losses_ : float [epochs]
        Mean squared error of an entry in training.
    n_features_in_ : int
    """

    n_hidden: int = 1000
    epsilon: float | int = 13
    zeta: float | int = 0.2
    noise: float | int = 0.2
    dropout: float | int = 0.2
    lr: float | int = 0.01
    momentum: float | int = 0.9
    weight_decay: float | int = 1e-5
    batch_size: int = 100
    epochs: int = 100
    output: Literal["linear", "tanh"] = "linear"
    tanh_rule: Literal["released", "right"] = "released"
    dropout_rule: Literal["released", "inverted"] = "released"
    noise_rule: Literal["once", "batch"] = "once"
    random_state: int | list[int] | np.random.Generator | None = None

    def clean(self) -> Any:
        """The same without the released code's habits: inverted dropout, the right derivative of tanh."""
        return replace(self, dropout_rule="inverted", tanh_rule="right")

    def fit(self, X: Any, y: Any = None, *, watch: Watch | None = None) -> Any:
        """Train on the rows of X.

        Parameters
        ----------
        X : array [samples, features]
            Features on one scale (standardised); finite.
        y : ignored
        watch : callable, optional
            Called with the epoch (from 1) and the network when an epoch is over, before connections move.

        Raises
        ------
        ValueError
            For parameters outside their ranges, data that are no table of finite numbers, or a training that
            diverges.
        """
        self._check()
        data = _table(X)
        self.n_features_in_ = data.shape[1]
        rng = np.random.default_rng(self.random_state)
        self.network_ = SparseNetwork(self, data.shape[1], rng)
        self.losses_ = np.zeros(self.epochs)
        noisy = data + self.network_.noise(data.shape) if self.noise_rule == "once" else data
        for epoch in range(self.epochs):
            self.losses_[epoch] = self.network_.epoch(data, noisy)
            if not np.isfinite(self.losses_[epoch]):
                raise ValueError(f"training diverged in epoch {epoch + 1}: scale X, or lower lr={self.lr}")
            if watch is not None:
                watch(epoch + 1, self.network_)
            if epoch + 1 < self.epochs:
                self.network_.evolve()
        return self

    def reconstruct(self, X: Any) -> Float[np.ndarray, "samples features"]:
        """What the trained network makes of the rows of X, without noise and dropout."""
        data = _table(X)
        if data.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {data.shape[1]} features: expected {self.n_features_in_}, as in fit")
        return self.network_.predict(torch.from_numpy(data.T.copy())).numpy().T.copy()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, as scikit-learn asks for them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name; returns the estimator."""
        unknown = sorted(set(params) - set(self.get_params()))
        if unknown:
            raise ValueError(f"unknown parameters {unknown}: expected some of {list(self.get_params())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        kind = TransformerTags() if hasattr(self, "transform") else None
        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=kind,
            classifier_tags=None, regressor_tags=None,
        )  # fmt: skip

    def _check(self) -> None:
        for name in ("n_hidden", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("zeta", "dropout", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to below 1")
        if not (self.noise >= 0 and self.lr > 0 and self.epsilon > 0):
            raise ValueError(
                f"noise={self.noise}, lr={self.lr}, epsilon={self.epsilon}: expected none negative, "
                "lr and epsilon positive"
            )
        allowed = {
            "output": ("linear", "tanh"), "tanh_rule": ("released", "right"),
            "dropout_rule": ("released", "inverted"), "noise_rule": ("once", "batch"),
        }  # fmt: skip
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")


def strengths(
    network: SparseNetwork, snapshot: Literal["pruned", "final"] = "pruned"
) -> Float[np.ndarray, " features"]:
    """Strength of every input: of the weights that survived the last removal, or of the present ones.

    Raises
    ------
    ValueError
        "pruned" before anything was removed.
    """
    if snapshot == "final":
        return network.input.strength()
    if snapshot != "pruned":
        raise ValueError(f"snapshot={snapshot!r}: expected 'pruned' or 'final'")
    if network.pruned is None:
        raise ValueError("snapshot='pruned': nothing was removed yet; use 'final', or at least 2 epochs")
    return network.pruned.strength()


@dataclass(eq=False)
class QuickSelection(SparseDAE):
    """Keeps the features of greatest strength; a transformer in scikit-learn's manner.

    Parameters
    ----------
    n_features : how many are kept
    snapshot : "pruned", as released: strengths of the connections that survived the last removal, before the
        last epoch (at least two epochs); "final": of those after it
    ...
        All of `SparseDAE`, by name.

    Attributes
    ----------
    strength_ : float [features]
        Sum of the absolute weights that leave each input.
    ranking_ : int [features]
        All features, the strongest first.
    """

    n_features: int = field(default=50, kw_only=False)
    snapshot: Literal["pruned", "final"] = field(default="pruned", kw_only=True)

    def fit(self, X: Any, y: Any = None, *, watch: Watch | None = None) -> "QuickSelection":
        """Train and rank; as `SparseDAE.fit`.

        Raises
        ------
        ValueError
            Also for more features than X has, and for the snapshot "pruned" with a single epoch.
        """
        most = np.shape(X)[1] if np.ndim(X) == 2 else 0
        if most and not 1 <= self.n_features <= most:
            raise ValueError(f"n_features={self.n_features}: expected 1 to {most}, the columns of X")
        if self.snapshot not in ("pruned", "final"):
            raise ValueError(f"snapshot={self.snapshot!r}: expected 'pruned' or 'final'")
        if self.snapshot == "pruned" and self.epochs == 1:
            raise ValueError("snapshot='pruned' with epochs=1: nothing is ever removed; use snapshot='final'")
        super().fit(X, watch=watch)
        self.strength_ = strengths(self.network_, self.snapshot)
        self.ranking_ = np.argsort(-self.strength_, kind="stable")
        return self

    def get_support(self, indices: bool = False) -> Bool[np.ndarray, " features"] | Int[np.ndarray, " kept"]:
        """Which features are kept: a mask, or their numbers in the order of the input."""
        kept = np.sort(self.ranking_[: self.n_features])
        if indices:
            return kept
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[kept] = True
        return mask

    def transform(self, X: Any) -> Shaped[np.ndarray, "samples kept"]:
        """The kept columns of X, in the order in which they stand there."""
        x = np.asarray(X)
        if x.ndim != 2 or x.shape[1] != self.n_features_in_:
            raise ValueError(f"X has shape {x.shape}: expected {self.n_features_in_} columns, as in fit")
        return x[:, self.get_support(indices=True)]

    def fit_transform(self, X: Any, y: Any = None) -> Shaped[np.ndarray, "samples kept"]:
        """`fit`, then `transform`."""
        return self.fit(X).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the kept columns; x0, x1, ... if none are given."""
        names = [f"x{i}" for i in range(self.n_features_in_)] if input_features is None else input_features
        return np.asarray(names, dtype=object)[self.get_support(indices=True)]


def _table(X: Any) -> Float[np.ndarray, "samples features"]:
    x = np.asarray(X)
    if x.ndim != 2 or not x.size or x.dtype.kind not in "fiub":
        raise ValueError(f"X must be a table [samples, features] of numbers, got {x.dtype} {x.shape}")
    data = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(data).all():
        raise ValueError("X holds NaN or infinity: expected finite numbers")
    return data
