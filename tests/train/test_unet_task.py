"""What the U-Net's task does beside its loss: clips that break while it trains, and what its checkpoints hold."""

from pathlib import Path

import pytest
import torch

from latentsync.device import Compute
from latentsync.errors import InputError
from latentsync.models.load import read_state
from latentsync.train import load
from latentsync.train.config import UNetTrain
from latentsync.train.unet import UNetTask
from tests.train.conftest import talk


def made(tmp_path: Path, tiny_model: Path, on_bad: str) -> UNetTask:
    """A task with two clips, one of them held out, on the CPU in bf16."""
    for i in range(2):
        talk(tmp_path / "clips" / f"{i}.mp4", seed=i)
    values = [f"data.train={tmp_path / 'clips'}", f"run.out={tmp_path / 'out'}", f"start={tiny_model}", f"data.on_bad={on_bad}"]
    config = load("unet", "tiny", values)[0]
    assert isinstance(config, UNetTrain)
    task = UNetTask(config, say=lambda _: None)
    task.place(Compute(torch.device("cpu"), torch.bfloat16, "for this test"))
    return task


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_a_held_out_clip_that_breaks_is_left_out_of_the_videos(tmp_path: Path, tiny_model: Path) -> None:
    task = made(tmp_path, tiny_model, "skip")
    cut_off(task.validation[0].path)
    (batch,) = task.held_out(rank=0, world=1)
    assert batch["weight"].tolist() == [0]
    assert len(batch["bad"]) == 1
    assert str(task.validation[0].path) in batch["bad"][0]
    assert task.preview(task.network, tmp_path / "videos") == {}
    assert not list(tmp_path.glob("videos/*"))


def test_a_held_out_clip_that_breaks_ends_a_run_that_leaves_nothing_out(tmp_path: Path, tiny_model: Path) -> None:
    task = made(tmp_path, tiny_model, "error")
    path = task.validation[0].path
    cut_off(path)
    with pytest.raises(InputError, match=path.name):
        task.preview(task.network, tmp_path / "videos")


def test_a_checkpoint_holds_its_own_autoencoder_as_it_was_read(tmp_path: Path, tiny_model: Path) -> None:
    task = made(tmp_path, tiny_model, "error")
    task.write(tmp_path / "step", task.network)
    before, after = read_state(tiny_model / "vae.safetensors"), read_state(tmp_path / "step" / "vae.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "not rounded to the precision in which it runs"
