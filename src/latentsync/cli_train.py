"""The commands that train: parse, call, show, print. As in `cli`, no work happens here and nothing heavy is imported early."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsync.cli_prepare import Show
from latentsync.errors import OutputError, UsageError

if TYPE_CHECKING:
    from latentsync.train.config import Kind
    from latentsync.train.loop import Outcome

train_app = typer.Typer(help="Train the networks, and look into data and checkpoints.", no_args_is_help=True, rich_markup_mode=None)

NEEDED = ("accelerate", "matplotlib", "peft", "tensorboard")
STOPPED = 130  # exit code: asked to stop, and did so with a checkpoint

CONFIG = typer.Argument(
    metavar="CONFIG", help="A preset (`latentsync train presets` lists them) or a YAML file; the published project's files work too."
)
VALUES = typer.Argument(metavar="KEY=VALUE", help="What differs, such as run.out=runs/first or run.batch=4; `latentsync train show` lists all.")
HOME = typer.Option(metavar="DIR", help="Where weights lie; by default LATENTSYNC_HOME, or else the platform's cache folder.")
AS_JSON = typer.Option("--json", help="Print as JSON.")
RESULT_AS_JSON = typer.Option("--json", help="Print what was done as JSON, and nothing else on standard output.")


# What is trained, and its help; the first line stands in lists of commands.
TRAININGS: dict[Kind, str] = {
    "unet": """Train the U-Net: stage 1, stage 2, or fine-tuning.

    The same command again goes on where the run in run.out stands. Many GPUs and machines: accelerate launch -m latentsync train unet ...
    """,
    "syncnet": """Train SyncNet, the judge of lip sync.

    Stage 2 of the U-Net learns from it. The same command again goes on where the run in run.out stands. Many GPUs and machines:
    accelerate launch -m latentsync train syncnet ...
    """,
    "autoencoder": """Train a small autoencoder between face crops and latents, as the demo model's.

    The same command again goes on where the run in run.out stands.
    """,
    "speech": """Train a small speech encoder on sounds whose articulation is known, as the demo model's.

    The same command again goes on where the run in run.out stands.
    """,
    "tracker": """Train a small face finder on clips whose landmarks are known, as the demo model's.

    The same command again goes on where the run in run.out stands.
    """,
}


def _trainer(kind: Kind) -> Callable[..., None]:
    def train(
        config: Annotated[str, CONFIG],
        values: Annotated[list[str] | None, VALUES] = None,
        home: Annotated[Path | None, HOME] = None,
        as_json: Annotated[bool, RESULT_AS_JSON] = False,
    ) -> None:
        _train(kind, config, values, home, as_json)

    return train


for _kind, _help in TRAININGS.items():
    train_app.command(_kind, help=_help)(_trainer(_kind))


@train_app.command("presets")
def train_presets(as_json: Annotated[bool, AS_JSON] = False) -> None:
    """The presets that ship with the program."""
    from latentsync.train.config import KINDS, load, presets

    rows = [{"kind": kind, "name": name, "summary": load(kind, name)[0].summary} for kind in KINDS for name in presets(kind)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['kind']:<12} {row['name']:<21} {row['summary']}")


@train_app.command("show")
def train_show(
    config: Annotated[str, CONFIG],
    values: Annotated[list[str] | None, VALUES] = None,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="Which network CONFIG trains (unet, syncnet, autoencoder, speech, tracker), where it does not say so itself."
        ),
    ] = "",
) -> None:
    """Print a whole configuration as YAML.

    Every value of it is there, in the form that `train unet`, `train syncnet` and so on read.
    """
    from latentsync.train.config import dump, kind_of, load

    made, notes = load(kind or kind_of(config), config, values or [])  # type: ignore[arg-type]
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(dump(made), nl=False)


@train_app.command("check")
def train_check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of clips, or a list of files.")],
    faces: Annotated[bool, typer.Option("--faces", help="Look for a face in the first, the middle and the last frame of every clip.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="LIST", help="Write a list of the clips that can be used.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace LIST if it exists.")] = False,
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Read through a data set and report on it.

    Lengths, sizes, rates, missing sound and unreadable files are named. Exit code 1 where a clip cannot be used.
    """
    if write is not None and write.exists() and not overwrite:
        raise OutputError(f"{write} exists; pass --overwrite to replace it")
    from latentsync.train.check import check

    with _Show() as shown:
        report = check(data, faces=faces, home=home, progress=shown.count)
    if write is not None:
        from latentsync.prepare.listing import write_paths

        write_paths(report.good, write, overwrite=overwrite)
    typer.echo(json.dumps(report.plain()) if as_json else report.text())
    if report.bad:
        raise typer.Exit(1)


