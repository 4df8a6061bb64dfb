"""Recorded tables: what a run longer than a chapter's live one measured, kept with all that it depends on.

``book/recorded/<slug>/<experiment>.csv`` holds a tidy table, the JSON beside it the parameters, seeds,
machine, versions and a *fingerprint*: a short piece of the same computation (such as the first five steps
of one arm) with the values it gave. Replaying the fingerprint is how a record that no longer belongs to
the code is found out.

>>> save("seismic", "growth", table, parameters=config, seeds=[0, 1, 2],       # doctest: +SKIP
...      fingerprint_function="sparsebook.experiments.seismic:fingerprint_growth")
>>> record = load("seismic", "growth")                                          # doctest: +SKIP
>>> record.replay()                              # raises StaleRecord when the code now computes otherwise
>>> inside_prediction(live_value, record.values(metric="recall", n=20000))      # doctest: +SKIP

Long runs are made of stages; `run_stages` keeps each finished one, so that an interrupted run goes on
where it stopped.
"""

import dataclasses
import datetime
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsebook.evaluation.statistics import Interval, prediction_interval

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("experiment", "method", "seed", "metric", "value", "unit")
"""Columns that every tidy table has; more may follow for the knobs."""

_SCHEMA = 1
_KEYS = {
    "schema", "slug", "experiment", "parameters", "seeds", "recorded", "machine", "rows", "sha256",
    "fingerprint",
}  # fmt: skip


class StaleRecord(RuntimeError):  # noqa: N818 - says what it is
    """The code no longer computes what was recorded; run the experiment again at scale `full`."""


@dataclass(frozen=True)
class Recorded:
    """A recorded table and what it depends on."""

    table: "pd.DataFrame"
    info: dict[str, Any]

    def values(self, **where: Any) -> np.ndarray:
        """The values of the rows whose columns equal ``where``.

        Raises
        ------
        ValueError
            For an unknown column, or when no row is left.
        """
        chosen = self.table
        for column, wanted in where.items():
            if column not in chosen:
                raise ValueError(
                    f"{column!r} is no column; there are {', '.join(map(str, self.table.columns))}"
                )
            chosen = chosen[chosen[column] == wanted]
        if chosen.empty:
            raise ValueError(f"no recorded row with {where}")
        return chosen["value"].to_numpy(dtype=np.float64)

    def replay(self) -> None:
        """Compute the fingerprint again and compare.

        Raises
        ------
        StaleRecord
            When the function is gone, raises, or returns other values than recorded (relative tolerance
            ``rtol`` of the record, and the same as a fraction of the largest value for those near zero).
        """
        fingerprint = self.info["fingerprint"]
        name = f"{self.info['slug']}/{self.info['experiment']}"
        try:
            now = _fingerprint_values(fingerprint["function"], fingerprint["arguments"])
        except Exception as error:
            raise StaleRecord(f"{name}: {fingerprint['function']} cannot be replayed: {error!r}") from error
        values, rtol = fingerprint["values"], fingerprint["rtol"]
        was = np.array(values)
        if len(now) != len(was):
            raise StaleRecord(f"{name}: the fingerprint has {len(now)} values, recorded were {len(was)}")
        close = np.isclose(now, was, rtol=rtol, atol=rtol * np.abs(was).max())
        if not close.all():
            first = int(np.argmin(close))
            raise StaleRecord(
                f"{name}: value {first} of the fingerprint is {now[first]!r}, recorded was {values[first]!r} "
                f"({np.count_nonzero(~close)} of {len(was)} differ by more than rtol {rtol:g}); recorded "
                f"on {self.info['machine']['cpu']} ({self.info['machine']['instruction_set']})"
            )


@dataclass(frozen=True)
class Prediction:
    """Whether a live value agrees with recorded ones; true in a condition when it does."""

    inside: bool
    value: float
    interval: Interval

    def __bool__(self) -> bool:
        return self.inside


