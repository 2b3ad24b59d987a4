"""Sound -> one context per moment: the ten speech positions around a frame, from overlapping 30 s blocks, in constant memory.

Whisper hears 30 s at a time. The published system cuts the sound into independent blocks, so a position at a cut is heard without what
comes before or after it, and users see a twitch every 30 s. Here neighbouring blocks overlap: away from the ends of the file a position
is only taken from a block that hears at least `overlap_s` on either side of it, and one block fades into the next.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch

from latentsync.errors import InputError
from latentsync.speech.mel import SAMPLE_RATE, frame_count, log_mel, normalise
from latentsync.speech.whisper import SpeechEncoder

SPEECH_RATE = 50  # positions a second: Whisper's encoder halves its 100 Hz mel
BEFORE, AFTER = 4, 5  # positions taken before and after the one at the frame's time (the published windows)
_FADE = 50  # positions over which one block gives way to the next: 1 s, so no single frame carries the change
_CACHED = 3  # blocks kept; a fade needs two

Samples = Callable[[], Iterator[np.ndarray]]


class SpeechTrack:
    """The speech features of one sound, for one reader at a time. Going forward in time is cheap; going back reads the sound again.

    Args:
        samples: opens the sound from its start: mono chunks, 16 kHz. Called once here, for the length and the loudest value, and again when
            features are asked for.
        encoder: its device and number format are those of the contexts.
        overlap_s: seconds a block must hear on either side of a position that is taken from it, at most a third of a block;
            0 gives the published, independent blocks.

    Raises:
        InputError: there is not a single sample.
    """

    def __init__(self, samples: Samples, encoder: SpeechEncoder, *, overlap_s: float = 5.0) -> None:
        config = encoder.config
        self._encoder = encoder
        count, peak = _survey(samples, config.mels)
        self.duration = Fraction(count, SAMPLE_RATE)  # seconds
        self.positions = max(1, frame_count(count) // 2)
        self.tokens = (BEFORE + 1 + AFTER) * encoder.depths
        self.width = config.width
        self._reader = _MelReader(samples, config.mels, peak, frame_count(count))
        self._block = config.positions
        self._overlap = min(round(overlap_s * SPEECH_RATE), self._block // 3)
        self._fade = min(_FADE, self._block // 8) if self._overlap else 0
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()

    def context(self, time: Fraction) -> torch.Tensor:
        """(tokens, width): what is heard around `time`, in seconds; times outside the sound hear its first or last moment."""
        return self.contexts([time])[0]

    def contexts(self, times: Sequence[Fraction]) -> torch.Tensor:
        """(n, tokens, width): the context at each of n times. Tokens run over ten positions and, within each, over the encoder's depths."""
        if len(times) == 0:
            return torch.empty(0, self.tokens, self.width, device=self._encoder.device, dtype=self._encoder.dtype)
        wanted = [window(time, self.positions) for time in times]
        rows = sorted({p for w in wanted for p in w})
        features = self._features(rows)
        at = {p: i for i, p in enumerate(rows)}
        index = torch.tensor([at[p] for w in wanted for p in w], dtype=torch.long, device=features.device)
        return features[index].reshape(len(wanted), self.tokens, self.width)

    def features(self) -> torch.Tensor:
        """(positions, depths, width): the whole sound at 50 Hz, for clips: the memory is that of its length."""
        return self._features(range(self.positions))

    def close(self) -> None:
        """Let go of the open sound and of the blocks held; the track can be used again, from the start of the sound."""
        self._reader.close()
        self._cache.clear()

    def _features(self, rows: Sequence[int]) -> torch.Tensor:
        """Sorted positions -> (len(rows), depths, width)."""
        device = self._encoder.device
        runs: dict[tuple[int, int], list[tuple[int, float]]] = {}  # rows are sorted, so are the blocks: the sound is read forward
        for position in rows:
            old, new, share = self._blocks_at(position)
            runs.setdefault((old, new), []).append((position, share))
        values = []
        for (old, new), members in runs.items():
            position_index = torch.tensor([p for p, _ in members], device=device)
            value = self._block_features(old)[position_index - old]
            if new != old:
                weight = torch.tensor([share for _, share in members], device=device, dtype=value.dtype)[:, None, None]
                value = torch.lerp(value, self._block_features(new)[position_index - new], weight)
            values.append(value)
        return torch.cat(values)

    def _blocks_at(self, position: int) -> tuple[int, int, float]:
        """First positions of the one or two blocks a position is taken from, and the share of the second.

        Blocks start every `stride` positions; the last one is moved back so that it ends with the file and is not mostly padding.
        """
        if not self._overlap:
            start = position // self._block * self._block
            return start, start, 0.0
        last = max(0, self.positions - self._block)
        stride = self._block - 2 * self._overlap - self._fade
        k, inside = divmod(position - self._overlap, stride)
        new = min(max(0, k) * stride, last)
        old = min(max(0, k - 1) * stride, last)
        if inside >= self._fade or new == old:
            return new, new, 0.0
        return old, new, (inside + 1) / (self._fade + 1)

    def _block_features(self, start: int) -> torch.Tensor:
        """(n, depths, width) features of the block that starts at that position; n is less than a block only where the file ends."""
        if start not in self._cache:
            mel = self._reader.read(2 * start, 2 * (start + self._block))
            self._cache[start] = self._encoder.features(mel.T)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(start)
        return self._cache[start]


