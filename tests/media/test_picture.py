"""Pictures: regions, blending and conversions against the definitions of the colour systems."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from latentsync.media.layout import Colour, Layout, layout_of, read_planes, write_frame
from latentsync.media.picture import Picture, orient

LAYOUTS = [
    Layout("gray", 8, full=True),
    Layout("gray", 10),
    Layout("yuv", 8, 1, 1),
    Layout("yuv", 8, 1, 1, full=True),
    Layout("yuv", 10, 1, 1, kr=0.2627, kb=0.0593),
    Layout("yuv", 8, 1, 0, kr=0.2126, kb=0.0722),
    Layout("yuv", 12, 0, 0),
    Layout("yuv", 8, 0, 1),
    Layout("yuv", 8, 2, 0),
    Layout("yuv", 8, 2, 2),
    Layout("rgb", 8, full=True),
    Layout("rgb", 12, full=True),
]
IDS = [f"{lay.name}{'-full' if lay.full else ''}" for lay in LAYOUTS]


def noise(layout: Layout, width: int = 37, height: int = 29, seed: int = 0) -> Picture:
    rng = np.random.default_rng(seed)
    planes = tuple(rng.integers(0, layout.top + 1, layout.shape(i, width, height)).astype(layout.dtype) for i in range(layout.planes))
    return Picture(planes, layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_a_region_has_the_values_of_the_whole(layout: Layout) -> None:
    picture = noise(layout, 150, 141)
    whole = picture.rgb()
    assert whole.shape == (141, 150, 3)
    rng = np.random.default_rng(1)
    for _ in range(25):
        x0, x1 = sorted(rng.integers(0, 151, 2))
        y0, y1 = sorted(rng.integers(0, 142, 2))
        np.testing.assert_array_equal(picture.rgb((x0, y0, x1, y1)), whole[y0:y1, x0:x1])


@pytest.mark.parametrize(("kr", "kb"), [(0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)])
@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
def test_rgb_follows_the_definition_of_the_matrix(kr: float, kb: float, bits: int, full: bool) -> None:
    """Colours coded by the formulas of BT.601/709/2020 in double precision come back within one level."""
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (16, 16, 3)).astype(np.float64)
    r, g, b = (rgb[..., i] / 255 for i in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    scale = 2 ** (bits - 8)
    top = 2**bits - 1
    if full:
        coded = [y * top, cb * top + 128 * scale, cr * top + 128 * scale]
    else:
        coded = [(219 * y + 16) * scale, (224 * cb + 128) * scale, (224 * cr + 128) * scale]
    layout = Layout("yuv", bits, 0, 0, full, kr, kb)
    planes = tuple(np.clip(np.rint(c), 0, top).astype(layout.dtype) for c in coded)
    error = np.abs(Picture(planes, layout).rgb().astype(int) - rgb)
    assert error.max() <= (2 if bits == 8 else 1)
    assert error.mean() < 0.6


def test_rgb_agrees_with_swscale() -> None:
    y, x = np.mgrid[0:48, 0:64]
    smooth = np.stack((x * 4, y * 5, (x + y) * 2), axis=-1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(smooth, "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    layout, alpha = layout_of("yuv420p", Colour(matrix=1), 64, 48)
    mine = Picture(read_planes(frame, layout, alpha), layout).rgb()
    theirs = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    assert np.abs(mine.astype(int) - theirs).max() <= 3


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_blend_leaves_untouched_samples_bit_identical(layout: Layout) -> None:
    picture = noise(layout)
    rng = np.random.default_rng(3)
    before = [p.copy() for p in picture.planes]
    for box in [(5, 3, 22, 20), (0, 0, 37, 29), (30, 20, 37, 29), (7, 9, 8, 10), (-4, -3, 6, 8), (33, 25, 45, 40)]:
        x0, y0, x1, y1 = box
        alpha = rng.random((y1 - y0, x1 - x0)).astype(np.float32) * (rng.random((y1 - y0, x1 - x0)) > 0.7)
        mixed = picture.blend(box, rng.random((y1 - y0, x1 - x0, 3)).astype(np.float32) * 255, alpha)
        on = np.zeros((29, 37), bool)
        cx0, cy0 = max(x0, 0), max(y0, 0)
        part = alpha[cy0 - y0 : 29 - y0, cx0 - x0 : 37 - x0] > 0
        on[cy0 : cy0 + part.shape[0], cx0 : cx0 + part.shape[1]] = part
        for i, (old, new) in enumerate(zip(before, mixed.planes, strict=True)):
            sx, sy = (layout.sub_x, layout.sub_y) if layout.family == "yuv" and i else (0, 0)
            padded = np.pad(on, ((0, -29 % (1 << sy)), (0, -37 % (1 << sx))))
            touched = padded.reshape(old.shape[0], 1 << sy, old.shape[1], 1 << sx).any(axis=(1, 3))
            np.testing.assert_array_equal(new[~touched], old[~touched])
            np.testing.assert_array_equal(picture.planes[i], old)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_blending_a_pictures_own_rgb_changes_next_to_nothing(layout: Layout) -> None:
    """Reading and writing are inverse: within what 8-bit RGB can hold, for colours inside the RGB cube."""
    rng = np.random.default_rng(4)
    rgb = Layout("rgb", 8, full=True)
    source = Picture(tuple(rng.integers(30, 220, (28, 36)).astype(np.uint8) for _ in range(3)), rgb)
    if layout.family == "yuv" and (layout.sub_x or layout.sub_y):  # one colour per chroma sample keeps them inside
        source = Picture(tuple(np.kron(p[:7, :9], np.ones((4, 4), np.uint8)) for p in source.planes), rgb)
    picture = source.to(layout)
    box = (3, 2, 31, 26)
    again = picture.blend(box, picture.rgb(box).astype(np.float32), np.ones((24, 28), np.float32))
    step = 1 << (layout.bits - 8)
    for old, new in zip(picture.planes, again.planes, strict=True):
        assert np.abs(old.astype(int) - new.astype(int)).max() <= step
    assert np.abs(again.rgb().astype(int) - picture.rgb()).max() <= 2


def test_full_alpha_writes_the_colour_and_half_alpha_the_mean() -> None:
    layout = Layout("rgb", 8, full=True)
    picture = Picture(tuple(np.full((8, 8), 100, np.uint8) for _ in range(3)), layout)
    rgb = np.full((4, 4, 3), (10, 200, 50), np.float32)
    done = picture.blend((2, 2, 6, 6), rgb, np.full((4, 4), 0.5, np.float32)).rgb()
    assert done[3, 3].tolist() == [55, 150, 75]
    assert done[0, 0].tolist() == [100, 100, 100]


def test_chroma_is_weighted_by_the_alpha_of_its_own_pixels() -> None:
    layout = Layout("yuv", 8, 1, 1)
    picture = Picture((np.full((4, 4), 100, np.uint8), np.full((2, 2), 128, np.uint8), np.full((2, 2), 128, np.uint8)), layout)
    red = np.zeros((1, 1, 3), np.float32)
    red[...] = (255, 0, 0)
    done = picture.blend((1, 1, 2, 2), red, np.ones((1, 1), np.float32))
    assert done.planes[2].tolist() == [[round(128 + (240 - 128) / 4), 128], [128, 128]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_small_is_an_area_mean_and_never_enlarges(layout: Layout) -> None:
    picture = noise(layout, 160, 90)
    assert picture.small(500).shape == (90, 160, 3)
    small = picture.small(40)
    assert max(small.shape[:2]) == 40
    flat = Picture(tuple(np.full(p.shape, 3 * layout.top // 7, layout.dtype) for p in picture.planes), layout)
    np.testing.assert_array_equal(flat.small(40)[0, 0], flat.rgb()[0, 0])


def test_a_region_costs_the_same_in_a_large_frame() -> None:
    layout = Layout("yuv", 8, 1, 1)
    box = (100, 100, 400, 400)

    def seconds(width: int, height: int) -> float:
        picture = noise(layout, width, height)
        picture.rgb(box)
        best = 9.0
        for _ in range(7):
            start = time.perf_counter()
            picture.rgb(box)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(3840, 2160) < 3 * seconds(640, 480) + 0.002


@pytest.mark.parametrize("turn", [(t, x, y) for t in (False, True) for x in (False, True) for y in (False, True)])
@pytest.mark.parametrize("layout", [LAYOUTS[2], LAYOUTS[5], LAYOUTS[6], LAYOUTS[10]], ids=lambda lay: lay.name)
@pytest.mark.parametrize("size", [(36, 28), (37, 29)])
def test_turning_permutes_pixels_exactly(turn: tuple[bool, bool, bool], layout: Layout, size: tuple[int, int]) -> None:
    picture = noise(layout, *size)
    turned = orient(picture, *turn)
    expected = picture.rgb()
    expected = expected.transpose(1, 0, 2) if turn[0] else expected
    expected = expected[:, ::-1] if turn[1] else expected
    expected = expected[::-1] if turn[2] else expected
    np.testing.assert_array_equal(turned.rgb(), expected)
    if size == (36, 28) and layout.name != "yuv422p":
        assert turned.layout == layout


def test_turning_swaps_the_pixel_aspect() -> None:
    picture = Picture(noise(LAYOUTS[2], 36, 28).planes, LAYOUTS[2], Fraction(4, 3))
    assert orient(picture, True, True, False).pixel_aspect == Fraction(3, 4)
    assert orient(picture, False, True, True).pixel_aspect == Fraction(4, 3)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("full", [False, True])
def test_more_depth_and_repeated_chroma_can_be_undone(bits: int, full: bool) -> None:
    layout = Layout("yuv", 8, 1, 1, full)
    picture = noise(layout)
    wide = picture.to(Layout("yuv", bits, 0, 0, full))
    back = wide.to(layout)
    for old, new in zip(picture.planes, back.planes, strict=True):
        np.testing.assert_array_equal(old, new)


FORMATS = ["yuv420p", "yuv411p", "nv12", "nv21", "p010le", "yuyv422", "rgb24", "bgr24", "rgba", "bgr0", "gbrp", "gbrp10le", "gray", "gray10le",
           "gray16be", "rgb48be", "rgba64be", "ya8", "pal8", "monow", "yuv444p12le", "yuv420p10be", "yuva420p", "uyvy422", "nv16"]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_any_pixel_format_becomes_planar_without_loss(name: str) -> None:
    """The planar samples, put into a frame and turned into the format again, give the bytes that were there."""
    y, x = np.mgrid[0:30, 0:44]
    rgb = np.stack((x * 5, y * 8, x + y), axis=-1).astype(np.uint8)
    if name == "pal8":
        index = (x % 7).astype(np.uint8)
        palette = np.zeros((256, 4), np.uint8)
        palette[:, 0] = 255
        palette[:7, 1:] = np.arange(21).reshape(7, 3) * 9
        pal8: Any = (index, palette)
        frame = av.VideoFrame.from_ndarray(pal8, "pal8")
    else:
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=name)
    layout, alpha = layout_of(name, Colour(), 44, 30, image=True)
    picture = Picture(read_planes(frame, layout, alpha), layout)
    assert (picture.width, picture.height) == (44, 30)
    if name == "pal8":
        np.testing.assert_array_equal(picture.rgb()[0, 3], palette[3, 1:])
        return
    if name == "monow":  # the way back dithers
        np.testing.assert_array_equal(picture.rgb(), frame.reformat(format="rgb24").to_ndarray())
        return
    again = write_frame(picture.planes, layout, layout.name).reformat(format=name)
    skip = {"bgr0": 4}.get(name)
    for old, new, plane in zip(frame.planes, again.planes, range(9), strict=False):
        a, b = (np.frombuffer(bytes(p), np.uint8).reshape(-1, p.line_size) for p in (old, new))
        width = min(len(a[0]), len(b[0]), old.width * max(1, frame.format.padded_bits_per_pixel // 8 if len(frame.planes) == 1 else 1))
        a, b = a[: old.height, :width], b[: old.height, :width]
        if skip:
            a, b = np.delete(a, np.s_[3::4], 1), np.delete(b, np.s_[3::4], 1)
        np.testing.assert_array_equal(a, b, err_msg=f"plane {plane}")


def test_transparency_is_shown_over_white() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 51
    frame = av.VideoFrame.from_ndarray(rgba, "rgba")
    layout, alpha = layout_of("rgba", Colour(), 4, 4)
    shown = Picture(read_planes(frame, layout, alpha), layout).rgb()
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert shown[2, 0].tolist() == [244, 204, 204]
    assert shown[3, 0].tolist() == [255, 255, 255]
