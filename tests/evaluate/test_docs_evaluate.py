"""The page names every metric in the words of the catalogue, and every metric belongs to a group that can be asked for."""

from latentsync.evaluate import protocols
from latentsync.evaluate.tools import GROUPS, chosen
from latentsync.metrics.catalogue import METRICS
from tests.conftest import ROOT, loaded


def test_the_page_is_current() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert loaded(ROOT / "tools" / "make_metric_docs.py").page(text) == text, "run: make docs"
    for name in protocols.names():
        assert f"| `{name}` |" in text


def test_groups_and_catalogue_are_of_one_mind() -> None:
    grouped = [key for keys in GROUPS.values() for key in keys]
    assert sorted(grouped) == sorted(METRICS)


def test_protocols_ask_for_metrics_that_exist() -> None:
    assert protocols.names() == ["cross", "long", "reconstruction", "silence"]
    for name in protocols.names():
        preset = protocols.load(name)
        assert chosen(preset.metrics)
        assert preset.sound in protocols.SOUNDS
        assert preset.seed == 1247
