"""The command line: parse, call, show progress, print. No work happens here, and nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync import __version__, cli_app, cli_evaluate, cli_prepare, cli_serve, cli_train
from latentsync import options as opt
from latentsync.errors import LatentSyncError

if TYPE_CHECKING:
    from latentsync.evaluate.short import Short
    from latentsync.pipeline import Progress, Result

app = typer.Typer(
    name="latentsync",
    help="Lip sync: a video (or a still) and a soundtrack in, the same picture speaking that soundtrack out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Find, download and look into models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(cli_train.train_app, name="train")
app.add_typer(cli_prepare.prepare_app, name="prepare")
app.add_typer(cli_evaluate.evaluate_app, name="evaluate")
app.command()(cli_app.app)
app.command()(cli_serve.serve)


def _either(values: tuple[str, ...]) -> str:
    return "|".join(values)


DEFAULTS = opt.Options()
HOME = typer.Option(metavar="DIR", help="Where weights lie; by default LATENTSYNC_HOME, or else the platform's cache folder.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latentsync {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    pass


@app.command()
def sync(
    face: Annotated[Path, typer.Argument(metavar="FACE", help="The video of the speaking person, or a still (.jpg .jpeg .png .bmp .webp).")],
    audio: Annotated[
        Path | None,
        typer.Argument(metavar="AUDIO", help="What to say: any audio file, or a video file with sound. May be left out with --segment."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The video to write: .mp4, .mov, .mkv or .avi.")],
    model: Annotated[
        str, typer.Option(help="A model's name (1.6, 1.5; demo comes with the package: small, trained on rendered heads) or its folder.")
    ] = opt.DEFAULT_MODEL,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; 20 to 50 for the best picture. By default the model's own: 20 of 1.6 and 1.5.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How strongly the sound leads, 0 to 10; up to 1 it is off, which halves the work. By default the model's own: 1.5."),
    ] = None,
    seed: Annotated[str, typer.Option(metavar="SEED", help="A number; 0 or 'random' draws one, and prints it.")] = str(DEFAULTS.seed),
    scheduler: Annotated[
        str | None,
        typer.Option(metavar=_either(opt.SCHEDULERS), help="The sampler; dpm++ and unipc need fewer steps. By default the model's own: ddim."),
    ] = None,
    cache: Annotated[
        int, typer.Option(metavar="N", help="Run the whole network every N steps only; 3 is about twice as fast, 1 is off.")
    ] = DEFAULTS.cache,
    who: Annotated[
        str,
        typer.Option(
            "--face",
            metavar="WHO",
            help="Whose mouth: largest, left, right, a number from 1 (left to right), or X,Y in the first frame where it shows.",
        ),
    ] = str(DEFAULTS.face),
    on_missing_face: Annotated[
        str, typer.Option(metavar=_either(opt.MISSING_FACE), help="Frames without a usable face: copy them, or stop.")
    ] = DEFAULTS.on_missing_face,
    when_audio_longer: Annotated[
        str,
        typer.Option(
            metavar=_either(opt.AUDIO_LONGER),
            help="Sound longer than the video: play it back and forth, again from the start, hold the last frame, or cut the sound.",
        ),
    ] = DEFAULTS.when_audio_longer,
    when_video_longer: Annotated[
        str, typer.Option(metavar=_either(opt.VIDEO_LONGER), help="Video longer than the sound: cut the video, or keep its rest untouched.")
    ] = DEFAULTS.when_video_longer,
    segment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="START-END=FILE",
            help="Another sound from START to END, in seconds of the result, and new mouths there only; 3-5@1.5=a.wav begins at 1.5 s of the file. "
            "May be given several times. Around them AUDIO is heard, or else the sound of FACE.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="START-END", help="Make mouths anew from START to END only, in seconds of the result; may be given several times."),
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the faces are, frame by frame (.npz or .json), instead of looking for them: for drawn characters."),
    ] = None,
    face_backend: Annotated[
        str | None,
        typer.Option(
            metavar=_either(opt.FACE_BACKENDS),
            help="Who finds the faces; the models of insightface are for non-commercial use only. By default the model's own: mediapipe.",
        ),
    ] = None,
    fps: Annotated[str, typer.Option(metavar="RATE", help="Frame rate of the result: 'source' keeps every frame's time; or a number.")] = "source",
    codec: Annotated[str, typer.Option(metavar=_either(opt.CODECS), help="How to encode; ffv1 is lossless.")] = DEFAULTS.codec,
    crf: Annotated[int | None, typer.Option(metavar="Q", help="Quality of h264 and hevc: smaller is better and larger.")] = None,
    paste: Annotated[
        str,
        typer.Option(
            metavar=_either(opt.PASTES),
            help="What to put back: only where the mouth was made anew, or the whole face crop as the published system does.",
        ),
    ] = DEFAULTS.paste,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar=_either(opt.DTYPES), help="Precision of the networks.")] = "auto",
    batch_windows: Annotated[int, typer.Option(metavar="N", help="Windows of 16 frames to run together: faster on large GPUs, more memory.")] = 1,
    preview: Annotated[bool, typer.Option("--preview", help="Decode with the tiny autoencoder: faster and softer.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the U-Net first: minutes at the start, faster after.")] = False,
    home: Annotated[Path | None, HOME] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Say how good it is, for a few percent of the time: sync, the mask's edge, flicker, the mouth in silence, missing faces."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on standard output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Lip-sync FACE to AUDIO, or parts of it to the sounds of segments, and write OUT, whole or not at all."""
    settings = opt.options(
        steps=steps,
        guidance=guidance,
        seed=seed,
        scheduler=scheduler,
        cache=cache,
        face=who,
        on_missing_face=on_missing_face,
        when_audio_longer=when_audio_longer,
        when_video_longer=when_video_longer,
        fps=fps,
        codec=codec,
        crf=crf,
        paste=paste,
        batch_windows=batch_windows,
        only=only,
    )
    from latentsync.media.writer import check_output
    from latentsync.preflight import preflight
    from latentsync.segments import read_segment, settled, spoken

    segments = [read_segment(text) for text in segment or ()]
    settings = settled(settings, segments, base=audio is not None)
    shown = _Show(quiet=as_json or sys.stderr is None or not sys.stderr.isatty())
    check_output(out, codec, crf, overwrite=overwrite, inputs=(face, *(s.audio for s in segments)))
    with spoken(face, audio, out, segments) as (sound, notes), shown:
        preflight(face, sound, out, settings, overwrite=overwrite, points=points, model=model, preview=preview, face_backend=face_backend, home=home)
        shown.say(f"loading {model}")
        from latentsync.pipeline import LipSync

        lipsync = LipSync.load(
            model, device=device, dtype=dtype, preview=preview, compile=compile, face_backend=face_backend, faces=points is None, home=home
        )
        if points is None:
            with _native_output_hidden():
                lipsync.model.faces()
        shown.say(f"syncing {face.name} to {', '.join(s.audio.name for s in segments) or sound.name}")
        looks = _looks(report)
        result = lipsync.run(face, sound, out, settings, overwrite=overwrite, points=points, progress=shown.progress, inspect=looks)
        if looks is not None:
            result.report = looks.close(sound, face).plain()
        result.notes += notes
    if as_json:
        typer.echo(json.dumps(result.plain()))
    else:
        for line in closing(result):
            typer.echo(line)


