import itertools
import threading
import time

import pytest

from latentsync.stages import Ahead, Behind


def test_items_pass_in_order_through_both_stages(left_running):
    out = []
    with Ahead(iter(range(100)), 3) as source, Behind(out.append, 3) as sink:
        for item in source:
            sink.put(item)
    assert out == list(range(100))
    assert left_running() == []


def test_source_stays_at_most_size_items_in_front(left_running):
    made = []

    def source():
        for i in itertools.count():
            made.append(i)
            yield i

    with Ahead(source(), 4) as items:
        it = iter(items)
        next(it)
        time.sleep(0.3)
        assert len(made) <= 1 + 4 + 1  # taken, queued, and the one waiting for a place
    assert left_running() == []


def test_sink_holds_at_most_size_items():
    release = threading.Event()
    taken = []

    def consume(item):
        release.wait(5)
        taken.append(item)

    with Behind(consume, 2) as sink:
        done = threading.Event()

        def feed():
            for i in range(10):
                sink.put(i)
            done.set()

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert not done.wait(0.3)
        release.set()
        feeder.join(5)
    assert taken == list(range(10))


def test_error_in_the_source_arrives_after_the_items_before_it_and_at_once_by_check(left_running):
    def source():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), Ahead(source(), 4) as items:
        assert list(itertools.islice(items, 1)) == [1]
        list(items)
    with Ahead(source(), 4) as items:
        time.sleep(0.2)
        with pytest.raises(ValueError, match="broken"):
            items.check()
    assert left_running() == []


def test_error_in_the_sink_reaches_the_feeder_even_when_the_queue_is_full(left_running):
    def consume(item):
        time.sleep(0.1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind(consume, 1) as sink:
        for i in range(1000):
            sink.put(i)
    assert left_running() == []


def test_error_in_the_sink_on_the_last_item_is_not_lost():
    def consume(item):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind(consume, 5) as sink:
        sink.put(1)


def test_error_in_the_middle_stops_both_sides_promptly_and_closes_the_source(left_running):
    closed = threading.Event()

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    slow = []
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Ahead(source(), 2) as items, Behind(lambda x: slow.append(x) or time.sleep(0.2), 50) as sink:
        for item in items:
            sink.put(item)
            if item == 40:
                raise KeyboardInterrupt
    assert time.monotonic() - start < 2
    assert closed.is_set()
    assert len(slow) < 40
    assert left_running() == []
