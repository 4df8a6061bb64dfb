"""What the README says works when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("source", blocks("python"))
def test_python_runs_as_pasted(source: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.search(r"print\(.*?: (tensor\(.*\))$", source, re.MULTILINE)
    assert promised is not None
    assert promised.group(1) in done.stdout


def test_make_targets_exist() -> None:
    named = set(re.findall(r"make ([a-z]+)\b", "\n".join(blocks("bash")) + README))
    assert {"reproduce", "test", "prepare", "book"} <= named
    assert [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []


def test_commands_and_their_options_exist() -> None:
    """Every `sparsebook` line names a command and options that the command line knows."""
    import typer

    from sparsebook.cli import app

    commands = typer.main.get_command(app).commands
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    used = [line.split("sparsebook ", 1)[1].split() for line in lines if "bin/sparsebook " in line]
    assert used
    for command, *rest in used:
        known = {
            name for option in commands[command].params for name in (*option.opts, *option.secondary_opts)
        }
        assert [word for word in rest if word.startswith("-") and word not in known] == []


def test_pictures_and_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
