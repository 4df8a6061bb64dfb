"""Files inside packages, pinned wheels and caches: nothing unchecked is read, nothing half built is seen."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import pytest

from sparsebook import files
from sparsebook.files import ChangedInput, MissingInput, cached, packaged_file, wheel_file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and no memory of what was verified."""
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path / "a cache"))
    monkeypatch.setattr(files, "_verified", set())
    return tmp_path / "a cache"


@pytest.fixture
def record(tmp_path, monkeypatch, cache):
    """A record of its own; calling it writes the record anew."""
    path = tmp_path / "packaged_files.json"
    path.write_text('{"packages": {}, "wheels": {}}')
    monkeypatch.setattr(files, "RECORD", path)
    files._record.cache_clear()
    yield path
    files._record.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch, record):
    """An installed package "oats" 1.5 whose file is recorded; importing it would fail."""
    folder = tmp_path / "site" / "oats"
    information = tmp_path / "site" / "oats-1.5.dist-info"
    folder.mkdir(parents=True)
    information.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "grain.txt").write_text("real grain")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: oats\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    files.record_package("oats", "oats", ["grain.txt"])
    return folder


# --- the cache folder ---


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.delenv("SPARSEBOOK_CACHE")
    assert files.cache_dir().name == "sparsebook"
    assert files.cache_dir().is_absolute()


# --- files inside packages ---


def test_a_packaged_file_is_found_without_importing_its_package(package):
    assert packaged_file("oats", "grain.txt").read_text() == "real grain"
    assert "oats" not in sys.modules


def test_a_changed_file_is_refused_with_its_name_and_both_versions(package, monkeypatch):
    (package / "grain.txt").write_text("real groin")
    monkeypatch.setattr(metadata, "version", lambda name: "1.6")
    with pytest.raises(ChangedInput, match=r"grain\.txt of oats 1\.6 .* oats 1\.5") as caught:
        packaged_file("oats", "grain.txt")
    assert "SHA-256" in str(caught.value)


def test_a_file_changed_after_it_was_verified_is_refused(package):
    packaged_file("oats", "grain.txt")
    (package / "grain.txt").write_text("another grain")
    with pytest.raises(ChangedInput):
        packaged_file("oats", "grain.txt")


def test_a_file_that_the_package_lost_is_missing(package):
    (package / "grain.txt").unlink()
    with pytest.raises(MissingInput, match=r"oats 1\.5 does not carry grain\.txt"):
        packaged_file("oats", "grain.txt")


def test_a_missing_package_gives_one_sentence_with_the_extra(package, record):
    stored = json.loads(record.read_text())
    stored["packages"]["barley"] = {**stored["packages"]["oats"], "distribution": "barley-grain"}
    record.write_text(json.dumps(stored))
    files._record.cache_clear()
    with pytest.raises(MissingInput) as caught:
        packaged_file("barley", "grain.txt")
    assert str(caught.value) == ('The package "barley-grain" is needed here: pip install "sparsebook[book]".')


@pytest.mark.parametrize(("name", "path"), [("rye", "grain.txt"), ("oats", "../oats/grain.txt")])
def test_what_is_not_recorded_is_not_opened(package, name, path):
    with pytest.raises(ValueError, match="expected one of"):
        packaged_file(name, path)


def test_a_big_file_is_hashed_once_and_remembered_by_later_processes(package, monkeypatch):
    monkeypatch.setattr(files, "REMEMBER_ABOVE", 1)
    hashed = []
    honest = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: hashed.append(path) or honest(path))
    for _ in range(3):
        packaged_file("oats", "grain.txt")
        files._verified.clear()  # as a new process would begin
    assert len(hashed) == 1
    (package / "grain.txt").write_text("real groin")
    with pytest.raises(ChangedInput):
        packaged_file("oats", "grain.txt")


def test_the_memory_of_big_files_may_be_damaged_or_unwritable(package, monkeypatch, cache):
    monkeypatch.setattr(files, "REMEMBER_ABOVE", 1)
    packaged_file("oats", "grain.txt")
    (memory,) = (cache / "verified").glob("*.json")
    memory.write_text("{not json")
    files._verified.clear()
    assert packaged_file("oats", "grain.txt").exists()
    monkeypatch.setenv("SPARSEBOOK_CACHE", str(package / "grain.txt"))  # a file: nothing can be written below
    files._verified.clear()
    assert packaged_file("oats", "grain.txt").exists()


