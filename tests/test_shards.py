"""`tfdp shards` and `tfdp reshard`, as they are typed."""

import json
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from tfdp import cli
from tfdp.data import plan_report, tfrecord
from tfdp.datasets import digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits.TfdpDigits(data_dir=folder).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    return folder


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch, folder):
    (tmp_path / "digits.py").write_text(
        "from tfdp import config\n"
        "def get_config():\n"
        "    run = config.Config(name='digits')\n"
        f"    run.data.data_dir = {str(folder)!r}\n"
        "    return run\n"
    )
    monkeypatch.chdir(tmp_path)


def tfdp(*words):
    """Carries out a command line in this process: TensorFlow is here already."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


def test_a_plan_as_a_table(capsys):
    assert tfdp("shards", "--config=digits.py", "--workers=2") == 0
    train, test = capsys.readouterr().out.split("\n\n\n")
    told, table = train.split("\n\n")
    assert told.splitlines() == [
        "Input train: policy HINT for 2 pipelines, 3 files, 1,437 records: each pipeline reads all "
        "0.2 MB and keeps every 2nd record, before decoding.",
        "Input train: 23 batches of 32 for each pipeline, every record once, imbalance 1.00.",
        "Input train: not FILE: the largest share of files would be 1.33 times the mean; tfdp "
        "reshard --shards=4 makes even files.",
    ]
    name = "tfdp_digits-train.tfrecord-0000{}-of-00003:{}".format
    assert [line.split() for line in table.splitlines()] == [
        ["worker", "files", "records", "batches", "first", "last", "MB", "read"],
        ["0", "3", "719", "23", name(0, 0), name(2, 478), "0.2"],
        ["1", "3", "718", "23", name(0, 1), name(2, 477), "0.2"],
    ]
    assert test.startswith("Input test: policy HINT for 2 pipelines, 3 files, 360 records: ")
    assert [line.split()[:4] for line in test.splitlines()[-2:]] == [
        ["0", "3", "180", "6"],
        ["1", "3", "180", "6"],
    ]


def test_a_plan_as_json(capsys):
    words = ("--config.data.policy=file", "--workers=1", "--chief", "--json")
    assert tfdp("shards", "--config=digits.py", *words) == 0
    plan = json.loads(capsys.readouterr().out)["train"]
    assert (plan["policy"], plan["steps"], plan["dropped"]) == ("FILE", 30, 0)
    assert [share["files"] for share in plan["shares"]] == [[0, 2], [1]]
    assert [share["records"] for share in plan["shares"]] == [958, 479]
    assert [share["empty"] for share in plan["shares"]] == [0, 15]


@pytest.mark.parametrize(
    ("reading", "steps", "records"),
    # Batches of 64 for each who reads.
    [("coordinator", 23, [1437]), ("shard", 12, [719, 718])],
)
def test_who_reads_for_parameter_servers(reading, steps, records, capsys):
    words = ("--chief", "--workers=2", "--ps=1", f"--config.servers.reading={reading}", "--json")
    assert tfdp("shards", "--config=digits.py", *words) == 0
    plans = json.loads(capsys.readouterr().out)
    assert plans["train"]["steps"] == steps
    assert [share["records"] for share in plans["train"]["shares"]] == records
    assert len(plans["test"]["shares"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--workers=4", "--config.data.policy=file"],
            "tfdp: Policy FILE leaves pipeline 3 without a record: 3 files for 4 pipelines. Use "
            "policy auto, which shards by record then, or rewrite the files: tfdp reshard "
            "--shards=8.\n",
        ),
        (
            ["--workers=3"],
            "tfdp: global_batch_size=64 does not divide over 3 replicas. Use 63 or 66, or change "
            "the workers.\n",
        ),
        (["--workers=0"], "tfdp: Use --workers=1 or more, and --ps=0 or more.\n"),
        (["extra"], "tfdp: 'extra': tfdp shards takes flags only.\n"),
        (
            ["--config.data.tfds_name=mnist"],
            "tfdp: The dataset 'mnist' is not prepared in {folder}. Prepare it there with TFDS, "
            "name its folder with --config.data.data_dir=..., or that of its published files with "
            "--config.data.manual_dir=..., or allow --config.data.download=True.\n",
        ),
        (
            ["--config.data.function=mine:data"],
            "tfdp: config.data.function='mine:data' shards itself: there is no plan to show.\n",
        ),
    ],
)
def test_what_cannot_be_planned(words, message, capsys, folder):
    assert tfdp("shards", "--config=digits.py", *words) == 2
    assert capsys.readouterr().err == message.replace("{folder}", str(folder))


def test_without_a_config(capsys):
    assert tfdp("shards", "--workers=2") == 2
    assert capsys.readouterr().err == (
        "tfdp: No config. Write: tfdp shards --config=configs/digits.py\n"
    )


def test_the_table_marks_what_is_not_known_and_batches_without_a_row():
    from tfdp.data import sharding

    files = [sharding.File("a", None, bytes=10**6), sharding.File("b", None, bytes=10**6)]
    assert plan_report.table(sharding.make(files, 2, 4)) == [
        "worker  files  records  batches  first  last  MB read",
        "     0      1        ?        ?  ?      ?         1.0",
        "     1      1        ?        ?  ?      ?         1.0",
    ]
    files = [sharding.File("a", 4), sharding.File("b", 2)]
    assert plan_report.table(sharding.make(files, 2, 4, policy="FILE")) == [
        "worker  files  records      batches  first  last  MB read",
        "     0      1        4            2  a:0    a:3       0.0",
        "     1      1        2  2 (1 empty)  b:0    b:1       0.0",
    ]


# -- reshard ---------------------------------------------------------------------------------------


def test_reshard_writes_even_files(tmp_path, capsys):
    records = [b"%d" % n for n in range(10)]
    (tmp_path / "a.tfrecord").write_bytes(b"".join(map(tfrecord.frame, records)))
    assert tfdp("reshard", "--input=a.tfrecord", "--output=even", "--shards=4") == 0
    out = "10 records in 4 files: even/even.tfrecord-*-of-00004\n"
    assert capsys.readouterr().out == out
    found = [list(tfrecord.read(str(path))) for path in sorted((tmp_path / "even").iterdir())]
    assert found == [records[0:2], records[2:5], records[5:7], records[7:10]]
    assert (tmp_path / "even").stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777 | 0o055


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output=x", "--shards=4"], "tfdp: --input is missing: tfdp reshard --help.\n"),
        (["--input=*.py", "--output=x", "--shards=0"], "tfdp: --shards=0: use 1 or more.\n"),
        (
            ["--input=*.tfrecord", "--output=x", "--shards=4"],
            "tfdp: '*.tfrecord' matches no file in {here}.\n",
        ),
        (
            ["--input=digits.py", "--output=x", "--shards=4"],
            "tfdp: digits.py: record 0 at byte 0: the file does not begin with a TFRecord. Restore "
            "the file, or let config.data.bad_records=1 or more be skipped.\n",
        ),
    ],
)
def test_what_cannot_be_resharded(words, message, capsys, tmp_path):
    assert tfdp("reshard", *words) == 2
    assert capsys.readouterr().err == message.replace("{here}", str(tmp_path))


def test_reshard_needs_no_tensorflow(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"".join(tfrecord.frame(b"%d" % n) for n in range(10)))
    program = (
        "import sys\n"
        "from tfdp.data import reshard\n"
        "reshard.reshard('a.tfrecord', 'even', 2, 'array_record')\n"
        "reshard.reshard('even/*', 'back', 3, 'tfrecord')\n"
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    found = [r for path in sorted((tmp_path / "back").iterdir()) for r in tfrecord.read(str(path))]
    assert found == [b"%d" % n for n in range(10)]