def window(time: Fraction, positions: int) -> list[int]:
    """The ten 50 Hz positions heard at `time` (seconds) in a sound of that many positions, held at its ends.

    Exact: floor(50 t) of a fraction never falls to the wrong side, however long the sound and whatever the frame rate.
    """
    centre = math.floor(time * SPEECH_RATE)
    return [min(max(p, 0), positions - 1) for p in range(centre - BEFORE, centre + AFTER + 1)]


class _MelReader:
    """Normalised mel frames of a sound by number, from one forward pass; a step back opens the sound again."""

    def __init__(self, samples: Samples, mels: int, peak: float, frames: int) -> None:
        self._samples, self._mels, self._peak, self._frames = samples, mels, peak, frames
        self._stream: Iterator[torch.Tensor] | None = None
        self._buffer = torch.empty(0, mels)
        self._first = 0  # frame number of the buffer's first row

    def read(self, first: int, last: int) -> torch.Tensor:
        """(n, mels): frames first..last, fewer where the file ends."""
        last = min(last, self._frames)
        if self._stream is None or first < self._first:
            self.close()
            self._stream = _closing(self._samples, self._mels, first)
            self._first = first
        held = [self._buffer]
        end = self._first + len(self._buffer)
        while end < last:
            chunk = next(self._stream, None)
            if chunk is None:
                raise InputError(f"the sound ended after {end / 100:.2f} s, when first read it had {self._frames / 100:.2f}; has the file changed?")
            end += len(chunk)
            held.append(chunk)
            if end <= first:  # a jump ahead: nothing of this is wanted
                held, self._first = [], end
        joined = torch.cat(held)
        self._buffer = joined[first - self._first :].clone()
        self._first = first
        return normalise(self._buffer[: last - first], self._peak)

    def close(self) -> None:
        self._stream = None
        self._buffer = torch.empty(0, self._mels)


def _closing(samples: Samples, mels: int, first: int) -> Iterator[torch.Tensor]:
    """`log_mel` of a freshly opened sound, which is closed when this iterator ends or is dropped."""
    opened = samples()
    try:
        yield from log_mel(opened, mels, first)
    finally:
        _close(opened)


def _survey(samples: Samples, mels: int) -> tuple[int, float]:
    """Number of samples and loudest log10 mel value of the whole sound."""
    opened = samples()
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for chunk in opened:
            count += chunk.size
            yield chunk

    try:
        peak = max((float(chunk.max()) for chunk in log_mel(counted(), mels)), default=0.0)
    finally:
        _close(opened)
    if not count:
        raise InputError("the sound is empty: not a single sample; give a file whose audio stream holds some")
    return count, peak


def _close(opened: Iterator[np.ndarray]) -> None:
    close = getattr(opened, "close", None)  # generators have one, plain iterators do not
    if close is not None:
        close()
