"""Which windows of which clips, and what is in them: a pure function of (seed, epoch, index), whoever asks, in whatever order.

`Picks` says which samples a process sees; a data set makes one sample from one pick. Nothing else is drawn anywhere, so workers, the number of
processes and a resumed run change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from latentsync.errors import InputError, LatentSyncError
from latentsync.media.clip import read_audio, read_frames
from latentsync.speech.sync_mel import BOUND, MEL_RATE, MELS, RANGE, mel_start, sync_mel
from latentsync.speech.track import SPEECH_RATE, SpeechTrack, window
from latentsync.speech.whisper import SpeechEncoder
from latentsync.train.cache import Cache, content_digest
from latentsync.train.clips import BadClip, Clip, ClipSet, reason
from latentsync.train.latents import CLEAN, MASKED, Latents, window_of
from latentsync.train.store import FrameStore
from latentsync.train.truth import read_truth, truth_of

_SHORT = Fraction(1, 5)  # seconds of sound that a window may lack at the end of its clip, because headers round; more is an error
# What is drawn at random, so that no two things share their numbers.
_ORDER, _WINDOW = 0, 1
# Names of what is cached; the number goes up when the same sound leads to other values.
_MEL, _SPEECH = "mel-1", "speech-1"


class Pick(NamedTuple):
    """One sample to be made."""

    epoch: int
    index: int  # type: ignore[assignment]  # of the clip; a tuple's search for a value is not needed here
    position: int  # in the endless sequence of samples that all processes share


class Picks:
    """Batches of picks for one process, without end: a batch sampler of `DataLoader`.

    All processes share one sequence: each epoch is a permutation of the clips, drawn from (seed, epoch), and the next follows it without a gap,
    so no clip is left out where their number is no multiple of the batch. Micro-batch m of rank r holds the positions
    m * batch * world + r * batch and so on: two processes with batch 1 see what one sees with batch 2.

    Args:
        count: clips.
        batch: samples of one micro-batch of one process.
        start: micro-batches of this process that were consumed before (resume).
        shuffle: False takes the clips in their order, every epoch.
    """

    def __init__(self, count: int, *, seed: int, batch: int, rank: int = 0, world: int = 1, start: int = 0, shuffle: bool = True) -> None:
        if count < 1 or batch < 1 or start < 0 or not 0 <= rank < world:
            raise ValueError(f"cannot pick batches of {batch} from {count} clips for process {rank} of {world} from {start} on")
        self.count, self.seed, self.batch, self.rank, self.world, self.start, self.shuffle = count, seed, batch, rank, world, start, shuffle

    def __iter__(self) -> Iterator[list[Pick]]:
        held: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        micro = self.start
        while True:
            first = (micro * self.world + self.rank) * self.batch
            picks = []
            for position in range(first, first + self.batch):
                epoch, place = divmod(position, self.count)
                if held[0] != epoch:
                    held = (epoch, self._order(epoch))
                picks.append(Pick(epoch, int(held[1][place]), position))
            yield picks
            micro += 1

    def _order(self, epoch: int) -> np.ndarray:
        return _random(_ORDER, self.seed, epoch).permutation(self.count) if self.shuffle else np.arange(self.count)


class _Windows(Dataset[dict[str, Any]]):
    """What both kinds of samples share: clips that fail, and features that are cached."""

    def __init__(self, clips: ClipSet, *, frames: int, resolution: int, seed: int, cache: Cache) -> None:
        if (frames, resolution) != (clips.window, clips.resolution):
            raise ValueError(f"clips were chosen for {clips.window} frames at {clips.resolution} px, not for {frames} at {resolution}")
        self.clips, self.frames, self.resolution, self.seed, self.cache = clips, frames, resolution, seed, cache
        self.columns = math.ceil(MEL_RATE * frames / clips.fps)
        self._noted = False

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        clip = self.clips[pick.index]
        try:
            sample = self._sample(clip, pick) | {"weight": 1.0, "bad": ""}
        except InputError as e:
            bad = str(BadClip(clip.path, reason(clip.path, e)))
            if self.clips.on_bad == "error":
                raise InputError(f"{bad}\nIt could be read before training began; data.on_bad=skip leaves out such clips") from e
            sample = self._blank() | {"weight": 0.0, "bad": bad}
        note, self._noted = ("" if self._noted else self.cache.note), self._noted or bool(self.cache.note)
        return sample | {"position": pick.position, "note": note}

    def _sample(self, clip: Clip, pick: Pick) -> dict[str, Any]:
        raise NotImplementedError

    def _blank(self) -> dict[str, Any]:
        """Zeros in the shapes of a sample."""
        raise NotImplementedError

    def _times(self, start: int) -> list[Fraction]:
        return [i / self.clips.fps for i in range(start, start + self.frames)]

    def _pictures(self, clip: Clip, times: Sequence[Fraction]) -> np.ndarray:
        """(n, 3, R, R) uint8"""
        return read_frames(clip.path, times, side=self.resolution).transpose(0, 3, 1, 2)

    def _mel(self, clip: Clip, start: int) -> torch.Tensor:
        """(1, 80, columns) float32: SyncNet's mel beside the window that starts at that frame; its last column is repeated where the sound ends."""
        whole = self.cache.array(f"{_MEL}-{content_digest(clip.path)}", lambda: sync_mel(read_audio(clip.path)).astype(np.float32))
        self._check_length(clip, start, Fraction(whole.shape[1], MEL_RATE))
        first = mel_start(start, self.clips.fps)
        columns = np.minimum(np.arange(first, first + self.columns), whole.shape[1] - 1)
        return torch.from_numpy(whole[:, columns])[None]

    def _check_length(self, clip: Clip, start: int, length: Fraction) -> None:
        end = (start + self.frames) / self.clips.fps
        if length + _SHORT < end:
            raise InputError(f"{clip.path}: its sound ends at {float(length):.2f} s, a window ends at {float(end):.2f} s; is the file damaged?")


