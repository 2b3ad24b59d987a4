"""One file out of a checkpoint: readable by the published project's way of loading and by ours, with the right network in it."""

import shutil
from pathlib import Path

import pytest
import torch

from latentsync import config as configs
from latentsync import weights
from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.unet import UNet
from latentsync.train import checkpoint
from latentsync.train.export import export
from latentsync.train.lora import adapter_files, add_lora, merged_state
from latentsync.weights.convert import notes, save
from tests.train.test_checkpoint import files_limited

TINY = configs.preset("tiny")


def unet(seed: int) -> UNet:
    torch.manual_seed(seed)
    return UNet(TINY.unet)


def put(folder: Path, network: UNet, vae: Path) -> None:
    save(network.state_dict(), folder / "unet.safetensors", notes(TINY, "unet"))
    (folder / "model.yaml").write_text(configs.dump(TINY))
    for role in ("vae", "whisper"):
        shutil.copy(vae / f"{role}.safetensors", folder)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Path:
    """A run with two checkpoints; the second has an averaged network as well."""
    root = tmp_path_factory.mktemp("runs") / "mine"

    def write(folder: Path, seed: int) -> None:
        put(folder, unet(seed), tiny_model)
        if seed == 2:
            (folder / "ema").mkdir()
            put(folder / "ema", unet(3), tiny_model)

    checkpoint.save(root / "checkpoints", 100, lambda f: write(f, 1), keep=2, keep_every=0)
    checkpoint.save(root / "checkpoints", 200, lambda f: write(f, 2), keep=2, keep_every=0)
    return root


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("place", "ema", "step", "seed"), [("", False, 200, 2), ("", True, 200, 3), ("checkpoints/step-00000100", False, 100, 1)])
def test_the_published_form(run, tmp_path, place, ema, step, seed):
    out = export(run / place, tmp_path / "new folder" / "latentsync_unet.pt", ema=ema)
    loaded = torch.load(out, map_location="cpu", weights_only=True)
    assert set(loaded) == {"global_step", "state_dict"}
    assert loaded["global_step"] == step
    expected = unet(seed).state_dict()
    assert same(loaded["state_dict"], expected)
    load_state(UNet(TINY.unet), read_state(out), "exported")
    assert [p.name for p in out.parent.iterdir()] == ["latentsync_unet.pt"]


def test_a_folder_with_the_exported_file_is_a_model(run, tiny_model, tmp_path):
    for name in ("latentsync_unet.pt", "unet.safetensors"):
        model = tmp_path / name
        model.mkdir()
        export(run, model / name)
        for role in ("vae", "whisper"):
            shutil.copy(tiny_model / f"{role}.safetensors", model)
        if name.endswith(".pt"):
            shutil.copy(tiny_model / "model.yaml", model)  # safetensors say themselves what they are
        found = weights.resolve(model, need=("unet", "vae", "whisper"))
        assert found.config == TINY
        assert same(found.state("unet"), unet(2).state_dict())


def test_safetensors_say_where_they_come_from(run, tmp_path):
    from latentsync.weights.places import metadata

    said = metadata(export(run, tmp_path / "a.safetensors"))
    assert said["latentsync.global_step"] == "200"
    assert said["latentsync.resolution"] == "64"


@pytest.mark.parametrize("merged", [True, False])
def test_adapters_are_merged(tiny_model, tmp_path, merged):
    network = load_state(UNet(TINY.unet), weights.resolve(tiny_model, need=()).state("unet"), "base")
    add_lora(network, 2, 2, ("attn2.",))
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".lora_" in name:
                p.normal_(0, 0.1)

    def write(folder: Path) -> None:
        adapter_files(network, folder, TINY, base=str(tiny_model), merged=merged)
        (folder / "model.yaml").write_text(configs.dump(TINY))
        for role in ("vae", "whisper"):
            shutil.copy(tiny_model / f"{role}.safetensors", folder)

    checkpoint.save(tmp_path / "checkpoints", 5, write, keep=1, keep_every=0)
    loaded = torch.load(export(tmp_path, tmp_path / "out.pt"), weights_only=True)
    assert loaded["global_step"] == 5
    assert same(loaded["state_dict"], merged_state(network))


def test_syncnet(tmp_path):
    state = {"audio_encoder.conv_in.weight": torch.randn(4, 1, 3, 3), "visual_encoder.conv_in.weight": torch.randn(4, 48, 3, 3)}
    checkpoint.save(tmp_path / "checkpoints", 7, lambda f: save(state, f / "syncnet.safetensors", {"format": "pt"}), keep=1, keep_every=0)
    loaded = torch.load(export(tmp_path, tmp_path / "stable_syncnet.pt"), weights_only=True)
    assert loaded["global_step"] == 7
    assert same(loaded["state_dict"], state)
    assert same(read_state(export(tmp_path, tmp_path / "s.safetensors")), state)


def test_what_cannot_be_exported(run, tmp_path):
    with pytest.raises(UsageError, match=r"should end in \.pt"):
        export(run, tmp_path / "unet.bin")
    with pytest.raises(UsageError, match="has no averaged network"):
        export(run / "checkpoints" / "step-00000100", tmp_path / "a.pt", ema=True)
    with pytest.raises(WeightsError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "a.pt")
    (tmp_path / "a.pt").write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        export(run, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_text() == "precious"
    for name in ("b.pt", "b.safetensors"):
        with files_limited(100_000), pytest.raises(OutputError, match="cannot write"):
            export(run, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
