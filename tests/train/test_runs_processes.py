"""Trainings as processes: killed, stopped, many at a time, on full disks and bad data; what they say, leave behind, and go on with.

The commands run in processes of their own, forked off from one that has imported everything and done nothing: the ten seconds that imports take
would otherwise be most of the time. `torchrun` starts its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from latentsync.models.load import read_state
from latentsync.pipeline import LipSync
from latentsync.train import checkpoint, log
from tests.conftest import ROOT
from tests.train.clipmaker import make_clip
from tests.train.conftest import Once

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no signals and no forks there")

IMPORTED = (
    "latentsync.cli", "latentsync.cli_train", "latentsync.train.unet", "latentsync.train.syncnet", "latentsync.train.charts", "latentsync.train.loop",
    "accelerate", "diffusers.models.autoencoders.autoencoder_kl", "matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.tensorboard",
    "peft",
)  # fmt: skip
CLOCK = ("seconds_per_step", "data_seconds_per_step", "frames_per_second", "memory_gb")
PATIENCE = 120.0  # seconds
HERE = ("run.device=cpu", "run.dtype=fp32", "run.log_every=1", "run.gradient_checkpointing=false")


def command(words: list[str], folder: Path, environment: dict[str, str], limit: int | None) -> None:
    """The process: `latentsync WORDS` with its output in files. limit: bytes that a file may have, as on a full disk."""
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)  # of workers: the platform's own, as for any command
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["latentsync", *words]
    from latentsync.cli import main

    main()


@dataclass
class Running:
    process: Any
    folder: Path

    @property
    def out(self) -> str:
        return (self.folder / "out.txt").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        path = self.folder / "err.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def until(self, *words: str) -> Running:
        """Wait until it has said any of these words."""
        return self.when(lambda: any(word in self.err for word in words))

    def when(self, true: Callable[[], bool]) -> Running:
        """Wait until something is so."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert self.process.is_alive(), f"it ended: {self.err}"
            assert time.monotonic() < end, f"what is waited for does not come: {self.err}"
            time.sleep(0.002)
        return self

    def kill(self, number: int = signal.SIGKILL) -> Running:
        os.kill(self.process.pid, number)
        return self

    def code(self) -> int:
        """Wait for its end. Nobody is ever shown a traceback."""
        self.process.join(PATIENCE)
        assert not self.process.is_alive(), f"it does not end: {self.err}"
        assert "Traceback" not in self.err, self.err
        return int(self.process.exitcode)


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def spawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """spawn(words...) -> a `latentsync` command at work in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    home = tmp_path_factory.mktemp("home")
    running: list[Any] = []

    def go(*words: object, environment: dict[str, str] | None = None, limit: int | None = None) -> Running:
        folder = tmp_path_factory.mktemp("process")
        given = {"LATENTSYNC_HOME": str(home), "HF_HOME": str(home), "COLUMNS": "200", **(environment or {})}
        process = context.Process(target=command, args=([str(w) for w in words], folder, given, limit))
        process.start()
        running.append(process)
        return Running(process, folder)

    yield go
    for process in running:
        if process.is_alive():
            process.kill()


@pytest.fixture(scope="session")
def few(talking: Path) -> Path:
    """A list of six clips."""
    path = talking.parent / "six.txt"
    path.write_text("".join(f"{talking.name}/clip {i:02d}.mp4\n" for i in range(6)))
    return path


@pytest.fixture(scope="session")
def unet(toy: Path, few: Path) -> tuple[str, ...]:
    """A training of the toy, as words of the command, without its length and place."""
    words = ("train", "unet", "tiny", f"model={toy}/model.yaml", f"start={toy}", f"data.train={few}", "run.validation_videos=0")
    return (*words, "run.validation_clips=1", "run.validate_every=0", *HERE)


@pytest.fixture(scope="session")
def syncnet(few: Path) -> tuple[str, ...]:
    return ("train", "syncnet", "tiny", f"data.train={few}", "run.batch=1", "run.validation_clips=1", "run.validate_every=0", *HERE)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ranks(spawn: Start, *words: str) -> list[Running]:
    """Two processes of one training, told of each other as `torchrun` does it."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [spawn(*words, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


# What is compared


def rows(out: Path) -> list[tuple[int, str, dict[str, float]]]:
    """The log without what the clock and the machine say."""
    return [(r.step, r.split, {k: v for k, v in r.values.items() if k not in CLOCK}) for r in log.read(out / log.EVENTS)]


