"""The list of clips that training reads: one path a line, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.prepare import manifest
from latentsync.prepare.store import Local
from latentsync.train.clips import list_line, video_files


def write_list(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Write the videos in these folders and all below them to the text file `out`, folder by folder, by name; returns their number.

    Of a folder that `latentsync prepare` wrote, those are the clips that it kept. Files are not opened; `latentsync train check` does that. Raises
    InputError for a folder that is not there, cannot be looked into or holds no video, and what `write_paths` raises.
    """
    return write_paths((path for path, _ in _clips(folders)), out, overwrite=overwrite)


def write_split(
    folders: Sequence[str | os.PathLike[str]],
    train: str | os.PathLike[str],
    validation: str | os.PathLike[str],
    *,
    share: float = 0.02,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write two lists of the clips that `latentsync prepare` kept in these folders; returns how many are in each.

    All clips of one source video are in the same list. Which one is a matter of its content and `seed` alone, so sources keep their side when others
    are added. About `share` of the sources are held out for validation, at least one, and at least one is trained on.

    Raises UsageError for a share that is none, InputError for a folder without a manifest, since it is not known which of its clips belong together,
    and for clips of a single source; and what `write_list` raises.
    """
    if not 0 < share < 1:
        raise UsageError(f"--share is {share:g}; the share of source videos to hold out is between 0 and 1")
    if os.path.abspath(train) == os.path.abspath(validation):
        raise UsageError("the lists of training and validation need two names")
    clips = _clips(folders)
    strange = next((path for path, content in clips if not content), None)
    if strange is not None:
        raise InputError(f"which video {strange} was cut from is not known; split lists of folders that `latentsync prepare RAW OUT` wrote")
    if not clips:
        raise InputError("there is no clip to list: `latentsync prepare` kept none, and its report.html says why")
    draws = sorted((_draw(content, seed), content) for content in {content for _, content in clips})
    if len(draws) < 2:
        raise InputError(f"all clips are of {len(draws)} source video{'s' * (not draws)}; at least two are needed to hold one out")
    held = {content for draw, content in draws[:-1] if draw < share} or {draws[0][1]}
    for place in (train, validation):  # before either is written
        if os.path.lexists(Path(place).expanduser()) and not overwrite:
            raise OutputError(f"{place} exists; pass --overwrite to replace it, or choose another name")
    return (
        write_paths((path for path, content in clips if content not in held), train, overwrite=overwrite),
        write_paths((path for path, content in clips if content in held), validation, overwrite=overwrite),
    )


def _draw(content: str, seed: int) -> float:
    """A number from 0 to 1 that is a content's own."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {content}".encode(), digest_size=8).digest(), "big") / 2**64


def _clips(folders: Sequence[str | os.PathLike[str]]) -> list[tuple[Path, str]]:
    """(clip, content of the video it is of) of each folder; the content is empty where no manifest tells it."""
    if not folders:
        raise UsageError("which folders? Name at least one that holds clips")
    found: list[tuple[Path, str]] = []
    for folder in folders:
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise InputError(f"{folder} is not a folder; name folders that hold clips")
        root = place.absolute().parent if place.absolute().name == manifest.CLIPS else place.absolute()
        if (root / manifest.NAME).is_file():
            found += [(root / row["file"], row["content"]) for row in manifest.read(Local(root)) if "file" in row]
            continue
        paths, unseen = video_files(folder)
        if unseen:
            raise InputError("part of a folder is left out, so no list is written:\n  " + "\n  ".join(map(str, unseen)))
        found += [(path, "") for path in paths]
    return found


def write_paths(paths: Iterable[Path], out: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Write these paths to the text file `out`, each once, in this order; returns their number.

    They are relative to the list's own folder where they lie below it, so both can be moved together. Raises InputError where there is none, or for
    a name that no list can hold, OutputError where the list exists (without `overwrite`) or cannot be written.
    """
    target = Path(out).expanduser()
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} exists; pass --overwrite to replace it, or choose another name")
    try:
        lines = [list_line(path, target.parent) for path in dict.fromkeys(Path(os.path.abspath(p)) for p in paths)]
    except ValueError as e:
        raise InputError(f"{e}, so it cannot stand in a list; rename it") from e
    if not lines:
        raise InputError(f"there is no clip to list, so {target} is not written")
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(scratch, "xb") as f:
            f.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            f.flush()
            os.fsync(f.fileno())
        scratch.replace(target)
    except OSError as e:
        hint = "choose another place" if target.parent.is_dir() else "create its folder first"
        raise OutputError(f"cannot write {target}: {e.strerror or e}; {hint}") from e
    finally:
        with suppress(OSError):
            scratch.unlink()
    return len(lines)