def _looks(wanted: bool) -> Short | None:
    """What looks at the frames of a job, for its report."""
    if not wanted:
        return None
    from latentsync.evaluate.short import Short

    return Short()


@contextlib.contextmanager
def _native_output_hidden() -> Iterator[None]:
    """LiteRT greets on the process's error output when it is first used, and has no switch against it."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing to hide
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def closing(result: Result) -> list[str]:
    """What was done, in words."""
    lines = [
        f"{result.out}: {result.seconds:.2f} s, {result.frames} frames, {result.faces} with a new mouth; model {result.model}, seed {result.seed}, "
        f"{result.seconds_per_second:.2f} s per second of video on {result.device} in {result.dtype}"
    ]
    if result.without_face:
        spans = ", ".join(f"{a:.2f}-{b:.2f} s" for a, b in result.without_face[:10])
        more = len(result.without_face) - 10
        lines.append(f"no face, left as they were: {spans}" + (f" and {more} more spans" if more > 0 else ""))
    if result.frames and not result.faces:
        lines.append("warning: no usable face anywhere, so only the sound is new; pass --on-missing-face error to stop at such files")
    if result.report:
        from latentsync.evaluate.short import lines as of_report

        lines += of_report(result.report)
    return lines + [f"note: {note}" for note in result.notes]


class _Show:
    """A progress bar on standard error: frames done, speed, time left."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Show:
        if not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, what: str) -> None:
        if self._bar:
            self._bar.update(self._task, description=what)

    def progress(self, p: Progress) -> None:
        if self._bar:
            rate = f"step {p.step}" + (f", {p.done / p.seconds:.2f} frames/s" if p.done and p.seconds else "")
            self._bar.update(self._task, completed=p.done, total=p.total, rate=rate)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write to.")] = Path("latentsync-demo"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(metavar=_either(opt.DTYPES), help="Precision of the networks.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on standard output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of an earlier demo.")] = False,
) -> None:
    """Lip-sync a sample with the small model, both of which come with the package: no download, a minute or two on two CPU cores.

    Writes demo.mp4, side_by_side.mp4 and mouth.png. The model is trained on rendered heads only; real people look painted.
    """
    shown = _Show(quiet=as_json or sys.stderr is None or not sys.stderr.isatty())
    with shown:
        shown.say("starting")
        from latentsync.demonstrate import demonstrate

        made = demonstrate(out, device=device, dtype=dtype, overwrite=overwrite, progress=shown.progress, say=shown.say)
    if as_json:
        typer.echo(json.dumps(made.plain()))
    else:
        for line in made.lines():
            typer.echo(line)


