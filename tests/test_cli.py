import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tfdp import cli
from tfdp.launch import platforms

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")
SLOW = ("tensorflow", "keras", "numpy", "tensorflow_datasets")

# Calls tfdp.cli.main for each [argv, environment] on stdin, and tells how each ended.
CALLS = f"""
import contextlib, io, json, os, sys
from tfdp import cli
results = []
for argv, environment in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    os.environ.update(environment)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(argv)
            code = "returned"
        except SystemExit as exit:
            code = exit.code
        except BaseException as error:
            code = repr(error)
    for name in environment:
        del os.environ[name]
    sys.modules.pop("config_config", None)  # where ml_collections keeps what it has read
    slow = [name for name in {SLOW} if name in sys.modules]
    results.append([code, out.getvalue(), err.getvalue(), slow])
print(json.dumps(results))
"""

FILES = {
    "script.py": "print('this script ran')\n",
    "empty.py": "",
    "a_dict.py": "def get_config(): return {'seed': 1}\n",
    "imports.py": "import os\nimport no_such_module\n",
    "syntax.py": "x = 1\ndef get_config(:\n",
    "fails.py": "def get_config():\n    return {}['seed']\n",
    "reads.py": "def get_config():\n    return open('no_such_file')\n",
    "nothing.py": "def get_config(): pass\n",
    "without_data.py": (
        "from tfdp import config\n"
        "def get_config():\n"
        "    run = config.Config()\n"
        "    run.data = None\n"
        "    return run\n"
    ),
}

TASK = {
    "TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}'
}
SERVED = {
    "TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:2"], "ps": ["c:3"]}, '
    '"task": {"type": "chief", "index": 0}}'
}

VERBS = "train, launch, bench, tune-batch, doctor, shards, reshard, export, predict"

