"""Small trainings from clips to checkpoints: they learn, they go on, and what they write is a model like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from latentsync import train
from latentsync.config import VideoMAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.lpips import LPIPS
from latentsync.models.unet import UNet
from latentsync.models.videomae import VideoMAE
from latentsync.pipeline import LipSync
from latentsync.train import checkpoint, log
from latentsync.train import unet as unet_task
from latentsync.train.export import export
from latentsync.weights.convert import save
from latentsync.weights.releases import FILES
from tests.train.conftest import Once

HERE = ("run.device=cpu", "run.dtype=fp32", "data.workers=0", "run.log_every=1", "run.gradient_checkpointing=false")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests that run beside each other would take the cores from one another, and sums depend on how they are cut."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Run(NamedTuple):
    out: Path

    @property
    def said(self) -> list[str]:
        return (self.out / "said.txt").read_text(encoding="utf-8").splitlines()

    @property
    def last(self) -> Path:
        return checkpoint.find(self.out)

    def rows(self, split: str) -> list[dict[str, float]]:
        return [r.values for r in log.read(self.out / log.EVENTS) if r.split == split]


def go(kind: Any, config: str, *values: str, home: Path | None = None) -> Run:
    made, notes = train.load(kind, config, [*HERE, *values])
    said: list[str] = []
    outcome = train.run(made, notes=notes, home=home, say=said.append)
    (outcome.out / "said.txt").write_text("\n".join(said), encoding="utf-8")
    return Run(outcome.out)


def unet_of(folder: Path) -> dict[str, Tensor]:
    return read_state(folder / "unet.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Learning


@pytest.fixture(scope="session")
def syncnet(talking: Path, others: Path, once: Once) -> Run:
    def make(out: Path) -> None:
        go("syncnet", "tiny", f"data.train={talking}", f"data.validation={others}", f"run.out={out}", "run.steps=20", "run.validate_every=10")

    return Run(once("syncnet", make))


@pytest.fixture(scope="session")
def stage1(toy: Path, still: Path, talking: Path, others: Path, once: Once) -> Run:
    def make(out: Path) -> None:
        go(
            "unet", "stage1", f"model={still}", f"vae={toy}/vae.safetensors", f"whisper={toy}/whisper.safetensors", f"data.train={talking}",
            f"data.validation={others}", f"run.out={out}", "run.steps=12", "run.batch=2", "run.ema=0.7", "run.validate_every=6",
            "run.checkpoint_every=6", "run.validation_clips=4", "run.validation_videos=0", "optimizer.learning_rate=2e-3",
        )  # fmt: skip

    return Run(once("stage1", make))


def test_syncnet_rises_above_chance_on_clips_that_it_never_saw(syncnet: Run) -> None:
    found = syncnet.rows("validation")
    assert len(found) == 2
    assert found[-1]["accuracy"] > 0.75
    assert found[-1]["loss"] < math.log(2) - 0.1, "what a guess costs is ln 2"
    assert found[-1]["positive"] - found[-1]["negative"] > 0.2, "in sync and not are told apart, and not by their number"
    assert len(syncnet.rows("train")) == 20


def test_the_first_stage_learns_to_reconstruct(stage1: Run) -> None:
    first, last = (row["loss"] for row in stage1.rows("validation"))
    assert last < 0.95 * first
    assert first < 1.05, "of noise of variance one"
    assert any("begins with random weights" in line for line in stage1.said)
    assert any("100.0%" in line for line in stage1.said)
    assert {row["loss"] == row["recon"] for row in stage1.rows("train")} == {True}


def early(run: Run) -> Path:
    return run.out / "checkpoints" / "step-00000006"


SMALL = VideoMAEConfig(size=224, patch=32, width=32, depth=2, heads=2, mlp_ratio=2.0)


@pytest.fixture(scope="session")
def stage2(toy: Path, stage1: Run, syncnet: Run, talking: Path, others: Path, once: Once) -> Run:
    """The preset with all of its losses, and a small VideoMAE. It begins early in the first stage, where losses still fall fast."""

    def make(out: Path) -> None:
        home = judges(out / "home")
        go(
            "unet", "stage2", f"model={toy}/model.yaml", f"start={early(stage1)}", f"syncnet={syncnet.out}", "videomae=small",
            f"videomae_file={home}/videomae.safetensors", f"data.train={talking}", f"data.validation={others}", f"run.out={out}", "run.steps=5",
            "run.validate_every=2", "run.validation_clips=2", "run.validation_videos=0", "run.gradient_checkpointing=true",
            "optimizer.learning_rate=4e-3", home=home,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unet_task.VIDEOMAES, "small", SMALL)  # a size that is not published
        return Run(once("stage2", make))


def judges(home: Path) -> Path:
    """Write a folder of weights with a VGG16 and LPIPS' heads that know nothing, and a small VideoMAE in a file of its own."""
    torch.manual_seed(0)
    state = LPIPS().state_dict()
    heads = {k: v.abs() for k, v in state.items() if k.startswith("lin")}
    for role, tensors in (("vgg16", {k: v for k, v in state.items() if k not in heads}), ("lpips", heads)):
        notes = {"format": "pt", "latentsync.source_sha256": FILES[role].sha256 or ""}  # as if it had been converted
        save(tensors, (home / FILES[role].path).with_suffix(".safetensors"), notes)
    save(VideoMAE(SMALL).state_dict(), home / "videomae.safetensors", {"format": "pt"})
    return home


