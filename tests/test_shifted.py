"""Windows that begin earlier at every step: against the plain loop, against a whole shot held in memory, and for what they hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from latentsync import denoise
from latentsync.config import DiffusionConfig
from latentsync.shifted import Block, sample_shifted

DIFFUSION = DiffusionConfig(prediction_type="v_prediction", spacing="trailing")


def shot(frames: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(frames)
    names = {"noise": 2, "mask": 1, "masked": 2, "reference": 2}
    return {k: torch.randn((1, c, frames, 3, 3), generator=g) for k, c in names.items()} | {"audio": torch.randn((1, frames, 2, 4), generator=g)}


def blocks(given: dict[str, Tensor], size: int) -> Iterator[Block[list[int]]]:
    condition = torch.cat([given[k] for k in ("mask", "masked", "reference")], dim=1)[0]
    frames = condition.shape[1]
    for at in range(0, frames, size):
        part = slice(at, min(at + size, frames))
        yield Block(list(range(frames)[part]), given["noise"][0, :, part], condition[:, part], given["audio"][0, part])


def together(found: Iterator[list[tuple[list[int], Tensor]]], frames: int) -> Tensor:
    out = [pair for group in found for pair in group]
    assert [n for item, _ in out for n in item] == list(range(frames)), "every frame once, in order"
    return torch.cat([latents for _, latents in out], dim=1)[None]


def alone(sample: Tensor, t: Tensor, audio: Tensor, *, cache: object = None) -> Tensor:
    """Sees no frame but its own, and gets nothing right."""
    told = audio.mean(dim=(2, 3))[:, None, :, None, None]
    return torch.sin(2 * sample[:, :2] + 0.001 * t + sample[:, 3:5] - told)


def mixing(sample: Tensor, t: Tensor, audio: Tensor, *, cache: object = None) -> Tensor:
    """Sees the whole window, and where in it a frame stands."""
    place = torch.arange(sample.shape[2])[None, None, :, None, None] / 10
    return alone(sample + sample.mean(dim=2, keepdim=True), t, audio) + torch.cos(place) * audio.mean(dim=(1, 2, 3))[:, None, None, None, None]


def reference(
    unet: Callable[..., Tensor], name: str, given: dict[str, Tensor], size: int, window: int, steps: int, guidance: float, still: float | None
) -> Tensor:
    """The same on a shot that is held whole, with one scheduler for all of it."""
    scheduler = denoise.make_scheduler(name, DIFFUSION)
    scheduler.set_timesteps(steps)
    condition = torch.cat([given[k] for k in ("mask", "masked", "reference")], dim=1)
    x, frames = given["noise"], given["noise"].shape[2]
    count = -(-frames // size)
    for step, t in enumerate(scheduler.timesteps):
        out = torch.full_like(x, torch.nan)
        for begin in range(-(step % window), count, window):
            first = max(0, min(begin, count - window))
            seen = slice(first * size, (first + window) * size)
            kept = slice(max(0, begin) * size, (begin + window) * size)
            made = denoise.predict(unet, x[:, :, seen], t, condition[:, :, seen], given["audio"][:, seen], guidance=guidance, still_guidance=still)
            whole = torch.full_like(x, torch.nan)
            whole[:, :, seen] = made
            out[:, :, kept] = whole[:, :, kept]
        x = scheduler.step(out, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", denoise.SCHEDULERS)
@pytest.mark.parametrize("frames", [1, 3, 8, 30])
def test_a_network_that_sees_one_frame_cannot_tell_where_windows_lie(name: str, frames: int) -> None:
    given = shot(frames)
    plain = denoise.sample(alone, denoise.make_scheduler(name, DIFFUSION), **given, steps=5, guidance=2.0)
    found = sample_shifted(alone, lambda: denoise.make_scheduler(name, DIFFUSION), blocks(given, 2), window=4, steps=5, guidance=2.0)
    torch.testing.assert_close(together(found, frames), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 9, 16, 31, 47])
@pytest.mark.parametrize(("size", "window", "steps"), [(2, 4, 5), (4, 2, 3), (1, 3, 8), (2, 4, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_shot_in_parts_is_the_shot_as_a_whole(frames: int, size: int, window: int, steps: int, batch: int) -> None:
    given = shot(frames)
    found = sample_shifted(
        mixing,
        lambda: denoise.make_scheduler("dpm++", DIFFUSION),
        blocks(given, size),
        window=window,
        steps=steps,
        guidance=3.0,
        still_guidance=1.5,
        batch=batch,
    )
    whole = reference(mixing, "dpm++", given, size, window, steps, 3.0, 1.5)
    assert whole.isfinite().all(), "the windows cover the shot"
    torch.testing.assert_close(together(found, frames), whole, rtol=0, atol=1e-5)


def test_what_one_window_decides_reaches_its_neighbours() -> None:
    """With windows that stay, a frame of the first window has no say in the second; with those of the second step in between it has."""

    def changed(run: Callable[[dict[str, Tensor]], Tensor]) -> list[int]:
        before, after = shot(32), shot(32)
        after["audio"][:, 0] += 5
        return (run(before) != run(after)).any(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()

    def stay(given: dict[str, Tensor]) -> Tensor:
        out = []
        for i in range(4):
            part = {k: v.split(8, dim=1 if k == "audio" else 2)[i] for k, v in given.items()}
            out.append(denoise.sample(mixing, denoise.make_scheduler("dpm++", DIFFUSION), **part, steps=3, guidance=2.0))
        return torch.cat(out, dim=2)

    def shift(given: dict[str, Tensor]) -> Tensor:
        found = sample_shifted(mixing, lambda: denoise.make_scheduler("dpm++", DIFFUSION), blocks(given, 4), window=2, steps=3, guidance=2.0)
        return together(found, 32)

    assert changed(stay) == list(range(8))
    assert changed(shift) == list(range(16))


class Frames(list[int]):
    """An item that can be seen to be gone."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("steps", [4, 12])
