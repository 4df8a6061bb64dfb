"""The three inner loops of the kernel on their own, over one tile that stays in the first cache."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numpy as np
from numba import njit

from sparsebook.kernels.block_attention.cpu import (
    KEY_TILE,
    QUERY_TILE,
    Shape,
    _add_values,
    _logits,
    _new_tile,
    _weigh,
)


@njit(cache=True, nogil=True)
@no_type_check
def _repeat_logits(n, keys, dim, tile):
    for _ in range(n):
        _logits(keys, 0, dim, tile.order, 0, KEY_TILE, dim, QUERY_TILE, tile)


@njit(cache=True, nogil=True)
@no_type_check
def _repeat_softmax(n, keys, dim, tile):
    for _ in range(n):
        _weigh(KEY_TILE, QUERY_TILE, tile)


@njit(cache=True, nogil=True)
@no_type_check
def _repeat_values(n, keys, dim, tile):
    for _ in range(n):
        _add_values(keys, 0, dim, tile.order, 0, KEY_TILE, dim, QUERY_TILE, tile)


LOOPS: dict[str, Callable[..., None]] = {
    "logits": _repeat_logits,
    "softmax": _repeat_softmax,
    "values": _repeat_values,
}


def seconds_per_tile(dim: int, threads: int, repeats: int = 200) -> dict[str, float]:
    """Seconds that one thread needs for a tile of 64 queries and 128 keys when `threads` are at work.

    The fastest of some tries for each loop; `dim` is the head dimension.
    """
    tiles = [_tile(dim) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return {name: _fastest(pool, loop, tiles, dim, repeats) for name, loop in LOOPS.items()}


def _tile(dim: int) -> Any:
    tile = _new_tile(Shape(1, 1, 1, QUERY_TILE, KEY_TILE, dim, dim))
    for name in ("queries", "logits", "sums", "total", "shrink"):
        getattr(tile, name)[:] = 0.5
    tile.maximum[:] = 1.0
    return tile


def _fastest(pool: ThreadPoolExecutor, loop: Any, tiles: list[Any], dim: int, repeats: int) -> float:
    keys = np.full(KEY_TILE * dim, 1e-3, np.float32)
    best = np.inf
    for _ in range(25):
        start = time.perf_counter()
        list(pool.map(lambda tile: loop(repeats, keys, dim, tile), tiles))
        best = min(best, (time.perf_counter() - start) / repeats)
    return float(best)
