"""VGG-19 with batch normalisation on CIFAR-10, 32x32 pixels: 164 epochs.

    tfdp train --config=configs/cifar10_vgg19.py --config.data.manual_dir=DIR
    tfdp train --config=configs/cifar10_vgg19.py --config.data.global_batch_size=512
    tfdp train --config=configs/cifar10_vgg19.py:tiny --workers=2

DIR holds cifar-10-binary.tar.gz as it is published. On N devices, let
the global batch be 128 x N: the learning rate follows it, with 5 epochs of warm-up.

The recipe is that of github.com/bearpaw/pytorch-classification (TRAINING.md): SGD with momentum
0.9, learning rate 0.1 for batches of 128, a tenth of it from the epochs 81 and 122 on, weight decay
5e-4. It reports a test error of 6.66%. Biases and normalisation get no weight
decay here. CIFAR was not at hand: the full run has not been tried. What was tried
is `tiny`: 4 epochs of a quarter of the channels on 2,000 made images in ten classes, to a test
accuracy of 1.0 on two workers, in a minute on two cores.
"""

from tfdp import config, recipes


def get_config(variant: str = "") -> config.Config:
    run = recipes.cifar("cifar10", "cifar10_vgg19", variant)
    run.model.name = "tfdp.models.vgg:vgg19_32"
    run.training.learning_rate = 0.1
    run.training.warmup_epochs = 5.0
    run.training.schedule = "81:0.1, 122:0.01"
    run.training.weight_decay = 5e-4
    run.training.epochs = 164
    if variant == "tiny":
        recipes.tiny(run, epochs=4, width=0.25)
    return run
