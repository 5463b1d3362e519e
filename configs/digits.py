"""Hand-written digits, 8x8 pixels: a small convolutional network on 1,437 images.

    tfdp train --config=configs/digits.py --workers=2
    tfdp train --config=configs/digits.py --config.strategy=mirrored
    tfdp train --config=configs/digits.py:quick --config.strategy=one_device

Expect a test accuracy of 0.97 or more after 20 epochs, about 15 seconds on one core. `quick`
stops after 3 epochs, at about 0.93.
"""

from tfdp import config


def get_config(variant: str = "") -> config.Config:
    if variant not in ("", "quick"):
        raise ValueError(f"configs/digits.py:{variant}: the variants are: quick.")
    run = config.Config(name="digits")
    run.data.tfds_name = "tfdp_digits"
    run.data.global_batch_size = 64
    run.data.order = "global"  # so little data that every worker can read it all: equal numbers
    run.training.learning_rate = 2e-3
    run.training.epochs = 3 if variant == "quick" else 20
    return run
