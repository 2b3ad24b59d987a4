"""The same work on a real Ray cluster of several processes, and with a machine of it that dies. Skipped where Ray is not installed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentsync.errors import UsageError
from latentsync.prepare.engine import prepare
from tests.conftest import ROOT
from tests.prepare.films import config, film, lines, result, rows, running

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster of a head that does no work and two machines with a core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def footage(tmp_path: Path, **more: Any) -> Path:
    log = tmp_path / "log"
    for i in range(3):
        film(tmp_path / "raw" / f"{i}.mp4", log, fps=25 + i % 2, offset=i, quality=38.0 + 2 * i, **more)
    film(tmp_path / "raw" / "dies.mp4", log, faults={"scenes": "die"})
    (tmp_path / "raw" / "text.mp4").write_text("no film")
    return tmp_path / "raw"


@pytest.mark.slow
def test_a_cluster_gives_what_this_machine_gives(machines: Any, tmp_path: Path) -> None:
    raw = footage(tmp_path)
    prepare(raw, tmp_path / "here", config(), running(1))
    outcome = prepare(raw, tmp_path / "there", config(), running(0, cluster="auto"))
    assert result(tmp_path / "there") == result(tmp_path / "here")
    assert any("SIGKILL" in note for note in outcome.notes)


@pytest.mark.slow
def test_a_machine_that_dies_takes_nothing_with_it(machines: Any, tmp_path: Path) -> None:
    raw = footage(tmp_path, slow=0.1)
    doomed = machines.add_node(num_cpus=1)
    machines.wait_for_nodes()
    said: list[str] = []
    gone: list[float] = []

    def kill() -> bool:
        if not gone and len(lines(tmp_path / "log")) > 6:
            machines.remove_node(doomed, allow_graceful=False)
            gone.append(time.monotonic())
        return False

    prepare(raw, tmp_path / "there", config(), running(2, cluster="auto"), say=said.append, stop=kill)
    assert gone
    prepare(raw, tmp_path / "here", config(), running(1))
    assert result(tmp_path / "there") == result(tmp_path / "here")
    assert {row["source"] for row in rows(tmp_path / "there") if row["failed"]} == {"dies.mp4"}


def test_ray_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    film(tmp_path / "raw" / "a.mp4", tmp_path / "log")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "latentsync\[cluster\]"'):
        prepare(tmp_path / "raw", tmp_path / "out", config(), running(cluster="auto"))
