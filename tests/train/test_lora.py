"""Adapters by peft: what is trained, what is written, and that a folder with one is a model like any other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync import config as configs
from latentsync import weights
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.unet import UNet
from latentsync.pipeline import LipSync
from latentsync.train import checkpoint
from latentsync.train.lora import adapter_files, adapter_state, add_lora, base_for, merged_state, read_adapter
from tests.conftest import write_wav

TINY = configs.preset("tiny")
PATTERNS = ("attn2.", "proj_in.", "motion_modules.")


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch, tmp_path):
    """No weights anywhere but in this test's folders."""
    for name in ("LATENTSYNC_WEIGHTS_PATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def base(tiny_model) -> dict[str, torch.Tensor]:
    return weights.resolve(tiny_model, need=()).state("unet")


def fresh(base: dict[str, torch.Tensor]) -> UNet:
    return load_state(UNet(TINY.unet), {k: v.clone() for k, v in base.items()}, "U-Net")


def tuned(base: dict[str, torch.Tensor], patterns=PATTERNS, rank=3, size=0.15) -> UNet:
    """With adapters that change something, as after training."""
    unet = fresh(base)
    torch.manual_seed(1)
    add_lora(unet, rank, 2 * rank, patterns)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if ".lora_" in name:
                p.normal_(0, size)
    return unet


def predicted(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 13, 4, 8, 8, generator=generator)
    audio = torch.randn(1, 4, 10, TINY.unet.audio_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([500]), audio)


def test_only_adapters_are_trained_and_they_start_from_nothing(base):
    unet = fresh(base)
    before = predicted(unet)
    found = add_lora(unet, 4, 4, ("attn2.",))
    assert found
    assert all(".attn2." in name for name in found)
    trained = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(found)
    assert all(".attn2." in name and ".lora_" in name for name in trained)
    assert torch.equal(predicted(unet), before)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) < 0.1 * sum(v.numel() for v in base.values())


