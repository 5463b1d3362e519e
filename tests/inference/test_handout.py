"""Who gets which shard, against workers that are played by the test."""

import collections
import pathlib
import types

import pytest

from tfdp.inference import folder as folder_lib
from tfdp.inference import handout, shards
from tfdp.inference.errors import JobFailed
from tfdp.inference.progress import Progress


class Worker:
    """A worker of a pool that is played."""

    def __init__(self, pid):
        self.process = types.SimpleNamespace(pid=pid)
        self.log = pathlib.Path("worker.log")
        self.is_ready = True
        self.shards = []
        self.rows = 0


class Pool:
    """Plays workers: `answer(pool, worker, number)` says what comes of a shard."""

    def __init__(self, count, answer):
        self.workers = [Worker(pid) for pid in range(count)]
        self.given = []
        self._answer = answer
        self._coming = collections.deque()

    def send(self, worker, **message):
        if "shard" in message:
            number = message["shard"]["number"]
            self.given.append((worker.process.pid, number))
            self._coming.extend(self._answer(self, worker, number))

    def events(self, seconds):
        if self._coming:
            worker, message = self._coming.popleft()
            if "died" in message and worker in self.workers:
                self.workers.remove(worker)
                self.workers.append(Worker(worker.process.pid + 100))
            yield worker, message


def done(number, errors=0):
    return {"done": number, "rows": 2 - errors, "errors": errors}


def run(folder, pool, count=6, max_errors=0):
    cut = list(shards.cut([shards.File("a", 2 * count)], 2))
    folder_lib.clear(folder, "h" * 64)
    start = {"hash": "h" * 64, "extension": "csv", "parts": count}
    made = handout.HandOut(pool, folder, cut, start, max_errors=max_errors, timeout_seconds=3.0)
    return made.run(Progress(None, 2 * count))[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / ".tfdp").mkdir()
    return tmp_path


def test_whoever_is_idle_gets_the_next(folder):
    # Worker 0 answers for its first shard only when the other has done all the rest.
    held = []

    def answer(pool, worker, number):
        if worker.process.pid == 0 and not held:
            held.append((worker, done(number)))
            return []
        return [(worker, done(number))] + (held if number == 5 else [])

    pool = Pool(2, answer)
    assert run(folder, pool) == 12
    assert pool.given == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]


def test_complete_parts_are_not_handed_out(folder):
    for number in (0, 2, 5):
        (folder / shards.part_name(number, 6, "csv")).touch()
    pool = Pool(1, lambda pool, worker, number: [(worker, done(number))])
    assert run(folder, pool) == 6
    assert [number for _, number in pool.given] == [1, 3, 4]


def test_the_shard_of_a_dead_worker_is_given_to_the_next(folder):
    died = []

    def answer(pool, worker, number):
        if number == 1 and not died:
            died.append(number)
            return [(worker, {"died": "was killed by SIGKILL"})]
        return [(worker, done(number))]

    pool = Pool(1, answer)
    assert run(folder, pool) == 12
    assert pool.given == [(0, 0), (0, 1), *((100, number) for number in range(1, 6))]


def test_what_a_dead_worker_has_finished_is_not_done_again(folder):
    def answer(pool, worker, number):
        if number == 1:
            (folder / shards.part_name(1, 6, "csv")).touch()
            return [(worker, {"died": "was killed by SIGKILL"})]
        return [(worker, done(number))]

    pool = Pool(1, answer)
    assert run(folder, pool) == 12
    assert [number for _, number in pool.given] == [0, 1, 2, 3, 4, 5]


def test_a_shard_that_ends_every_worker_ends_the_job(folder):
    def answer(pool, worker, number):
        if number == 3:
            return [(worker, {"died": "was killed by SIGSEGV"})]
        return [(worker, done(number))]

    with pytest.raises(JobFailed) as raised:
        run(folder, Pool(1, answer))
    assert str(raised.value) == (
        "Shard 3 has ended 5 workers: the last one was killed by SIGSEGV. Log: worker.log."
    )


def test_too_many_errors_end_the_job_and_are_written(folder):
    def answer(pool, worker, number):
        if number != 1:
            return [(worker, done(number))]
        return [(worker, {"error": line, "shard": 1}) for line in ("one", "two", "three")]

    with pytest.raises(JobFailed) as raised:
        run(folder, Pool(1, answer), max_errors=2)
    assert str(raised.value) == (
        f"3 rows cannot be read, which is more than --max_errors=2: see {folder}/errors.jsonl."
    )
    assert (folder / "errors.jsonl").read_text() == "one\ntwo\nthree\n"


def test_what_a_worker_says_has_failed_ends_the_job(folder):
    def answer(pool, worker, number):
        return [(worker, {"failed": "The model has failed: no memory", "mistake": False})]

    with pytest.raises(JobFailed) as raised:
        run(folder, Pool(1, answer))
    assert str(raised.value) == "The model has failed: no memory"
