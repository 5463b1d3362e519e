"""Losses where Keras has none.

model.compile(loss=tfdp.losses.SmoothedCrossentropy(0.1))
"""

from typing import Any

import keras
from keras import ops

from tfdp.error import Error


@keras.saving.register_keras_serializable(package="tfdp")
class SmoothedCrossentropy(keras.losses.Loss):
    """The cross entropy of labels that are whole numbers, with label smoothing.

    keras.losses.CategoricalCrossentropy smooths too, but takes labels as vectors of 0 and 1.

    Args:
        label_smoothing: The share of a label's weight that all classes get alike (Szegedy et al.
            2015, https://arxiv.org/abs/1512.00567, section 7), from 0 up to below 1.
        name: Of the loss.
        **kwargs: As keras.losses.Loss (reduction, dtype).

    Raises:
        Error: For another number.
    """

    def __init__(
        self, label_smoothing: float, name: str = "smoothed_crossentropy", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise Error(f"label_smoothing={label_smoothing!r}: use a number from 0 up to below 1.")
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each row.

        Args:
            y_true: Labels, of shape (rows,) or (rows, 1).
            y_pred: Probabilities, of shape (rows, classes).
        """
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        targets = ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(
            targets, y_pred, label_smoothing=self.label_smoothing
        )

    def get_config(self) -> dict[str, Any]:
        """Return what makes a loss like this one."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
