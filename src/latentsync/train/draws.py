"""Everything random in a training step, drawn apart from it: each sample's from the seed and its place alone.

So a run gives the same numbers however its batches are cut over processes and accumulation, and wherever it is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from latentsync.train.config import RecipeConfig


class Draws(NamedTuple):
    """The random numbers of b samples of f frames; all standard normal but for the timesteps."""

    target: Tensor  # (b*f, 4, h, w): for the autoencoder's posterior of the true frames
    masked: Tensor  # (b*f, 4, h, w): of the masked frames
    reference: Tensor  # (b*f, 4, h, w): of the reference frames
    shared: Tensor  # (b, 4, 1, h, w): the part of the noise that all frames of a sample have in common
    independent: Tensor  # (b, 4, f, h, w): the part that each frame has alone
    timesteps: Tensor  # (b,) int64, from 0 to train_steps - 1
    alike: Tensor | None = None  # (b,) bool: whose frames all have the shared noise alone; None: nobody's
    silent: Tensor | None = None  # (b,) bool: who hears nothing; None: nobody

    def to(self, device: torch.device) -> Draws:
        """The same on another device."""
        return Draws(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self))  # type: ignore[arg-type]


def draws(
    seed: int,
    positions: Sequence[int] | Tensor,
    *,
    frames: int,
    latent: tuple[int, int, int],
    train_steps: int,
    recipe: RecipeConfig | None = None,
) -> Draws:
    """The draws of the samples at these places of the run, on the CPU in float32; latent is (channels, height, width).

    NumPy draws them: its generators mix seed and position without collisions, where PyTorch's keeps 32 bits of a seed, and give the same
    numbers on every processor. What a recipe adds comes from generators of its own: it moves some timesteps, and no other number.
    """
    each = [_sample(seed, int(position), frames, latent, train_steps, recipe) for position in positions]
    target, masked, reference, shared, independent, timesteps, alike, silent = zip(*each, strict=True)
    return Draws(
        torch.cat(target),
        torch.cat(masked),
        torch.cat(reference),
        torch.stack(shared),
        torch.stack(independent),
        torch.stack(timesteps),
        torch.stack(alike),
        torch.stack(silent),
    )


def _sample(seed: int, position: int, frames: int, latent: tuple[int, int, int], train_steps: int, recipe: RecipeConfig | None) -> tuple[Tensor, ...]:
    generator = np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(position,)))
    c, h, w = latent
    shapes = [(frames, c, h, w)] * 3 + [(c, 1, h, w), (c, frames, h, w)]
    timestep = int(generator.integers(train_steps))
    alike = silent = False
    if recipe is not None:
        choices = np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=(position, 1)))
        late, same, quiet = choices.random(3)
        alike, silent = bool(same < recipe.shared_noise), bool(quiet < recipe.audio_dropout)
        if late < recipe.late:
            timestep = int(choices.integers(train_steps // 2, train_steps))
    normal = (torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)) for shape in shapes)
    return (*normal, torch.tensor(timestep), torch.tensor(alike), torch.tensor(silent))
