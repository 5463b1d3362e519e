import pytest

from tfdp import batching


@pytest.mark.parametrize(
    ("rows", "parts", "sizes"),
    [
        (8, 1, (8,)),
        (8, 2, (4, 4)),
        (7, 2, (3, 4)),
        (10, 4, (2, 3, 2, 3)),
        (2, 4, (0, 1, 0, 1)),
        (0, 3, (0, 0, 0)),
    ],
)
def test_split(rows, parts, sizes):
    assert batching.split(rows, parts) == sizes


def test_split_is_balanced_and_whole():
    for rows in range(50):
        for parts in range(1, 20):
            sizes = batching.split(rows, parts)
            assert (len(sizes), sum(sizes)) == (parts, rows)
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("rows", "parts", "message"),
    [
        (-1, 2, "rows=-1 is not a whole number from 0 up. Use one."),
        (1.0, 2, "rows=1.0 is not a whole number from 0 up. Use one."),
        (1, 0, "parts=0 is not a whole number from 1 up. Use one."),
        (True, 1, "rows=True is not a whole number from 0 up. Use one."),
    ],
)
def test_split_refuses(rows, parts, message):
    with pytest.raises(ValueError) as raised:
        batching.split(rows, parts)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("global_batch_size", "workers", "replicas", "per_worker", "per_replica", "text"),
    [
        (512, 2, 4, 256, 64, "Global batch 512 = 2 workers x 4 replicas x 64 per replica."),
        (96, 3, 1, 32, 32, "Global batch 96 = 3 workers x 1 replica x 32 per replica."),
        (64, 1, 1, 64, 64, "Global batch 64 = 1 worker x 1 replica x 64 per replica."),
        (8, 2, 4, 4, 1, "Global batch 8 = 2 workers x 4 replicas x 1 per replica."),
    ],
)
def test_batch(global_batch_size, workers, replicas, per_worker, per_replica, text):
    batch = batching.Batch(global_batch_size, workers, replicas)
    assert batch.per_worker == per_worker
    assert batch.per_replica == per_replica
    assert batch.replicas == workers * replicas
    assert str(batch) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (100, 2, 4),
            "global_batch_size=100 does not divide over 8 replicas. "
            "Use 96 or 104, or change the workers.",
        ),
        (
            (5, 2, 4),
            "global_batch_size=5 does not divide over 8 replicas. Use 8, or change the workers.",
        ),
        ((0, 1, 1), "global_batch_size=0 is not a whole number from 1 up. Use one."),
        ((-8, 1, 1), "global_batch_size=-8 is not a whole number from 1 up. Use one."),
        ((8.0, 1, 1), "global_batch_size=8.0 is not a whole number from 1 up. Use one."),
        (("8", 1, 1), "global_batch_size='8' is not a whole number from 1 up. Use one."),
        ((8, 0, 1), "workers=0 is not a whole number from 1 up. Use one."),
        ((8, 1, None), "replicas_per_worker=None is not a whole number from 1 up. Use one."),
    ],
)
def test_batch_refuses(arguments, message):
    with pytest.raises(ValueError) as raised:
        batching.Batch(*arguments)
    assert str(raised.value) == message


def test_batch_is_frozen():
    with pytest.raises(AttributeError):
        batching.Batch(8, 1, 1).workers = 2
