"""What still pictures do not show, or only side by side: flicker, a visible edge of the mask, and a pasted face that trembles.

All look at aligned faces (R, R, 3) uint8 RGB, one frame after the other, and hold no more than the last two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from latentsync.face import align, mask
from latentsync.metrics.regions import generated, mouth_box

Picture = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

_FLICKER_BLUR = 1.0  # all lengths below are in pixels of a face of 256
_MEDIAN = 1.4826  # standard deviation over median absolute value, for normal noise
_NOISE = 6**0.5  # standard deviation of f[t-1] - 2 f[t] + f[t+1] over that of independent noise in f

# Points across the mask's edge at which the face is looked at, inside first. The step lies between the middle two, which leaves room for edges that
# are ramps of up to 10 px inside the mask, as this package's paste makes them; the outer two say what slope there is anyway.
_ACROSS = (-14.5, -6.0, 2.5, 11.0)
_LEFT, _RIGHT, _LOW = 60.0, 196.0, 205.0  # columns and row by which the edge is told into its left, right and lower part, and the rest, at the nose
_SPACING = 2.0  # of points along the edge
_ALONG = 7  # points along the edge that are averaged: an edge runs on, texture does not
_CORNER = 6.0  # left out around the outline's corners
_SHARP = 0.75  # cosine of the turn at a corner that interrupts the line; the others are round

_JITTER_BLUR = 1.5
_SHADE = 6.0  # what is softer is light, which a network may draw otherwise without having moved the face
_ROUNDS = 4
_CHEEKS = (0.39, 0.62)  # rows of the cheeks, in sides
_BETWEEN = (0.27, 0.73)  # columns left out: nose and mouth
_TEXTURE = 0.05  # levels a pixel: slope below which the cheeks are too smooth to say where they are


def grey(face: Picture, blur: float) -> Float32Array:
    """(R, R) float32 brightness, blurred by so many pixels of a face of 256."""
    x = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.GaussianBlur(x, (0, 0), blur * len(face) / 256).astype(np.float32)


class Flicker:
    """How much the region of the mouth changes from frame to frame beyond what moves steadily.

    Of each pixel the second difference in time, f[t-1] - 2 f[t] + f[t+1]; of each frame the median of its size, which lips on the move do not reach;
    in levels of the noise, independent from frame to frame, that would give as much.
    """

    def __init__(self) -> None:
        self._made: list[Float32Array] = []
        self._true: list[Float32Array] = []
        self._frames = 0
        self._rows: list[tuple[int, float, float]] = []  # frame, squared level of the made face and of the true one (NaN without)

    def add(self, made: Picture, true: Picture | None = None) -> None:
        """The next frame's face, and the true one's, cut out at the same points."""
        self._frames += 1
        _keep(self._made, _mouth(made))
        if true is None:
            self._true.clear()
        else:
            _keep(self._true, _mouth(true))
        if len(self._made) == 3:
            self._rows.append((self._frames - 2, _unsteady(self._made), _unsteady(self._true) if len(self._true) == 3 else float("nan")))

    def gap(self) -> None:
        """A frame without a face: its neighbours are not compared across it."""
        self._frames += 1
        self._made.clear()
        self._true.clear()

    def values(self) -> dict[str, float]:
        """flicker, in levels; flicker_excess, where there were true faces: what exceeds theirs, negative where it is less (a still mouth)."""
        if not self._rows:
            return {}
        _, made, true = np.array(self._rows).T
        out = {"flicker": float(np.sqrt(made.mean()))}
        known = np.isfinite(true)
        if known.any():
            out["flicker_excess"] = signed_root(float((made - true)[known].mean()))
        return out

    def curve(self, fps: float = 25.0) -> tuple[float, ...]:
        """Flicker of each second; NaN for one without."""
        seconds: list[list[float]] = [[] for _ in range(int(np.ceil(self._frames / fps)))]
        for frame, made, _ in self._rows:
            seconds[min(int(frame / fps), len(seconds) - 1)].append(made)
        return tuple(float(np.sqrt(np.mean(s))) if s else float("nan") for s in seconds)


def _mouth(face: Picture) -> Float32Array:
    rows, columns = mouth_box(len(face))
    return grey(face, _FLICKER_BLUR)[rows, columns]


def _keep(held: list[Float32Array], new: Float32Array) -> None:
    if held and held[0].shape != new.shape:
        held.clear()
    held.append(new)
    del held[:-3]


def _unsteady(three: list[Float32Array]) -> float:
    return float(np.median(np.abs(three[0] - 2 * three[1] + three[2])) * _MEDIAN / _NOISE) ** 2


def signed_root(energy: float) -> float:
    """A difference of energies as an amplitude that keeps its sign."""
    return float(np.copysign(np.sqrt(abs(energy)), energy))


class Seam:
    """How visible the mask's edge is: the step across it, beyond the slope on both sides.

    A mask that shows is a step that runs along the edge and stays there: of each of its four parts (left, right, below, at the nose) and each
    colour the median along it counts, mean over time, so that lines of the face that meet the edge or move across it do not. Where the crop reaches
    beyond the frame, and is grey, nothing counts.
    """

    def __init__(self) -> None:
        self._alone, self._frames = np.zeros((4, 3)), np.zeros((4, 1))
        self._changed, self._sourced = 0.0, 0

    def add(self, made: Picture, source: Picture | None = None) -> None:
        """The next frame's face, and the source's at the same points, where there is one."""
        profile = _profile(len(made))
        seen = profile.across(made.astype(np.float32))
        steps, inside = profile.steps(seen), (np.abs(seen - align.OUTSIDE) > 0.5).any(axis=2).all(axis=0)
        for i, part in enumerate(profile.parts):
            shown = part[inside[part]]
            if len(shown) >= _ALONG:
                self._alone[i] += np.median(steps[shown], axis=0)
                self._frames[i] += 1
        if source is not None:
            along = profile.averaged(profile.steps(profile.across(made.astype(np.float32) - source.astype(np.float32))))
            self._changed += float((along**2).mean(dtype=np.float64))
            self._sourced += 1

    def values(self) -> dict[str, float]:
        """seam: levels of that step, root mean square over parts and colours; untouched faces have 1 to 6, by their looks.

        seam_step, where there was a source: levels of the step in what was changed, mean of 14 px along the edge, root mean square over the edge
        and the frames; 0 where nothing was changed.
        """
        out = {}
        seen = self._frames[:, 0] > 0
        if seen.any():
            out["seam"] = float(np.sqrt(((self._alone[seen] / self._frames[seen]) ** 2).mean()))
        if self._sourced:
            out["seam_step"] = float(np.sqrt(self._changed / self._sourced))
        return out


class Profile(NamedTuple):
    """Places across the mask's edge, at n points along it."""

    columns: Float32Array  # (4, n)
    rows: Float32Array
    runs: tuple[slice, ...]  # stretches of the n points without a corner
    parts: tuple[npt.NDArray[np.intp], ...]  # which of the points lie left, right, below, at the nose

    def across(self, face: Float32Array) -> Float32Array:
        """(R, R, 3) -> (4, n, 3): what lies there, from the inside out."""
        return np.asarray(cv2.remap(face, self.columns, self.rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)

    def steps(self, across: Float32Array) -> Float32Array:
        """(4, n, 3) as `across` gives it -> (n, 3) steps at the edge, out less in, beyond the slope on both sides."""
        far_in, near_in, near_out, far_out = across
        steps: Float32Array = (near_out - near_in) - ((near_in - far_in) + (far_out - near_out)) / 2
        return steps

    def averaged(self, steps: Float32Array) -> Float32Array:
        """(n, 3) -> (m, 3): means of neighbours along the edge, within runs."""
        kernel = np.full((_ALONG, 1), 1 / _ALONG, np.float32)
        rim = _ALONG // 2
        return np.concatenate([cv2.filter2D(steps[run], -1, kernel)[rim:-rim] for run in self.runs])


@lru_cache(maxsize=8)
def _profile(side: int) -> Profile:
    corners = np.array(mask.OUTLINE)
    along = np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(along, axis=1)
    ways = along / lengths[:, None]
    inwards = np.sign(float((corners[:, 0] * np.roll(corners[:, 1], -1) - np.roll(corners[:, 0], -1) * corners[:, 1]).sum()))
    normals = np.stack([ways[:, 1], -ways[:, 0]], axis=1) * inwards  # outwards, whichever way round the outline runs
    sharp = (ways * np.roll(ways, 1, axis=0)).sum(axis=1) < _SHARP  # the corner at which each side begins
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    ends_of_runs = starts[:-1][sharp]
    along_it = np.arange(0.0, starts[-1], _SPACING)
    which = np.searchsorted(starts, along_it, side="right") - 1
    at = corners[which] + ways[which] * (along_it - starts[which])[:, None]
    apart = np.abs((along_it[:, None] - ends_of_runs[None] + starts[-1] / 2) % starts[-1] - starts[-1] / 2).min(axis=1)
    kept = np.flatnonzero(apart >= _CORNER)
    first = int(np.argmax(np.diff(kept) > 1)) + 1  # begin behind a corner, so that the run through the outline's start is one
    kept = np.roll(kept, -first)
    breaks = np.flatnonzero(np.diff(kept) % len(along_it) > 1) + 1
    runs, begin = [], 0
    for end in [*breaks.tolist(), len(kept)]:
        if end - begin >= _ALONG:
            runs.append(slice(begin, end))
        begin = end
    x, y = at[kept].T
    part = np.select([y > _LOW, x < _LEFT, x > _RIGHT], [2, 0, 1], 3)
    places = np.stack([at[kept] + normals[which[kept]] * reach for reach in _ACROSS]) * (side / 256) - 0.5
    columns, rows = (np.ascontiguousarray(places[..., i], np.float32) for i in (0, 1))
    return Profile(columns, rows, tuple(runs), tuple(np.flatnonzero(part == i) for i in range(4)))


class Jitter:
    """Whether the pasted face sits still on the head: where its cheeks lie against the source's, found to a fraction of a pixel in every frame.

    The cheeks beside the nose are made anew too, and move least with speech. A face that is pasted one pixel off has an offset, one that trembles a
    jitter.
    """

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._sum = np.zeros(2)
        self._found, self._changes, self._change = 0, 0, 0.0

    def add(self, made: Picture, source: Picture) -> None:
        """The next frame's face and the source's, cut out at the same points."""
        moved = displacement(made, source)
        if moved is not None:
            self._sum += moved
            self._found += 1
            if self._last is not None:
                self._change += float(((moved - self._last) ** 2).sum())
                self._changes += 1
        self._last = moved

    def gap(self) -> None:
        """A frame without a face."""
        self._last = None

    def values(self) -> dict[str, float]:
        """jitter: standard deviation of the place from frame to frame, as if each were independent; paste_offset: of its mean. Pixels at 256."""
        out = {}
        if self._changes:
            out["jitter"] = float(np.sqrt(self._change / self._changes / 2))
        if self._found:
            out["paste_offset"] = float(np.linalg.norm(self._sum / self._found))
        return out


def displacement(made: Picture, source: Picture) -> np.ndarray | None:
    """(2,) x and y by which the cheeks of one aligned face lie off another's, in pixels of a face of 256; None where they are too smooth to say.

    Least squares on brightness (Lucas and Kanade 1981) without its softest part, so that other light is no movement; good up to some 3 px.
    """
    side = len(made)
    where = _cheeks(side)
    a, b = (grey(face, _JITTER_BLUR) - grey(face, _SHADE) for face in (made, source))
    moved = np.zeros(2)
    for _ in range(_ROUNDS):
        shifted = cv2.warpAffine(
            b, np.array([[1, 0, moved[0]], [0, 1, moved[1]]]), (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        across = (cv2.Sobel(shifted, cv2.CV_32F, 1, 0, ksize=3) / 8)[where].astype(np.float64)
        down = (cv2.Sobel(shifted, cv2.CV_32F, 0, 1, ksize=3) / 8)[where].astype(np.float64)
        difference = (a - shifted)[where].astype(np.float64)
        system = np.stack([across, down, np.ones_like(across)])
        products = system @ system.T
        if np.linalg.eigvalsh(products[:2, :2] / across.size)[0] < _TEXTURE**2:
            return None
        step = -np.linalg.solve(products, system @ difference)[:2]
        moved = np.clip(moved + step, -0.05 * side, 0.05 * side)
    return np.asarray(moved * (256 / side))


@lru_cache(maxsize=8)
def _cheeks(side: int) -> npt.NDArray[np.bool_]:
    """(side, side): of what is made anew, the part beside the nose, a little inside the mask."""
    rim = 2 * max(1, round(side / 64)) + 1
    inside = cv2.erode(generated(side).astype(np.uint8), np.ones((rim, rim), np.uint8), borderValue=0) > 0
    rows, columns = np.mgrid[:side, :side] / side
    found: npt.NDArray[np.bool_] = inside & (rows > _CHEEKS[0]) & (rows < _CHEEKS[1]) & ((columns < _BETWEEN[0]) | (columns > _BETWEEN[1]))
    return found
