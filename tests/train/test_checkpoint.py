"""Checkpoints survive what happens to machines: kills, full disks, flipped bits, two processes at once."""

import contextlib
import errno
import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.errors import OutputError, WeightsError
from latentsync.train import checkpoint
from latentsync.train.checkpoint import RandomState, find, latest, load_tensors, save, save_tensors, step_of, verify

CPU = torch.device("cpu")


def written(value: object = "x"):
    """A writer of two files that say the same."""

    def write(folder: Path) -> None:
        save_tensors(folder / "trainer.pt", {"value": value, "weights": torch.arange(1000.0)})
        (folder / "ema").mkdir()
        (folder / "ema" / "note.txt").write_text(str(value))

    return write


def put(root: Path, *steps: int, keep: int = 0, keep_every: int = 0) -> list[Path]:
    return [save(root, step, written(step), keep=keep, keep_every=keep_every) for step in steps]


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_what_was_saved_is_found(tmp_path):
    assert latest(tmp_path / "checkpoints") is None
    first, second = put(tmp_path / "checkpoints", 10, 20)
    assert (first.name, second.name) == ("step-00000010", "step-00000020")
    assert latest(tmp_path / "checkpoints") == second
    for way in (tmp_path, tmp_path / "checkpoints", second):
        assert find(way) == second
    assert find(first) == first
    assert step_of(first) == 10
    loaded = load_tensors(second / "trainer.pt")
    assert loaded["value"] == 20
    assert torch.equal(loaded["weights"], torch.arange(1000.0))
    manifest = json.loads((second / "manifest.json").read_text())
    assert set(manifest["files"]) == {"trainer.pt", "ema/note.txt"}
    assert names(tmp_path / "checkpoints") == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_nothing_there_is_said(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("")
    with pytest.raises(WeightsError, match=re.escape(str(path)) + ".*(holds no checkpoint|is not there|is a file)"):
        find(path)


@pytest.mark.parametrize(
    ("keep", "every", "stay"),
    [(2, 0, [60, 70]), (2, 30, [30, 60, 70]), (1, 20, [20, 40, 60, 70]), (0, 0, [10, 20, 30, 40, 50, 60, 70]), (9, 0, [10, 20, 30, 40, 50, 60, 70])],
)
def test_the_newest_and_every_mth_stay(tmp_path, keep, every, stay):
    put(tmp_path, 10, 20, 30, 40, 50, 60, 70, keep=keep, keep_every=every)
    assert names(tmp_path) == [f"step-{s:08d}" for s in stay]


def test_a_run_that_went_on_from_an_earlier_step_is_the_newer_one(tmp_path):
    put(tmp_path, 10, 20, 30)
    put(tmp_path, 15, keep=2)  # as from step 10 with other settings
    assert latest(tmp_path) == tmp_path / "step-00000015"
    assert names(tmp_path) == ["step-00000015", "step-00000030"]
    save(tmp_path, 30, written("again"), keep=2, keep_every=0)
    assert latest(tmp_path) == tmp_path / "step-00000030"
    assert load_tensors(tmp_path / "step-00000030" / "trainer.pt")["value"] == "again"
    assert names(tmp_path) == ["step-00000015", "step-00000030"]


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "file", "says"),
    [
        (cut, "trainer.pt", r"has \d+ bytes instead of \d+"),
        (flip, "trainer.pt", "has another content than was saved"),
        (flip, "ema/note.txt", "has another content than was saved"),
        (Path.unlink, "ema/note.txt", "cannot read"),
        (Path.unlink, "manifest.json", "is missing"),
        (cut, "manifest.json", "is not the list of a checkpoint's files"),
    ],
)
def test_damage_is_seen_and_the_last_good_one_is_named(tmp_path, damage, file, says):
    good, bad, worst = put(tmp_path / "checkpoints", 10, 20, 30)
    for folder in (bad, worst):
        damage(folder / file)
    for look in (lambda: latest(tmp_path / "checkpoints"), lambda: find(tmp_path), lambda: find(worst), lambda: verify(worst)):
        with pytest.raises(WeightsError, match=says) as e:
            look()
        assert str(worst / file) in str(e.value)
        assert f"run.resume={good}" in str(e.value)
    assert find(good) == good
    damage(good / file)
    with pytest.raises(WeightsError, match="no other one"):
        latest(tmp_path / "checkpoints")


def test_a_damaged_one_is_overcome_by_going_on_from_a_good_one(tmp_path):
    _, bad = put(tmp_path, 10, 20)
    (bad / "manifest.json").unlink()
    put(tmp_path, 20)
    assert load_tensors(latest(tmp_path) / "trainer.pt")["value"] == 20
    flip(tmp_path / "step-00000020" / "trainer.pt")
    put(tmp_path, 15)
    assert latest(tmp_path) == tmp_path / "step-00000015"


def test_nothing_in_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "trainer.pt")
    with pytest.raises(WeightsError, match=r"trainer\.pt"):
        load_tensors(tmp_path / "trainer.pt")
    assert not (tmp_path / "ran").exists()


# Full disks