def save(
    slug: str,
    experiment: str,
    table: "pd.DataFrame",
    *,
    parameters: Any,
    seeds: Sequence[int],
    fingerprint_function: str,
    fingerprint_arguments: Mapping[str, Any] | None = None,
    rtol: float | int = 1e-5,
    book: str | Path | None = None,
) -> Path:
    """Record a table; the machine, the versions and the fingerprint's values are found out here.

    Parameters
    ----------
    slug, experiment : str
        Address of the record.
    table : DataFrame
        Tidy: at least the columns experiment, method, seed, metric, value, unit; values finite.
    parameters : dataclass or mapping
        What the run was given; anything that JSON can hold, paths must be relative.
    seeds : sequence of int
        The seeds of the run.
    fingerprint_function : str
        ``"module:function"`` that returns a few finite numbers in seconds, deterministic.
    fingerprint_arguments : mapping, optional
        Its keyword arguments, kept in the record.
    rtol : float
        Relative tolerance of a replay.
    book : path, optional
        The book's root; found from the working folder if None.

    Returns
    -------
    Path
        The CSV file.
    """
    folder = _folder(book) / _safe_name("slug", slug)
    _check_table(table)
    arguments = dict(fingerprint_arguments or {})
    values = _fingerprint_values(fingerprint_function, arguments)
    text = table.to_csv(index=False, lineterminator="\n")
    info = {
        "schema": _SCHEMA,
        "slug": slug,
        "experiment": _safe_name("experiment", experiment),
        "parameters": _as_json("parameters", parameters),
        "seeds": [int(seed) for seed in seeds],
        "recorded": datetime.date.today().isoformat(),
        "machine": _machine(),
        "rows": len(table),
        "sha256": _digest(text),
        "fingerprint": {
            "function": fingerprint_function,
            "arguments": _as_json("fingerprint_arguments", arguments),
            "values": values,
            "rtol": rtol,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    # The table first: interrupted between the two, the old JSON's checksum tells that they do not belong
    # together.
    _write(folder / f"{experiment}.csv", text)
    _write(folder / f"{experiment}.json", json.dumps(info, indent=2, allow_nan=False) + "\n")
    return folder / f"{experiment}.csv"


def load(slug: str, experiment: str, book: str | Path | None = None) -> Recorded:
    """Read a record.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When the table is not the one that the JSON describes, or is not tidy.
    """
    return read_record(
        _folder(book) / _safe_name("slug", slug) / f"{_safe_name('experiment', experiment)}.json"
    )


def read_record(path: str | Path) -> Recorded:
    """Read a record by the path of its JSON file; see `load`."""
    path = Path(path)
    if not path.exists() or not path.with_suffix(".csv").exists():
        raise FileNotFoundError(f"no record {path.parent.name}/{path.stem} (.csv and .json) in {path.parent}")
    info = json.loads(path.read_text(encoding="utf-8"))
    missing = sorted(_KEYS - set(info))
    if missing:
        raise ValueError(f"{path}: missing {', '.join(missing)}")
    if info["schema"] != _SCHEMA:
        raise ValueError(f"{path}: schema {info['schema']}, this version reads {_SCHEMA}")
    if (info["slug"], info["experiment"]) != (path.parent.name, path.stem):
        raise ValueError(f"{path}: holds the record of {info['slug']}/{info['experiment']}")
    if _digest(path.with_suffix(".csv").read_text(encoding="utf-8")) != info["sha256"]:
        raise ValueError(f"{path}: the table beside it is not the one recorded (checksum); record it again")
    table = _read_table(path.with_suffix(".csv"))
    _check_table(table)
    return Recorded(table, info)


def inside_prediction(
    live_value: float | int,
    recorded_values: Sequence[float] | np.ndarray,
    level: float | int = 0.99,
    geometric: bool = False,
) -> Prediction:
    """Whether one live value lies where the recorded ones predict a further one.

    Parameters
    ----------
    live_value : float
    recorded_values : array [n]
        The same quantity of the recorded seeds, at least two.
    level : float
        Probability with which an honest re-run falls inside; high, because a book has many such cells.
    geometric : bool
        Compare logarithms, for times and rates.
    """
    recorded = np.asarray(recorded_values, dtype=np.float64)
    if not math.isfinite(live_value):
        raise ValueError(f"live_value: expected a finite number, got {live_value}")
    if not geometric:
        interval = prediction_interval(recorded, level)
        interval = Interval(float(interval.low), float(interval.high), level)
    else:
        if live_value <= 0 or recorded.min() <= 0:
            raise ValueError("live_value, recorded_values: a geometric comparison takes positive values")
        logarithmic = prediction_interval(np.log(recorded), level)
        interval = Interval(math.exp(logarithmic.low), math.exp(logarithmic.high), level)
    return Prediction(bool(interval.contains(live_value)), float(live_value), interval)


def stage(
    slug: str,
    experiment: str,
    key: str,
    compute: Callable[[], "pd.DataFrame"],
    *,
    parameters: Any = None,
) -> "pd.DataFrame":
    """One resumable stage of a long run: computed once, read from the cache folder afterwards.

    A kept stage is used only while the parameters and the source of the method, the experiment and all
    that is below them are the same as when it was computed.

    Parameters
    ----------
    slug, experiment, key : str
        Address of the stage; ``key`` names it within the experiment, such as ``"n=20000"``.
    compute : callable
        Returns the stage's tidy table.
    parameters : dataclass or mapping, optional
        Everything that the stage's result depends on beside the code.
    """
    path = _stage_path(slug, experiment, key, parameters)
    if path.exists():
        return _read_table(path)
    table = compute()
    _check_table(table)
    table = table.astype({"value": float}).reset_index(drop=True)  # as it will be read back
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, table.to_csv(index=False, lineterminator="\n"))
    return table


def run_stages(
    slug: str,
    experiment: str,
    stages: Mapping[str, Callable[[], "pd.DataFrame"]],
    *,
    parameters: Any = None,
    progress: bool = True,
) -> "pd.DataFrame":
    """Run the stages of a long run in turn, those kept from before skipped, and join their tables.

    Prints one line a stage on standard error: how far the run is, how long the stage took, what is left.
    """
    import pandas as pd

    if not stages:
        raise ValueError("stages: expected at least one")
    tables, spent, computed = [], 0.0, 0
    for done, (key, compute) in enumerate(stages.items(), start=1):
        kept = _stage_path(slug, experiment, key, parameters).exists()
        start = time.perf_counter()
        tables.append(stage(slug, experiment, key, compute, parameters=parameters))
        seconds = time.perf_counter() - start
        if not kept:
            spent, computed = spent + seconds, computed + 1
        if progress:
            left = "" if computed == 0 else f", about {spent / computed * (len(stages) - done):.0f} s left"
            how = "kept from before" if kept else f"{seconds:.1f} s"
            print(
                f"{slug}/{experiment} [{done}/{len(stages)}] {key}: {how}{left}", file=sys.stderr, flush=True
            )
    return pd.concat(tables, ignore_index=True)


def forget_stages(slug: str, experiment: str) -> None:
    """Delete the kept stages of an experiment; the next run computes all of them."""
    shutil.rmtree(_stages_folder(slug, experiment), ignore_errors=True)


# --- what a record is made of ----------------------------------------------------------------------------


def _check_table(table: "pd.DataFrame") -> None:
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"table: missing the columns {', '.join(missing)} of a tidy table")
    if table.empty:
        raise ValueError("table: no rows")
    values = table["value"]
    if values.dtype.kind not in "iuf" or not np.isfinite(values.to_numpy(dtype=np.float64)).all():
        raise ValueError("table: the column value must hold finite numbers")
    unset = [column for column in COLUMNS if table[column].isna().any()]
    if unset:
        raise ValueError(f"table: empty cells in {', '.join(unset)}")


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(path, converters={"value": float})  # Python's own reading keeps every digit


