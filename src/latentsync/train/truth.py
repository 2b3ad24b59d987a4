"""Media with their truth beside them: `name.npz` next to `name.wav` or `name.mp4`, as `tools.synthheads` writes them.

A truth file holds arrays by name, a row for each frame at `data.fps`: `articulation` (n, channels), `lip_gap` (n,), `landmarks` (n, 68, 2) in pixels
counted from the picture's edge (the centre of the first pixel is 0.5).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentsync.errors import InputError
from latentsync.media.clip import VIDEO_SUFFIXES
from latentsync.train.clips import HELD_OUT, video_files

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"})
TRUTH = ".npz"


def truth_of(media: Path) -> Path:
    """The truth file that belongs to a clip or a sound."""
    return media.with_suffix(TRUTH)


def told(source: str | os.PathLike[str], suffixes: frozenset[str] = VIDEO_SUFFIXES | SOUND_SUFFIXES) -> list[Path]:
    """The media of a folder (searched through) or a list (one path a line) that have a truth file beside them, sorted; a sound before a video.

    Raises InputError where a listed file lacks its truth, and where nothing is found.
    """
    path = Path(source).expanduser()
    if path.is_file():
        listed = video_files(path)[0]
        for media in listed:
            if not truth_of(media).is_file():
                raise InputError(f"{media} is listed in {path}, but there is no {truth_of(media).name} beside it; `tools.synthheads` writes both")
        return listed
    if not path.is_dir():
        raise InputError(f"there is no folder or list {path}; give a folder of clips with their truth, or a text file with one path a line")
    found: dict[Path, Path] = {}
    for place, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        truths = {name.removesuffix(TRUTH) for name in files if name.endswith(TRUTH)}
        for name in sorted(files, key=lambda n: Path(n).suffix.lower() in SOUND_SUFFIXES):  # sounds last, in place of a video of the same name
            stem, suffix = os.path.splitext(name)
            if stem in truths and suffix.lower() in suffixes:
                found[Path(place, stem)] = Path(place, name)
    if not found:
        raise InputError(f"nothing in {path} has its truth ({TRUTH}) beside it; make clips with `python -m tools.synthheads`")
    return [found[stem] for stem in sorted(found)]


def told_split(training: str, validation: str, suffixes: frozenset[str] = VIDEO_SUFFIXES | SOUND_SUFFIXES) -> tuple[list[Path], list[Path]]:
    """(training, validation) media; with no validation set, one in `HELD_OUT` is held out of the training set, chosen by its name alone."""
    media = told(training, suffixes)
    if validation:
        return media, told(validation, suffixes)
    if len(media) == 1:
        return media, media
    marks = [int.from_bytes(hashlib.blake2b(m.stem.encode("utf-8", "surrogateescape"), digest_size=8).digest()) for m in media]
    chosen = {i for i, mark in enumerate(marks) if mark % HELD_OUT == 0} or {marks.index(min(marks))}
    if len(chosen) == len(media):
        chosen.remove(marks.index(max(marks)))
    return [m for i, m in enumerate(media) if i not in chosen], [media[i] for i in sorted(chosen)]


def read_truth(media: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of those names beside a clip or a sound, float32. Raises InputError that names what is missing, empty or not finite."""
    path = truth_of(media)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise InputError(
                    f"{path} holds no '{missing[0]}', it holds {', '.join(file.files) or 'nothing'}; make it anew with `tools.synthheads`"
                )
            arrays = {name: np.asarray(file[name], np.float32) for name in names}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise InputError(f"cannot read {path}: {e}; make it anew with `tools.synthheads`") from e
    for name, array in arrays.items():
        if not array.size or not np.isfinite(array).all():
            raise InputError(f"{path}: '{name}' is empty or not finite; make it anew with `tools.synthheads`")
    return arrays
