"""Models that recommend: tables of vectors, one for each user and item."""

from typing import Any

import keras

from tfdp import layers


def two_towers(users: int = 3_000, items: int = 1_000, width: int = 8) -> keras.Model:
    """Return a compiled model of clicks: a user's vector times an item's, and a bias for each.

    Args:
        users: Number of users; the input "user" holds their ids, one a row.
        items: Number of items; the input "item".
        width: Of the vectors.
    """
    inputs = {
        "user": keras.Input((), dtype="int64", name="user"),
        "item": keras.Input((), dtype="int64", name="item"),
    }

    def tower(name: str, rows: int) -> tuple[Any, Any]:
        start = keras.initializers.RandomNormal(0.0, 0.3)
        vector = layers.Embedding(rows, width, embeddings_initializer=start, name=f"{name}_vectors")
        bias = layers.Embedding(rows, 1, embeddings_initializer="zeros", name=f"{name}_biases")
        return vector(inputs[name]), bias(inputs[name])

    (user, user_bias), (item, item_bias) = tower("user", users), tower("item", items)
    product = keras.layers.Dot(axes=1, name="product")([user, item])
    score = keras.layers.Add(name="score")([product, user_bias, item_bias])
    clicked = keras.layers.Activation("sigmoid", dtype="float32", name="clicked")(score)
    model = keras.Model(inputs, clicked, name="two_towers")
    model.compile(
        # It leaves rows without gradient as they are: a step costs what its rows cost. Gradients
        # are means over a batch: the usual first value of 0.1 would outweigh them for ever.
        keras.optimizers.Adagrad(0.1, initial_accumulator_value=1e-7),
        "binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    return model
