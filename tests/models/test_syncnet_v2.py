"""SyncNet v2 against truths of its shape, then against names and numbers of the published network with the same random weights."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state
from latentsync.models.syncnet_v2 import SyncNetV2

from .conftest import randomise


@pytest.fixture(scope="module")
def net() -> SyncNetV2:
    made = randomise(SyncNetV2())
    assert isinstance(made, SyncNetV2)
    return made


def pictures(frames: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(frames, 3, 224, 224, generator=torch.Generator().manual_seed(seed)) * 255


# --- truths that need no stored number


@torch.no_grad()
def test_each_five_frames_are_seen_as_if_they_were_alone(net):
    frames = pictures()
    seen = net.see(frames)
    assert seen.shape == (2, 1024)
    torch.testing.assert_close(net.see(frames[1:]), seen[1:], rtol=1e-4, atol=1e-3)
    changed = frames.clone()
    changed[5] = 0
    torch.testing.assert_close(net.see(changed)[0], seen[0], rtol=1e-4, atol=1e-3)
    assert (net.see(changed)[1] - seen[1]).abs().max() > 0.1


@torch.no_grad()
def test_each_window_of_sound_is_heard_alone(net):
    mfcc = torch.randn(3, 1, 13, 20, generator=torch.Generator().manual_seed(2))
    heard = net.hear(mfcc)
    assert heard.shape == (3, 1024)
    torch.testing.assert_close(net.hear(mfcc[2:]), heard[2:], rtol=1e-4, atol=1e-4)
    assert (heard[0] - heard[1]).abs().max() > 1e-2


def test_other_shapes_are_refused(net):
    for frames in (torch.zeros(4, 3, 224, 224), torch.zeros(5, 3, 112, 112), torch.zeros(3, 5, 224, 224)):
        with pytest.raises(UsageError, match="at least 5 frames"):
            net.see(frames)
    for mfcc in (torch.zeros(1, 13, 20), torch.zeros(1, 1, 20, 13), torch.zeros(1, 1, 13, 19)):
        with pytest.raises(UsageError, match="MFCC windows"):
            net.hear(mfcc)


# --- the published network


def empty() -> SyncNetV2:
    with torch.device("meta"):
        return SyncNetV2()


def test_names_shapes_and_dtypes_are_the_published_ones_in_their_order(golden: Path):
    published = json.loads((golden / "i_syncnet_v2_keys.json").read_text())
    found = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in empty().state_dict().items()}
    assert found == published["keys"]
    assert list(found) == list(published["keys"])
    assert sum(p.numel() for p in empty().parameters()) == published["parameters"]


def test_loading_is_strict():
    state = SyncNetV2().state_dict()
    del state["netcnnlip.19.num_batches_tracked"]
    with pytest.raises(WeightsError, match=r"'netcnnlip\.19\.num_batches_tracked' is missing"):
        load_state(empty(), state, "a file")


@torch.no_grad()
def test_numbers_of_the_published_network(golden: Path, goldenlib: ModuleType):
    case = json.loads((golden / "i_synceval.json").read_text())
    truth = np.load(golden / "i_synceval.npz")
    state = {k: torch.from_numpy(v) for k, v in goldenlib.fill(case["keys"], case["seed"], case["gain"]).items()}
    net = load_state(empty(), state, "golden").eval()
    seen = net.see(torch.from_numpy(truth["frames_bgr_u8_first14"]).float()).numpy()
    assert np.abs(seen - truth["lip_feat"][:10]).max() < 1e-4 * np.abs(truth["lip_feat"]).max()
    windows = np.stack([truth["mfcc"][4 * k : 4 * k + 20].T for k in range(case["n_lip"])])
    heard = net.hear(torch.from_numpy(windows)[:, None]).numpy()
    assert np.abs(heard - truth["aud_feat"]).max() < 1e-4 * np.abs(truth["aud_feat"]).max()