class UNetWindows(_Windows):
    """Samples for the U-Net: a window, a reference window of the same clip that does not overlap it, and what is heard.

    Each sample has "frames" and "reference" (f, 3, R, R) uint8, "audio" (f, tokens, width) float32 Whisper features, with `mels` also "mel"
    (1, 80, columns) float32 of SyncNet, "position", and "weight": 1.0, or 0.0 for a clip that failed, whose sample is zeros and whose name and
    reason stand in "bad" ("" otherwise). "note" says once that the cache fails.

    With `latents` a sample has "clean", "masked" and "seen" (c, f, h, w) float16, the latents of the frames, the masked frames and the reference,
    and "frames" only with `pictures`. In a share of `fixed_reference` of the samples the reference is one frame of the clip, any, for all; with
    `flip` half of the samples are seen in a mirror.

    `whisper` makes the encoder; it is called here, and again in a worker that has to compute something. It must be picklable.
    """

    def __init__(
        self,
        clips: ClipSet,
        *,
        frames: int = 16,
        resolution: int,
        seed: int,
        cache: Cache,
        whisper: Callable[[], SpeechEncoder],
        mels: bool,
        fixed_reference: float = 0.0,
        flip: bool = False,
        latents: Latents | None = None,
        latent: tuple[int, int, int] = (0, 0, 0),
        pictures: bool = True,
    ) -> None:
        super().__init__(clips, frames=frames, resolution=resolution, seed=seed, cache=cache)
        if flip and latents is not None and not latents.mirrored:
            raise ValueError("mirrored windows need mirrored latents")
        self.mels, self.fixed_reference, self.flip = mels, fixed_reference, flip
        self.latents, self.latent, self.pictures = latents, latent, pictures
        self._whisper = whisper
        encoder = whisper()
        self._encoder: SpeechEncoder | None = encoder
        depths = encoder.config.layers + 1 if encoder.config.depths == "all" else 1
        self._weights = weights_digest(encoder) + f"-{encoder.config.depths}" * (encoder.config.depths != "all")
        self._tokens = (len(window(Fraction(0), 1)) * depths, encoder.config.width)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}

    def _sample(self, clip: Clip, pick: Pick) -> dict[str, Any]:
        draw = _random(_WINDOW, self.seed, pick.epoch, pick.index)
        start, other = two_starts(draw, clip.frames, self.frames)
        shown: Sequence[int] = range(start, start + self.frames)
        seen: Sequence[int] = range(other, other + self.frames)
        if draw.random() < self.fixed_reference:
            seen = [int(draw.integers(clip.frames))] * self.frames
        mirror = self.flip and draw.random() < 0.5
        sample: dict[str, Any] = {"audio": self._audio(clip, start)}
        if self.mels:
            sample["mel"] = self._mel(clip, start)
        if self.latents is None:
            pictures = self._seen(clip, [*shown, *seen], mirror)
            return sample | {"frames": _tensor(pictures[: self.frames]), "reference": _tensor(pictures[self.frames :])}
        if self.pictures:
            sample["frames"] = _tensor(self._seen(clip, shown, mirror))
        latents = self.latents.open(clip)
        of = partial(window_of, latents, mirror)
        return sample | {"clean": of(CLEAN, shown), "masked": of(MASKED, shown), "seen": of(CLEAN, seen)}

    def _seen(self, clip: Clip, numbers: Sequence[int], mirror: bool) -> np.ndarray:
        """(n, 3, R, R) uint8: these frames of the clip; each is decoded once."""
        unique = sorted(set(numbers))
        at = {number: i for i, number in enumerate(unique)}
        pictures = self._pictures(clip, [i / self.clips.fps for i in unique])[[at[number] for number in numbers]]
        return pictures[..., ::-1] if mirror else pictures

    def _blank(self) -> dict[str, Any]:
        shape = (self.frames, 3, self.resolution, self.resolution)
        mel = {"mel": torch.zeros(1, MELS, self.columns)} if self.mels else {}
        sample: dict[str, Any] = {"audio": torch.zeros(self.frames, *self._tokens)} | mel
        if self.latents is None or self.pictures:
            sample["frames"] = torch.zeros(shape, dtype=torch.uint8)
        if self.latents is None:
            return sample | {"reference": torch.zeros(shape, dtype=torch.uint8)}
        channels, height, width = self.latent
        zeros = torch.zeros(channels, self.frames, height, width, dtype=torch.float16)
        return sample | {"clean": zeros, "masked": zeros, "seen": zeros}

    def _audio(self, clip: Clip, start: int) -> torch.Tensor:
        """(f, tokens, width) float32: ten positions around each frame, of all depths or the last."""
        whole = self.cache.array(f"{_SPEECH}-{self._weights}-{content_digest(clip.path)}", lambda: self._speech(clip))
        self._check_length(clip, start, Fraction(len(whole), SPEECH_RATE))
        rows = np.array([window(time, len(whole)) for time in self._times(start)])
        return torch.from_numpy(whole[rows].astype(np.float32)).reshape(self.frames, *self._tokens)

    def _speech(self, clip: Clip) -> np.ndarray:
        """(positions, layers + 1, width) float16, 50 a second."""
        if self._encoder is None:
            self._encoder = self._whisper()
        samples = read_audio(clip.path)
        return SpeechTrack(lambda: iter([samples]), self._encoder).features().to("cpu", torch.float16).numpy()