TERMS = {"recon": 1.0, "sync": 0.05, "lpips": 0.1, "trepa": 10.0}


def test_the_second_stage_lowers_the_sum_of_all_its_terms(stage2: Run) -> None:
    rows = stage2.rows("train") + stage2.rows("validation")
    assert all(math.isfinite(row[name]) and row[name] > 0 for row in rows for name in ("loss", *TERMS))
    for row in rows:
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in TERMS.items()), rel=1e-5)
    seen = [row["loss"] for row in stage2.rows("validation")]
    assert len(seen) == 3
    assert seen[-1] < 0.998 * seen[0]


def test_the_second_stage_trains_what_its_patterns_name_and_nothing_else(stage1: Run, stage2: Run) -> None:
    before, after = unet_of(early(stage1)), unet_of(stage2.last)
    named = {k for k in after if "motion_modules." in k or "attentions." in k}
    assert set(after) - set(before) == {k for k in after if "motion_modules." in k}
    for key in before:
        assert torch.equal(before[key], after[key]) != (key in named), key
    assert all(after[k].any() for k in named if k.endswith("proj_out.weight")), "what began at zero has learned"
    assert any(line.startswith("new: ") and "motion modules" in line for line in stage2.said)


def test_validation_shows_videos_charts_and_scores(toy: Path, syncnet: Run, talking: Path, others: Path, tmp_path: Path) -> None:
    """A SyncNet that is given is asked about the videos, even where it is not in the loss."""
    run = go(
        "unet", "tiny", f"model={toy}/model.yaml", f"start={toy}", f"syncnet={syncnet.last}", f"data.train={talking}", f"data.validation={others}",
        f"run.out={tmp_path}/run", "run.steps=1", "run.batch=1", "run.validation_clips=1", "run.validation_videos=2",
    )  # fmt: skip
    assert sorted(p.name for p in (run.out / "validation" / "step-00000001").iterdir()) == ["00-other 00.mp4", "01-other 01.mp4"]
    (row,) = run.rows("validation")
    assert {"loss", "recon", "sync_cosine", "sync_confidence", "sync_offset", "sync_cosine_real"} <= row.keys()
    assert row["sync_cosine_real"] > max(0.5, row["sync_cosine"]), "this SyncNet knows the real ones"
    assert (run.out / "charts.png").stat().st_size > 10_000
    assert list((run.out / "tensorboard").iterdir())


