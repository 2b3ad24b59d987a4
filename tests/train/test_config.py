"""Configurations of trainings: layers, strictness, and that what is shown is what is read."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from latentsync import config as configs
from latentsync.errors import UsageError
from latentsync.models.syncnet import SyncNet
from latentsync.train.config import KINDS, DataConfig, SyncNetTrain, UNetTrain, dump, full, kind_of, load, presets, require

load_unet = partial(load, "unet")
load_syncnet = partial(load, "syncnet")
ALL = [(kind, name) for kind in KINDS for name in presets(kind)]  # type: ignore[arg-type]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# presets


def test_the_published_names_are_there():
    assert presets("unet") == ["demo", "stage1", "stage1_512", "stage2", "stage2_512", "stage2_efficient", "tiny"]
    assert presets("syncnet") == ["demo", "syncnet_16_latent", "syncnet_16_pixel", "syncnet_16_pixel_attn", "syncnet_25_pixel", "tiny"]
    for kind in ("autoencoder", "speech", "tracker"):
        assert presets(kind) == ["demo", "tiny"]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_is_shown_is_what_is_read(kind, name, tmp_path):
    made, notes = load(kind, name, ["data.train=clips", "run.out=a: b", "optimizer.learning_rate=3e-5", "optimizer.betas=[0.8, 0.95]"])
    assert notes == []
    assert made.run.out == "a: b"
    assert load(kind, write(tmp_path / "all.yaml", dump(made))) == (made, [])
    assert kind_of(str(tmp_path / "all.yaml")) == kind


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_presets_hold_only_what_differs(kind, name):
    import yaml

    from latentsync.train import config

    def same(values, defaults, at=""):
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(defaults.get(key), dict):
                yield from same(value, defaults[key], f"{at}{key}.")
            elif value == defaults.get(key):
                yield f"{at}{key}"

    file = Path(config.__file__).parent / "presets" / kind / f"{name}.yaml"
    values = yaml.safe_load(file.read_text())
    if isinstance(values.get("net"), dict):  # encoders are described whole, and the kind of an autoencoder always
        values["net"] = {key: value for key, value in values["net"].items() if key not in ("audio", "visual", "kind")}
    assert list(same(values, full(KINDS[kind]()))) == []


def test_the_figures_of_the_published_presets():
    stage1, stage2, efficient = (load_unet(name)[0] for name in ("stage1", "stage2", "stage2_efficient"))
    assert configs.preset(stage1.model).unet.motion == "none"
    assert dataclasses.asdict(stage1.losses) == {"recon": 1.0, "sync": 0.0, "lpips": 0.0, "trepa": 0.0}
    assert stage1.trainable == ()
    assert dataclasses.asdict(stage2.losses) == {"recon": 1.0, "sync": 0.05, "lpips": 0.1, "trepa": 10.0}
    assert stage2.trainable == ("motion_modules.", "attentions.")
    assert configs.preset(stage2.model).unet.motion == "all"
    assert dataclasses.asdict(efficient.losses) == {"recon": 1.0, "sync": 0.05, "lpips": 0.1, "trepa": 0.0}
    assert efficient.trainable == ("motion_modules.", "attn2.")
    assert configs.preset(efficient.model).unet.motion == "decoder"
    assert load_unet("stage1_512")[0].resolution == 512
    assert configs.preset(load_unet("stage2_512")[0].model).resolution == 512
    for kind, name in ((kind, name) for kind, name in ALL if name not in ("demo", "tiny")):
        made, _ = load(kind, name)
        assert (made.run.seed, made.run.gradient_checkpointing, made.optimizer.max_grad_norm) == (1247, True, 1.0)
        assert made.optimizer.learning_rate == 1e-5


def test_syncnets_are_the_published_ones():
    for name, net in configs.SYNCNETS.items():
        assert load_syncnet(name)[0].net == net
    assert load_syncnet("syncnet_16_pixel_attn")[0].run.batch == 256
    tiny = load_syncnet("tiny")[0].net
    assert tiny.resolution == configs.preset("tiny").resolution
    assert sum(p.numel() for p in SyncNet(tiny).parameters()) < 5_000_000


# layers


def test_files_lie_over_presets_and_the_command_line_over_both(tmp_path):
    file = write(tmp_path / "mine.yaml", "preset: stage2\nrun: {batch: 4, steps: 1e4}\nlosses: {trepa: 0}\ntrainable:\n- attn2.\n")
    made, _ = load_unet(file, ["run.batch=8", "data.train=my clips"])
    assert (made.run.batch, made.run.steps, made.data.train) == (8, 10_000, "my clips")
    assert dataclasses.asdict(made.losses) == {"recon": 1.0, "sync": 0.05, "lpips": 0.1, "trepa": 0.0}
    assert made.trainable == ("attn2.",)
    assert kind_of(str(file)) == "unet"


def test_values_are_read_as_they_are_meant(tmp_path):
    file = write(tmp_path / "a.yaml", "model: 1.6\noptimizer: {learning_rate: 1e-4}\nstart:\nlora:\nresolution:\nsummary: 7\ntrainable:\n")
    made, _ = load_unet(file)
    assert (made.model, made.optimizer.learning_rate, made.start, made.resolution, made.summary, made.trainable) == ("1.6", 1e-4, "", None, "7", ())
    made, _ = load_unet(
        "stage2", ["model=1.0", "trainable=", "run.out=2024-01-01", "resolution=512", 'start="1.5"', "run.compile=yes", "run.dtype=bf16"]
    )
    assert (made.model, made.trainable, made.run.out, made.resolution, made.start) == ("1.0", (), "2024-01-01", 512, "1.5")
    assert made.run.compile is True


def test_a_syncnet_can_be_named_and_changed(tmp_path):
    assert load_syncnet("tiny", ["net=syncnet_25_pixel"])[0].net == configs.SYNCNETS["syncnet_25_pixel"]
    made, _ = load_syncnet("syncnet_16_pixel_attn", ["net.audio.attention=[]", "net.visual.attention=[]"])
    assert made.net == configs.SYNCNETS["syncnet_16_pixel"]
    file = write(tmp_path / "a.yaml", "net: syncnet_16_latent\nrun: {batch: 3}\n")
    made, _ = load_syncnet(file)
    assert (made.net, made.run.batch) == (configs.SYNCNETS["syncnet_16_latent"], 3)
    assert kind_of(str(file)) == "syncnet"


# strictness


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("unet", "run: {stepz: 3}", r"a\.yaml\.run: unknown key 'stepz'; known keys are out, .*did you mean 'steps'\?"),
        ("unet", "modle: '1.5'", r"unknown key 'modle'; known keys are .*did you mean 'model'\?"),
        ("unet", "net: {}", "unknown key 'net'"),
        ("unet", "preset: stage3", r"no preset 'stage3' for training unet; presets are .*; did you mean 'stage"),
        ("unet", "preset: syncnet_16_pixel", "no preset 'syncnet_16_pixel' for training unet"),
        ("unet", "kind: syncnet", "use: latentsync train syncnet"),
        ("syncnet", "kind: unet", "use: latentsync train unet"),
        ("syncnet", "net: syncnet_16", r"no network 'syncnet_16'; known ones are"),
        ("unet", "run: 3", "run: expected named values, found int"),
        ("unet", "run: {batch: many}", "run.batch: expected int, found 'many'"),
        ("unet", "run: {batch: 1.5}", "run.batch: expected int, found 1.5"),
        ("unet", "run: {batch: 0}", "run.batch is 0; it must be at least 1"),
        ("unet", "run: {dtype: fp8}", "'fp8' is not one of auto, fp32, bf16, fp16"),
        ("unet", "run: {ema: 1}", "run.ema is 1.0"),
        ("unet", "run: {seed: 4294967296}", "run.seed"),
        ("unet", "run: {resume: ''}", "run.resume is empty"),
        ("unet", "resolution: 200", "resolution 200 is not a positive multiple of 64"),
        ("unet", "losses: {recon: 0}", "every one of losses"),
        ("unet", "losses: {sync: -1}", "losses.sync is -1.0"),
        ("unet", "losses: {sync: .nan}", "losses.sync is nan"),
        ("unet", "noise_alpha: .inf", "noise_alpha is inf"),
        ("unet", "videomae: enormous", "'enormous' is not one of small, base, large, huge, giant"),
        ("unet", "videomae: base\nlosses: {trepa: 1}", "give the weights of base by videomae_file"),
        ("unet", "lora: {rank: 4, patterns: []}", "lora.patterns is empty"),
        ("unet", "optimizer: {learning_rate: 0}", "optimizer.learning_rate is 0.0; it must be a number above 0"),
        ("unet", "optimizer: {betas: [0.9]}", "optimizer.betas"),
        ("unet", "optimizer: {schedule: linear}", "'linear' is not one of constant, cosine"),
        ("unet", "optimizer: {schedule: cosine, warmup: 9}\nrun: {steps: 9}", "leaves nothing of run.steps 9"),
        ("unet", "trainable: attn2.", "trainable: expected a list, found 'attn2.'"),
        ("unet", "data: {on_bad: ignore}", "'ignore' is not one of error, skip"),
        ("unet", "data: {workers: -1}", "data.workers is -1"),
        ("unet", "run: [", "is not valid YAML"),
        ("unet", "- 1", "expected named values, found list"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, kind, text, said):
    with pytest.raises(UsageError, match=said):
        load(kind, write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("run.stepz=1", r"run\.stepz=1: unknown key 'stepz' in 'run'; known keys are .*did you mean 'steps'\?"),
        ("steps=1", "unknown key 'steps'; known keys are kind"),
        ("run.steps.more=1", "'run.steps' is a value, it holds nothing named 'more'"),
        ("run.steps", "'run.steps' is not KEY=VALUE"),
        ("run.steps=soon", "run.steps: expected int, found 'soon'"),
        ("trainable=[", "the value is not valid YAML"),
    ],
)
def test_overrides_that_cannot_be_used_are_named(given, said):
    with pytest.raises(UsageError, match=said):
        load_unet("stage2", [given])


def test_names_that_are_neither_preset_nor_file(tmp_path):
    with pytest.raises(UsageError, match=r"'stag1' is neither a preset \(demo, stage1, .*\) nor a file; did you mean 'stage1'\?"):
        load_unet("stag1")
    with pytest.raises(UsageError, match="use: latentsync train syncnet syncnet_16_pixel"):
        load_unet("syncnet_16_pixel")
    with pytest.raises(UsageError, match=f"cannot read {tmp_path}"):
        load_unet(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match="is not a text file"):
        load_unet(tmp_path / "picture.yaml")
    with pytest.raises(UsageError, match="'vae' cannot be trained; kinds are unet, syncnet"):
        load("vae", "stage1")  # type: ignore[arg-type]


def test_which_network_a_configuration_trains(tmp_path):
    with pytest.raises(UsageError, match="for each of unet and syncnet and autoencoder and speech and tracker; say which by --kind"):
        kind_of("tiny")
    assert kind_of("stage1") == "unet"
    assert kind_of(str(write(tmp_path / "a.yaml", "noise_alpha: 2"))) == "unet"
    assert kind_of(str(write(tmp_path / "c.yaml", "net: {crop: 64}"))) == "tracker"
    with pytest.raises(UsageError, match="does not say which network it trains"):
        kind_of(str(write(tmp_path / "b.yaml", "run: {batch: 2}")))


def test_what_has_no_default_is_asked_for():
    with pytest.raises(UsageError, match=r"data\.train"):
        require(UNetTrain())
    with pytest.raises(UsageError, match=r"run\.out"):
        require(SyncNetTrain(data=DataConfig(train="clips")))
    require(load_unet("stage1", ["data.train=a", "run.out=b"])[0])


def test_surprises_are_said():
    assert "`trainable` is not used" in load_unet("stage2", ["lora.rank=8"])[1][0]
    assert load_unet("stage1", ["lora.rank=8"])[1] == []
    assert "set run.steps" in load_unet("stage1", ["optimizer.schedule=cosine"])[1][0]
    assert load_unet("stage1", ["optimizer.schedule=cosine", "run.steps=1000"])[1] == []


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_unet("stage1")[0].run.steps = 3  # type: ignore[misc]


def test_importing_is_free():
    import subprocess
    import sys

    code = "import sys, latentsync.train.config, latentsync.train.published; print(*{'torch', 'yaml', 'numpy', 'av'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
