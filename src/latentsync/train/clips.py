"""The clips of a data set: found in a folder or a list, looked at before training, and named one by one where they cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from latentsync.errors import InputError, UsageError
from latentsync.media.clip import VIDEO_SUFFIXES, ClipInfo, probe
from latentsync.train.cache import Cache

WINDOWS = 3  # windows a clip must be long: wherever the first lies, another then fits beside it without overlap
HELD_OUT = 50  # one clip in so many is kept for validation where no validation set is named

Size = Literal["exact", "resize"]
OnBad = Literal["error", "skip"]
Report = Callable[[str], None]

_PROBES = "probes-1"  # of the record's format
_THREADS = 16  # clips looked at at a time: on network disks the waiting is what takes time
_SHOWN = 5  # bad files named in a message
_REPORT_EVERY = 5.0  # seconds


class Clip(NamedTuple):
    """A clip that can be used."""

    path: Path
    frames: int  # at the data set's rate, picture and sound both there


class BadClip(NamedTuple):
    """A file that cannot be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ClipSet(Sequence[Clip]):
    """Clips by number. `bad` holds the files that were left out. Small enough to be handed to every worker, for millions of clips."""

    def __init__(
        self, clips: Iterable[Clip], bad: Iterable[BadClip] = (), *, fps: Fraction, frames: int, resolution: int, size: Size, on_bad: OnBad
    ) -> None:
        pairs = [(str(clip.path), clip.frames) for clip in clips]
        self._paths = [path for path, _ in pairs]
        self._frames = [count for _, count in pairs]
        self.bad = list(bad)
        self.fps = fps
        self.window = frames
        self.resolution = resolution
        self.size: Size = size
        self.on_bad: OnBad = on_bad

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        fps: Fraction | int = 25,
        frames: int = 16,
        resolution: int,
        size: Size = "exact",
        on_bad: OnBad = "error",
        report: Report | None = None,
        cache: Cache | str | os.PathLike[str] | None = None,
    ) -> ClipSet:
        """All usable clips of `source`, a folder (searched through) or a text file with one path a line.

        fps: of the windows, whatever the clips' own. frames: of one window; clips need three. resolution: of the faces, pixels.
        size: `exact` takes only clips of resolution x resolution, `resize` any square ones. on_bad: `skip` leaves out what cannot be used.
        report: hears about progress and about each file left out. cache: remembers what was found, by path, size and time of change.

        Raises InputError where files cannot be used and `on_bad` is `error`, where nothing is left, and where the source is not there.
        """
        fps = Fraction(fps)
        if size not in ("exact", "resize"):
            raise UsageError(f"data.size is '{size}'; choose exact or resize")
        if on_bad not in ("error", "skip"):
            raise UsageError(f"data.on_bad is '{on_bad}'; choose error or skip")
        paths, bad = video_files(source)
        store = Cache(cache) if isinstance(cache, str | os.PathLike) else cache
        clips: list[Clip] = []
        for path, found in probe_all(paths, cache=store, source=source, report=report):
            reason = found if isinstance(found, str) else _unusable(found, fps, frames, resolution, size)
            if reason:
                bad.append(BadClip(path, reason))
            else:
                assert isinstance(found, ClipInfo)
                clips.append(Clip(path, usable_frames(found, fps)))
        _settle(source, len(clips), bad, on_bad, report)
        return cls(clips, bad, fps=fps, frames=frames, resolution=resolution, size=size, on_bad=on_bad)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Clip(Path(self._paths[index]), self._frames[index])

    def take(self, indices: Iterable[int]) -> ClipSet:
        """A set of these clips, in this order, with the same settings."""
        return ClipSet((self[i] for i in indices), fps=self.fps, frames=self.window, resolution=self.resolution, size=self.size, on_bad=self.on_bad)

    def held_out(self, every: int = HELD_OUT) -> tuple[ClipSet, ClipSet]:
        """(training, validation): about one clip in `every` is held out, chosen by its file name alone, so that it stays out as the set grows.

        At least one where there are two. A single clip is in both: there is nothing else to look at.
        """
        if len(self) == 1:
            return self, self
        marks = [int.from_bytes(hashlib.blake2b(os.path.basename(p).encode("utf-8", "surrogateescape"), digest_size=8).digest()) for p in self._paths]
        chosen = {i for i, mark in enumerate(marks) if mark % every == 0} or {min(range(len(marks)), key=lambda i: (marks[i], i))}
        if len(chosen) == len(self):
            chosen.remove(max(chosen))
        training = self.take(i for i in range(len(self)) if i not in chosen)
        training.bad = self.bad
        return training, self.take(sorted(chosen))


