import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdp.error import Error
from tfdp.serving import request_inputs

GRAY = tf.TensorSpec((None, 4, 6, 1), tf.uint8, name="image")
COLOR = tf.TensorSpec((None, 4, 6, 3), tf.float32, name="image")
PIXELS = np.arange(24, dtype="uint8").reshape(4, 6) * 10


def packed(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_images_are_decoded_and_resized():
    decode = tf.function(request_inputs.images([GRAY]))
    large = np.kron(PIXELS, np.ones((3, 3), "uint8"))
    (found,) = decode(tf.constant([packed(PIXELS), packed(large)]))
    assert (found.shape, found.dtype) == ((2, 4, 6, 1), tf.uint8)
    np.testing.assert_array_equal(found[0, :, :, 0], PIXELS)
    # An average over each pixel's neighbourhood: within a step of the pattern.
    assert np.abs(found[1, :, :, 0].numpy().astype(int) - PIXELS).max() <= 15


def test_pixels_keep_their_range_in_float():
    (found,) = request_inputs.images([COLOR])(
        tf.constant([packed(np.full((4, 6, 3), 200, "uint8"))])
    )
    assert (found.dtype, float(found[0, 0, 0, 0])) == (tf.float32, 200.0)


def test_examples():
    specs = [
        GRAY,
        tf.TensorSpec((None, 2), tf.float32, name="x"),
        tf.TensorSpec((None,), tf.int32, name="n"),
        tf.TensorSpec((None,), tf.bool, name="on"),
        tf.TensorSpec((None, 1), tf.string, name="word"),
    ]
    example = tf.train.Example()
    feature = example.features.feature
    feature["x"].float_list.value.extend([1.5, 2.5])
    feature["n"].int64_list.value.append(7)
    feature["on"].int64_list.value.append(1)
    feature["word"].bytes_list.value.append(b"cat")
    rows = []
    for image in (packed(PIXELS), PIXELS.tobytes()):  # encoded, and raw
        feature["image"].bytes_list.value[:] = [image]
        rows.append(example.SerializeToString())
    image, x, n, on, word = tf.function(request_inputs.examples(specs))(tf.constant(rows))
    np.testing.assert_array_equal(image[..., 0], [PIXELS, PIXELS])
    assert x.numpy().tolist() == [[1.5, 2.5]] * 2
    assert (n.dtype, n.numpy().tolist()) == (tf.int32, [7, 7])
    assert (on.dtype, on.numpy().tolist()) == (tf.bool, [True, True])
    assert word.numpy().tolist() == [[b"cat"], [b"cat"]]
    # What a warm-up request holds can be parsed as well.
    zeros = request_inputs.examples(specs)(tf.constant([request_inputs.sample_example(specs)]))
    assert [tensor.shape[0] for tensor in zeros] == [1] * 5


def test_an_encoded_image_as_long_as_the_raw_pixels_is_decoded():
    png = packed(PIXELS[:1, :1])
    spec = tf.TensorSpec((None, 1, len(png), 1), tf.uint8, name="image")
    example = tf.train.Example()
    example.features.feature["image"].bytes_list.value.append(png)
    (found,) = request_inputs.examples([spec])(tf.constant([example.SerializeToString()]))
    assert set(found.numpy().ravel().tolist()) == {int(PIXELS[0, 0])}


@pytest.mark.parametrize(
    ("make", "specs", "line"),
    [
        (
            request_inputs.images,
            [tf.TensorSpec((None, 8), tf.float32, name="x")],
            "config.export.second_signature='images' needs a model with one input, images of one "
            "size with 1, 3 or 4 channels, but this one takes x: float32 (None, 8). Use 'none'.",
        ),
        (
            request_inputs.examples,
            [tf.TensorSpec((None, None), tf.int32, name="words")],
            "config.export.second_signature='examples' needs inputs of fixed size, but this model "
            "takes words: int32 (None, None). Use 'none'.",
        ),
    ],
)
def test_inputs_that_have_no_encoded_form(make, specs, line):
    with pytest.raises(Error) as raised:
        make(specs)
    assert str(raised.value) == line
