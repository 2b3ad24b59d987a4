"""Step: do the lips follow the sound? Its confidence and offset; and the sound moved so that they meet, with the pictures untouched."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from latentsync.errors import InputError, OutputError, UsageError
from latentsync.media.audio import Audio, as_float, open_audio
from latentsync.media.clip import read_audio
from latentsync.media.picture import Picture
from latentsync.media.remux import LOSSLESS, with_sound
from latentsync.media.timeline import timeline
from latentsync.media.video import VideoInfo, open_video
from latentsync.metrics import sync as judges
from latentsync.prepare.records import Decision
from latentsync.prepare.steps.files import read_arrays

if TYPE_CHECKING:
    from latentsync.face.protocols import FaceBackend

VERSION = "1"
MODELS = ("syncnet", "demo")
MIN_SYNC = {"syncnet": 3.0, "demo": 0.2}  # the published threshold; and the same on the scale of the package's own SyncNet
MAX_OFFSET = 6  # frames; more than that is a fault of another kind
_BLOCK = 4096  # samples


@dataclass(frozen=True)
class Synced:
    """How well the lips of a clip follow its sound. The scales of confidence and distance are the model's (see `metrics.sync`)."""

    confidence: float
    offset: int  # frames of 25 a second that the sound comes early: delay it by so many
    distance: float
    model: str
    seconds: tuple[float, ...] = ()  # each second's confidence in that offset


def measure(
    path: str | os.PathLike[str],
    *,
    model: str = "syncnet",
    points: Path | None = None,
    backend: FaceBackend | None = None,
    weights: str | Path = "",
    home: str | Path | None = None,
    device: str = "cpu",
) -> Synced:
    """Offset and confidence of a clip, whatever its frame rate.

    model: "syncnet" (SyncNet v2, fetched with `latentsync models download judges`) or "demo" (the SyncNet that comes with the package).
    points: the .npz that `align` wrote of the clip, by default the one beside it. A square clip without one is an aligned face; in any other the
    main person's face is followed by the face finder `backend`, which, where given, is used in any case. weights: a file for SyncNet v2 in place of
    the published one. Raises InputError for a clip without sound or face, or shorter than 5 frames (one window of the package's SyncNet);
    UsageError where the face can only be found by a finder and none is given; WeightsError where the model is not here.
    """
    path = Path(path)
    if model not in MODELS:
        raise UsageError(f"no sync model '{model}'; known ones are {', '.join(MODELS)}")
    samples = read_audio(path)
    video = open_video(path)

    def pictures() -> Iterator[Picture]:
        return (f.picture for f in timeline(video, Fraction(0), when_audio_longer="cut", when_video_longer="keep", fps=Fraction(judges.FPS)))

    try:
        places = judges.follow(pictures(), backend) if backend is not None else _places(path, points, video.info)
        if model == "syncnet":
            found = judges.judged(judges.load_syncnet_v2(home, weights, device), judges.crops_of(pictures(), places), samples)
        else:
            config, net = judges.load_demo_judge(device)
            found = judges.judged_by_demo(net, config, judges.aligned_of(pictures(), places, config.resolution), samples)
    except InputError as e:
        raise e if str(path) in str(e) else InputError(f"{path}: {e}") from e
    return Synced(found.confidence, found.offset, found.distance, model, found.seconds)


def _places(path: Path, points: Path | None, info: VideoInfo) -> np.ndarray | None:
    """Alignment points (n, 3, 2) of the face in each frame, from the file beside the clip; None: each frame is an aligned face."""
    beside = points or path.with_suffix(".npz")
    if points is not None or beside.is_file():
        landmarks, matrices = read_arrays(beside, "landmarks", "matrix")
        return judges.points_in_clip(landmarks, matrices, info.height)
    if info.width != info.height:
        raise UsageError(f"{path} is no aligned face, and there is no {beside.name} that says where its face is; give a face finder (--face-backend)")
    return None


def decide(synced: Synced, *, min_sync: float | None = None, max_offset: int = MAX_OFFSET) -> Decision:
    """Keep what is in sync, or can be brought there by moving the sound. min_sync None is the model's own threshold, `MIN_SYNC`."""
    least = MIN_SYNC[synced.model] if min_sync is None else min_sync
    if synced.confidence < least:
        return Decision(False, f"lips and sound do not go together: sync confidence {synced.confidence:.2f} ({synced.model}), less than {least:g}")
    if abs(synced.offset) > max_offset:
        way = "early" if synced.offset > 0 else "late"
        return Decision(False, f"the sound is {abs(synced.offset)} frames {way}, more than the {max_offset} that are repaired")
    moved = f", the sound to be moved by {synced.offset:+d} frames" if synced.offset else ""
    return Decision(True, f"sync confidence {synced.confidence:.2f} ({synced.model}){moved}")


def shift(path: str | os.PathLike[str], target: str | os.PathLike[str], offset_frames: int, *, fps: Fraction | int = 25) -> None:
    """Write `target`: the clip with its sound moved by `offset_frames` / `fps` seconds, later where positive: by `Synced.offset`, and it is 0 after.

    The picture's packets are copied as they are, with their times. Samples move by a whole number of them and are stored losslessly (16 bits); what
    runs out is silence, what runs over is left out, so the sound is as long as before. The target appears whole or not at all; one that
    exists is replaced. Raises InputError for a clip without picture or sound, UsageError for a container that cannot hold the result or a target that
    is the clip itself, OutputError where it cannot be written.
    """
    path, target = Path(path), Path(target)
    if target.suffix.lower() not in LOSSLESS:
        raise UsageError(f"cannot write {target}: clips with moved sound are {', '.join(LOSSLESS)}")
    with suppress(OSError):
        if os.path.samefile(path, target):
            raise UsageError(f"{target} is the clip itself; name another file")
    sound = open_audio(path, beside=path)
    by = round(Fraction(offset_frames) / Fraction(fps) * sound.info.rate)
    scratch = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with_sound(path, scratch, _moved(sound, by), sound.info.rate, sound.info.layout, sound.origin)
        scratch.replace(target)
    except (av.error.FFmpegError, OSError) as e:
        raise OutputError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _moved(sound: Audio, by: int) -> Iterator[np.ndarray]:
    """(channels, m) float32 chunks of the sound, later by that many samples (earlier where negative), as many in all as it has."""
    total = round(sound.info.duration * sound.info.rate)
    left = total
    for chunk in _silence(sound, min(max(by, 0), total)):
        left -= chunk.shape[1]
        yield chunk
    skip = max(-by, 0)
    for chunk in _samples(sound):
        kept = chunk[:, skip : skip + left]
        skip = max(0, skip - chunk.shape[1])
        left -= kept.shape[1]
        if kept.shape[1]:
            yield kept
    yield from _silence(sound, left)


def _samples(sound: Audio) -> Iterator[np.ndarray]:
    for piece in sound.pieces():
        yield from _silence(sound, piece.silence)
        if (piece.item.sample_rate, len(piece.item.layout.channels)) != (sound.info.rate, sound.info.channels):
            raise InputError(f"the sound of {sound.info.path} changes its rate or its channels on the way; run the step resample first")
        yield as_float(piece.item)[:, piece.start : piece.stop]


def _silence(sound: Audio, count: int) -> Iterator[np.ndarray]:
    while count > 0:
        yield np.zeros((sound.info.channels, min(count, _BLOCK)), np.float32)
        count -= _BLOCK
