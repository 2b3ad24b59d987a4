"""The sampling loop against closed forms. The whole pipeline's numbers are in test_golden_pipeline."""

import numpy as np
import pytest
import torch

from latentsync import denoise
from latentsync.config import DiffusionConfig
from latentsync.errors import UsageError
from latentsync.options import MAX_STEPS


def inputs(b=1, f=3, side=4):
    g = torch.Generator().manual_seed(1)

    def normal(c):
        return torch.randn((b, c, f, side, side), generator=g)

    return {
        "noise": normal(4),
        "mask": torch.ones(b, 1, f, side, side),
        "masked": normal(4),
        "reference": normal(4),
        "audio": torch.randn((b, f, 2, 8), generator=g),
    }


class Oracle:
    """Knows the clean latents, so its epsilon is exact at every step; remembers what it was given."""

    def __init__(self, clean, scheduler):
        self.clean, self.scheduler, self.seen = clean, scheduler, []

    def __call__(self, sample, timestep, audio, *, cache=None):
        self.seen.append((sample, timestep, audio))
        a = self.scheduler.alphas_cumprod[int(timestep)]
        clean = self.clean.repeat(sample.shape[0] // self.clean.shape[0], 1, 1, 1, 1)
        return (sample[:, :4] - a.sqrt() * clean) / (1 - a).sqrt()


@pytest.mark.parametrize("name", denoise.SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("steps", [4, 20])
def test_an_exact_noise_prediction_leads_to_the_clean_latents(name, guidance, steps):
    given = inputs()
    scheduler = denoise.make_scheduler(name, DiffusionConfig())
    clean = torch.randn((1, 4, 3, 4, 4), generator=torch.Generator().manual_seed(5))
    oracle = Oracle(clean, scheduler)
    out = denoise.sample(oracle, scheduler, **given, steps=steps, guidance=guidance)
    # what is left is the noise of the last step's level, 0.029 standard deviations with DDIM
    assert (out - clean).abs().mean() < 0.05
    assert len(oracle.seen) == steps


@pytest.mark.parametrize("name", denoise.SCHEDULERS)
def test_every_number_of_steps_that_may_be_chosen_stays_within_the_schedule(name):
    diffusion = DiffusionConfig()
    for steps in (1, 2, 7, 143, 167, MAX_STEPS):
        scheduler = denoise.make_scheduler(name, diffusion)
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps
        assert 0 <= min(scheduler.timesteps) <= max(scheduler.timesteps) < diffusion.train_steps
        assert steps < 3 or max(scheduler.timesteps) > 0.75 * diffusion.train_steps, "begins near pure noise"
        assert len(set(scheduler.timesteps.tolist())) == steps


def test_ddim_timesteps_are_the_published_ones():
    scheduler = denoise.make_scheduler("ddim", DiffusionConfig())
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]


@pytest.mark.parametrize("name", denoise.SCHEDULERS)
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 6, 8, 20])
def test_who_knows_the_clean_latents_gets_them_back(name, spacing, prediction, steps):
    scheduler = denoise.make_scheduler(name, DiffusionConfig(prediction_type=prediction, spacing=spacing))
    clean = torch.randn((1, 4, 3, 4, 4), generator=torch.Generator().manual_seed(5))

    def unet(sample, t, audio, *, cache=None):
        a = scheduler.alphas_cumprod[int(t)]
        noise = (sample[:, :4] - a.sqrt() * clean) / (1 - a).sqrt()
        return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean

    out = denoise.sample(unet, scheduler, **inputs(), steps=steps, guidance=1.0)
    assert (out - clean).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [6, 8])
