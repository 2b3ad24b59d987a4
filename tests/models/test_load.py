"""Weights files: every kind opens, every damage is told, and nothing loads that does not fit."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentsync.config import UNetConfig
from latentsync.errors import WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.unet import UNet

SMALL = UNetConfig(channels=(8, 8), layers_per_block=1, heads=2, audio_dim=12, groups=4)
STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def unet(**changes) -> UNet:
    with torch.device("meta"):
        return UNet(UNetConfig(**{**SMALL.__dict__, **changes}))


def weights(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return UNet(UNetConfig(**{**SMALL.__dict__, **changes})).state_dict()


# --- reading


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "global_step": 7},
        {"model_state_dict": STATE, "dims": {"n_mels": 80}},
        {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
        {**STATE, "global_step": 7},
    ],
    ids=["plain", "state_dict", "model_state_dict", "module", "beside other things"],
)
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_pytorch_files_open_whatever_wraps_the_tensors(tmp_path: Path, content: dict, modern: bool):
    file = tmp_path / "name with spaces, ü.pt"
    torch.save(content, file, _use_new_zipfile_serialization=modern)
    read = read_state(file)
    assert list(read) == list(STATE)  # in file order
    for key, tensor in STATE.items():
        assert torch.equal(read[key], tensor)
        assert read[key].dtype == tensor.dtype


def test_safetensors_open(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    save_file(STATE, file)
    read = read_state(str(file))
    assert {k: v.tolist() for k, v in read.items()} == {k: v.tolist() for k, v in STATE.items()}


def test_large_files_are_mapped_not_read(tmp_path: Path):
    resource = pytest.importorskip("resource")  # not on Windows
    for file in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        big = {"x": torch.zeros(50_000_000)}
        if file.suffix == ".pt":
            torch.save(big, file)
        else:
            save_file(big, file)
        del big
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        state = read_state(file)
        # 200 MB are 48,829 pages; a few of them hold the header
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 10_000
        assert state["x"].shape == (50_000_000,)
        del state
        file.unlink()


class Harm:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture):
    for modern in (True, False):
        file = tmp_path / f"{modern}.pt"
        torch.save({"state_dict": STATE, "extra": Harm()}, file, _use_new_zipfile_serialization=modern)
        with pytest.raises(WeightsError, match="refused"):
            read_state(file)
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(WeightsError):
        read_state(bare)
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_told(tmp_path: Path, suffix: str):
    whole = tmp_path / f"whole{suffix}"
    big = {"x": torch.randn(3000)}
    if suffix == ".pt":
        torch.save(big, whole)
    else:
        save_file(big, whole)
    data = whole.read_bytes()
    file = tmp_path / f"damaged{suffix}"
    for content, said in (
        (b"", "0 bytes"),
        (data[: len(data) // 2], "damaged"),
        (data[:40], "damaged"),
        (b"\x00" * 5000, "damaged"),
        (b"hello, this is some text\n" * 9, "damaged"),
        (b"<!DOCTYPE html><html>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "LFS"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=said) as e:
            read_state(file)
        assert str(file) in str(e.value)


def test_missing_files_folders_and_files_without_tensors_are_told(tmp_path: Path):
    with pytest.raises(WeightsError, match="No such file"):
        read_state(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="cannot read"):
        read_state(tmp_path)
    for content in ({}, {"state_dict": {}}, [1, 2], {"step": 3}, 5):
        torch.save(content, tmp_path / "none.pt")
        with pytest.raises(WeightsError, match="no tensors"):
            read_state(tmp_path / "none.pt")


# --- loading


def test_a_network_on_the_meta_device_takes_the_tensors_themselves():
    state = weights()
    loaded = load_state(unet(), state, "test")
    for key, tensor in loaded.state_dict().items():
        assert tensor.data_ptr() == state[key].data_ptr(), key
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loaded.parameters())


def test_the_first_key_of_each_kind_is_named_and_the_rest_counted():
    state = weights()
    del state["mid_block.resnets.0.conv1.weight"], state["conv_out.bias"]
    state |= {"extra.one": torch.zeros(1), "extra.two": torch.zeros(1), "conv_in.bias": torch.zeros(9)}
    with pytest.raises(WeightsError) as e:
        load_state(unet(), state, "model.safetensors")
    said = str(e.value)
    assert said.startswith("model.safetensors does not fit")
    assert "'conv_in.bias' has another shape ([9] in the file, [8] in the network)" in said
    assert "'extra.one' is not known to the network (and 1 more)" in said
    assert "'mid_block.resnets.0.conv1.weight' is missing (and 1 more)" in said


def test_a_refused_file_leaves_the_network_as_it_was():
    network = UNet(SMALL)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = {k: v + 1 for k, v in weights().items()}
    del state["conv_out.bias"]
    with pytest.raises(WeightsError):
        load_state(network, state, "test")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("file", "network", "cause"),
    [
        ({"motion": "none"}, {"motion": "all"}, "release 1.0"),
        ({"motion": "decoder"}, {"motion": "all"}, "decoder only"),
        ({"motion": "all"}, {"motion": "decoder"}, "motion all"),
        ({"motion": "all"}, {"motion": "none"}, "release 1.5"),
        ({"audio_dim": 768}, {}, "width 768, the network 12"),
        ({"in_channels": 4, "motion": "none"}, {}, "Stable Diffusion"),
        ({"channels": (16, 16)}, {}, "wider or narrower"),
    ],
)
def test_the_likely_cause_is_told(file: dict, network: dict, cause: str):
    with pytest.raises(WeightsError, match=cause):
        load_state(unet(**network), weights(**file), "test")


def test_another_network_is_told():
    with pytest.raises(WeightsError, match=r"another network altogether: its first key is 'x\.weight'"):
        load_state(unet(), {"x.weight": torch.zeros(1)}, "test")
