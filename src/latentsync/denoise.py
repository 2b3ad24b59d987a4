"""Noise, guidance and the sampling loop: pure functions over tensors. Nothing here knows files, frames or faces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from latentsync.errors import UsageError
from latentsync.options import SCHEDULERS

if TYPE_CHECKING:
    from latentsync.config import DiffusionConfig


class NoisePredictor(Protocol):
    """What the loop needs of a U-Net: (b, 3 c + 1, f, h, w), timestep, (b, f, tokens, dim) -> (b, c, f, h, w), c latent channels (published: 4)."""

    def __call__(self, sample: Tensor, timestep: Tensor, audio: Tensor | None, *, cache: Any = None) -> Tensor: ...


def make_scheduler(name: str, diffusion: DiffusionConfig) -> Any:
    """A fresh diffusers scheduler. DDIM is the published one; the others are for fewer steps.

    diffusers' DDIM takes the step before t to be t - train_steps // steps, which holds for leading spacing alone, and ends at the noise of
    training step 0. With other spacings DDIM is therefore made of the same library's DPM-Solver++ of first order, which is DDIM
    (Lu et al., arXiv 2211.01095, section 4), goes by the timesteps that there are, and ends at no noise at all.

    Raises UsageError for a name that is not in SCHEDULERS.
    """
    import diffusers

    common = {
        "num_train_timesteps": diffusion.train_steps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": diffusion.beta_schedule,
        "prediction_type": diffusion.prediction_type,
        "timestep_spacing": diffusion.spacing,
        "steps_offset": diffusion.steps_offset,
    }
    if name == "ddim" and diffusion.spacing != "leading":
        return diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=1)
    if name == "ddim":
        return diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
    if name == "dpm++":
        return diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True)
    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(**common, solver_order=2, lower_order_final=True)
    raise UsageError(f"no scheduler '{name}'; choose one of {', '.join(SCHEDULERS)}")


def shared_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """(channels, 1, height, width) normal noise of one frame, shared by every frame of the video (paper, section 3).

    Drawn on the CPU in float32, so that one seed gives one video on every device.
    """
    return torch.randn((channels, 1, height, width), generator=torch.Generator().manual_seed(seed))


def frame_noise(seed: int, number: int, shape: tuple[int, ...]) -> Tensor:
    """Normal noise of that shape which depends on the seed and the number of the frame alone, not on windows or batches.

    It draws the samples from the autoencoder's posterior. The multiplier is odd, so distinct frames of a seed never share a stream.
    """
    stream = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xD1342543DE82EF95) % 2**63
    return torch.randn(shape, generator=torch.Generator().manual_seed(stream))


def sample(
    unet: NoisePredictor,
    scheduler: Any,
    *,
    noise: Tensor,
    mask: Tensor,
    masked: Tensor,
    reference: Tensor,
    audio: Tensor,
    steps: int,
    guidance: float,
    still_guidance: float | None = None,
    cache: Any = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoise windows of latents: noise (b, c, f, h, w) -> latents (b, c, f, h, w), both scaled as the autoencoder's.

    mask (b, 1, f, h, w) is 1 where the picture is kept; masked and reference (b, c, f, h, w) are latents of the masked and the whole face;
    audio is (b, f, tokens, dim). Guidance above 1 runs the network twice, on silence (zeros) and on the audio, in that order along the batch.
    `still_guidance`, where it is lower, takes its place for the part of the difference between the two that all frames of a window share: lips
    move as far as `guidance` asks, while skin and light, which do not move, are drawn on less.
    `cache` is a fresh feature cache of the network or None; `on_step` hears the number of steps done and the latents so far.
    The scheduler is reset here, so windows never share state. The network runs in the dtype of `audio`; the latents stay in that of `noise`
    (float32), since twenty small steps add up badly in half precision.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    condition = torch.cat([mask, masked, reference], dim=1)
    latents = noise * scheduler.init_noise_sigma
    for done, t in enumerate(scheduler.timesteps, start=1):
        given = scheduler.scale_model_input(latents, t)
        predicted = predict(unet, given, t, condition, audio, guidance=guidance, still_guidance=still_guidance, cache=cache)
        latents = scheduler.step(predicted, t, latents).prev_sample
        if on_step:
            on_step(done, latents)
    return latents


def predict(
    unet: NoisePredictor,
    latents: Tensor,
    t: Tensor,
    condition: Tensor,
    audio: Tensor,
    *,
    guidance: float,
    still_guidance: float | None = None,
    cache: Any = None,
) -> Tensor:
    """What the network says of windows at one timestep, guided: latents (b, c, f, h, w) -> the same shape and dtype.

    condition (b, 2 c + 1, f, h, w) is mask, masked and reference; see `sample` for the rest.
    """
    given = torch.cat([latents, condition], dim=1).to(audio.dtype)
    if guidance <= 1:
        return unet(given, t, audio, cache=cache).to(latents.dtype)
    heard_and_not = torch.cat([torch.zeros_like(audio), audio])
    silent, heard = unet(torch.cat([given, given]), t, heard_and_not, cache=cache).to(latents.dtype).chunk(2)
    change = heard - silent
    predicted = silent + guidance * change
    if still_guidance is not None and still_guidance < guidance:
        predicted -= (guidance - still_guidance) * change.mean(dim=2, keepdim=True)
    return predicted
