"""Activations on disk, and batches of them that depend on nothing but their number.

A store is a row of shards, each a table of float16 activations in a folder of the cache that is written once,
under a lock, with checksums. A build that is interrupted goes on with the shards that are missing; a damaged
shard is made anew. Reading maps the files, so a store may be larger than memory.

A *batch source* is a function of the number of a training step. Training that stops and goes on asks for the
same batches again without anything about the data having been saved.

>>> import torch
>>> source = shuffled(torch.arange(12.0)[:, None], batch_size=4, seed=0)
>>> sorted(torch.cat([source(step) for step in range(3)]).flatten().tolist()) == list(range(12))
True
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsebook.files import cached

BatchSource = Callable[[int], Tensor]
"""The batch of a training step: ``[tokens, width]``, or ``[seeds, tokens, width]``."""

_TABLE, _ABOUT = "activations.npy", "about.json"
_LARGEST = float(np.finfo(np.float16).max)


def stream(*numbers: int) -> torch.Generator:
    """A generator (on the CPU) whose draws depend on these non-negative numbers and on nothing else."""
    word = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) >> 1)


# --- a store ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActivationStore:
    """Activations in shards on disk.

    Attributes
    ----------
    shards : files of float16 tables ``[rows, width]``
    sizes : rows of each
    width : size of an activation vector
    scale : what the stored numbers are multiplied with when they are read
    """

    shards: tuple[Path, ...]
    sizes: tuple[int, ...]
    width: int
    scale: float = 1.0

    def __len__(self) -> int:
        return sum(self.sizes)

    def read(self, index: int, start: int, stop: int) -> np.ndarray:
        """Rows of one shard, scaled, as float32. The file is mapped: only what is asked for is read."""
        stored = np.load(self.shards[index], mmap_mode="r")[start:stop]
        return stored.astype(np.float32) * np.float32(self.scale)

    def rows(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows width"]:
        """Consecutive rows as float32.

        Raises
        ------
        ValueError : the rows are not all there
        """
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"start={start}, stop={stop}: expected 0 <= start <= stop <= {len(self)}")
        found, first = np.empty((stop - start, self.width), np.float32), 0
        for index, size in enumerate(self.sizes):
            low, high = max(start, first), min(stop, first + size)
            if low < high:
                found[low - start : high - start] = self.read(index, low - first, high - first)
            first += size
        return torch.from_numpy(found)


def build_store(
    name: str,
    versions: Sequence[str],
    produce: Callable[[int], Float[Tensor, "rows width"]],
    *,
    scale: float = 1.0,
    progress: bool = False,
) -> ActivationStore:
    """The shards that are in the cache, the missing ones made now, one after another.

    Parameters
    ----------
    name : what is stored, as in :func:`sparsebook.files.cached`
    versions : of each shard; changes whenever its rows would
    produce : the rows of a shard, by its number; called for missing shards only
    scale : what rows are divided by to be stored; a power of two loses nothing
    progress : show a bar while shards are missing

    Raises
    ------
    ValueError : no shards, a shard without rows, of another width than the others, or with values that
        float16 cannot hold (NaN, infinite, above 65,504 times `scale`); what was made before it stays
    """
    if not versions:
        raise ValueError("versions is empty: expected one for each of at least one shard")
    folders = []
    for index in _shown(range(len(versions)), progress, name):
        write = partial(_write, produce=produce, index=index, scale=scale)
        folders.append(cached(name, write, versions[index]))
    about = [json.loads((folder / _ABOUT).read_text(encoding="utf-8")) for folder in folders]
    if any(shard != {**about[0], "rows": shard["rows"]} for shard in about):
        kinds = sorted({(shard["width"], shard["scale"]) for shard in about})
        raise ValueError(f"produce: shards of widths and scales {kinds}; expected the same for all")
    sizes = tuple(shard["rows"] for shard in about)
    shards = tuple(folder / _TABLE for folder in folders)
    return ActivationStore(shards, sizes, about[0]["width"], about[0]["scale"])


def _write(folder: Path, produce: Callable[[int], Tensor], index: int, scale: float) -> None:
    table = (produce(index).detach().float() / scale).cpu().numpy()
    if table.ndim != 2 or not table.size:
        raise ValueError(f"produce({index}) has shape {table.shape}: expected [rows, width], not empty")
    if not np.abs(table).max() <= _LARGEST:
        raise ValueError(
            f"produce({index}) has values that are not finite or above {_LARGEST * scale:g} in size: "
            "expected what float16 can hold, or a larger scale"
        )
    np.save(folder / _TABLE, table.astype(np.float16))
    about = {"rows": table.shape[0], "width": table.shape[1], "scale": scale}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _shown(items: Iterable[int], progress: bool, what: str) -> Any:
    if not progress:
        return items
    from rich.progress import track

    return track(list(items), description=f"activations: {what}")


# --- batches ------------------------------------------------------------------------------------------------


def shuffled(
    rows: Float[Tensor, "rows width"] | ActivationStore,
    batch_size: int,
    seed: int | Sequence[int] = 0,
    *,
    scale: float = 1.0,
    buffer: int = 2**18,
    block: int = 64,
) -> BatchSource:
    """Batches without repetition within an epoch, in an order of each epoch's own.

    A table in memory, or a store of at most `buffer` rows, is shuffled row by row. A larger store is read in
    blocks of neighbouring rows, in random order, until the buffer is full, and the buffer is shuffled: the
    usual compromise with the disk. The last rows of an epoch that do not fill a batch are left out.

    Parameters
    ----------
    rows : what is drawn from
    batch_size : rows of a batch
    seed : one seed; or several, for batches ``[seeds, batch_size, width]`` of which each seed has its own
        order, the one that it would have alone
    scale : what every value is multiplied with
    buffer, block : rows held in memory, and rows read at a stretch, of a store that is larger

    Raises
    ------
    ValueError : a batch of no row or of more rows than there are, or a buffer smaller than a batch or a block
    """
    if not 1 <= batch_size <= len(rows):
        raise ValueError(f"batch_size={batch_size}: expected 1 to {len(rows)}, the number of rows")
    if not 1 <= block <= buffer or buffer < batch_size:
        raise ValueError(f"buffer={buffer}, block={block}: expected 1 <= block <= buffer >= batch_size")
    whole = isinstance(rows, Tensor) or len(rows) <= buffer
    table = rows if isinstance(rows, Tensor) else rows.rows() if whole else None

    def one(seed: int) -> BatchSource:
        if table is not None:
            return _Permuted(table, batch_size, seed)
        assert isinstance(rows, ActivationStore)
        return _Buffered(rows, batch_size, seed, buffer, block)

    return _scaled(_stacked([one(s) for s in _seeds(seed)], seed), scale)


def sampled(
    sample: Callable[[int, torch.Generator], Float[Tensor, "rows width"]],
    batch_size: int,
    seed: int | Sequence[int] = 0,
) -> BatchSource:
    """Fresh batches of a generator of data, for instance of a synthetic world.

    Parameters
    ----------
    sample : ``sample(rows, generator)``
    batch_size, seed : as in :func:`shuffled`

    Raises
    ------
    ValueError : `batch_size` below 1
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")

    def one(seed: int) -> BatchSource:
        return lambda step: sample(batch_size, stream(seed, step))

    return _stacked([one(s) for s in _seeds(seed)], seed)