def refuse(folder: Path) -> None:
    written()(folder)
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def files_limited(size: int):
    """No file of this process may grow beyond so many bytes, as on a full disk (the system's error is another, its effect the same)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def by_torch(folder: Path) -> None:
    save_tensors(folder / "trainer.pt", {"a": torch.zeros(1_000_000)})


def by_safetensors(folder: Path) -> None:
    from latentsync.weights.convert import save

    save({"a": torch.zeros(1_000_000)}, folder / "unet.safetensors", {"format": "pt"})


@pytest.mark.parametrize("write", [refuse, by_torch, by_safetensors])
def test_a_full_disk_leaves_the_old_ones_and_no_debris(tmp_path, write):
    root = tmp_path / "checkpoints"
    (old,) = put(root, 10)
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    with files_limited(1 << 20), pytest.raises(OutputError, match="cannot save the checkpoint of step 20") as e:
        save(root, 20, write, keep=3, keep_every=0)
    message = str(e.value)
    assert "No space left on device" in message or "File too large" in message
    for part in ("step-00000010 is as it was", "the same command goes on from it", "lower run.keep (now 3)", "free"):
        assert part in message
    assert names(root) == ["step-00000010"]
    assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before
    assert latest(root) == old
    save(root, 20, written(), keep=1, keep_every=0)
    assert names(root) == ["step-00000020"]


def test_the_first_save_on_a_full_disk(tmp_path):
    with pytest.raises(OutputError, match="no earlier one is there"):
        save(tmp_path / "checkpoints", 1, refuse, keep=1, keep_every=0)
    assert names(tmp_path / "checkpoints") == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        put(tmp_path / "file", 1)


def test_any_other_error_passes_and_leaves_nothing(tmp_path):
    def broken(folder: Path) -> None:
        written()(folder)
        raise ZeroDivisionError

    put(tmp_path, 10)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 20, broken, keep=1, keep_every=0)
    assert names(tmp_path) == ["step-00000010"]


# Kills and company. These run in processes of their own.

PRELUDE = """
import sys, time
from pathlib import Path
import torch
from latentsync.train.checkpoint import save, save_tensors
root = Path(sys.argv[1])
"""


def start(code: str, *args: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code, *map(str, args)], stdout=subprocess.PIPE, text=True)


def test_a_kill_while_saving_leaves_the_old_one(tmp_path):
    code = """
def half(folder):
    save_tensors(folder / "trainer.pt", {"value": 20})
    print("half", flush=True)
    time.sleep(60)
save(root, 20, half, keep=1, keep_every=0)
"""
    (old,) = put(tmp_path, 10)
    with start(code, tmp_path) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert [n for n in names(tmp_path) if re.match(r"\.step-00000020\.", n)], "the kill came in the middle"
    assert latest(tmp_path) == old
    verify(old)
    put(tmp_path, 20, keep=1)
    assert names(tmp_path) == ["step-00000020"]


def test_kills_at_any_moment(tmp_path):
    code = """
def write(step):
    def inner(folder):
        for name in ("a.pt", "b.pt"):
            save_tensors(folder / name, {"value": step, "weights": torch.full((20000,), float(step))})
    return inner
step = int(sys.argv[2])
while True:
    step += 1
    save(root, step, write(step), keep=2, keep_every=0)
    print(step, flush=True)
"""
    moment = random.Random(3)
    done = 0
    for _ in range(3):
        with start(code, tmp_path, done) as process:
            while int(process.stdout.readline()) < done + 5:
                pass
            time.sleep(moment.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            told = [int(line) for line in process.stdout]
        found = latest(tmp_path)
        assert found is not None
        assert step_of(found) >= (max(told) if told else done + 5), "what was said to be saved is there"
        assert {load_tensors(found / n)["value"] for n in ("a.pt", "b.pt")} == {step_of(found)}
        done = step_of(found)


def test_two_processes_at_once(tmp_path):
    code = """
def write(step):
    def inner(folder):
        for name in ("a.pt", "b.pt"):
            save_tensors(folder / name, {"value": sys.argv[2]})
            time.sleep(0.002)
    return inner
print("ready", flush=True)
for step in range(1, 16):
    save(root, step, write(step), keep=3, keep_every=0)
"""
    with start(code, tmp_path, "one") as one, start(code, tmp_path, "two") as two:
        for process in (one, two):
            process.communicate(timeout=60)
            assert process.returncode == 0
    left = names(tmp_path)
    assert len(left) == 3
    for folder in left:
        verify(tmp_path / folder)
        assert len({load_tensors(tmp_path / folder / n)["value"] for n in ("a.pt", "b.pt")}) == 1
    assert latest(tmp_path) == tmp_path / "step-00000015"


# Chance


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))


def test_random_states_go_through_a_file(tmp_path):
    draw()  # an odd number of Gaussians leaves a second one waiting
    save_tensors(tmp_path / "random.pt", RandomState.capture(CPU))
    expected = [draw() for _ in range(3)]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert draw() != expected[0]
    RandomState.restore(load_tensors(tmp_path / "random.pt"), CPU)
    assert [draw() for _ in range(3)] == expected


def test_an_optimizer_goes_through_a_file(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.99))
    for _ in range(2):
        parameter.grad = torch.arange(3.0)
        optimizer.step()
    save_tensors(tmp_path / "o.pt", {"optimizer": optimizer.state_dict(), "step": 2, "bad": ["a.mp4: no sound"], "none": None})
    loaded = load_tensors(tmp_path / "o.pt")
    assert loaded["bad"] == ["a.mp4: no sound"]
    other = torch.nn.Parameter(parameter.detach().clone())
    again = torch.optim.AdamW([other], lr=0.5)
    again.load_state_dict(loaded["optimizer"])
    for p, o in ((parameter, optimizer), (other, again)):
        p.grad = torch.ones(3)
        o.step()
    assert torch.equal(parameter, other)


def test_a_newer_format_is_refused(tmp_path):
    (folder,) = put(tmp_path, 1)
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | {"format": checkpoint.FORMAT + 1}))
    with pytest.raises(WeightsError, match="has the format 2"):
        latest(tmp_path)
