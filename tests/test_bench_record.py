"""bench.json: what is written is read again, and the schema in docs/ describes it."""

import dataclasses
import json
import pathlib
import types
import typing

import jsonschema
import pytest

from tfdp.bench import figure, record, report
from tfdp.error import Error

SCHEMA = pathlib.Path(__file__).parents[1] / "docs" / "bench.schema.json"


def timing(seconds):
    return record.Timing.of([seconds, seconds * 0.9, seconds * 1.1, seconds, seconds])


def made(**changes):
    """Return a record of two workers that wait for their input."""
    workers = tuple(
        record.Worker(
            name, f"host{i}", "A processor", 4, timing(0.079), timing(0.019), 700_000_000, 0
        )
        for i, name in enumerate(("worker:0", "worker:1"))
    )
    one = record.Record(
        verdict="input",
        verdict_text="input-bound: the input gives 400 of the 1,600 examples/s.",
        shares={"input": 0.75, "training": 0.2375, "synchronisation": 0.0125, "straggler": 0.0},
        notes=("A note.",),
        remedies=(record.Remedy("cache", "Cache what is decoded.", 3.9, 0.0205),),
        trial=record.Trial("cache", 3.9, 3.7, timing(0.08), timing(0.0216), True),
        strategy="MultiWorkerMirroredStrategy",
        replicas=2,
        global_batch_examples=32,
        half_batch_examples=16,
        steps_per_execution=1,
        implementation="gloo",
        compression="none",
        pack_bytes=(4000, 300),
        trainable_bytes=4300,
        real_seconds=timing(0.080),
        kept_seconds=timing(0.020),
        half_alone_seconds=timing(0.012),
        exchange_seconds=timing(0.001),
        data_wait=0.74,
        workers=workers,
        stages=(record.Stage("Map", 0.02, 1, "slow", "train.py:12"),),
        link=record.Link(1e-4, 1e9, 1e9, (record.Exchange(4096, 1e-4),)),
        compute=record.Compute(1e6, ("Mine",), 1.2e9, 0.0, ""),
        versions={"tfdp": "0.1.0"},
    )
    return dataclasses.replace(one, **changes)


ALONE = {
    "trial": None,
    "half_alone_seconds": None,
    "exchange_seconds": None,
    "link": None,
    "pack_bytes": (),
    "remedies": (),
    "stages": (),
}


@pytest.mark.parametrize("changes", [{}, ALONE])
def test_a_record_is_read_as_it_was_written(tmp_path, changes):
    path = tmp_path / "run" / "bench.json"
    made(**changes).write(path)
    assert record.Record.read(path) == made(**changes)
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]
    jsonschema.validate(json.loads(path.read_text()), json.loads(SCHEMA.read_text()))


def schema():
    """Return the JSON schema of bench.json: what docs/bench.schema.json holds."""
    definitions = {}
    described(record.Record, definitions)
    properties = definitions.pop("Record")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bench.json",
        "description": "What the bench of one training has measured. Units stand in the names.",
        **properties,
        "$defs": definitions,
    }


