"""How well lips follow their sound: offset and confidence, as SyncNet v2 finds them, or the SyncNet that comes with the package.

The scheme is that of Chung and Zisserman 2016 (Out of time): each window of frames is compared with the sound at shifts of up to 15 frames either
way; the shift at which they are nearest in the mean is the offset, and how far it stands out from the median over all shifts the confidence.
Everything runs at 25 frames a second and 16 kHz.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.errors import InputError
from latentsync.face import align
from latentsync.face.protocols import PictureLike
from latentsync.face.track import Tracker, smoothed_anchors
from latentsync.metrics.lips import peak
from latentsync.models.load import load_state
from latentsync.models.syncnet_v2 import COEFFICIENTS, COLUMNS, SIDE, WINDOW, SyncNetV2
from latentsync.score import agreement, load_judge
from latentsync.speech.sync_mel import sync_mel

if TYPE_CHECKING:
    from latentsync.config import SyncNetConfig
    from latentsync.face.protocols import FaceBackend
    from latentsync.models.syncnet import SyncNet

FPS = 25
RATE = 16000  # Hz
REACH = 15  # frames that the sound is shifted either way
AT_ONCE = 16  # windows through SyncNet v2 together: its first layers take 5 MB for each

# MFCC, as python_speech_features computes them by default
_FRAME, _HOP, _FFT = 400, 160, 512  # samples: 25 ms, every 10 ms; a frame is not windowed, and padded with zeros
_BANDS = 26
_LIFTER = 22
_PRE_EMPHASIS = 0.97
_LEAST = float(np.finfo(np.float64).eps)  # what an energy of zero counts as
_COLUMNS_PER_FRAME = 4  # of video
_COLUMNS_AT_ONCE = 3000

# Where the published detector's box lies around a face: in pixels of the upright aligned crop of 210 x 280, in which brows and nose have their fixed
# places. Mean over 9 real clips with YuNet, which learned its boxes from the same photographs (WIDER FACE).
_BOX_CENTRE = (105.0, 105.0)
_BOX_HALF = 140.0  # half of its larger side
_MARGIN = 0.4  # of the half side, that the crop takes more to the left, to the right, and twice below
_OUTSIDE = 110  # grey of what lies outside the picture
_MEDIAN = 13  # frames over which a region's place and size are smoothed
SHOWN = 0.5  # least share of frames that must show the face

P = TypeVar("P", bound=PictureLike)


class SyncReading(NamedTuple):
    """What a judge says of a clip."""

    offset: int  # frames by which the sound comes early, -15..15: delay it by so many. Negative: it comes late
    confidence: float  # median over the shifts of the mean distance, minus the smallest
    distance: float  # the smallest
    distances: tuple[float, ...]  # mean distance at offset 15, 14, ... -15; NaN where too little sound is left
    seconds: tuple[float, ...]  # each second's own confidence in the clip's offset; negative where another fits better
    fine: float  # the offset with its fraction: the bottom of a parabola through the smallest mean distance and its neighbours


class Region(NamedTuple):
    """A face's place in a picture, in its pixels: the middle of the box, and half of its larger side across and down."""

    x: float
    y: float
    across: float
    down: float


# Distances


def distances(lips: Tensor, sounds: Tensor, reach: int = REACH) -> np.ndarray:
    """Vectors (n, d) of n windows of frames and of their sound -> (2 reach + 1, n) float64 Euclidean distances.

    Row i compares with the sound i - reach frames later. Beyond the ends the sound's vectors are zero, as published.
    """
    lips, sounds = lips.double().cpu(), sounds.double().cpu()
    n = len(lips)
    padded = torch.nn.functional.pad(sounds, (0, 0, reach, reach))
    rows = [torch.linalg.vector_norm(lips - padded[i : i + n] + 1e-6, dim=1) for i in range(2 * reach + 1)]  # PyTorch's pairwise_distance
    return torch.stack(rows).numpy()


def cosine_distances(cosines: Tensor, reach: int = REACH) -> np.ndarray:
    """(n, n) cosines of windows of frames with windows of sound -> (2 reach + 1, n) of 1 - cosine, laid out as `distances`; NaN beyond the ends."""
    n = len(cosines)
    found = np.full((2 * reach + 1, n), np.nan)
    for i in range(2 * reach + 1):
        lag = i - reach
        if abs(lag) < n:
            first = max(0, -lag)
            found[i, first : first + n - abs(lag)] = 1 - cosines.diagonal(lag).double().numpy()
    return found


