"""Another sound for a film whose pictures stay as they are: their packets are copied with their times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from latentsync.errors import InputError
from latentsync.media.source import opened, video_streams

# Container and codec by suffix. Lossless sound, so that no sample changes. QuickTime has no FLAC.
LOSSLESS = {".mp4": ("mp4", "flac"), ".m4v": ("mp4", "flac"), ".mkv": ("matroska", "flac"), ".mov": ("mov", "alac")}


def with_sound(path: Path, target: Path, chunks: Iterator[np.ndarray], rate: int, layout: str, start: Fraction) -> int:
    """Write `target`: the picture of a film with the sound of `chunks` (channels, m) float32; the number of frames that were copied.

    The sound has `rate` samples a second (16 bits are kept) in channels of `layout`, and begins at `start` seconds on the film's own clock. The
    target's suffix is one of `LOSSLESS`; it is written in place. Raises InputError for a film without picture, and what libav says of the files.
    """
    muxer, codec = LOSSLESS[target.suffix.lower()]
    copied = 0
    with ExitStack() as stack:
        source = stack.enter_context(opened(path))
        pictures = video_streams(source)
        if not pictures:
            raise InputError(f"{path} has no picture")
        out = stack.enter_context(av.open(str(target), "w", format=muxer))
        track = out.add_stream_from_template(pictures[0])
        track.time_base = pictures[0].time_base
        voice: Any = out.add_stream(codec, rate=rate, layout=layout)
        voice.time_base = Fraction(1, rate)
        if codec == "alac":
            voice.format = "s16p"  # it would take 32 bits
        encoded = _Encoder(voice, chunks, round(start * rate))
        for packet in source.demux(pictures[0]):
            if not packet.size:
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is not None:
                out.mux(encoded.until(stamp * Fraction(packet.time_base)))
            packet.stream = track
            out.mux(packet)
            copied += 1
        out.mux(encoded.until(None))
    return copied


class _Encoder:
    """Samples (channels, m) in, packets of a lossless stream out; its first sample lies `start` samples after the container's time 0."""

    def __init__(self, stream: Any, chunks: Iterator[np.ndarray], start: int) -> None:
        self._stream = stream
        self._chunks = chunks
        self._position = start
        self._ended = False

    def until(self, time: Fraction | None) -> list[Any]:
        """The packets of all samples before `time` seconds, and perhaps of some after it; None: of all that are left."""
        packets: list[Any] = []
        while not self._ended and (time is None or Fraction(self._position, self._stream.rate) < time):
            chunk = next(self._chunks, None)
            if chunk is None:
                self._ended = True
                packets += self._stream.encode(None)
                break
            whole = np.clip(np.round(chunk.T.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
            block = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format="s16", layout=self._stream.layout.name)
            block.sample_rate, block.time_base, block.pts = self._stream.rate, Fraction(1, self._stream.rate), self._position
            self._position += len(whole)
            packets += self._stream.encode(block)
        return packets
