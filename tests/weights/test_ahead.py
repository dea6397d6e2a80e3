"""The reading thread: order, errors, how far it runs ahead, and that it ends."""

import threading
import time

import pytest

from pipeline.weights.ahead import ahead, mapped


def test_items_come_in_order_and_from_another_thread():
    threads = list(ahead(threading.get_ident() for _ in range(100)))
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert set(threads) != {threading.get_ident()} and len(set(threads)) == 1
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, None]))) == [None, None]


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("two")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="two"):
        next(stream)


def test_it_runs_no_further_ahead_than_it_may():
    made = []
    stream = ahead((made.append(i) or i for i in range(100)), depth=3)
    assert next(stream) == 0
    time.sleep(0.05)
    assert len(made) <= 4


def test_the_thread_ends_when_the_reader_stops():
    before = threading.active_count()
    stream = ahead(iter(range(1000)))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_results_of_several_threads_come_in_order():
    def slow_at_first(number):
        time.sleep(0.02 if number % 5 == 0 else 0)
        return number, threading.get_ident()

    results = list(mapped(slow_at_first, iter(range(40))))
    assert [number for number, _ in results] == list(range(40)) and len({thread for _, thread in results}) == 2
    assert list(mapped(str, iter([]))) == []


def test_a_failing_result_comes_after_the_results_before_it():
    stream = mapped(lambda number: 1 // number, iter([1, 0, 1]))
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_no_more_results_are_made_than_wanted():
    taken = []
    stream = mapped(str, (taken.append(i) or i for i in range(100)))
    next(stream)
    assert len(taken) <= 6
