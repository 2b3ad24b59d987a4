"""Every loss against a formula written out here, and against the published numbers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentsync.config import DiffusionConfig
from latentsync.denoise import make_scheduler
from latentsync.errors import UsageError
from latentsync.train.losses import (
    EDGE,
    add_noise,
    cosine,
    mixed_noise,
    one_step_estimate,
    perceptual_loss,
    prediction_target,
    reconstruction,
    signal_shares,
    sync_loss,
    trepa_loss,
    weighted_mean,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(c, dimensions=4):
    """Two unit vectors whose cosine is exactly c: (1, d) each, the first a leaf that wants its gradient."""
    vision = torch.zeros(1, dimensions)
    vision[0, 0] = 1
    audio = torch.zeros(1, dimensions)
    audio[0, 0], audio[0, 1] = c, math.sqrt(max(0.0, 1 - c * c))
    return vision.requires_grad_(), audio


# --- noise and the one-step estimate


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_mixed_noise_has_unit_variance_and_the_promised_covariance_of_frames(alpha):
    noise = mixed_noise(normal(200_000, 1, 1), normal(200_000, 1, 2, seed=1), alpha).flatten(1)
    covariance = noise.T.double().cov()
    assert covariance.diagonal().tolist() == pytest.approx([1, 1], abs=0.02)
    assert covariance[0, 1].item() == pytest.approx(alpha**2 / (1 + alpha**2), abs=0.02)


def test_published_one_step_estimate_and_noise(golden, goldenlib):
    truth = np.load(golden / "h_one_step.npz")
    shares = signal_shares(DiffusionConfig())
    np.testing.assert_allclose(shares, truth["alphas_cumprod"], rtol=1e-6)
    eps, xt = (torch.from_numpy(goldenlib.u((6, 4, 2, 4, 4), 499, key)) for key in ("eps", "xt"))
    share = shares[torch.from_numpy(truth["timesteps"])]
    np.testing.assert_allclose(one_step_estimate(xt, eps, share, "epsilon"), truth["out"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(add_noise(xt, eps, share), truth["add_noise"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_right_prediction_gives_the_clean_latents_back(kind):
    clean, noise, share = normal(5, 4, 3, 2, 2), normal(5, 4, 3, 2, 2, seed=1), torch.tensor([0.999, 0.8, 0.5, 0.2, 0.01])
    noisy = add_noise(clean, noise, share)
    found = one_step_estimate(noisy, prediction_target(clean, noise, share, kind), share, kind)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)


def test_v_prediction_is_the_one_of_the_sampler():
    scheduler = make_scheduler("ddim", DiffusionConfig(prediction_type="v_prediction"))
    clean, noise, t = normal(1, 4, 1, 2, 2), normal(1, 4, 1, 2, 2, seed=1), torch.tensor([600])
    share = signal_shares(DiffusionConfig())[t]
    target = prediction_target(clean, noise, share, "v_prediction")
    torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, t))
    scheduler.set_timesteps(5)
    step = scheduler.step(target, 600, add_noise(clean, noise, share))
    torch.testing.assert_close(step.pred_original_sample, clean, atol=1e-5, rtol=1e-5)


def test_an_unknown_prediction_type_is_refused():
    x, share = torch.zeros(1, 1), torch.ones(1)
    for wrong in (lambda: prediction_target(x, x, share, "sample"), lambda: one_step_estimate(x, x, share, "sample")):
        with pytest.raises(UsageError, match="'sample'; choose epsilon or v_prediction"):
            wrong()


def test_reconstruction_is_the_squared_error_of_each_sample_in_float32():
    a, b = normal(3, 4, 2, 2, 2), normal(3, 4, 2, 2, 2, seed=1)
    expected = torch.stack([F.mse_loss(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(reconstruction(a, b), expected)
    assert reconstruction(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# --- SyncNet


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_sync_loss_is_the_cross_entropy_of_ordinary_cosines(label):
    for c in (0.002, 0.1, 0.335, 0.5, 0.9, 0.998):
        vision, audio = pair(c)
        expected = F.binary_cross_entropy(torch.tensor([c]), torch.tensor([label]))
        torch.testing.assert_close(sync_loss(vision, audio, label), expected[None], rtol=1e-4, atol=1e-5)


def test_labels_belong_to_their_samples():
    vision, audio = (torch.cat(x) for x in zip(pair(0.8), pair(0.8), strict=True))
    found = sync_loss(vision, audio, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found, torch.tensor([-math.log(0.8), -math.log(0.2)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_sync_loss_is_finite_for_any_cosine_and_so_is_its_gradient(label, dtype):
    for c in (-1.0, -0.5, -1e-4, 0.0, 1e-8, EDGE, 0.5, 1 - 1e-7, 1.0):
        vision, audio = pair(c)
        given = vision.to(dtype)
        loss = sync_loss(given, audio.to(dtype), label)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all(), c
        loss.sum().backward()
        assert vision.grad.isfinite().all(), c
        assert vision.grad.abs().max() <= 1.01 / EDGE, c


def test_sync_loss_falls_as_the_cosine_rises_without_a_step_anywhere():
    cosines = torch.cat([torch.linspace(-1, 1, 401), torch.linspace(-2 * EDGE, 2 * EDGE, 401)]).sort().values
    vision = torch.tensor([[1.0, 0.0]]).expand(len(cosines), 2)
    audio = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    loss = sync_loss(vision, audio, 1.0)
    fall, way = -loss.diff(), cosines.diff()
    assert (fall >= -1e-4).all()
    assert (fall <= way * 1.01 / EDGE + 1e-4).all()  # no steeper than the tangent, so continuous
    assert (sync_loss(vision, audio, 0.0).diff() >= -1e-4).all()


def test_a_negative_cosine_still_pulls_the_right_way():
    vision, audio = pair(-0.5)
    sync_loss(vision, audio, 1.0).sum().backward()
    better = F.normalize((vision - 1e-2 * vision.grad / vision.grad.norm()).detach(), dim=1)
    assert cosine(better, audio) > cosine(vision.detach(), audio)


def test_vectors_without_length_have_a_finite_loss_and_gradient():
    vision = torch.zeros(1, 4, requires_grad=True)
    loss = sync_loss(F.normalize(vision, dim=1), F.normalize(torch.ones(1, 4), dim=1), 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert vision.grad.isfinite().all()


# --- pictures and windows


def test_perceptual_loss_looks_at_the_lower_half_of_every_frame_and_keeps_samples_apart():
    real = normal(2, 3, 3, 8, 6)
    above, below = real.clone(), real.clone()
    above[..., :4, :] += 1
    below[1, :, :, 4:] += 2
    below[1, 0, :, 4:] += 1  # 3, 2, 2

    def distance(a, b):
        assert a.shape == (6, 3, 4, 6)
        return (a - b).abs().mean((1, 2, 3))

    torch.testing.assert_close(perceptual_loss(distance, above, real), torch.zeros(2))
    torch.testing.assert_close(perceptual_loss(distance, below, real), torch.tensor([0, 7 / 3]))
    perceptual_loss(distance, below.requires_grad_(), real.requires_grad_()).sum().backward()
    assert below.grad is not None
    assert real.grad is None


class Mean(nn.Module):
    """Features that anybody can compute: the first frame's mean of each channel."""

    def features(self, video):
        assert video.min() >= 0
        assert video.max() <= 1
        return video[:, :, 0].mean((2, 3))


