"""What a step lacks is found out while it is traced: prepare it, and trace again.

    result = until_traced(lambda: function(iterator), strategy, forget)

A trace runs nothing, so it can be thrown away: no batch was taken, no variable changed.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

T = TypeVar("T")


class Retrace(BaseException):
    """Raised while a step is traced.

    It is no error: what catches every Exception (a layer of Keras, which makes another one of each
    that passes it, or code of the user) lets it through.

    Attributes:
        prepare: Makes what the step needs; called outside of the trace, in the strategy's scope.
    """

    def __init__(self, prepare: Callable[[], Any]):
        super().__init__(prepare)
        self.prepare = prepare


def until_traced(
    call: Callable[[], T], strategy: tf.distribute.Strategy, forget: Callable[[], Any]
) -> T:
    """Return what `call` returns, after as many traces as it takes.

    Args:
        call: Traces a step, and may run it.
        strategy: In its scope things are prepared.
        forget: Called before the next trace: throws away what was traced without them.
    """
    while True:
        try:
            return call()
        except Retrace as again:
            with strategy.scope():
                again.prepare()
        forget()
