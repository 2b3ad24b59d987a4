"""The predictor of Cog and Replicate, with the interface that LatentSync has there: `cog predict -i video=@speaker.mp4 -i audio=@speech.wav`.

Which model, where its files lie and on what it runs is told by environment variables, see docs/deploy.md.
"""
# ruff: noqa: B008, T201  Cog reads inputs from calls in the signature, and shows what is printed as the log of a prediction

import os
import tempfile
import time
from pathlib import Path as File

from cog import BasePredictor, Input, Path

from latentsync import options, weights
from latentsync.pipeline import LipSync, Progress
from latentsync.preflight import preflight

PICTURES = ".jpg,.jpeg,.png,.bmp,.webp,.mp4"
EVERY = 5.0  # seconds between two lines of the log


class Predictor(BasePredictor):
    """One model, loaded once for all predictions."""

    def setup(self) -> None:
        """Load the model of LATENTSYNC_MODEL (1.6), downloaded first where LATENTSYNC_DOWNLOAD is 1, to LATENTSYNC_DEVICE (auto)."""
        model = os.environ.get("LATENTSYNC_MODEL") or options.DEFAULT_MODEL
        if os.environ.get("LATENTSYNC_DOWNLOAD") == "1" and model in weights.PUBLISHED.bundles:
            for line in weights.download_with_progress(model):
                print(line)
        device, dtype = (os.environ.get(f"LATENTSYNC_{name}") or "auto" for name in ("DEVICE", "DTYPE"))
        self.lipsync = LipSync.load(model, device=device, dtype=dtype)
        self.lipsync.model.faces()  # read once, so that a lack shows here, and not in the first prediction
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def predict(
        self,
        video: Path = Input(description="The video of the speaking person, or an image: .jpg .jpeg .png .bmp .webp .mp4", accept=PICTURES),
        audio: Path = Input(description="What to say: a sound, or a video with sound", accept="audio/*,video/*"),
        guidance_scale: float = Input(description="How strongly the sound leads; up to 1 it is off, which halves the work", ge=0, le=10, default=1.0),
        inference_steps: int = Input(description="Denoising steps: 20 to 50 for the best picture", ge=1, le=options.MAX_STEPS, default=20),
        seed: int = Input(description="Set to 0 for a random seed, which the log tells", ge=0, le=options.MAX_SEED, default=0),
    ) -> Path:
        """The lip-synced video, an .mp4 that stays until the next prediction. What cannot be used is refused in a sentence."""
        if self.folder is not None:
            self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="latentsync-")
        source, sound, out = File(video), File(audio), File(self.folder.name) / "output.mp4"
        chosen = options.options(steps=inference_steps, guidance=guidance_scale, seed=seed)
        preflight(source, sound, out, chosen)
        result = self.lipsync.run(source, sound, out, chosen, progress=_Log())
        print(f"{result.frames} frames, {result.faces} with a new mouth, seed {result.seed}, {result.elapsed:.1f} s on {result.device}")
        for note in result.notes:
            print(f"note: {note}")
        return Path(out)


class _Log:
    """A line now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            print(f"{progress.done} of {progress.total or 'unknown'} frames, {progress.seconds:.0f} s")
