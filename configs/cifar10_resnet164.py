"""ResNet-164 (pre-activation bottlenecks) on CIFAR-10, 32x32 pixels: 164 epochs.

    tfdp train --config=configs/cifar10_resnet164.py --config.data.manual_dir=DIR
    tfdp train --config=configs/cifar10_resnet164.py --config.data.global_batch_size=512
    tfdp train --config=configs/cifar10_resnet164.py:tiny --workers=2

DIR holds cifar-10-binary.tar.gz as it is published. On N devices, let
the global batch be 128 x N: the learning rate follows it, with 5 epochs of warm-up.

The recipe is that of He et al. 2016 (https://arxiv.org/abs/1603.05027): SGD with momentum 0.9,
learning rate 0.1 for batches of 128, 0.01 in the first 400 steps, a tenth of it from the steps
32,000 and 48,000 on, 64,000 steps, weight decay 1e-4. The paper reports a test error of
5.46%, the median of five runs. An epoch has 391 steps, so the steps are written in epochs
here. Biases and normalisation get no weight decay here. CIFAR was not at hand: the full run has
not been tried. What was tried is `tiny`: 2 epochs of a quarter of the channels on 2,000 made images
in ten classes, to a test accuracy of 1.0 on two workers, in a few minutes on two cores, most of
them for the graph of 164 layers.
"""

from tfdp import config, recipes

STEPS_PER_EPOCH = 391  # of 50,000 records in batches of 128


def get_config(variant: str = "") -> config.Config:
    run = recipes.cifar("cifar10", "cifar10_resnet164", variant)
    run.model.name = "tfdp.models.resnet:resnet164"
    run.training.learning_rate = 0.1
    run.training.warmup_epochs = 5.0
    changes = {0: 0.1, 400: 1.0, 32_000: 0.1, 48_000: 0.01}
    run.training.schedule = ", ".join(
        f"{step / STEPS_PER_EPOCH:.6g}:{factor:g}" for step, factor in changes.items()
    )
    run.training.weight_decay = 1e-4
    run.training.epochs = 164
    if variant == "tiny":
        recipes.tiny(run, epochs=2, width=0.25)
    return run
