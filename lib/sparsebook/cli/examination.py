"""Look at the machine: what the library finds here, what is missing and how to get it."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

EXTRAS = ("book", "test", "peers", "cluster", "triton")


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    text: str
    state: Literal["good", "missing", "wrong"] = "good"


def examine() -> Iterator[Finding]:
    """Examine machine, threads, caches, packages, kernel, browser and accelerator, one after the other."""
    yield from _machine()
    yield from _threads()
    yield from _caches()
    yield from (_extra(name) for name in EXTRAS)
    yield _kernel()
    yield _browser()
    yield from _accelerator()


def required(extra: str) -> dict[str, str | None]:
    """The packages of an extra with their installed versions, ``None`` where one is missing."""
    found = {}
    for requirement in metadata.requires("sparsebook") or ():
        match = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if match and match[1] == extra:
            name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
            found[name] = _version(name)
    return found


def _machine() -> Iterator[Finding]:
    from sparsebook.evaluation.machine import describe_machine

    machine = describe_machine()
    memory = f"{machine['memory_gib']} GiB memory" if machine["memory_gib"] else "memory unknown"
    yield Finding("processor", f"{machine['cpu']}, {machine['cores']} cores, {memory}")
    vectors = machine["instruction_set"]
    slow = vectors == "none"
    text = "none that the kernels know: they run, slowly" if slow else vectors
    yield Finding("instruction set", text, "missing" if slow else "good")
    core = ("torch", "numpy", "numba", "scipy")
    versions = ", ".join(f"{name} {_version(name) or 'missing'}" for name in core)
    yield Finding("system", f"{platform.platform()}, Python {platform.python_version()}, {versions}")


def _threads() -> Iterator[Finding]:
    import numba
    import torch

    from sparsebook.evaluation.machine import available_threads

    used = numba.get_num_threads()  # starts the threads: before, the layer is not known
    layer = numba.threading_layer()
    text = f"{available_threads()} usable; torch uses {torch.get_num_threads()}, Numba {used} (layer {layer})"
    if layer == "workqueue":
        yield Finding("threads", f"{text}; this layer aborts when two threads call it: install tbb", "wrong")
    else:
        yield Finding("threads", text)


def _caches() -> Iterator[Finding]:
    from sparsebook.files import cache_dir

    folder = cache_dir()
    if not folder.is_dir():
        yield Finding("cache", f"{folder} is not there yet: make prepare", "missing")
        return
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    names = ", ".join(path.name for path in entries if path.is_dir())
    writable = os.access(folder, os.W_OK)
    text = f"{folder}: {size / 1e6:,.0f} MB ({names or 'empty'})" + ("" if writable else "; not writable")
    yield Finding("cache", text, "good" if writable else "wrong")


def _extra(name: str) -> Finding:
    packages = required(name)
    missing = [package for package, version in packages.items() if version is None]
    if missing:
        text = f"lacks {', '.join(missing)}: pip install 'sparsebook[{name}]'"
        return Finding(f"extra {name}", text, "missing")
    return Finding(
        f"extra {name}", ", ".join(f"{package} {version}" for package, version in packages.items())
    )


def _kernel() -> Finding:
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return Finding("notebook kernel", "none: pip install 'sparsebook[book]'", "missing")
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return Finding("notebook kernel", "no kernel python3: pip install 'sparsebook[book]'", "missing")
    return Finding("notebook kernel", sys.executable if program in ("python", "python3") else program)


def _browser() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        return Finding("browser", "no chromium: the tests of the rendered pages are skipped", "missing")
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    return Finding("browser", f"{Path(found)} {done.stdout.strip()}")


def _accelerator() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", f"none that torch {torch.__version__} can use; everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        text = f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}"  # type: ignore[attr-defined]
        yield Finding("GPU", text)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