@models_app.command("list")
def models_list(
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Models that can be named, and which of them are here."""
    from latentsync import weights

    rows = weights.available(home=home)
    if as_json:
        typer.echo(json.dumps([row.plain() for row in rows]))
        return
    for row in rows:
        typer.echo(row.line())


@models_app.command("download")
def models_download(
    name: Annotated[str, typer.Argument(help="1.6, 1.5, or another name of `models list`.")],
    prune: Annotated[bool, typer.Option("--prune", help="Delete the downloaded .pt once it is converted to safetensors.")] = False,
    home: Annotated[Path | None, HOME] = None,
) -> None:
    """Download a model: resumes, checks, and keeps it for later."""
    from latentsync import weights

    for line in weights.download_with_progress(name, home=home, prune=prune):
        typer.echo(line)


@models_app.command("info")
def models_info(
    model: Annotated[str, typer.Argument(help="A name or a folder.")],
    check: Annotated[bool, typer.Option("--check", help="Read the files and compare their digests: minutes for large models.")] = False,
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What a model is and which files it is made of."""
    from latentsync import weights

    info = weights.info(model, home=home, check=check)
    typer.echo(json.dumps(info.plain()) if as_json else info.text())


@models_app.command("new")
def models_new(
    preset: Annotated[str, typer.Argument(help="A preset's name, such as tiny or 1.5.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Write an untrained model of a preset, for tests: it runs, and its pictures are noise."""
    from latentsync import weights

    weights.new(preset, folder, seed=seed)
    typer.echo(f"{folder}: an untrained model of preset {preset}; its pictures are noise")


@app.command()
def doctor(
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What works here and what does not: device, precision, codecs, weights, and the command that mends what is missing."""
    from latentsync.doctor import examine

    checks = examine(home)
    if as_json:
        typer.echo(json.dumps([check.plain() for check in checks]))
    else:
        for check in checks:
            typer.echo(check.line())
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


class _Stopped(BaseException):
    """Told to stop by a signal. No KeyboardInterrupt, which typer takes for itself."""


class _Stop:
    """Handles the signals that end a program: raises, and lets the cleaning up go on undisturbed by impatience.

    Python drops an exception that strikes in a finalizer or in a callback of C code. So an alarm raises it again after PATIENCE seconds.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
    PATIENCE = 5.0  # seconds for cleaning up, before another signal interrupts that too

    def __init__(self) -> None:
        self._last = -math.inf
        for number in self.SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # `nohup` ignores one: so be it
                signal.signal(number, self)

    def __call__(self, number: int, _: object) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last - before > self.PATIENCE:
            if hasattr(signal, "setitimer"):
                signal.signal(signal.SIGALRM, lambda *_: self(number, None))
                signal.setitimer(signal.ITIMER_REAL, self.PATIENCE + 0.1)
            raise _Stopped(number)

    def ignore(self) -> None:
        """The program ends now: no more signals."""
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Run the command; the exit code says which kind of error ended it (see `latentsync.errors`)."""
    stop = _Stop()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot spell must not turn a finished job into an error
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except _Stopped as e:
        stop.ignore()
        _fail("stopped; nothing was written", 128 + e.args[0])
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped; nothing was written", 130)
    except LatentSyncError as e:
        _fail(str(e), e.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:
        if hasattr(e, "show") and hasattr(e, "exit_code"):  # a word on the command line that typer did not understand
            e.show()
            sys.exit(e.exit_code)
        if os.environ.get("LATENTSYNC_DEBUG"):
            raise
        _fail(f"unexpected {type(e).__name__}: {e}; this is a fault of the program. LATENTSYNC_DEBUG=1 shows where; please report it", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"latentsync: {message}", err=True)
    sys.exit(code)