def reading(found: np.ndarray, fps: int = FPS) -> SyncReading:
    """Distances (2 reach + 1, n) as `distances` gives them -> offset, confidence and the rest."""
    reach = len(found) // 2
    means = _means(found)
    best = int(np.nanargmin(means))
    seconds = []
    for first in range(0, found.shape[1], fps):
        here = _means(found[:, first : first + fps])
        if np.isfinite(here[best]):
            seconds.append(float(np.nanmedian(here) - here[best]))
    least = float(means[best])
    fine = reach - best - peak(-means, best)
    return SyncReading(reach - best, float(np.nanmedian(means)) - least, least, tuple(means.tolist()), tuple(seconds), fine)


def _means(found: np.ndarray) -> np.ndarray:
    """The mean of each row over what is not NaN; NaN for a row without any."""
    counts = np.isfinite(found).sum(axis=1)
    return np.where(counts > 0, np.nansum(found, axis=1) / np.maximum(counts, 1), np.nan)


# Sound


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Mono samples (m,) in [-1, 1] at 16 kHz -> (13, t) float32: 12 mel-frequency cepstral coefficients behind the logarithm of the energy.

    Column c begins at sample 160 c. The loudness counts, as that of 16-bit samples. Samples that are not finite count as 0.
    """
    whole = np.clip(np.round(np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0) * 32768), -32768, 32767)
    whole[1:] -= _PRE_EMPHASIS * whole[:-1]
    columns = 1 if len(whole) <= _FRAME else 1 + -(-(len(whole) - _FRAME) // _HOP)
    whole = np.pad(whole, (0, max(0, (columns - 1) * _HOP + _FRAME - len(whole))))
    frames = np.lib.stride_tricks.sliding_window_view(whole, _FRAME)[::_HOP][:columns]
    basis, bands = _cosines(), _triangles()
    parts = []
    for first in range(0, columns, _COLUMNS_AT_ONCE):
        power = np.abs(np.fft.rfft(frames[first : first + _COLUMNS_AT_ONCE], _FFT)) ** 2 / _FFT
        part = np.log(_positive(power @ bands.T)) @ basis.T
        part[:, 0] = np.log(_positive(power.sum(axis=1)))
        parts.append(part)
    return np.concatenate(parts).T.astype(np.float32)


def _positive(energy: np.ndarray) -> np.ndarray:
    return np.where(energy == 0, _LEAST, energy)


@lru_cache(maxsize=1)
def _triangles() -> np.ndarray:
    """(26, 257): triangles of equal width in mel, 2595 log10(1 + Hz / 700), over 0 to 8000 Hz, their corners on bins of the FFT."""
    corners = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), _BANDS + 2)
    bins = np.floor((_FFT + 1) * 700 * (10 ** (corners / 2595) - 1) / RATE)
    at = np.arange(_FFT // 2 + 1)
    bands = np.zeros((_BANDS, len(at)))
    for band, (low, middle, high) in enumerate(zip(bins, bins[1:], bins[2:], strict=False)):
        rising, falling = (at >= low) & (at < middle), (at >= middle) & (at < high)
        bands[band, rising] = (at[rising] - low) / (middle - low)
        bands[band, falling] = (high - at[falling]) / (high - middle)
    return bands


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(13, 26): orthonormal DCT-II, its rows raised by a sine lifter."""
    row = np.arange(COEFFICIENTS)[:, None]
    basis = np.sqrt(2 / _BANDS) * np.cos(np.pi * row * (2 * np.arange(_BANDS) + 1) / (2 * _BANDS))
    basis[0] /= np.sqrt(2)
    lifted: np.ndarray = basis * (1 + _LIFTER / 2 * np.sin(np.pi * row / _LIFTER))
    return lifted


@torch.inference_mode()
def hear(net: SyncNetV2, samples: np.ndarray, windows: int) -> Tensor:
    """Samples (m,) at 16 kHz -> (windows, 1024): what the network hears from each frame of 25 a second on."""
    needed = _HOP * (_COLUMNS_PER_FRAME * (windows - 1) + COLUMNS - 1) + 1  # samples from which there are columns enough
    columns = torch.from_numpy(mfcc(np.pad(samples, (0, max(0, needed + _FRAME - len(samples))))))
    device = next(net.parameters()).device
    heard = []
    for first in range(0, windows, 8 * AT_ONCE):
        some = range(first, min(first + 8 * AT_ONCE, windows))
        batch = torch.stack([columns[None, :, _COLUMNS_PER_FRAME * k : _COLUMNS_PER_FRAME * k + COLUMNS] for k in some])
        heard.append(net.hear(batch.to(device)).cpu())
    return torch.cat(heard)


# Pictures