def steps(out: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (out / "checkpoints").glob("step-*"))


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same_runs(one: Path, two: Path) -> None:
    """Weights, averages, optimizer, random states and the log."""
    first, second = (checkpoint.latest(out / "checkpoints") for out in (one, two))
    assert first is not None
    assert second is not None
    assert first.name == second.name
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert any(file.suffix == ".safetensors" for file in files)
    for file in files:
        if file.suffix == ".safetensors":
            assert same(read_state(first / file), read_state(second / file)), file
        elif file.suffix == ".pt":
            assert same(checkpoint.load_tensors(first / file), checkpoint.load_tensors(second / file)), file
    assert rows(one) == rows(two)


# Killed


HARD = ("run.steps=8", "run.batch=2", "run.accumulation=2", "run.ema=0.8", "run.checkpoint_every=3", "run.keep=2", "data.workers=2")
SCHEDULE = ("optimizer.schedule=cosine", "optimizer.warmup=2", "optimizer.learning_rate=1e-3")


@pytest.fixture(scope="session")
def unbroken(spawn: Start, unet: tuple[str, ...], once: Once) -> Path:
    def make(out: Path) -> None:
        assert spawn(*unet, *HARD, *SCHEDULE, f"run.out={out}").code() == 0

    return once("unbroken", make)


def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(spawn: Start, unet: tuple[str, ...], unbroken: Path, tmp_path: Path) -> None:
    """Averages, accumulation and workers included; somewhere within a step, and while a checkpoint is being written."""
    choice = random.Random(7)
    words = (*unet, *HARD, *SCHEDULE, f"run.out={tmp_path}/run")
    for step in sorted(choice.sample(range(1, 6), 2)):
        running = spawn(*words).until(f"step {step}:", f"step {step + 1}:")
        time.sleep(choice.uniform(0, 0.3))
        assert running.kill().code() == -signal.SIGKILL
    checkpoints = tmp_path / "run" / "checkpoints"
    saving = spawn(*words).when(lambda: any(checkpoints.glob(".step-*")))
    assert saving.kill().code() == -signal.SIGKILL
    last = spawn(*words)
    assert last.code() == 0
    assert steps(tmp_path / "run") == steps(unbroken) == [6, 8]
    assert_same_runs(unbroken, tmp_path / "run")
    assert [step for step, split, _ in rows(unbroken) if split == "train"] == list(range(1, 9))
    assert [p for p in checkpoints.iterdir() if p.name.startswith(".step")] == [], "what was half written is removed"
    averaged = LipSync.load(checkpoints / "step-00000008" / "ema", device="cpu", dtype="fp32", faces=False)
    assert averaged.config.name == "run"


def test_syncnet_goes_on_after_a_kill_too(spawn: Start, syncnet: tuple[str, ...], tmp_path: Path) -> None:
    words = (*syncnet, "run.steps=4", "run.checkpoint_every=1", "run.keep=9")
    assert spawn(*words, f"run.out={tmp_path}/one").code() == 0
    assert spawn(*words, f"run.out={tmp_path}/two").until("step 2:").kill().code() == -signal.SIGKILL
    assert spawn(*words, f"run.out={tmp_path}/two").code() == 0
    assert_same_runs(tmp_path / "one", tmp_path / "two")


# Stopped


def test_sigterm_ends_a_run_with_a_checkpoint(spawn: Start, unet: tuple[str, ...], unbroken: Path, tmp_path: Path) -> None:
    words = (*unet, *HARD, *SCHEDULE, f"run.out={tmp_path}/run")
    running = spawn(*words).until("step 4:").kill(signal.SIGTERM)
    assert running.code() == 130
    saved = steps(tmp_path / "run")[-1]
    assert 4 <= saved < 8
    assert f"step-{saved:08d}: step {saved}, loss" in running.out
    assert "stopped before its end; the same command goes on from there" in running.out
    again = spawn(*words)
    assert again.code() == 0
    assert f"goes on from step {saved}" in again.err
    assert_same_runs(unbroken, tmp_path / "run")


def test_ctrl_c_does_too_and_nobody_else_writes_there_before(spawn: Start, syncnet: tuple[str, ...], tmp_path: Path) -> None:
    words = (*syncnet, "data.workers=1", f"run.out={tmp_path}/run", "run.steps=100000")
    first = spawn(*words, "--json").until("step 1:")
    refused(spawn(*words), 6, "another training is writing to")
    assert [running.code() for running in ranks(spawn, *words)] == [6, 6], "those that neither speak nor write do not wait for ever"
    assert first.kill(signal.SIGINT).code() == 130
    result = json.loads(first.out)
    assert result["stopped"]
    assert steps(tmp_path / "run") == [result["step"]]


