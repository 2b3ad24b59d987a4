"""What training minimises: pure functions over tensors, each giving one number per sample, in float32.

Sources: the paper (arXiv 2412.09262, sections 3.2 to 3.4), Denoising Diffusion (arXiv 2006.11239), Progressive Distillation
(arXiv 2202.00512) for v-prediction, PYoCo (arXiv 2305.10474) for the mixed noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.denoise import make_scheduler
from latentsync.errors import UsageError
from latentsync.face.align import FIELD, TEMPLATE

if TYPE_CHECKING:
    from latentsync.config import DiffusionConfig

# Below this probability the logarithm of `sync_loss` goes on along its tangent, so that no gradient is steeper than its inverse.
EDGE = 1e-3
# Shorter vectors than this have no direction: their cosine is 0 and their gradient stays finite.
SHORTEST = 1e-6


class Features(Protocol):
    """What TREPA needs of VideoMAE: (b, 3, f, H, W) in [0, 1] -> (b, width). It resizes first and clips to [0, 1] then, as published."""

    def features(self, video: Tensor) -> Tensor: ...


def mixed_noise(shared: Tensor, independent: Tensor, alpha: float) -> Tensor:
    """(b, 4, 1, h, w), (b, 4, f, h, w), both standard normal -> (b, 4, f, h, w) of variance 1 that its frames have partly in common.

    The covariance of two frames is alpha^2 / (1 + alpha^2): 0 makes them independent, 1 halves the variance between both parts.
    """
    return shared * (alpha**2 / (1 + alpha**2)) ** 0.5 + independent * (1 / (1 + alpha**2)) ** 0.5


def signal_shares(diffusion: DiffusionConfig) -> Tensor:
    """(train_steps,) float32: the share of the signal's variance that is left at each timestep (alpha bar), falling from almost 1."""
    return make_scheduler("ddim", diffusion).alphas_cumprod.float()