def _seeds(seed: int | Sequence[int]) -> Sequence[int]:
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seed={seed!r}: expected a number of at least 0, or several")
    return seeds


def _stacked(sources: list[BatchSource], seed: int | Sequence[int]) -> BatchSource:
    if isinstance(seed, int):
        return sources[0]
    return lambda step: torch.stack([source(step) for source in sources])


def _scaled(source: BatchSource, scale: float) -> BatchSource:
    return source if scale == 1 else lambda step: source(step) * scale


class _Permuted:
    """A table in memory: every epoch is a permutation of its rows."""

    def __init__(self, table: Tensor, batch_size: int, seed: int) -> None:
        self.table, self.batch_size, self.seed = table, batch_size, seed
        self.per_epoch = len(table) // batch_size
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.order = torch.randperm(len(self.table), generator=stream(self.seed, epoch))
            self.epoch = epoch
        chosen = self.order[place * self.batch_size : (place + 1) * self.batch_size]
        return self.table[chosen.to(self.table.device)]


class _Buffered:
    """A store larger than memory: its blocks in random order, shuffled within a buffer's length."""

    def __init__(self, store: ActivationStore, batch_size: int, seed: int, buffer: int, block: int) -> None:
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.per_epoch = len(store) // batch_size
        self.per_fill = buffer // batch_size
        self.blocks = np.array(
            [
                (shard, start, min(start + block, size))
                for shard, size in enumerate(store.sizes)
                for start in range(0, size, block)
            ]
        )
        self.filled, self.table = (-1, -1), torch.empty(0, store.width)

    def __call__(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        fill, place = divmod(place, self.per_fill)
        if self.filled != (epoch, fill):
            self.table = self._fill(epoch, fill)
            self.filled = (epoch, fill)
        return self.table[place * self.batch_size : (place + 1) * self.batch_size]

    def _fill(self, epoch: int, fill: int) -> Tensor:
        """The rows of one buffer: a stretch of the epoch's blocks, themselves shuffled."""
        order = torch.randperm(len(self.blocks), generator=stream(self.seed, epoch)).numpy()
        blocks = self.blocks[order]
        ends = (blocks[:, 2] - blocks[:, 1]).cumsum()
        start = fill * self.per_fill * self.batch_size
        stop = min(start + self.per_fill * self.batch_size, self.per_epoch * self.batch_size)
        table, first = np.empty((stop - start, self.store.width), np.float32), 0
        for index in range(int(np.searchsorted(ends, start, side="right")), len(blocks)):
            shard, low, high = blocks[index].tolist()
            end = int(ends[index])
            low += max(0, start - (end - (high - low)))
            high -= max(0, end - stop)
            if low >= high:
                break
            table[first : first + high - low] = self.store.read(shard, low, high)
            first += high - low
        inside = torch.randperm(len(table), generator=stream(self.seed, epoch, fill))
        return torch.from_numpy(table)[inside]