class SyncNetWindows(_Windows):
    """Samples for SyncNet: a window of frames with its own mel (label 1.0) or with that of another window of the same clip (label 0.0), half each.

    Each sample has "frames" (f, 3, H, W) uint8, the lower half of the rows only where `lower_half`, "mel" (1, 80, columns) float32, "label",
    "position", and "weight", "bad" and "note" as in `UNetWindows`.

    With `windows` above 1 a sample is so many windows of one clip, each with its own mel: "frames" (k, f, 3, H, W) and "mel" (k, 1, 80, columns),
    and no label. Their starts lie within `span` frames, `apart` or more from one another. `augment` changes pictures and sound of a sample at
    random, all its windows alike. `store` holds decoded frames; without one they are decoded every time. With `lips` such a sample also has
    "lips" (k, f) float32: the opening of the lips in each frame, from the truth beside the clip, of mean 0 and spread 1 over the clip.
    """

    def __init__(
        self,
        clips: ClipSet,
        *,
        frames: int,
        resolution: int,
        lower_half: bool,
        seed: int,
        cache: Cache,
        windows: int = 1,
        apart: int = 3,
        span: int = 40,
        augment: bool = False,
        store: FrameStore | None = None,
        lips: bool = False,
    ) -> None:
        super().__init__(clips, frames=frames, resolution=resolution, seed=seed, cache=cache)
        self.top = resolution - resolution // 2 if lower_half else 0  # first row that is seen
        self.windows, self.apart, self.span, self.augment, self.store, self.lips = windows, apart, span, augment, store, lips

    def _sample(self, clip: Clip, pick: Pick) -> dict[str, Any]:
        draw = _random(_WINDOW, self.seed, pick.epoch, pick.index)
        if self.windows == 1:
            start, other = two_starts(draw, clip.frames, self.frames)
            in_sync = bool(draw.integers(2))
            pictures, mel = self._shown(clip, start, start + self.frames), self._mel(clip, start if in_sync else other)
            if self.augment:
                pictures, mel = changed_pictures(draw, pictures), changed_mel(draw, mel)
            return {"frames": _tensor(pictures[:, :, self.top :]), "mel": mel, "label": float(in_sync)}
        starts = near_starts(draw, clip.frames - self.frames, self.windows, self.apart, self.span)
        first = min(starts)
        pictures = self._shown(clip, first, max(starts) + self.frames)
        mel = torch.stack([self._mel(clip, start) for start in starts])
        if self.augment:
            pictures, mel = changed_pictures(draw, pictures), changed_mel(draw, mel)
        rows = np.array(starts)[:, None] - first + np.arange(self.frames)
        sample = {"frames": _tensor(pictures[:, :, self.top :][rows]), "mel": mel}
        if self.lips:
            sample["lips"] = torch.from_numpy(self._opening(clip)[rows + first])
        return sample

    def _opening(self, clip: Clip) -> np.ndarray:
        """(n,) float32: the opening of the lips in every frame, of mean 0 and spread 1."""
        gap = read_truth(clip.path, ["lip_gap"])["lip_gap"]
        if gap.ndim != 1 or len(gap) < clip.frames:
            raise InputError(f"{truth_of(clip.path)}: 'lip_gap' has the shape {gap.shape}, the clip {clip.frames} frames; make it anew")
        return (gap - gap.mean()) / max(float(gap.std()), 1e-3)

    def _shown(self, clip: Clip, first: int, end: int) -> np.ndarray:
        """(end - first, 3, R, R) uint8: whole frames."""
        if self.store is not None:
            return self.store.frames(clip)[first:end].transpose(0, 3, 1, 2)
        return self._pictures(clip, [i / self.clips.fps for i in range(first, end)])

    def _blank(self) -> dict[str, Any]:
        pictures = torch.zeros(self.frames, 3, self.resolution - self.top, self.resolution, dtype=torch.uint8)
        mel = torch.zeros(1, MELS, self.columns)
        if self.windows == 1:
            return {"frames": pictures, "mel": mel, "label": 0.0}
        lips = {"lips": torch.zeros(self.windows, self.frames)} if self.lips else {}
        return {"frames": pictures.expand(self.windows, -1, -1, -1, -1), "mel": mel.expand(self.windows, -1, -1, -1)} | lips