# What is typed after "tfdp" (DIGITS stands for configs/digits.py), and the lines of the answer.
MISTAKES = [
    # verbs
    (
        "trian",
        [f"'trian' is no verb. Did you mean 'train'? Use {VERBS}."],
    ),
    ("--workers=2", [f"'--workers=2' is no verb. Use {VERBS}."]),
    (
        "help lunch",
        [f"'lunch' is no verb. Did you mean 'launch'? Use {VERBS}."],
    ),
    # launch
    ("launch", ["No script. Write: tfdp launch FLAGS -- SCRIPT.py ARGS (or -m MODULE)."]),
    ("launch --", ["No script. Write: tfdp launch FLAGS -- SCRIPT.py ARGS (or -m MODULE)."]),
    (
        "launch script.py",
        ["'script.py' stands before --. Write: tfdp launch FLAGS -- SCRIPT.py ARGS"],
    ),
    (
        "launch -- missing.py",
        ["There is no script 'missing.py' in {folder}. Name a file, or -m MODULE."],
    ),
    ("launch -- -m", ["No module after -m. Write: -m MODULE ARGS."]),
    ("launch -- -m script.py", ["'script.py' is a file: leave out -m."]),
    (
        "launch -- -m no_such.module",
        [
            "There is no module 'no_such.module' in {folder} or among what is installed. "
            "Name one as in -m package.module, or a file: SCRIPT.py."
        ],
    ),
    (
        "launch --worker=2 -- script.py",
        ["Unknown command line flag 'worker'. Did you mean: workers ?"],
    ),
    (
        "launch --workers=two -- script.py",
        ["flag --workers=two: invalid literal for int() with base 10: 'two'"],
    ),
    ("launch --workers", ["Missing value for flag --workers"]),
    (
        "launch --workers=0 -- script.py",
        [
            "--workers=0 is not a whole number from 1 up (the chief and the evaluator come on "
            "top). Use --workers=1 or more."
        ],
    ),
    (
        "launch --workers=2 --ps=1 -- script.py",
        [
            "--ps=1 needs --chief: the chief coordinates the workers of parameter servers. "
            "Add --chief, or leave out --ps."
        ],
    ),
    (
        "launch --workers=1001 -- script.py",
        ["--workers=1001 --ps=0 makes 1001 tasks. Use at most 1000."],
    ),
    (
        "launch --platform=cloud -- script.py",
        [f"flag --platform=cloud: value should be one of <{'|'.join(platforms.NAMES)}>"],
    ),
    (
        "launch --platform=ssh --hosts=a --isolate -- script.py",
        ["--isolate keeps tasks on this machine. Leave it out with --platform=ssh."],
    ),
    (
        "launch --platform=ssh --hosts=a --workers=2 -- script.py",
        [
            "2 tasks (worker=2) need 2 slots, but 1 host has 1. Add hosts, or say that they take "
            "more: --hosts=a:2,b:2."
        ],
    ),
    # doctor
    (
        "doctor --platform=ssh",
        ["--platform=ssh names no hosts. Write --hosts=a:2,b, or --hostfile=FILE."],
    ),
    ("doctor now", ["'now': tfdp doctor takes flags only."]),
    ("doctor --wait=0", ["--wait=0.0: use a number of seconds from 1 to 3600."]),
    (
        "doctor --workers=0",
        [
            "--workers=0 is not a whole number from 1 up (the chief and the evaluator come on "
            "top). Use --workers=1 or more."
        ],
    ),
    # export
    ("export", ["No --run. Write: tfdp export --run=DIR --output=MODELS/NAME"]),
    ("export --run=runs", ["No --output. Write: tfdp export --run=DIR --output=MODELS/NAME"]),
    (
        "export --run=missing --output=models/a",
        ["--run=missing: there is no such file or folder."],
    ),
    (
        "export --run=. --output=models/a",
        ["--run=. holds no model.keras: it is no run of tfdp train that has ended."],
    ),
    (
        "export --run=script.py --output=models/a/1",
        ["--output=models/a/1 looks like a version: name the folder of the versions."],
    ),
    ("export --run=script.py --output=empty.py", ["--output=empty.py is a file: name a folder."]),
    (
        "export --run=script.py --output=models/a --second_signature=image",
        ["--second_signature='image': use one of none, examples, images."],
    ),
    (
        "export --run=script.py --output=models/a --weights=missing.weights.h5",
        ["--weights=missing.weights.h5: there is no such file or folder."],
    ),
    ("export --check=models/a --run=.", ["--check exports nothing: leave out --run."]),
    (
        "export models/a",
        [
            "'models/a': tfdp export takes flags only. Write: tfdp export --run=DIR "
            "--output=MODELS/NAME"
        ],
    ),
    # predict; its settings are in tests/inference/test_job.py
    (
        "predict",
        [
            "No --model. Write: tfdp predict --model=MODELS/NAME --input=PATTERN --output=DIR",
        ],
    ),
    (
        "predict models/a",
        [
            "'models/a': tfdp predict takes flags only. Write: tfdp predict --model=MODELS/NAME "
            "--input=PATTERN --output=DIR"
        ],
    ),
    (
        "predict --model=models/a --input=x.npy --output=out",
        ["There is no model in models/a: no such folder."],
    ),
    (
        "predict --map=x --model=a --input=b --output=c",
        ["--map=x: write --map=INPUT=COLUMN or --map=INPUT=COLUMN,COLUMN"],
    ),
    (
        "predict --modle=a",
        ["Unknown command line flag 'modle'. Did you mean: model ?"],
    ),
    # bench
    ("bench", ["No config. Write: tfdp bench --config=configs/digits.py"]),
    (
        "bench --config=DIGITS -- script.py",
        [
            "'script.py': tfdp bench takes flags only. For a script: tfdp launch --bench -- "
            "SCRIPT.py"
        ],
    ),
    (
        "bench --config=DIGITS --chief --workers=1 --ps=1",
        [
            "--ps=1: the bench measures replicas that are kept in sync; workers of parameter "
            "servers take their steps each by itself. Leave out --chief and --ps."
        ],
    ),
    (
        "bench --config=DIGITS --config.data.ledger=l",
        ["config.data.ledger: a bench reads records that nobody trains on. Leave it out."],
    ),
    (
        "bench --what-if=hosts=2,host=3 --from=no_such.json",
        [
            "--what-if: 'host=3' is not understood. Did you mean 'hosts'? Use hosts, gpus, link, "
            "latency, inside, batch, compression, algorithm, overlap, gradients, examples, epochs: "
            "--what-if=hosts=16,gpus=8,link=25gbit,latency=20us"
        ],
    ),
    (
        "bench --what-if=hosts=2 --from=no_such.json",
        [
            "no_such.json: No such file or directory. Measure first: tfdp launch --bench -- "
            "SCRIPT.py"
        ],
    ),
    (
        "bench --what-if=",
        ["--what-if is empty. Write: --what-if=hosts=16,gpus=8,link=25gbit,latency=20us"],
    ),
    (
        "bench --config=DIGITS --strong",
        ["--strong compares numbers of workers: add --workers=1,2,4."],
    ),
    (
        "bench --config=DIGITS --workers=1,x",
        ["flag --workers=1,x: use numbers of 1 or more, as in 1,2,4"],
    ),
    (
        "bench --config=DIGITS --workers=2,2",
        ["flag --workers=2,2: scaling compares different numbers, as in 1,2,4"],
    ),
    (
        "bench --config=DIGITS --workers=two",
        ["flag --workers=two: use a number of workers, or several: 1,2,4"],
    ),
    (
        "bench --config=DIGITS --workers=1,2 --chief",
        ["--chief: a scaling report counts workers. Leave it out."],
    ),
    (
        "bench --config=DIGITS --workers=1,2 --profile=steps:1",
        ["--profile traces one bench: leave it out, or give one --workers=N."],
    ),
    (
        "train --config=DIGITS --profile=10-20",
        ["--profile=10-20: write --profile=steps:10-20 (or steps:10 for one)."],
    ),
    (
        "launch --profile=steps:20-10 -- script.py",
        ["--profile=steps:20-10: the first step is 1, and the last one stands last."],
    ),
    (
        "launch --profile=steps:1-2 --chief --ps=1 -- script.py",
        [
            "--profile: with --ps=1 workers take their steps each by itself, and have no common "
            "timeline. Leave one of them out."
        ],
    ),
    # tune-batch
    ("tune-batch", ["No config. Write: tfdp tune-batch --config=configs/digits.py"]),
    ("tune_batch", [f"'tune_batch' is no verb. Did you mean 'tune-batch'? Use {VERBS}."]),
    ("tune-batch --config=no_such.py", ["There is no config file 'no_such.py' in {folder}."]),
    (
        "tune-batch --config=DIGITS --batch=3",
        ["Unknown command line flag 'batch'"],
    ),
    (
        "tune-batch --config=DIGITS -- script.py",
        [
            "'script.py': tfdp tune-batch takes flags only. For functions of your own: "
            "tfdp.tune_batch."
        ],
    ),
    (
        "tune-batch --config=DIGITS --max-batch=0",
        ["--max-batch=0: use 1 row or more, or leave it out."],
    ),
    (
        "tune-batch --config=DIGITS --workers=-1",
        ["--workers=-1: use a number of processes, 0 or more."],
    ),
    (
        "tune-batch --config=DIGITS --workers=3",
        [
            "global_batch_size=64 does not divide over 3 replicas. Use 63 or 66, or change the "
            "workers."
        ],
    ),
    (
        "tune-batch --config=DIGITS --noise-seconds=-1",
        ["noise_seconds=-1.0: use 0 (no noise scale) or more seconds."],
    ),
    (
        "tune-batch --config=DIGITS --config.strategy=parameter_server",
        [
            "config.strategy='parameter_server' is not tuned with --workers=0: use "
            "--config.strategy=auto, or change --workers. Workers of parameter servers take "
            "batches of their own; tune one worker alone (one_device)."
        ],
    ),
    (
        "tune-batch --config=DIGITS --config.data.ledger=l",
        ["config.data.ledger: trials read records that nobody trains on. Leave it out."],
    ),
    (
        "tune-batch --config=DIGITS --config.data.service=parallel_epochs "
        "--config.data.order=shards",
        [
            "config.data.service='parallel_epochs' needs processes that trials do not start. Tune "
            "with --config.data.service=off: the batch is the same."
        ],
    ),
    (
        "launch --bench=later -- script.py",
        ["--bench=later: write --bench, or --bench=continue."],
    ),
    (
        "launch --apply -- script.py",
        ["--apply tries what a bench has found: add --bench."],
    ),
    (
        "launch --bench --chief --ps=1 -- script.py",
        [
            "--ps=1: the bench measures replicas that are kept in sync; workers of parameter "
            "servers take their steps each by itself. Leave out --chief and --ps."
        ],
    ),
    (
        "launch --bench --evaluator -- script.py",
        ["--evaluator waits for checkpoints, which a bench does not write. Leave it out."],
    ),
    (
        "launch --workers=2 --bench=continue --max_restarts=1 -- script.py",
        ["--max_restarts: a bench is not started again. Leave it out."],
    ),
    # train: the config file
    ("train", ["No config. Write: tfdp train --config=configs/digits.py"]),
    ("train --workers=2", ["No config. Write: tfdp train --config=configs/digits.py"]),
    ("train --config", ["Missing value for flag --config"]),
    ("train --config=missing.py", ["There is no config file 'missing.py' in {folder}."]),
    ("train --config missing.py", ["There is no config file 'missing.py' in {folder}."]),
    (
        "train --config=DIGITS:fast",
        ["flag --config=DIGITS:fast: ValueError: configs/digits.py:fast: the variants are: quick."],
    ),
    ("train --config=empty.py", ["module 'config_config' has no attribute 'get_config'"]),
    ("train --config=a_dict.py", ["The config is a dict: let get_config() return a Config."]),
    (
        "train --config=nothing.py",
        ["nothing.py: get_config() returns None: let it return a Config."],
    ),
    (
        "train --config=imports.py",
        ["imports.py:2: ModuleNotFoundError: No module named 'no_such_module'"],
    ),
    ("train --config=syntax.py", ["syntax.py:2: invalid syntax (syntax.py, line 2)"]),
    ("train --config=fails.py", ["fails.py:2: KeyError: 'seed'"]),
    (
        "train --config=reads.py",
        ["reads.py:2: FileNotFoundError: [Errno 2] No such file or directory: 'no_such_file'"],
    ),
    (
        "train --config=without_data.py",
        ["config.data=None: use a tfdp.config.Data."],
    ),
    ("train --config=DIGITS DIGITS", ["'DIGITS': tfdp train takes flags only."]),
    ("train --config=DIGITS -- script.py", ["'script.py': tfdp train takes flags only."]),
    # train: settings
    (
        "train --config=DIGITS --config.data.global_batchsize=3",
        [
            "config.data has no setting 'global_batchsize'. "
            "Did you mean config.data.global_batch_size?"
        ],
    ),
    (
        "train --config=DIGITS --config.data=3",
        ["config.data is a group of settings, not one: name one of them."],
    ),
    (
        "train --config=DIGITS --config.data.global_batch_size=many",
        [
            "flag --config.data.global_batch_size=many: "
            "invalid literal for int() with base 10: 'many'"
        ],
    ),
    (
        "train --config=DIGITS --noconfig.data.download.x",
        ["config.data.download is a single value: config.data.download.x goes too far."],
    ),
    (
        "train --config=DIGITS --config.strategy=miror --config.training.precision=f16",
        [
            "config.strategy='miror': use one of auto, one_device, mirrored, multi_worker, "
            "parameter_server (did you mean 'mirrored'?).",
            "config.training.precision='f16': use one of float32, mixed_float16, mixed_bfloat16.",
        ],
    ),
    (
        "train --config=DIGITS --config.model.name=resnet",
        ["config.model.name='resnet': use one of convnet, or package.module:function."],
    ),
    # train: the cluster
    (
        "train --config=DIGITS --workers=-1",
        [
            "--workers=-1 is not a whole number from 1 up (the chief and the evaluator come on "
            "top). Use --workers=1 or more."
        ],
    ),
    (
        "train --config=DIGITS --workers=3",
        [
            "global_batch_size=64 does not divide over 3 replicas. "
            "Use 63 or 66, or change the workers."
        ],
    ),
    (
        "train --config=DIGITS --evaluator",
        [
            "--evaluator evaluates the checkpoints of other tasks, and there are no workers: add "
            "--workers=1 or more, or leave it out."
        ],
    ),
    (
        "train --config=DIGITS --workers=2 --chief --ps=1 --config.strategy=multi_worker",
        [
            "config.strategy='multi_worker' does not train on such a cluster: use "
            "--config.strategy=parameter_server, or change --workers, --chief and --ps."
        ],
    ),
    (
        "train --config=DIGITS --workers=2 --config.strategy=mirrored",
        [
            "config.strategy='mirrored' does not train on such a cluster: use "
            "--config.strategy=multi_worker, or change --workers, --chief and --ps."
        ],
    ),
    (
        "train --config=DIGITS --config.strategy=multi_worker",
        [
            "config.strategy='multi_worker' needs several processes: add --workers=2, "
            "or set TF_CONFIG."
        ],
    ),
]

