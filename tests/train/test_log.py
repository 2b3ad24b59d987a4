"""The history of a run: what is appended is read, and a resumed run does not tell its steps twice."""

import json
import math
from pathlib import Path

import pytest

from latentsync.errors import OutputError
from latentsync.train.log import History, read


def tell(folder: Path, steps, after: int = 0, **more: float) -> Path:
    history = History(folder, after=after)
    for step in steps:
        history.row(step, "train", {"loss": 1 / step, **more})
    history.close()
    return history.path


def test_rows_are_lines_of_json(tmp_path):
    history = History(tmp_path / "run")
    history.row(10, "train", {"loss": 0.5, "recon": math.nan})
    history.row(10, "validation", {"loss": math.inf})
    assert len(history.path.read_text().splitlines()) == 2, "a row is in the file at once"
    history.close()

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    first = json.loads(history.path.read_text().splitlines()[0], parse_constant=strict)
    assert {k: first[k] for k in ("step", "split", "loss", "recon")} == {"step": 10, "split": "train", "loss": 0.5, "recon": None}
    assert first["time"] > 1.6e9
    rows = read(history.path)
    assert rows[0][:2] == (10, "train")
    assert rows[0].values["loss"] == 0.5
    assert math.isnan(rows[0].values["recon"])
    assert math.isnan(rows[1].values["loss"])


@pytest.mark.parametrize(("after", "stay"), [(30, [10, 20, 30]), (25, [10, 20]), (0, []), (99, [10, 20, 30, 40])])
def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path, after, stay):
    path = tell(tmp_path, [10, 20, 30, 40])
    tell(tmp_path, [after + 1], after=after)
    assert [row.step for row in read(path)] == [*stay, after + 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "tensorboard"]


def test_going_on_with_nothing_to_forget_touches_nothing(tmp_path):
    path = tell(tmp_path, [10, 20])
    before = path.stat().st_ino
    tell(tmp_path, [30], after=20)
    assert path.stat().st_ino == before
    assert [row.step for row in read(path)] == [10, 20, 30]


@pytest.mark.parametrize("torn", ['{"step": 30, "spl', '{"step": 30, "split": "train", "loss": 0.1}', "\x00\x00\x00"])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, torn):
    path = tell(tmp_path, [10, 20])
    with path.open("a") as file:
        file.write(torn)
    tell(tmp_path, [30], after=40)
    assert [row.step for row in read(path)] == [10, 20, 30]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_nothing_there(tmp_path):
    assert read(tmp_path / "events.jsonl") == []


def test_tensorboard_has_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path, [10, 20, 30, 40])
    tell(tmp_path, [25, 35], after=20, recon=7.0)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["loss/train", "recon/train"]
    assert [e.step for e in board.Scalars("loss/train")] == [10, 20, 25, 35]
    assert board.Scalars("recon/train")[0].value == 7.0


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*events\.jsonl"):
        History(tmp_path / "run")


def test_a_full_disk(tmp_path):
    history = History(tmp_path)
    history._file.close()
    try:
        history._file = open("/dev/full", "a")  # noqa: SIM115
    except OSError:
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="the same command goes on from it"):
        history.row(1, "train", {"loss": 1.0})
    history._board.close()
