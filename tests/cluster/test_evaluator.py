"""The evaluator runs the same script: it evaluates each checkpoint once and ends by itself."""

import csv
import pathlib
import re

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

DIGITS = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")
SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "evaluated.py")


@pytest.mark.exhaustive  # that of a config does, too
def test_the_evaluator_sees_each_checkpoint_once(tmp_path, environment):
    words = ["launch", "--chief", "--workers=1", "--ps=1", "--evaluator", "--log_dir=logs"]
    done = processes.run([*words, "--", SCRIPT], tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {
        task: (tmp_path / "logs" / f"{task}-0.log").read_text() for task in ("chief", "evaluator")
    }
    losses = {
        task: [line for line in log.splitlines() if line.startswith("losses")]
        for task, log in logs.items()
    }
    # What the chief has validated at the end of each epoch, in the same order.
    evaluated, validated = (
        [float(n) for n in losses[t][0].split()[1:]] for t in ("evaluator", "chief")
    )
    assert evaluated == pytest.approx(validated, rel=1e-5)
    assert len(validated) == 4
    assert list((tmp_path / "board" / "evaluator").glob("events.out.tfevents.*"))
    assert "was ended" not in done.stderr


def test_a_run_from_a_config_leaves_checkpoints_for_its_evaluator(tmp_path, environment):
    import tensorflow as tf

    words = ["train", f"--config={DIGITS}:quick", "--config.run_dir=run"]
    words += ["--chief", "--workers=1", "--ps=1", "--evaluator"]
    done = processes.run(words, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was ended" not in done.stderr
    run = tmp_path / "run"

    # Each epoch's once, in their order; the last is what the chief tests at the end.
    told = (run / "logs" / "evaluator-0.log").read_text()
    values = re.findall(
        r"^tfdp: run/checkpoints/(\S+): accuracy (\S+), loss (\S+)$", told, re.MULTILINE
    )
    names = [f"{epoch:04d}.weights.h5" for epoch in (1, 2, 3)]
    assert [name for name, _, _ in values] == names
    assert f"Test accuracy: {values[-1][1]}" in done.stdout.splitlines()
    assert not re.search("Traceback|Warning", told)

    # They stand where the epochs of the training stand.
    (events,) = (run / "tensorboard" / "evaluator").iterdir()
    shown = {
        (value.tag, event.step): f"{float(tf.make_ndarray(value.tensor)):.4f}"
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert shown == {
        (f"epoch_{name}", step): value
        for step, (_, accuracy, loss) in enumerate(values)
        for name, value in (("accuracy", accuracy), ("loss", loss))
    }

    # The training writes as without an evaluator, but does not validate.
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoints", "command.json", "complete", "export", "history.csv", "logs"),
        *("model.keras", "run.json", "tensorboard"),
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        *(".training_ended", *names)
    ]
    assert [path.name for path in (run / "export" / "digits").iterdir()] == ["1"]
    assert sorted(path.name for path in (run / "tensorboard").iterdir()) == ["evaluator", "train"]
    with open(run / "history.csv") as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 3
    assert {epoch["val_loss"] for epoch in epochs} == {"NA"}
