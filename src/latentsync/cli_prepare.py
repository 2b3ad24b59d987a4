"""The commands that prepare footage: parse, call, show, print. As in `cli`, no work happens here and nothing heavy is imported early."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from latentsync.errors import UsageError

if TYPE_CHECKING:
    from latentsync.prepare.alone import Alone
    from latentsync.prepare.config import PrepareConfig
    from latentsync.prepare.engine import Outcome, Progress

S = TypeVar("S", bound="Show")

STOPPED = 130  # exit code: asked to stop; the same command goes on


class _RunByDefault(TyperGroup):
    """`latentsync prepare RAW OUT` is `latentsync prepare run RAW OUT`."""

    default_command = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


prepare_app = typer.Typer(
    cls=_RunByDefault,
    help="Make training clips of footage: `latentsync prepare RAW OUT` does all of it (and is short for `latentsync prepare run RAW OUT`); "
    "the other commands look into what was made, or do a single step on one file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

HOME = typer.Option(metavar="DIR", help="Where weights lie; by default LATENTSYNC_HOME, or else the platform's cache folder.")
AS_JSON = typer.Option("--json", help="Print as JSON, and nothing else on standard output.")
FILE = typer.Argument(metavar="FILE", help="A video.")
CLIP = typer.Argument(metavar="CLIP", help="An aligned clip, or a video with a face.")
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")
FACE_BACKEND = typer.Option("--face-backend", metavar="mediapipe|insightface|demo", help="What finds faces.")
FROM = typer.Option("--from", metavar="SECONDS", help="Where the span begins; by default with the file.")
TO = typer.Option("--to", metavar="SECONDS", help="Where it ends; by default with the file.")
THRESHOLD = typer.Option("--scene-threshold", metavar="T", help="Of the adaptive scene detector; a higher one cuts less.")
LEAST = typer.Option("--least", metavar="SECONDS", help="Shortest clip.")
MOST = typer.Option("--most", metavar="SECONDS", help="Longest clip.")
SHORT = typer.Option("--keep-short", help="Also keep what is shorter than --least.")
MIN_FACE = typer.Option("--min-face", metavar="PIXELS", help="Drop clips whose main face is narrower or lower; release 1.0 asked for 256.")
ONE_PERSON = typer.Option("--one-person", help="Drop clips that show more than one face.")
MAX_YAW = typer.Option("--max-yaw", metavar="DEGREES", help="Drop clips in which the head turns further.")
MIN_SHARE = typer.Option("--min-share", metavar="SHARE", help="Drop clips in which fewer frames show the main face.")
SIZE = typer.Option("--size", metavar="256|512", help="Side of the aligned crop in pixels.")
NO_CROP = typer.Option("--no-crop", help="Keep the whole frame; the matrices that lead to the crop lie beside the clip.")
SYNC_MODEL = typer.Option("--sync-model", metavar="syncnet|demo", help="What judges sync: SyncNet v2, or the SyncNet that comes with the package.")
MIN_SYNC = typer.Option("--min-sync", metavar="CONFIDENCE", help="Drop clips below; by default 3 for syncnet, 0.2 on the scale of demo.")
MAX_OFFSET = typer.Option("--max-offset", metavar="FRAMES", help="Drop clips whose sound is further off; of the others it is moved into sync.")
QUALITY_MODEL = typer.Option("--quality-model", metavar="hyperiqa|sharpness", help="What judges quality: HyperIQA, or a plain measure.")
MIN_QUALITY = typer.Option("--min-quality", metavar="SCORE", help="Drop clips below; by default 40 for hyperiqa, 30 on the scale of sharpness.")
LOOK_AT = {  # options by which steps drop less
    "segments": "--least and --keep-short",
    "faces": "--min-face, --min-share, --max-yaw, --one-person and --face-backend",
    "sync": "--min-sync and --max-offset",
    "quality": "--min-quality",
}
OVERWRITE = typer.Option("--overwrite", help="Replace what exists.")


@prepare_app.command("run")
def prepare_run(
    raw: Annotated[str, typer.Argument(metavar="RAW", help="Footage: a folder, a list of files, or an address such as s3://bucket/raw. Only read.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or address of the clips; the same command again goes on where it stands.")],
    skip: Annotated[list[str] | None, typer.Option("--skip", metavar="STEPS", help="Steps to leave out, such as quality or sync,quality.")] = None,
    order: Annotated[str, typer.Option("--order", metavar="STEPS", help="Another order of steps, such as quality,sync: those change places.")] = "",
    scene_threshold: Annotated[float, THRESHOLD] = 2.0,
    least: Annotated[float, LEAST] = 5.0,
    most: Annotated[float, MOST] = 10.0,
    keep_short: Annotated[bool, SHORT] = False,
    min_face: Annotated[int, MIN_FACE] = 0,
    one_person: Annotated[bool, ONE_PERSON] = False,
    max_yaw: Annotated[float | None, MAX_YAW] = None,
    min_share: Annotated[float, MIN_SHARE] = 0.9,
    face_backend: Annotated[str, FACE_BACKEND] = "mediapipe",
    size: Annotated[int, SIZE] = 256,
    no_crop: Annotated[bool, NO_CROP] = False,
    sync_model: Annotated[str, SYNC_MODEL] = "syncnet",
    min_sync: Annotated[float | None, MIN_SYNC] = None,
    max_offset: Annotated[int, MAX_OFFSET] = 6,
    quality_model: Annotated[str, QUALITY_MODEL] = "hyperiqa",
    min_quality: Annotated[float | None, MIN_QUALITY] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes; 0: one for each core.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, or several that the processes take in turn: cuda:0,cuda:1.")] = "auto",
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", metavar="SECONDS", help="For one step on one file, and 10 s more for each second of film; then it is cut off."),
    ] = 600.0,
    retry: Annotated[bool, typer.Option("--retry", help="Do again what failed in an earlier run.")] = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep resampled films after their last clip; by default they make room.")] = False,
    cluster: Annotated[str, typer.Option("--cluster", metavar="auto|ADDRESS", help="Work on a Ray cluster: auto finds or starts one.")] = "",
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Make clips of all footage in a folder.

    This is what `latentsync prepare RAW OUT` does. Steps: check, resample, scenes, segments, faces, align, sync, quality. Interrupted anyhow, the
    same command goes on; with another threshold it decides anew over the numbers that are there. OUT holds clips/, manifest.jsonl, report.html and
    report.txt.
    """
    from latentsync.prepare.config import STEPS, PrepareConfig, Running, ordered

    config = PrepareConfig(
        order=ordered(_names(order)) if order else STEPS,
        skip=tuple(name for words in skip or [] for name in _names(words)),
        scene_threshold=scene_threshold,
        least=least,
        most=most,
        keep_short=keep_short,
        min_face=min_face,
        one_person=one_person,
        max_yaw=max_yaw,
        min_share=min_share,
        face_backend=face_backend,
        size=size,  # type: ignore[arg-type]
        crop=not no_crop,
        sync_model=sync_model,  # type: ignore[arg-type]
        min_sync=min_sync,
        max_offset=max_offset,
        quality_model=quality_model,  # type: ignore[arg-type]
        min_quality=min_quality,
    )
    running = Running(
        jobs=jobs,
        devices=_names(device),
        time_limit=time_limit,
        home=str(home) if home else "",
        keep_work=keep_work,
        retry=retry,
        cluster=cluster,
    )
    from latentsync.prepare.engine import prepare

    with Wish() as wish, _Show() as shown:
        outcome = prepare(raw, out, config, running, progress=shown.progress, say=shown.say, stop=wish)
    _end(outcome, as_json)


