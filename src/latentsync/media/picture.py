"""One decoded frame in its native samples: read regions as RGB, blend a patch in, leave every other sample as it was.

Chroma is read by repeating each sample over the pixels it covers and written by averaging over those same pixels, so reading and
writing back changes nothing beyond rounding, and a region's values never depend on what lies around it.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np

from latentsync.media.layout import Layout, Patched, Plane, block_mean, block_sum

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, half-open, pixels

_STRIP = 64  # rows converted at a time: the working set then stays in cache


class Picture:
    """An upright picture of `height` x `width` pixels as planes in their native depth and subsampling. Immutable."""

    __slots__ = ("_patches", "_planes", "height", "layout", "pixel_aspect", "width")

    def __init__(self, planes: tuple[Plane, ...], layout: Layout, pixel_aspect: Fraction = Fraction(1)) -> None:
        """`planes`: (rows, columns) arrays as `layout` says: Y, Y-U-V or G-B-R; they are kept, not copied."""
        self.height, self.width = (int(n) for n in planes[0].shape)
        for i, plane in enumerate(planes):
            if plane.shape != layout.shape(i, self.width, self.height) or plane.dtype != layout.dtype:
                needed = layout.shape(i, self.width, self.height)
                raise ValueError(f"plane {i} is {plane.shape} {plane.dtype}; {layout.name} needs {needed} {layout.dtype.__name__}")
            plane.setflags(write=False)
        self._planes = planes
        self._patches: tuple[Patched, ...] = ()
        self.layout = layout
        self.pixel_aspect = pixel_aspect

    @property
    def planes(self) -> tuple[Plane, ...]:
        """(rows, columns) arrays as the layout says. Of a blended picture they are made when first asked for."""
        if self._patches:
            planes = [p.copy() for p in self._planes]
            for i, y, x, samples in self._patches:
                planes[i][y : y + samples.shape[0], x : x + samples.shape[1]] = samples
            for plane in planes:
                plane.setflags(write=False)
            self._planes, self._patches = tuple(planes), ()
        return self._planes

    @property
    def parts(self) -> tuple[tuple[Plane, ...], tuple[Patched, ...]]:
        """(planes without what was blended in, the changed regions): lets the writer copy a large frame once instead of twice."""
        return self._planes, self._patches

    def rgb(self, box: Box | None = None) -> np.ndarray:
        """(h, w, 3) uint8 RGB of a region (default: everything). Costs what the region costs. The box must lie within the picture."""
        x0, y0, x1, y1 = box or (0, 0, self.width, self.height)
        if not (0 <= x0 <= x1 <= self.width and 0 <= y0 <= y1 <= self.height):
            raise ValueError(f"box {box} is not within the picture of {self.width}x{self.height}")
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        if out.size == 0:
            return out
        lay = self.layout
        first = y0 >> lay.sub_y << lay.sub_y  # strips begin where chroma rows begin
        for top in range(first, y1, _STRIP):
            a, b = max(top, y0), min(top + _STRIP, y1)
            self._rgb_rows((x0, a, x1, b), out[a - y0 : b - y0])
        return out

    def _rgb_rows(self, box: Box, out: np.ndarray) -> None:
        x0, y0, x1, y1 = box
        lay = self.layout
        luma = self.planes[0][y0:y1, x0:x1]
        if lay.family == "yuv":
            cx0, cy0 = x0 >> lay.sub_x, y0 >> lay.sub_y
            cx1, cy1 = ((x1 - 1) >> lay.sub_x) + 1, ((y1 - 1) >> lay.sub_y) + 1
            dx, dy = x0 - (cx0 << lay.sub_x), y0 - (cy0 << lay.sub_y)
            u, v = (p[cy0:cy1, cx0:cx1] for p in self.planes[1:])
            parts = _chroma_rgb(u, v, lay)
            full = [_spread(p, lay.sub_x, lay.sub_y)[dy : dy + y1 - y0, dx : dx + x1 - x0] for p in parts]
            _combine(luma, full, lay, out)
        elif lay.family == "gray":
            out[:] = _level(luma, lay)[:, :, None]
        else:
            for channel, plane in zip((1, 2, 0), self.planes, strict=True):
                out[:, :, channel] = _level(plane[y0:y1, x0:x1], lay)

    def small(self, max_side: int) -> np.ndarray:
        """(h', w', 3) uint8 RGB with max(h', w') <= max_side, averaged over areas; never larger than the picture."""
        scale = max_side / max(self.width, self.height)
        if scale >= 1:
            return self.rgb()
        width, height = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        planes = [_shrink(p, width, height) for p in self.planes]
        lay = self.layout.without_subsampling()
        out = np.empty((height, width, 3), np.uint8)
        if lay.family == "yuv":
            _combine(planes[0], _chroma_rgb(planes[1], planes[2], lay), lay, out)
        elif lay.family == "gray":
            out[:] = _level(planes[0], lay)[:, :, None]
        else:
            for channel, plane in zip((1, 2, 0), planes, strict=True):
                out[:, :, channel] = _level(plane, lay)
        return out

    def blend(self, box: Box, rgb: np.ndarray, alpha: np.ndarray) -> Picture:
        """A new picture with `rgb` (h, w, 3) float32 0..255 mixed in by `alpha` (h, w) 0..1 over the box.

        A sample whose pixels all have alpha 0 stays bit-identical. Parts of the box outside the picture are ignored.
        """
        x0, y0, x1, y1 = box
        if rgb.shape[:2] != (y1 - y0, x1 - x0) or alpha.shape != rgb.shape[:2]:
            raise ValueError(f"box {box} does not fit rgb {rgb.shape} and alpha {alpha.shape}")
        cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height)
        touched = np.argwhere(alpha[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] > 0) if cx0 < cx1 and cy0 < cy1 else np.empty((0, 2))
        if not len(touched):
            return self
        rgb = np.asarray(rgb[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0], np.float32)
        alpha = np.clip(np.asarray(alpha[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0], np.float32), 0, 1)
        box = (cx0, cy0, cx1, cy1)
        patches: list[Patched] = []
        lay = self.layout
        if lay.family == "rgb":
            for i, channel in enumerate((1, 2, 0)):
                region = self.planes[i][cy0:cy1, cx0:cx1]
                patches.append((i, cy0, cx0, _mixed(region, rgb[:, :, channel], alpha, lay.luma, lay.top)))
        else:
            y, u, v = _ycc(rgb, lay)
            patches.append((0, cy0, cx0, _mixed(self.planes[0][cy0:cy1, cx0:cx1], y, alpha, lay.luma, lay.top)))
            if lay.family == "yuv":
                patches += [self._mixed_chroma(1, u, alpha, box), self._mixed_chroma(2, v, alpha, box)]
        out = Picture(self.planes, lay, self.pixel_aspect)
        out._patches = tuple(patches)
        return out

    def _mixed_chroma(self, index: int, value: np.ndarray, alpha: np.ndarray, box: Box) -> Patched:
        x0, y0, x1, y1 = box
        lay = self.layout
        bx, by = 1 << lay.sub_x, 1 << lay.sub_y
        gx0, gy0 = x0 >> lay.sub_x, y0 >> lay.sub_y
        gx1, gy1 = ((x1 - 1) >> lay.sub_x) + 1, ((y1 - 1) >> lay.sub_y) + 1
        right, bottom = min(gx1 * bx, self.width), min(gy1 * by, self.height)
        pad = ((y0 - gy0 * by, bottom - y1), (x0 - gx0 * bx, right - x1))
        weight = np.pad(alpha, pad)
        count = block_sum(np.ones_like(weight), lay.sub_x, lay.sub_y)
        total = block_sum(weight, lay.sub_x, lay.sub_y)
        wanted = np.where(weight > 0, weight * np.pad(value, pad), 0)
        mean = block_sum(wanted, lay.sub_x, lay.sub_y) / np.where(total > 0, total, 1)
        return index, gy0, gx0, _mixed(self.planes[index][gy0:gy1, gx0:gx1], mean, total / count, lay.chroma, lay.top)

    def to(self, layout: Layout) -> Picture:
        """The same picture in another layout. Samples change only as far as the layouts differ: chroma is repeated or averaged, depth scaled."""
        if layout == self.layout:
            return self
        mine = self.layout
        if mine.family == "rgb" and layout.family == "rgb":
            return Picture(tuple(_rescale(p, mine.luma, layout.luma, layout) for p in self.planes), layout, self.pixel_aspect)
        if mine.family == "rgb":
            scale = mine.luma[1]
            g, b, r = (p.astype(np.float32) * np.float32(scale) for p in self.planes)
            y, u, v = _ycc(np.stack((r, g, b), axis=-1), layout)
            planes = [_quantise(y, layout.luma, layout)]
            if layout.family == "yuv":
                planes += [_quantise(block_mean(c, layout.sub_x, layout.sub_y), layout.chroma, layout) for c in (u, v)]
            return Picture(tuple(planes), layout, self.pixel_aspect)
        if layout.family == "rgb":
            rgb = self.rgb()
            depth8 = replace(layout, bits=8)
            out = Picture(tuple(np.ascontiguousarray(rgb[:, :, c]) for c in (1, 2, 0)), depth8, self.pixel_aspect)
            return out.to(layout)
        planes = [_rescale(self.planes[0], mine.luma, layout.luma, layout)]
        if layout.family == "yuv":
            shape = layout.shape(1, self.width, self.height)
            for i in (1, 2):
                if mine.family == "gray":
                    planes.append(np.full(shape, int(layout.chroma[0]), layout.dtype))
                    continue
                plane = self.planes[i]
                if (mine.sub_x, mine.sub_y) != (layout.sub_x, layout.sub_y):
                    whole = _spread(plane, mine.sub_x, mine.sub_y)[: self.height, : self.width]
                    if layout.sub_x or layout.sub_y:
                        plane = np.rint(block_mean(whole.astype(np.float32), layout.sub_x, layout.sub_y)).astype(plane.dtype)
                    else:
                        plane = whole
                planes.append(_rescale(plane, mine.chroma, layout.chroma, layout))
        return Picture(tuple(np.ascontiguousarray(p) for p in planes), layout, self.pixel_aspect)


def square(picture: Picture) -> Picture:
    """The picture with square pixels: rows or columns are added (cubic), none are lost."""
    aspect, lay = picture.pixel_aspect, picture.layout
    if aspect == 1:
        return picture
    width, height = (round(picture.width * aspect), picture.height) if aspect > 1 else (picture.width, round(picture.height / aspect))
    planes = []
    for i, plane in enumerate(picture.planes):
        rows, columns = lay.shape(i, width, height)
        planes.append(np.minimum(cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_CUBIC), lay.top).astype(lay.dtype, copy=False))
    return Picture(tuple(planes), lay)


def orient(picture: Picture, transpose: bool, flip_x: bool, flip_y: bool) -> Picture:
    """The picture transposed, then mirrored left-right and top-bottom: a permutation of samples.

    Where the chroma grid cannot follow (4:2:2 and the like transposed, odd sizes mirrored), chroma is first repeated to 4:4:4.
    """
    lay = oriented_layout(picture.layout, picture.width, picture.height, transpose, flip_x, flip_y)
    if (lay.sub_x, lay.sub_y) != (picture.layout.sub_x, picture.layout.sub_y):
        picture = picture.to(lay)
    planes = []
    for plane in picture.planes:
        p = plane.T if transpose else plane
        p = p[:, ::-1] if flip_x else p
        planes.append(np.ascontiguousarray(p[::-1] if flip_y else p))
    aspect = 1 / picture.pixel_aspect if transpose else picture.pixel_aspect
    return Picture(tuple(planes), lay, aspect)


def oriented_layout(layout: Layout, width: int, height: int, transpose: bool, flip_x: bool, flip_y: bool) -> Layout:
    """Layout after `orient`; `width` and `height` are those before."""
    if layout.family != "yuv":
        return layout
    if transpose:
        width, height = height, width
    broken = transpose and layout.sub_x != layout.sub_y
    broken |= flip_x and width % (1 << layout.sub_x) != 0
    broken |= flip_y and height % (1 << layout.sub_y) != 0
    return layout.without_subsampling() if broken else layout


def _level(samples: np.ndarray, lay: Layout) -> np.ndarray:
    offset, scale = lay.luma
    if scale == 1 and offset == 0:
        return samples.astype(np.uint8)
    level = (samples.astype(np.float32) - np.float32(offset)) * np.float32(scale)
    return np.clip(np.rint(level), 0, 255).astype(np.uint8)


def _chroma_rgb(u: np.ndarray, v: np.ndarray, lay: Layout) -> list[np.ndarray]:
    """What chroma adds to R, G and B, at the chroma planes' own size, float32."""
    offset, scale = lay.chroma
    kg = 1 - lay.kr - lay.kb
    fu = u.astype(np.float32) - np.float32(offset)
    fv = v.astype(np.float32) - np.float32(offset)
    red = fv * np.float32(2 * (1 - lay.kr) * scale)
    blue = fu * np.float32(2 * (1 - lay.kb) * scale)
    green = fu * np.float32(-2 * lay.kb * (1 - lay.kb) / kg * scale) + fv * np.float32(-2 * lay.kr * (1 - lay.kr) / kg * scale)
    return [red, green, blue]