def test_every_recorded_file_of_the_installed_packages_is_the_recorded_one():
    record = json.loads(files.RECORD.read_text(encoding="utf-8"))
    small = [
        (package, path)
        for package, entry in record["packages"].items()
        for path, file in entry["files"].items()
        if file["bytes"] < files.REMEMBER_ABOVE
    ]
    assert len(small) > 40
    for package, path in small:
        assert packaged_file(package, path).is_file()


def test_the_record_holds_no_path_that_leaves_its_package():
    record = json.loads(files.RECORD.read_text(encoding="utf-8"))
    for kind in ("packages", "wheels"):
        for entry in record[kind].values():
            for path, file in entry["files"].items():
                assert not path.startswith("/")
                assert ".." not in path
                assert len(file["sha256"]) == 64


# --- wheels ---


@pytest.fixture
def wheel(tmp_path, record):
    """A recorded wheel in a folder that pip can find it in, not yet fetched."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "chaff-0.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("chaff/data.txt", "light stuff")
        archive.writestr("chaff/unread.txt", "nobody reads this")
        archive.writestr("chaff-0.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: chaff\nVersion: 0.3\n")
        archive.writestr("chaff-0.3.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("chaff-0.3.dist-info/RECORD", "")
    files.record_wheel(path, "chaff", "0.3", ["chaff/data.txt"])
    return path


@pytest.fixture
def fetched(wheel, cache):
    target = cache / "wheels" / wheel.name
    target.parent.mkdir(parents=True)
    target.write_bytes(wheel.read_bytes())
    return target


def test_a_wheel_that_was_not_fetched_says_how_to(wheel):
    with pytest.raises(MissingInput, match=r"chaff 0\.3 .*`make prepare` or `sparsebook data --prepare`"):
        wheel_file("chaff", "chaff/data.txt")


def test_a_member_is_taken_out_of_the_wheel_and_nothing_else(fetched):
    path = wheel_file("chaff", "chaff/data.txt")
    assert path.read_text() == "light stuff"
    assert not (path.parent / "unread.txt").exists()
    with pytest.raises(ValueError, match="not recorded"):
        wheel_file("chaff", "chaff/unread.txt")


def test_a_damaged_member_is_taken_out_again(fetched):
    wheel_file("chaff", "chaff/data.txt").write_text("heavy")
    assert wheel_file("chaff", "chaff/data.txt").read_text() == "light stuff"


def test_a_damaged_wheel_is_refused(fetched):
    fetched.write_bytes(fetched.read_bytes()[:-1])
    with pytest.raises(ChangedInput, match="damaged"):
        wheel_file("chaff", "chaff/data.txt")


def test_pip_fetches_the_wheel_once(wheel, cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    files.fetch_wheel("chaff")
    assert wheel_file("chaff", "chaff/data.txt").read_text() == "light stuff"
    monkeypatch.setattr(files, "_pip_download", lambda *_: pytest.fail("fetched twice"))
    files.fetch_wheel("chaff")


def test_another_wheel_than_the_recorded_one_is_not_kept(wheel, cache, monkeypatch):
    def deliver(requirement, folder):
        (Path(folder) / wheel.name).write_bytes(b"something else")

    monkeypatch.setattr(files, "_pip_download", deliver)
    with pytest.raises(ChangedInput, match="pip delivered another"):
        files.fetch_wheel("chaff")
    assert list((cache / "wheels").glob("*.whl")) == []


def test_a_killed_download_leaves_no_litter(wheel, cache, monkeypatch):
    (cache / "wheels" / f".{wheel.name}-arriving-x").mkdir(parents=True)
    monkeypatch.setattr(
        files, "_pip_download", lambda _, to: (Path(to) / wheel.name).write_bytes(wheel.read_bytes())
    )
    files.fetch_wheel("chaff")
    assert sorted(path.name for path in (cache / "wheels").iterdir()) == [f".{wheel.name}.lock", wheel.name]


def test_pip_without_a_source_gives_one_sentence(record, cache, monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no luck\n")
    )
    with pytest.raises(MissingInput, match=r"pip could not download chaff==0\.3: no luck"):
        files._pip_download("chaff==0.3", "anywhere")


# --- caches ---


def write_grain(folder):
    (folder / "below").mkdir()
    (folder / "below" / "grain.txt").write_text("grown")


def test_a_cache_is_built_once_per_version(cache):
    built = []

    def build(folder):
        built.append(folder)
        write_grain(folder)

    first = cached("crop", build, "1")
    assert cached("crop", build, "1") == first
    assert cached("crop", build, "2") != first
    assert len(built) == 2
    assert (first / "below" / "grain.txt").read_text() == "grown"


@pytest.mark.parametrize(("name", "version"), [("a/b", "1"), ("a", "../1"), ("", "1"), ("a", ".1")])
def test_names_that_are_no_file_names_are_refused(cache, name, version):
    with pytest.raises(ValueError, match="expected letters, digits"):
        cached(name, write_grain, version)


def truncate(folder):
    (folder / "below" / "grain.txt").write_text("gro")


def same_size(folder):
    (folder / "below" / "grain.txt").write_text("grewn")


def lose_file(folder):
    (folder / "below" / "grain.txt").unlink()


def lose_manifest(folder):
    (folder / files.MANIFEST).unlink()


def damage_manifest(folder):
    (folder / files.MANIFEST).write_text("[1, 2")


def foreign_manifest(folder):
    (folder / files.MANIFEST).write_text("[]")


@pytest.mark.parametrize(
    "damage", [truncate, same_size, lose_file, lose_manifest, damage_manifest, foreign_manifest]
)
def test_a_damaged_cache_is_built_anew(cache, damage):
    damage(cached("crop", write_grain, "1"))
    assert (cached("crop", write_grain, "1") / "below" / "grain.txt").read_text() == "grown"


def test_a_builder_that_fails_leaves_nothing_behind(cache):
    def fail(folder):
        write_grain(folder)
        raise RuntimeError("hail")

    with pytest.raises(RuntimeError, match="hail"):
        cached("crop", fail, "1")
    assert [path for path in (cache / "built" / "crop").iterdir() if not path.name.endswith(".lock")] == []
    assert cached("crop", write_grain, "1").is_dir()


BUILDER = """
import sys, time
from pathlib import Path
from sparsebook.files import cached
log, pause = Path(sys.argv[1]), float(sys.argv[2])