def _names(words: str) -> tuple[str, ...]:
    return tuple(w for w in words.replace(",", " ").split() if w)


def _end(outcome: Outcome, as_json: bool) -> None:
    from latentsync.prepare import report

    if outcome.tally is None:
        p = outcome.progress
        typer.echo(f"stopped after {p.files_done} of {p.files} files; the same command goes on from there", err=True)
        raise typer.Exit(STOPPED)
    if as_json:
        typer.echo(json.dumps(plain(outcome)))
    else:
        typer.echo(report.text(outcome.tally), nl=False)
        for line in closing(outcome):
            typer.echo(line)


def plain(outcome: Outcome) -> dict[str, Any]:
    """What a run came to, as JSON holds it."""
    tally, done = outcome.tally, outcome.progress
    assert tally is not None
    return {
        "out": outcome.out,
        "files": tally.files,
        "same": tally.same,
        "clips": tally.clips,
        "kept": tally.kept,
        "kept_seconds": round(tally.kept_seconds, 3),
        "film_seconds": round(tally.film, 3),
        "failed": tally.failures,
        "stages": [{"step": s.name, "count": s.count, "of": s.of, "seconds": round(s.seconds, 3)} for s in tally.stages],
        "seconds": round(done.seconds, 3),
        "files_per_second": round(done.worked / done.seconds, 4) if done.seconds else 0.0,
        "x_real_time": round(done.film / done.seconds, 3) if done.seconds else 0.0,
        "slowest": done.slowest,
        "steps": {k: {"done": t.count, "seconds": round(t.seconds, 3), "x_real_time": round(t.speed, 3)} for k, t in done.steps.items()},
        "notes": outcome.notes,
    }


