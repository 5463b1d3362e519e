"""What the tests of all platforms ask for: clusters of each kind, on a command line's flags."""

import pathlib

from absl import flags

from tfdp.launch.platforms.job import Job
from tfdp.launch.shape import Shape
from tfdp.verbs import launch

ARTEFACTS = pathlib.Path(__file__).with_name("artefacts")
SHAPES = {
    "workers": Shape(2),
    "servers": Shape(2, chief=True, ps=2),
    "evaluator": Shape(2, evaluator=True),
}


def job(shape, **changes):
    """A run whose words and values hold what a shell or YAML would trip over."""
    given = {
        "name": "digits",
        "script": ("train.py", "--name=a b", '--note=it\'s "on"\n$(HOME)'),
        "seed": 7,
        "log_dir": "/shared/runs/a",
        "directory": "/shared/my code",
        "environment": {"LEVEL": "yes", "TOKEN": "s3cret-value"},
        "secrets": frozenset({"TOKEN"}),
        "run": "20260101-120000-1",
        "python": "/venv/bin/python",
        "max_restarts": 3,
    }
    return Job(shape=shape, **{**given, **changes})


def values(*words):
    """The flags of `tfdp launch`, with these words given."""
    made = flags.FlagValues()
    launch.define_cluster(made, workers=1)
    made(["tfdp launch", *words])
    return made
