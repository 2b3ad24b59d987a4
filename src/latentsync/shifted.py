"""Denoising of a shot in windows that begin earlier at every step, so that what one window decides reaches its neighbours.

Windows that lie at the same frames at each step know nothing of each other: each comes to its own mouth, a little more open here, a little more
closed there, and the picture jumps where they meet. Here the windows of a step lie across the borders of the step before. Every frame still goes
through the network once for each step, and any length takes constant memory: a step's window is denoised as soon as the step before is through
with its frames, so that a few windows are under way at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from latentsync.denoise import NoisePredictor, predict

T = TypeVar("T")


@dataclass(eq=False)
class Block(Generic[T]):
    """Neighbouring frames that go through the steps together, and what the caller wants back with them.

    noise (c, n, h, w) float32, condition (2 c + 1, n, h, w): mask, masked and reference; audio (n, tokens, dim), in the network's dtype.
    """

    item: T
    noise: Tensor
    condition: Tensor
    audio: Tensor
    trail: list[Tensor] = field(default_factory=list)  # latents (c, n, h, w) before the first step and after each one that is done
    scheduler: Any = None

    @property
    def latents(self) -> Tensor:
        """(c, n, h, w) as far as they are."""
        return self.trail[-1]


def sample_shifted(
    unet: NoisePredictor,
    scheduler: Callable[[], Any],
    blocks: Iterable[Block[T]],
    *,
    window: int,
    steps: int,
    guidance: float,
    still_guidance: float | None = None,
    batch: int = 1,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Iterator[list[Block[T]]]:
    """The blocks of one shot in order, denoised, some at a time; `latents` are then as `denoise.sample` gives them.

    The windows of each step hold `window` blocks and begin one block earlier than those of the step before; after `window` steps they lie as at
    first. The first and the last window of a step lie within the shot, and share frames with their neighbours rather than being short: of those
    frames the neighbour's result counts. Only the last block may have fewer frames than the others.

    scheduler: makes a fresh one; each block has its own, for those that remember the step before. `batch` windows of one step go through the
    network together. `on_step` hears after each call of the network how many steps its windows have done, and their latents (b, c, f, h, w).
    """
    line = _Line[T](window, steps)
    coming = iter(blocks)
    while not line.complete:
        new = list(islice(coming, window * batch))
        line.complete = len(new) < window * batch
        for block in new:
            block.scheduler = scheduler()
            block.scheduler.set_timesteps(steps, device=block.noise.device)
            block.trail = [block.noise * block.scheduler.init_noise_sigma]
            line.blocks.append(block)
        for step in range(steps):
            while windows := line.ready(step, batch):
                _denoise(unet, windows, step, guidance, still_guidance, on_step)
        if done := line.finished():
            yield done


@dataclass
class _Window(Generic[T]):
    """Blocks that one pass shows to the network, and which of them it moves on."""

    shown: list[Block[T]]
    moved: slice


class _Line(Generic[T]):
    """The blocks under way. Places count from the shot's first block."""

    def __init__(self, window: int, steps: int) -> None:
        self.blocks: list[Block[T]] = []
        self.complete = False  # no more blocks come
        self._window = window
        self._first = 0  # place of blocks[0]
        self._given = 0  # place of the first block that was not handed out yet
        self._next = [-(step % window) for step in range(steps)]  # place where each step's next window begins

    @property
    def _count(self) -> int:
        return self._first + len(self.blocks)

    def _through(self, step: int) -> int:
        """Place of the first block that is not yet through so many steps."""
        return self._count if step == 0 else min(max(0, self._next[step - 1]), self._count)

    def ready(self, step: int, most: int) -> list[_Window[T]]:
        """The next windows of a step that the step before is through with, of one length."""
        known = self._through(step)
        last = self.complete and known == self._count
        out: list[_Window[T]] = []
        while len(out) < most:
            begin = self._next[step]
            moved = (max(0, begin), min(begin + self._window, self._count))
            shown = max(0, min(begin, self._count - self._window) if last else begin)
            end = min(shown + self._window, self._count) if last else shown + self._window
            if moved[0] >= moved[1] or end > known:
                break
            made = _Window(self.blocks[shown - self._first : end - self._first], slice(moved[0] - shown, moved[1] - shown))
            if out and _frames(made) != _frames(out[0]):
                break
            out.append(made)
            self._next[step] += self._window
        return out

    def finished(self) -> list[Block[T]]:
        """Blocks that are through all steps and were not handed out yet. What no window can want to see any more is forgotten."""
        end = self._through(len(self._next))
        out = self.blocks[self._given - self._first : end - self._first]
        self._given = end
        keep = max(self._first, end - self._window)
        del self.blocks[: keep - self._first]
        self._first = keep
        return out


def _frames(window: _Window[Any]) -> int:
    return sum(block.audio.shape[0] for block in window.shown)


def _denoise(
    unet: NoisePredictor,
    windows: list[_Window[T]],
    step: int,
    guidance: float,
    still_guidance: float | None,
    on_step: Callable[[int, Tensor], None] | None,
) -> None:
    """Take the moved blocks of windows of one length through a step. The others are shown as they were before it."""
    scheduler = windows[0].shown[0].scheduler
    t = scheduler.timesteps[step]
    latents = torch.stack([torch.cat([block.trail[step] for block in w.shown], dim=1) for w in windows])
    predicted = predict(
        unet,
        scheduler.scale_model_input(latents, t),
        t,
        torch.stack([torch.cat([block.condition for block in w.shown], dim=1) for w in windows]),
        torch.stack([torch.cat([block.audio for block in w.shown]) for w in windows]),
        guidance=guidance,
        still_guidance=still_guidance,
    )
    for w, found in zip(windows, predicted, strict=True):
        parts = found.split([block.audio.shape[0] for block in w.shown], dim=1)
        for block, part in list(zip(w.shown, parts, strict=True))[w.moved]:
            block.trail.append(block.scheduler.step(part, t, block.trail[step]).prev_sample)
    if on_step:
        on_step(step + 1, latents)
