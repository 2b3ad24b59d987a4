"""The loop that trains, on a task so small that its arithmetic can be done again by hand."""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentsync.errors import LatentSyncError, OutputError, UsageError, WeightsError
from latentsync.train import checkpoint, log, loop
from latentsync.train.config import OptimizerConfig, RunConfig
from latentsync.train.loop import Outcome, learning_rate, train

RATES = OptimizerConfig(learning_rate=0.05, max_grad_norm=5.0, weight_decay=0.1)


class Line:
    """A line through points: sample p of the endless sequence has coordinates drawn from p, and four held-out ones are always the same."""

    name = "line"
    frames = 5
    sparse = ()

    def __init__(self, run: RunConfig) -> None:
        torch.manual_seed(0)
        self.run = run
        self.network: nn.Linear = nn.Linear(3, 1)
        self.broken: set[int] = set()  # positions whose loss is not a number
        self.words: dict[int, dict[str, list[str]]] = {}  # what micro-batches bring along
        self.modes: list[tuple[str, bool]] = []  # (what was computed, whether the network was in training mode)
        self.previews: list[Path] = []

    def sample(self, position: int) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.random.default_rng(position).standard_normal(3, dtype=np.float32))
        return x, 2 * x[:1] - x[1:2] + 0.1 * x[2:]

    def batch(self, positions: Iterable[int]) -> dict[str, Any]:
        positions = list(positions)
        x, y = (torch.stack(values) for values in zip(*map(self.sample, positions), strict=True))
        return {"x": x, "y": y, "weight": torch.ones(len(positions)), "position": torch.tensor(positions)}

    def place(self, compute: Any) -> None:
        pass

    def batches(self, *, rank: int, world: int, start: int) -> Iterable[dict[str, Any]]:
        micro = start
        while True:
            first = (micro * world + rank) * self.run.batch
            yield self.batch(range(first, first + self.run.batch)) | self.words.get(micro, {})
            micro += 1

    def held_out(self, *, rank: int, world: int) -> Iterable[dict[str, Any]]:
        yield self.batch([10**6, 10**6 + 1, 10**6 + 2]) | {"held_out": True}
        last = self.batch([10**6 + 3, 10**6 + 4]) | {"held_out": True}
        last["weight"] = torch.tensor([1.0, 0.0])
        yield last

    def terms(self, network: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        self.modes.append(("validation" if "held_out" in batch else "train", network.training))
        error = (network(batch["x"]) - batch["y"]).squeeze(1)
        error = error * torch.tensor([math.nan if int(p) in self.broken else 1.0 for p in batch["position"]])
        weight = batch["weight"]
        return {"loss": (error.square() * weight).sum() / weight.sum(), "distance": (error.detach().abs() * weight).sum() / weight.sum()}

    def preview(self, network: nn.Module, folder: Path) -> dict[str, float]:
        self.previews.append(folder)
        return {"beauty": 0.5}

    def write(self, folder: Path, network: nn.Module) -> None:
        checkpoint.save_tensors(folder / "line.pt", network.state_dict())

    def read(self, folder: Path) -> None:
        self.network.load_state_dict(checkpoint.load_tensors(folder / "line.pt"))


def settings(out: Path, **more: Any) -> RunConfig:
    given = {"steps": 6, "batch": 2, "device": "cpu", "dtype": "fp32", "log_every": 2, "checkpoint_every": 100, "validate_every": 0}
    return RunConfig(out=str(out), **(given | more))


def go(
    run: RunConfig, rates: OptimizerConfig = RATES, *, task: Line | None = None, described: str = "kind: line\n", **more: Any
) -> tuple[Line, Outcome]:
    task = task or Line(run)
    task.run = run
    return task, train(task, run, rates, described, **more)


def weights(task: Line) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.network.parameters()]).clone()


def told(out: Path, split: str = "train") -> list[tuple[int, dict[str, float]]]:
    """Rows of the log without what depends on the clock and on the machine."""
    clock = ("seconds_per_step", "data_seconds_per_step", "frames_per_second", "memory_gb")
    return [(r.step, {k: v for k, v in r.values.items() if k not in clock}) for r in log.read(out / log.EVENTS) if r.split == split]


