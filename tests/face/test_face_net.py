"""The small face finder's networks, and how they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentsync import config as configs
from latentsync.config import FaceNetConfig
from latentsync.errors import LatentSyncError, WeightsError
from latentsync.face.face_net import MAPS, FaceNet, check_config, expected, fused, load_face_net

SMALL = FaceNetConfig(detector=64, detector_channels=(4, 4, 8, 8), crop=32, crop_channels=(4, 4, 8, 8))


def net() -> FaceNet:
    torch.manual_seed(0)
    made = FaceNet(SMALL)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made.requires_grad_(False).eval()


def stored(folder: Path, made: FaceNet) -> tuple[Path, Path]:
    weights, description = folder / "tracker.safetensors", folder / "tracker.yaml"
    save_file(made.state_dict(), str(weights))
    description.write_text(configs.dump(made.config))
    return weights, description


def test_shapes_and_size() -> None:
    maps, points, presence = net()(torch.zeros(2, 3, 64, 96), torch.zeros(3, 3, 32, 32))
    assert maps.shape == (2, MAPS, 8, 12)
    assert points.shape == (3, 68, 2)
    assert presence.shape == (3,)
    assert sum(p.numel() for p in FaceNet(FaceNetConfig()).parameters()) < 2e6


def test_the_mean_place_of_a_map() -> None:
    maps = torch.full((1, 2, 4, 6), -50.0)
    maps[0, 0, 3, 5] = 50.0
    maps[0, 1, 1, 2] = maps[0, 1, 1, 3] = 50.0  # between two cells
    torch.testing.assert_close(expected(maps), torch.tensor([[[5.0, 3.0], [2.5, 1.0]]]))


def test_folding_the_norms_in_changes_no_answer() -> None:
    made, folded = net(), fused(net())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    inputs = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 32, 32)
    for a, b in zip(made(*inputs), folded(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_weights_are_read_strictly_and_from_half_precision(tmp_path: Path) -> None:
    made = net()
    weights, description = stored(tmp_path, made)
    for name, value in load_face_net(weights, description).state_dict().items():
        torch.testing.assert_close(value, made.state_dict()[name], rtol=0, atol=0)
    state = made.state_dict()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, str(weights))
    assert load_face_net(weights, description).finder.narrow.weight.dtype == torch.float32
    del state["finder.narrow.bias"]
    save_file(state, str(weights))
    with pytest.raises(WeightsError, match=r"'finder\.narrow\.bias' is missing"):
        load_face_net(weights, description)
    save_file(made.state_dict() | {"more": torch.zeros(1)}, str(weights))
    with pytest.raises(WeightsError, match="'more'"):
        load_face_net(weights, description)
    weights.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot read the face finder"):
        load_face_net(weights, description)
    with pytest.raises(WeightsError, match="cannot read the face finder"):
        load_face_net(tmp_path / "absent.safetensors", description)


def test_what_no_network_can_be_made_of() -> None:
    with pytest.raises(LatentSyncError, match="four widths each"):
        check_config(FaceNetConfig(crop_channels=(8, 8)), "here")
    with pytest.raises(LatentSyncError, match="multiple of 32"):
        check_config(FaceNetConfig(detector=100), "here")