def closing(outcome: Outcome) -> list[str]:
    """How a run went, in words."""
    done = outcome.progress
    lines = [""]
    if done.steps:
        lines.append(f"this run: {done.seconds:.1f} s, {speed(done)}")
    else:
        lines.append("this run: nothing had to be measured")
    lines += [f"note: {note}" for note in outcome.notes[:20]]
    if outcome.tally is not None and not outcome.tally.kept and outcome.tally.reasons:
        (step, _), _ = outcome.tally.reasons.most_common(1)[0]
        lines.append(f"nothing was kept; most was dropped at {step}" + (f": look at {LOOK_AT[step]}" if step in LOOK_AT else ""))
    return [*lines, f"{outcome.out}: report.html, report.txt, manifest.jsonl, clips/"]


def speed(p: Progress) -> str:
    """Files a second, x real time and the slowest step."""
    if not p.seconds or not p.steps:
        return ""
    said = f"{p.worked / p.seconds:.2f} files/s, {p.film / p.seconds:.1f} x real time"
    return said + f", slowest step {p.slowest} ({p.steps[p.slowest].speed:.1f} x a process)"


def _so_far(p: Progress) -> str:
    return ", ".join(words for words in (f"{p.kept} of {p.clips} clips kept", speed(p)) if words)


class Wish:
    """Whether Ctrl-C or a signal asked to stop. A second one does not wait."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Wish:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self._asked

    def _note(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


class Show:
    """Progress on standard error, of `train` too: a bar that appears with the first `_advance`, and words above it.

    What is told where there is no terminal is up to each command.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Words for people."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line, err=True)

    def _advance(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=text)


class _Show(Show):
    """A bar at a terminal, a line now and then elsewhere."""

    EVERY = 30.0  # seconds between two lines

    def __init__(self) -> None:
        super().__init__()
        self._told = 0.0

    def progress(self, p: Progress) -> None:
        if self._terminal:
            self._advance(p.files_done, p.files, _so_far(p))
        elif p.seconds - self._told > self.EVERY:
            self._told = p.seconds
            typer.echo(f"{p.files_done} of {p.files} files, {_so_far(p)}", err=True)


# What was made