def _combine(luma: np.ndarray, parts: list[np.ndarray], lay: Layout, out: np.ndarray) -> None:
    offset, scale = lay.luma
    y = (luma.astype(np.float32) - np.float32(offset)) * np.float32(scale)
    for channel, part in enumerate(parts):
        total = y + part
        np.rint(total, out=total)
        np.clip(total, 0, 255, out=total)
        out[:, :, channel] = total


def _spread(plane: np.ndarray, sub_x: int, sub_y: int) -> np.ndarray:
    if sub_y:
        plane = np.repeat(plane, 1 << sub_y, axis=0)
    return np.repeat(plane, 1 << sub_x, axis=1) if sub_x else plane


def _shrink(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    smaller = width <= plane.shape[1] and height <= plane.shape[0]
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _ycc(rgb: np.ndarray, lay: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(h, w, 3) float RGB 0..255 -> luma 0..255 and the two colour differences -127.5..127.5, float32."""
    rgb = np.clip(rgb, 0, 255)
    r, g, b = (rgb[:, :, i] for i in range(3))
    y = r * np.float32(lay.kr) + g * np.float32(1 - lay.kr - lay.kb) + b * np.float32(lay.kb)
    return y, (b - y) * np.float32(0.5 / (1 - lay.kb)), (r - y) * np.float32(0.5 / (1 - lay.kr))


def _mixed(samples: np.ndarray, level: np.ndarray, alpha: np.ndarray, code: tuple[float, float], top: int) -> np.ndarray:
    """old + alpha * (new - old) where alpha > 0, and the old samples elsewhere."""
    offset, scale = code
    wanted = level / np.float32(scale) + np.float32(offset)
    old = samples.astype(np.float32)
    mixed = np.clip(np.rint(old + alpha * (wanted - old)), 0, top)
    return np.where(alpha > 0, mixed, old).astype(samples.dtype)


def _quantise(level: np.ndarray, code: tuple[float, float], lay: Layout) -> Plane:
    return np.clip(np.rint(level / np.float32(code[1]) + np.float32(code[0])), 0, lay.top).astype(lay.dtype)


def _rescale(plane: np.ndarray, source: tuple[float, float], target: tuple[float, float], lay: Layout) -> Plane:
    """Samples coded by (offset, scale) `source` recoded as `target`."""
    if source == target:
        return plane.astype(lay.dtype, copy=False)
    factor = source[1] / target[1]
    shift = int(np.rint(np.log2(factor)))
    if shift > 0 and abs(factor - (1 << shift)) < 1e-9 and abs(source[0] * factor - target[0]) < 1e-6:
        return np.left_shift(plane, shift, dtype=np.uint16)
    value = (plane.astype(np.float64) - source[0]) * factor + target[0]
    return np.clip(np.rint(value), 0, lay.top).astype(lay.dtype)