def add_noise(clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """(b, ...), (b, ...), share of the signal's variance (b,) -> (b, ...): sqrt(share) clean + sqrt(1 - share) noise."""
    share = _spread(share, clean)
    return share.sqrt() * clean + (1 - share).sqrt() * noise


def prediction_target(clean: Tensor, noise: Tensor, share: Tensor, prediction_type: str) -> Tensor:
    """What the network should have predicted, (b, ...): the noise, or for "v_prediction" sqrt(share) noise - sqrt(1 - share) clean."""
    if prediction_type == "epsilon":
        return noise
    _known(prediction_type)
    share = _spread(share, clean)
    return share.sqrt() * noise - (1 - share).sqrt() * clean


def one_step_estimate(noisy: Tensor, predicted: Tensor, share: Tensor, prediction_type: str) -> Tensor:
    """The clean latents that a prediction implies, in one step: (b, ...), (b, ...), (b,) -> (b, ...)."""
    share = _spread(share, noisy)
    if prediction_type == "epsilon":
        return (noisy - (1 - share).sqrt() * predicted) / share.sqrt()
    _known(prediction_type)
    return share.sqrt() * noisy - (1 - share).sqrt() * predicted


def reconstruction(predicted: Tensor, target: Tensor, emphasis: Tensor | None = None) -> Tensor:
    """(b, ...), (b, ...) -> (b,): mean squared error of each sample; `emphasis` (broadcastable, >= 0) makes it a weighted mean."""
    squares = (predicted.float() - target.float()).square()
    if emphasis is None:
        return squares.flatten(1).mean(1)
    return (squares * (emphasis / emphasis.mean())).flatten(1).mean(1)


def emphasis(mask: Tensor, kept: float, mouth: float) -> Tensor | None:
    """Latent mask (h, w), 1 = kept -> (h, w): what an error in each cell counts: `mouth` around the mouth, 1 in the rest of what is made anew,
    `kept` elsewhere. None where all cells count the same.
    """
    if kept == mouth == 1:
        return None
    inside = torch.where(mouth_cells(*mask.shape).to(mask.device), mouth, 1.0)
    return torch.where(mask > 0.5, kept, inside)


def mouth_cells(height: int, width: int) -> Tensor:
    """(h, w) bool: the cells of a grid over the aligned face that touch the mouth.

    In the alignment's template the nose lies midway between the brows. Lips, open or shut, straight or turned, lie within 0.4 of the distance
    of the brows on both sides of it, and from 0.7 to 1.8 of the height of the brows over the nose below it: so 98 of 100 of 32,000 rendered faces.
    """
    (left, brow), (right, _), (middle, nose) = TEMPLATE
    aside = 0.4 * (right - left)
    x = torch.arange(width + 1) * (FIELD[0] / width)
    y = torch.arange(height + 1) * (FIELD[1] / height)
    across = (x[1:] > middle - aside) & (x[:-1] < middle + aside)
    down = (y[1:] > nose + 0.7 * (nose - brow)) & (y[:-1] < nose + 1.8 * (nose - brow))
    return down[:, None] & across


def cosine(vision: Tensor, audio: Tensor) -> Tensor:
    """(b, d), (b, d) in any dtype -> (b,) float32 in [-1, 1]; 0 for vectors without length."""
    return F.cosine_similarity(vision.float(), audio.float(), dim=1, eps=SHORTEST)


def cosine_loss(probability: Tensor, label: Tensor | float) -> Tensor:
    """Cosines (b,) in [-1, 1], 1 = in sync or 0 = not, (b,) or one for all -> (b,): binary cross-entropy of the cosine, read as a probability.

    Cross-entropy has no value for a negative cosine and no gradient that training survives near 0 and 1. Where the probability of the
    true answer is below EDGE the logarithm is therefore replaced by its tangent there: value and slope are continuous, the slope stays
    at -1/EDGE, and a negative cosine is merely a worse one. Everywhere else it is the published loss.
    """
    return label * _surprise(probability) + (1 - label) * _surprise(1 - probability)


def sync_loss(vision: Tensor, audio: Tensor, label: Tensor | float) -> Tensor:
    """(b, d), (b, d) in any dtype, label (b,) or one for all -> (b,): `cosine_loss` of SyncNet's two vectors. Finite, and so is its gradient."""
    return cosine_loss(cosine(vision, audio), label)


def contrast_loss(cosines: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """Cosines of n windows (rows) with n sounds (columns), each window's own on the diagonal, and which count (n,) bool -> (n,).

    The mean of two cross-entropies: of telling a window's sound among all, and a sound's window (InfoNCE, arXiv 1807.03748). What does not count is
    no candidate; its own loss is 0.
    """
    scores = (cosines.float() / temperature).masked_fill(~(counted[:, None] & counted), torch.finfo(torch.float32).min)
    own = torch.arange(len(scores), device=scores.device)
    both = F.cross_entropy(scores, own, reduction="none") + F.cross_entropy(scores.T, own, reduction="none")
    return torch.where(counted, both / 2, torch.zeros_like(both))


def perceptual_loss(lpips: Callable[[Tensor, Tensor], Tensor], generated: Tensor, real: Tensor) -> Tensor:
    """(b, f, 3, H, W) twice, in [-1, 1] -> (b,): LPIPS (arXiv 1801.03924) of the lower halves, where the mouth is, mean over frames."""
    b, half = len(generated), generated.shape[-2] // 2
    lower = [x[..., half:, :].flatten(0, 1) for x in (generated, real.detach())]
    return lpips(*lower).float().reshape(b, -1).mean(1)


def trepa_loss(videomae: Features, generated: Tensor, real: Tensor) -> Tensor:
    """(b, f, 3, H, W) twice, in [-1, 1] -> (b,): squared distance, mean over dimensions, of VideoMAE's unit features of both windows.

    Temporal representation alignment (paper, section 3.3). No gradient flows into `real`.
    """
    with torch.no_grad():
        wanted = _unit_features(videomae, real)
    return reconstruction(_unit_features(videomae, generated), wanted)


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """(b,), weights >= 0 (b,) -> scalar: the mean of the samples that count; 0, with a gradient of 0, where none does."""
    weight = weight.to(losses)
    counted = torch.where(weight > 0, losses, torch.zeros_like(losses))
    return (counted * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _unit_features(videomae: Features, video: Tensor) -> Tensor:
    return F.normalize(videomae.features(video.transpose(1, 2) / 2 + 0.5).float(), dim=1)


def _surprise(probability: Tensor) -> Tensor:
    """-log(probability), along its tangent below EDGE."""
    inside = probability.clamp(min=EDGE)
    return (inside - probability) / EDGE - inside.log()


def _spread(share: Tensor, like: Tensor) -> Tensor:
    """(b,) -> (b, 1, ...) with as many dimensions as `like`."""
    return share.reshape(-1, *[1] * (like.dim() - 1))


def _known(prediction_type: str) -> None:
    if prediction_type != "v_prediction":
        raise UsageError(f"unknown prediction type '{prediction_type}'; choose epsilon or v_prediction")
