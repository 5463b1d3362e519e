"""`tfdp.callbacks.GradientNoiseScale`: how large a global batch is worth its rows."""

import logging
from collections.abc import Callable
from typing import Any

import keras

from tfdp.error import Error

_log = logging.getLogger("tfdp")


class GradientNoiseScale(keras.callbacks.Callback):
    """Estimates the gradient noise scale from the gradients of the parts of each batch.

        model.fit(dataset, epochs=3, callbacks=[tfdp.callbacks.GradientNoiseScale()])

    It is the global batch, in examples, up to which more rows in a batch save steps almost in
    proportion: with batch B a training needs about (1 + scale / B) times as many steps as with the
    largest batch, and (1 + B / scale) times as many rows as with the smallest (McCandlish et al.
    2018, "An Empirical Model of Large-Batch Training", https://arxiv.org/abs/1812.06162, eq. 2.11;
    the estimate is that of appendix A.1, for shares of any size). It grows while the loss falls:
    look at its values late in the training.

    The logs of each epoch get `gradient_noise_scale`, and with it the History, a CSVLogger and
    TensorBoard where these come later in the list. Sparse gradients count like others. Numbers are
    those of a loss without its scale, whatever type travels.

    Parts are what each replica has of a batch, and on parameter servers (max_staleness=0) what each
    worker has. One replica alone takes the two halves of its batch: a step that is measured
    computes their gradients beside its own, which leave no trace in what is trained.

    Args:
        every: Steps from one measurement to the next; None: 32, and 128 where one replica takes the
            halves of its batch. A measurement reads all gradients twice: on two CPU workers 32 cost
            less than 1% of a step of 31 ms, and 1 to 5% of one of 8 ms. One replica takes about
            twice as long for a step that is measured.
        smoothing: Weight of the past in the moving averages of |G|^2 and tr(S), from 0 to 1. With 1
            they are means over all steps that were measured.

    Attributes:
        squared_gradient: The estimate of |G|^2, the squared length of the true gradient.
        trace: That of tr(S), the sum of the variances of one example's gradient.
        measured: How many steps were measured.

    Raises:
        Error: For a value that is not allowed; by fit, on parameter servers whose workers do not
            wait for one another, with `Communication(sync_every=...)`, and for a model with a
            train_step of its own.
    """

    def __init__(self, every: int | None = None, smoothing: float = 0.99):
        super().__init__()
        if every is not None and (not isinstance(every, int) or every < 1):
            raise Error(f"GradientNoiseScale(every={every!r}): use a number of steps, 1 or more.")
        if not 0 <= smoothing <= 1:
            raise Error(f"GradientNoiseScale(smoothing={smoothing!r}): use a number from 0 to 1.")
        self._every, self._smoothing = every, float(smoothing)
        self._read: Callable[[], tuple[int, float, float]] | None = None
        self.measured, self.squared_gradient, self.trace = 0, 0.0, 0.0

    @property
    def scale(self) -> float | None:
        """tr(S) / |G|^2 in examples; None while the noise hides the gradient."""
        if self.measured and self.squared_gradient > 0 and self.trace > 0:
            return self.trace / self.squared_gradient
        return None

    def tfdp_measures_noise(
        self, measure: Callable[[int | None, float], Callable[[], tuple[int, float, float]]]
    ) -> None:
        """Ask the steps to measure; fit calls it on every task."""
        self._read = measure(self._every, self._smoothing)

    def on_train_begin(self, logs: Any = None) -> None:
        """Look whether somebody measures."""
        if self._read is None:
            raise Error(
                "GradientNoiseScale needs tfdp's fit: make the model under the scope of a "
                "tfdp.strategy()."
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the scale to the logs, unless nothing can be said yet."""
        assert self._read is not None
        self.measured, self.squared_gradient, self.trace = self._read()
        if self.scale is None:
            _log.info(
                "GradientNoiseScale: after %d measured steps the noise still hides the gradient.",
                self.measured,
            )
        elif logs is not None:
            logs["gradient_noise_scale"] = self.scale
