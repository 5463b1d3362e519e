"""Optimizers for large batches, as they were published: SGD, LARS and LAMB.

    optimizer = tfdp.optimizers.LARS(10.0, weight_decay=1e-4)
    optimizer = tfdp.optimizers.LAMB(tfdp.schedules.Warmup(0.01, 500), weight_decay=0.01)

They are Keras optimizers: every strategy trains with them, and they are saved with a model. To load
such a model, import this module first. In all three the weight decay is part of the gradient or of
the update, as the papers write it. The `weight_decay` of Keras's own optimizers is another one: it
makes the weights smaller beside the update, and momentum does not see it.
"""

from tfdp.optimizers.lamb import LAMB
from tfdp.optimizers.lars import LARS
from tfdp.optimizers.sgd import SGD

__all__ = ["LAMB", "LARS", "SGD"]