def _fingerprint_values(function: str, arguments: Mapping[str, Any]) -> list[float]:
    module, colon, name = function.partition(":")
    if not (module and colon and name) or module == "__main__":
        raise ValueError(f"fingerprint_function: expected 'module:function', got {function!r}")
    result = getattr(importlib.import_module(module), name)(**arguments)
    if hasattr(result, "detach"):
        result = result.detach().cpu()
    values = np.asarray(result, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"fingerprint_function: {function} must return finite numbers, got {values}")
    return values.tolist()


def _machine() -> dict[str, Any]:
    from sparsebook.evaluation.machine import describe_machine

    return describe_machine()


def _as_json(name: str, value: Any) -> Any:
    """``value`` as JSON holds it; refuses what cannot be written and paths that name one machine."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        plain = json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: cannot be kept as JSON ({error})") from error
    for path in _absolute_paths(plain):
        raise ValueError(f"{name}: the absolute path {path!r} names one machine")
    return plain


def _absolute_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _absolute_paths(item)
    elif isinstance(value, str) and len(value) > 1 and os.path.isabs(value):
        yield value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _digest(text: str) -> str:
    """SHA-256 of a text, whatever line endings a checkout gave it."""
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own mode would keep other users out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _folder(book: str | Path | None) -> Path:
    if book is None:
        from sparsebook.book import find_book

        book = find_book()
    inner = Path(book) / "book"
    return (inner if inner.is_dir() else Path(book)) / "recorded"


def _safe_name(what: str, name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"{what}: expected lower-case letters, digits, - and _, got {name!r}")
    return name


def _stages_folder(slug: str, experiment: str) -> Path:
    from sparsebook.files import cache_dir

    return cache_dir() / "stages" / _safe_name("slug", slug) / _safe_name("experiment", experiment)


def _stage_path(slug: str, experiment: str, key: str, parameters: Any) -> Path:
    identity = json.dumps([key, _as_json("parameters", parameters), _source_digest(slug)], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9_=.-]+", "-", key)[:60]
    return (
        _stages_folder(slug, experiment)
        / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.csv"
    )


@cache
def _source_digest(slug: str) -> str:
    """Digest of the source that an experiment of this paper can depend on: its part and all floors below."""
    library = Path(__file__).parent
    methods = [*library.glob(f"*/{slug}.py"), *library.glob(f"*/{slug}/__init__.py")]
    parts = {path.relative_to(library).parts[0] for path in methods} - {"experiments"}
    files = [*library.glob(f"experiments/{slug}.py"), *library.glob(f"experiments/{slug}/**/*.py")]
    for folder in {"kernels", "data", "models", "evaluation"} | parts:
        files += library.glob(f"{folder}/**/*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(library).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
