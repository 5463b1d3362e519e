"""Real jobs of Slurm, on hosts that are network namespaces of this machine (see slurm.py)."""

import contextlib
import csv
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import pytest

from cluster import digits, kills, processes, slurm
from tfdp.launch.platforms import hostlist

REASON = slurm.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(REASON), reason=REASON or "permitted"),
]

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = pathlib.Path(__file__).with_name("scripts")
PATIENT, PLACED, ENDLESS = (
    str(SCRIPTS / name) for name in ("patient.py", "placed.py", "endless.py")
)
TFDP = [sys.executable, "-m", "tfdp"]
LAUNCH = [*TFDP, "launch", "--platform=slurm", "--log_dir=logs"]
HOSTS = 11
SECONDS = 150


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, environment):
    with slurm.cluster(tmp_path_factory.mktemp("slurm"), HOSTS, environment) as made:
        yield made


@contextlib.contextmanager
def launched(cluster, words, folder, **variables):
    """A command on the login node; it is killed in the end, and all jobs are cancelled."""
    launcher = cluster.start(
        words,
        cwd=folder,
        env={**cluster.environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        launcher.stderr.close()
        cluster.run(["scancel", "--user=root"])
        cluster.wait_for_no_tasks()


def run(cluster, words, folder, **variables):
    with launched(cluster, words, folder, **variables) as launcher:
        out, err = launcher.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(words, launcher.returncode, out, err)


def wait_for(launcher, path, text):
    processes.wait_for_text(path, text, SECONDS, launcher)


def number_of(folder):
    (output,) = (folder / "logs").glob("slurm-*.out")
    return output.stem.removeprefix("slurm-")


def test_500_host_lists_are_those_of_scontrol(cluster):
    draw = random.Random(17)

    def numbers():
        width = draw.choice([0, 0, 2, 3])
        found = []
        for _ in range(draw.randint(1, 4)):
            first = draw.randint(0, 120)
            last = first + draw.randint(0, 12)
            found.append(
                f"{first:0{width}}" if draw.random() < 0.4 else f"{first:0{width}}-{last:0{width}}"
            )
        return f"[{','.join(found)}]"

    def name():
        text = draw.choice(["tf", "n", "gpu-a", "rack1-n", "x"])
        text += numbers() if draw.random() < 0.8 else str(draw.randint(0, 30))
        # Slurm takes several brackets in one name.
        if draw.random() < 0.3:
            text += draw.choice(["x", "-n"]) + numbers()
        return text

    lists = [",".join(name() for _ in range(draw.randint(1, 3))) for _ in range(500)]
    script = 'while read -r one; do scontrol show hostnames "$one"; echo --; done'
    done = subprocess.run(
        cluster.command(["bash", "-c", script]),
        env=cluster.environment,
        input="".join(f"{one}\n" for one in lists),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    told = [text.split() for text in done.stdout.split("--\n")[:-1]]
    assert len(told) == 500
    for one, names in zip(lists, told, strict=True):
        assert hostlist.expand(one) == names, one


@pytest.mark.parametrize(
    "distribution",
    [
        "cyclic",
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("block", "plane=2")),
    ],
)
def test_tasks_of_eleven_hosts_know_their_places(distribution, cluster, tmp_path):
    """Started by srun alone. As text, tf10 and tf11 would stand before tf2."""
    done = cluster.run(
        [
            *("srun", "--nodes=11", "--ntasks=17", f"--distribution={distribution}"),
            *(sys.executable, PLACED),
        ],
        cwd=tmp_path,
        seconds=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    told.sort(key=lambda one: int(one["task"].partition(":")[2]))
    assert [one["task"] for one in told] == [f"worker:{number}" for number in range(17)]
    (spec,) = {json.dumps(one["spec"]) for one in told}
    addresses = json.loads(spec)["worker"]
    assert len(set(addresses)) == 17
    assert [one["address"] for one in told] == addresses
    assert [address.partition(":")[0] for address in addresses] == [one["node"] for one in told]
    hosts = list(dict.fromkeys(one["node"] for one in told))
    assert hosts == [f"tf{number}" for number in range(1, 12)]
    if distribution == "cyclic":
        assert [one["procid"] for one in told] != list(range(17))


def test_gpus_go_to_the_tasks_that_train(cluster, tmp_path):
    words = ["salloc", "--quiet", "--ntasks=5", "--ntasks-per-node=3", "--gpus-per-node=3"]
    launch = [*LAUNCH, "--chief", "--workers=3", "--evaluator", "--", PLACED]
    done = run(cluster, [*words, *launch], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    told = {}
    for path in (tmp_path / "logs").glob("*.log"):
        one = json.loads(path.read_text())
        assert path.name == f"{one['task'].replace(':', '-')}.log"
        told[one["task"]] = (one["node"], one["gpus"])
    # Slurm shows all three GPUs of a host to each of its tasks.
    assert told == {
        "chief:0": ("tf1", "0"),
        "worker:0": ("tf1", "1"),
        "worker:1": ("tf1", "2"),
        "worker:2": ("tf2", "0,1,2"),
        "evaluator:0": ("tf2", "-1"),
    }


@pytest.mark.exhaustive  # platforms/test_slurm has the rule
def test_gpus_that_slurm_divides_are_left_as_they_are(cluster, tmp_path):
    words = ["salloc", "--quiet", "--ntasks=2", "--gpus-per-task=2", *LAUNCH, "--workers=2"]
    done = run(
        cluster, [*words, "--gpus_per_task=2", "--", PLACED], tmp_path, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stderr
    told = [
        json.loads((tmp_path / "logs" / f"worker-{worker}.log").read_text()) for worker in range(2)
    ]
    assert [(one["node"], one["gpus"]) for one in told] == [("tf1", "0,1"), ("tf1", "2,3")]


def test_a_job_trains_as_the_launcher_does_and_saves_when_told(cluster, tmp_path, digits_here):
    """sbatch; two tasks on one host and one on another; scancel --signal=TERM; goes on."""
    words = ["train", "--platform=slurm", "--workers=3", "--nodes=2", "--tasks_per_node=2"]
    words += ["--slurm_args=--distribution=cyclic"]
    with launched(cluster, [*TFDP, *words, *digits.TRAIN], tmp_path) as launcher:
        logs = tmp_path / "run" / "logs"
        wait_for(launcher, logs / "worker-0.log", "Epoch 1/2")
        (number,) = (path.stem.removeprefix("slurm-") for path in logs.glob("slurm-*.out"))
        hosts = [cluster.pids(name) for name in ("tf1", "tf2")]
        assert [
            sum("-m tfdp.run" in one for one in pids.values() if "srun" not in one)
            for pids in hosts
        ] == [2, 1]
        cluster.run(["scancel", "--signal=TERM", number], check=True)
        out, err = launcher.communicate(timeout=SECONDS)
    assert launcher.returncode == 0, out + err
    assert re.search(r"SIGTERM: the training is saved in run/backup after \d+ steps", out)
    assert re.search(r"worker:\d on tf\d exited with code 143\. Log: ", out)
    assert f"Slurm job {number} starts again." in out.splitlines()
    assert re.search(r"The training goes on at epoch 1, step \d+, from run/backup", out)
    digits.check_losses(tmp_path, digits_here)
    assert cluster.job(number)["Restarts"] == "1"


@pytest.mark.exhaustive  # the job of sbatch trains them, too
def test_salloc_and_srun_alone_train_as_the_launcher_does(cluster, tmp_path, digits_here):
    for name, words in {
        "salloc": ["--", *TFDP, "train", "--platform=slurm", "--workers=3", *digits.TRAIN],
        # Without tfdp launch: tfdp.strategy() finds the cluster.
        "srun": ["--", "srun", "--kill-on-bad-exit=1", *TFDP, "train", *digits.TRAIN],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        done = run(cluster, ["salloc", "--quiet", "--nodes=3", "--ntasks=3", *words], folder)
        assert done.returncode == 0, done.stdout + done.stderr
        digits.check_losses(folder, digits_here)


@pytest.mark.exhaustive  # only the shape differs
def test_parameter_servers_and_an_evaluator(cluster, tmp_path):
    words = ["train", "--platform=slurm", "--chief", "--workers=1", "--ps=1", "--evaluator"]
    done = run(cluster, [*TFDP, *words, "--nodes=2", *digits.TRAIN], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "run" / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    logs = tmp_path / "run" / "logs"
    assert sorted(path.name for path in logs.glob("*.log")) == [
        *("chief-0.log", "evaluator-0.log", "ps-0.log", "worker-0.log"),
    ]
    assert re.match(r"ps:0 serves at tf\d:\d+\.\n", (logs / "ps-0.log").read_text())


def test_a_rank_that_is_killed_ends_all(cluster, tmp_path):
    words = ["salloc", "--quiet", "--nodes=2", "--ntasks=2", *LAUNCH, "--workers=2", "--", ENDLESS]
    with launched(cluster, words, tmp_path) as launcher:
        wait_for(launcher, tmp_path / "logs" / "worker-0.log", "Epoch 3 has ended.")
        (victim,) = (pid for pid in cluster.tasks() if pid in cluster.pids("tf2"))
        os.kill(victim, signal.SIGKILL)
        out, err = launcher.communicate(timeout=SECONDS)
        assert cluster.tasks() == {}
    assert launcher.returncode == 137, out + err
    lines = err.splitlines()
    assert [
        line for line in lines if re.match(r"worker:1 on tf2 +SIGKILL +killed from outside", line)
    ]
    assert lines[-1] == (
        f"worker:1 on tf2 exited with code 137 (killed by SIGKILL). Log: "
        f"{tmp_path}/logs/worker-1.log"
    )


@pytest.mark.parametrize(("code", "runs"), [(1, 2), (2, 1)])
def test_a_failure_starts_again_unless_the_setting_is_bad(code, runs, cluster, tmp_path):
    words = [*LAUNCH, "--workers=2", "--nodes=2", "--max_restarts=1", "--env=PIN", "--", PATIENT]
    done = run(cluster, [*words, str(code)], tmp_path, PIN="t0psecret")
    assert done.returncode == (0 if runs == 2 else code), done.stdout + done.stderr
    assert ("starts again." in done.stdout) == (runs == 2)
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert log.count("worker:1 begins run") == runs
    # It has come to the tasks, and is seen nowhere.
    assert "begins run 0 with ***." in log
    for path in (tmp_path / "logs").iterdir():
        assert "t0psecret" not in path.read_text()
    shown = cluster.run(["scontrol", "show", "job", "--details", number_of(tmp_path)]).stdout
    assert "t0psecret" not in done.stdout + done.stderr + shown


@pytest.mark.exhaustive  # by sbatch they do, too
def test_in_salloc_the_tasks_start_again_at_once(cluster, tmp_path):
    words = ["salloc", "--quiet", "--nodes=2", "--ntasks=2", *LAUNCH, "--workers=2"]
    done = run(cluster, [*words, "--max_restarts=1", "--", PATIENT, "7"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"worker:1 on tf2 exited with code 7. Log: {tmp_path}/logs/worker-1.log",
        "All tasks start again in 1 s (restart 1 of 1).",
    ]
    assert "(tfdp: restart 1)\nworker:1 begins run 1" in (
        (tmp_path / "logs" / "worker-1.log").read_text()
    )


@pytest.mark.exhaustive  # a rare place
def test_in_a_shell_of_srun_the_tasks_share_its_cpus(cluster, tmp_path):
    """As in srun --pty bash, whose step holds all CPUs of the job."""
    words = ["srun", "--ntasks=1", "--cpus-per-task=2", *LAUNCH, "--workers=2"]
    done = run(cluster, [*words, "--cpus_per_task=1", "--", PLACED], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for worker in range(2):
        told = json.loads((tmp_path / "logs" / f"worker-{worker}.log").read_text())
        assert told["task"] == f"worker:{worker}"


@pytest.mark.exhaustive  # Slurm requeues it
def test_a_host_that_goes_down_starts_the_job_again(cluster, tmp_path):
    words = [*LAUNCH, "--workers=2", "--tasks_per_node=1", "--", PATIENT, "ignore"]
    try:
        with launched(cluster, words, tmp_path) as launcher:
            wait_for(launcher, tmp_path / "logs" / "worker-1.log", "waits.")
            cluster.down("tf2")
            out, err = launcher.communicate(timeout=SECONDS)
    finally:
        cluster.up("tf2")
    assert launcher.returncode == 0, out + err
    assert (tmp_path / "logs" / "worker-1.log").read_text().endswith("worker:1 ends well.\n")


@pytest.mark.exhaustive  # it takes the minute that is the least limit
def test_a_time_limit_saves_and_starts_again(cluster, tmp_path):
    """The shortest limit is a minute. Slurm looks every 30 s, and may tell so much earlier."""
    words = [*LAUNCH, "--workers=2", "--nodes=2", "--time=1", "--signal=USR1@20", "--", PATIENT]
    done = run(cluster, [*words, "wait"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Slurm job {number_of(tmp_path)} starts again." in done.stdout.splitlines()
    for worker in range(2):
        lines = (tmp_path / "logs" / f"worker-{worker}.log").read_text().splitlines()
        assert [line for line in lines if "has saved" in line or "ends well" in line] == [
            f"worker:{worker} has saved.",
            f"worker:{worker} ends well.",
        ]


def test_scancel_and_ctrl_c_end_all(cluster, tmp_path):
    for name, code in {"scancel": 143, "ctrl-c": 130}.items():
        folder = tmp_path / name
        folder.mkdir()
        words = [*LAUNCH, "--workers=2", "--nodes=2", "--max_restarts=3", "--", PATIENT, "wait"]
        with launched(cluster, words, folder) as launcher:
            wait_for(launcher, folder / "logs" / "worker-1.log", "waits.")
            number = number_of(folder)
            if name == "scancel":
                cluster.run(["scancel", number], check=True)
            else:
                os.kill(launcher.pid, signal.SIGINT)
            out, err = launcher.communicate(timeout=SECONDS)
            assert launcher.returncode == code, out + err
            cluster.wait_for_no_tasks()
        job = cluster.job(number)
        assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")


@pytest.mark.exhaustive  # a rank that is killed ends all
def test_nothing_is_left_of_a_job_whose_launcher_is_killed(cluster, tmp_path):
    words = [*LAUNCH, "--workers=2", "--nodes=2", "--max_restarts=3", "--", PATIENT, "ignore"]
    with launched(cluster, words, tmp_path) as launcher:
        wait_for(launcher, tmp_path / "logs" / "worker-1.log", "waits.")
        (there,) = (
            pid
            for pid, command in cluster.pids("tf1").items()
            if "-m tfdp launch" in command and "srun" not in command
        )
        os.kill(there, signal.SIGKILL)
        out, err = launcher.communicate(timeout=SECONDS)
        assert launcher.returncode == 137, out + err
        cluster.wait_for_no_tasks()


@pytest.mark.exhaustive  # Slurm ends the step
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_in_salloc_nothing_is_left_of_a_launcher_that_ends(number, code, cluster, tmp_path):
    words = ["salloc", "--quiet", "--no-shell", "--nodes=2", "--ntasks=2"]
    done = cluster.run(words)
    granted = cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.split()
    assert len(granted) == 1, done.stderr
    variables = {
        "SLURM_JOB_ID": granted[0],
        "SLURM_JOB_NODELIST": "tf[1-2]",
        "SLURM_JOB_CPUS_PER_NODE": "1(x2)",
    }
    words = [*LAUNCH, "--workers=2", "--nodes=2", "--max_restarts=3", "--", PATIENT, "ignore"]
    with launched(cluster, words, tmp_path, **variables) as launcher:
        for worker in range(2):
            wait_for(launcher, tmp_path / "logs" / f"worker-{worker}.log", "waits.")
        os.kill(launcher.pid, number)
        out, err = launcher.communicate(timeout=SECONDS)
        assert launcher.returncode == code, out + err
        cluster.wait_for_no_tasks()
        # The allocation is the user's.
        assert cluster.job(granted[0])["JobState"] == "RUNNING"


def test_the_script_of_a_dry_run_runs_by_itself(cluster, tmp_path):
    words = [*TFDP, "launch", "--platform=slurm", f"--log_dir={tmp_path / 'l og'}", "--workers=2"]
    words += ["--nodes=2", "--env=PIN", "--output=job.sh", "--", PATIENT, "wait"]
    done = cluster.run(words, cwd=tmp_path, env={**cluster.environment, "PIN": "t0psecret"})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "t0psecret" not in (tmp_path / "job.sh").read_text()
    (tmp_path / "l og").mkdir()
    submit = ["sbatch", "--parsable", "job.sh"]
    env = {**cluster.environment, "PIN": "t0psecret"}
    number = cluster.run(submit, cwd=tmp_path, env=env, check=True).stdout.strip()
    logs = [tmp_path / "l og" / f"task-{number}.log" for number in range(2)]
    cluster.wait_for(
        lambda: all(log.exists() and "waits." in log.read_text() for log in logs), "tasks begin"
    )
    # To the shell of the script alone, as at a time limit.
    cluster.run(["scancel", "--batch", "--signal=TERM", number], check=True)
    cluster.wait_for(
        lambda: cluster.job(number)["JobState"] == "COMPLETED", "the job has ended", SECONDS
    )
    assert cluster.job(number)["Restarts"] == "1"
    for index, log in enumerate(logs):
        lines = log.read_text().splitlines()
        assert [line for line in lines if re.search("waits|saved|ends", line)] == [
            *(f"worker:{index} waits.", f"worker:{index} has saved.", f"worker:{index} ends well."),
        ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--slurm_args=--foo"],
            "tfdp: sbatch does not take the job: unrecognized option '--foo'",
        ),
        (
            ["--partition=none"],
            "tfdp: sbatch does not take the job: error: invalid partition specified: none",
        ),
        (["--nodes=3"], "tfdp: --nodes=3, and the cluster has 2 tasks. Use --nodes=2 or fewer"),
    ],
)
def test_what_slurm_refuses_is_one_line(words, line, cluster, tmp_path):
    done = run(cluster, [*LAUNCH, "--workers=2", *words, "--", PATIENT, "wait"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1


def test_an_allocation_that_is_too_small_is_one_line(cluster, tmp_path):
    words = ["salloc", "--quiet", "--ntasks=2", *LAUNCH, "--workers=5", "--", PATIENT, "wait"]
    done = run(cluster, words, tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r"tfdp: This allocation \(Slurm job \d+\) has 2 CPUs, and 5 tasks of 1 CPU need 5. Ask for "
        r"them: salloc --ntasks=5\.\n",
        done.stderr,
    )


@pytest.mark.exhaustive  # test_ssh has them; what Slurm is told is a table
def test_the_doctor_and_predict(cluster, tmp_path, predicted):
    doctor = [*TFDP, "doctor", "--platform=slurm", "--nodes=2", "--workers=2", "--json"]
    done = run(cluster, doctor, tmp_path)
    processes.check_doctor(done, hosts=None, ways=("TensorFlow", "Gloo"))
    assert list(tmp_path.iterdir()) == []
    kills.give(predicted, tmp_path)
    verb, *words = kills.words("there")
    far = ["--platform=slurm", "--nodes=2", "--cpus_per_task=1"]
    done = run(cluster, [*TFDP, verb, *far, *words], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = "rows: "
    assert done.stdout.partition(rows)[2].partition(" parts in")[0].endswith(f" {kills.SHARDS}")
    assert kills.content(tmp_path / "there") == kills.content(predicted / "quiet")
    again = run(cluster, [*TFDP, verb, *far, *words], tmp_path)
    assert "Nothing was missing." in again.stdout
