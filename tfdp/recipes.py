"""What the configs of published image recipes have in common: data, augmentation, and `tiny`.

run = recipes.cifar("cifar10", "cifar10_vgg19", variant="")
run.model.name, run.training.learning_rate = "tfdp.models.vgg:vgg19_32", 0.1
"""

from tfdp import config
from tfdp.error import Error

# Made images that tfdp prepares itself: what `tiny` trains on.
_TEXTURES = "tfdp_textures"


def cifar(dataset: str, name: str, variant: str) -> config.Config:
    """Return the config of a run on 32x32 images: 4 pixels of padding, a crop, a flip.

    Args:
        dataset: "cifar10" or "cifar100".
        name: Of the run; its config is configs/NAME.py.
        variant: "", or "tiny" for a run of a minute on made images.

    Raises:
        Error: For another variant.
    """
    run = _config(name, variant)
    run.data.tfds_name = dataset if not variant else _TEXTURES
    run.data.augment = "pad_crop_flip"
    run.data.global_batch_size = run.training.base_batch_size = 128
    run.data.shuffle_buffer = 50_000
    return run


def imagenet(name: str, variant: str) -> config.Config:
    """Return the config of a run on ImageNet at 224 pixels: a random part, resized, and a flip.

    Args:
        name: Of the run; its config is configs/NAME.py.
        variant: "", or "tiny" for a run of a minute on made images.

    Raises:
        Error: For another variant.
    """
    run = _config(name, variant)
    run.data.augment, run.data.resize = "crop_flip", "center"
    run.data.global_batch_size = run.training.base_batch_size = 256
    run.data.shuffle_buffer = 16_384
    if variant:
        run.data.tfds_name, run.data.image_size = _TEXTURES, "32x32"
    else:
        run.data.tfds_name, run.data.test_split = "imagenet2012:5.1.0", "validation"
        run.data.image_size = "224x224"
    return run


def tiny(run: config.Config, epochs: int, width: float) -> None:
    """Make a run small: steps of 32 records, few epochs, a narrow network of the same depth.

    The learning rate stays that of the recipe: there is no base batch for so few steps.
    """
    run.data.global_batch_size, run.training.base_batch_size = 32, 0
    run.training.epochs, run.training.warmup_epochs = epochs, 1.0
    run.training.schedule = "cosine"
    run.model.width = width


def _config(name: str, variant: str) -> config.Config:
    if variant not in ("", "tiny"):
        raise Error(f"configs/{name}.py:{variant}: the variants are: tiny.")
    run = config.Config(name=name)
    run.training.optimizer = "sgd"
    return run