def near_starts(draw: np.random.Generator, last: int, windows: int, apart: int, span: int) -> list[int]:
    """First frames of so many windows, none after `last`: within `span` frames where there is room, each `apart` or more from the others.

    Clips are three windows long, so there is room for a few windows a few frames apart.
    """
    slack = max(0, min(span, last) - apart * (windows - 1))
    gaps = np.sort(draw.integers(slack + 1, size=windows))
    offsets = gaps - gaps[0] + apart * np.arange(windows)
    start = int(draw.integers(max(0, last - int(offsets[-1])) + 1))
    return [min(last, start + int(offset)) for offset in offsets]


def changed_pictures(draw: np.random.Generator, pictures: np.ndarray) -> np.ndarray:
    """(n, 3, R, R) uint8 -> the same: mirrored or not, shifted and zoomed a little, in another light. All frames alike: lips move as they did."""
    side = pictures.shape[-1]
    mirror, zoom = draw.random() < 0.5, draw.uniform(0.92, 1.08)
    shift = draw.uniform(-0.03, 0.03, 2) * side
    gain, offset = draw.uniform(0.7, 1.3, 3) ** np.array([1, 0.3, 0.3]), draw.uniform(-20, 20)
    centre = (side - 1) / 2
    across = -zoom if mirror else zoom
    matrix = np.array([[across, 0, centre - across * centre + shift[0]], [0, zoom, centre - zoom * centre + shift[1]]])
    levels = np.arange(256)[:, None] * (gain[0] * np.array([1.0, gain[1], gain[2]])) + offset
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[:, None]
    frames = [
        cv2.LUT(cv2.warpAffine(np.ascontiguousarray(p.transpose(1, 2, 0)), matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), table)
        for p in pictures
    ]
    return np.stack(frames).transpose(0, 3, 1, 2)