def described(kind, definitions):
    """Return the schema of a type; those of dataclasses go into `definitions`."""
    if dataclasses.is_dataclass(kind):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}
            hints = typing.get_type_hints(kind)
            fields = {
                f.name: described(hints[f.name], definitions) for f in dataclasses.fields(kind)
            }
            if name == "Record":
                fields["verdict"] = {"enum": list(record.VERDICTS)}
                fields["schema_version"] = {"const": record.SCHEMA_VERSION}
            definitions[name] = {
                "type": "object",
                "description": (kind.__doc__ or "").split("\n\n")[0],
                "properties": fields,
                "required": list(fields),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return {"anyOf": [described(one, definitions) for one in arguments]}
    if origin is tuple:
        return {"type": "array", "items": described(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": described(arguments[1], definitions)}
    names = {str: "string", float: "number", int: "integer", bool: "boolean", type(None): "null"}
    return {"type": names[kind]}


def test_the_schema_in_the_documentation_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(schema())), (
        "docs/bench.schema.json is old: write json.dumps(schema(), indent=1) to it"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "weather"},
        {"replicas": "two"},
        {"surprise": 1},
        {"schema_version": 2},
    ],
)
def test_the_schema_refuses_what_is_no_record(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {**json.loads(made().to_json()), **change}, json.loads(SCHEMA.read_text())
        )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file or directory. Measure first: tfdp launch --bench -- SCRIPT.py"),
        ("{", "is no bench.json"),
        ("[]", "its schema_version is None, and this tfdp reads 1"),
        ('{"schema_version": 2}', "its schema_version is 2, and this tfdp reads 1"),
        ('{"schema_version": 1}', "compression is missing"),
    ],
)
def test_other_files_are_refused_by_one_line(tmp_path, text, told):
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Error) as error:
        record.Record.read(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("replicas", "two", "replicas is 'two'"),
        ("replicas", 2.5, "replicas is 2.5"),
        ("real_seconds", 3, "real_seconds. is no object"),
        ("surprise", 1, "surprise is unknown"),
    ],
)
def test_wrong_values_are_named(name, value, told):
    found = json.loads(made().to_json())
    found[name] = value
    with pytest.raises(ValueError, match=told):
        record.Record.from_json(json.dumps(found))


def test_the_quartiles_of_the_rounds():
    found = record.Timing.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.low_seconds, found.median_seconds, found.high_seconds) == (1.5, 3.0, 4.5)
    assert found.rounds_seconds == (5.0, 1.0, 4.0, 2.0, 3.0)
    assert record.Timing.of([2.0]) == record.Timing(2.0, 2.0, 2.0, (2.0,))


def test_the_report_tells_what_was_measured():
    text = report.text(made())
    for part in (
        "input-bound: the input gives 400 of the 1,600 examples/s.",
        "400 examples/s",
        "worker:1 on host1",
        "Slowest stage of the input: Map (slow, train.py:12), 20 ms a batch, 1 at a time.",
        "3.90 x   Cache what is decoded.",
        "predicted 3.90 x, measured 3.70 x",
        "0.001 GFLOP forward per example, 1.2 GFLOP/s of training; not counted: Mine.",
        "4.3 kB of gradients in 2 packs, gloo",
    ):
        assert part in text, text
    assert "withdrawn" not in text
    trial = dataclasses.replace(made().trial, measured_gain=2.0, holds=False)
    assert "is withdrawn" in report.text(made(trial=trial))
    alone = report.text(made(**ALONE))
    assert "Synchronisation (" not in alone
    assert "Nothing that was tried gains 2% or more." in alone


def test_the_arrows_are_to_scale():
    # 32 rows in 79, 19, 1 and 80 ms: 405, 1,684, 32,000 and 400 examples/s.
    arrows = figure.arrows(made())
    assert [round(arrow.examples_per_second) for arrow in arrows] == [405, 1684, 32000, 400]
    # The widest that is drawn is 12 times the narrowest.
    assert [arrow.is_cut for arrow in arrows] == [False, False, True, False]
    assert arrows[0].width == pytest.approx(405.06 / 4800, rel=1e-3)
    assert arrows[1].width / arrows[0].width == pytest.approx(79 / 19)
    assert arrows[2].width == 1.0
    assert len(figure.arrows(made(**ALONE))) == 3


def test_the_figure_is_written_for_light_and_dark_pages(tmp_path):
    paths = figure.write(made(), tmp_path)
    names = ["bandwidth.svg", "bandwidth.png", "bandwidth-dark.svg", "bandwidth-dark.png"]
    assert [path.name for path in paths] == names
    assert all(path.stat().st_size > 5000 for path in paths)
    assert paths[0].read_text() != paths[2].read_text()