def test_a_pattern_that_names_nothing_is_refused(toy: Path, talking: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'motion_module_s'.*motion_modules"):
        go("unet", "tiny", f"model={toy}/model.yaml", f"start={toy}", f"data.train={talking}", f"run.out={tmp_path}", "trainable=[motion_module_s]")


# What is written


def runs_as_a_model(folder: Path, sample: Path, out: Path) -> None:
    lipsync = LipSync.load(folder, device="cpu", dtype="fp32", faces=False)
    result = lipsync.sync(sample / "sample.mp4", sample / "speech.wav", out, points=sample / "points.npz", steps=1, guidance=1.0)
    assert result.frames == 50
    assert out.stat().st_size > 0


def test_a_checkpoint_is_a_model_and_so_is_its_average(stage1: Run, sample: Path, tmp_path: Path) -> None:
    raw, averaged = unet_of(stage1.last), unet_of(stage1.last / "ema")
    assert raw.keys() == averaged.keys()
    assert not equal(raw, averaged)
    runs_as_a_model(stage1.last, sample, tmp_path / "raw.mp4")
    loaded = LipSync.load(stage1.last / "ema", device="cpu", dtype="fp32", faces=False)
    assert equal({k: v.contiguous() for k, v in loaded.model.unet.state_dict().items()}, averaged)


def test_an_exported_network_is_loaded_again(stage1: Run, stage2: Run, syncnet: Run, still: Path, talking: Path, tmp_path: Path) -> None:
    file = export(stage2.out, tmp_path / "latentsync_unet.pt")
    published = torch.load(file, weights_only=True)
    assert published["global_step"] == 5
    assert equal(published["state_dict"], unet_of(stage2.last))
    config = LipSync.load(stage2.last, device="cpu", dtype="fp32", faces=False).config
    assert equal(load_state(UNet(config.unet), read_state(file), "exported").state_dict(), unet_of(stage2.last))
    averaged = export(stage1.out, tmp_path / "averaged.safetensors", ema=True)
    assert equal(read_state(averaged), unet_of(stage1.last / "ema"))
    heard = export(syncnet.out, tmp_path / "syncnet.pt")
    same = f"data.train={talking}"
    again = go("syncnet", "tiny", same, f"run.out={tmp_path}/again", f"start={heard}", "run.steps=1", "run.batch=2", "optimizer.learning_rate=1e-9")
    before, after = read_state(syncnet.last / "syncnet.safetensors"), read_state(again.last / "syncnet.safetensors")
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


# Adapters


@pytest.fixture(scope="session")
def base(stage1: Run, still: Path, talking: Path) -> tuple[str, ...]:
    """Fine-tuning what the first stage made."""
    start = (f"model={still}", f"start={stage1.out}", f"data.train={talking}", "run.validate_every=0", "run.validation_clips=0")
    return (*start, "run.validation_videos=0", "run.batch=1", "lora.rank=4", "lora.patterns=[attn2., attn1.to_q]")


@pytest.mark.parametrize("kind", ["separate", "merged"])
def test_adapters_are_trained_written_and_gone_on_with(base: tuple[str, ...], stage1: Run, sample: Path, tmp_path: Path, kind: str) -> None:
    whole = go("unet", "tiny", *base, f"run.out={tmp_path}/whole", "run.steps=4", f"lora.save={kind}", "run.ema=0.5")
    first = go("unet", "tiny", *base, f"run.out={tmp_path}/parts", "run.steps=2", f"lora.save={kind}", "run.ema=0.5")
    parts = go("unet", "tiny", *base, f"run.out={tmp_path}/parts", "run.steps=4", f"lora.save={kind}", "run.ema=0.5")
    assert first.out == parts.out
    assert checkpoint.step_of(parts.last) == 4
    adapter = read_state(parts.last / "adapter_model.safetensors")
    assert equal(adapter, read_state(whole.last / "adapter_model.safetensors"))
    # at 64 px the middle block sees one place alone, among which queries change nothing
    assert all(v.any() for k, v in adapter.items() if not ("mid_block" in k and "attn1.to_q" in k))
    assert (parts.last / "unet.safetensors").is_file() == (kind == "merged")
    described = json.loads((parts.last / "adapter_config.json").read_text())
    assert (described["r"], described["base_model_name_or_path"]) == (4, str(stage1.last))
    runs_as_a_model(parts.last, sample, tmp_path / "synced.mp4")
    loaded = LipSync.load(parts.last, device="cpu", dtype="fp32", faces=False)
    before = unet_of(stage1.last)
    changed = {k for k, v in loaded.model.unet.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all("attn2." in k or "attn1.to_q" in k for k in changed)
    averaged = LipSync.load(parts.last / "ema", device="cpu", dtype="fp32", faces=False).model.unet.state_dict()
    assert any(not torch.equal(averaged[k], loaded.model.unet.state_dict()[k]) for k in changed)
    exported = torch.load(export(parts.out, tmp_path / "unet.pt"), weights_only=True)["state_dict"]
    assert all(torch.allclose(exported[k], v, atol=1e-6) for k, v in loaded.model.unet.state_dict().items())


def test_adapters_of_other_settings_are_not_gone_on_with(base: tuple[str, ...], tmp_path: Path) -> None:
    go("unet", "tiny", *base, f"run.out={tmp_path}", "run.steps=1")
    with pytest.raises(WeightsError, match="lora was another one"):
        go("unet", "tiny", *base, f"run.out={tmp_path}", "run.steps=2", "lora.rank=8")


# Precision


def test_bf16_trains_on_the_cpu_too(toy: Path, talking: Path, tmp_path: Path) -> None:
    """The arithmetic is bf16, the weights themselves are float32, and the losses are near those of float32."""
    given = [f"model={toy}/model.yaml", f"start={toy}", f"data.train={talking}", "run.steps=2", "run.batch=1"]
    given += ["run.validate_every=0", "run.validation_clips=0", "run.validation_videos=0"]
    exact, rough = (go("unet", "tiny", *given, f"run.out={tmp_path}/{dtype}", f"run.dtype={dtype}") for dtype in ("fp32", "bf16"))
    losses = [[row["loss"] for row in run.rows("train")] for run in (exact, rough)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert {v.dtype for v in unet_of(rough.last).values()} == {torch.float32}
    assert checkpoint.step_of(rough.last) == 2
