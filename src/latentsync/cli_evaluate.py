"""The commands that evaluate: parse, call, show, print. As in `cli`, no work happens here and nothing heavy is imported early."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentsync.cli_prepare import STOPPED, Show, Wish
from latentsync.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from latentsync.evaluate.compare import Comparison
    from latentsync.evaluate.pairs import Progress
    from latentsync.evaluate.records import Results, Row
    from latentsync.evaluate.tools import Tools

evaluate_app = typer.Typer(
    help="Numbers of videos: how well lips follow their sound, how near the picture comes to the true one, what flickers; of one or of many.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

HOME = typer.Option(metavar="DIR", help="Where weights lie; by default LATENTSYNC_HOME, or else the platform's cache folder.")
AS_JSON = typer.Option("--json", help="Print as JSON, and nothing else on standard output.")
DEVICE = typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")
JUDGE = typer.Option(
    "--judge", metavar="auto|syncnet|demo", help="What judges sync: SyncNet v2 where it is here, or else the SyncNet that comes with the package."
)
FACES = typer.Option("--face-backend", metavar="auto|mediapipe|insightface|demo", help="What finds faces, of all videos alike.")
VAD = typer.Option("--vad", metavar="auto|silero|energy", help="What tells speech from silence: Silero where it is here, or else the loudness.")
METRICS = typer.Option("--metrics", metavar="NAMES", help="Groups of metrics, such as sync,lips; all by default. docs/evaluate.md lists them.")
OUT = typer.Option("--out", "-o", metavar="OUT", help="Folder of the results; the same command again goes on where it stands.")
NO_REPORT = typer.Option("--no-report", help="Write no report.html.")


@evaluate_app.command("sync")
def evaluate_sync(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos with sound.")],
    audio: Annotated[Path | None, typer.Option("--audio", metavar="AUDIO", help="Another sound than their own.")] = None,
    judge: Annotated[str, JUDGE] = "auto",
    face_backend: Annotated[str, FACES] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Whether lips and sound of videos go together: confidence, offset and each second's confidence.

    Positive offsets: the sound comes early by so many frames of 25 a second. The numbers are on the scale of the judge, which is named. Exit code 3
    where a video could not be judged.
    """
    from latentsync.evaluate.tools import Tools
    from latentsync.evaluate.video import evaluate

    tools = Tools(("sync", "faces"), judge=judge, faces=face_backend, device=device, home=home)
    if tools.judge is None:
        raise InputError(tools.absent("judge"))
    rows = []
    with _Show() as shown:
        for number, video in enumerate(videos):
            row = evaluate(video, audio, tools=tools)
            rows.append(row)
            shown.videos(number + 1, len(videos), video.name)
            if not as_json:
                for line in sync_lines(row):
                    typer.echo(line)
    if as_json:
        typer.echo(json.dumps([row.plain() for row in rows]))
    else:
        for note in tools.notes:
            typer.echo(f"note: {note}")
    if any("sync_confidence" not in row.values for row in rows):
        raise typer.Exit(InputError.exit_code)


def sync_lines(row: Row) -> list[str]:
    """What was found of lips and sound, in words."""
    if "sync_confidence" not in row.values:
        return [f"{row.video}: not judged: {row.reason or row.missing.get('sync_confidence', 'unknown')}"]
    v = row.values
    judge = {"syncnet": "SyncNet v2", "demo": "the package's SyncNet"}.get(str(row.settings.get("judge")), "")
    seconds = " ".join("-" if not math.isfinite(s) else f"{s:.2f}" for s in row.curves.get("sync", ()))
    lines = [
        f"{row.video}: confidence {v['sync_confidence']:.3f}, offset {v['sync_offset']:+.0f} frames"
        + (f" ({v['sync_offset_fine']:+.1f})" if "sync_offset_fine" in v else "")
        + f", distance {v['sync_distance']:.3f}, by {judge}",
        f"  by second: {seconds}",
    ]
    if v.get("faces_missing"):
        lines.append(f"  without a face: {v['faces_missing']:.1%} of the frames")
    return lines