# Many processes


def test_two_processes_do_what_one_does_with_the_double_batch(spawn: Start, unet: tuple[str, ...], tmp_path: Path) -> None:
    """Begun by torchrun, stopped at one of the two, gone on with, and validated over both. Sums are in another order: equal up to rounding."""
    words = (*unet, "data.workers=0", "run.steps=6", "run.checkpoint_every=2", "optimizer.learning_rate=1e-5", "run.validation_clips=3", "run.keep=9")
    held = f"data.validation={unet[5].partition('=')[2]}"
    alone = spawn(*words, held, "run.batch=2", f"run.out={tmp_path}/one")
    pair = (*words, held, "run.batch=1", f"run.out={tmp_path}/two")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LATENTSYNC", "HF_"))}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    started = subprocess.run(
        [*torchrun, "-m", "latentsync", *pair, "run.steps=2"],
        env={**environment, "OMP_NUM_THREADS": "1", "LATENTSYNC_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    assert "2 processes" in started.stderr
    assert started.stderr.count("step 2: validation") == 1, "one of them speaks"
    first, second = ranks(spawn, *pair)
    first.until("step 3:", "step 4:")
    second.kill(signal.SIGTERM)
    assert (first.code(), second.code()) == (130, 130)
    saved = steps(tmp_path / "two")[-1]
    assert 3 <= saved < 6
    again = ranks(spawn, *pair)
    assert [r.code() for r in again] == [0, 0]
    assert f"goes on from step {saved}" in again[0].err
    assert again[1].err.count("step") == 0
    assert alone.code() == 0
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    two = [row for row in two if row[:2] != (2, "validation")]
    assert [row[:2] for row in one] == [row[:2] for row in two]
    for (_, _, a), (_, _, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    weights = [read_state(tmp_path / name / "checkpoints" / "step-00000006" / "unet.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][k], weights[1][k], rtol=1e-3, atol=2e-6) for k in weights[0])
    files = [p.name for p in (tmp_path / "two" / "checkpoints" / "step-00000006").glob("random-*")]
    assert sorted(files) == ["random-0000.pt", "random-0001.pt"]


# Bad data, bad words, bad disks


def refused(running: Running, code: int, *words: str) -> None:
    assert running.code() == code, running.err
    for word in words:
        assert word in running.err
    assert running.out == ""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, ("no clips in", "it is empty")),
        (lambda folder: make_clip(folder / "short.mp4", 47), ("short.mp4", "too short: 1.88 s are 47 frames at 25 fps", "3 windows of 16")),
        (lambda folder: make_clip(folder / "mute.mp4", sound=None), ("mute.mp4", "has no sound")),
        (lambda folder: make_clip(folder / "wide.mp4", size=(96, 64)), ("wide.mp4", "is 96x64", "aligned face")),
        (lambda folder: (folder / "text.mp4").write_text("no video"), ("text.mp4", "is not an audio, video or image file")),
    ],
    ids=["empty", "short", "mute", "wide", "text"],
)
def test_clips_that_cannot_be_used_are_named(
    spawn: Start, syncnet: tuple[str, ...], tmp_path: Path, make: Callable[[Path], Any], said: tuple[str, ...]
) -> None:
    (tmp_path / "clips").mkdir()
    make(tmp_path / "clips")
    refused(spawn(*syncnet, f"data.train={tmp_path}/clips", f"run.out={tmp_path}/run"), 3, *said)


def test_clips_of_another_size_are_refused_or_resized(spawn: Start, syncnet: tuple[str, ...], tmp_path: Path) -> None:
    make_clip(tmp_path / "clips" / "large.mp4", size=(96, 96))
    words = (*syncnet, f"data.train={tmp_path}/clips", f"run.out={tmp_path}/run", "run.steps=1")
    refused(spawn(*words, "data.size=exact"), 3, "large.mp4", "is 96x96, not 64x64", "data.size=resize")
    assert spawn(*words).code() == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("train", "unet", "stage9"), 2, "did you mean 'stage"),
        (("train", "syncnet", "tiny", "data.train=x", "run.out=y", "run.stepz=1"), 2, "did you mean 'steps'"),
        (("train", "unet", "tiny", "data.train=x", "run.out=y", "model=none.yaml"), 2, "neither a preset"),
        (("train", "syncnet", "tiny", "data.train=nowhere", "run.out=y"), 3, "there is no folder or list nowhere"),
        (("train", "syncnet", "tiny", "data.train=x", "run.out=y", "start=nowhere.pt"), 5, "there is no SyncNet at nowhere.pt"),
        (("train", "export", "nowhere", "out.pt"), 5, "nowhere is not there"),
    ],
)
def test_wrong_words_are_understood(spawn: Start, words: tuple[str, ...], code: int, said: str) -> None:
    refused(spawn(*words), code, said)


