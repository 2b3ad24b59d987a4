"""Many videos: each generated from a video and a sound, or there already; then measured, one row each. Killed anyhow, it goes on where it stopped.

A list is a CSV with the columns video, audio and, where wanted, name, reference (the true video of the same words) and result (what is there
already); paths are relative to it. A folder or a list of videos becomes pairs by a protocol.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import latentsync
from latentsync.device import peak_memory
from latentsync.errors import InputError, UsageError
from latentsync.evaluate import export, sets
from latentsync.evaluate.protocols import Pair, Protocol, digest, unique
from latentsync.evaluate.protocols import pairs as of_protocol
from latentsync.evaluate.records import Book, Results, Row, write_json
from latentsync.evaluate.tools import Tools
from latentsync.evaluate.video import FAULTS, evaluate, said

if TYPE_CHECKING:
    from latentsync.pipeline import LipSync

COLUMNS = ("name", "video", "audio", "reference", "result")
VIDEOS, SOUNDS = "videos", "sounds"  # folders beside the rows
SEED = 1247  # where neither the user nor a protocol says another


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    total: int
    failed: int
    doing: str  # in words
    frames: int = 0  # of the video at work
    seconds: float = 0.0


@dataclass(frozen=True)
class Generation:
    """How videos are made from pairs."""

    model: str = "1.6"
    options: Mapping[str, Any] | None = None  # as `LipSync.sync` takes them
    device: str = "auto"
    dtype: str = "auto"
    home: str | Path | None = None

    def plain(self, seed: int) -> dict[str, Any]:
        """For the settings of results."""
        given = dict(self.options or {})
        return {"model": self.model, "options": {"seed": seed, **given}}


def read_list(path: Path) -> list[Pair]:
    """The pairs of a CSV. Raises InputError where it cannot be read, UsageError for columns that are unknown or missing."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {path}: {e}") from e
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    head = [h.strip() for h in rows.fieldnames or []]
    rows.fieldnames = head
    unknown = [h for h in head if h not in COLUMNS]
    if unknown or not ("video" in head or "result" in head):
        what = f"column '{unknown[0]}' is not known" if unknown else "there is no column video"
        raise UsageError(f"{path}: {what}; the first line names columns of {', '.join(COLUMNS)}")
    found = []
    for number, line in enumerate(rows, 2):
        cells = {k: (v or "").strip() for k, v in line.items() if isinstance(k, str) and not isinstance(v, list)}
        if None in line:
            raise UsageError(f"{path}, line {number}: more cells than columns; quote paths that contain commas")
        if not any(cells.values()):
            continue
        video, result = cells.get("video", ""), cells.get("result", "")
        if not video and not result:
            raise UsageError(f"{path}, line {number}: it names no video")
        where = {k: (path.parent / Path(v).expanduser()).absolute() for k, v in cells.items() if v and k != "name"}
        default = Path(result or video).stem + (f" + {Path(cells['audio']).stem}" if cells.get("audio") and not result else "")
        name, first = cells.get("name") or default, where.get("video") or where["result"]
        found.append(Pair(name, first, where.get("audio"), where.get("reference"), where.get("result")))
    if not found:
        raise InputError(f"{path} lists no pairs")
    named = unique([p.name for p in found])
    return [replace(pair, name=name) for pair, name in zip(found, named, strict=True)]


