"""What training costs: processor time, memory, and energy by counting."""

import contextlib
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sparsebook.evaluation.machine import set_threads, threads
from sparsebook.evaluation.timing import in_processes
from sparsebook.experiments.quick_selection.inputs import Split, load_split
from sparsebook.experiments.quick_selection.rivals import DenseDAE, graph_score, sparse_dae
from sparsebook.experiments.quick_selection.runs import Stages, best_setting, output_of, run, set_names, tidy
from sparsebook.experiments.quick_selection.scales import Config
from sparsebook.networks.quick_selection import SparseNetwork, expected_connections

KINDS = ("sparse", "dense", "masked")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# Energy of one operation in a 45 nm process, in joules: Horowitz, "Computing's energy problem", ISSCC 2014.
MULTIPLY_ADD = 4.6e-12  # float32: 3.7 pJ and 0.9 pJ
DRAM_WORD = 640e-12  # 32 bits


# Counting ------------------------------------------------------------------------------------------------


def counted_energy(kind: str, d: int, n_hidden: int, batch: int, steps: int, epsilon: float | int) -> float:
    """Joules of a training, counted: multiplications and additions, and words that move.

    Products per weight and sample: forward and gradient, in the second layer also backward. Words per weight
    and step: read in every product; momentum and weight read and written. Lists of connections also read an
    index in every product, and write and read a gradient; masks are read, and momentum is read and written
    once more. Activations: six passes in either layer. Nothing is supposed to stay in a cache.
    """
    cells = d * n_hidden
    connections = expected_connections(d, n_hidden, epsilon) if kind == "sparse" else cells
    own = {"sparse": (9, 11), "dense": (5, 6), "masked": (8, 9)}[kind]
    operations = 5 * connections * batch
    words = sum(own) * connections + 6 * (d + n_hidden) * batch
    return float(steps) * (operations * MULTIPLY_ADD + words * DRAM_WORD)


def weight_bytes(kind: str, d: int, n_hidden: int, epsilon: float | int) -> float:
    """Bytes of what is kept for the weights of both layers.

    Sparse: value, index, momentum and gradient of each connection, and row offsets; dense: weight and
    momentum; masked: also the mask.
    """
    if kind == "sparse":
        return 2 * 16 * expected_connections(d, n_hidden, epsilon) + 4 * (d + n_hidden + 2)
    return 2.0 * d * n_hidden * (8 if kind == "dense" else 12)