@pytest.mark.parametrize("batch", [1, 2])
def test_any_length_is_held_a_few_windows_at_a_time(batch: int, steps: int) -> None:
    """Neither what is held nor the network's work for each frame grows with the shot; the end of a shot is handed out in parts as well."""
    size, window, count = 2, 4, 400
    items: weakref.WeakSet[Frames] = weakref.WeakSet()
    tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most_items = most_tensors = given = 0
    calls: list[int] = []

    def counted() -> Iterator[Block[Frames]]:
        for block in blocks(shot(size * count), size):
            frames, audio = Frames(block.item), block.audio.clone()
            items.add(frames)
            tensors.add(audio)
            yield Block(frames, block.noise, block.condition, audio)
            del frames, audio, block

    def unet(sample: Tensor, t: Tensor, audio: Tensor, *, cache: object = None) -> Tensor:
        nonlocal most_items, most_tensors
        most_items, most_tensors = max(most_items, len(items)), max(most_tensors, len(tensors))
        calls.append(sample.shape[0])
        return alone(sample, t, audio)

    heard: list[int] = []
    for done in sample_shifted(
        unet,
        lambda: denoise.make_scheduler("ddim", DIFFUSION),
        counted(),
        window=window,
        steps=steps,
        guidance=1.0,
        batch=batch,
        on_step=heard.append,
    ):
        given += len(done)
        assert len(done) <= window * batch
        del done
    assert given == count
    assert most_items <= window * batch + (steps - 1) * batch + window
    assert most_tensors <= most_items + window
    assert max(calls) == batch
    assert sum(calls) <= steps * (count // window + 1), "each frame once for each step, but for the two ends of the shot"
    assert len(heard) == len(calls)
    assert set(heard) == set(range(1, steps + 1))


@pytest.mark.parametrize(("frames", "calls"), [(1, 5), (6, 5), (8, 6), (9, 10), (16, 13)])
def test_a_shot_shorter_than_a_window_is_seen_once_for_each_step(frames: int, calls: int) -> None:
    seen = []

    def unet(sample: Tensor, t: Tensor, audio: Tensor, *, cache: object = None) -> Tensor:
        seen.append(sample.shape[2])
        return alone(sample, t, audio)

    list(sample_shifted(unet, lambda: denoise.make_scheduler("ddim", DIFFUSION), blocks(shot(frames), 2), window=4, steps=5, guidance=1.0))
    assert max(seen) == min(8, frames)
    assert len(seen) == calls


def test_a_shot_without_frames_is_nothing() -> None:
    assert list(sample_shifted(alone, lambda: denoise.make_scheduler("ddim", DIFFUSION), iter(()), window=4, steps=3, guidance=1.0)) == []
