"""How the samples of a picture are laid out and what colours they mean.

Inside the program a picture is always planar: gray, Y'CbCr or G-B-R planes of 8 to 16 bits. What a decoder gives in another
arrangement (packed, semi-planar, big-endian, palette) is permuted to the planar form of the same depth and subsampling, which loses nothing.

Sources: ITU-R BT.601-7, BT.709-6, BT.2020-2 (matrices and ranges), ITU-T H.273 (code points).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

import av
import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

Plane = np.ndarray  # (rows, columns) uint8, or uint16 above 8 bits
Patched = tuple[int, int, int, np.ndarray]  # plane, row, column, the samples that stand there instead

# H.273 matrix code -> (Kr, Kb)
_MATRICES = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
UNSPECIFIED = 2
FULL_RANGE = 2
LIMITED_RANGE = 1

_SUBSAMPLING = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
_DEPTHS = (8, 9, 10, 12, 14, 16)
_PACKED = {
    "rgb24": "RGB", "bgr24": "BGR", "rgba": "RGBA", "bgra": "BGRA", "argb": "ARGB", "abgr": "ABGR", "rgb0": "RGBX", "bgr0": "BGRX", "0rgb": "XRGB",
    "0bgr": "XBGR", "rgb48": "RGB", "bgr48": "BGR", "rgba64": "RGBA", "bgra64": "BGRA", "ya8": "YA", "ya16": "YA",
}  # fmt: skip
_SEMI_PLANAR = {"nv12": ("UV", 0), "nv21": ("VU", 0), "nv16": ("UV", 0), "nv24": ("UV", 0), "nv42": ("VU", 0), "p010": ("UV", 6), "p210": ("UV", 6),
                "p410": ("UV", 6), "p012": ("UV", 4), "p212": ("UV", 4), "p412": ("UV", 4)}  # fmt: skip


@dataclass(frozen=True)
class Colour:
    """H.273 code points as they stand in the file; 2 means unspecified (range: 0)."""

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED


@dataclass(frozen=True)
class Layout:
    """Arrangement and meaning of a planar picture's samples."""

    family: Literal["gray", "yuv", "rgb"]
    bits: int = 8
    sub_x: int = 0  # log2 of luma columns per chroma column
    sub_y: int = 0  # log2 of luma rows per chroma row
    full: bool = False  # full range (0..2^n-1) instead of 16..235
    kr: float = 0.299
    kb: float = 0.114

    @property
    def name(self) -> str:
        """FFmpeg's name of the pixel format (the range is not part of it)."""
        depth = "" if self.bits == 8 else f"{self.bits}le"
        if self.family == "gray":
            return f"gray{depth}"
        if self.family == "rgb":
            return f"gbrp{depth}"
        return f"yuv{_SUBSAMPLING[self.sub_x, self.sub_y]}p{depth}"

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def top(self) -> int:
        """Largest sample value."""
        return (1 << self.bits) - 1

    @property
    def luma(self) -> tuple[float, float]:
        """(offset, scale): a luma, gray or RGB sample v is the level (v - offset) * scale on 0..255."""
        if self.full or self.family == "rgb":
            return 0.0, 255.0 / self.top
        step = 1 << (self.bits - 8)
        return 16.0 * step, 255.0 / (219.0 * step)

    @property
    def chroma(self) -> tuple[float, float]:
        """(offset, scale): a chroma sample v is the difference (v - offset) * scale on -127.5..127.5."""
        step = 1 << (self.bits - 8)
        return 128.0 * step, 255.0 / self.top if self.full else 255.0 / (224.0 * step)

    def shape(self, plane: int, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of a plane for a picture of that size."""
        if self.family == "yuv" and plane:
            return -(-height >> self.sub_y), -(-width >> self.sub_x)
        return height, width

    @property
    def planes(self) -> int:
        return 1 if self.family == "gray" else 3

    def frame_bytes(self, width: int, height: int) -> int:
        """Memory of one picture."""
        total = sum(h * w for h, w in (self.shape(i, width, height) for i in range(self.planes)))
        return total * (1 if self.bits == 8 else 2)

    def without_subsampling(self) -> Layout:
        return replace(self, sub_x=0, sub_y=0)


def matrix_coefficients(code: int, width: int, height: int) -> tuple[float, float]:
    """(Kr, Kb) for a matrix code; an unspecified one is guessed as players do: BT.709 from HD sizes on, else BT.601."""
    if code in _MATRICES:
        return _MATRICES[code]
    return _MATRICES[1 if guess_is_hd(width, height) else 6]


def guess_is_hd(width: int, height: int) -> bool:
    """Whether an untagged picture of that size is taken for HD (portrait ones count by their long side)."""
    return max(width, height) >= 1280 or min(width, height) > 576


def layout_of(pixel_format: str, colour: Colour, width: int, height: int, *, image: bool = False) -> tuple[Layout, bool]:
    """(planar layout that holds everything a pixel format can express, whether it carries alpha).

    `image`: gray without a range tag is full range, as still formats mean it.
    """
    fmt = VideoFormat(pixel_format, 64, 64)
    kr, kb = matrix_coefficients(colour.matrix, width, height)
    if fmt.has_palette:
        return Layout("rgb", full=True, kr=kr, kb=kb), True
    colours = [c for c in fmt.components if not c.is_alpha]
    alpha = len(colours) < len(fmt.components)
    depth = max((c.bits for c in colours), default=8)
    bits = next((d for d in _DEPTHS if d >= depth), 16)
    full = colour.range == FULL_RANGE or pixel_format.startswith("yuvj")
    if fmt.is_rgb or fmt.is_bayer or pixel_format.startswith("xyz"):
        return Layout("rgb", bits, full=True, kr=kr, kb=kb), alpha
    if len(colours) == 1:
        if bits == 8 and depth < 8:  # black-and-white bitmaps
            full = True
        return Layout("gray", bits, full=full or (image and colour.range != LIMITED_RANGE), kr=kr, kb=kb), alpha
    sub_x = (64 // fmt.chroma_width(64)).bit_length() - 1
    sub_y = (64 // fmt.chroma_height(64)).bit_length() - 1
    if (sub_x, sub_y) not in _SUBSAMPLING or (bits > 8 and (sub_x > 1 or sub_y > sub_x)):
        sub_x = sub_y = 0
    return Layout("yuv", bits, sub_x, sub_y, full, kr, kb), alpha


def read_planes(frame: VideoFrame, layout: Layout, alpha: bool) -> tuple[Plane, ...]:
    """Private copies of a decoded frame's planes in `layout` (as `layout_of` gave it). Transparency is shown over white."""
    planes = _read(frame, layout, alpha)
    if len(planes) > layout.planes:
        planes = _over_white(planes, layout)
    return tuple(planes)


def _read(frame: VideoFrame, layout: Layout, alpha: bool) -> list[Plane]:
    name = frame.format.name.replace("yuvj", "yuv")
    base, big = (name[:-2], name.endswith("be")) if name.endswith(("le", "be")) else (name, False)
    if base in _PACKED:
        order = _PACKED[base]
        wide = base.endswith(("48", "64", "16"))
        samples = _samples(frame, 0, (">u2" if big else "<u2") if wide else "u1", len(order))
        pick = "Y" if layout.family == "gray" else "GBR"
        pick += "A" if "A" in order else ""
        return [_native(samples[:, :, order.index(c)]) for c in pick]
    if base in _SEMI_PLANAR and sys.byteorder == "little" and not big:
        order, shift = _SEMI_PLANAR[base]
        kind = "<u2" if base.startswith("p") else "u1"
        luma, both = _samples(frame, 0, kind, 1)[:, :, 0], _samples(frame, 1, kind, 2)
        found = [luma, both[:, :, order.index("U")], both[:, :, order.index("V")]]
        return [_native(p >> shift if shift else p) for p in found]
    target = planar_name(layout, alpha)
    if name != target:
        frame = frame.reformat(format=target)
    kind = "u1" if layout.bits == 8 else "<u2"
    return [_native(_samples(frame, i, kind, 1)[:, :, 0]) for i in range(len(frame.planes))]


def planar_name(layout: Layout, alpha: bool) -> str:
    """Pixel format that a frame is read through; with alpha, one that has an alpha plane where FFmpeg knows one."""
    if not alpha:
        return layout.name
    for candidate in (layout.name.replace("yuv", "yuva").replace("gbrp", "gbrap"), layout.name):
        if candidate != layout.name:
            try:
                VideoFormat(candidate)
            except ValueError:
                continue
        return candidate
    return layout.name


def _samples(frame: VideoFrame, index: int, kind: str, per_pixel: int) -> np.ndarray:
    """(rows, columns, per_pixel) view on the memory of a plane."""
    plane = frame.planes[index]
    item = np.dtype(kind).itemsize
    rows, columns = plane.height, plane.width
    return _lines(plane, rows)[:, : columns * per_pixel * item].view(kind).reshape(rows, columns, per_pixel)


def _lines(plane: VideoPlane, rows: int) -> np.ndarray:
    """(rows, bytes per row) view on the memory of a plane, padding included."""
    memory: Any = plane
    return np.frombuffer(memory, np.uint8)[: rows * plane.line_size].reshape(rows, plane.line_size)


def _native(samples: np.ndarray) -> Plane:
    return np.array(samples, dtype=samples.dtype.newbyteorder("="), order="C", copy=True)


def _over_white(planes: list[Plane], layout: Layout) -> list[Plane]:
    *colours, opacity = planes
    if int(opacity.min()) == layout.top:
        return colours
    out: list[Plane] = []
    for i, plane in enumerate(colours):
        chroma = layout.family == "yuv" and i > 0
        white = layout.chroma[0] if chroma else layout.luma[0] + 255.0 / layout.luma[1]
        weight = opacity.astype(np.float32) / layout.top
        if chroma:
            weight = block_mean(weight, layout.sub_x, layout.sub_y)
        mixed = np.rint(plane * weight + white * (1 - weight))
        out.append(np.where(weight == 1, plane, np.clip(mixed, 0, layout.top)).astype(layout.dtype))
    return out


def block_mean(values: np.ndarray, sub_x: int, sub_y: int) -> np.ndarray:
    """(h, w) -> (ceil(h / 2^sub_y), ceil(w / 2^sub_x)): mean over the pixels that share a chroma sample; edge blocks count only pixels that exist."""
    if not sub_x and not sub_y:
        return values
    return block_sum(values, sub_x, sub_y) / block_sum(np.ones_like(values), sub_x, sub_y)


def block_sum(values: np.ndarray, sub_x: int, sub_y: int) -> np.ndarray:
    """As `block_mean`, the sum."""
    bx, by = 1 << sub_x, 1 << sub_y
    h, w = values.shape
    if h % by or w % bx:
        values = np.pad(values, ((0, -h % by), (0, -w % bx)))
    out = values[0::by]
    for k in range(1, by):
        out = out + values[k::by]
    total = out[:, 0::bx]
    for k in range(1, bx):
        total = total + out[:, k::bx]
    return total


def write_frame(planes: tuple[Plane, ...], layout: Layout, pixel_format: str, patches: tuple[Patched, ...] = ()) -> VideoFrame:
    """A libav frame with these samples. `pixel_format` is the layout's own name, or `bgr0` for 8-bit RGB (what FFV1 takes)."""
    height, width = planes[0].shape
    frame = VideoFrame(width, height, pixel_format)
    if pixel_format == "bgr0":
        lines = _lines(frame.planes[0], height)[:, : 4 * width]
        lines[:, 3::4] = 255
        for i, byte in enumerate((1, 0, 2)):
            lines[:, byte::4] = planes[i]
        for i, y, x, samples in patches:
            byte = (1, 0, 2)[i]
            lines[y : y + samples.shape[0], 4 * x + byte : 4 * (x + samples.shape[1]) : 4] = samples
        return frame
    whole = [(i, 0, 0, plane) for i, plane in enumerate(planes)]
    for i, y, x, samples in (*whole, *patches):
        stored = np.ascontiguousarray(samples if samples.itemsize == 1 else samples.astype("<u2", copy=False))
        lines = _lines(frame.planes[i], planes[i].shape[0])
        lines[y : y + samples.shape[0], x * stored.itemsize : (x + samples.shape[1]) * stored.itemsize] = stored.view(np.uint8)
    return frame


def supported_formats(codec: str) -> list[str]:
    """Pixel formats that an encoder of this libav takes."""
    return [f.name for f in av.Codec(codec, "w").video_formats or []]
