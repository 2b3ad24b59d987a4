"""Makes small real files for the media tests: every test reads what an encoder and a muxer wrote."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest


def pattern(width: int, height: int, k: int) -> np.ndarray:
    """(h, w, 3) uint8: a smooth picture with a moving bar, so that every frame differs and depends on those before it."""
    y, x = np.mgrid[0:height, 0:width]
    out = np.stack(((x * 255 / width), (y * 255 / height), ((x + y + 9 * k) % 256)), axis=-1).astype(np.uint8)
    at = (7 * k) % max(1, width - 4)
    out[:, at : at + 4] = 255
    return out


MakeVideo = Callable[..., Path]


def mux_sound(out: Any, track: Any, sound: np.ndarray, rate: int) -> None:
    """Write (n,) mono samples to a track, from its beginning to its end."""
    block = av.AudioFrame.from_ndarray(np.asarray(sound, np.float32)[None], "flt", "mono")
    block.sample_rate, block.pts = rate, 0
    converter = av.AudioResampler(track.codec_context.format.name, "mono", rate)
    for part in [*converter.resample(block), *converter.resample(None)]:
        out.mux(track.encode(part))
    out.mux(track.encode(None))


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """make_video(name, frames=30, codec=..., ...) -> path of a new video file."""

    def make(
        name: str,
        frames: int = 30,
        *,
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        rate: Fraction | int = 25,
        times: Sequence[Fraction] | None = None,
        time_base: Fraction | None = None,
        options: dict[str, str] | None = None,
        sound: np.ndarray | None = None,
        sound_codec: str = "aac",
        sound_rate: int = 16000,
        rotation: int | None = None,
        setup: Callable[[Any], None] | None = None,
        container_options: dict[str, str] | None = None,
        picture: Callable[[int, int, int], np.ndarray] = pattern,
    ) -> Path:
        path = tmp_path / name
        width, height = size
        with av.open(f"file:{path}", "w", container_options=container_options or {}) as out:
            tick = time_base or 1 / Fraction(rate)
            stream: Any = out.add_stream(codec, rate=Fraction(rate), options=options or {}, time_base=tick)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = tick
            if setup:
                setup(stream)
            if rotation is not None:
                if not hasattr(type(stream), "set_display_rotation"):
                    pytest.skip("this PyAV cannot write rotation")
                stream.set_display_rotation(rotation)
            track: Any = out.add_stream(sound_codec, rate=sound_rate, layout="mono") if sound is not None else None
            if sound is not None:
                mux_sound(out, track, sound, sound_rate)
            for k in range(frames):
                image = av.VideoFrame.from_ndarray(picture(width, height, k), "rgb24").reformat(format=pix_fmt)
                image.pts = round((times[k] if times else k / Fraction(rate)) / tick)
                image.time_base = tick
                out.mux(stream.encode(image))
            out.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def make_wav(tmp_path: Path) -> Callable[..., Path]:
    """make_wav(name, samples (n,) or (n, channels) float -1..1, rate) -> path of a 16-bit .wav file."""

    def make(name: str, samples: np.ndarray, rate: int = 16000) -> Path:
        path = tmp_path / name
        with wave.open(str(path), "wb") as f:
            f.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
            f.setsampwidth(2)
            f.setframerate(rate)
            f.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        return path

    return make