def test_every_adapter_learns_those_of_convolutions_too(base):
    unet = tuned(base, ("attn1.", "attn2.", "proj_in", "proj_out", "ff.", "time_emb_proj", "conv_shortcut"))
    unet.gradient_checkpointing = True
    convolutions = [n for n, m in unet.named_modules() if type(m).__module__.startswith("peft") and type(m).__name__ == "Conv2d"]
    assert any(n.endswith("proj_in") for n in convolutions)
    assert any(n.endswith("conv_shortcut") for n in convolutions)
    # 16x16, so that the middle block sees more than one place: among one alone, queries and keys change nothing
    unet(torch.randn(1, 13, 4, 16, 16), torch.tensor([500]), torch.randn(1, 4, 10, TINY.unet.audio_dim)).square().mean().backward()
    still = [n for n, p in unet.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    assert all(p.grad is None for n, p in unet.named_parameters() if ".lora_" not in n)


@pytest.mark.parametrize(
    ("rank", "patterns", "says"),
    [
        (4, ("attn3.",), "'attn3.' in its name; their names end in 0, 2, conv_shortcut"),
        (4, ("attn2.", "norm1"), "'norm1'"),
        (4, ("conv_in",), "'conv_in'"),  # 3x3
        (4, (), "lora.patterns is empty"),
        (0, ("attn2.",), "lora.rank 0"),
    ],
)
def test_settings_without_meaning(base, rank, patterns, says):
    with pytest.raises(UsageError, match=says):
        add_lora(fresh(base), rank, rank, patterns)


def test_merged_equals_unmerged(base):
    unet = tuned(base)
    expected = predicted(unet)
    assert (predicted(fresh(base)) - expected).abs().max() > 0.01
    state = merged_state(unet)
    assert list(state) == list(UNet(TINY.unet).state_dict()), "published names, in their order"
    torch.testing.assert_close(predicted(load_state(UNet(TINY.unet), state, "merged")), expected, atol=1e-5, rtol=0)
    assert torch.equal(predicted(unet), expected), "merging leaves the network in training as it was"
    apart = {k for k in base if not torch.equal(base[k], state[k])}
    assert apart
    assert all(any(p in k for p in PATTERNS) for k in apart)


def test_peft_reads_the_files(base, tmp_path):
    from peft import PeftModel

    unet = tuned(base)
    adapter_files(unet, tmp_path, TINY, base="1.5", merged=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "1.5"
    torch.testing.assert_close(predicted(PeftModel.from_pretrained(fresh(base), str(tmp_path))), predicted(unet), atol=1e-5, rtol=0)


def test_training_goes_on_from_the_files(base, tmp_path):
    unet = tuned(base)
    adapter_files(unet, tmp_path, TINY, base="1.5", merged=True)
    again = fresh(base)
    add_lora(again, 3, 6, PATTERNS)
    places = [p.data_ptr() for p in again.parameters()]
    read_adapter(again, tmp_path, base="1.5")
    expected = adapter_state(unet)
    assert all(torch.equal(v, expected[k]) for k, v in adapter_state(again).items())
    assert [p.data_ptr() for p in again.parameters()] == places
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in unet.parameters()]
    others = [
        (4, 8, PATTERNS, "1.5", "has r 3, the configuration 4: lora was another one"),
        (3, 3, PATTERNS, "1.5", "lora_alpha 6"),
        (3, 6, ("attn2.",), "1.5", "does not fit"),
        (3, 6, PATTERNS, "1.6", "path 1.5, the configuration 1.6: start was another one"),
    ]
    for rank, alpha, patterns, named, says in others:
        other = fresh(base)
        add_lora(other, rank, alpha, patterns)
        with pytest.raises(WeightsError, match=says):
            read_adapter(other, tmp_path, base=named)


def test_bases_are_named_so_that_they_are_found_again(base, tiny_model, tmp_path, monkeypatch):
    unet = fresh(base)
    monkeypatch.chdir(tiny_model.parent)
    assert base_for(unet, "tiny") == str(tiny_model)
    assert base_for(unet, "tiny/unet.safetensors") == str(tiny_model / "unet.safetensors")
    for step in (1, 2):
        checkpoint.save(tmp_path / "checkpoints", step, lambda f: shutil.copytree(tiny_model, f, dirs_exist_ok=True), keep=0, keep_every=0)
    assert base_for(unet, str(tmp_path)) == str(tmp_path / "checkpoints" / "step-00000002")


def test_a_base_is_a_whole_network(base, tmp_path):
    unet = fresh(base)
    with pytest.raises(UsageError, match="set start to a release"):
        base_for(unet, "")
    with pytest.raises(WeightsError, match=r"models download 1\.5"):
        base_for(unet, "1.5")
    still = {k: v for k, v in base.items() if "motion_modules." not in k}
    torch.save({"state_dict": still}, tmp_path / "stage1.pt")
    with pytest.raises(UsageError, match=r"start=.*stage1\.pt is another one .* first at '.*motion_modules"):
        base_for(unet, str(tmp_path / "stage1.pt"))


# As a model


@pytest.fixture(scope="module")
def speaker(base, tiny_model, tmp_path_factory) -> Path:
    """A folder as training leaves it with lora.save=separate."""
    folder = tmp_path_factory.mktemp("tuned") / "speaker"
    folder.mkdir()
    adapter_files(tuned(base), folder, TINY, base=str(tiny_model), merged=False)
    (folder / "model.yaml").write_text(configs.dump(TINY))
    return folder


@pytest.fixture
def mine(speaker, tmp_path) -> Path:
    """The same, to be changed by one test."""
    return Path(shutil.copytree(speaker, tmp_path / "speaker"))


def rename_base(folder: Path, base: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))


