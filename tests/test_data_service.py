"""Batches of tf.data service: real servers in this process, records with numbers of their own."""

import collections
import re

import pytest
import tensorflow as tf

from tfdp import config as config_lib
from tfdp.data import inputs, service, source
from tfdp.error import Error

FILES, EACH = 4, 24
COUNT = FILES * EACH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of records, each with a number of its own."""
    made = tmp_path_factory.mktemp("records")
    for number in range(FILES):
        with tf.io.TFRecordWriter(str(made / f"part-{number}.tfrecord")) as writer:
            for at in range(number * EACH, (number + 1) * EACH):
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[at]))
                x = tf.train.Feature(float_list=tf.train.FloatList(value=[at, -at]))
                features = tf.train.Features(feature={"label": label, "x": x})
                writer.write(tf.train.Example(features=features).SerializeToString())
    return made


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A dispatcher and two workers; gives the address."""
    tools = tf.data.experimental.service
    dispatcher = tools.DispatchServer(
        tools.DispatcherConfig(
            work_dir=str(tmp_path_factory.mktemp("dispatcher")), fault_tolerant_mode=True
        )
    )
    address = dispatcher.target.removeprefix("grpc://")
    workers = [tools.WorkerServer(tools.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    yield dispatcher.target
    del workers


@pytest.fixture
def settings(folder, servers, monkeypatch):
    """The part of a config that reads those files."""
    monkeypatch.setenv(service.VARIABLE, servers)

    def make(mode, batch=8, **changes):
        data = config_lib.Data(
            source="tfrecord",
            train_files=str(folder / "*.tfrecord"),
            test_files=str(folder / "part-0.tfrecord"),
            features="x: float32[2], label: int64",
            input="x",
            classes=COUNT,
            global_batch_size=batch,
            service=mode,
        )
        for name, value in changes.items():
            setattr(data, name, value)
        return data

    return make


def read(dataset, batches):
    """Return how often each record comes, and the order; checks that rows belong together."""
    order = []
    for x, y in dataset.take(batches):
        assert x.numpy()[:, 0].tolist() == y.numpy().tolist()
        order += y.numpy().tolist()
    return collections.Counter(order), order


def test_each_record_comes_once_an_epoch(settings):
    data = settings("distributed_epoch")
    opened = source.open_source(data)
    steps = COUNT // 8
    first, order = read(service.training(opened, data), steps)
    assert first == dict.fromkeys(range(COUNT), 1)
    assert order != sorted(order)
    twice, _ = read(service.training(opened, data), 2 * steps)
    assert twice == dict.fromkeys(range(COUNT), 2)


def test_every_data_worker_reads_all_in_an_order_of_its_own(settings):
    data = settings("parallel_epochs")
    opened = source.open_source(data)
    seen, order = read(service.training(opened, data), 2 * COUNT // 8)
    assert seen == dict.fromkeys(range(COUNT), 2)
    # Were both orders one, each record would come again right away.
    places = collections.defaultdict(list)
    for at, number in enumerate(order):
        places[number].append(at)
    assert sum(b - a > 16 for a, b in places.values()) > COUNT // 4


def test_batches_have_the_size_that_was_asked_for(settings):
    data = settings("distributed_epoch", batch=10)  # 96 records on two workers: ends of 8 and 8
    opened = source.open_source(data)
    sizes = {int(tf.shape(y)[0]) for _, y in service.training(opened, data).take(20)}
    assert sizes == {10}


def test_each_of_two_pipelines_hands_its_own_files_over(settings):
    data = settings("distributed_epoch", policy="file")
    opened = source.open_source(data)
    found = []
    for number in range(2):
        context = tf.distribute.InputContext(2, number, 2)
        found.append(read(service.training(opened, data, context), COUNT // 8)[0])
    assert found[0] + found[1] == dict.fromkeys(range(COUNT), 1)


def test_what_fit_gets_has_steps_and_says_how_it_is_read(settings):
    made = inputs.open_inputs(settings("parallel_epochs"), seed=0, epochs=2, pipelines=1)
    assert made.steps == COUNT // 8
    assert made.training.cardinality() == tf.data.INFINITE_CARDINALITY
    assert made.plan_lines == [
        "Input train: tf.data service gives batches in any order; every data worker reads all of "
        "them, in an order of its own.",
        "Input train: a run that is killed cannot go on at its record: none is saved.",
    ]
    # Evaluation is read here, in order.
    assert [int(y[0]) for _, y in made.evaluation] == [0, 8, 16]


def test_without_a_service_the_remedy_is_said(settings, monkeypatch):
    data = settings("distributed_epoch")
    monkeypatch.delenv(service.VARIABLE)
    with pytest.raises(Error) as raised:
        service.training(source.open_source(data), data)
    assert str(raised.value) == (
        "config.data.service='distributed_epoch', and TFDP_DATA_SERVICE names no service. Start "
        "with --data_workers=2, or set TFDP_DATA_SERVICE=grpc://HOST:PORT."
    )


def test_fewer_files_than_workers_are_refused(settings, folder):
    data = settings("distributed_epoch", train_files=str(folder / "part-1.tfrecord"))
    with pytest.raises(Error, match=re.escape("2 workers would share 1 file. Make more files")):
        inputs.open_inputs(data, seed=0, epochs=2, pipelines=2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"order": "global"}, "in no order that several workers could share. Use order='shards', "),
        ({"ledger": "a"}, "and does not tell which records they hold. Leave out the ledger, "),
        ({"bad_records": 3}, "damaged records are skipped by a task alone. Use bad_records=0, "),
        ({"source": "array_record"}, "source 'array_record' is read by Python code, "),
        ({"service": "on"}, "config.data.service='on': use one of off, parallel_epochs, "),
    ],
)
def test_what_the_service_cannot_keep_is_refused(settings, changes, line):
    data = settings("distributed_epoch", **changes)
    with pytest.raises(Error) as raised:
        config_lib.validate(config_lib.Config(data=data))
    assert line in str(raised.value)