MISTAKES_OF_A_TASK = [
    (
        TASK,
        "launch -- script.py",
        [
            "TF_CONFIG is set: this process is a task of a cluster already. Unset it to launch "
            "tasks here, or run this one task: python -m tfdp.run SCRIPT.py ARGS"
        ],
    ),
    (
        TASK,
        "train --config=DIGITS --workers=2",
        [
            "TF_CONFIG is set: this process is a task of a cluster already. Leave out "
            "--workers, --chief, --ps and --evaluator to train as it, or unset TF_CONFIG."
        ],
    ),
    (
        TASK,
        "train --config=DIGITS --config.strategy=mirrored",
        [
            "strategy=mirrored trains in one process, but the cluster has 2 workers. "
            "Use strategy=multi_worker, or unset TF_CONFIG."
        ],
    ),
    (
        SERVED,
        "train --config=DIGITS --config.strategy=multi_worker",
        [
            "strategy=multi_worker has no parameter servers, but the cluster has chief + 1 worker "
            "+ 1 ps. Use strategy=parameter_server, or take ps out of the cluster."
        ],
    ),
    # An evaluator of this cluster, or this task itself, would look elsewhere.
    (
        {**TASK, "TFDP_EVALUATOR": "1"},
        "train --config=DIGITS",
        [
            "config.run_dir is empty: an evaluator waits for the checkpoints of other tasks, and "
            "has to know their folder. Give all of them the same --config.run_dir=DIR."
        ],
    ),
    (
        {"TF_CONFIG": "worker:0"},
        "train --config=DIGITS",
        [
            "TF_CONFIG is not JSON: line 1, column 1: Expecting value. Write it like "
            '{"cluster": {"worker": ["a:2222", "b:2222"]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ],
    ),
]

ROWS = [({}, *row) for row in MISTAKES] + MISTAKES_OF_A_TASK


def words(line):
    return line.replace("DIGITS", DIGITS).split()


def clean_environment():
    return {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The folder of the calls, and how each of ROWS ended: (code, stdout, stderr, slow modules)."""
    folder = tmp_path_factory.mktemp("calls")
    for name, source in FILES.items():
        (folder / name).write_text(source)
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps([[words(line), environment] for environment, line, _ in ROWS]),
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    results = json.loads(done.stdout)
    # No runs/, no logs. (config.py's are compiled.)
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == sorted(FILES)
    return folder, results


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[line for _, line, _ in ROWS])
def test_a_mistake_is_answered_in_a_line_before_tensorflow(answers, number):
    folder, results = answers
    code, out, err, slow = results[number]
    expected = [
        "tfdp: " + line.replace("DIGITS", DIGITS).replace("{folder}", str(folder))
        for line in ROWS[number][2]
    ]
    assert err.splitlines() == expected
    assert (code, out, slow) == (2, "", [])


def test_the_command_itself(tmp_path):
    done = subprocess.run(
        [pathlib.Path(sys.executable).with_name("tfdp"), "lauch"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tfdp: 'lauch' is no verb. Did you mean 'launch'? Use {VERBS}.\n"


def flags_of(verb):
    from absl import flags

    values = flags.FlagValues()
    cli.VERBS[verb].define(values, [])
    return list(values)


@pytest.mark.parametrize("verb", list(cli.VERBS))
@pytest.mark.parametrize("asked", ["{} --help", "{} -h", "help {}", "{} --workers=2 --help"])
def test_help_of_a_verb_names_every_flag(verb, asked):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exited:
        cli.main(words(asked.format(verb)))
    assert exited.value.code == 0
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(f"tfdp {verb} ")
    described = [line.split()[0] for line in lines if line.startswith("  --")]
    settings = [word for word in described if "." in word]
    described = [word for word in described if "." not in word]
    assert ("--config.data.source=tfds" in settings) == (
        verb in ("train", "bench", "tune-batch", "shards")
    )
    assert described == [f"--{name}" for name in sorted(flags_of(verb))]


def test_flags_of_the_verbs():
    cluster = ["chief", "cores", "data_workers", "detach", "dry_run", "env", "evaluator"]
    cluster += [
        "gpus_per_task",
        "isolate",
        "job_name",
        "log_dir",
        "log_megabytes",
        "logs_kept",
        "max_restarts",
    ]
    cluster += ["min_workers", "output", "platform", "preempt_seconds", "ps"]
    cluster += ["trust_network", "workers"]
    for platform in platforms.NAMES[1:]:
        platforms.module(platform).define(lambda _, name, *rest: cluster.append(name))
    assert sorted(flags_of("launch")) == sorted([*cluster, "apply", "bench", "profile"])
    assert sorted(flags_of("bench")) == sorted(
        [*cluster, "apply", "config", "from", "json", "profile", "strong", "what_if"]
    )
    assert sorted(flags_of("train")) == sorted([*cluster, "config", "profile", "resume"])
    doctor = ["chief", "dir", "job_name", "json", "platform", "ps", "trust_network"]
    doctor += ["wait", "workers"]
    for module in map(platforms.module, platforms.NAMES[1:]):
        module.define(lambda _, name, *rest: doctor.append(name))
    assert sorted(flags_of("doctor")) == sorted(doctor)


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["help"], 0), (["--help"], 0), (["-h"], 0)])
def test_help_names_every_verb(argv, code):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as exited:
            cli.main(argv)
    assert exited.value.code == code
    # Asked for, it is what the command prints; else it is what was wrong.
    shown, other = (out, err) if code == 0 else (err, out)
    assert [line.split()[0] for line in shown.getvalue().splitlines() if line[:2] == "  "] == list(
        cli.VERBS
    )
    assert other.getvalue() == ""


@pytest.mark.parametrize(
    "program",
    [
        "import tfdp",
        "import tfdp.launch, tfdp.cluster, tfdp.config",
        "import tfdp.launch.local, tfdp.launch.plan, tfdp.launch.machine, tfdp.launch.task_start",
        "import tfdp.run",
        "import tfdp.inference.job",
        "from tfdp import cli; cli.main(['--help'])",
        *(f"from tfdp import cli; cli.main(['{verb}', '--help'])" for verb in cli.VERBS),
    ],
)
def test_what_starts_at_once_imports_nothing_slow(program):
    check = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {SLOW} if name in sys.modules]))
{program}
"""
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


class TestLaunchedTraining:
    """The command that `tfdp train --workers=2` gives its tasks."""

    @pytest.fixture
    def launched(self, monkeypatch):
        from tfdp.launch import local

        calls = []
        monkeypatch.setattr(
            local, "run", lambda plan, log_dir, **_: calls.append((plan, log_dir)) or 0
        )
        monkeypatch.delenv("TF_CONFIG", raising=False)
        # The words of another command must not be taken for those of this one.
        monkeypatch.setattr(sys, "argv", ["pytest", "train", "--config.seed=99"])
        return calls

    @pytest.mark.parametrize(
        "line",
        [
            "--config=DIGITS:quick --workers=2 --config.seed=7 --config.data.download",
            "--workers 2 --config DIGITS:quick --config.seed 7 -config.data.download=true",
        ],
    )
    def test_gets_the_config_and_every_setting(self, line, launched, capsys):
        with pytest.raises(SystemExit) as exited:
            cli.main(words(f"train {line} --config.run_dir=out/a"))
        assert exited.value.code == 0
        ((plan, log_dir),) = launched
        assert log_dir == "out/a/logs"
        command = (sys.executable, "-m", "tfdp.run", "-m", "tfdp.train", f"--config={DIGITS}:quick")
        settings = {"seed": "7", "data.download": "True", "run_dir": "out/a"}
        assert [str(process.task) for process in plan] == ["worker:0", "worker:1"]
        for process in plan:
            assert process.command[:6] == command
            assert sorted(process.command[6:]) == sorted(
                f"--config.{name}={value}" for name, value in settings.items()
            )
            assert process.environment["TFDP_SEED"] == "7"
        assert capsys.readouterr().out == "2 workers on this machine, seed 7. Logs: out/a/logs\n"

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", "null", '{"settings": 1, "config": "x"}',
                 '{"settings": {}, "config": "x", "cluster": null}'],
    )  # fmt: skip
    def test_a_damaged_command_is_no_run(self, text, tmp_path, launched, capsys):
        (tmp_path / "command.json").write_text(text)
        with pytest.raises(SystemExit) as exited:
            cli.main(["train", f"--resume={tmp_path}"])
        assert exited.value.code == 2
        assert capsys.readouterr().err == (
            f"tfdp: --resume={tmp_path}: there is no run of tfdp train ({tmp_path}/command.json "
            "cannot be read).\n"
        )
        assert launched == []

    def test_runs_in_a_new_folder(self, launched):
        with pytest.raises(SystemExit):
            cli.main(words("train --config=DIGITS --workers=2 --config.output_dir=out"))
        ((plan, log_dir),) = launched
        run_dir = os.path.dirname(log_dir)
        assert run_dir.startswith("out/digits-")
        assert f"--config.run_dir={run_dir}" in plan[0].command
        assert plan[0].command == plan[1].command

    def test_the_evaluator_runs_the_same(self, launched):
        with pytest.raises(SystemExit):
            cli.main(words("train --config=DIGITS --workers=2 --evaluator --config.output_dir=out"))
        ((plan, _),) = launched
        assert [str(process.task) for process in plan] == ["worker:0", "worker:1", "evaluator:0"]
        assert plan[2].command == plan[0].command
        (name,) = {process.environment["TFDP_EVALUATOR"] for process in plan}
        assert name

    def test_the_evaluator_finds_no_checkpoints_of_another_run(self, launched, tmp_path, capsys):
        folder = tmp_path / "checkpoints"
        line = words(f"train --config=DIGITS --workers=2 --config.run_dir={tmp_path} --evaluator")
        folder.mkdir()
        with pytest.raises(SystemExit) as exited:
            cli.main(line)
        assert (exited.value.code, len(launched)) == (0, 1)
        (folder / "0001.weights.h5").touch()
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main(line)
        assert (exited.value.code, len(launched)) == (2, 1)
        assert capsys.readouterr().err == (
            f"tfdp: {folder} holds checkpoints of an earlier run, which the evaluator would take "
            "for those of this one: remove them, or choose another --config.run_dir.\n"
        )
        # Who trains without an evaluator is in nobody's way.
        with pytest.raises(SystemExit) as exited:
            cli.main(line[:-1])
        assert (exited.value.code, len(launched)) == (0, 2)

    def test_logs_where_asked(self, launched):
        with pytest.raises(SystemExit):
            cli.main(words("train --config=DIGITS --workers=2 --log_dir=elsewhere"))
        ((plan, log_dir),) = launched
        assert log_dir == "elsewhere"
        assert str(plan[1].log) == "elsewhere/worker-1.log"