@evaluate_app.command("syncnet")
def evaluate_syncnet(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Clips in sync: a folder, or a list as `latentsync prepare list` writes.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", help="demo, syncnet (SyncNet v2), published (LatentSync's), or a run, checkpoint or file of one."),
    ] = "auto",
    face_backend: Annotated[str, typer.Option("--face-backend", metavar="NAME", help="Finds faces in clips that are no aligned faces.")] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of the negatives and the planted offsets.")] = 1247,
    device: Annotated[str, DEVICE] = "auto",
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """How well a SyncNet tells sound that belongs to a mouth from sound that does not: accuracy, ROC, offsets found."""
    from latentsync.device import choose
    from latentsync.evaluate import syncnet

    chosen = str(choose(device, "fp32").device)
    judge = syncnet.load(model, home=home, device=chosen)
    with _Show() as shown:
        found = syncnet.evaluate(data, judge, faces=face_backend, home=home, seed=seed, progress=lambda n, of: shown.videos(n, of, ""))
    if as_json:
        typer.echo(json.dumps(found.plain()))
    else:
        for line in found.lines():
            typer.echo(line)


@evaluate_app.command("pairs")
def evaluate_pairs(
    pairs: Annotated[
        Path,
        typer.Argument(metavar="PAIRS", help="A CSV: video, audio[, reference][, result][, name]; with --protocol a folder or a list of videos."),
    ],
    out: Annotated[Path, OUT],
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="NAME", help="reconstruction, cross, silence or long: pairs, seed and metrics of a preset.")
    ] = "",
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Makes the videos that have no result yet: a name or a folder.")] = "",
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of `latentsync sync`, such as steps=10; may come again.")
    ] = None,
    metrics: Annotated[str, METRICS] = "",
    judge: Annotated[str, JUDGE] = "auto",
    face_backend: Annotated[str, FACES] = "auto",
    vad: Annotated[str, VAD] = "auto",
    system: Annotated[str, typer.Option("--name", metavar="NAME", help="What to call the system; by default the model's name.")] = "",
    device: Annotated[str, DEVICE] = "auto",
    dtype: Annotated[str, typer.Option(metavar="auto|fp32|fp16|bf16", help="Precision of the networks that make videos.")] = "auto",
    retry: Annotated[bool, typer.Option("--retry", help="Do again what failed in an earlier run.")] = False,
    no_report: Annotated[bool, NO_REPORT] = False,
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Make videos of pairs of picture and sound, or take existing ones, and measure all of them.

    OUT holds results.jsonl, results.csv, summary.json, report.html and the videos. Interrupted anyhow, the same command goes on; nothing that is
    finished is done again.
    """
    from latentsync.evaluate import pairs as work
    from latentsync.evaluate import protocols
    from latentsync.evaluate.tools import Tools

    preset = protocols.load(protocol) if protocol else None
    listed: Any = protocols.videos(pairs) if preset else work.read_list(pairs)
    chosen = _words(metrics) or (preset.metrics if preset else ("all",))
    tools = Tools(chosen, judge=judge, faces=face_backend, vad=vad, device=device, home=home)
    generation = work.Generation(model, settings(options or []), device, dtype, home) if model else None
    with Wish() as wish, _Show() as shown:
        results = work.run(listed, out, tools, generation=generation, protocol=preset, system=system, retry=retry, progress=shown.progress, stop=wish)
    if results is None:
        _stopped()
    assert results is not None
    told = _report([out], out / "report.html", not no_report)
    if as_json:
        typer.echo((out / "summary.json").read_text(encoding="utf-8"), nl=False)
        return
    for line in [*summary_lines(results, tools), told]:
        if line:
            typer.echo(line)


@evaluate_app.command("compare")
def evaluate_compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A video, a folder of videos, or a folder of results.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another; folders pair up by file name without suffix.")],
    out: Annotated[Path | None, OUT] = None,
    reference: Annotated[Path | None, typer.Option("--reference", metavar="R", help="The true video, or a folder of them.")] = None,
    source: Annotated[Path | None, typer.Option("--source", metavar="S", help="The video before its mouth was made anew, or a folder.")] = None,
    metrics: Annotated[str, METRICS] = "",
    judge: Annotated[str, JUDGE] = "auto",
    face_backend: Annotated[str, FACES] = "auto",
    vad: Annotated[str, VAD] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    no_report: Annotated[bool, NO_REPORT] = False,
    home: Annotated[Path | None, HOME] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Two videos, or two systems on the same videos: every metric of both, and B less A with its interval over videos."""
    import tempfile

    from latentsync.evaluate.compare import compare
    from latentsync.evaluate.tools import Tools

    if out is None and not no_report and a.is_dir() and not (a / "results.jsonl").is_file():
        raise UsageError("name a folder for the results (--out)")
    tools = Tools(_words(metrics) or ("all",), judge=judge, faces=face_backend, vad=vad, device=device, home=home)
    with tempfile.TemporaryDirectory(prefix="latentsync-compare-") as scratch:
        with Wish() as wish, _Show() as shown:
            found = compare(a, b, out or Path(scratch), tools, reference=reference, source=source, progress=shown.progress, stop=wish)
        if found is None:
            _stopped()
        assert found is not None
        told = _report([found.a.folder, found.b.folder], out / "report.html", not no_report) if out is not None else ""
    if as_json:
        typer.echo(json.dumps(compared(found)))
        return
    for line in [*compare_lines(found, tools), told]:
        if line:
            typer.echo(line)
    if not any(row.ok for row in (*found.a.rows, *found.b.rows)):
        raise typer.Exit(InputError.exit_code)