@prepare_app.command("list", short_help="Write the lists of clips that training reads.")
def prepare_list(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="What `latentsync prepare` wrote, or folders of clips, searched through."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="LIST", help="The list to write, one file a line.")],
    validation: Annotated[
        Path | None,
        typer.Option("--validation", metavar="LIST", help="A second list, of the clips of source videos that are held out."),
    ] = None,
    share: Annotated[float, typer.Option("--share", help="Share of the source videos to hold out.")] = 0.02,
    seed: Annotated[int, typer.Option("--seed", help="Another one holds out other source videos.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace lists that exist.")] = False,
) -> None:
    """Write a list of the clips in folders, or two: one for training, one for validation, split by source video.

    data.train and data.validation take them. Paths are relative to the list, so that both can be moved together.
    """
    from latentsync.prepare.listing import write_list, write_split

    if validation is None:
        typer.echo(f"{out}: {write_list(folders, out, overwrite=overwrite)} clips")
        return
    train, held = write_split(folders, out, validation, share=share, seed=seed, overwrite=overwrite)
    typer.echo(f"{out}: {train} clips")
    typer.echo(f"{validation}: {held} clips of other source videos")


@prepare_app.command("inspect", short_help="Show one clip's history.")
def prepare_inspect(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A clip's path or name, or the name of a file of the footage.")],
    place: Annotated[str, typer.Option("--in", metavar="OUT", help="What `latentsync prepare` wrote; not needed for a path within it.")] = "",
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """One clip's history: source, span, each step's numbers and decision, seconds and versions."""
    from latentsync.prepare import inspect

    rows = inspect.history(clip, place)
    typer.echo(json.dumps(rows) if as_json else "\n".join(map(inspect.text, rows)))


@prepare_app.command("report", short_help="Write the report anew.")
def prepare_report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="What `latentsync prepare` wrote.")],
    as_text: Annotated[bool, typer.Option("--text", help="Only print the summary; write nothing.")] = False,
) -> None:
    """Write OUT/report.html and report.txt from the manifest, and print the summary."""
    from latentsync.prepare import report
    from latentsync.prepare.store import open_store

    store = open_store(out)
    total = report.tally(store) if as_text else report.write(store)
    typer.echo(report.text(total), nl=False)


# Single steps


