"""Results of workers of parameter servers, taken back when a worker dies."""

import pytest
import tensorflow as tf

from tfdp.compat import parameter_server
from tfdp.fit.servers import scheduled


class Remote:
    """A result that is there, and whose worker may be dead."""

    def __init__(self, value):
        self.value = value

    def get(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Coordinator:
    """Runs each call at once; the results of the first ones cannot be fetched."""

    def __init__(self, lost):
        self.calls, self.lost = [], lost

    def schedule(self, function, args):
        self.calls.append(args)
        gone = tf.errors.UnavailableError(None, None, "Connection refused")
        return Remote(gone if len(self.calls) <= self.lost else function(*args))

    def join(self):
        pass


@pytest.fixture
def work_of(monkeypatch):
    monkeypatch.setattr(parameter_server, "addresses", lambda strategy: {})
    monkeypatch.setattr(parameter_server, "is_ready", lambda remote, seconds: True)
    monkeypatch.setattr(parameter_server, "call_succeeded", lambda remote: True)
    return lambda lost: scheduled.Work(None, Coordinator(lost), ahead=2)


def test_a_result_that_was_lost_with_its_worker_is_computed_again(work_of):
    work = work_of(lost=2)
    work.put(lambda number: number * 10, (3,))
    assert work.take() == 30
    assert work._coordinator.calls == [(3,)] * 3
    assert len(work) == 0


def test_workers_that_die_for_ever_are_an_error(work_of):
    work = work_of(lost=100)
    work.put(lambda number: number, (3,))
    with pytest.raises(tf.errors.UnavailableError, match="Workers die too often"):
        work.take()


def test_what_a_call_raises_is_not_run_again(work_of, monkeypatch):
    monkeypatch.setattr(parameter_server, "call_succeeded", lambda remote: False)
    work = work_of(lost=1)
    work.put(lambda number: number, (3,))
    with pytest.raises(tf.errors.UnavailableError, match="Connection refused"):
        work.take()
    assert work._coordinator.calls == [(3,)]


def test_tensors_become_arrays_and_ragged_tensors_stay(work_of):
    with work_of(lost=0) as work:
        work.put(lambda: (tf.constant([1.0]), tf.ragged.constant([[1], [2, 3]])), ())
        array, ragged = work.take()
    assert array.tolist() == [1.0]
    assert isinstance(ragged, tf.RaggedTensor)
    assert ragged.to_list() == [[1], [2, 3]]
