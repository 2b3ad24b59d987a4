"""Which codec goes in which container, in which pixel format, with which settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av

from latentsync.errors import UsageError
from latentsync.media.layout import FULL_RANGE, LIMITED_RANGE, Colour, Layout, guess_is_hd, matrix_coefficients, supported_formats

if TYPE_CHECKING:
    from latentsync.media.video import VideoInfo

ENCODERS = {"h264": "libx264", "hevc": "libx265", "prores": "prores_ks", "ffv1": "ffv1"}
MUXERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
CODECS_IN = {
    ".mp4": ("h264", "hevc"),
    ".mov": ("h264", "hevc", "prores"),
    ".mkv": ("h264", "hevc", "prores", "ffv1"),
    ".avi": ("ffv1",),  # AVI cannot hold the B-frames of the others
}
CRF = {"h264": 18, "hevc": 20}  # visually lossless on faces; the range is 0 (lossless in h264) to 51
PRESET = "medium"  # of x264 and x265: one notch faster costs about a tenth more bytes, and the encoder is not what takes the time here

# Sound that is copied as it is: what players accept in each container, not all that FFmpeg would write.
COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    ".mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be",
             "pcm_f32le", "pcm_f64le"},
    ".mkv": {"aac", "mp3", "mp2", "ac3", "eac3", "dts", "truehd", "alac", "opus", "vorbis", "flac", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le",
             "pcm_f32le", "pcm_f64le"},
    ".avi": {"mp3", "mp2", "ac3", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le"},
}  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """How the pictures of one output are encoded."""

    codec: str
    encoder: str
    muxer: str
    suffix: str
    layout: Layout  # of the pictures handed to the encoder
    pixel_format: str
    colour: Colour
    options: dict[str, str]
    tag: str | None


def check_encoding(out: Path, codec: str, crf: int | None) -> None:
    """Raises `UsageError`, listing what works, if `out` and `codec` cannot go together."""
    suffix = out.suffix.lower()
    if codec not in ENCODERS:
        raise UsageError(f"unknown codec '{codec}'; known are {', '.join(ENCODERS)}")
    if suffix not in MUXERS:
        works = "; ".join(f"{s} ({', '.join(c)})" for s, c in CODECS_IN.items())
        raise UsageError(f"cannot write '{out.name}': its ending '{out.suffix}' names no container; use one of {works}")
    if codec not in CODECS_IN[suffix]:
        fits = [s for s, c in CODECS_IN.items() if codec in c]
        raise UsageError(f"{codec} does not go into {suffix}; use {' or '.join(fits)}, or with {suffix} the codec {' or '.join(CODECS_IN[suffix])}")
    if ENCODERS[codec] not in av.codecs_available:
        have = [c for c, e in ENCODERS.items() if e in av.codecs_available]
        raise UsageError(f"this PyAV has no {codec} encoder ({ENCODERS[codec]}); available: {', '.join(have) or 'none'}")
    if crf is not None and codec not in CRF:
        raise UsageError(f"crf has no meaning for {codec}, which is {'lossless' if codec == 'ffv1' else 'of fixed quality'}; leave it out")
    if crf is not None and not 0 <= crf <= 51:
        raise UsageError(f"crf {crf} is not within 0..51 (lower is better; default {CRF[codec]})")


def choose_encoding(out: Path, codec: str, crf: int | None, like: VideoInfo) -> Encoding:
    """Settings for pictures like those of `like`, as near to their own samples as the codec allows."""
    check_encoding(out, codec, crf)
    suffix = out.suffix.lower()
    encoder = ENCODERS[codec]
    layout = _layout(codec, encoder, like)
    options: dict[str, str] = {}
    tag = None
    if codec in CRF:
        options = {"crf": str(CRF[codec] if crf is None else crf), "preset": PRESET}
    if codec == "hevc":
        if min(like.width, like.height) < 32:
            raise UsageError(f"hevc cannot encode {like.width}x{like.height}, it needs at least 32x32; use --codec h264 or ffv1")
        options["x265-params"] = "log-level=none"
        tag = "hvc1" if suffix in (".mp4", ".mov") else None
    if codec == "ffv1":
        options = {"level": "3", "slicecrc": "1", "g": "1"}
        # The encoder has opinions about slices: none where chroma samples would be cut in two, one only up to 352x288; else it chooses itself.
        if like.width % (1 << layout.sub_x) == 0 and like.height % (1 << layout.sub_y) == 0 and min(like.width, like.height) >= 16:
            options["slices"] = "4"
        elif like.width <= 352 and like.height <= 288:
            options["slices"] = "1"
    if codec == "prores":
        options = {"profile": "4" if layout.sub_x == 0 else "3", "vendor": "apl0"}
    name = layout.name
    if layout.family == "rgb" and layout.bits == 8:
        name = "bgr0"
    return Encoding(codec, encoder, MUXERS[suffix], suffix, layout, name, _colour(layout, like), options, tag)


def _layout(codec: str, encoder: str, like: VideoInfo) -> Layout:
    source = like.layout
    formats = supported_formats(encoder)
    if codec == "ffv1":
        exact = "bgr0" if source.family == "rgb" and source.bits == 8 else source.name
        if exact in formats:
            return source
        candidates = [replace(source, bits=b) for b in (source.bits, 10, 12, 14, 16) if b >= source.bits]
        candidates += [c.without_subsampling() for c in candidates]
        return next(c for c in candidates if c.name in formats)
    if codec == "prores":  # 10 bits and limited range are all that its players know
        whole = source.family == "rgb" or (source.family == "yuv" and not source.sub_x and not source.sub_y)
        odd = bool(like.width % 2)
        kr, kb = _matrix(like)
        return Layout("yuv", 10, 0 if whole or odd else 1, 0, False, kr, kb)
    # H.264 and HEVC: what the source has, as far as common decoders go; an odd size cannot be 4:2:0 there, so chroma is repeated to 4:4:4
    sub = (source.sub_x, source.sub_y) if source.family == "yuv" else (1, 1)
    sub = {(0, 1): (0, 0), (2, 0): (1, 0), (2, 2): (1, 1)}.get(sub, sub)
    bits = source.bits
    if like.is_still:  # stills are often 4:4:4; as a video that would play almost nowhere
        sub, bits = (1, 1), 8
    if (sub[0] and like.width % 2) or (sub[1] and like.height % 2):
        sub = (0, 0)
    kr, kb = _matrix(like)
    depths = [b for b in (8, 10, 12) if Layout("yuv", b, *sub).name in formats]
    depth = next((b for b in depths if b >= bits), depths[-1])
    return Layout("yuv", depth, *sub, source.full and source.family == "yuv", kr, kb)


def _matrix(like: VideoInfo) -> tuple[float, float]:
    if like.layout.family == "yuv":
        return like.layout.kr, like.layout.kb
    return matrix_coefficients(2, like.width, like.height)


def _colour(layout: Layout, like: VideoInfo) -> Colour:
    """Tags of the output: the source's own; where RGB or gray becomes Y'CbCr, those of the conversion."""
    source = like.colour
    if layout.family == "rgb":
        return replace(source, matrix=0, range=FULL_RANGE)
    if like.layout.family == "yuv":
        same = layout.full == like.layout.full
        return replace(source, range=(FULL_RANGE if layout.full else source.range) if same else LIMITED_RANGE)
    if layout.family == "gray":
        return replace(source, matrix=2, range=FULL_RANGE if layout.full else source.range)
    return replace(source, matrix=1 if guess_is_hd(like.width, like.height) else 6, range=LIMITED_RANGE)


def time_base_for(suffix: str, like: VideoInfo, rate: Fraction | None) -> Fraction:
    """Tick of the output track on which every frame time of the source (or of `rate`) falls exactly.

    Matroska rounds to its own millisecond afterwards; AVI knows only a constant rate, so its tick is one frame.
    """
    if suffix == ".avi":
        average = rate or like.rate or Fraction(25)
        return 1 / average.limit_denominator(1001)
    denominator = rate.numerator if rate is not None else like.time_base.denominator
    if denominator > 1 << 30:
        denominator = 1_000_000
    while denominator < 10_000:  # as FFmpeg does: coarse clocks upset some players
        denominator *= 2
    return Fraction(1, denominator)