def test_ddim_with_trailing_spacing_is_ddim_from_timestep_to_timestep(steps):
    """Against the formula (Song et al., arXiv 2010.02502, eq. 12 without noise) with v-prediction, for a network that is wrong at every step."""
    diffusion = DiffusionConfig(prediction_type="v_prediction", spacing="trailing")
    scheduler = denoise.make_scheduler("ddim", diffusion)
    given = inputs()
    out = denoise.sample(lambda s, t, a, *, cache=None: torch.sin(2 * s[:, :4] + 0.001 * t), scheduler, **given, steps=steps, guidance=1.0)
    betas = torch.linspace(diffusion.beta_start**0.5, diffusion.beta_end**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    times = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    assert scheduler.timesteps.tolist() == times
    x = given["noise"].double()
    for i, t in enumerate(times):
        a, b = alphas[t], alphas[times[i + 1]] if i + 1 < steps else torch.tensor(1.0, dtype=torch.float64)
        v = torch.sin(2 * x + 0.001 * t)
        clean, noise = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
        x = b.sqrt() * clean + (1 - b).sqrt() * noise
    torch.testing.assert_close(out.double(), x, atol=2e-3, rtol=0)


def test_what_all_frames_share_is_guided_less():
    given = inputs()
    frames = given["noise"].shape[2]
    moving = torch.linspace(-1, 1, frames)[None, None, :, None, None]

    def unet(sample, t, audio, *, cache=None):
        level = audio.abs().sum(dim=(1, 2, 3)).sign()[:, None, None, None, None]
        return (torch.zeros_like(sample[:, :4]) + 2 + moving) * level  # a still part of 2, and one that moves about 0

    def out(network, **settings):
        return denoise.sample(network, denoise.make_scheduler("ddim", DiffusionConfig()), **given, steps=2, **settings)

    def known(still, moved):
        return out(lambda s, t, a, *, cache=None: torch.zeros_like(s[:, :4]) + 2 * still + moved * moving, guidance=1.0)

    torch.testing.assert_close(out(unet, guidance=4.0, still_guidance=1.5), known(1.5, 4.0))
    torch.testing.assert_close(out(unet, guidance=4.0), known(4.0, 4.0))
    torch.testing.assert_close(out(unet, guidance=2.0, still_guidance=3.0), known(2.0, 2.0))  # never more than was asked for
    torch.testing.assert_close(out(unet, guidance=1.0, still_guidance=0.5), known(1.0, 1.0))  # without guidance there is no difference to take from


def test_guidance_runs_silence_first_and_combines_linearly():
    given = inputs()
    seen = []

    def unet(sample, t, audio, *, cache=None):
        seen.append((sample, audio))
        level = audio.abs().sum(dim=(1, 2, 3)).sign()  # 0 for silence, 1 for sound
        return torch.ones_like(sample[:, :4]) * level[:, None, None, None, None]

    scheduler = denoise.make_scheduler("ddim", DiffusionConfig())
    one = denoise.sample(lambda s, t, a, *, cache=None: torch.full_like(s[:, :4], 2.5), scheduler, **given, steps=2, guidance=1.0)
    two = denoise.sample(unet, scheduler, **given, steps=2, guidance=2.5)
    torch.testing.assert_close(one, two)  # 0 + 2.5 * (1 - 0)
    sample, audio = seen[0]
    assert sample.shape == (2, 13, 3, 4, 4)
    assert audio[0].abs().max() == 0
    torch.testing.assert_close(audio[1:], given["audio"])
    torch.testing.assert_close(sample[0], sample[1])
    torch.testing.assert_close(sample[:1, :4], given["noise"])
    torch.testing.assert_close(sample[:1, 4:], torch.cat([given["mask"], given["masked"], given["reference"]], dim=1))


@pytest.mark.parametrize("name", denoise.SCHEDULERS)
def test_a_used_scheduler_gives_the_same_as_a_fresh_one(name):
    given = inputs()
    scheduler = denoise.make_scheduler(name, DiffusionConfig())

    def unet(sample, t, audio, *, cache=None):
        return torch.sin(sample[:, :4])

    first = denoise.sample(unet, scheduler, **given, steps=5, guidance=1.0)
    again = denoise.sample(unet, scheduler, **given, steps=5, guidance=1.0)
    assert torch.equal(first, again)


def test_network_runs_in_the_dtype_of_the_audio_and_latents_stay_float32():
    given = inputs()
    given["audio"] = given["audio"].bfloat16()
    seen = []

    def unet(sample, t, audio, *, cache=None):
        seen.append(sample.dtype)
        return sample[:, :4]

    out = denoise.sample(unet, denoise.make_scheduler("ddim", DiffusionConfig()), **given, steps=2, guidance=1.5)
    assert set(seen) == {torch.bfloat16}
    assert out.dtype == torch.float32


def test_noise_is_one_frame_and_follows_the_seed():
    a, b, c = (denoise.shared_noise(s, 4, 32, 32) for s in (7, 7, 8))
    assert a.shape == (4, 1, 32, 32)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_frame_noise_depends_on_seed_and_number_alone_and_never_repeats():
    draws = {(s, n): denoise.frame_noise(s, n, (4, 8, 8)) for s in (0, 1, 1247, 2**32 - 1) for n in range(40)}
    assert torch.equal(draws[1, 3], denoise.frame_noise(1, 3, (4, 8, 8)))
    flat = np.stack([d.numpy().ravel() for d in draws.values()])
    assert len(np.unique(flat[:, 0])) == len(flat)
    assert abs(flat.mean()) < 0.01
    assert abs(flat.std() - 1) < 0.01
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.35


def test_unknown_scheduler():
    with pytest.raises(UsageError, match="no scheduler 'euler'; choose one of ddim"):
        denoise.make_scheduler("euler", DiffusionConfig())