def split(training: str, validation: str, **settings: Any) -> tuple[ClipSet, ClipSet]:
    """(training, validation) sets: of two sources, or with `validation` empty the second held out of the first. See `ClipSet.open`."""
    if not training:
        raise UsageError("where are the clips? Set data.train=FOLDER, or a list as `latentsync prepare list` writes")
    clips = ClipSet.open(training, **settings)
    return (clips, ClipSet.open(validation, **settings)) if validation else clips.held_out()


def usable_frames(info: ClipInfo, fps: Fraction) -> int:
    """Frames at that rate for which there is both picture and sound."""
    return int(min(info.duration, info.audio_duration) * fps)


def video_files(source: str | os.PathLike[str]) -> tuple[list[Path], list[BadClip]]:
    """The files of a folder (video suffixes, by name, hidden ones left out) or of a list, and what could not be looked into.

    Raises InputError where the source is neither, or holds nothing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise InputError(f"{path} is one video; give the folder it is in, or a text file that lists clips")
        return _in_list(path), []
    raise InputError(f"there is no folder or list {path}; give a folder of clips, or a text file with one path a line")


def _in_folder(folder: Path) -> tuple[list[Path], list[BadClip]]:
    found: list[Path] = []
    bad: list[BadClip] = []
    others = 0
    seen: set[str] = set()
    walk = os.walk(folder, followlinks=True, onerror=lambda e: bad.append(BadClip(Path(e.filename), f"cannot be looked into: {e.strerror}")))
    for place, folders, files in walk:
        real = os.path.realpath(place)
        if real in seen:  # a link back up, or a second way to the same place
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                found.append(Path(place, name))
            else:
                others += 1
    if not found and not bad:
        what = f"none of its {others} files has a video's suffix" if others else "it is empty"
        raise InputError(f"no clips in {folder}: {what}; videos end in {', '.join(sorted(VIDEO_SUFFIXES))}")
    return sorted(found, key=lambda p: p.relative_to(folder).parts), bad


def _in_list(path: Path) -> list[Path]:
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise InputError(f"cannot read the list {path}: {e.strerror or e}") from e
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = raw.decode("utf-16", "replace")
    elif b"\0" in raw:
        raise InputError(f"{path} is not a text file; a list of clips has one path a line")
    else:
        text = raw.decode("utf-8-sig", "surrogateescape")
    entries = []
    for line in re.split(r"\r\n|\r|\n", text):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1]
        entries.append(path.parent / name)
    if not entries:
        raise InputError(f"the list {path} names no clip; one path a line, relative to the list's folder or absolute")
    return list(dict.fromkeys(entries))  # a clip named twice counts once


def list_line(path: Path, folder: Path) -> str:
    """How a list in `folder` names a clip: relative where it lies below, quoted where the name alone would be read otherwise.

    Raises ValueError for a name with a line break, which no list can hold.
    """
    full, base = os.path.abspath(path), os.path.abspath(folder)
    name = os.path.relpath(full, base) if full.startswith(base.rstrip(os.sep) + os.sep) else full
    if "\n" in name or "\r" in name:
        raise ValueError(f"{name!r} has a line break in its name")
    return f'"{name}"' if name != name.strip() or name[0] in "#\"'" else name


def probe_all(
    paths: Sequence[Path], *, cache: Cache | None = None, source: str | os.PathLike[str] = "", report: Report | None = None
) -> Iterable[tuple[Path, ClipInfo | str]]:
    """(path, what it holds or why that cannot be said) for each file, in order; many are looked at at a time.

    With a cache, files that have not changed since (by size and time of change) are not opened again.
    """
    name = f"{_PROBES}-{hashlib.blake2b(os.fsencode(os.path.abspath(source)), digest_size=16).hexdigest()}"
    known = _recorded(cache, name)
    record: dict[str, Any] = {}
    fresh = 0
    told = time.monotonic()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="latentsync-probe") as pool:
        for first in range(0, len(paths), 256):  # in portions, so that Ctrl-C is heard
            for path, (found, mark, old) in zip(
                paths[first : first + 256], pool.map(lambda p: _looked_at(p, known), paths[first : first + 256]), strict=True
            ):
                fresh += not old
                if mark is not None and isinstance(found, ClipInfo):
                    record[str(path)] = [mark, _as_list(found)]
                yield path, found
            if report is not None and time.monotonic() - told > _REPORT_EVERY:
                told = time.monotonic()
                report(f"looked at {min(first + 256, len(paths))} of {len(paths)} files")
    if cache is not None and fresh:
        cache.keep_text(name, json.dumps(record))


def _looked_at(path: Path, known: dict[str, Any]) -> tuple[ClipInfo | str, list[int] | None, bool]:
    """(what was found, size and time of change, whether it was known)"""
    mark: list[int] | None = None
    try:
        stat = os.stat(path)
        mark = [stat.st_size, stat.st_mtime_ns]
        old = known.get(str(path))
        if old is not None and old[0] == mark:
            return _from_list(path, old[1]), mark, True
        return probe(path), mark, False
    except InputError as e:
        return reason(path, e), mark, False
    except (OSError, ValueError) as e:
        missing = isinstance(e, FileNotFoundError)
        return "there is no such file" if missing else f"cannot be read: {getattr(e, 'strerror', None) or e}", mark, False


def reason(path: Path, error: Exception) -> str:
    """What an error says about a file, without the name that is said anyway."""
    text = str(error)
    if text == f"no such file: {path}":
        return "there is no such file"
    return text.replace(f"cannot read {path}:", "cannot be read:").removeprefix(f"{path}: ").removeprefix(f"{path} ")


def _recorded(cache: Cache | None, name: str) -> dict[str, Any]:
    text = cache.text(name) if cache is not None else None
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _as_list(info: ClipInfo) -> list[Any]:
    return [
        info.width, info.height, str(info.pixel_aspect), str(info.fps), info.frames, str(info.duration),
        info.audio, info.audio_rate, str(info.audio_duration), list(info.notes),
    ]  # fmt: skip


def _from_list(path: Path, values: list[Any]) -> ClipInfo:
    width, height, aspect, fps, frames, duration, audio, rate, sound, notes = values
    return ClipInfo(path, width, height, Fraction(aspect), Fraction(fps), frames, Fraction(duration), audio, rate, Fraction(sound), tuple(notes))


def _unusable(info: ClipInfo, fps: Fraction, frames: int, resolution: int, size: Size) -> str:
    """Why a readable clip cannot be trained on; empty where it can."""
    if not info.audio:
        return "has no sound"
    if info.pixel_aspect != 1:
        return f"its pixels are not square (aspect {info.pixel_aspect})"
    if size == "exact" and not info.width == info.height == resolution:
        return f"is {info.width}x{info.height}, not {resolution}x{resolution} (data.size=resize takes any square clip)"
    if info.width != info.height:
        return f"is {info.width}x{info.height}, not square: it should show one aligned face"
    return too_short(info, fps, frames)


def too_short(info: ClipInfo, fps: Fraction, frames: int) -> str:
    """Says where a clip is too short for its windows; empty where it is not."""
    found, needed = usable_frames(info, fps), WINDOWS * frames
    if found >= needed:
        return ""
    what = "its sound is" if info.audio_duration < info.duration else "is"
    length = float(min(info.duration, info.audio_duration))
    return f"{what} too short: {length:.2f} s are {found} frames at {float(fps):g} fps, and {WINDOWS} windows of {frames} are needed"


def _settle(source: str | os.PathLike[str], good: int, bad: list[BadClip], on_bad: OnBad, report: Report | None) -> None:
    total = good + len(bad)
    first = "".join(f"\n  {b}" for b in bad[:_SHOWN]) + (f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
    if not good:
        raise InputError(f"no clip of {source} can be used, of {total} looked at:{first}")
    if bad and on_bad == "error":
        raise InputError(
            f"{len(bad)} of the {total} files of {source} cannot be used:{first}\n"
            f"`latentsync train check {source}` lists them all; data.on_bad=skip trains without them"
        )
    if bad and report is not None:
        for b in bad:
            report(f"left out {b}")
        report(f"left out {len(bad)} of {total} files of {source}")