# The rate


def test_the_rate_stays_or_falls_along_half_a_cosine() -> None:
    constant = OptimizerConfig(learning_rate=0.5)
    assert [learning_rate(step, 10, constant) for step in (0, 5, 1000)] == [0.5] * 3
    cosine = replace(constant, schedule="cosine")
    assert [learning_rate(step, 8, cosine) for step in range(9)] == pytest.approx([0.25 * (1 + math.cos(math.pi * k / 8)) for k in range(9)])
    assert learning_rate(8, 8, cosine) == learning_rate(20, 8, cosine) == 0


def test_the_rate_rises_first() -> None:
    warm = OptimizerConfig(learning_rate=0.8, warmup=4)
    assert [learning_rate(step, 100, warm) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    cosine = replace(warm, schedule="cosine")
    falls = [0.4 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]  # from the end of the rise to the end of the run
    assert [learning_rate(step, 10, cosine) for step in range(11)] == pytest.approx([0.2, 0.4, 0.6, 0.8, *falls])


# The arithmetic


def by_hand(run: RunConfig, rates: OptimizerConfig) -> tuple[Tensor, list[float], list[float], Tensor]:
    """Weights, losses, norms of the gradients and averaged weights of the same training, in plain PyTorch."""
    task = Line(run)
    net = task.network
    averaged = weights(task)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1, betas=(0.9, 0.999), eps=rates.eps, weight_decay=rates.weight_decay)
    losses, norms = [], []
    size = run.batch * run.accumulation
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, run.steps, rates)
        loss = task.terms(net, task.batch(range(step * size, step * size + size)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        norm = gradient.norm().item()
        for p in net.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, rates.max_grad_norm / norm)
        optimizer.step()
        decay = min(run.ema, (1 + step) / (10 + step))
        averaged = decay * averaged + (1 - decay) * weights(task)
        losses.append(loss.item())
        norms.append(norm)
    return weights(task), losses, norms, averaged


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_steps_are_those_of_adamw_with_clipped_gradients_however_the_batch_is_cut(tmp_path: Path, batch: int, accumulation: int) -> None:
    run = settings(tmp_path, batch=batch, accumulation=accumulation, steps=9, log_every=1, ema=0.6)
    rates = replace(RATES, schedule="cosine", warmup=3)
    task, outcome = go(run, rates)
    expected, losses, norms, averaged = by_hand(settings(tmp_path, batch=4, steps=9, ema=0.6), rates)
    assert max(norms) > rates.max_grad_norm > min(norms), "some are clipped and some are not, or nothing is shown"
    torch.testing.assert_close(weights(task), expected, rtol=1e-5, atol=1e-6)
    rows = told(tmp_path)
    assert [step for step, _ in rows] == list(range(1, 10))
    assert [row["loss"] for _, row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["grad_norm"] for _, row in rows] == pytest.approx(norms, rel=1e-5)
    assert [row["learning_rate"] for _, row in rows] == pytest.approx([learning_rate(k, 9, rates) for k in range(9)])
    assert outcome.checkpoint is not None
    kept = Line(run)
    kept.read(outcome.checkpoint)
    assert torch.equal(weights(kept), weights(task))
    kept.read(outcome.checkpoint / "ema")
    torch.testing.assert_close(weights(kept), averaged, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "c++", "clang++")), reason="no C++ compiler")
def test_a_compiled_network_takes_the_same_steps(tmp_path: Path) -> None:
    plain, _ = go(settings(tmp_path / "plain", steps=4))
    go(settings(tmp_path / "compiled", steps=2, compile=True))
    compiled, second = go(settings(tmp_path / "compiled", steps=4, compile=True))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-5, atol=1e-6)
    assert second.checkpoint is not None
    assert set(checkpoint.load_tensors(second.checkpoint / "line.pt")) == {"weight", "bias"}


