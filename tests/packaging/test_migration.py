"""docs/from-the-original.md is true where a program can tell: the folder of the published project is used as it lies, and our commands exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from latentsync.cli import app
from latentsync.weights import PUBLISHED
from latentsync.weights.places import candidates

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "from-the-original.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table after a heading."""
    block = PAGE.split(f"\n{heading}\n", 1)[1]
    table = re.findall(r"(?:^\|.*\n)+", block, re.M)[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in table.splitlines()[2:]]


def test_every_file_of_the_published_folder_is_found_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_WEIGHTS_PATH", str(tmp_path))
    used = [
        name
        for file, _, here in rows("## Your checkpoints")
        for name in re.findall(r"`([\w./-]+)`", file)
        if here.startswith("used") and "~" not in file
    ]
    assert len(used) > 6
    for name in used:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {
        path.relative_to(tmp_path).as_posix()
        for remote in PUBLISHED.files.values()
        for path in candidates(remote, tmp_path / "home")
        if path.is_file()
    }
    assert set(used) <= found


@pytest.mark.parametrize("text", sorted(set(re.findall(r"`latentsync ([a-z][^`]*)`", PAGE)) | set(re.findall(r"^latentsync (.+)$", PAGE, re.M))))
def test_every_command_that_is_named_exists(text):
    command = typer.main.get_command(app)
    words = shlex.split(text, comments=True)
    path = []
    while words and hasattr(command, "commands"):
        if command.name == "prepare" and words[0] not in command.commands:
            words.insert(0, "run")
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known, " ".join(path)


def test_every_option_in_its_tables_is_one_of_ours():
    ours = set((ROOT / "docs" / "cli.md").read_text(encoding="utf-8").replace(",", " ").split())
    for heading in (
        "### Flags of `scripts.inference`",
        "### Settings and flags of `gradio_app.py`",
        "### Flags of `data_processing_pipeline`",
        "### Flags of the evaluation",
    ):
        for row in rows(heading):
            assert set(re.findall(r"`(--[\w-]+)", row[1])) <= ours, row
