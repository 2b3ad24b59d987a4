"""The whole way from aligned faces to finished frames against the published system's own numbers (random weights, fp32)."""

import json

import cv2
import numpy as np
import pytest
import torch

from latentsync.config import ModelConfig, UNetConfig, VAEConfig, WhisperConfig
from latentsync.device import choose
from latentsync.face.paste import paste
from latentsync.loading import Model
from latentsync.models.load import load_state
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.options import Options
from latentsync.pipeline import LipSync, windowed
from latentsync.speech.whisper import SpeechEncoder

INPUTS = ("chunks", "faces", "affine", "in_frames")
POSTERIORS = ("masked_mean", "masked_std", "ref_mean", "ref_std")


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        from tests.conftest import beside

        cases = sorted(p.stem for p in beside("LATENTSYNC_GOLDEN", "golden").glob("g_pipeline_*.json"))
        metafunc.parametrize("case", cases or [pytest.param("none", marks=pytest.mark.skip(reason="no pipeline goldens; set LATENTSYNC_GOLDEN"))])


def tensors(goldenlib, keys, seed, gain=1.0):
    return {k: torch.from_numpy(v) for k, v in goldenlib.fill(keys, seed, gain).items()}


def published_mask(golden, resolution):
    """The published mask picture, resized as the published code does it. Ours is drawn from the outline and differs in 25 of 65,536 pixels."""
    picture = golden / "f_mask_256.png"
    if not picture.is_file():
        pytest.skip(f"no {picture.name} among the goldens")
    levels = cv2.resize(cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE), (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return torch.from_numpy(levels.astype(np.float32) / 255)


def unused():
    pytest.fail("no faces are looked for")


def build(golden, goldenlib, info):
    unet, vae = info["unet_config"], info["vae_config"]
    motion = "none" if not unet["use_motion_module"] else "decoder" if unet["motion_module_decoder_only"] else "all"
    config = ModelConfig(
        name="golden",
        resolution=info["args"]["res"],
        unet=UNetConfig(
            channels=tuple(unet["block_out_channels"]), heads=unet["attention_head_dim"], audio_dim=unet["cross_attention_dim"], motion=motion
        ),
        vae=VAEConfig(channels=tuple(vae["block_out_channels"]), layers_per_block=vae["layers_per_block"], groups=vae["norm_num_groups"]),
        whisper=WhisperConfig(width=unet["cross_attention_dim"], heads=2),
    )
    network = UNet(config.unet)
    # position tables are computed by the network itself
    state = dict(network.state_dict()) | tensors(goldenlib, info["unet_keys"], info["unet_seed"])
    load_state(network, state, "golden U-Net")
    autoencoder = VAE(config.vae)
    shapes = {k: list(v.shape) for k, v in autoencoder.state_dict().items()}
    load_state(autoencoder, tensors(goldenlib, shapes, info["vae_seed"], info["vae_gain"]), "golden VAE")
    made = LipSync(Model(config, network.eval(), autoencoder.eval(), SpeechEncoder(config.whisper), unused, choose("cpu", "fp32")))
    made.mask = made.seen_mask = published_mask(golden, config.resolution)
    made.latent_mask = made.mask[::8, ::8]
    return made


def close(found, expected, tolerance, what):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, what
    worst = np.abs(found - expected).max()
    assert worst <= tolerance, f"{what}: differs by {worst:.2e}, more than {tolerance}"


@pytest.mark.slow
def test_pipeline_equals_the_published_one(golden, goldenlib, case):
    info = json.loads((golden / f"{case}.json").read_text())
    g = arrays(golden, case, info)
    lipsync = build(golden, goldenlib, info)
    args = info["args"]
    options = Options(steps=args["steps"], guidance=args["guidance"])
    noise = torch.from_numpy(g["latents"])[0]
    start = 0
    for w, count in enumerate(info["window_frames"]):
        crops = torch.from_numpy(g["faces"][start : start + count].transpose(0, 2, 3, 1).copy())[None]
        contexts = torch.from_numpy(g["chunks"][start : start + count])[None]
        drawn = {k: (g[f"w{w}.{k}_sample"] - g[f"w{w}.{k}_mean"]) / g[f"w{w}.{k}_std"] for k in ("masked", "ref")}
        seen = []
        steps = []

        watch = lipsync.model.unet.register_forward_hook(lambda _, given, out, seen=seen: seen.append((given[0], out)))
        try:
            faces = lipsync.synthesise(
                crops,
                contexts,
                noise=noise,
                numbers=list(range(start, start + count)),
                options=options,
                on_step=lambda done, latents, steps=steps: steps.append(latents),
                posterior=(torch.from_numpy(drawn["masked"]), torch.from_numpy(drawn["ref"])),
            )[0]
        finally:
            watch.remove()
        close(seen[0][0], g[f"w{w}.unet_in_step0"], 1e-3, f"window {w}: U-Net input")
        for s in range(args["steps"]):
            if f"w{w}.s{s}.unet_out" in g:
                close(seen[s][1], g[f"w{w}.s{s}.unet_out"], 1e-3, f"window {w}, step {s}: U-Net output")
            close(steps[s], g[f"w{w}.s{s}.prev_sample"], 1e-3, f"window {w}, step {s}: latents")
        unscaled = lipsync.model.vae.unscale(steps[-1].transpose(1, 2).flatten(0, 1))
        close(unscaled, g[f"w{w}.vae_decode_in"], 5e-3, f"window {w}: decoder input")
        pasted = (g[f"w{w}.pasted_first_last"] / 2 + 0.5) * 255
        close(faces[[0, -1]].permute(0, 3, 1, 2), pasted, 0.3, f"window {w}: faces, in levels")
        for i in range(count):
            number = start + i
            frame = bounced(g["in_frames"], number).astype(np.float64)
            patch = paste(faces[i].numpy(), g["affine"][number], frame.shape[1], frame.shape[0], published=True)
            x0, y0, x1, y1 = patch.box
            alpha = patch.alpha[..., None]
            frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha) + patch.rgb * alpha
            off = np.abs(frame.round().clip(0, 255) - g["out_frames"][number].astype(np.float64)).max(axis=2)
            assert (off <= 1).mean() >= 0.999, f"frame {number}: {(off > 1).sum()} pixels differ by more than a level, up to {off.max()}"
        start += count
    assert start == len(g["out_frames"])


def arrays(golden, case, info):
    """The arrays of a case. Inputs that it does not repeat are those of a case that differs in the sampling alone."""
    found = {}
    for other in golden.glob("g_pipeline_*.json"):
        args = json.loads(other.read_text())["args"]
        if all(args[k] == info["args"][k] for k in ("seed", "res", "clip", "wav")):
            inputs = np.load(other.with_suffix(".npz"))
            found |= {k: inputs[k] for k in inputs.files if k in INPUTS or k.endswith(POSTERIORS)}
    own = np.load(golden / f"{case}.npz")
    return found | {k: own[k] for k in own.files}


def bounced(frames, number):
    """The published order for sound longer than the picture: forwards, then backwards with the turning frame shown twice."""
    there_and_back = np.concatenate([frames, frames[::-1]])
    return there_and_back[number % len(there_and_back)]


def test_windows_become_batches_of_their_own():
    x = torch.arange(2 * 3 * 4).reshape(6, 4, 1, 1)
    assert torch.equal(windowed(x, 2)[1, :, 0], x[3])
