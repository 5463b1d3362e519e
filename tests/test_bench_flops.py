"""The operations of a forward pass against counts by hand: 2 for a multiply and an add."""

import keras
import pytest
import tensorflow as tf

from tfdp.bench import flops
from tfdp.compat import layer_calls

L = keras.layers


def count(model):
    given = model.inputs[0]
    spec = tf.TensorSpec((1, *given.shape[1:]), given.dtype)
    return flops.forward(layer_calls.of(model, spec))


def one(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def attention(heads, depth):
    inputs = keras.Input((10, 16))
    return keras.Model(inputs, L.MultiHeadAttention(heads, depth)(inputs, inputs))


# Model, and its operations for one row.
LAYERS = {
    "dense": (lambda: one(L.Dense(7), (5,)), 7 * (2 * 5 + 1)),
    "dense_without_bias": (lambda: one(L.Dense(7, use_bias=False), (3, 5)), 3 * 7 * 2 * 5),
    # 8 x 8 places, 16 filters of 3 x 3 x 4.
    "conv": (
        lambda: one(L.Conv2D(16, 3, padding="same"), (8, 8, 4)),
        64 * 16 * (2 * 9 * 4 + 1),
    ),
    "conv_strided": (
        lambda: one(L.Conv2D(16, 3, strides=2, padding="same", use_bias=False), (8, 8, 4)),
        16 * 16 * 2 * 9 * 4,
    ),
    "conv_groups": (
        lambda: one(L.Conv2D(16, 3, padding="same", groups=2, use_bias=False), (8, 8, 4)),
        64 * 16 * 2 * 9 * 2,
    ),
    "conv_1d": (lambda: one(L.Conv1D(6, 5, use_bias=False), (20, 3)), 16 * 6 * 2 * 5 * 3),
    "conv_3d": (lambda: one(L.Conv3D(2, 2, use_bias=False), (3, 3, 3, 1)), 8 * 2 * 2 * 8),
    "conv_transpose": (
        lambda: one(L.Conv2DTranspose(6, 2, strides=2, use_bias=False), (4, 4, 3)),
        16 * 3 * 6 * 2 * 4,
    ),
    "depthwise": (
        lambda: one(L.DepthwiseConv2D(3, padding="same", use_bias=False), (8, 8, 4)),
        64 * 4 * 2 * 9,
    ),
    "separable": (
        lambda: one(L.SeparableConv2D(16, 3, padding="same", use_bias=False), (8, 8, 4)),
        64 * 4 * 2 * 9 + 64 * 16 * 2 * 4,
    ),
    "batch_normalization": (lambda: one(L.BatchNormalization(), (8, 8, 4)), 2 * 256),
    # Four projections of 10 x 16 to 2 x 4, and back; 2 x 10 x 10 scores of depth 4, twice.
    "attention": (
        lambda: attention(2, 4),
        3 * (10 * 8 * 2 * 16 + 80) + (10 * 16 * 2 * 8 + 160) + 200 * (2 * 4 + 2 * 4 + 3),
    ),
    "einsum": (lambda: one(L.EinsumDense("abc,cd->abd", (None, 6)), (4, 5)), 2 * 4 * 5 * 6),
    "lstm": (lambda: one(L.LSTM(8), (10, 3)), 10 * 4 * 8 * (2 * (3 + 8) + 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_hand(name):
    build, expected = LAYERS[name]
    found = count(build())
    assert found.flops == pytest.approx(expected, rel=0.02)
    assert found.uncounted == ()


def test_a_layer_that_is_called_twice_is_counted_twice():
    dense, inputs = L.Dense(5, use_bias=False), keras.Input((5,))
    model = keras.Model(inputs, dense(dense(inputs)))
    assert count(model).flops == 2 * 50


def test_layers_inside_layers_are_counted_once():
    inner = keras.Sequential([keras.Input((5,)), L.Dense(5, use_bias=False)])
    inputs = keras.Input((5,))
    assert count(keras.Model(inputs, L.Dense(2, use_bias=False)(inner(inputs)))).flops == 50 + 20


class Mine(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.w


def test_what_is_not_known_is_named():
    model = keras.Sequential([keras.Input((5,)), Mine(), L.Dense(1, use_bias=False)])
    assert count(model) == flops.Count(10.0, ("Mine",))


def resnet_50():
    """The variant of 8.2 GFLOP: the stride of a stage is in the 3 x 3 convolution of its first
    block, where Keras's own has it in the 1 x 1 convolution before."""

    def conv(x, filters, size, strides=1, activation=True):
        x = L.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        x = L.BatchNormalization()(x)
        return L.ReLU()(x) if activation else x

    inputs = keras.Input((224, 224, 3))
    x = L.MaxPooling2D(3, 2, padding="same")(conv(inputs, 64, 7, 2))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            short = x if block else conv(x, 4 * width, 1, strides, activation=False)
            y = conv(conv(x, width, 1), width, 3, strides)
            x = L.ReLU()(L.Add()([conv(y, 4 * width, 1, activation=False), short]))
    return keras.Model(inputs, L.Dense(1000)(L.GlobalAveragePooling2D()(x)))


def multiply_adds_of_resnet(strides_in_3x3):
    """Counted by hand: places x channels in x channels out x kernel, of all convolutions."""
    total = 112 * 112 * 3 * 64 * 49
    channels, size = 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            after = size // 2 if stage and not block else size
            first = size if strides_in_3x3 else after
            total += first**2 * channels * width
            total += after**2 * width * width * 9
            total += after**2 * width * 4 * width
            if not block:
                total += after**2 * channels * 4 * width
            channels, size = 4 * width, after
    return total + 2048 * 1000


def test_resnet_50():
    assert 2 * multiply_adds_of_resnet(True) == pytest.approx(8.2e9, rel=0.01)
    assert count(resnet_50()).flops == pytest.approx(8.2e9, rel=0.02)
    keras_own = keras.applications.ResNet50(weights=None)
    by_hand = 2 * multiply_adds_of_resnet(False)
    assert count(keras_own).flops == pytest.approx(by_hand, rel=0.02)


def test_vgg_19():
    # By hand: 19.6 billion multiplies and adds, of which 124 million in the dense layers.
    channels, total, size = 3, 0, 224
    for filters, layers in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(layers):
            total += size**2 * channels * filters * 9
            channels = filters
        size //= 2
    total += 7 * 7 * 512 * 4096 + 4096 * 4096 + 4096 * 1000
    assert total == pytest.approx(19.6e9, rel=0.005)
    found = count(keras.applications.VGG19(weights=None))
    assert found.flops == pytest.approx(2 * total, rel=0.02)
