"""Warnings: said when there is a cause, once, and not otherwise."""

import math
import random

import pytest

from latentsync.train.watch import CHANCE_LOSS, STUCK_STEPS, Watch

CALM = {
    "loss": 0.3,
    "recon": 0.2,
    "grad_norm": 1.0,
    "seconds_per_step": 1.0,
    "data_seconds_per_step": 0.1,
    "learning_rate": 1e-5,
    "skipped_steps": 0.0,
}


def run(watch: Watch, rows) -> list[tuple[int, str]]:
    """Everything that is said, with its step. rows: (step, values) or (step, split, values)."""
    return [(row[0], text) for row in rows for text in watch.look(row[0], row[1] if len(row) == 3 else "train", row[-1])]


def test_a_calm_run_is_not_talked_about():
    assert run(Watch("unet"), [(s, CALM) for s in range(10, 9000, 10)]) == []
    learning = [(s, {"loss": CHANCE_LOSS * math.exp(-s / 5000), "accuracy": min(1, 0.5 + s / 9000)}) for s in range(10, 9000, 10)]
    assert run(Watch("syncnet"), learning) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("term", "said"), [("recon", "the term 'recon' is"), ("loss", "the loss is"), ("grad_norm", "the norm of the gradient is")])
def test_what_is_not_finite_is_named_once(term, said, value):
    watch = Watch("unet")
    rows = [(s, CALM | ({term: value} if 50 <= s < 100 or s == 150 else {})) for s in range(10, 200, 10)]
    told = run(watch, rows)
    assert [step for step, _ in told] == [50, 150], "again only after it had been good"
    assert said in told[0][1]
    assert "at step 50 (train)" in told[0][1]
    assert "run.dtype" in told[0][1]


def test_validation_is_looked_at_as_well():
    told = run(Watch("unet"), [(10, CALM), (10, "validation", {"loss": 0.3, "trepa": math.nan})])
    assert len(told) == 1
    assert "'trepa'" in told[0][1]
    assert "(validation)" in told[0][1]


def test_two_causes_are_two_warnings():
    assert len(run(Watch("unet"), [(10, CALM | {"loss": math.nan, "sync": math.nan})])) == 2


def test_waiting_for_data():
    slow = CALM | {"data_seconds_per_step": 0.7}
    watch = Watch("unet")
    assert run(watch, [(10, slow), (20, CALM), (30, slow), (40, slow)]) == [], "workers start, caches fill"
    told = run(watch, [(s, slow) for s in range(50, 100, 10)])
    assert [step for step, _ in told] == [50]
    for part in ("data is the bottleneck", "0.70 of the 1.00 s", "70%", "data.workers", "data.cache"):
        assert part in told[0][1]
    assert run(watch, [(100, CALM), *((s, slow) for s in range(110, 150, 10))])[0][0] == 130
    assert run(Watch("unet"), [(s, CALM | {"data_seconds_per_step": 0.5}) for s in range(10, 100, 10)]) == []


def guessing(steps, spread: float = 0.05):
    noise = random.Random(0)
    return [(s, {"loss": CHANCE_LOSS + noise.gauss(0, spread), "accuracy": 0.5}) for s in steps]


def test_syncnet_at_chance_is_told_what_to_try():
    watch = Watch("syncnet")
    told = run(watch, guessing(range(10, 3 * STUCK_STEPS, 10)))
    assert [step for step, _ in told] == [STUCK_STEPS + 10]
    for part in ("0.69", "ln 2", "256 samples", "run.accumulation", "16 frames", "aligned first", "offset", "latentsync train check"):
        assert part in told[0][1]
    better = [(s, {"loss": 0.5, "accuracy": 0.8}) for s in range(3 * STUCK_STEPS, 5 * STUCK_STEPS, 10)]
    assert run(watch, better) == []
    assert len(run(watch, guessing(range(5 * STUCK_STEPS, 8 * STUCK_STEPS, 10)))) == 1, "it fell back"


def test_the_stretch_counts_from_where_a_run_was_resumed():
    begin = 50_000
    assert run(Watch("syncnet"), guessing(range(begin, begin + STUCK_STEPS, 10))) == []
    assert len(run(Watch("syncnet"), guessing(range(begin, begin + STUCK_STEPS + 10, 10)))) == 1


def test_losses_of_other_sizes_are_not_chance():
    for loss in (0.6, 0.66, 0.75, 1.2):
        assert run(Watch("syncnet"), [(s, {"loss": loss}) for s in range(10, 3 * STUCK_STEPS, 10)]) == []
    assert run(Watch("unet"), [(s, {"loss": CHANCE_LOSS}) for s in range(10, 3 * STUCK_STEPS, 10)]) == [], "only SyncNet guesses"


def test_rows_without_numbers_do_not_count():
    rows = [(s, {"loss": math.nan if s % 20 else CHANCE_LOSS}) for s in range(10, 2 * STUCK_STEPS, 10)]
    assert sum("ln 2" in text for _, text in run(Watch("syncnet"), rows)) == 1


def validated(*accuracies: float, trained: float = math.nan):
    rows = []
    for i, accuracy in enumerate(accuracies):
        step = STUCK_STEPS + 1000 * i
        rows += [(step, "train", {"loss": 0.4, "accuracy": trained}), (step, "validation", {"loss": 0.7, "accuracy": accuracy})]
    return rows


def only_accuracy(told):
    return [(s, t) for s, t in told if "accuracy on held-out" in t]


def test_accuracy_of_a_coin():
    assert only_accuracy(run(Watch("syncnet"), validated(0.5, 0.8, 0.5, 0.9))) == []
    told = only_accuracy(run(Watch("syncnet"), validated(0.51, 0.49, 0.5, 0.8, 0.5, 0.5)))
    assert [s for s, _ in told] == [STUCK_STEPS + 1000, STUCK_STEPS + 5000]
    assert "49% at step" in told[0][1]
    assert "as good as a coin" in told[0][1]
    assert only_accuracy(run(Watch("syncnet"), [(10, "validation", {"accuracy": 0.5}), (20, "validation", {"accuracy": 0.5})])) == [], "too early"


def test_clips_learned_by_heart():
    ((_, text),) = only_accuracy(run(Watch("syncnet"), validated(0.5, 0.5, trained=0.97)))
    assert "97% on the training clips" in text
    assert "more clips of more people" in text