@prepare_app.command("check", short_help="Step 1: can a file be read to its end?")
def prepare_check(file: Annotated[Path, FILE], as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Step 1: whether a file can be decoded to its end, and has picture and sound. Exit code 1 where it does not pass, as for all steps."""
    from latentsync.prepare import alone

    _tell(file, alone.run_check(file), as_json)


@prepare_app.command("resample", short_help="Step 2: 25 fps and 16 kHz.")
def prepare_resample(
    file: Annotated[Path, FILE],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, .mp4 or .mkv; not written where the rates are right already.")],
    overwrite: Annotated[bool, OVERWRITE] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 2: 25 frames and 16000 samples a second, where a file has others."""
    _free(out, overwrite)
    from latentsync.prepare import alone

    _tell(file, alone.run_resample(file, out, _config()), as_json)


@prepare_app.command("scenes")
def prepare_scenes(
    file: Annotated[Path, FILE], scene_threshold: Annotated[float, THRESHOLD] = 2.0, as_json: Annotated[bool, AS_JSON] = False
) -> None:
    """Step 3: the scenes of a file, from cut to cut."""
    from latentsync.prepare import alone

    _tell(file, alone.run_scenes(file, _config(scene_threshold=scene_threshold)), as_json)


@prepare_app.command("segments", short_help="Step 4: spans of five to ten seconds.")
def prepare_segments(
    file: Annotated[Path, FILE],
    scene_threshold: Annotated[float, THRESHOLD] = 2.0,
    least: Annotated[float, LEAST] = 5.0,
    most: Annotated[float, MOST] = 10.0,
    keep_short: Annotated[bool, SHORT] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 4: the spans that a file's scenes are split into."""
    from latentsync.prepare import alone

    _tell(file, alone.run_segments(file, _config(scene_threshold=scene_threshold, least=least, most=most, keep_short=keep_short)), as_json)


@prepare_app.command("faces", short_help="Step 5: whose faces are seen, how large?")
def prepare_faces(
    file: Annotated[Path, FILE],
    start: Annotated[float | None, FROM] = None,
    end: Annotated[float | None, TO] = None,
    min_face: Annotated[int, MIN_FACE] = 0,
    one_person: Annotated[bool, ONE_PERSON] = False,
    max_yaw: Annotated[float | None, MAX_YAW] = None,
    min_share: Annotated[float, MIN_SHARE] = 0.9,
    face_backend: Annotated[str, FACE_BACKEND] = "mediapipe",
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 5: whose faces a file or a span of it shows, how large, and how far they turn."""
    from latentsync.prepare import alone

    config = _config(min_face=min_face, one_person=one_person, max_yaw=max_yaw, min_share=min_share, face_backend=face_backend)
    _tell(file, alone.run_faces(file, alone.span_of(file, start, end), config, home), as_json)


@prepare_app.command("align", short_help="Step 6: the main face, upright in a square.")
def prepare_align(
    file: Annotated[Path, FILE],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The clip to write, .mp4; matrices and landmarks lie beside it as .npz.")],
    start: Annotated[float | None, FROM] = None,
    end: Annotated[float | None, TO] = None,
    size: Annotated[int, SIZE] = 256,
    no_crop: Annotated[bool, NO_CROP] = False,
    face_backend: Annotated[str, FACE_BACKEND] = "mediapipe",
    home: Annotated[Path | None, HOME] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 6: the main person's face, upright in a square, as inference sees it."""
    _free(out, overwrite)
    _free(out.with_suffix(".npz"), overwrite)
    from latentsync.prepare import alone

    config = _config(size=size, crop=not no_crop, face_backend=face_backend)
    _tell(file, alone.run_align(file, alone.span_of(file, start, end), out, config, home), as_json)


@prepare_app.command("sync", short_help="Step 7: do lips and sound belong together?")
def prepare_sync(
    clip: Annotated[Path, CLIP],
    shifted: Annotated[Path | None, typer.Option("--shift", metavar="OUT", help="Write the clip there with its sound moved into sync.")] = None,
    sync_model: Annotated[str, SYNC_MODEL] = "syncnet",
    min_sync: Annotated[float | None, MIN_SYNC] = None,
    max_offset: Annotated[int, MAX_OFFSET] = 6,
    face_backend: Annotated[str, FACE_BACKEND] = "mediapipe",
    device: Annotated[str, DEVICE] = "auto",
    home: Annotated[Path | None, HOME] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 7: whether lips and sound belong together, and by how many frames they are apart."""
    if shifted is not None:
        _free(shifted, overwrite)
    from latentsync.device import choose
    from latentsync.prepare import alone

    config = _config(sync_model=sync_model, min_sync=min_sync, max_offset=max_offset, face_backend=face_backend)
    _tell(clip, alone.run_sync(clip, config, str(choose(device, "fp32").device), home, shifted), as_json)


@prepare_app.command("quality", short_help="Step 8: how good do three frames look?")
def prepare_quality(
    clip: Annotated[Path, CLIP],
    quality_model: Annotated[str, QUALITY_MODEL] = "hyperiqa",
    min_quality: Annotated[float | None, MIN_QUALITY] = None,
    device: Annotated[str, DEVICE] = "auto",
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Step 8: how good the first, the middle and the last frame look."""
    from latentsync.device import choose
    from latentsync.prepare import alone

    config = _config(quality_model=quality_model, min_quality=min_quality)
    _tell(clip, alone.run_quality(clip, config, str(choose(device, "fp32").device), home), as_json)


def _config(**values: Any) -> PrepareConfig:
    from latentsync.prepare.config import PrepareConfig

    return PrepareConfig(**values)


def _free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; pass --overwrite to replace it")


def _tell(file: Path, found: Alone, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"file": str(file), **found.plain()}))
    else:
        from latentsync.prepare.inspect import said

        for name, value in found.plain().items():
            if name not in ("keep", "reason"):
                typer.echo(f"{name:<16} {said(value)}")
        typer.echo(f"{'keep' if found.decision.keep else 'drop'}: {found.decision.reason}" if found.decision.reason else "keep")
    if not found.decision.keep:
        raise typer.Exit(1)
