"""Arrays in one file: a checksummed header, then the arrays, each on a 64-byte boundary.

The file is ``magic, SHA-256 of all that follows, length of the header, header (JSON), arrays``. It is written
beside its place and renamed, so that a reader sees the old file or the new one, never half of one.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"sparsebook seismic index 1\n"
_DIGEST = 64  # hexadecimal characters
_START = len(MAGIC) + _DIGEST + 8


def aligned_empty(size: int, dtype: Any) -> np.ndarray:
    """An uninitialised vector that starts on a 64-byte boundary, a cache line."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + 64, dtype=np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


def write_arrays(path: str | os.PathLike, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write ``about`` (JSON) and ``arrays`` to one file, atomically."""
    path = Path(path)
    table = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    header = json.dumps({"about": about, "arrays": table}).encode()
    body = [len(header).to_bytes(8, "little"), header]
    at = _START + len(header)
    for array in arrays.values():
        body += [bytes(-at % 64), np.ascontiguousarray(array).tobytes()]
        at += -at % 64 + array.nbytes
    digest = hashlib.sha256()
    for piece in body:
        digest.update(piece)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([MAGIC, digest.hexdigest().encode(), *body])
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_arrays(
    path: str | os.PathLike, map_file: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`write_arrays` wrote, checked against its checksum; read, or mapped to the file.

    Raises
    ------
    ValueError
        The file is of another kind or version, truncated or damaged.
    """
    path = Path(path)
    if path.stat().st_size < _START:
        raise ValueError(f"path: {path} is no index of this version, or it is truncated")
    if map_file:  # writable in memory only, as arrays that were built are: one type for the compiled search
        data = np.memmap(path, dtype=np.uint8, mode="c").view(np.ndarray)
    else:
        data = aligned_empty(path.stat().st_size, np.uint8)
        with open(path, "rb") as file:
            file.readinto(data.data)
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError(f"path: {path} is no index of this version (its first bytes differ)")
    written = data[len(MAGIC) : _START - 8].tobytes()
    if hashlib.sha256(data[_START - 8 :].data).hexdigest().encode() != written:
        raise ValueError(f"path: {path} is truncated or damaged (its checksum differs)")
    at = _START + int.from_bytes(data[_START - 8 : _START].tobytes(), "little")
    header = json.loads(data[_START:at].tobytes())
    arrays = {}
    for name, (dtype, shape) in header["arrays"].items():
        at += -at % 64
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = data[at : at + size].view(dtype).reshape(shape)
        at += size
    return header["about"], arrays
