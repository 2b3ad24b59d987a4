"""Pictures encoded once: a clip's latents lie in a file, and a training step reads from it what its window needs, without an autoencoder."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.errors import InputError, OutputError, WeightsError
from latentsync.hub import locked
from latentsync.media.clip import read_frames
from latentsync.models.vae import Autoencoder
from latentsync.train.cache import content_digest
from latentsync.train.clips import Clip, ClipSet

CLEAN, MASKED = 0, 1  # places along the second axis
_FORMAT = "1"  # goes up when the same clip leads to other numbers
_AT_ONCE = 64  # frames encoded together
_REPORT_EVERY = 10.0  # seconds

Report = Callable[[str], None]


class Latents:
    """The latents of clips under their content, in a folder: (variants, 2, n, c, h, w) float16 each, scaled as the U-Net sees them.

    Variants are the clip as it is and, where `mirrored`, seen in a mirror; then come the whole frames and the masked ones. They are means of the
    autoencoder's posterior. `weights` says which autoencoder made them, so that another one's are never taken for them.
    """

    def __init__(self, folder: str | os.PathLike[str], *, weights: str, resolution: int, fps: Fraction, mirrored: bool) -> None:
        self.resolution, self.fps, self.mirrored = resolution, fps, mirrored
        rate = f"{fps.numerator}-{fps.denominator}"
        self.folder = Path(folder) / "latents" / f"{_FORMAT}-{weights}-{resolution}-{rate}{'-mirrored' * mirrored}"

    def open(self, clip: Clip) -> np.ndarray:
        """(variants, 2, n, c, h, w) float16, mapped and not read. Raises InputError where the clip was never encoded, or is another one now."""
        path = self._path(clip)
        try:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as e:
            raise InputError(f"{clip.path}: its latents are not in {self.folder}; did the clip change since training began? Begin again") from e
        if found.shape[2] < clip.frames:
            raise InputError(f"{clip.path}: {found.shape[2]} of its {clip.frames} frames are encoded; remove {path} and begin again")
        return found

    def encode(self, clips: ClipSet, vae: Autoencoder, mask: Tensor, device: torch.device, say: Report) -> None:
        """Make what is missing. Processes that do this together, each from a place of its own in the list, share the work.

        mask (R, R), 1 = keep: what the masked frames show. Raises OutputError where nothing can be written; clips that cannot be read raise
        InputError, or are passed over where such clips are left out: reading their latents then tells.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"cannot make {self.folder}: {e.strerror or e}; set data.cache to a folder with room") from e
        share = int(os.environ.get("RANK", "0")) / int(os.environ.get("WORLD_SIZE", "1"))
        first = int(share * len(clips))
        told, made = time.monotonic(), 0
        for done, index in enumerate([*range(first, len(clips)), *range(first)], start=1):
            clip = clips[index]
            try:
                made += self._ensure(clip, vae, mask, device)
            except InputError:
                if clips.on_bad == "error":
                    raise
            if made and (time.monotonic() - told > _REPORT_EVERY or done == len(clips)):
                told = time.monotonic()
                say(f"encoded the pictures of {done} of {len(clips)} clips")

    def _path(self, clip: Clip) -> Path:
        return self.folder / f"{content_digest(clip.path)}.npy"

    def _ensure(self, clip: Clip, vae: Autoencoder, mask: Tensor, device: torch.device) -> bool:
        """Whether the clip's latents had to be made."""
        path = self._path(clip)
        if _frames_in(path) >= clip.frames:
            return False
        try:
            with locked(path):
                if _frames_in(path) >= clip.frames:  # another process was faster
                    return False
                self._write(path, self._made(clip, vae, mask, device))
        except WeightsError as e:  # the lock is that of downloads, and so are its words
            raise OutputError(f"cannot write in {self.folder}: {e.__cause__}; set data.cache to a folder with room") from e
        return True

    @torch.no_grad()
    def _made(self, clip: Clip, vae: Autoencoder, mask: Tensor, device: torch.device) -> np.ndarray:
        frames = read_frames(clip.path, [i / self.fps for i in range(clip.frames)], side=self.resolution)
        variants = []
        for mirror in (False, True)[: 1 + self.mirrored]:
            parts = []
            for begin in range(0, len(frames), _AT_ONCE):
                part = np.ascontiguousarray(frames[begin : begin + _AT_ONCE, :, :: -1 if mirror else 1].transpose(0, 3, 1, 2))
                pixels = torch.from_numpy(part).to(device).float() / 127.5 - 1
                parts.append(torch.stack([vae.encode(seen).half().cpu() for seen in (pixels, pixels * mask.to(device))]))
            variants.append(torch.cat(parts, dim=1))
        return torch.stack(variants).numpy()

    def _write(self, path: Path, latents: np.ndarray) -> None:
        scratch = path.with_name(f".{uuid.uuid4().hex}")
        try:
            with open(scratch, "wb") as f:
                np.save(f, latents, allow_pickle=False)
            scratch.replace(path)
        except OSError as e:
            with suppress(OSError):
                scratch.unlink()
            raise OutputError(f"cannot write {path}: {e.strerror or e}; make room, set data.cache, or recipe.latents='each step'") from e


def window_of(latents: np.ndarray, mirror: bool, which: int, frames: Sequence[int]) -> Tensor:
    """(variants, 2, n, c, h, w) -> (c, f, h, w) float16: these frames, of the mirrored clip or the plain one, CLEAN or MASKED."""
    return torch.from_numpy(np.stack([latents[int(mirror), which, i] for i in frames], axis=1))


def _frames_in(path: Path) -> int:
    """Frames of a finished file, 0 where there is none or it is damaged."""
    try:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[2])
    except (OSError, ValueError, IndexError):
        return 0
