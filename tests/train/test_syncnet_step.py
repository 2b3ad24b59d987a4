"""The training step of SyncNet, on small networks."""

import copy

import pytest
import torch
import torch.nn.functional as F

from latentsync.config import SyncEncoderConfig, SyncNetConfig, VAEConfig
from latentsync.errors import UsageError
from latentsync.models.syncnet import SyncNet
from latentsync.models.vae import VAE
from latentsync.train.syncnet_step import SyncNetStep
from tests.models.conftest import randomise

FRAMES, SIZE = 4, 32
AUDIO = SyncEncoderConfig(in_channels=1, channels=(32,) * 5 + (128,), strides=((2, 1), (2, 2), (2, 2), (2, 2), (2, 1), (2, 1)))
PIXEL = SyncNetConfig(
    frames=FRAMES,
    resolution=SIZE,
    audio=AUDIO,
    visual=SyncEncoderConfig(
        in_channels=3 * FRAMES, channels=(32, 32, 32, 32, 128), strides=((1, 2), (2, 2), (2, 2), (2, 2), (2, 2)), attention=(1,)
    ),
)
LATENT = SyncNetConfig(
    frames=FRAMES,
    resolution=SIZE,
    latent=True,
    lower_half=False,
    audio=AUDIO,
    visual=SyncEncoderConfig(in_channels=4 * FRAMES, channels=(32, 128), strides=((2, 2), (2, 2))),
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return randomise(SyncNet(PIXEL))


def make_batch(b=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "frames": torch.randint(0, 256, (b, FRAMES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        "mel": 4 * torch.rand(b, 1, 80, PIXEL.mel_columns, generator=generator) - 2,
        "label": torch.tensor([1.0, 0.0, 0.0, 1.0])[:b],
        "weight": torch.ones(b),
    }


def answers(*cosines):
    """A network that gives these cosines."""

    def net(frames, mel):
        c = torch.tensor(cosines)
        return torch.tensor([[1.0, 0.0]]).expand(len(c), 2), torch.stack([c, (1 - c**2).sqrt()], dim=1)

    return net


def test_terms_are_what_their_names_say():
    batch = make_batch()
    found = SyncNetStep(PIXEL)(answers(0.9, 0.6, 0.2, 0.4), batch)
    expected = F.binary_cross_entropy(torch.tensor([0.9, 0.6, 0.2, 0.4]), batch["label"])
    torch.testing.assert_close(found["loss"], expected)
    assert found["accuracy"].item() == 0.5  # the first and the third
    assert found["positive"].item() == pytest.approx(0.65)
    assert found["negative"].item() == pytest.approx(0.4)


def test_a_cosine_of_exactly_one_half_is_not_in_sync():
    batch = make_batch(2)
    assert SyncNetStep(PIXEL)(answers(0.5, 0.5), batch)["accuracy"].item() == 0.5


def test_weights_leave_samples_out_and_missing_kinds_have_no_mean():
    batch = make_batch() | {"weight": torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64), "label": torch.tensor([1, 0, 0, 1])}
    found = SyncNetStep(PIXEL)(answers(0.9, 0.6, 0.2, 0.4), batch)
    assert found["accuracy"].item() == 0.5
    assert found["positive"].item() == pytest.approx(0.65)
    assert found["negative"].isnan()
    assert all(value.dtype == torch.float32 for value in found.values())
    nothing = SyncNetStep(PIXEL)(answers(0.9, 0.6, 0.2, 0.4), batch | {"weight": torch.zeros(4)})
    assert nothing["loss"] == nothing["accuracy"] == 0


def test_frames_may_come_whole_or_cut_to_the_lower_half(net):
    step, batch = SyncNetStep(PIXEL), make_batch()
    with torch.no_grad():
        whole = step(net, batch)
        cut = step(net, batch | {"frames": batch["frames"][:, :, :, SIZE // 2 :]})
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_the_upper_half_is_not_seen(net):
    step, batch = SyncNetStep(PIXEL), make_batch()
    other = batch["frames"].clone()
    other[..., : SIZE // 2, :] = 0
    with torch.no_grad():
        assert torch.equal(step(net, batch)["loss"], step(net, batch | {"frames": other})["loss"])
        other[..., SIZE // 2 :, :] = 0
        assert not torch.equal(step(net, batch)["loss"], step(net, batch | {"frames": other})["loss"])


def test_a_syncnet_of_latents_sees_the_mean_of_the_posterior():
    vae = randomise(VAE(VAEConfig(channels=(8, 8, 16, 16), layers_per_block=1, groups=4)), 1)
    latent_net, step, batch = randomise(SyncNet(LATENT), 2), SyncNetStep(LATENT, vae), make_batch()
    seen = []

    def watched(frames, mel):
        seen.append(frames)
        return latent_net(frames, mel)

    loss = step(watched, batch)["loss"]
    expected = vae.encode((batch["frames"] / 127.5 - 1).flatten(0, 1)).reshape(4, FRAMES * 4, SIZE // 8, SIZE // 8)
    torch.testing.assert_close(seen[0], expected)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in vae.parameters())
    assert all(p.grad is not None for p in latent_net.parameters())


def test_a_syncnet_of_latents_without_an_autoencoder_is_refused():
    with pytest.raises(UsageError, match="sees latents"):
        SyncNetStep(LATENT)


def test_gradients_are_finite_and_the_same_with_checkpointing(net, monkeypatch):
    step, batch = SyncNetStep(PIXEL), make_batch()

    def gradients():
        net.zero_grad()
        step(net, batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    expected = gradients()
    assert all(g.isfinite().all() for g in expected.values())
    assert sum(g.abs().max() > 0 for g in expected.values()) > len(expected) / 2
    monkeypatch.setattr(net, "gradient_checkpointing", True)
    for name, g in gradients().items():
        torch.testing.assert_close(g, expected[name], rtol=1e-4, atol=1e-7)


def test_autocast_leaves_the_loss_in_float32(net):
    step, batch = SyncNetStep(PIXEL), make_batch()
    exact = step(net, batch)
    # without oneDNN, whose bf16 convolutions give NaN for some of these tiny shapes in PyTorch 2.13
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(net, batch)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert found["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.4)  # its last GroupNorm has four values to a group


def test_a_few_steps_on_one_batch_learn_it():
    """Two faces and two sounds that go together, and the same crossed: only who listens can tell."""
    torch.manual_seed(0)
    one, other = torch.zeros(FRAMES, 3, SIZE, SIZE, dtype=torch.uint8), torch.full((FRAMES, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    one[:, :, :, ::2], other[:, :, 20:24] = 200, 0
    quiet, loud = (torch.linspace(a, b, PIXEL.mel_columns).expand(1, 80, -1) for a, b in ((-4, 0), (4, -2)))
    batch = {
        "frames": torch.stack([one, other, one, other]),
        "mel": torch.stack([quiet, loud, loud, quiet]),
        "label": torch.tensor([1.0, 1.0, 0.0, 0.0]),
        "weight": torch.ones(4),
    }
    net, step = copy.deepcopy(randomise(SyncNet(PIXEL))).train(), SyncNetStep(PIXEL)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    first = None
    for _ in range(40):
        terms = step(net, batch)
        first = first or terms["loss"].item()
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert terms["loss"] < first / 3
    assert terms["accuracy"] == 1
