"""FID's Inception-v3: its published names and shapes, its widths, and in what it differs from torchvision's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentsync.errors import UsageError, WeightsError
from latentsync.models.inception import Convolution, InceptionV3, Mixed, _a, _e
from latentsync.models.load import load_state
from tests.models.conftest import randomise


def empty() -> InceptionV3:
    with torch.device("meta"):
        return InceptionV3()


def test_the_published_file_fits_in_every_name():
    """pt_inception-2015-12-05-6726825d.pth has 566 entries: 94 convolutions with normalisation, and the classifier of 1008 kinds."""
    net = empty()
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    assert len(shapes) == 566
    assert sum(p.numel() for p in net.parameters()) == 23_850_960  # torchvision's without the auxiliary head, and with 1008 kinds
    assert sum(isinstance(m, Convolution) for m in net.modules()) == 94
    for key, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch1x1.conv.weight": (320, 1280, 1, 1),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch1x1.bn.num_batches_tracked": (),
        "fc.weight": (1008, 2048),
    }.items():
        assert shapes[key] == shape, key
    assert not any("branch_pool" in key for key in shapes if key.startswith(("Mixed_6a", "Mixed_7a")))


def test_another_file_is_refused():
    state = {key: torch.empty(t.shape) for key, t in empty().state_dict().items() if t.numel() < 5000}
    with pytest.raises(WeightsError, match=r"'Conv2d_2a_3x3\.conv\.weight' is missing \(and 93 more\)"):
        load_state(empty(), state, "Inception-v3")


@torch.no_grad()
def test_average_pools_do_not_count_what_lies_beyond_the_edge():
    block = Mixed(4, *_a(8)).eval()
    randomise(block)
    x = torch.rand(1, 4, 6, 5)
    pooled = F.avg_pool2d(x, 3, 1, 1) * 9 / F.avg_pool2d(torch.ones_like(x), 3, 1, 1, divisor_override=1)
    expected = F.relu(F.conv2d(pooled, block.branch_pool.conv.weight) / (1 + 0.001) ** 0.5)
    found = block(x)
    assert found.shape == (1, block.width, 6, 5)
    assert block.width == 64 + 64 + 96 + 8
    torch.testing.assert_close(found[:, -8:], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_block_pools_by_the_maximum_and_no_other():
    x = torch.rand(1, 4, 5, 5)
    for pool, pooled in (("mean", F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)), ("most", F.max_pool2d(x, 3, 1, 1))):
        block = Mixed(4, *_e(pool)).eval()
        randomise(block)
        expected = F.relu(F.conv2d(pooled, block.branch_pool.conv.weight) / (1 + 0.001) ** 0.5)
        torch.testing.assert_close(block(x)[:, -192:], expected, rtol=1e-4, atol=1e-5)
    net = empty()
    assert [net.get_submodule(f"Mixed_7{c}")._pool for c in "bc"] == ["mean", "most"]


@torch.no_grad()
def test_pictures_become_2048_numbers_whatever_their_size():
    net = randomise(InceptionV3())
    x = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    found = net(x)
    assert found.shape == (2, 2048)
    assert (found >= 0).all()
    assert found.std() > 0
    scaled = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(scaled[:1]), found[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"pictures of shape \(b, 3, h, w\)"):
        net(x[:, :2])