def test_a_folder_with_an_adapter_syncs_as_the_merged_folder_does(base, speaker, tiny_model, sample, tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    adapter_files(tuned(base), merged, TINY, base=str(tiny_model), merged=True)
    (merged / "model.yaml").write_text(configs.dump(TINY))
    for role in ("vae", "whisper"):
        shutil.copy(tiny_model / f"{role}.safetensors", merged)

    def mouths(model: Path) -> np.ndarray:
        lipsync = LipSync.load(model, device="cpu", dtype="fp32", faces=False)
        stream = lipsync.stream(sample / "sample.mp4", sample / "speech.wav", points=sample / "points.npz", steps=2, guidance=1.0)
        pictures = np.stack([next(stream).picture.rgb().astype(int) for _ in range(4)])
        stream.close()
        return pictures

    plain, separate, whole = mouths(tiny_model), mouths(speaker), mouths(merged)
    assert np.array_equal(separate, whole)
    assert np.abs(separate - plain).max() > 5


def test_the_command_takes_the_folder_and_needs_no_peft(speaker, sample, tmp_path):
    code = "import sys; sys.modules['peft'] = None; from latentsync.__main__ import main; main()"
    sound = write_wav(tmp_path / "short.wav", 0.1 * np.sin(np.arange(16000 // 4) / 20).astype(np.float32))
    words = ["sync", sample / "sample.mp4", sound, "-o", tmp_path / "out.mp4", "--model", speaker, "--points", sample / "points.npz"]
    words += ["--steps", "1", "--guidance", "1", "--device", "cpu", "--dtype", "fp32"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 1000


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return weights.resolve(folder, need=("unet", "vae", "whisper")).state("unet")


def test_the_base_may_be_said_in_several_ways(base, speaker, mine, tiny_model, tmp_path):
    expected = state_of(speaker)
    assert any(not torch.equal(expected[k], base[k]) for k in base)

    def same() -> bool:
        return all(torch.equal(v, expected[k]) for k, v in state_of(mine).items())

    shutil.copytree(tiny_model, tmp_path / "base model")
    rename_base(mine, "../base model")  # relative to the adapter's folder, wherever the process stands
    assert same()
    assert weights.resolve(mine, need=()).untrained
    for role in ("vae", "whisper"):
        shutil.copy(tiny_model / f"{role}.safetensors", mine)
    rename_base(mine, "../base model/unet.safetensors")
    assert same()
    (mine / "model.yaml").unlink()  # the base describes the model as well
    assert same()
    rename_base(mine, "../base model")
    assert same()
    assert weights.resolve(mine, need=()).config.name == "speaker"


def test_an_adapter_of_an_adapter(base, speaker, mine):
    rename_base(mine, str(speaker))
    once, twice = state_of(speaker), state_of(mine)
    key = next(k for k in base if not torch.equal(once[k], base[k]))
    torch.testing.assert_close(twice[key] - once[key], once[key] - base[key], atol=1e-5, rtol=0)


def test_a_folder_with_a_whole_network_is_not_merged_again(base, mine, tiny_model):
    adapter_files(tuned(base), mine, TINY, base=str(tiny_model), merged=True)
    for role in ("vae", "whisper"):
        shutil.copy(tiny_model / f"{role}.safetensors", mine)
    stored = read_state(mine / "unet.safetensors")
    assert all(torch.equal(v, stored[k]) for k, v in state_of(mine).items())


def test_info_shows_the_adapter_and_its_base(speaker, tiny_model):
    text = weights.info(speaker).text()
    assert str(speaker / "adapter_model.safetensors") in text
    assert str(tiny_model / "unet.safetensors") in text


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("1.5", r"is an adapter of model 1\.5: .*latentsync models download 1\.5"),
        ("../nowhere", r"the adapter's base is '\.\./nowhere', which is neither a model \(1\.6, 1\.5\) nor another folder"),
        (".", "the adapter's base is '.'"),
        (None, 'does not say what the adapter belongs to; write "base_model_name_or_path"'),
        ("../empty", "empty holds no U-Net"),
    ],
)
def test_a_base_that_is_not_here(mine, tmp_path, named, says):
    (tmp_path / "empty").mkdir()
    rename_base(mine, named)
    with pytest.raises(WeightsError, match=says):
        weights.resolve(mine)


def test_adapters_that_are_each_others_base(mine, tmp_path):
    other = shutil.copytree(mine, tmp_path / "other")
    rename_base(mine, "../other")
    rename_base(other, "../speaker")
    with pytest.raises(WeightsError, match="the adapter's base is"):
        weights.resolve(mine)


def test_an_adapter_of_another_shape(mine, tmp_path):
    state = read_state(mine / "adapter_model.safetensors")
    key = next(k for k in state if k.endswith("attn2.to_k.lora_A.weight"))
    from safetensors.torch import save_file

    save_file({**state, key: torch.zeros(3, 40)}, mine / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"has the shape \[32, 40\] for '.*attn2\.to_k\.weight', its base \[32, 32\]: it was trained on another"):
        LipSync.load(mine, device="cpu", dtype="fp32", faces=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "is not the description"),
        (lambda f: (f / "model.yaml").write_text("name: x\nresolution: 128\n"), "describes another U-Net or resolution than the adapter's base"),
    ],
)
def test_a_folder_that_contradicts_itself(mine, change, says):
    change(mine)
    with pytest.raises(WeightsError, match=says):
        weights.resolve(mine)
