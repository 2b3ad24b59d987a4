"""The list of clips that training reads: one path a line, written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.train.clips import list_line, video_files


def write_list(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Write the videos in these folders and all below them to the text file `out`, folder by folder, by name; returns their number.

    Files are not opened; `latentsync train check` does that. Raises InputError for a folder that is not there, cannot be looked into or holds no
    video, and what `write_paths` raises.
    """
    if not folders:
        raise UsageError("which folders? Name at least one that holds clips")
    found: list[Path] = []
    for folder in folders:
        if not Path(folder).expanduser().is_dir():
            raise InputError(f"{folder} is not a folder; name folders that hold clips")
        paths, unseen = video_files(folder)
        if unseen:
            raise InputError("part of a folder is left out, so no list is written:\n  " + "\n  ".join(map(str, unseen)))
        found += paths
    return write_paths(found, out, overwrite=overwrite)


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