@evaluate_app.command("report")
def evaluate_report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Folders that `pairs` or `compare` wrote: a system each.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write; needs no network.")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="What it is called.")] = "",
    worst_by: Annotated[str, typer.Option("--worst-by", metavar="METRIC", help="The metric by which cases come worst first.")] = "sync_confidence",
    no_clips: Annotated[bool, typer.Option("--no-clips", help="Pictures only, no playable clips: a smaller file.")] = False,
    paper: Annotated[str, typer.Option("--paper", metavar="hdtf", help="Quote the paper's numbers beside: only where the videos are of HDTF.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Results as one HTML page: systems beside each other, distributions, sync over time, the worst cases to look at."""
    from latentsync.evaluate.report import report

    typer.echo(f"{report(results, out, title=title, overwrite=overwrite, clips=not no_clips, worst_by=worst_by, paper=paper)}")


def settings(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words as options of `sync`. Raises UsageError for what is none."""
    from latentsync import options

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {word}: give NAME=VALUE, such as steps=10")
        found[name.replace("-", "_")] = _value(value)
    options.options(**found)  # complains before anything is loaded
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(w for w in text.replace(",", " ").split() if w)


def _stopped() -> None:
    typer.echo("stopped; the same command goes on from there", err=True)
    raise typer.Exit(STOPPED)


def _report(folders: list[Path], out: Path, wanted: bool) -> str:
    """Writes the page, and says where. A page that cannot be written does not take the numbers away."""
    if not wanted:
        return ""
    from latentsync.evaluate.report import report

    try:
        return f"{report(folders, out, overwrite=True)}"
    except OutputError as e:
        return f"note: no report: {e}"


def summary_lines(results: Results, tools: Tools) -> list[str]:
    """Each metric over all videos, what failed, and notes."""
    from latentsync.evaluate.summary import table

    found = table(results)
    lines = [f"{results.system}: {len(results.good)} of {len(results.rows)} videos measured"]
    for key, unit in _keys(found):
        s = found[key]
        lines.append(f"  {key:<20} {s.mean:>10.4g} {unit:<10} {s.low:.4g} to {s.high:.4g} (95 %), median {s.median:.4g}, {s.count} videos")
    for key, value in results.sets.items():
        number = f"{value['value']:>10.4g}" if "value" in value else f"{'-':>10}"
        lines.append(f"  {key:<20} {number} {'':<10} {value.get('count', 0)} samples" + (f"; {_first(value['note'])}" if value.get("note") else ""))
    failed = [row for row in results.rows if not row.ok]
    lines += [f"failed: {row.name}: {row.reason}" for row in failed[:20]]
    lines += [f"and {len(failed) - 20} more"] if len(failed) > 20 else []
    missing = {key: why for row in results.good for key, why in row.missing.items() if key not in found}
    for why in dict.fromkeys(missing.values()):
        lines.append(f"missing: {', '.join(k for k in missing if missing[k] == why)}: {_first(why)}")
    return lines + [f"note: {note}" for note in dict.fromkeys(tools.notes)] + [f"{results.folder}: results.jsonl, results.csv, summary.json"]


def _first(words: str) -> str:
    """The first line."""
    return words.partition("\n")[0]


def compare_lines(found: Comparison, tools: Tools) -> list[str]:
    """Each metric of both systems and how they differ."""
    from latentsync.evaluate.summary import table

    a, b = table(found.a), table(found.b)
    lines = [f"A {found.a.system}, B {found.b.system}: {len(found.a.good)} and {len(found.b.good)} videos measured"]
    for key, unit in _keys(found.differences):
        d = found.differences[key]
        span = f" ({d.low:+.4g} to {d.high:+.4g}, 95 %)" if d.count > 1 else ""
        lines.append(f"  {key:<20} {a[key].mean:>10.4g} {b[key].mean:>10.4g} {unit:<10} B - A {d.difference:+.4g}{span}")
    for results in (found.a, found.b):
        lines += [f"failed: {results.system}, {row.name}: {row.reason}" for row in results.rows if not row.ok]
    return lines + [f"note: {note}" for note in dict.fromkeys(tools.notes)]


def compared(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON holds it."""
    import dataclasses

    return {name: {"system": results.system, "rows": [row.plain() for row in results.rows]} for name, results in (("a", found.a), ("b", found.b))} | {
        "differences": {key: dataclasses.asdict(value) for key, value in found.differences.items()}
    }


def _keys(found: Any) -> list[tuple[str, str]]:
    """Keys in the order of the catalogue, with their units."""
    from latentsync.metrics.catalogue import METRICS

    known = [(key, metric.unit) for key, metric in METRICS.items() if key in found]
    return known + [(key, "") for key in found if key not in METRICS]


class _Show(Show):
    """A bar at a terminal, a line for each video elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._told = -1

    def progress(self, p: Progress) -> None:
        if self._terminal:
            failed = f", {p.failed} failed" if p.failed else ""
            self._advance(p.done, p.total, p.doing + (f", frame {p.frames}" if p.frames else "") + failed)
        elif p.done != self._told and p.doing.startswith("done"):
            self._told = p.done
            typer.echo(f"{p.done} of {p.total} videos, {p.failed} failed", err=True)

    def videos(self, done: int, total: int, name: str) -> None:
        if self._terminal and total > 1:
            self._advance(done, total, name)