@torch.inference_mode()
def see(net: SyncNetV2, crops: Iterable[np.ndarray]) -> Tensor:
    """Consecutive crops, each (224, 224, 3) uint8 RGB as `face_crop` makes them -> (n - 4, 1024), a row for each five. Holds a few at a time.

    Raises InputError where there are fewer than five.
    """
    device = next(net.parameters()).device
    held: list[np.ndarray] = []
    seen = []

    def look() -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(np.stack(held)[..., ::-1]))  # blue first
        return net.see(batch.to(device).permute(0, 3, 1, 2).float()).cpu()

    for crop in crops:
        held.append(crop)
        if len(held) == AT_ONCE + WINDOW - 1:
            seen.append(look())
            del held[:AT_ONCE]
    if len(held) >= WINDOW:
        seen.append(look())
    if not seen:
        raise InputError(f"{len(held)} frames are too few: lip sync is judged from {WINDOW} on, 0.2 s at 25 a second; give a longer clip")
    return torch.cat(seen)


def follow(pictures: Iterable[P], backend: FaceBackend) -> np.ndarray:
    """Consecutive pictures -> (n, 3, 2) float64 alignment points of the main person's face, pixels; between sightings they are interpolated.

    Raises InputError where fewer than half of the pictures show the face.
    """
    rows: list[np.ndarray | None] = [t.points for t in Tracker(backend).track(pictures, lambda picture: picture)]
    shown = [i for i, row in enumerate(rows) if row is not None]
    if not rows:
        raise InputError("it has no frame; give a longer clip")
    if len(shown) < SHOWN * len(rows):
        what = "no face in any frame" if not shown else f"a face in only {len(shown)} of {len(rows)} frames"
        raise InputError(f"{what}; give a clip that shows one face throughout, or try another face finder (--face-backend)")
    known = np.stack([row for row in rows if row is not None]).reshape(len(shown), 6)
    filled = [np.interp(np.arange(len(rows)), shown, known[:, i]) for i in range(6)]
    return np.stack(filled, axis=1).reshape(-1, 3, 2)


def region(points: np.ndarray, pixel_aspect: float = 1.0) -> Region:
    """Alignment points (3, 2) in a picture -> where the published detector would see the face: as large, not turned."""
    matrix = align.alignment(points, 256, pixel_aspect)
    back = align.invert(matrix)
    x, y = back @ [*_BOX_CENTRE, 1.0]
    down = _BOX_HALF * float(np.sqrt(abs(np.linalg.det(back[:, :2])) * pixel_aspect))
    return Region(float(x), float(y), down / pixel_aspect, down)


def region_of_aligned(side: int) -> Region:
    """The same in an aligned face of that side, which is squeezed across: the region undoes that."""
    width, height = align.crop_size(256)
    x, y = (_BOX_CENTRE[0] + 0.5) / width * side - 0.5, (_BOX_CENTRE[1] + 0.5) / height * side - 0.5
    return Region(x, y, _BOX_HALF / width * side, _BOX_HALF / height * side)


