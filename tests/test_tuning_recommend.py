"""The recommended batch: the time of a step and the noise scale are given."""

import pytest

from tfdp.tuning import recommend, record


def test_the_line_of_a_step_is_found():
    points = [(rows, 0.004 + 1e-4 * rows) for rows in (64, 256, 1024)]
    found = recommend.line_of(points)
    assert found.fixed_seconds == pytest.approx(0.004)
    assert found.seconds_per_row == pytest.approx(1e-4)
    # B such that 2 (40 + B) / (40 + 2 B) = 1.05.
    assert found.saturates_at == 380


@pytest.mark.parametrize(
    ("points", "fixed", "per_row"),
    [
        ([(64, 0.64)], 0.0, 0.01),  # one size says nothing of the two parts
        ([(64, 0.01), (256, 0.01)], 0.01, 0.0),  # a device that is idle
        ([(64, 0.1), (256, 0.8)], 0.0, None),  # slower than in proportion
    ],
)
def test_the_parts_of_a_step_are_not_negative(points, fixed, per_row):
    found = recommend.line_of(points)
    assert found.fixed_seconds == pytest.approx(fixed)
    assert per_row is None or found.seconds_per_row == pytest.approx(per_row)


@pytest.mark.parametrize(
    ("replicas", "most", "batches"),
    [
        (1, 13, [1, 2, 3, 4, 6, 8, 12, 13]),
        (3, 40, [3, 6, 9, 12, 18, 24, 36, 39]),
        (4, 4, [4]),
    ],
)
def test_batches_to_choose_from(replicas, most, batches):
    assert recommend.batches(replicas, most) == batches


def line(fixed, per_row):
    return record.Throughput(fixed, per_row, 1)


@pytest.mark.parametrize(
    ("throughput", "scale", "most", "fastest", "batch"),
    [
        # The fastest is sqrt(100 x 100); so is the noise scale.
        (line(0.01, 1e-4), 100, 4096, 96, 96),
        # sqrt(25 x 400) = 100 is the fastest; 384 takes 35% longer, and a third of the steps.
        (line(0.0025, 1e-4), 400, 4096, 96, 384),
        # No row is cheaper in company: the fewest examples are the fastest, and yet one batch is
        # not as good as another for those who have more devices.
        (line(0.0, 1e-4), 400, 4096, 1, 384),
        # A device that has nothing to do with few rows: more than the noise scale.
        (line(0.4, 1e-4), 100, 4096, 768, 192),
        # Two only: what fits.
        (line(0.01, 1e-4), 100, 32, 32, 32),
    ],
)
def test_recommended(throughput, scale, most, fastest, batch):
    found = recommend.recommend(throughput, record.Noise(scale), 64, 1, most)
    assert (found.fastest, found.global_batch) == (fastest, batch)
    assert found.low <= found.global_batch <= found.high
    times = {b: recommend.seconds_to_target(throughput, scale, b) for b in (found.low, found.high)}
    best = recommend.seconds_to_target(throughput, scale, fastest)
    assert all(best <= time <= 2 * best for time in times.values())


@pytest.mark.parametrize(
    ("throughput", "scale", "most", "held_by", "words"),
    [
        (line(0.01, 1e-4), 100, 4096, "memory", "It is also the batch with the least time"),
        (line(0.01, 1e-4), 100, 32, "memory", "but what fits into memory ends there"),
        (line(0.01, 1e-4), 100, 32, "records", "but the number of records ends there"),
        (line(1e-4, 1e-4), 400, 4096, "memory", "That is the price of 8.7 times fewer steps"),
        (line(0.4, 1e-4), 100, 4096, "memory", "fewer replicas would do"),
    ],
)
def test_the_reason_in_words(throughput, scale, most, held_by, words):
    found = recommend.recommend(throughput, record.Noise(scale), 64, 1, most, held_by)
    assert words in found.reason
    assert f"The gradient noise scale is {scale} examples" in found.reason


def test_without_a_noise_scale_the_batch_stays_as_it_is():
    noise = record.Noise(None, reason="It was not asked for.")
    found = recommend.recommend(record.Throughput(0.004, 1e-4, 380), noise, 64, 2, 4096)
    assert (found.low, found.global_batch, found.high) == (64, 64, 256)
    assert found.reason.startswith("It was not asked for.")


def test_the_record_comes_back_as_it_was(tmp_path):
    rooms = (record.Room("worker:0", "a limit", 3, 4),)
    tuned = record.Tuned(
        *(8, "memory", 2, None),
        (record.Attempt(8, 16, True, 0.5, 10, rooms), record.Attempt(16, 32, False, reason="no")),
        (record.Line("worker:0", "a limit", 1.0, 0.5, 4, 8),),
        record.Throughput(0.1, 0.2, 3),
        record.Noise(7.5, 16, 100, 200, (7.0, 7.5)),
        record.Recommendation(16, 8, 16, 12, "why"),
    )
    assert record.Tuned.read(tuned.write(tmp_path / "new")) == tuned
    assert tuned.largest_global_batch == 16
