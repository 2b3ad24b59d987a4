"""Clips for training, and what training and evaluation show: H.264 with mono sound, as they come. Films go through `writer.VideoWriter`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import OutputContainer

from latentsync.errors import OutputError
from latentsync.media.layout import FULL_RANGE, LIMITED_RANGE, Colour, Layout, write_frame
from latentsync.media.picture import Picture
from latentsync.whole import whole

_MUXERS = {".mp4": "mp4", ".mkv": "matroska"}
_ODD = {"yuv420p": 2, "yuv444p": 1}  # pixels that share one sample of chroma


@dataclass(frozen=True)
class ClipStyle:
    """How a clip is encoded."""

    crf: int = 18  # of x264: 18 looks lossless, 13 still does after a second encoding
    pixels: Literal["yuv420p", "yuv444p"] = "yuv420p"
    key_every: int = 250  # frames
    preset: str = "veryfast"
    sound: Literal["aac", "flac"] = "aac"  # FLAC is exact to the sample and the bit (of 16)


def write_clip(path: Path, frames: np.ndarray, rate: Fraction | int, samples: np.ndarray | None = None, sample_rate: int = 16000) -> None:
    """Write frames (n, h, w, 3) uint8 RGB at `rate` frames a second, with mono float samples (m,) in -1..1 as their sound.

    Odd sizes lose their last row or column (4:2:0 needs even ones). The file appears whole or not at all; one that exists is replaced.
    Raises OutputError where it cannot be written.
    """
    write_stream(path, frames, rate, None if samples is None else [samples], sample_rate)


def write_stream(
    path: Path,
    frames: Iterable[np.ndarray | Picture],
    rate: Fraction | int,
    samples: Iterable[np.ndarray] | None = None,
    sample_rate: int = 16000,
    *,
    style: ClipStyle | None = None,
    colour: Colour | None = None,
) -> int:
    """`write_clip` for frames and sound that come one by one, into .mp4 or .mkv; the number of frames.

    A frame is (h, w, 3) uint8 RGB or a `Picture`, whose samples are kept as they are where its layout is that of the style; it is shown with
    square pixels. All have the size of the first. `colour` are the tags of pictures. The same frames give the same file, bit for bit, on any
    number of cores. Raises OutputError where nothing can be written, or where there is no frame.
    """
    style = style or ClipStyle()
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise OutputError(f"nothing was written to {path}: no frames")
    with (
        whole(path, parents=True) as scratch,
        # The prefix keeps libav from reading the folder's name as a protocol or a pattern.
        av.open(f"file:{os.path.abspath(scratch)}", "w", format=_MUXERS.get(path.suffix.lower(), "mp4")) as container,
    ):
        images = _images(itertools.chain([first], source), style, colour)
        return _encode(container, images, Fraction(rate), samples, sample_rate, style, colour)


def _encode(
    container: OutputContainer,
    images: Iterator[av.VideoFrame],
    rate: Fraction,
    samples: Iterable[np.ndarray] | None,
    sample_rate: int,
    style: ClipStyle,
    colour: Colour | None,
) -> int:
    first = next(images)
    options = {"crf": str(style.crf), "preset": style.preset, "g": str(style.key_every)}
    picture: Any = container.add_stream("libx264", rate=rate, options=options)
    picture.width, picture.height, picture.pix_fmt = first.width, first.height, style.pixels
    picture.codec_context.thread_count = 1
    if colour is not None:
        context = picture.codec_context
        context.colorspace, context.color_range = colour.matrix, colour.range
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer
    sound = None if samples is None else _Sound(container, iter(samples), sample_rate, style)
    count = 0
    for image in itertools.chain([first], images):
        image.pts, image.time_base = count, 1 / rate
        container.mux(picture.encode(image))
        count += 1
        if sound is not None:
            sound.write(round(count / rate * sample_rate))
    container.mux(picture.encode())
    if sound is not None:
        sound.close()
    return count


class _Sound:
    """The soundtrack, handed over no further than the pictures reach."""

    def __init__(self, container: OutputContainer, samples: Iterator[np.ndarray], rate: int, style: ClipStyle) -> None:
        self._container, self._samples, self._rate = container, samples, rate
        self._format = "s16" if style.sound == "flac" else "fltp"
        self._stream: Any = container.add_stream(style.sound, rate=rate, layout="mono")
        self._stream.codec_context.thread_count = 1
        self._held = np.zeros(0, np.float32)
        self._done = 0

    def write(self, until: int) -> None:
        """Samples up to that number."""
        while self._done < until:
            if not len(self._held):
                chunk = next(self._samples, None)
                if chunk is None:
                    return
                self._held = np.asarray(chunk, np.float32)
                continue
            part, self._held = np.split(self._held, [min(len(self._held), until - self._done)])
            self._put(part)

    def _put(self, part: np.ndarray) -> None:
        values: Any = part
        if self._format == "s16":
            values = np.clip(np.rint(part * 32768), -32768, 32767).astype(np.int16)
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(values)[None], format=self._format, layout="mono")
        block.sample_rate, block.pts, block.time_base = self._rate, self._done, Fraction(1, self._rate)
        self._done += len(part)
        self._container.mux(self._stream.encode(block))

    def close(self) -> None:
        self._container.mux(self._stream.encode())


def _images(frames: Iterable[np.ndarray | Picture], style: ClipStyle, colour: Colour | None) -> Iterator[av.VideoFrame]:
    """Frames as the encoder takes them, cut to sizes that it can take."""
    unit = _ODD[style.pixels]
    for frame in frames:
        if isinstance(frame, Picture):
            yield _image(frame, style, colour, unit)
        else:
            height, width = (side // unit * unit for side in frame.shape[:2])
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")


def _image(picture: Picture, style: ClipStyle, colour: Colour | None, unit: int) -> av.VideoFrame:
    layout = coded_layout(picture.layout, style)
    height, width = picture.height // unit * unit, picture.width // unit * unit
    planes = picture.to(layout).planes
    cut = [np.ascontiguousarray(p[:rows, :columns]) for i, p in enumerate(planes) for rows, columns in [layout.shape(i, width, height)]]
    image = write_frame(tuple(cut), layout, layout.name)
    if colour is not None:
        image.colorspace, image.color_range = colour.matrix, colour.range
    return image


def coded_layout(layout: Layout, style: ClipStyle) -> Layout:
    """The layout in which a style codes pictures of that layout: 8 bits, the same matrix; what is not Y'CbCr becomes limited range."""
    sub = 1 if style.pixels == "yuv420p" else 0
    if layout.family != "yuv":
        return Layout("yuv", 8, sub, sub)
    return replace(layout, bits=8, sub_x=sub, sub_y=sub)


def coded_colour(colour: Colour, layout: Layout) -> Colour:
    """Tags for pictures of that layout after `coded_layout`."""
    if layout.family == "yuv":
        return replace(colour, range=FULL_RANGE if layout.full else colour.range)
    return Colour(6, LIMITED_RANGE, colour.primaries, colour.transfer)
