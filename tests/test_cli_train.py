"""The commands that train and prepare, as a user runs them: what they print where, their exit codes, and that a run really runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import Result

from latentsync import cli_train
from latentsync.cli_train import closing, row_text
from latentsync.errors import InputError, OutputError, UsageError
from latentsync.train.config import KINDS, load, presets
from tests.conftest import invoked
from tests.test_cli import surroundings
from tests.train.clipmaker import make_clip

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(words...) -> what the command printed, run in this process in an empty folder; errors of the package are raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return invoked


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three clips of 64 px and 2.4 s."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        make_clip(folder / f"clip {i}.mp4", seed=i)
    return folder


# presets and configurations


def test_presets_are_listed(run: Run) -> None:
    rows = json.loads(run("train", "presets", "--json").stdout)
    assert {(r["kind"], r["name"]) for r in rows} == {(k, n) for k in KINDS for n in presets(k)}
    assert all(r["summary"] for r in rows)
    lines = run("train", "presets").stdout.splitlines()
    assert len(lines) == len(rows)
    assert any(line.split()[:2] == ["unet", "stage2_efficient"] for line in lines)


def test_a_configuration_is_shown_whole_and_read_again(run: Run, tmp_path: Path) -> None:
    shown = run("train", "show", "stage2", "run.batch=4", "data.train=my clips")
    assert shown.stderr == ""
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    assert run("train", "show", "mine.yaml").stdout == shown.stdout
    assert load("unet", tmp_path / "mine.yaml")[0] == load("unet", "stage2", ["run.batch=4", "data.train=my clips"])[0]
    assert yaml.safe_load(run("train", "show", "tiny", "--kind", "syncnet").stdout)["kind"] == "syncnet"
    with pytest.raises(UsageError, match="--kind"):
        run("train", "show", "tiny")


def test_notes_go_to_the_error_output(run: Run) -> None:
    shown = run("train", "show", "stage2", "lora.rank=4")
    assert "note: lora.rank is set" in shown.stderr
    assert yaml.safe_load(shown.stdout)["lora"]["rank"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("unet", "stag2"), "did you mean 'stage2'"),
        (("unet", "stage2", "run.stepz=3"), "did you mean 'steps'"),
        (("unet", "stage2"), r"data\.train=clips/"),
        (("unet", "stage2", "data.train=x"), r"run\.out"),
        (("syncnet", "stage1"), "latentsync train unet stage1"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_loaded(run: Run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run("train", *words)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in ("peft", "tensorboard") else find(name, *a))
    with pytest.raises(UsageError, match=r'\(peft, tensorboard\); run: pip install "latentsync\[train\]"'):
        run("train", "unet", "tiny", "data.train=x", "run.out=y")


def test_the_needed_packages_are_those_of_the_extra() -> None:
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    line = next(line for line in project.read_text(encoding="utf-8").splitlines() if line.startswith("train = "))
    assert {word.split(">")[0].strip(' "[]') for word in line.partition("=")[2].split(",")} == set(cli_train.NEEDED)


def test_help_is_light(tmp_path: Path) -> None:
    heavy = {"torch", "av", "numpy", "yaml", "rich.progress"}
    for words in (["train", "--help"], ["train", "unet", "--help"], ["prepare", "list", "--help"]):
        code = (
            f"import sys; sys.argv = ['latentsync', *{words!r}]\nfrom latentsync.cli import main\n"
            f"try: main()\nexcept SystemExit: pass\nprint('LOADED', *sorted({heavy!r} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", code], env=surroundings(tmp_path), capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1].split() == ["LOADED"]


# data


def test_a_list_is_written_and_not_overwritten_unasked(run: Run, clips: Path, tmp_path: Path) -> None:
    assert run("prepare", "list", clips, "-o", "list.txt").stdout == "list.txt: 3 clips\n"
    assert [Path(line).name for line in (tmp_path / "list.txt").read_text().splitlines()] == ["clip 0.mp4", "clip 1.mp4", "clip 2.mp4"]
    with pytest.raises(OutputError, match="--overwrite"):
        run("prepare", "list", clips, "-o", "list.txt")
    run("prepare", "list", clips, "-o", "list.txt", "--overwrite")


def test_a_data_set_is_checked(run: Run, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for clip in clips.iterdir():
        (tmp_path / "data" / clip.name).write_bytes(clip.read_bytes())
    good = run("train", "check", "data")
    assert good.exit_code == 0
    assert "3 of 3" in good.stdout
    (tmp_path / "data" / "broken.mp4").write_bytes(b"nothing")
    bad = run("train", "check", "data", "--json", "--write", "good.txt")
    assert bad.exit_code == 1
    report = json.loads(bad.stdout)
    assert [Path(b["path"]).name for b in report["unusable"]] == ["broken.mp4"]
    assert len((tmp_path / "good.txt").read_text().splitlines()) == 3
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        run("train", "check", "data", "--write", "good.txt")


# runs

QUICK = ("run.steps=2", "run.batch=2", "run.log_every=1", "run.validate_every=0", "run.device=cpu", "run.dtype=fp32")


def test_a_run_says_what_it_does_and_goes_on(run: Run, clips: Path, tmp_path: Path) -> None:
    """JSON alone on standard output, words on the other; the same command goes on; and what was trained can be taken away."""
    command = ("train", "syncnet", "tiny", f"data.train={clips}", "run.out=run", *QUICK)
    first = run(*command, "--json")
    assert first.exit_code == 0
    result = json.loads(first.stdout)
    assert (result["step"], result["stopped"], result["bad_clips"]) == (2, False, [])
    assert result["values"]["loss"] > 0
    assert "step 1: loss" in first.stderr
    assert "step 2: loss" in first.stderr
    assert load("syncnet", tmp_path / "run" / "train.yaml")[0].run.steps == 2
    again = run(*command, "run.steps=3")
    assert "goes on from step 2" in again.stderr
    assert "step-00000003: step 3, loss" in again.stdout

    exported = run("train", "export", "run", "net.pt")
    assert exported.stdout == f"net.pt: {(tmp_path / 'net.pt').stat().st_size / 1e6:.1f} MB\n"
    import torch

    assert torch.load(tmp_path / "net.pt", weights_only=True)["global_step"] == 3


def test_a_folder_without_clips_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        run("train", "syncnet", "tiny", "data.train=empty", "run.out=run", *QUICK)


def outcome(**values: Any) -> Any:
    from latentsync.train.loop import Outcome

    return Outcome(Path("run"), 7, **values)


def test_what_a_run_did_in_words() -> None:
    row = {"sync": 0.7, "loss": 0.5, "seconds_per_step": 1.25, "data_seconds_per_step": 0.5, "frames_per_second": 12.8, "memory_gb": 20.0}
    assert row_text(row | {"learning_rate": 1e-5, "bad_clips": 0.0}) == "loss 0.5, sync 0.7, 1.25 s a step (data 0.50), 12.8 frames/s, 20.0 GB"
    assert closing(outcome(row=row))[0].startswith("run: step 7, loss 0.5")
    lines = closing(outcome(stopped=True, checkpoint=Path("run/c"), bad=["a.mp4: no sound", "b.mp4: short"]))
    assert lines == [
        "run/c: step 7",
        "stopped before its end; the same command goes on from there",
        "clips left out: 2, the first: a.mp4: no sound",
    ]


def test_a_stopped_run_ends_with_its_own_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.Exit) as ended:
        cli_train._end(outcome(stopped=True), as_json=True)
    assert ended.value.exit_code == 130
    assert json.loads(capsys.readouterr().out)["stopped"] is True
    monkeypatch.setenv("RANK", "1")  # of many processes only the first speaks
    cli_train._end(outcome(), as_json=False)
    assert capsys.readouterr().out == ""
