"""Denoising of a shot in windows that begin earlier at every step, so that what one window decides reaches its neighbours.

Windows that lie at the same frames at each step know nothing of each other: each comes to its own mouth, a little more open here, a little more
closed there, and the picture jumps where they meet. Here the windows of a step lie across the borders of the step before. In a long shot nearly every
frame still goes through the network once for each step, and any length takes constant memory: a window is denoised as soon as the step before is
through with its frames, so that a few windows are under way at any time, more of them with more steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from latentsync.denoise import NoisePredictor, predict

T = TypeVar("T")


@dataclass(frozen=True)
class Block(Generic[T]):
    """Neighbouring frames that go through the steps together, and what the caller wants back with their latents."""

    item: T
    noise: Tensor  # (c, n, h, w) float32
    condition: Tensor  # (2 c + 1, n, h, w): mask, masked and reference, as in `denoise.sample`
    audio: Tensor  # (n, tokens, dim), in the network's dtype


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
    on_step: Callable[[int], None] | None = None,
) -> Iterator[list[tuple[T, Tensor]]]:
    """The blocks of one shot in order, at most `window * batch` at a time: items, and latents (c, n, h, w) as `denoise.sample` gives them.

    The windows of each step hold `window` blocks and begin one block earlier than those of the step before; after `window` steps they lie as at
    first. The first and the last window of a step lie within the shot, and share frames with their neighbours rather than being short: of those
    frames the neighbour's result counts. Only the last block may have fewer frames than the others.

    scheduler: makes a fresh one; each block has its own, for those that remember the step before. `batch` windows of one step go through the
    network together. `on_step` hears after each call of the network how many steps its windows have done.
    """
    line = _Line[T](window, steps)
    coming = iter(blocks)
    while not line.complete:
        new = list(islice(coming, window * batch))
        line.complete = len(new) < window * batch
        for block in new:
            line.add(block, scheduler())
        del new  # what is handed out is not held here
        for step in range(steps):
            while windows := line.ready(step, batch):
                _denoise(unet, windows, step, guidance, still_guidance)
                if on_step:
                    on_step(step + 1)
        while done := line.finished(window * batch):
            yield done


class _Part:
    """A block under way."""

    def __init__(self, block: Block[Any], scheduler: Any) -> None:
        self.condition, self.audio, self.scheduler = block.condition, block.audio, scheduler
        self.frames = len(block.audio)
        self.latents = {0: block.noise * scheduler.init_noise_sigma}  # by the number of steps that are done; those that a window may still show


class _Window(NamedTuple):
    """Blocks that one pass shows to the network, and which of them it moves on."""

    shown: list[_Part]
    moved: slice

    @property
    def frames(self) -> int:
        return sum(part.frames for part in self.shown)


class _Line(Generic[T]):
    """The blocks under way. Places count from the shot's first block."""

    def __init__(self, window: int, steps: int) -> None:
        self.complete = False  # no more blocks come
        self._window, self._steps = window, steps
        self._parts: list[_Part] = []
        self._first = 0  # place of _parts[0]
        self._items: deque[T] = deque()  # of the blocks that were not handed out yet
        self._given = 0  # place of the first of them
        self._next = [-(step % window) for step in range(steps)]  # place where each step's next window begins

    def add(self, block: Block[T], scheduler: Any) -> None:
        scheduler.set_timesteps(self._steps, device=block.noise.device)
        self._parts.append(_Part(block, scheduler))
        self._items.append(block.item)

    @property
    def _count(self) -> int:
        return self._first + len(self._parts)

    def _through(self, step: int) -> int:
        """Place of the first block that is not yet through so many steps."""
        return self._count if step == 0 else min(max(0, self._next[step - 1]), self._count)

    def ready(self, step: int, most: int) -> list[_Window]:
        """The next windows of a step, as many as the step before is through with, all of one length: the last block may be a short one."""
        known = self._through(step)
        last = self.complete and known == self._count  # the shot's end is known, and this step's windows may reach it
        out: list[_Window] = []
        while len(out) < most:
            begin, end = self._next[step], self._next[step] + self._window
            shown_begin = max(0, min(begin, self._count - self._window) if last else begin)
            shown_end = shown_begin + self._window
            if last:
                shown_end = min(shown_end, self._count)
                end = self._count if shown_begin == 0 and shown_end == self._count else end  # it shows the whole shot: no other is needed
            if max(0, begin) >= min(end, self._count) or shown_end > known:
                break
            made = _Window(
                self._parts[shown_begin - self._first : shown_end - self._first],
                slice(max(0, begin) - shown_begin, min(end, self._count) - shown_begin),
            )
            if out and made.frames != out[0].frames:
                break
            out.append(made)
            self._next[step] = end
        return out

    def finished(self, most: int) -> list[tuple[T, Tensor]]:
        """Up to `most` blocks that are through all steps and were not handed out yet. What no window can show any more is dropped."""
        end = min(self._through(self._steps), self._given + most)
        out = [(self._items.popleft(), part.latents[self._steps]) for part in self._parts[self._given - self._first : end - self._first]]
        self._given = end
        for step in range(self._steps):
            for part in self._parts[: max(0, min(self._next[step], self._count - self._window) - self._first)]:
                part.latents.pop(step, None)
        keep = max(self._first, end - self._window)
        del self._parts[: keep - self._first]
        self._first = keep
        return out


def _denoise(unet: NoisePredictor, windows: list[_Window], step: int, guidance: float, still_guidance: float | None) -> None:
    """Take the moved blocks of windows of one length through a step. The others are shown as they were before it."""
    scheduler = windows[0].shown[0].scheduler
    t = scheduler.timesteps[step]
    latents = torch.stack([torch.cat([part.latents[step] for part in w.shown], dim=1) for w in windows])
    predicted = predict(
        unet,
        scheduler.scale_model_input(latents, t),
        t,
        torch.stack([torch.cat([part.condition for part in w.shown], dim=1) for w in windows]),
        torch.stack([torch.cat([part.audio for part in w.shown]) for w in windows]),
        guidance=guidance,
        still_guidance=still_guidance,
    )
    for w, found in zip(windows, predicted, strict=True):
        parts = found.split([part.frames for part in w.shown], dim=1)
        for part, change in list(zip(w.shown, parts, strict=True))[w.moved]:
            part.latents[step + 1] = part.scheduler.step(change, t, part.latents[step]).prev_sample
