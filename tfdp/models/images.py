"""Models for images."""

import keras


def convnet(
    input_shape: tuple[int, ...], classes: int, *, pixel_max: float = 255.0, dropout: float = 0.25
) -> keras.Model:
    """Return a small convolutional network: two convolutions, one hidden layer."""
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image", dtype="uint8"),
            keras.layers.Rescaling(1.0 / pixel_max),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(dropout),
            # Probabilities in float32, whatever the precision of the rest.
            keras.layers.Dense(
                classes, activation="softmax", dtype="float32", name="probabilities"
            ),
        ],
        name="convnet",
    )