def test_trepa_compares_unit_features_of_pictures_between_zero_and_one():
    generated = torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])[:, None, :, None, None].expand(2, 4, 3, 2, 2).clone().requires_grad_()
    real = torch.tensor([[-1.0, 1.0, -1.0], [0.5, 0.5, 0.5]])[:, None, :, None, None].expand(2, 4, 3, 2, 2).clone().requires_grad_()
    loss = trepa_loss(Mean(), generated, real)
    # (1, 0, 0) against (0, 1, 0): 2 / 3; grey against lighter grey has the same direction
    torch.testing.assert_close(loss, torch.tensor([2 / 3, 0.0]))
    loss.sum().backward()
    assert generated.grad is not None
    assert real.grad is None


# --- the mean


def test_a_sample_of_weight_zero_is_left_out():
    losses = torch.tensor([1.0, 5.0, float("nan")], requires_grad=True)
    mean = weighted_mean(losses, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert mean.item() == 3
    assert mean.dtype == torch.float32
    mean.backward()
    assert losses.grad.tolist() == [0.5, 0.5, 0]


def test_no_sample_at_all_gives_zero_and_no_gradient():
    losses = torch.tensor([1.0, 5.0], requires_grad=True)
    mean = weighted_mean(losses, torch.zeros(2))
    mean.backward()
    assert mean.item() == 0
    assert losses.grad.tolist() == [0, 0]
