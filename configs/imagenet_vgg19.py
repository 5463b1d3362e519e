"""VGG-19 with batch normalisation on ImageNet, 224x224 pixels: 90 epochs.

    tfdp train --config=configs/imagenet_vgg19.py --config.data.manual_dir=DIR
    tfdp train --config=configs/imagenet_vgg19.py --config.data.global_batch_size=1024
    tfdp train --config=configs/imagenet_vgg19.py:tiny --workers=2

DIR holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, for which one registers at
image-net.org. On N devices, let the global batch be 32 or more rows for each: the learning rate
follows it, with 5 epochs of warm-up.

The recipe is that of torchvision's reference scripts for its vgg19_bn: SGD with momentum 0.9,
learning rate 0.1 for batches of 256, a tenth of it from the epochs 30 and 60 on, weight decay 1e-4,
here not on biases and normalisation. Its weights reach a top-1 accuracy of 74.2% (72.4% without
normalisation). ImageNet was not at hand: the full run has not been tried. What was tried is `tiny`:
2 epochs of a quarter of the channels on 2,000 made images of 32 pixels in ten classes, to see that
it runs; its accuracy says nothing.
"""

from tfdp import config, recipes


def get_config(variant: str = "") -> config.Config:
    run = recipes.imagenet("imagenet_vgg19", variant)
    run.model.name = "tfdp.models.vgg:vgg19"
    run.model.dropout = 0.5
    run.training.learning_rate = 0.1
    run.training.warmup_epochs = 5.0
    run.training.schedule = "30:0.1, 60:0.01"
    run.training.weight_decay = 1e-4
    run.training.epochs = 90
    if variant == "tiny":
        recipes.tiny(run, epochs=2, width=0.25)
    return run