def run_counted(config: Config, full: bool = False) -> pd.DataFrame:
    """Energy and bytes on every set; with `full`, the sparse network has every connection."""
    out, seed = [], config.trade_seeds[0]
    for name in set_names(config):
        split = load_split(name, seed, config)
        samples, d = split.train.shape
        batch = min(config.batch, samples)
        steps = config.length * max(1, samples // batch)
        for kind in KINDS:
            epsilon = 1e3 * d if kind == "sparse" and full else 13
            joules = counted_energy(kind, d, config.n_hidden, batch, steps, epsilon)
            found = {"energy": joules}
            out += tidy("counted", kind, seed, found, "joule", set=name, samples=samples, columns=d)
            found = {"bytes": weight_bytes(kind, d, config.n_hidden, epsilon)}
            out += tidy("counted", kind, seed, found, "byte", set=name, samples=samples, columns=d)
    return pd.DataFrame(out)


# Processor time ------------------------------------------------------------------------------------------


def run_speed(config: Config, tuning: pd.DataFrame) -> pd.DataFrame:
    """CPU seconds in which each method scores the columns of each set, on one thread."""
    with threads(1):
        stages: Stages = {name: partial(_speed, config, tuning, name) for name in set_names(config)}
        return run(config, stages, "speed")


def _speed(config: Config, tuning: pd.DataFrame, name: str) -> pd.DataFrame:
    split, out = load_split(name, config.trade_seeds[0], config), []
    kept = min(config.kept_of(name), split.train.shape[1])
    for repeat in range(config.timed_repeats):
        found: dict[str, float] = {}
        for method, kind in (("qs", "sparse"), ("dense", "dense"), ("masked", "masked")):
            first, later = epoch_seconds(config, split, output_of(name), kind)
            found[f"{method}_10"] = first + (config.quick - 1) * later
            found[f"{method}_100"] = first + (config.length - 1) * later
        for method in ("laplacian", "mcfs"):
            neighbours = int(best_setting(tuning, name, method))
            found[method] = _cpu(partial(graph_score, method, split, neighbours, kept))
        found["variance"] = _cpu(partial(np.var, split.train, 0))
        for method, seconds in found.items():
            out += tidy("speed", method, repeat, {"cpu": max(seconds, 1e-6)}, "second", set=name)
    return pd.DataFrame(out)


def epoch_seconds(config: Config, split: Split, output: str, kind: str) -> tuple[float, float]:
    """CPU seconds of setting up with the first epoch, and of every later one with the exchange before it."""
    state: dict[str, Any] = {}

    def first() -> None:
        state["epoch"], state["evolve"] = trainer(config, split.train, output, kind)
        state["epoch"]()

    def later() -> None:
        for _ in range(config.timed_epochs):
            state["evolve"]()
            state["epoch"]()

    return _cpu(first), _cpu(later) / config.timed_epochs


def trainer(
    config: Config, x: np.ndarray, output: str, kind: str, seed: int = 0
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A network's epoch and its exchange of connections, each as a function to call."""
    options, rng = sparse_dae(config, output, seed), np.random.default_rng(seed)
    if kind == "sparse":
        sparse = SparseNetwork(options, x.shape[1], rng)
        noisy = x + sparse.noise(x.shape)
        return partial(sparse.epoch, x, noisy), sparse.evolve
    dense = DenseDAE(options, kind == "masked")
    target, corrupted = dense.start(x, rng)
    exchange: Callable[[], object] = partial(dense.evolve, rng) if kind == "masked" else _nothing
    return partial(dense.epoch, target, corrupted, rng), exchange


def _nothing() -> None:
    """Dense weights exchange nothing."""


def _cpu(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def run_pair(config: Config) -> pd.DataFrame:
    """CPU seconds of an epoch of all three in processes of their own, on one thread."""
    found = _repeated(config, "pair_once", {"knobs": asdict(config)}, config.processes)
    out = [
        row
        for process, seconds in enumerate(found)
        for kind in KINDS
        for row in tidy("pair", kind, process, {"cpu": seconds[kind]}, "second")
    ]
    return pd.DataFrame(out)


def pair_once(knobs: Mapping[str, Any]) -> dict[str, float]:
    """Median CPU seconds of an epoch with its exchange, the three taking turns."""
    config = Config(**knobs)
    set_threads(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((config.pair_samples, config.pair_features), dtype=np.float32)
    steps = {kind: trainer(config, x, "linear", kind) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(1 + config.timed_repeats):
        for kind, (epoch, exchange) in steps.items():
            spent = _cpu(lambda epoch=epoch, exchange=exchange: (exchange(), epoch()))  # type: ignore[misc]
            if turn:
                seconds[kind].append(spent)
    return {kind: float(np.median(values)) for kind, values in seconds.items()}


def _repeated(config: Config, name: str, arguments: dict[str, Any], processes: int) -> list[Any]:
    """A function of this module in processes of their own; at smoke, to be quick, in this one."""
    if config.scale == "smoke":
        return [globals()[name](**arguments) for _ in range(processes)]
    target = f"sparsebook.experiments.quick_selection.costs:{name}"
    return in_processes(target, arguments, processes, threads=1)


# Memory --------------------------------------------------------------------------------------------------


def run_memory(config: Config) -> pd.DataFrame:
    """Growth of a process that trains two epochs, for more and more columns; the claims' sizes repeated."""
    wide, most = config.memory_features, config.sparse_features
    cells = [(kind, d, 1) for d in config.scale_features for kind in KINDS]
    cells += [("sparse", wide, config.processes), ("masked", wide, config.processes)]
    cells += [("sparse", most, config.processes)]
    stages: Stages = {
        f"{kind} d={d} n={n}": partial(_memory, config, kind, d, n) for kind, d, n in dict.fromkeys(cells)
    }
    return run(config, stages, "memory")


def _memory(config: Config, kind: str, d: int, processes: int) -> pd.DataFrame:
    arguments = {"knobs": asdict(config), "kind": kind, "d": d}
    out = []
    for process, found in enumerate(_repeated(config, "memory_once", arguments, processes)):
        for metric, (value, unit) in found.items():
            knobs = {"columns": d, "repeated": processes}
            out += tidy("memory", kind, process, {metric: value}, unit, **knobs)
    return pd.DataFrame(out)


def memory_once(knobs: Mapping[str, Any], kind: str, d: int) -> dict[str, tuple[float, str]]:
    """Whether two epochs fit under the limit, by how much the process grows, data included, CPU of an epoch.

    What does not fit has zeros. The limit is set where the system lets a process limit itself (Linux).
    """
    config = Config(**knobs)
    set_threads(1)
    _train_twice(config, kind, 64)  # compiles
    if config.scale != "smoke":  # in a process of its own
        _give_back()
        _limit(config.memory_limit)
    before = peak_bytes(reset=True)
    try:
        seconds = _train_twice(config, kind, d)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"fits": (0.0, "1"), "grown": (0.0, "byte"), "cpu": (0.0, "second")}
    grown = max(peak_bytes() - before, 1)
    return {"fits": (1.0, "1"), "grown": (float(grown), "byte"), "cpu": (seconds, "second")}


def _train_twice(config: Config, kind: str, d: int) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((config.scale_samples, d), dtype=np.float32)
    epoch, exchange = trainer(config, x, "linear", kind)
    epoch()
    exchange()
    return _cpu(epoch)


def _limit(count: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + count
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _give_back() -> None:
    """Return to the system what is free, so that using it again shows (with glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(reset: bool = False) -> int:
    """The largest resident memory of this process; where Linux allows it, since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            _RESET.write_text("5")
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def step_share(config: Config, d: int, samples: int = 300) -> dict[str, float]:
    """Seconds of a training step on one thread, and of its five products alone."""
    from sparsebook.kernels.sparse_matmul import sddmm_csr, spmm_csr, spmm_t_csr

    with threads(1):
        rng = np.random.default_rng(0)
        network = SparseNetwork(sparse_dae(config, "linear", 0), d, rng)
        x = torch.from_numpy(rng.standard_normal((d, config.batch), dtype=np.float32))
        h = torch.rand(config.n_hidden, config.batch)
        data = rng.standard_normal((samples, d), dtype=np.float32)
        lists = [(layer.values, layer.columns, layer.offsets) for layer in (network.input, network.output)]

        def products() -> None:
            spmm_csr(*lists[0], x)
            out = spmm_csr(*lists[1], h)
            back = spmm_t_csr(*lists[1], out, config.n_hidden)
            sddmm_csr(*lists[0][1:], back, x)
            sddmm_csr(*lists[1][1:], out, h)

        steps = max(1, samples // config.batch)
        network.epoch(data, data)
        products()
        found: dict[str, list[float]] = {"step": [], "products": []}
        for _ in range(5 * config.timed_repeats):
            for name, function in (("step", partial(network.epoch, data, data)), ("products", products)):
                start = time.perf_counter()
                function()
                spent = time.perf_counter() - start
                found[name].append(spent / (steps if name == "step" else 1))
        return {name: float(np.median(values)) for name, values in found.items()}