def build(folder):
    with log.open("a") as stream:
        stream.write("building\\n")
    (folder / "half.txt").write_text("half")
    time.sleep(pause)
    (folder / "whole.txt").write_text("whole")

print((cached("crop", build, "1") / "whole.txt").read_text())
"""


def start_builder(log, pause):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(log), str(pause)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_build_once_and_both_see_the_whole(cache, tmp_path):
    log = tmp_path / "log"
    processes = [start_builder(log, 0.5) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["whole", "whole"]
    assert log.read_text() == "building\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_builder_neither_blocks_nor_litters(cache, tmp_path):
    log = tmp_path / "log"
    killed = start_builder(log, 600)
    deadline = time.monotonic() + 60
    while not list((cache / "built").glob("crop/*/half.txt")):
        assert time.monotonic() < deadline, "the builder never began"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (cache / "built" / "crop" / "1").exists()
    survivor = start_builder(log, 0)
    assert survivor.communicate(timeout=60)[0].strip() == "whole"
    assert sorted(path.name for path in (cache / "built" / "crop").iterdir()) == [".1.lock", "1"]


def test_writing_atomically_leaves_the_old_text_when_it_fails(tmp_path):
    path = tmp_path / "note.txt"
    files.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- the record ---


def test_recording_again_describes_what_is_there_now(package, record):
    (package / "grain.txt").write_text("new grain")
    files.record_again()
    file = json.loads(record.read_text())["packages"]["oats"]["files"]["grain.txt"]
    assert file == {"bytes": 9, "sha256": sha256(b"new grain").hexdigest()}
    assert packaged_file("oats", "grain.txt").read_text() == "new grain"