def run(
    pairs: Sequence[Pair] | Sequence[Path],
    out: Path,
    tools: Tools,
    *,
    generation: Generation | None = None,
    protocol: Protocol | None = None,
    system: str = "",
    retry: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Results | None:
    """Evaluate pairs (or, with a protocol, the pairs that it makes of videos) into the folder `out`; None where `stop` said so before the end.

    What is finished there already is not done again, but for pairs whose files changed since and, with `retry`, those that failed. Raises UsageError
    for a folder with results of other settings, WeightsError for a model that is not here, OutputError; never for bad footage.
    """
    out = out.absolute()
    seed = protocol.seed if protocol else SEED
    data = ""
    if protocol:
        files = [Path(p) for p in pairs]  # type: ignore[arg-type]
        data = digest(files)
        listed = of_protocol(protocol, files, out / SOUNDS)
    else:
        listed = [p for p in pairs if isinstance(p, Pair)]
    made = any(p.result is None for p in listed)
    if made and generation is None:
        raise UsageError("some pairs have no result yet; name the model that makes them (--model), or give the column result")
    settings = {
        "system": system or (generation.model if made and generation else out.name),
        "protocol": protocol.name if protocol else "",
        "data": data,
        "seed": seed,
        **tools.plain(),
        **(generation.plain(seed) if made and generation else {}),
        "latentsync": latentsync.__version__,
        "versions": versions(),
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    work = _Work(listed, out, tools, generation, settings, progress)
    with Book(out, settings, [p.name for p in listed]) as book:
        for left in (out / VIDEOS).glob(".latentsync-*"):  # of a run that was killed; nobody else writes here now
            left.unlink(missing_ok=True)
        for pair in listed:
            if stop():
                return None
            work.one(pair, book, retry)
        if stop():
            return None
        found = {kind: sets.measure(kind, book.rows, tools) for kind in ("fid", "fvd") if tools.wants(kind)}  # type: ignore[arg-type]
        book.sets(found)
    results = Results.read(out)
    export.write(results)
    return results


class _Work:
    """The pairs of one run, one after another; the model is loaded when the first video is to be made."""

    def __init__(
        self,
        listed: Sequence[Pair],
        out: Path,
        tools: Tools,
        generation: Generation | None,
        settings: Mapping[str, Any],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._total, self._out, self._tools, self._generation, self._settings = len(listed), out, tools, generation, settings
        self._files = file_names([pair.name for pair in listed])
        self._tell = progress
        self._lipsync: LipSync | None = None
        self._done = self._failed = 0
        self._began = time.monotonic()

    def one(self, pair: Pair, book: Book, retry: bool) -> None:
        """A pair to its row, unless it is there."""
        inputs = stamps(pair)
        known = book.row(pair.name)
        if known is None or known.settings.get("inputs") != inputs or (retry and not known.ok):
            self._say(pair, "measuring" if pair.result else "making")
            known = self._row(pair, inputs)
            book.add(known)
        self._done += 1
        self._failed += not known.ok
        self._say(pair, "done")

    def _row(self, pair: Pair, inputs: dict[str, str]) -> Row:
        settings: dict[str, Any] = {"inputs": inputs}
        source: Path | None = pair.video if pair.result != pair.video else None
        video, report = pair.result, None
        if video is None:
            video = self._out / VIDEOS / f"{self._files[pair.name]}.mp4"
            report = _known(video, inputs)
            lipsync = self._model() if report is None else None
            try:
                report = report or self._made(lipsync, pair, video, inputs)
            except FAULTS as e:
                around = {"audio": pair.audio, "reference": pair.reference, "source": pair.video}
                paths: dict[str, Any] = {key: str(path or "") for key, path in around.items()}
                return Row(pair.name, str(video), ok=False, reason=f"not made: {said(e)}", settings=settings, **paths)
            settings |= {k: report[k] for k in ("model", "seed", "steps", "guidance", "scheduler", "device", "dtype") if k in report}
        longer = str(self._settings.get("options", {}).get("when_audio_longer", "bounce"))

        def watch(frames: int) -> None:
            if frames % 10 == 0:
                self._say(pair, "measuring", frames)

        row = evaluate(
            video,
            pair.audio,
            pair.reference,
            source,
            tools=self._tools,
            name=pair.name,
            settings=settings,
            when_audio_longer=longer,  # type: ignore[arg-type]
            progress=watch,
        )
        return _with_speed(row, report, self._tools)

    def _model(self) -> LipSync:
        """Loaded when the first video is to be made."""
        if self._lipsync is None:
            from latentsync.pipeline import LipSync

            assert self._generation is not None
            g = self._generation
            self._lipsync = LipSync.load(g.model, device=g.device, dtype=g.dtype, home=g.home)
        return self._lipsync

    def _made(self, lipsync: LipSync | None, pair: Pair, target: Path, inputs: dict[str, str]) -> dict[str, Any]:
        """Make the video of a pair; what `sync` said of it is kept beside it."""
        assert lipsync is not None
        beside = target.with_suffix(".json")
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        result = lipsync.sync(
            pair.video,
            pair.audio or pair.video,
            target,
            overwrite=True,
            progress=lambda p: self._say(pair, "making", p.done),
            **self._settings["options"],
        )
        peak = peak_memory(lipsync.compute.device)
        report = {**result.plain(), "inputs": inputs, "peak_memory_gb": round(peak / 1e9, 3) if peak else None}
        write_json(beside, report)
        return report

    def _say(self, pair: Pair, what: str, frames: int = 0) -> None:
        if self._tell:
            self._tell(Progress(self._done, self._total, self._failed, f"{what} {pair.name}", frames, time.monotonic() - self._began))


def _with_speed(row: Row, report: Mapping[str, Any] | None, tools: Tools) -> Row:
    if not tools.wants("speed"):
        return row
    if report is None:
        why = "the result was there already"
        return replace(row, missing={**row.missing, "seconds_per_second": why, "peak_memory_gb": why})
    found = {"seconds_per_second": report.get("seconds_per_second_of_video"), "peak_memory_gb": report.get("peak_memory_gb")}
    row = replace(row, values={**row.values, **{k: float(v) for k, v in found.items() if v is not None}})
    return replace(row, missing={**row.missing, **{k: "it was not measured" for k, v in found.items() if v is None}})


def _known(target: Path, inputs: dict[str, str]) -> dict[str, Any] | None:
    """What `sync` said when it made that video of those files; None where it is to be made."""
    with suppress(OSError, ValueError):
        report: dict[str, Any] = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        if target.is_file() and report.get("inputs") == inputs:
            return report
    return None


def stamps(pair: Pair) -> dict[str, str]:
    """Size and time of each file of a pair, by which a change is noticed; "absent" where it is not there."""
    found = {}
    for name in ("video", "audio", "reference", "result"):
        path: Path | None = getattr(pair, name)
        if path is not None:
            try:
                about = path.stat()
                found[name] = f"{about.st_size}-{about.st_mtime_ns}"
            except OSError:
                found[name] = "absent"
    return found


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "av", "numpy", "opencv-python-headless", "onnxruntime"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Names as files', all different, also where a file system does not tell capitals."""
    plain = {name: file_name(name) for name in names}
    counts = Counter(file.casefold() for file in plain.values())
    return {
        name: file if counts[file.casefold()] == 1 else f"{file} {hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
        for name, file in plain.items()
    }


def file_name(name: str) -> str:
    """A name as a file's."""
    kept = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).strip(". ") or "_"
    while len(kept.encode("utf-8", "surrogateescape")) > 200:
        kept = kept[:-1]
    return kept
