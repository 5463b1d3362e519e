"""The bench on two workers: what it measures, and that the training after it is the same."""

import json
import pathlib

import jsonschema
import pytest

from cluster import processes
from tfdp.bench.record import Record
from tfdp.bench.settings import VARIABLE, Settings

pytestmark = pytest.mark.cluster

SCRIPTS = pathlib.Path(__file__).with_name("scripts")
ROOT = pathlib.Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "bench.schema.json").read_text())


def test_a_training_after_the_bench_is_equal_bit_for_bit(tmp_path, drawing):
    script = str(SCRIPTS / "benched.py")
    told = {}
    # As --bench=continue sets it, but for the times it measures.
    bench = Settings(str(tmp_path / "with-logs"), "continue", rounds=2, seconds=0.1)
    for name, more in (("without", {}), ("with", {VARIABLE: bench.to_text()})):
        words = ["launch", "--workers=2", f"--log_dir={name}-logs", "--", script, name]
        done = processes.run(words, tmp_path, {**drawing, **more}, seconds=180)
        assert done.returncode == 0, done.stderr
        told[name] = done.stdout
    for task in "01":
        texts = [(tmp_path / name / f"{task}.json").read_text() for name in ("without", "with")]
        assert texts[0] == texts[1]
    assert "Where the time goes" not in told["without"]
    assert told["with"].count("Where the time goes") == 2
    for path, implementation in (("with-logs", "gloo"), ("with/ring", "ring")):
        found = Record.read(tmp_path / path / "bench.json")
        jsonschema.validate(json.loads(found.to_json()), SCHEMA)
        assert found.implementation == implementation
        assert [worker.name for worker in found.workers] == ["worker:0", "worker:1"]
        assert found.replicas == 2
        assert found.global_batch_examples == 16
        assert found.half_batch_examples == 8
        # 6 x 16 + 16, 2 x 16, 16 x 2 + 2 numbers of float32, and perhaps the rows.
        assert found.gradient_bytes in (4 * 178, 4 * 179)
        assert found.exchange_seconds.median_seconds > 0
        assert [one.bytes for one in found.link.measured][:3] == [4096, 16384, 65536]
        assert (tmp_path / path / "bandwidth.svg").is_file()


def test_the_bench_of_a_config_ends_with_its_report(tmp_path, environment):
    # One process: on two workers the test above measures.
    words = ["bench", f"--config={ROOT / 'configs' / 'digits.py'}", "--config.run_dir=run"]
    words += ["--config.strategy=one_device", "--json"]
    done = processes.run(words, tmp_path, environment, seconds=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["verdict"] in ("input", "training")
    assert "Where the time goes" in done.stderr
    assert Record.read(tmp_path / "run" / "bench.json") == Record.from_json(done.stdout)
    assert not (tmp_path / "run" / "model.keras").exists()
    assert list((tmp_path / "run" / "tensorboard" / "bench").glob("events*"))
