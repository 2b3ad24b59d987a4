"""Contexts at moments: exact positions, published numbers, overlapping blocks, every length, constant memory."""

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from latentsync.config import WhisperConfig
from latentsync.errors import InputError
from latentsync.speech.mel import log_mel, normalise
from latentsync.speech.track import SpeechTrack, window
from latentsync.speech.whisper import SpeechEncoder, load_whisper

RATES = [Fraction(s) for s in ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60", "12.5", "1000/33")]


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Speech-like: noise that swells and fades a few times a second and falls silent now and then."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / 16000
    loudness = np.maximum(0, np.sin(2 * np.pi * 3.1 * t) + np.sin(2 * np.pi * 0.37 * t)) / 4
    return (rng.standard_normal(n) * loudness).astype(np.float32)


def source(samples: np.ndarray, size: int = 4096) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: iter([samples[i : i + size] for i in range(0, samples.size, size)])


def features(track: SpeechTrack, positions: range | None = None) -> torch.Tensor:
    """(n, layers + 1, width): the features at positions, read off the fifth of each window's ten."""
    times = [Fraction(p, 50) for p in positions or range(track.positions)]
    contexts = torch.cat([track.contexts(times[i : i + 100]) for i in range(0, len(times), 100)])
    return contexts.unflatten(1, (10, -1))[:, 4]


def whole_mel(samples: np.ndarray) -> torch.Tensor:
    log_power = torch.cat(list(log_mel([samples])))
    return normalise(log_power, float(log_power.max())).T


# Which positions a moment hears


def test_window_at_a_plain_moment() -> None:
    assert window(Fraction(1), 1000) == list(range(46, 56))
    assert window(Fraction(0), 1000) == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
    assert window(Fraction(1, 50) - Fraction(1, 10**30), 1000)[4] == 0
    assert window(Fraction(1, 50), 1000)[4] == 1


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_window_never_drifts(rate: Fraction) -> None:
    for i in [0, 1, 7, 1000, 107_892, 10**6, 10**7]:
        assert window(i / rate, 10**12)[4] == 50 * i * rate.denominator // rate.numerator
        assert window(i / rate, 10**12)[0] == max(0, 50 * i * rate.denominator // rate.numerator - 4)


def test_window_is_held_at_the_ends() -> None:
    assert window(Fraction(-7), 20) == [0] * 10
    assert window(Fraction(100), 20) == [19] * 10
    assert window(Fraction(3), 1) == [0] * 10


def test_golden_windows(whisper_index: dict[str, Any]) -> None:
    for name, case in whisper_index["wavs"].items():
        positions, count = case["feat_shape"][0], case["n_chunks"]
        assert [window(Fraction(i, 25), positions) for i in range(5)] == case["idx_first5"], name
        assert [window(Fraction(i, 25), positions) for i in range(count - 6, count)] == case["idx_last6"], name
        for fps, chunks in case["n_chunks_by_fps"].items():
            ours = [window(i / Fraction(fps), positions) for i in (0, 1, 7, chunks - 1)]
            assert ours == case[f"idx_fps{fps}_i0_1_7_last"], (name, fps)


# The published numbers


def test_golden_features(
    whisper_index: dict[str, Any], whisper_numbers: dict[str, np.ndarray], golden_sounds: dict[str, np.ndarray], golden_encoder: SpeechEncoder
) -> None:
    """Published blocks (no overlap) for every sound; for sounds of one block, the default gives the same."""
    seen_30s = False
    for name, samples in golden_sounds.items():
        track = SpeechTrack(source(samples), golden_encoder, overlap_s=0)
        case = whisper_index["wavs"][name]
        assert track.duration == Fraction(case["samples"], 16000)
        ours = features(track)
        assert list(ours.shape) == case["feat_shape"], name
        stride = int(whisper_numbers[f"{name}.feat_stride"])
        np.testing.assert_allclose(ours[::stride].numpy(), whisper_numbers[f"{name}.feat"], atol=1e-4, err_msg=name)
        if f"{name}.feat_around_30s" in whisper_numbers:
            np.testing.assert_allclose(ours[1490:1510].numpy(), whisper_numbers[f"{name}.feat_around_30s"], atol=1e-4, err_msg=name)
            seen_30s = True
        if track.positions <= golden_encoder.config.positions:
            torch.testing.assert_close(features(SpeechTrack(source(samples), golden_encoder)), ours, rtol=0, atol=0)
    assert seen_30s or all(s.size <= 480000 for s in golden_sounds.values())


def test_golden_contexts(
    whisper_index: dict[str, Any], whisper_numbers: dict[str, np.ndarray], golden_sounds: dict[str, np.ndarray], golden_encoder: SpeechEncoder
) -> None:
    for name, samples in golden_sounds.items():
        track = SpeechTrack(source(samples), golden_encoder, overlap_s=0)
        assert [track.tokens, track.width] == whisper_index["wavs"][name]["chunk_shape"]
        ours = track.contexts([Fraction(int(i), 25) for i in whisper_numbers[f"{name}.chunk_index"]])
        np.testing.assert_allclose(ours.numpy(), whisper_numbers[f"{name}.chunks"], atol=1e-4, err_msg=name)


def test_golden_contexts_of_the_pipeline(
    golden: Path, goldenlib: Any, whisper_index: dict[str, Any], golden_config: WhisperConfig, wav: Callable[[Path], np.ndarray]
) -> None:
    """The contexts that the published pipeline handed to its network; the surplus ones at the end are what lies beyond the sound."""
    compared = 0
    for path in sorted(golden.glob("g_pipeline_*.json")):
        with np.load(path.with_suffix(".npz")) as numbers:
            if "chunks" not in numbers:  # only some cases store them
                continue
            published = numbers["chunks"]
        case = json.loads(path.read_text())
        weights = goldenlib.fill(whisper_index["keys"], case["whisper_seed"])
        encoder = load_whisper({k: torch.from_numpy(v) for k, v in weights.items()}, golden_config)
        track = SpeechTrack(source(wav(golden / case["args"]["wav"])), encoder)
        ours = track.contexts([Fraction(i, 25) for i in range(len(published))])
        np.testing.assert_allclose(ours.numpy(), published, atol=1e-4, err_msg=path.name)
        compared += 1
    if not compared:
        pytest.skip("no g_pipeline_* case among the golden numbers stores its contexts")


# Every length


@pytest.mark.parametrize("n", [1, 2, 100, 159, 160, 200, 201, 319, 320, 640, 16000, 31999, 32000, 32001, 32320, 64000, 100_003])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 5.0])
def test_works_from_one_sample_on(n: int, overlap: float, small_encoder: SpeechEncoder) -> None:
    track = SpeechTrack(source(noise(n)), small_encoder, overlap_s=overlap)
    assert track.duration == Fraction(n, 16000)
    assert track.positions == max(1, n // 320)
    times = [Fraction(-1), *(Fraction(i, 25) for i in range(math.ceil(track.duration * 25))), Fraction(10**6)]
    contexts = track.contexts(times)
    assert contexts.shape == (len(times), 30, 16)
    assert torch.isfinite(contexts).all()
    per_position = contexts.unflatten(1, (10, 3))
    assert torch.equal(per_position[0], per_position[1, :1].expand(10, 3, 16)), "before the start: its first moment, ten times"
    assert torch.equal(per_position[-1], features(track, range(track.positions - 1, track.positions)).expand(10, 3, 16))
    assert torch.equal(track.context(times[-2]), contexts[-2])


def test_no_times_no_contexts(small_encoder: SpeechEncoder) -> None:
    assert SpeechTrack(source(noise(5000)), small_encoder).contexts([]).shape == (0, 30, 16)


def test_empty_sound_is_refused(small_encoder: SpeechEncoder) -> None:
    for empty in ([], [np.zeros(0, np.float32)]):
        with pytest.raises(InputError, match="empty"):
            SpeechTrack(lambda empty=empty: iter(empty), small_encoder)


def test_silence_is_finite(small_encoder: SpeechEncoder) -> None:
    track = SpeechTrack(source(np.zeros(100_000, np.float32)), small_encoder)
    assert torch.isfinite(track.contexts([Fraction(i, 25) for i in range(156)])).all()


def test_the_loudest_moment_of_the_whole_file_sets_the_floor(small_encoder: SpeechEncoder) -> None:
    """A bang at the end lifts the floor under the quiet start: the start is not normalised by itself."""
    quiet = noise(64000) * 1e-4
    loud = quiet.copy()
    loud[-2000:] = 0.9
    start = Fraction(1, 5)
    assert not torch.allclose(SpeechTrack(source(quiet), small_encoder).context(start), SpeechTrack(source(loud), small_encoder).context(start))


def test_number_format_is_the_encoders(small_encoder: SpeechEncoder) -> None:
    half = SpeechEncoder(small_encoder.config)
    half.load_state_dict(small_encoder.state_dict())
    half.to(torch.bfloat16)
    samples = noise(100_000)
    times = [Fraction(i, 25) for i in range(150)]
    contexts = SpeechTrack(source(samples), half).contexts(times)
    assert contexts.dtype == torch.bfloat16
    torch.testing.assert_close(contexts.float(), SpeechTrack(source(samples), small_encoder).contexts(times), atol=0.1, rtol=0.05)


# Blocks


@pytest.mark.parametrize("seconds", [30, 30.02, 31, 40, 49, 50, 61.3, 75, 3600])
@pytest.mark.parametrize("overlap", [1.0, 5.0, 7.5, 10.0])
def test_every_position_is_heard_with_its_surroundings(seconds: float, overlap: float, golden_encoder: SpeechEncoder) -> None:
    """At least `overlap` on either side except at the file's ends; blocks stay inside the file; shares run without a jump."""
    track = SpeechTrack(source(np.ones(1, np.float32)), golden_encoder, overlap_s=overlap)
    track.positions = n = round(seconds * 50)
    block, margin = golden_encoder.config.positions, round(overlap * 50)
    before: dict[int, float] = {}
    for p in range(n) if n < 5000 else [*range(4000), *range(n - 4000, n)]:
        old, new, share = track._blocks_at(p)
        assert 0 <= share < 1
        for start in {old, new}:
            assert 0 <= start <= max(0, n - block)
            assert p - start >= min(margin, p)
            assert start + block - 1 - p >= min(margin, n - 1 - p)
        shares = {old: 1.0} if old == new else {old: 1 - share, new: share}
        if before and p != n - 4000:
            moved = max(abs(shares.get(k, 0) - before.get(k, 0)) for k in shares | before)
            assert moved <= 1 / 50, f"position {p} jumps from {before} to {shares}"
        before = shares


def test_around_30_s_as_good_as_anywhere(golden_encoder: SpeechEncoder) -> None:
    """The reference hears 15 s on either side. Published blocks fail at their cut; ours differ there no more than elsewhere.

    Positions are taken out of the network here, so that what is left is what a block hears (a position's own table row differs between
    any two blocks, wherever it lies).
    """
    encoder = SpeechEncoder(golden_encoder.config)
    encoder.load_state_dict(golden_encoder.state_dict())
    encoder.encoder.embed_positions.weight.zero_()
    samples = noise(75 * 16000)
    mel = whole_mel(samples)
    probes = [*range(950, 2700, 50), *range(1490, 1511, 2)]
    near = torch.tensor([abs(p - 1500) <= 50 for p in probes])
    centred = torch.stack([encoder.features(mel[:, 2 * p - 1500 : 2 * p + 1500])[750] for p in probes])

    def distance(overlap_s: float) -> torch.Tensor:
        track = SpeechTrack(source(samples), encoder, overlap_s=overlap_s)
        found = torch.cat([features(track, range(p, p + 1)) for p in probes])
        return (found - centred).square().mean((1, 2)).sqrt()

    ours, published = distance(5.0), distance(0.0)
    assert ours[near].max() <= ours[~near].max()
    assert ours[near].mean() <= 1.2 * ours[~near].mean()
    assert published[near].mean() > 1.5 * ours[near].mean(), "the published cut should show, or this test sees nothing"


def test_no_twitch(golden_encoder: SpeechEncoder) -> None:
    """From one position to the next, features never move more than within a single block; published blocks jump at 30 s."""
    samples = noise(75 * 16000)

    def steps(overlap_s: float) -> torch.Tensor:
        track = SpeechTrack(source(samples), golden_encoder, overlap_s=overlap_s)
        return features(track).diff(dim=0).square().mean((1, 2)).sqrt()

    ours, published = steps(5.0), steps(0.0)
    within_blocks = torch.cat([published[:1499], published[1500:2999], published[3000:]]).max()
    assert published[1499] > 1.5 * within_blocks
    assert ours.max() <= 1.05 * within_blocks


# Streaming


def test_order_of_asking_does_not_matter(small_encoder: SpeechEncoder) -> None:
    samples = noise(160_000)
    times = [Fraction(i, 25) for i in range(250)]
    forward = SpeechTrack(source(samples), small_encoder).contexts(times)
    one_by_one = SpeechTrack(source(samples), small_encoder)
    order = np.random.default_rng(3).permutation(250)
    for i in order[:60]:
        torch.testing.assert_close(one_by_one.context(times[i]), forward[i], atol=1e-5, rtol=1e-5)
    backwards = SpeechTrack(source(samples), small_encoder).contexts(times[::-1])
    torch.testing.assert_close(backwards.flip(0), forward, atol=1e-5, rtol=1e-5)


class Opened:
    """A sound that counts how often it is opened and how many openings are still open."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples, self.times, self.open = samples, 0, 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.times += 1
        self.open += 1
        try:
            for i in range(0, self.samples.size, 1000):
                yield self.samples[i : i + 1000]
        finally:
            self.open -= 1


def test_forward_reading_opens_twice_and_leaves_nothing_open(small_encoder: SpeechEncoder) -> None:
    sound = Opened(noise(640_000))
    track = SpeechTrack(sound, small_encoder)
    assert (sound.times, sound.open) == (1, 0)
    first = [track.context(Fraction(i, 25)) for i in range(1000)]
    assert (sound.times, sound.open) == (2, 0)
    assert torch.allclose(track.context(Fraction(0)), first[0], atol=1e-5)
    assert sound.times == 3
    assert sound.open == 1
    track.close()
    assert sound.open == 0
    assert torch.allclose(track.context(Fraction(4)), first[100], atol=1e-5)


def test_a_sound_that_shrank_is_an_error(small_encoder: SpeechEncoder) -> None:
    lengths = iter([160_000, 40_000])
    track = SpeechTrack(lambda: iter([noise(next(lengths))]), small_encoder)
    with pytest.raises(InputError, match=r"ended after 2\.50 s.*10\.00"):
        track.contexts([Fraction(i, 25) for i in range(250)])


def test_memory_does_not_grow_with_length(golden_encoder: SpeechEncoder) -> None:
    """Twenty minutes, made as they are read: what the process holds after 3 minutes it holds at the end."""
    second = noise(16000)

    def samples() -> Iterator[np.ndarray]:
        for i in range(20 * 60):
            yield second * (1 + i % 5)

    process = psutil.Process()
    track = SpeechTrack(samples, golden_encoder)
    assert track.duration == 20 * 60
    held = []
    for t in range(0, 20 * 60, 4):
        assert torch.isfinite(track.contexts([Fraction(25 * t + i, 25) for i in range(0, 100, 20)])).all()
        held.append(process.memory_info().rss)
    assert max(held[45:]) - max(held[:45]) < 16 * 2**20  # the whole mel alone would be 38 MB, the samples 77 MB, the features 38 MB


def test_all_features_of_a_sound(small_encoder: SpeechEncoder) -> None:
    """(positions, layers + 1, width): what the contexts are taken from, across the seams of blocks."""
    track = SpeechTrack(source(noise(100_000)), small_encoder)
    whole = track.features()
    assert whole.shape == (312, 3, 16)
    times = [Fraction(i, 25) for i in range(0, 156, 7)]
    rows = torch.tensor([window(t, 312) for t in times])
    torch.testing.assert_close(track.contexts(times), whole[rows].reshape(len(times), 30, 16))
