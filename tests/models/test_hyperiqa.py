"""HyperIQA against truths of its parts, then against names and numbers of the published network with the same random weights."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.errors import UsageError, WeightsError
from latentsync.models.hyperiqa import Bottleneck, HyperIQA
from latentsync.models.load import load_state

from .conftest import randomise


@pytest.fixture(scope="module")
def net() -> HyperIQA:
    made = randomise(HyperIQA())
    assert isinstance(made, HyperIQA)
    return made


def pictures(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(1))


# --- truths that need no stored number


@torch.no_grad()
def test_a_picture_is_graded_by_a_network_made_for_it(net):
    two = pictures()
    scores = net(two)
    assert scores.shape == (2,)
    torch.testing.assert_close(net(two[1:]), scores[1:], rtol=1e-3, atol=1e-4)
    shown, details = net.res(two)
    assert shown.shape == (2, 2048, 7, 7)
    assert details.shape == (2, 224)
    layers = net.layers(net.conv1(shown))
    assert [tuple(w.shape[1:]) for w, _ in layers] == [(112, 224), (56, 112), (28, 56), (14, 28), (1, 14)]
    for picture in (0, 1):
        x = details[picture].numpy()
        for i, (weight, bias) in enumerate(layers):
            x = weight[picture].numpy() @ x + bias[picture].numpy()
            x = 1 / (1 + np.exp(-x)) if i < 4 else x
        assert scores[picture].item() == pytest.approx(float(x[0]), rel=1e-3, abs=1e-4)
    assert (layers[0][0][0] - layers[0][0][1]).abs().max() > 1e-3  # the two pictures are not graded alike


@torch.no_grad()
def test_a_block_of_zero_weights_passes_what_it_gets():
    block = Bottleneck(64, 16, 1).eval()
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(1, 64, 4, 4).relu()
    torch.testing.assert_close(block(x), x)
    assert Bottleneck(64, 32, 2)(x).shape == (1, 128, 2, 2)


def test_other_shapes_are_refused(net):
    for pictures in (torch.zeros(3, 224, 224), torch.zeros(1, 3, 256, 256), torch.zeros(1, 1, 224, 224)):
        with pytest.raises(UsageError, match=r"\(b, 3, 224, 224\)"):
            net(pictures)


# --- the published network


def empty() -> HyperIQA:
    with torch.device("meta"):
        return HyperIQA()


def published(golden: Path) -> dict[str, list]:
    keys: dict[str, list] = json.loads((golden / "i_hyperiqa_keys.json").read_text())["keys"]
    return keys


def test_names_shapes_and_dtypes_are_the_published_ones_in_their_order(golden: Path):
    keys = published(golden)
    found = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in empty().state_dict().items()}
    assert found == keys
    assert list(found) == list(keys)
    assert sum(p.numel() for p in empty().parameters()) == json.loads((golden / "i_hyperiqa_keys.json").read_text())["parameters"]


def test_loading_is_strict():
    state = empty().state_dict()
    state["res.fc.weight"] = torch.empty(1000, 2048, device="meta")  # a ResNet-50 with its classifier
    with pytest.raises(WeightsError, match=r"'res\.fc\.weight' is not known to the network"):
        load_state(empty(), state, "a file")


@torch.no_grad()
def test_numbers_of_the_published_network(golden: Path, goldenlib: ModuleType):
    case = json.loads((golden / "i_hyperiqa.json").read_text())
    truth = {k: torch.from_numpy(v) for k, v in np.load(golden / "i_hyperiqa.npz").items()}
    shapes = {k: shape for k, (shape, _) in published(golden).items()}
    net = load_state(empty(), {k: torch.from_numpy(v) for k, v in goldenlib.fill(shapes, case["seed"], case["gain"]).items()}, "golden").eval()
    pictures = 1.7 * torch.from_numpy(goldenlib.u((2, 3, 224, 224), case["seed"], "input:image"))
    near = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(net(pictures), truth["score"], rtol=1e-3, atol=0)
    shown, details = net.res(pictures)
    torch.testing.assert_close(details, truth["target_in_vec"][:, :, 0, 0], **near)
    layers = net.layers(net.conv1(shown))
    torch.testing.assert_close(layers[4][1], truth["fc5b"], **near)
    torch.testing.assert_close(layers[3][1], truth["fc4b"], **near)
    torch.testing.assert_close(layers[0][0][:, :4, :4], truth["fc1w_slice"], **near)