@train_app.command("export")
def train_export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder, or a run's, which means its last one.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .pt as published, or .safetensors.")],
    ema: Annotated[bool, typer.Option("--ema", help="The running mean of the weights (run.ema) instead of the weights themselves.")] = False,
    home: Annotated[Path | None, HOME] = None,
) -> None:
    """Write a checkpoint's network as one file.

    This program and the published one load it.
    """
    from latentsync.train.export import export
    from latentsync.weights import gigabytes

    export(checkpoint, out, ema=ema, home=home)
    typer.echo(f"{out}: {gigabytes(out.stat().st_size)}")


def _train(kind: Kind, config: str, values: list[str] | None, home: Path | None, as_json: bool) -> None:
    from latentsync import train

    made, notes = train.load(kind, config, values or [])
    train.require(made)
    _need_extra()
    with _Show() as shown:
        outcome = train.run(made, home=home, notes=notes, say=shown.say, show=shown.step)
    _end(outcome, as_json)


def _need_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'training needs more packages ({", ".join(missing)}); run: pip install "latentsync[train]"')


def _end(outcome: Outcome, as_json: bool) -> None:
    """Say what a run did. With many processes only the first one speaks."""
    from latentsync.train.loop import is_main

    if is_main():
        if as_json:
            plain = {
                "out": str(outcome.out),
                "step": outcome.step,
                "stopped": outcome.stopped,
                "checkpoint": str(outcome.checkpoint) if outcome.checkpoint else None,
                "bad_clips": outcome.bad,
                "values": outcome.row,
            }
            typer.echo(json.dumps(plain))
        else:
            for line in closing(outcome):
                typer.echo(line)
    if outcome.stopped:
        raise typer.Exit(STOPPED)


def closing(outcome: Outcome) -> list[str]:
    """What a run did, in words."""
    where = outcome.checkpoint or outcome.out
    lines = [f"{where}: step {outcome.step}" + (f", {row_text(outcome.row)}" if outcome.row else "")]
    if outcome.stopped:
        lines.append("stopped before its end; the same command goes on from there")
    if outcome.bad:
        lines.append(f"clips left out: {len(outcome.bad)}, the first: {outcome.bad[0]}")
    return lines


def row_text(row: Mapping[str, float]) -> str:
    """A row of the log in few words: the losses, then speed and memory."""
    course = (
        "learning_rate",
        "grad_norm",
        "skipped_steps",
        "seconds_per_step",
        "data_seconds_per_step",
        "frames_per_second",
        "memory_gb",
        "bad_clips",
    )
    parts = [f"{name} {row[name]:.4g}" for name in sorted(set(row) - set(course), key=lambda n: (n != "loss", n))]
    if "seconds_per_step" in row:
        waits = f" (data {row['data_seconds_per_step']:.2f})" if "data_seconds_per_step" in row else ""
        parts.append(f"{row['seconds_per_step']:.2f} s a step{waits}")
    if "frames_per_second" in row:
        parts.append(f"{row['frames_per_second']:.1f} frames/s")
    if "memory_gb" in row:
        parts.append(f"{row['memory_gb']:.1f} GB")
    return ", ".join(parts)


class _Show(Show):
    """A bar at a terminal, a line for each row of the log elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._row: Mapping[str, float] | None = None

    def step(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        """After every step, with the last row of the log."""
        if self._terminal:
            self._advance(step, steps, row_text(row))
        elif row and row is not self._row:
            typer.echo(f"step {step}: {row_text(row)}", err=True)
        self._row = row

    def count(self, done: int, total: int) -> None:
        """While clips are read through."""
        if self._terminal:
            self._advance(done, total, "clips")