def smoothed(regions: Sequence[Region]) -> list[Region]:
    """Each number the median over 13 frames around, as published; beyond the ends the first and the last stand."""
    around = np.pad(np.array(regions, np.float64), ((_MEDIAN // 2, _MEDIAN // 2), (0, 0)), mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(around, _MEDIAN, axis=0), axis=-1)
    return [Region(*row) for row in medians.tolist()]


def face_crop(picture: PictureLike, where: Region) -> np.ndarray:
    """(224, 224, 3) uint8 RGB: the face with the published margins, 0.4 of the half side left and right and 0.8 below; grey outside the picture."""
    left, right = (round(where.x + sign * (1 + _MARGIN) * where.across) for sign in (-1, 1))
    top, bottom = round(where.y - where.down), round(where.y + (1 + 2 * _MARGIN) * where.down)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    x0, y0 = min(max(left, 0), picture.width), min(max(top, 0), picture.height)
    x1, y1 = min(max(right, x0), picture.width), min(max(bottom, y0), picture.height)
    seen = np.full((bottom - top, right - left, 3), _OUTSIDE, np.uint8)
    if x1 > x0 and y1 > y0:
        seen[y0 - top : y1 - top, x0 - left : x1 - left] = picture.rgb((x0, y0, x1, y1))
    shrinks = min(seen.shape[:2]) > SIDE
    return cv2.resize(seen, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# Judges


@lru_cache(maxsize=1)
def load_syncnet_v2(home: str | Path | None = None, path: str | Path = "", device: str | torch.device = "cpu") -> SyncNetV2:
    """SyncNet v2 with its published weights, or those at `path`, kept for the next call. Raises WeightsError that names what to run."""
    from latentsync import weights

    state = weights.judge_state("syncnet_v2", home, path, otherwise=", or take the small judge that comes with the package: --sync-model demo")
    with torch.device("meta"):
        net = SyncNetV2()
    return load_state(net, state, "SyncNet v2").float().to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def load_demo_judge(device: str | torch.device = "cpu") -> tuple[SyncNetConfig, SyncNet]:
    """The SyncNet that comes with the package, kept for the next call. Raises WeightsError where it did not."""
    config, net = load_judge()
    return config, net.to(device).requires_grad_(False)


def judged(net: SyncNetV2, crops: Iterable[np.ndarray], samples: np.ndarray) -> SyncReading:
    """Consecutive crops (224, 224, 3) at 25 a second and their sound (m,) at 16 kHz -> SyncNet v2's reading. Confidence: about 3 to 9 in sync.

    As published the last window is left out, and all beyond the sound. Raises InputError where there are not five frames, or not 0.2 s of sound.
    """
    lips = see(net, crops)
    with_sound = len(samples) // (RATE // FPS)
    if with_sound < WINDOW:
        raise InputError(f"its sound lasts {len(samples) / RATE:.2f} s: lip sync is judged from 0.2 s on; give a longer clip")
    windows = max(1, min(len(lips) + WINDOW - 1, with_sound) - WINDOW)
    return reading(distances(lips[:windows], hear(net, samples, windows)))


def judged_by_demo(net: SyncNet, config: SyncNetConfig, faces: Iterable[np.ndarray], samples: np.ndarray) -> SyncReading:
    """Consecutive aligned faces (R, R, 3) uint8 RGB at 25 a second and their sound (m,) at 16 kHz -> the reading of the package's SyncNet.

    Its distance is 1 - cosine: 0 where lips and sound agree wholly, 1 where they have nothing to do with each other. So its confidence lies
    between 0 and 1, not on the scale of SyncNet v2. Raises InputError for a clip shorter than one of its windows.
    """
    side = config.resolution
    small = [torch.from_numpy(_resized(face, side)) for face in faces]
    if len(small) < config.frames:
        raise InputError(f"{len(small)} frames are too few: this judge of lip sync sees {config.frames} at a time; give a longer clip")
    frames = torch.stack(small).permute(0, 3, 1, 2)
    cosines = agreement(net, config, frames.float() / 127.5 - 1, torch.from_numpy(sync_mel(samples)), FPS)
    if cosines is None:
        raise InputError(
            f"its sound lasts {len(samples) / RATE:.2f} s, less than the {config.frames} frames that this judge hears; give a longer clip"
        )
    return reading(cosine_distances(cosines))


def _resized(face: np.ndarray, side: int) -> np.ndarray:
    if face.shape[:2] == (side, side):
        return face
    return cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA if face.shape[0] > side else cv2.INTER_CUBIC)


def crops_of(pictures: Iterable[PictureLike], points: np.ndarray | None) -> Iterator[np.ndarray]:
    """What SyncNet v2 sees of consecutive pictures: `face_crop` of each. points (n, 3, 2): see `follow`; None: each picture is one aligned face."""
    if points is None:
        yield from (face_crop(picture, region_of_aligned(picture.height)) for picture in pictures)
        return
    regions: list[Region] = []
    for picture, number in zip(pictures, range(len(points)), strict=False):
        regions = regions or smoothed([region(p, float(picture.pixel_aspect)) for p in points])
        yield face_crop(picture, regions[number])


def aligned_of(pictures: Iterable[PictureLike], points: np.ndarray | None, side: int) -> Iterator[np.ndarray]:
    """What the package's own SyncNet sees of them: aligned faces (side, side, 3) uint8; otherwise as `crops_of`."""
    if points is None:
        yield from (_resized(picture.rgb(), side) for picture in pictures)
        return
    for picture, where in zip(pictures, points, strict=False):
        yield align.crop(picture, align.alignment(where, side, picture.pixel_aspect), side)


def points_in_clip(landmarks: np.ndarray, matrices: np.ndarray, side: int) -> np.ndarray | None:
    """Landmarks (n, p, 2) and matrices (n, 2, 3) as they lie beside a clip -> its alignment points (n, 3, 2), smoothed over time.

    None where the clip is the aligned face itself: the points are then where the template has them, without the matrices.
    """
    points = smoothed_anchors(landmarks)
    through = align.mapped(points, np.asarray(matrices, np.float64))
    return None if _off(points, side) <= _off(through) else points


def _off(points: np.ndarray, side: int = 0) -> float:
    """How far alignment points (n, 3, 2) lie from where they are in an aligned face of that side (0: of any), in sides."""
    width, height = align.crop_size(256)
    goal = (align.template(256) + 0.5) / [width, height]  # in sides, from the edge
    size = side or float((points - points.mean(axis=1, keepdims=True)).std() / (goal - goal.mean(axis=0)).std())
    return float(np.abs((points + 0.5) / size - goal).mean())
