"""Frames of clips, decoded once: for small networks, whose steps take less time than the decoding of one frame would."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import numpy as np

from latentsync.errors import OutputError, WeightsError
from latentsync.hub import locked
from latentsync.media.clip import read_frames
from latentsync.train.cache import content_digest
from latentsync.train.clips import Clip

_FRAMES = "frames-1"  # of the files' names; the number goes up when the same clip leads to other frames
_OPEN = 256  # files mapped at a time: the system allows a process about a thousand
_AT_ONCE = 64  # frames decoded before they are written


class FrameStore:
    """Decoded frames in a folder: one file (n, side, side, 3) uint8 RGB for each clip, of all its frames at `fps` a second.

    A file is named after the clip's content, so clips that moved are found again and clips that changed are decoded anew. It appears whole or not
    at all; of several processes that want one clip, one decodes it and the others wait. What is read is mapped, not loaded: the system keeps what
    is in use in memory, and the processes of a machine share it. 128 px take 49 KB a frame.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fps: Fraction, side: int) -> None:
        self.folder, self.fps, self.side = Path(folder) / "frames", fps, side
        self._open: OrderedDict[str, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}  # another process maps for itself

    def frames(self, clip: Clip) -> np.ndarray:
        """(clip.frames, side, side, 3) uint8, read-only. Raises InputError for a clip that cannot be read, OutputError where nothing can be kept."""
        name = f"{_FRAMES}-{content_digest(clip.path)}-{self.side}-{self.fps.numerator}-{self.fps.denominator}-{clip.frames}"
        found = self._open.pop(name, None)
        if found is None:
            path = self.folder / name[len(_FRAMES) + 1 :][:2] / f"{name}.npy"
            found = _mapped(path)
            if found is None:
                found = self._decoded(clip, path)
            if len(self._open) >= _OPEN:
                self._open.popitem(last=False)
        self._open[name] = found
        return found

    def _decoded(self, clip: Clip, path: Path) -> np.ndarray:
        scratch = path.with_name(f".{path.stem}.{uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path):
                found = _mapped(path)  # made while we waited
                if found is None:
                    self._write(clip, scratch)
                    scratch.replace(path)
                    found = _mapped(path)
        except (OSError, WeightsError) as e:  # the lock is that of downloads, and so are its words
            cause = e.__cause__ if isinstance(e, WeightsError) else e
            why = cause.strerror or cause if isinstance(cause, OSError) else e
            size = clip.frames * self.side**2 * 3 / 1e6
            raise OutputError(
                f"cannot keep the frames of {clip.path} ({size:.0f} MB) in {self.folder}: {why}; make room, or set data.cache=FOLDER"
            ) from e
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        if found is None:
            raise OutputError(f"{path} vanished as soon as it was written; set data.cache=FOLDER to a folder that nothing else clears")
        return found

    def _write(self, clip: Clip, target: Path) -> None:
        with target.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (clip.frames, self.side, self.side, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, clip.frames, _AT_ONCE):
                times = [i / self.fps for i in range(first, min(first + _AT_ONCE, clip.frames))]
                file.write(read_frames(clip.path, times, side=self.side).tobytes())


def _mapped(path: Path) -> np.ndarray | None:
    """The array in the file, mapped; None where there is no such file, or it is damaged."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found
