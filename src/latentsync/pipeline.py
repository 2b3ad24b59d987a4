"""The story: a video and a soundtrack in, the lip-synced video out. Every step is a call, in data order."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentsync import denoise, loading
from latentsync.device import memory_guard
from latentsync.errors import NoFaceError
from latentsync.face.align import alignment, crop
from latentsync.face.given import GivenPoints
from latentsync.face.mask import inpaint_mask, latent_mask, resized_mask
from latentsync.face.paste import paste
from latentsync.face.track import Tracked, Tracker
from latentsync.media.audio import Audio, open_audio
from latentsync.media.frame import Frame
from latentsync.media.timeline import timeline, timeline_length
from latentsync.media.video import Video, open_video
from latentsync.media.writer import VideoWriter, check_output
from latentsync.options import DEFAULT_MODEL, Options, exact, options
from latentsync.reference import Aligned, with_references
from latentsync.segments import Segment, settled, spoken
from latentsync.shifted import Block, sample_shifted
from latentsync.speech.track import SpeechTrack
from latentsync.stages import Ahead, Behind

if TYPE_CHECKING:
    from latentsync.loading import Model

READ_AHEAD = 8  # frames decoded and tracked in front of the network, besides the window being filled
WRITE_BEHIND = 8  # frames waiting to be pasted and encoded
EDGE = 2  # frames at either end of a span of `only` in which the new mouth comes and goes


class _Given(NamedTuple):
    """Windows of one length on their way into the network; see `LipSync.synthesise`."""

    crops: Tensor  # (b, f, R, R, 3) uint8
    contexts: Tensor  # (b, f, tokens, dim)
    numbers: list[int]  # of the b*f frames
    references: Tensor | None  # (b, R, R, 3) uint8


class Finished(NamedTuple):
    """One frame of the result on its way to the file: the generated face, to be pasted, or None for an untouched frame."""

    aligned: Aligned
    face: np.ndarray | None  # (R, R, 3) float32, 0..255


@dataclass(frozen=True)
class Progress:
    """How far a job is: frames written, frames expected (None if unknown), seconds since it began, and denoising steps done of the window at work."""

    done: int
    total: int | None
    seconds: float
    step: int = 0


@dataclass(kw_only=True)
class Result:
    """What a job did. Times are seconds of the result, spans are half-open."""

    out: Path
    model: str
    seed: int
    frames: int = 0
    seconds: float = 0.0  # of video
    faces: int = 0  # frames with a synthesised mouth
    without_face: list[tuple[float, float]] = field(default_factory=list)
    elapsed: float = 0.0
    device: str = ""
    dtype: str = ""
    steps: int = 0
    guidance: float = 0.0
    scheduler: str = ""
    notes: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)  # the short form of an evaluation (`evaluate.short`), where one was asked for

    @property
    def seconds_per_second(self) -> float:
        """Seconds of work for each second of video."""
        return self.elapsed / self.seconds if self.seconds else math.nan

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": str(self.out),
            "model": self.model,
            "seed": self.seed,
            "frames": self.frames,
            "seconds": round(self.seconds, 6),
            "frames_with_face": self.faces,
            "spans_without_face": [[round(a, 6), round(b, 6)] for a, b in self.without_face],
            "elapsed_seconds": round(self.elapsed, 3),
            "seconds_per_second_of_video": round(self.seconds_per_second, 4) if self.seconds else None,
            "device": self.device,
            "dtype": self.dtype,
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "notes": self.notes,
            **({"report": self.report} if self.report else {}),
        }


class LipSync:
    """The loaded networks of one model. Load once, then sync as many files as you like; a job keeps its state to itself."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.config = model.config
        self.compute = model.compute
        mask = inpaint_mask(self.config.resolution)  # (R, R), 1 = keep; its edge is soft above 256 px
        self.mask = torch.tensor(mask, device=self.compute.device)  # for the eye: where the new face shows
        self.seen_mask = torch.from_numpy(resized_mask(self.config.resolution)).to(self.compute.device)  # for the network: as in its training
        self.latent_mask = torch.from_numpy(latent_mask(self.config.resolution)).to(self.compute.device)  # (R/8, R/8)
        self._mask = mask

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        dtype: str = "auto",
        preview: bool = False,
        face_backend: str | None = None,
        faces: bool = True,
        compile: bool = False,
        home: str | Path | None = None,
    ) -> LipSync:
        """The pipeline of a named model ("1.6", "1.5") or of a folder, on the device.

        preview takes the tiny autoencoder: several times faster, softer teeth. face_backend None is the model's own.
        faces=False does without a face finder, for jobs that bring the places of the faces along (`points`). home is where downloads are kept
        (default: LATENTSYNC_HOME, else the platform's cache folder).
        Raises WeightsError when files are missing or do not fit, DeviceError when the device is not there.
        """
        return cls(
            loading.load(model, device=device, dtype=dtype, preview=preview, face_backend=face_backend, faces=faces, compile=compile, home=home)
        )

    def sync(
        self,
        video: str | Path,
        audio: str | Path | None,
        out: str | Path,
        *,
        segments: Sequence[Segment] = (),
        overwrite: bool = False,
        points: str | Path | None = None,
        progress: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> Result:
        """Lip-sync `video` (or a still) to `audio` and write it to `out`, whole or not at all.

        Settings are those of `Options`, also as the command line writes them. segments bring sounds of their own for parts of the result, see
        `segments.settled`; with them audio may be None, which leaves the video's sound around them. points names a file with the places of the
        faces, see `face.given`; without it they are found and followed. Raises InputError, NoFaceError, OutputError, UsageError, DeviceError.
        """
        chosen = settled(options(**settings), segments, base=audio is not None)
        check_output(Path(out), chosen.codec, chosen.crf, overwrite=overwrite, inputs=(Path(video), *(s.audio for s in segments)))
        with spoken(Path(video), None if audio is None else Path(audio), Path(out), segments) as (sound, notes):
            result = self.run(Path(video), sound, Path(out), chosen, overwrite=overwrite, points=points, progress=progress)
        result.notes += notes
        return result

    def run(
        self,
        video: Path,
        audio: Path,
        out: Path,
        chosen: Options,
        *,
        overwrite: bool = False,
        points: str | Path | None = None,
        progress: Callable[[Progress], None] | None = None,
        inspect: Callable[[Finished, Frame], None] | None = None,
    ) -> Result:
        """`sync` with its options already made. `inspect` sees every frame once it is pasted and handed to the encoder, in order."""
        began = time.monotonic()
        with open_video(video) as source:
            sound = open_audio(audio, beside=video)
            length = sound.info.duration
            chosen.check_spans(length)
            result = Result(
                out=out,
                model=self.config.name,
                seed=chosen.seed,
                device=str(self.compute.device),
                dtype=self.compute.dtype_name,
                **chosen.sampling(self.config.defaults)._asdict(),
            )
            report = _Report(result, progress, timeline_length(source, length, **_time(chosen)), began)
            writer = VideoWriter(
                out, source.info, audio=sound, length=length, codec=chosen.codec, crf=chosen.crf, overwrite=overwrite, rate=chosen.fps
            )

            def finish(item: Finished) -> None:
                frame = self._paste(item, chosen)
                writer.write(frame)
                report.frame(item)
                if inspect is not None:
                    inspect(item, frame)

            with writer, Behind(finish, WRITE_BEHIND, "write") as sink:

                def watch(step: int) -> None:
                    sink.check()
                    report.step(step)

                with closing(self._synthesise(source, sound, chosen, points, watch, result.notes)) as items:
                    for item in items:
                        sink.put(item)
            result.notes += [*source.info.notes, *sound.info.notes, *writer.notes]
            if writer.audio_copied is False:
                result.notes.append(f"{out.suffix} files cannot take the soundtrack as it is ({sound.info.codec}): encoded as AAC")
        if not isinstance(chosen.face, str) and not points and not result.faces:
            asked = f"face {chosen.face}" if isinstance(chosen.face, int) else "the face at {:g},{:g}".format(*chosen.face)
            result.notes.append(
                f"{asked} was asked for, but no frame shows it; faces are counted from the left, points are pixels of the upright picture"
            )
        if self.model.untrained:
            result.notes.append("the model is untrained: its mouths are noise")
        report.close()
        return result

    def stream(self, video: str | Path, audio: str | Path, *, points: str | Path | None = None, **settings: Any) -> Iterator[Frame]:
        """Finished frames, in order, each with its time, duration and picture. Settings are those of `Options`; nothing is written."""
        chosen = options(**settings)
        with open_video(Path(video)) as source:
            sound = open_audio(Path(audio), beside=Path(video))
            with closing(self._synthesise(source, sound, chosen, points)) as items:
                for item in items:
                    yield self._paste(item, chosen)

    # The steps, in data order.

    def _synthesise(
        self,
        source: Video,
        sound: Audio,
        chosen: Options,
        points: str | Path | None,
        watch: Callable[[int], None] | None = None,
        notes: list[str] | None = None,
    ) -> Generator[Finished, None, None]:
        """Frames of the result with their generated faces, not yet pasted. `watch` hears every denoising step, and may end the job by raising.

        What is worth knowing is appended to `notes`.
        """
        tracker: Tracker | GivenPoints[Frame]
        tracker = GivenPoints(Path(points), lambda frame: frame.index) if points else Tracker(self.model.faces(), choose=chosen.face)
        aligned = self._align(source, sound.info.duration, tracker, chosen)
        if self.config.reference == "fixed":
            aligned = with_references(aligned, [] if notes is None else notes)
        with closing(SpeechTrack(sound.samples, self.model.whisper)) as speech, Ahead(aligned, READ_AHEAD, "read") as items:

            def on_step(done: int, latents: Tensor | None = None) -> None:
                items.check()
                if watch is not None:
                    watch(done)

            windows = pieces(items, self.config.window)
            if self.config.shift and chosen.cache == 1:
                for faces, shot in shots(windows):
                    if faces:
                        yield from self._shot(shot, speech, chosen, on_step)
                    else:
                        yield from (Finished(item, None) for window in shot for item in window)
            else:  # a cache holds features of the frames that a window has at every step, so windows stay where they are
                noise = self.noise(chosen.seed)
                for batch in batches(windows, chosen.batch_windows):
                    for piece, made in zip(batch, self._faces(batch, speech, noise, chosen, on_step), strict=True):
                        yield from (Finished(item, face) for item, face in zip(piece, made, strict=True))

    def _align(self, source: Video, length: Fraction, tracker: Tracker | GivenPoints[Frame], chosen: Options) -> Iterator[Aligned]:
        """Decoded, followed and cut-out faces: everything that happens before the network."""
        heard, silent = until(timeline(source, length, **_time(chosen)), length)
        number = 0
        share = _Share(chosen, length)
        for tracked in tracker.track(heard, lambda frame: frame.picture):
            picture = tracked.frame.picture
            matrix = cut_out = None
            strength = share.of(tracked)
            if not strength:  # its mouth stays as it is, but the person is followed
                yield Aligned(number, replace(tracked, points=None, strength=0.0), None, None, spoken=False)
                number += 1
                continue
            if tracked.points is not None:
                matrix = alignment(tracked.points, self.config.resolution, picture.pixel_aspect)
                cut_out = crop(picture, matrix, self.config.resolution)
            elif chosen.on_missing_face == "error":
                raise NoFaceError(
                    f"no face in frame {number} ({float(tracked.frame.time):.2f} s); pass --on-missing-face copy to keep such frames as they are, "
                    "or --face to choose another person"
                )
            yield Aligned(number, replace(tracked, strength=strength * tracked.strength), matrix, cut_out)
            number += 1
        for frame in silent:  # the sound is over: nothing to say, nothing to change
            yield Aligned(number, Tracked(frame=frame, points=None, strength=0.0, cut=False), None, None, spoken=False)
            number += 1

    def noise(self, seed: int) -> Tensor:
        """(c, 1, R/8, R/8) noise that denoising begins with, the same for every frame of a video."""
        return denoise.shared_noise(seed, self.config.vae.latent_channels, self.config.latent_size, self.config.latent_size) * self.config.temperature

    @torch.inference_mode()
    def _shot(self, windows: Iterator[list[Aligned]], speech: SpeechTrack, chosen: Options, on_step: Callable[[int], None]) -> Iterator[Finished]:
        """The frames of a shot, denoised in windows that shift from step to step."""
        sampling = chosen.sampling(self.config.defaults)
        noise = self.noise(chosen.seed).to(self.compute.device)

        def block(items: list[Aligned], condition: Tensor, audio: Tensor) -> Block[list[Aligned]]:
            return Block(items, noise.expand(-1, len(items), -1, -1), condition, audio)

        def blocks() -> Iterator[Block[list[Aligned]]]:
            for window in windows:
                given = self._given([window], speech)
                condition = torch.cat(self._condition(given, chosen), dim=1)[0]
                audio = given.contexts[0].to(device=self.compute.device, dtype=self.compute.dtype)
                size = self.config.shift
                parts = [window[at : at + size] for at in range(0, len(window), size)]
                del window, given  # pictures are held until they are handed out, and no longer
                yield from map(block, parts, condition.split(size, dim=1), audio.split(size))

        with memory_guard(self.compute):
            for done in sample_shifted(
                self.model.unet,
                lambda: denoise.make_scheduler(sampling.scheduler, self.config.diffusion),
                blocks(),
                window=self.config.window // self.config.shift,
                steps=sampling.steps,
                guidance=sampling.guidance,
                still_guidance=self.config.still_guidance,
                batch=chosen.batch_windows,
                on_step=on_step,
            ):
                items = [item for part, _ in done for item in part]
                latents = torch.cat([found for _, found in done], dim=1)[None]
                crops = torch.from_numpy(np.stack([item.crop for item in items if item.crop is not None]))[None]
                yield from (Finished(item, face) for item, face in zip(items, self._decoded(latents, crops)[0].numpy(), strict=True))

    def _faces(
        self, batch: list[list[Aligned]], speech: SpeechTrack, noise: Tensor, chosen: Options, on_step: Callable[[int, Tensor], None]
    ) -> list[Sequence[np.ndarray | None]]:
        """Generated faces of every piece, (R, R, 3) float32 in 0..255; None for frames without one. Windows of one length run together."""
        faces: list[Sequence[np.ndarray | None]] = [[None] * len(piece) for piece in batch]
        windows = sorted((place for place, piece in enumerate(batch) if piece[0].crop is not None), key=lambda place: len(batch[place]), reverse=True)
        for _, group in itertools.groupby(windows, key=lambda place: len(batch[place])):
            places = list(group)
            given = self._given([batch[place] for place in places], speech)
            made = self.synthesise(
                given.crops, given.contexts, noise=noise, numbers=given.numbers, options=chosen, on_step=on_step, references=given.references
            )
            for place, window in zip(places, made.numpy(), strict=True):
                faces[place] = list(window)
        return faces

    def _given(self, windows: list[list[Aligned]], speech: SpeechTrack) -> _Given:
        """What the network is given of windows of one length."""
        with memory_guard(self.compute):
            contexts = torch.stack([speech.contexts([item.tracked.frame.time for item in window]) for window in windows])
        crops = torch.from_numpy(np.stack([np.stack([item.crop for item in window if item.crop is not None]) for window in windows]))
        shown = [window[0].reference for window in windows if window[0].reference is not None]
        numbers = [item.number for window in windows for item in window]
        return _Given(crops, contexts, numbers, torch.from_numpy(np.stack(shown)) if shown else None)

    @torch.inference_mode()
    def synthesise(
        self,
        crops: Tensor,
        contexts: Tensor,
        *,
        noise: Tensor,
        numbers: list[int],
        options: Options,
        on_step: Callable[[int, Tensor], None] | None = None,
        posterior: tuple[Tensor, Tensor] | None = None,
        references: Tensor | None = None,
    ) -> Tensor:
        """New mouths for aligned faces: crops (b, f, R, R, 3) uint8 and contexts (b, f, tokens, dim) -> (b, f, R, R, 3) float32, about 0..255.

        noise (c, 1, R/8, R/8) is shared by all frames; numbers, one for each of the b*f frames, choose the autoencoder's sampling noise, unless
        `posterior` gives it: two tensors (b*f, c, R/8, R/8), for the masked faces and for the references. `references` (b, R, R, 3) uint8 is
        one face for each window, which shows all its frames what to draw; None shows each frame its own face, as published. A reference of a
        whole window is the mean of the autoencoder's posterior, not a sample of it.
        """
        b, f = crops.shape[:2]
        device, dtype = self.compute.device, self.compute.dtype
        sampling = options.sampling(self.config.defaults)
        with memory_guard(self.compute):
            mask, masked, reference = self._condition(_Given(crops, contexts, numbers, references), options, posterior)
            latents = denoise.sample(
                self.model.unet,
                denoise.make_scheduler(sampling.scheduler, self.config.diffusion),
                noise=noise.to(device).expand(b, -1, f, -1, -1).contiguous(),
                mask=mask,
                masked=masked,
                reference=reference,
                audio=contexts.to(device=device, dtype=dtype),
                steps=sampling.steps,
                guidance=sampling.guidance,
                still_guidance=self.config.still_guidance,
                cache=self.model.unet.make_cache(options.cache) if options.cache > 1 else None,
                on_step=on_step,
            )
            return self._decoded(latents, crops)

    def _condition(self, given: _Given, options: Options, posterior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mask (b, 1, f, h, w), masked faces and references (b, c, f, h, w) as latents; see `synthesise`."""
        b, f = given.crops.shape[:2]
        device = self.compute.device
        pixels = self._pixels(given.crops.flatten(0, 1))
        shape = (self.config.vae.latent_channels, self.config.latent_size, self.config.latent_size)
        draws = posterior or tuple(
            torch.stack([denoise.frame_noise(options.seed, 2 * number + which, shape) for number in given.numbers]) for which in (0, 1)
        )
        masked = self.model.vae.encode(pixels * self.seen_mask, draws[0].to(device))
        if given.references is None:
            reference = windowed(self.model.vae.encode(pixels, draws[1].to(device)), b)
        else:
            reference = self.model.vae.encode(self._pixels(given.references))[:, :, None].expand(-1, -1, f, -1, -1)
        return self.latent_mask.to(reference.dtype).expand(b, 1, f, -1, -1), windowed(masked, b), reference

    def _decoded(self, latents: Tensor, crops: Tensor) -> Tensor:
        """Faces (b, f, R, R, 3) float32: crops (b, f, R, R, 3) uint8 where they are kept, elsewhere latents (b, c, f, h, w) as pixels."""
        decoded = self.model.vae.decode(latents.transpose(1, 2).flatten(0, 1)).float()
        faces = decoded * (1 - self.mask) + self._pixels(crops.flatten(0, 1)) * self.mask
        return ((faces / 2 + 0.5) * 255).permute(0, 2, 3, 1).unflatten(0, crops.shape[:2]).cpu()  # clipped in the frame, as published

    def _pixels(self, faces: Tensor) -> Tensor:
        """(n, R, R, 3) uint8 -> (n, 3, R, R) float32 in [-1, 1], on the device."""
        return faces.to(self.compute.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _paste(self, item: Finished, chosen: Options) -> Frame:
        """The frame with its new face; the very same picture where there is none."""
        frame = item.aligned.tracked.frame
        if item.face is None or item.aligned.matrix is None:
            return frame
        picture = frame.picture
        tracked = item.aligned.tracked
        only = self._mask if chosen.paste == "mask" else None
        outline = tracked.outline if self.config.hull else None
        patch = paste(
            item.face,
            item.aligned.matrix,
            picture.width,
            picture.height,
            tracked.strength,
            mask=only,
            outline=outline,
            muzzle=self.config.muzzle,
        )
        return replace(frame, picture=picture.blend(patch.box, patch.rgb, patch.alpha))


def windowed(latents: Tensor, batch: int) -> Tensor:
    """(b*f, c, h, w) -> (b, c, f, h, w)."""
    return latents.unflatten(0, (batch, -1)).transpose(1, 2)


def pieces(items: Iterable[Aligned], size: int) -> Iterator[list[Aligned]]:
    """Consecutive frames, at most `size` together: all with a face, in one shot and with one reference (a window for the network), or all without."""
    piece: list[Aligned] = []
    for item in items:
        if piece and (len(piece) == size or parted(piece[-1], item)):
            yield piece
            piece = []
        piece.append(item)
    if piece:
        yield piece


def parted(before: Aligned, item: Aligned) -> bool:
    """Whether neighbouring frames have nothing to do with each other: between two shots, between a face and none, or between two references."""
    return item.tracked.cut or (item.crop is None) != (before.crop is None) or item.reference is not before.reference


def shots(windows: Iterable[list[Aligned]]) -> Iterator[tuple[bool, Iterator[list[Aligned]]]]:
    """Whether there are faces, and the windows of a shot, or of what is not generated. Each is to be used up before the next is asked for."""
    number, last = 0, None

    def shot(window: list[Aligned]) -> tuple[bool, int]:
        nonlocal number, last
        number += last is not None and parted(last, window[0])
        last = window[-1]
        return window[0].crop is not None, number

    return ((faces, group) for (faces, _), group in itertools.groupby(windows, key=shot))


def batches(windows: Iterable[list[Aligned]], size: int) -> Iterator[list[list[Aligned]]]:
    """Up to `size` consecutive pieces together; the last batch may be smaller."""
    it = iter(windows)
    while batch := list(itertools.islice(it, size)):
        yield batch


def until(frames: Iterator[Frame], length: Fraction) -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Frames that begin before `length` seconds, then, once those are used up, the rest."""
    rest: list[Frame] = []

    def first() -> Iterator[Frame]:
        for frame in frames:
            if frame.time >= length:
                rest.append(frame)
                return
            yield frame

    def second() -> Iterator[Frame]:
        yield from rest
        yield from frames

    return first(), second()


class _Share:
    """How much of the new mouth a frame shows for the sake of `only`: nothing outside the spans; inside, it comes and goes over EDGE frames."""

    def __init__(self, chosen: Options, length: Fraction) -> None:
        self._spans = [(exact(start), exact(end)) for start, end in chosen.only]
        self._length = length
        self._count = 0  # frames of this span so far, within this shot

    def of(self, tracked: Tracked[Frame]) -> float:
        """0..1, for each frame in turn; a frame belongs to the span in which it begins."""
        if not self._spans:
            return 1.0
        frame = tracked.frame
        end = next((end for start, end in self._spans if start <= frame.time < end), None)
        if end is None:
            self._count = 0
            return 0.0
        self._count = EDGE + 1 if tracked.cut or frame.time == 0 else self._count + 1
        left = math.ceil((end - frame.time) / frame.duration) if end < self._length else EDGE + 1
        return min(1.0, self._count / (EDGE + 1), left / (EDGE + 1))


def _time(chosen: Options) -> dict[str, Any]:
    """The options that lay the video over the length of the sound."""
    return {"when_audio_longer": chosen.when_audio_longer, "when_video_longer": chosen.when_video_longer, "fps": chosen.fps}


class _Report:
    """Counts what was written, and tells."""

    def __init__(self, result: Result, progress: Callable[[Progress], None] | None, total: int | None, began: float) -> None:
        self._result = result
        self._progress = progress
        self._total = total
        self._began = began
        self._step = 0
        self._lock = threading.Lock()

    def frame(self, item: Finished) -> None:
        frame = item.aligned.tracked.frame
        start, end = float(frame.time), float(frame.time + frame.duration)
        r = self._result
        r.frames += 1
        r.seconds = end
        if item.face is not None:
            r.faces += 1
        elif not item.aligned.spoken:
            pass
        elif r.without_face and abs(r.without_face[-1][1] - start) < 1e-6:
            r.without_face[-1] = (r.without_face[-1][0], end)
        else:
            r.without_face.append((start, end))
        self._tell()

    def step(self, step: int) -> None:
        self._step = step
        self._tell()

    def _tell(self) -> None:
        """Called from the thread that writes and from the one that denoises."""
        if self._progress:
            with self._lock:  # so that counts never go back
                self._progress(Progress(self._result.frames, self._total, time.monotonic() - self._began, self._step))

    def close(self) -> None:
        self._result.elapsed = time.monotonic() - self._began