def changed_mel(draw: np.random.Generator, mel: torch.Tensor) -> torch.Tensor:
    """SyncNet's mel (..., 80, columns) -> the same: louder or fainter, of another colour, with some noise; in [-4, 4] as before."""
    bands = mel.shape[-2]
    knots = draw.normal(0, 3, 5)  # dB
    colour = draw.uniform(-10, 10) + np.interp(np.linspace(0, 4, bands), np.arange(5), knots)
    decibels = (mel.numpy() / (2 * BOUND) + 0.5) * RANGE - RANGE + colour[:, None]
    floor = draw.uniform(-90, -45) + draw.normal(0, 5, mel.shape)
    joined = 10 * np.log10(10 ** (decibels / 10) + 10 ** (floor / 10))
    return torch.from_numpy(np.clip(2 * BOUND * (joined + RANGE) / RANGE - BOUND, -BOUND, BOUND).astype(np.float32))


def two_starts(draw: np.random.Generator, count: int, frames: int) -> tuple[int, int]:
    """First frames of a window and of another that does not overlap it, in a clip of `count` frames (three windows at least)."""
    start = int(draw.integers(count - frames + 1))
    before = max(0, start - frames + 1)  # starts of windows that end before this one begins
    after = max(0, count - frames - (start + frames) + 1)
    other = int(draw.integers(before + after))
    return start, other if other < before else start + frames + other - before


def weights_digest(network: torch.nn.Module) -> str:
    """16 hex digits of a network's weights, names and shapes."""
    h = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(network.state_dict().items()):
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.detach().cpu().float().contiguous().numpy())
    return h.hexdigest()


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> a batch: tensors stacked, numbers as tensors (position int64, others float32), "bad" and "notes" lists of what there is to say."""
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(first, str):
            batch["notes" if name == "note" else name] = [v for v in values if v]
        else:
            batch[name] = torch.tensor(values, dtype=torch.int64 if isinstance(first, int) else torch.float32)
    return batch


def loader(
    dataset: _Windows,
    picks: Picks | Sequence[list[Pick]],
    workers: int,
    *,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> DataLoader[dict[str, Any]]:
    """Batches of `dataset` in the order of `picks`, read by so many processes (0: in this one).

    start_method: of the processes, 'fork' or 'spawn'; the platform's own by default. Errors about the data come out as they were raised,
    without a worker's traceback.
    """
    return _Loader(
        _Carried(dataset),
        batch_sampler=picks,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate_carried,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        generator=torch.Generator(),  # or the seeds of the workers, which nothing uses, would be drawn from everybody's
        multiprocessing_context=start_method if workers else None,
    )


class _Carried(Dataset[Any]):
    """A data set whose errors come out as values: raised in a worker they would reach the user wrapped in a traceback."""

    def __init__(self, dataset: _Windows) -> None:
        self.dataset = dataset

    def __getitem__(self, pick: Pick) -> dict[str, Any] | LatentSyncError:
        if get_worker_info() is None:
            return self.dataset[pick]
        try:
            return self.dataset[pick]
        except LatentSyncError as e:
            return e


def _collate_carried(items: Sequence[Any]) -> Any:
    return next((item for item in items if isinstance(item, LatentSyncError)), None) or collate(items)


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Any:
        with _without_cv2_threads():
            batches = super().__iter__()  # starts the workers
        try:
            for batch in batches:
                if isinstance(batch, LatentSyncError):
                    try:
                        raise batch
                    finally:
                        del batch  # or it would hold itself by its traceback
                yield batch
        finally:
            # Now, and not when the last traceback that knows of this is forgotten: a program that ends with one would wait for its workers for ever.
            if hasattr(batches, "_shutdown_workers"):
                batches._shutdown_workers()


@contextlib.contextmanager
def _without_cv2_threads() -> Iterator[None]:
    """Within it OpenCV has no threads: a process that is forked off has none of them either, and would wait for them for ever."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _prepare_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM go to the whole group and are the main process's to hear, which saves and then ends the workers, with a
    # SIGTERM of its own to one that does not end by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    cv2.setNumThreads(1)  # as torch is set by the loader: the processes share the cores


def _tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures))


def _random(*key: int) -> np.random.Generator:
    """A generator for these numbers alone."""
    return np.random.default_rng([number % 2**64 for number in key])