def test_only_what_requires_gradients_is_trained(tmp_path: Path) -> None:
    run = settings(tmp_path)
    task = Line(run)
    task.network.bias.requires_grad_(False)
    before = copy.deepcopy(task.network.state_dict())
    go(run, task=task)
    assert torch.equal(task.network.bias, before["bias"])
    assert (task.network.weight != before["weight"]).all()
    task.network.requires_grad_(False)
    with pytest.raises(UsageError, match="nothing is left to train"):
        go(replace(run, out=str(tmp_path / "other")), task=task)


# Rows, validation, checkpoints


def test_rows_come_when_due_at_checkpoints_and_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float | None]] = []
    run = settings(tmp_path, steps=9, log_every=4, checkpoint_every=6)
    go(run, show=lambda step, steps, row: seen.append((step, steps, row.get("loss"))))
    _, losses, norms, _ = by_hand(run, RATES)
    spans = [(0, 4), (4, 6), (6, 8), (8, 9)]
    rows = told(tmp_path)
    assert [step for step, _ in rows] == [end for _, end in spans]
    assert [row["loss"] for _, row in rows] == pytest.approx([np.mean(losses[a:b]) for a, b in spans], rel=1e-5)
    assert [row["grad_norm"] for _, row in rows] == pytest.approx([np.mean(norms[a:b]) for a, b in spans], rel=1e-5)
    assert [(step, steps) for step, steps, _ in seen] == [(k, 9) for k in range(1, 10)]
    assert seen[2][2] is None, "nothing is known before the first row"
    assert seen[6][2] == rows[1][1]["loss"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000006", "step-00000009"]


def test_validation_is_the_mean_over_what_counts_with_the_averaged_weights(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=5, validate_every=2, ema=0.5)
    words: list[str] = []
    task, outcome = go(run, say=words.append)
    assert [(step, sorted(row)) for step, row in told(tmp_path, "validation")] == [(k, ["beauty", "distance", "loss"]) for k in (2, 4, 5)]
    assert outcome.checkpoint is not None
    averaged = Line(run)
    averaged.read(outcome.checkpoint / "ema")
    with torch.no_grad():
        points = averaged.batch(range(10**6, 10**6 + 4))  # the fifth weighs nothing
        expected = averaged.terms(averaged.network, points)["loss"].item()
        plain = task.terms(task.network, points)["loss"].item()
    found = told(tmp_path, "validation")[-1][1]["loss"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(found - plain) > 1e-3 * plain
    assert {mode for mode in task.modes if mode[0] == "validation"} == {("validation", False)}
    assert {mode for mode in task.modes[:-1] if mode[0] == "train"} == {("train", True)}
    assert task.previews == [tmp_path / "validation" / f"step-{k:08d}" for k in (2, 4, 5)]
    assert any(line.startswith("step 2: validation loss ") for line in words)
    assert (tmp_path / "charts.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / log.BOARD).iterdir())


def test_old_checkpoints_make_room(tmp_path: Path) -> None:
    go(settings(tmp_path, steps=7, checkpoint_every=1, keep=2, keep_every=3))
    assert sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step-*")) == [3, 6, 7]


# Going on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_same_call_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    rates = replace(RATES, schedule="cosine", warmup=2)
    given = {"steps": 11, "ema": 0.7, "accumulation": 2, "log_every": 3, "checkpoint_every": 4, "validate_every": 3}
    one, _ = go(settings(tmp_path / "one", **given), rates)

    def show(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step == 5:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    run = settings(tmp_path / "two", **given)
    _, first = go(run, rates, show=show)
    assert signal.getsignal(number) == before
    assert (first.stopped, first.step) == (True, 6), "the step at work is finished"
    assert first.checkpoint == tmp_path / "two" / "checkpoints" / "step-00000006"
    words: list[str] = []
    two, second = go(run, rates, say=words.append)
    assert (second.stopped, second.step) == (False, 11)
    assert any("goes on from step 6" in line for line in words)
    assert torch.equal(weights(one), weights(two))
    assert told(tmp_path / "one") == told(tmp_path / "two")
    assert told(tmp_path / "one", "validation") == told(tmp_path / "two", "validation")
    states = [checkpoint.load_tensors(tmp_path / place / "checkpoints" / "step-00000011" / "trainer.pt") for place in ("one", "two")]
    assert states[0]["samples"] == 11 * 2 * 2
    for a, b in zip(*(s["optimizer"]["state"].values() for s in states), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    assert all(torch.equal(a, b) for a, b in zip(*(s["ema"]["averages"] for s in states), strict=True))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as Python has it: a shell ignores it for what runs in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_does_what_it_did_before(tmp_path: Path) -> None:
    def show(step: int, steps: int, row: Mapping[str, float]) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go(settings(tmp_path), show=show)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_has_ended_has_nothing_left_to_do(tmp_path: Path) -> None:
    one, _ = go(settings(tmp_path))
    two, outcome = go(settings(tmp_path))
    assert torch.equal(weights(one), weights(two))
    assert (outcome.step, outcome.stopped) == (6, False)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=8, checkpoint_every=2, keep=9, log_every=1)
    one, _ = go(run)
    rows = told(tmp_path)
    (tmp_path / "checkpoints" / "step-00000008" / "line.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"step-00000008 is damaged.*run\.resume=.*step-00000006"):
        go(run)
    good = tmp_path / "checkpoints" / "step-00000004"
    two, outcome = go(replace(run, resume=str(good)))
    assert outcome.step == 8
    assert torch.equal(weights(one), weights(two))
    assert told(tmp_path) == rows, "what had been logged beyond that step is not logged twice"
    with pytest.raises(OutputError, match=r"earlier run; choose another run\.out, or run\.resume=auto to go on from step-00000008"):
        go(replace(run, resume="never"))


def test_what_is_configured_otherwise_is_said(tmp_path: Path) -> None:
    go(settings(tmp_path), described="run: {steps: 6, out: a}\nlosses: {sync: 0.1, trepa: 10}\n")
    words: list[str] = []
    described = "run: {steps: 9, out: b, device: cpu}\nlosses: {sync: 0.1, lpips: [1, 2]}\n"
    go(settings(tmp_path, steps=9, batch=4), described=described, say=words.append)
    notes = [line for line in words if line.startswith("note: ")]
    assert notes == [
        "note: run.steps was 6, now it is 9",
        "note: losses.trepa was 10, now it is the default",
        "note: losses.lpips was the default, now it is [1, 2]",
        "note: the batch is another one than before, so the samples go on from 24 instead of 12",
    ]
    assert (tmp_path / "train.yaml").read_text() == described


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    said: list[str] = []

    def show(step: int, steps: int, row: Mapping[str, float]) -> None:
        with pytest.raises(OutputError, match="another training is writing to") as refused:
            go(settings(tmp_path))
        said.append(str(refused.value))

    go(settings(tmp_path, steps=2), show=show)
    assert len(said) == 2
    go(settings(tmp_path, steps=3))


HOLD = """
import os, sys, time
from pathlib import Path
from latentsync.hub import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)  # the worker itself: by now it has let go
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_workers_of_a_killed_run_do_not_keep_its_folder(tmp_path: Path) -> None:
    """They live on for some seconds, and the same command may go on at once."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "training")], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(OutputError, match="another training"), loop._alone(tmp_path):
                pass
            holder.kill()
            holder.wait()
            with loop._alone(tmp_path):
                os.kill(worker, 0)  # it is there
        finally:
            os.kill(worker, signal.SIGKILL)


# What goes wrong


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=3, log_every=1, ema=0.5)
    task = Line(run)
    task.broken = {3}  # in the second step
    words: list[str] = []
    after: list[Tensor] = []
    go(run, task=task, say=words.append, show=lambda *_: after.append(weights(task)))
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[1], after[2])
    rows = [row for _, row in told(tmp_path)]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 0]
    assert math.isnan(rows[1]["loss"])
    assert math.isfinite(rows[2]["loss"])
    assert [line for line in words if line.startswith("warning: the loss is nan at step 2")]
    assert checkpoint.load_tensors(tmp_path / "checkpoints" / "step-00000003" / "trainer.pt")["ema"]["updates"] == 2


def test_a_run_that_learns_nothing_any_more_is_given_up(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=100, checkpoint_every=10)
    task = Line(run)
    task.broken = set(range(30, 1000))  # from step 16 on
    with pytest.raises(LatentSyncError, match=r"20 steps in a row, up to step 35, gave no finite gradient.*checkpoints is good"):
        go(run, task=task)
    again = Line(run)
    again.broken = task.broken
    with pytest.raises(LatentSyncError, match="up to step 35"):  # what was counted is in the checkpoint too
        go(run, task=again)


def test_clips_left_out_are_named_counted_and_remembered(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=2, log_every=1)
    task = Line(run)
    task.words = {1: {"bad": ["b.mp4: no sound"], "notes": ["the cache is full"]}}
    words: list[str] = []
    _, outcome = go(run, task=task, say=words.append)
    assert outcome.bad == ["b.mp4: no sound"]
    assert "left out a clip that cannot be read (1 so far): b.mp4: no sound" in words
    assert "note: the cache is full" in words
    assert [row["bad_clips"] for _, row in told(tmp_path)] == [0, 1]
    _, outcome = go(replace(run, steps=3))
    assert outcome.bad == ["b.mp4: no sound"]


def test_a_place_for_checkpoints_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.out=FOLDER"):
        go(replace(settings(tmp_path), out=""))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot make the folder .*choose another run\.out"):
        go(settings(tmp_path / "file" / "run"))


# The meter


def test_the_meter_means_what_its_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    meter = loop._Meter(sparse=("positive",))
    cpu = Accelerator(cpu=True)
    for loss, norm, skipped in ((1.0, 2.0, False), (3.0, math.inf, True), (5.0, 4.0, False)):
        for micro in (0, 1):
            meter.waited(0.25)
            terms = {"loss": torch.tensor(loss + micro, dtype=torch.bfloat16), "sync": torch.tensor(0.5)}
            meter.means.add(terms | {"positive": torch.tensor(0.25 if micro else torch.nan)}, 2.0)
        now[0] += 2.0
        meter.step(norm, 1e-4, skipped, 64)
    with meter.paused():
        now[0] += 1000.0
    assert meter.row(cpu, torch.device("cpu")) == {
        "loss": pytest.approx(3.5),
        "positive": 0.25,
        "sync": 0.5,
        "learning_rate": 1e-4,
        "grad_norm": 3.0,
        "skipped_steps": 1.0,
        "seconds_per_step": 2.0,
        "data_seconds_per_step": 0.5,
        "frames_per_second": 32.0,
    }
    meter.means.add({"loss": torch.tensor(7.0), "positive": torch.tensor(torch.nan)}, 1.0)
    meter.means.add({"loss": torch.tensor(9.0), "positive": torch.tensor(torch.nan)}, 3.0)
    meter.step(1.0, 2e-4, False, 64)
    now[0] += 4.0
    row = meter.row(cpu, torch.device("cpu"))
    assert (row["loss"], row["seconds_per_step"], row["data_seconds_per_step"], row["frames_per_second"]) == (8.5, 4.0, 0.0, 16.0)
    assert "sync" not in row
    assert "positive" not in row  # none of the batches had any


def test_steps_without_any_sample_change_nothing_and_end_the_run(tmp_path: Path) -> None:
    class Gone(Line):
        def terms(self, network: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
            return {"loss": super().terms(network, batch)["loss"] * (0.0 if int(batch["position"][0]) >= 4 else 1.0)}

    task = Gone(settings(tmp_path))
    before, _ = go(replace(settings(tmp_path / "two"), steps=2))
    with pytest.raises(LatentSyncError, match=r"none of their clips could be read.*train check"):
        go(replace(settings(tmp_path), steps=100), task=task)
    assert torch.equal(weights(task), weights(before))