def test_a_damaged_checkpoint_is_named_with_the_one_to_take_instead(spawn: Start, unet: tuple[str, ...], unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    words = (*unet, *HARD, *SCHEDULE, f"run.out={tmp_path}/run")
    newest, good = (tmp_path / "run" / "checkpoints" / f"step-{step:08d}" for step in (8, 6))
    with (newest / "unet.safetensors").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damage")
    running = spawn(*words)
    refused(running, 5, f"{newest} is damaged", "unet.safetensors", f"run.resume={good}")
    assert spawn(*words, f"run.resume={good}").code() == 0
    assert_same_runs(unbroken, tmp_path / "run")
    refused(spawn(*words, "run.resume=never"), 6, "holds checkpoints of an earlier run", "run.resume=auto")


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on_from_it(
    spawn: Start, unet: tuple[str, ...], unbroken: Path, tmp_path: Path
) -> None:
    words = (*unet, *HARD, *SCHEDULE, f"run.out={tmp_path}/run")
    assert spawn(*words).until("step 4:").kill(signal.SIGTERM).code() == 130
    before = steps(tmp_path / "run")
    size = (tmp_path / "run" / "checkpoints" / f"step-{before[-1]:08d}" / "trainer.pt").stat().st_size
    full = spawn(*words, limit=size // 2)
    assert full.code() == 6
    assert f"cannot save the checkpoint of step {min(8, before[-1] // 3 * 3 + 3)} " in full.err
    assert f"step-{before[-1]:08d} is as it was; the same command goes on from it" in full.err
    assert steps(tmp_path / "run") == before
    assert spawn(*words).code() == 0
    assert_same_runs(unbroken, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("choice", ["skip", "error"])
def test_a_clip_that_is_damaged_after_the_start(spawn: Start, syncnet: tuple[str, ...], tmp_path: Path, choice: str, workers: int) -> None:
    """What was known of the clips is kept with them, so a clip that changes neither size nor time is taken for good."""
    for i in range(3):
        make_clip(tmp_path / "clips" / f"clip {i}.mp4", seed=i)
    words = (*syncnet, f"data.train={tmp_path}/clips", f"data.workers={workers}", f"data.on_bad={choice}", f"run.out={tmp_path}/run")
    assert spawn(*words, "run.steps=1").code() == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    bad = tmp_path / "clips" / "clip 1.mp4"
    stat = bad.stat()
    bad.write_bytes(b"\0" * stat.st_size)
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    running = spawn(*words, "run.steps=4", "--json")
    if choice == "error":
        refused(running, 3, "clip 1.mp4", "It could be read before training began; data.on_bad=skip leaves out such clips")
        assert steps(tmp_path / "run") == []
        return
    assert running.code() == 0
    result = json.loads(running.out)
    assert result["step"] == 4
    assert result["bad_clips"]
    assert all("clip 1.mp4" in line for line in result["bad_clips"])
    assert "left out a clip that cannot be read (1 so far)" in running.err


# What is made of it


def test_a_checkpoint_is_a_model_for_sync(spawn: Start, unbroken: Path, sample: Path, tmp_path: Path) -> None:
    words = ("sync", sample / "sample.mp4", sample / "speech.wav", "-o", tmp_path / "out.mp4", "--points", sample / "points.npz")
    folder = unbroken / "checkpoints" / "step-00000008"
    running = spawn(*words, "--model", folder, "--steps", "1", "--guidance", "1", "--device", "cpu", "--dtype", "fp32")
    assert running.code() == 0, running.err
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_a_run_is_exported_by_the_command(spawn: Start, unbroken: Path, tmp_path: Path) -> None:
    for more, folder in (((), "."), (("--ema",), "ema")):
        out = tmp_path / f"{len(more)}.pt"
        running = spawn("train", "export", unbroken, out, *more)
        assert running.code() == 0, running.err
        exported = torch.load(out, weights_only=True)
        assert exported["global_step"] == 8
        assert same(exported["state_dict"], read_state(unbroken / "checkpoints" / "step-00000008" / folder / "unet.safetensors"))
