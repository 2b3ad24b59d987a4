"""The soundtrack of an output file: packets copied as they are where the container takes them, AAC where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from latentsync.media.audio import MANY, Audio, Placer, audio_stream, blocks
from latentsync.media.encoding import COPIED

AAC_BITRATE = 192_000
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class Soundtrack:
    """Adds an audio stream to `out` and gives its packets in order of time.

    Sound made here (AAC) and PCM are placed and cut at the sample. Compressed packets are copied whole: the cut at the end falls on a
    packet's edge, and at the start Matroska, which has no time before 0, loses the packet that straddles it.
    """

    def __init__(self, out: OutputContainer, suffix: str, audio: Audio, source: InputContainer) -> None:
        self._audio = audio
        self._source = source
        self._stream = audio_stream(source, audio.info.path)
        self.copied = audio.info.codec in COPIED[suffix]
        self._safe = Fraction(0)  # the pictures reach at least this far, so sound up to here will not have to be cut
        self._end: Fraction | None = None  # where the sound is cut, once known
        self._next: tuple[Fraction, Packet | None] | None = None
        if self.copied:
            self._track = out.add_stream_from_template(self._stream)
            self._early = suffix != ".mkv" or audio.info.codec == "opus"  # Opus brings its own pre-skip, which Matroska knows
            self._pcm = audio.info.codec.startswith("pcm_")
            self._packets: Iterator[tuple[Fraction, Packet | None]] = self._pcm_packets() if self._pcm else self._copied_packets()
        else:
            rate = audio.info.rate
            self._rate = rate if rate in _AAC_RATES else rate // 2 if rate // 2 in _AAC_RATES else next((r for r in _AAC_RATES if r >= rate), 96000)
            channels = audio.info.channels
            self._layout = _LAYOUTS.get(channels, "7.1" if channels > 8 else "5.1")
            self._track = out.add_stream("aac", rate=self._rate, layout=self._layout, bit_rate=AAC_BITRATE)
            self._packets = self._encoded_packets()

    def until(self, time: Fraction) -> Iterator[Packet]:
        """Packets not yet given that end by `time` seconds."""
        self._safe = max(self._safe, time)
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
                if self._next is None:
                    return
            start, packet = self._next
            if start >= time or (self._end is None and packet is not None and start + self._length(packet) > time):
                return
            self._next = None
            if packet is None:  # the encoder waits for more sound than is safe to give it
                return
            if self._end is not None and start + self._length(packet) > self._end:
                packet.duration = max(1, round((self._end - start) / Fraction(packet.time_base)))
            yield packet

    def finish(self, end: Fraction) -> Iterator[Packet]:
        """What is left up to `end` seconds, where the sound is cut."""
        self._end = end
        if self._next is not None and self._next[1] is None:
            self._next = None  # the encoder was waiting for this moment: all the rest is safe now
        if self._next is not None and self.copied and self._pcm:
            self._next = self._trimmed(*self._next, end)
        yield from self.until(end)

    @staticmethod
    def _length(packet: Packet) -> Fraction:
        return (packet.duration or 0) * Fraction(packet.time_base)

    # packets as they are

    def _demuxed(self) -> Iterator[Packet]:
        packets = self._source.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                return  # a cut-off file: `Audio` has said so
            if packet is None:
                return
            if packet.size:
                yield packet

    def _copied_packets(self) -> Iterator[tuple[Fraction, Packet | None]]:
        base = Fraction(self._stream.time_base)
        shift = round(self._audio.origin / base)
        back = round(1 / base)
        last: int | None = None
        held: Packet | None = None  # the last packet before 0: a decoder needs it to start up
        for packet in self._demuxed():
            stamp = packet.pts if packet.pts is not None else packet.dts
            stamp = (last + 1 if last is not None else 0) if stamp is None else stamp - shift
            if last is not None and stamp <= last:
                if stamp > last - back:
                    continue  # overlaps what was there
                shift += stamp - last - 1  # the clock was set back: go on from here
                stamp = last + 1
            last = stamp
            packet.pts = packet.dts = stamp
            packet.stream = self._track
            if stamp < 0 and stamp + (packet.duration or 0) <= 0:
                held = packet
                continue
            if stamp < 0 and not self._early:
                continue
            if held is not None and self._early:
                yield (held.pts or 0) * base, held
            held = None
            yield stamp * base, packet

    def _pcm_packets(self) -> Iterator[tuple[Fraction, Packet | None]]:
        rate, base = self._audio.info.rate, Fraction(self._stream.time_base)
        block = self._block
        quiet = b"\x80" if self._audio.info.codec == "pcm_u8" else b"\0"
        placer = Placer(rate, self._audio.origin)
        position = 0
        for packet in self._demuxed():
            stamp = packet.pts if packet.pts is not None else packet.dts
            piece = placer.place(bytes(packet), None if stamp is None else stamp * base, packet.size // block)
            chunks: list[tuple[bytes | None, int]] = [(None, n) for n in blocks(piece.silence)]
            if piece.stop > piece.start:
                chunks.append((piece.item[piece.start * block : piece.stop * block], piece.stop - piece.start))
            for data, count in chunks:
                time = Fraction(position, rate)
                packet = self._pcm_packet(quiet * (count * block) if data is None else data, position, count)
                position += count
                if self._end is None or time + self._length(packet) <= self._end:
                    yield time, packet
                elif time < self._end:
                    yield self._trimmed(time, packet, self._end)

    @property
    def _block(self) -> int:
        """Bytes of one PCM sample over all channels."""
        return int("".join(c for c in self._audio.info.codec if c.isdigit())) // 8 * self._audio.info.channels

    def _trimmed(self, start: Fraction, packet: Packet | None, end: Fraction) -> tuple[Fraction, Packet | None]:
        """The part of a PCM packet before `end`, up to the next whole sample."""
        if packet is None or start + self._length(packet) <= end or start >= end:
            return start, packet
        rate = self._audio.info.rate
        keep = -((start - end) * rate // 1)
        return start, self._pcm_packet(bytes(packet)[: keep * self._block], round(start * rate), keep)

    def _pcm_packet(self, data: bytes, position: int, count: int) -> Packet:
        packet: Any = Packet(data)
        packet.time_base = Fraction(1, self._audio.info.rate)
        packet.pts = packet.dts = position
        packet.duration = count
        packet.is_keyframe = True
        packet.stream = self._track
        return packet

    # AAC

    def _encoded_packets(self) -> Iterator[tuple[Fraction, Packet | None]]:
        for frame in self._own_rate():
            if isinstance(frame, Fraction):
                yield frame, None
                continue
            for packet in self._track.encode(frame):
                yield packet.pts * Fraction(packet.time_base), packet
        for packet in self._track.encode(None):
            yield packet.pts * Fraction(packet.time_base), packet

    def _own_rate(self) -> Iterator[AudioFrame | Fraction]:
        """Float frames at the encoder's rate and layout, time 0 first, cut at the end. A time instead of a frame: wait until that is safe."""
        info = self._audio.info
        same = info.rate == self._rate and len(_LAYOUTS.get(info.channels, "")) > 0 and info.channels < MANY
        resampler = None if same else AudioResampler("fltp", self._layout, self._rate)
        position = 0
        for values in self._audio.blocks():
            time = Fraction(position, info.rate)
            while self._end is None and time + Fraction(values.shape[1], info.rate) > self._safe:
                yield time
            if self._end is not None:
                values = values[:, : max(0, -((position - self._end * info.rate) // 1))]
            if not values.shape[1]:
                continue
            if info.channels < MANY:
                frame = AudioFrame.from_ndarray(np.ascontiguousarray(values), "fltp", self._layout if same else info.layout)
            else:
                frame = AudioFrame.from_ndarray(np.ascontiguousarray(values.T).reshape(1, -1), "flt", info.layout)
            frame.sample_rate = info.rate
            frame.time_base = Fraction(1, info.rate)
            frame.pts = position
            position += values.shape[1]
            if resampler is None:
                yield frame
            else:
                yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)
