"""`latentsync demo`: the model that ships with the package, at work on the sample that ships with it. No network, no other weights.

A drawn head says one sentence; the sound is another sentence in another voice. Written are the result, original and result side by side, and a
sheet of mouths; said is how well the lips follow the new sound, before and after, as the shipped SyncNet judges it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch

from latentsync.errors import InputError, NoFaceError, OutputError
from latentsync.face.align import alignment, crop
from latentsync.face.track import Tracker
from latentsync.media.audio import Audio, open_audio
from latentsync.media.clip_writer import write_clip
from latentsync.media.timeline import timeline
from latentsync.media.video import open_video
from latentsync.options import Options
from latentsync.pipeline import LipSync, Progress, Result
from latentsync.score import SyncScore, load_judge, sync_score
from latentsync.speech.sync_mel import sync_mel
from latentsync.weights import shipped
from latentsync.whole import whole

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.media.frame import Frame
    from latentsync.models.syncnet import SyncNet

SAMPLE = "sample.mp4"
SPEECH = ("speech.m4a", "speech.flac", "speech.wav")
VIDEO, BESIDE, SHEET = "demo.mp4", "side_by_side.mp4", "mouth.png"  # what is written
MOMENTS = 12  # of the sheet
SHEET_SIDE = 256  # of the aligned face that the sheet's mouths are cut from, pixels
MOUTH = (slice(108, 250), slice(36, 220))  # rows and columns of the mouth and chin in it
TILE = (152, 156)  # width and height of one picture of the sheet: the aligned face is squeezed sideways, this is not


@dataclass(frozen=True)
class Demonstration:
    """What was made, and how well its lips follow the sound."""

    folder: Path
    sample: Path
    speech: Path
    result: Result
    original: SyncScore | None  # of the old picture with the new sound; None where the package came without its SyncNet
    made: SyncScore | None  # of the result

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        scores = {"original_with_new_sound": self.original, "result": self.made}
        return {
            "files": [str(self.folder / name) for name in (VIDEO, BESIDE, SHEET)],
            "sample": str(self.sample),
            "speech": str(self.speech),
            "sync": {
                name: None
                if score is None
                else {"confidence": round(score.confidence, 4), "offset_frames": score.offset, "cosine": round(score.cosine, 4)}
                for name, score in scores.items()
            },
            "result": self.result.plain(),
        }

    def lines(self) -> list[str]:
        """For people."""
        r = self.result
        out = [
            f"{self.folder / VIDEO}: {self.sample.name} now says {self.speech.name}; {r.seconds:.2f} s, "
            f"{r.faces} of {r.frames} frames with a new mouth",
            f"{self.folder / BESIDE}: the original left, the result right, both with the new sound",
            f"{self.folder / SHEET}: the mouth at {min(MOMENTS, r.frames)} moments, original above, result below",
            f"{r.seconds_per_second:.2f} s of work per second of video on {r.device} in {r.dtype}; "
            f"{r.steps} steps of {r.scheduler}, guidance {r.guidance:g}",
        ]
        if self.original is not None and self.made is not None:
            out.append(
                f"lips and sound, by SyncNet: confidence {self.made.confidence:.3f} at an offset of {self.made.offset} frames in the result, "
                f"{self.original.confidence:.3f} at {self.original.offset} in the original with the new sound"
            )
        return out + [f"note: {note}" for note in r.notes]


Moment = tuple[float, np.ndarray, np.ndarray]  # seconds; the mouth in the original and in the result, (h, w, 3) uint8


class _Seen(NamedTuple):
    """Both pictures of one frame: whole, (h, w, 3) uint8, and the aligned faces, (R, R, 3) uint8."""

    before: np.ndarray
    after: np.ndarray
    face_before: np.ndarray
    face_after: np.ndarray


def demonstrate(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Demonstration:
    """Lip-sync the shipped sample to the shipped sentence and write `demo.mp4`, `side_by_side.mp4` and `mouth.png` into `folder`.

    Raises WeightsError or InputError where the package came without its model or sample, OutputError where a file is there already
    (unless `overwrite`) or cannot be written.
    """
    sample, speech = _samples()
    _check(folder, overwrite)
    say("loading the demo model")
    lipsync = LipSync.load(shipped.NAME, device=device, dtype=dtype)
    judge = load_judge() if shipped.file(shipped.JUDGE) is not None else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder {folder}: {e.strerror or e}") from e
    say(f"syncing {sample.name} to {speech.name}")
    result = lipsync.run(sample, speech, folder / VIDEO, Options(), overwrite=overwrite, progress=progress)
    say("comparing")
    sound = open_audio(speech)
    moments = set(np.linspace(0, max(result.frames - 1, 0), min(MOMENTS, max(result.frames, 1))).round().astype(int).tolist())
    pairs, mouths = _compare(lipsync, sample, folder / VIDEO, sound, moments)
    own = np.concatenate(list(sound.samples(sound.info.rate)))
    both = np.stack([np.hstack([_labelled(pair.before, "original"), _labelled(pair.after, "result")]) for pair in pairs])
    rate = Fraction(result.frames) / Fraction(result.seconds).limit_denominator(90000)
    write_clip(folder / BESIDE, both, rate, own, sound.info.rate)
    _write_png(folder / SHEET, sheet(mouths))
    if judge is None:
        return Demonstration(folder, sample, speech, result, None, None)
    mel = torch.from_numpy(sync_mel(np.concatenate(list(sound.samples()))))
    original, new = (_score(*judge, faces, mel) for faces in ([pair.face_before for pair in pairs], [pair.face_after for pair in pairs]))
    return Demonstration(folder, sample, speech, result, original, new)


def _score(config: SyncNetConfig, judge: SyncNet, faces: list[np.ndarray], mel: torch.Tensor) -> SyncScore | None:
    pixels = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return sync_score(judge, config, pixels, mel)


def _samples() -> tuple[Path, Path]:
    folder = shipped.folder()
    speech = next((folder / name for name in SPEECH if (folder / name).is_file()), None)
    if speech is None or not (folder / SAMPLE).is_file():
        raise InputError(f"this installation lacks the sample of the demo ({SAMPLE} and {SPEECH[0]} in {folder}); install the package anew")
    return folder / SAMPLE, speech


def _check(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a folder with --out")
    there = [name for name in (VIDEO, BESIDE, SHEET) if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(f"{folder / there[0]} exists; pass --overwrite to replace it, or name another folder with --out")


def _compare(lipsync: LipSync, sample: Path, made: Path, sound: Audio, moments: set[int]) -> tuple[list[_Seen], list[Moment]]:
    """Every frame of the original, laid over the length of the sound, beside the result's; and at some moments the time and both mouths.

    Both faces are cut out by the original's points. A frame without a face shows the last one.
    """
    resolution = lipsync.config.resolution
    seen: list[_Seen] = []
    mouths = []
    with open_video(sample) as source, open_video(made) as result:
        frames = timeline(source, sound.info.duration)
        tracker: Tracker = Tracker(lipsync.model.faces())
        points = None
        for number, (tracked, other) in enumerate(zip(tracker.track(frames, _picture), result.frames(), strict=False)):
            points = tracked.points if tracked.points is not None else points
            if points is None:
                raise NoFaceError(f"no face in frame {number} of the shipped sample: the shipped face finder does not work on this machine")
            pictures = tracked.frame.picture, other.picture
            matrix = alignment(points, resolution)
            faces = [crop(picture, matrix, resolution) for picture in pictures]
            seen.append(_Seen(pictures[0].rgb(), pictures[1].rgb(), *faces))
            if number in moments:
                larger = alignment(points, SHEET_SIDE)
                before, after = (cv2.resize(crop(p, larger, SHEET_SIDE)[MOUTH], TILE, interpolation=cv2.INTER_AREA) for p in pictures)
                mouths.append((float(tracked.frame.time), before, after))
    if not seen:
        raise InputError(f"{sample} has no frames; install the package anew")
    return seen, mouths


def _picture(frame: Frame) -> Any:
    return frame.picture


def sheet(mouths: list[Moment]) -> np.ndarray:
    """Some moments -> (h, w, 3) uint8: a column for each, original above, result below."""
    height, width = mouths[0][1].shape[:2]
    left, top, gap = 84, 24, 4
    page = np.full((top + 2 * (height + gap), left + len(mouths) * (width + gap), 3), 255, np.uint8)
    for row, name in enumerate(("original", "result")):
        _text(page, name, (6, top + row * (height + gap) + height // 2), (0, 0, 0))
    for column, (time, *pair) in enumerate(mouths):
        x = left + column * (width + gap)
        _text(page, f"{time:.2f} s", (x + 4, top - 7), (0, 0, 0))
        for row, picture in enumerate(pair):
            y = top + row * (height + gap)
            page[y : y + height, x : x + width] = picture
    return page


def _labelled(picture: np.ndarray, name: str) -> np.ndarray:
    """A copy with its name in the corner."""
    out = np.ascontiguousarray(picture).copy()
    size = max(0.45, math.sqrt(out.shape[0] / 320) * 0.45)
    place = (6, int(18 * size / 0.45))
    _text(out, name, place, (0, 0, 0), size, 3)
    _text(out, name, place, (255, 255, 255), size, 1)
    return out


def _text(page: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int], size: float = 0.45, thick: int = 1) -> None:
    cv2.putText(page, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)


def _write_png(path: Path, picture: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB as a PNG, whole or not at all."""
    with whole(path) as scratch:
        scratch.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
