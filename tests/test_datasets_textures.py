import numpy as np

from tfdp.datasets import textures


def test_a_split_is_the_same_each_time_and_holds_each_class_alike():
    first, again = (dict(textures._records("test")) for _ in range(2))
    assert len(first) == 500
    labels = [record["label"] for record in first.values()]
    assert [labels.count(label) for label in range(10)] == [50] * 10
    for number in first:
        np.testing.assert_array_equal(first[number]["image"], again[number]["image"])
    image = first[0]["image"]
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    train = next(textures._records("train"))[1]["image"]
    assert not np.array_equal(image, train)


def test_rows_and_columns_are_what_they_say():
    random = np.random.default_rng(3)
    for label, along in ((0, 1), (1, 1), (2, 0), (3, 0)):
        image = textures.image(label, random).astype(float)
        # Along a stripe there is nothing but noise.
        assert image.std(axis=along).mean() < 20 < image.std(axis=1 - along).mean()
    assert textures.LABELS[:3] == ("coarse rows", "fine rows", "coarse columns")
