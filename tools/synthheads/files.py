"""Files that appear whole or not at all: written under a hidden name beside the target, then renamed."""

from __future__ import annotations

import json
import os
import uuid
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from latentsync.errors import OutputError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A scratch path that becomes `path` when the block ends well, and is removed when it does not. OutputError where it cannot be written."""
    scratch = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as e:  # libav's errors are among these
        raise OutputError(f"cannot write {path}: {e.strerror or e}") from e
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder and those above it, where they are missing. OutputError where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"cannot make the folder {path}: {e.strerror or e}") from e


def write_arrays(path: Path, **arrays: Any) -> None:
    """A compressed .npz."""
    with appearing(path) as scratch:
        np.savez_compressed(scratch, **arrays)


def write_json(path: Path, value: object) -> None:
    with appearing(path) as scratch:
        scratch.write_text(json.dumps(value), encoding="utf-8")


def write_wave(path: Path, samples: np.ndarray, rate: int) -> None:
    """Mono float samples (n,) in -1..1 as 16-bit PCM."""
    with appearing(path) as scratch, wave.open(str(scratch), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction | int,
    size: int,
    *,
    crf: int,
    pixels: str = "yuv420p",
    key_every: int = 250,
    add_sound: Callable[[Any], Callable[[], None]],
) -> int:
    """Frames (size, size, 3) uint8 RGB as H.264 in MP4, on one thread, as they come; how many there were.

    `add_sound` is given the open container before the first frame, adds its stream, and returns what muxes the sound after the last.
    """
    count = 0
    with appearing(path) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "g": str(key_every)}
        stream: Any = container.add_stream("libx264", rate=Fraction(rate), options=options)
        stream.width = stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        mux_sound = add_sound(container)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            count += 1
        container.mux(stream.encode())
        mux_sound()
    return count


def spoken(samples: np.ndarray, rate: int) -> Callable[[Any], Callable[[], None]]:
    """For `write_video`: mono float samples (n,) in -1..1 as AAC at 64 kbit/s."""

    def add(container: Any) -> Callable[[], None]:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = 64000

        def mux() -> None:
            block = av.AudioFrame.from_ndarray(np.asarray(samples, np.float32)[None], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            container.mux(stream.encode(block))
            container.mux(stream.encode())

        return mux

    return add


def copied(source: Any) -> Callable[[Any], Callable[[], None]]:
    """For `write_video`: the packets of the open container's first soundtrack, as they are; none where it has no sound."""
    heard = source.streams.audio[0] if source.streams.audio else None

    def add(container: Any) -> Callable[[], None]:
        stream = container.add_stream_from_template(heard) if heard is not None else None

        def mux() -> None:
            for packet in source.demux(heard) if heard is not None else ():
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)

        return mux

    return add
