"""What Slurm is told, and what is read of what it says, as tables; without a Slurm."""

import os
import pathlib
import types

import pytest

from tfdp.cluster import ClusterError, Task
from tfdp.error import Error
from tfdp.launch import discovery, endings
from tfdp.launch.platforms import (
    hostlist,
    slurm,
    slurm_output,
    slurm_run,
    slurm_script,
    slurm_step,
    slurm_submit,
)
from tfdp.launch.platforms.job import Job
from tfdp.launch.platforms.slurm_script import Wish
from tfdp.launch.shape import Shape

ARTEFACTS = pathlib.Path(__file__).with_name("artefacts")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tf1", ["tf1"]),
        ("tf[9-11]", ["tf9", "tf10", "tf11"]),
        ("tf[1-3,7]", ["tf1", "tf2", "tf3", "tf7"]),
        ("b[01-02]x[1-2]", ["b01x1", "b01x2", "b02x1", "b02x2"]),
        ("a,tf[1-2]-ib,b", ["a", "tf1-ib", "tf2-ib", "b"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
    ],
)
def test_host_lists(text, names):
    assert hostlist.expand(text) == names


@pytest.mark.parametrize(
    "text", ["", "tf[", "tf[1-", "tf[3-1]", "a,,b", "tf[[1]]", "tf[1-9999999]"]
)
def test_what_is_no_host_list_is_one_line(text):
    with pytest.raises(ClusterError, match=r"^[^\n]* is no list as Slurm writes it, "):
        hostlist.expand(text)


def test_counts():
    assert hostlist.expand_counts("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(ClusterError):
        hostlist.expand_counts("2(x3,1")


def step(node, local, **variables):
    """The variables of a task of 3 hosts with 2, 2 and 1 tasks."""
    return {
        "SLURM_JOB_ID": "65",
        "SLURM_STEP_ID": "0",
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_STEP_NODELIST": "tf[2,10-11]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        # Those of the job, which has more hosts.
        "SLURM_JOB_NODELIST": "tf[1-11]",
        "SLURM_TASKS_PER_NODE": "1(x11)",
        # With --distribution=cyclic it says nothing about the place.
        "SLURM_PROCID": "4",
        **variables,
    }


ADDRESSES = ("tf2:61568", "tf2:61569", "tf10:61568", "tf10:61569", "tf11:61568")


@pytest.mark.parametrize(
    ("node", "local", "index"), [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4)]
)
def test_the_place_in_a_step(node, local, index):
    found = slurm_step.find(step(node, local))
    assert (found.index, found.addresses) == (index, ADDRESSES)


def test_reserved_ports_are_used():
    found = slurm_step.find(step(2, 0, SLURM_STEP_RESV_PORTS="12000-12001"))
    assert found.addresses[2:] == ("tf10:12000", "tf10:12001", "tf11:12000")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "65", "SLURM_JOB_NODELIST": "tf[1-2]", "SLURM_TASKS_PER_NODE": "2,1"},
        # The body of a batch script: Slurm gives it the variables of a task, but no step.
        {"SLURM_JOB_ID": "65", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"},
        # Later versions count it, and the shell of salloc, as steps of their own.
        step(0, 0, SLURM_STEP_ID="4294967291"),
        step(0, 0, SLURM_STEP_NODELIST="tf1", SLURM_STEP_TASKS_PER_NODE="1"),
    ],
)
def test_outside_of_a_step_of_tasks_there_is_no_cluster(environ):
    assert slurm_step.find(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            step(3, 0),
            "Slurm's variables contradict each other: 3 hosts, tasks on 3 of them, and this is "
            "task 0 of host 3. Start the tasks with srun, and leave its variables as they are.",
        ),
        (
            step(0, 0, SLURM_STEP_RESV_PORTS="12000"),
            "Slurm has reserved 1 ports (12000) for 2 tasks of a host. Use --resv-ports=2.",
        ),
        (
            step(0, 0, SLURM_STEP_TASKS_PER_NODE="65(x3)"),
            "A host has 65 tasks, and a job has 64 ports. Use fewer tasks on each host, or srun "
            "--resv-ports=65.",
        ),
        (
            step(0, 0, SLURM_HET_SIZE="2"),
            "This is a heterogeneous Slurm job, whose parts do not know the hosts of each other. "
            "Use a job of one part, or set TF_CONFIG.",
        ),
        (step(0, 0, SLURM_JOB_ID="x"), "SLURM_JOB_ID='x' is no number. Start the tasks with srun."),
        (
            step(0, 0, TFDP_TASKS="worker=2"),
            "TFDP_TASKS=worker=2 needs 2 tasks, and the Slurm step has 5. Start it with "
            "--ntasks=2.",
        ),
    ],
)
def test_what_makes_no_cluster_is_one_line(environ, message):
    with pytest.raises(ClusterError) as raised:
        discovery.begin(environ)
    assert str(raised.value) == message


@pytest.mark.parametrize("job", [0, 1, 62, 63, 4031, 67043328])
def test_every_job_has_ports_that_exist(job):
    one = step(0, 0, SLURM_JOB_ID=str(job), SLURM_STEP_TASKS_PER_NODE="64(x3)")
    ports = {int(address.partition(":")[2]) for address in slurm_step.find(one).addresses}
    assert len(ports) == 64
    assert 60999 < min(ports) <= max(ports) < 65536


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("", ["worker:0", "worker:1", "worker:2", "worker:3", "worker:4"]),
        ("chief=1,worker=2,ps=1,evaluator=1", "chief:0 worker:0 worker:1 ps:0 evaluator:0".split()),
    ],
)
def test_every_kind_of_cluster(tasks, expected):
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    found = [discovery.find(step(*place, TFDP_TASKS=tasks)) for place in places]
    assert [str(one.task) for one in found] == expected
    assert all(one.cluster.tasks == found[0].cluster.tasks for one in found[:-1])


# The tasks are worker:0, worker:1 on tf2, worker:2, worker:3 on tf10, worker:4 on tf11.
@pytest.mark.parametrize(
    ("place", "visible", "on_host", "tasks", "expected"),
    [
        ((0, 0), "0,1,2,3", "4", "", "0,1"),
        ((0, 1), "0,1,2,3", "4", "", "2,3"),
        ((2, 0), "0,1", "2", "", "0,1"),  # alone on its host
        ((0, 1), "0", "2", "", "0"),  # --gpus-per-task: Slurm has divided them
        ((0, 1), "1", "2", "", "1"),
        ((0, 1), "", "", "", ""),
        # chief and worker:0, worker:1 and worker:2, ps: a coordinator computes nothing.
        ((0, 0), "0,1", "2", "chief=1,worker=3,ps=1", "-1"),
        ((0, 1), "0,1", "2", "chief=1,worker=3,ps=1", "0,1"),
        ((1, 1), "0,1", "2", "chief=1,worker=3,ps=1", "1"),
    ],
)
def test_gpus(place, visible, on_host, tasks, expected):
    environ = step(
        *place, CUDA_VISIBLE_DEVICES=visible, SLURM_GPUS_ON_NODE=on_host, TFDP_TASKS=tasks
    )
    discovery.begin(environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == expected


def test_gpus_that_do_not_divide_are_one_line():
    with pytest.raises(ClusterError) as raised:
        discovery.begin(step(0, 0, CUDA_VISIBLE_DEVICES="0,1,2", SLURM_GPUS_ON_NODE="3"))
    assert str(raised.value) == (
        "3 GPUs of a host do not divide over its 2 tasks that train. Ask for a multiple of 2 with "
        "--gpus-per-node, or for --gpus-per-task."
    )


def job(shape, script=("train.py", "--lr=0.1"), **named):
    named = {"directory": "/home/me/a b", "log_dir": "/runs/a%1", "python": "python3", **named}
    return Job("digits", shape, script, 7, **named)


# Plan x kind of cluster: the whole of what is submitted. What --dry-run prints: see test_artefacts.
SCRIPTS = {
    "workers": (job(Shape(4), max_restarts=2), Wish(nodes=2, tasks_per_node=2, time="1:00:00")),
    "servers": (
        job(Shape(2, chief=True, ps=2), ("-m", "pkg.train")),
        Wish(cpus_per_task=4, partition="long", account="me", arguments=("--mem=4G",)),
    ),
    "evaluator": (
        job(
            Shape(2, evaluator=True),
            environment={"A": "it's", "HF_TOKEN": "hf_secret", "PIN": "1234"},
            secrets=frozenset({"PIN"}),
        ),
        Wish(signal="USR1@300"),
    ),
    "gpus": (
        job(Shape(2), gpus_per_task=2, trust_network=True),
        Wish(nodes=2),
    ),
    "gpus-of-a-node": (job(Shape(1, chief=True)), Wish(nodes=1, gpus_per_node=4)),
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_the_whole_script_that_is_submitted(name):
    text = slurm_script.launcher(*SCRIPTS[name])
    assert text == (ARTEFACTS / f"slurm-{name}-launcher.sh").read_text()
    assert "secret" not in text
    assert "1234" not in text


def test_in_a_shell_of_salloc_srun_is_told_what_a_batch_job_inherits():
    asked = Wish(nodes=2, tasks_per_node=2, cpus_per_task=3, arguments=("--distribution=cyclic",))
    words = ["srun", "--job-name=digits", "--ntasks=4", "--kill-on-bad-exit=1", "--wait=600"]
    assert slurm_script.srun(job(Shape(4)), asked, in_batch=True) == [*words, "--export=ALL"]
    assert slurm_script.srun(job(Shape(4)), asked, in_batch=False) == [
        *(*words, "--export=ALL", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=3"),
        "--distribution=cyclic",
    ]


VALUES = {
    **dict(nodes=0, tasks_per_node=0, cpus_per_task=0, gpus_per_node=0, time="", partition=""),
    **dict(account="", signal="TERM@120", slurm_args=""),
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": -1}, "--nodes=-1: use 1 or more, or 0 to leave it to Slurm."),
        (
            {"nodes": 5},
            "--nodes=5, and the cluster has 4 tasks. Use --nodes=4 or fewer, or more --workers.",
        ),
        (
            {"nodes": 3, "tasks_per_node": 1},
            "--nodes=3 --tasks_per_node=1 hold 3 tasks, and the cluster has 4. Use "
            "--tasks_per_node=2.",
        ),
        (
            {"time": "soon"},
            "--time='soon' is no time limit of Slurm. Write minutes, H:MM:SS or D-HH:MM:SS.",
        ),
        (
            {"signal": "KILL@9"},
            "--signal='KILL@9': write TERM, USR1 or USR2, an @, and how many seconds before the "
            "time limit it is to come, as in TERM@120.",
        ),
        (
            {"slurm_args": "--comment='a"},
            '--slurm_args="--comment=\'a": No closing quotation. Quote it as a shell takes it.',
        ),
        (
            {"slurm_args": "-w tf1"},
            "--slurm_args: 'tf1' is no option of its own. Write them as in "
            '--slurm_args="--distribution=cyclic --mem=4G".',
        ),
        (
            {"partition": "a\nb"},
            "'a\\nb' cannot stand in a line of a batch script. Use printable text.",
        ),
    ],
)
def test_bad_flags_are_one_line(values, message):
    with pytest.raises(Error) as raised:
        slurm.render(job(Shape(4)), types.SimpleNamespace(**{**VALUES, **values}))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("shape", "asked", "message"),
    [
        (
            Shape(2),
            Wish(gpus_per_node=2),
            "--gpus_per_node and --gpus_per_task: choose one of them.",
        ),
        (
            Shape(2, chief=True, ps=1),
            Wish(),
            "--gpus_per_task=1: Slurm would give as many to the tasks that do not train. Use "
            "--gpus_per_node, which tfdp divides over those that do.",
        ),
    ],
)
def test_gpus_that_cannot_be_given_are_one_line(shape, asked, message):
    with pytest.raises(Error) as raised:
        slurm_script.check(job(shape, gpus_per_task=1), asked)
    assert str(raised.value) == message


def test_a_machine_without_slurm_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Error) as raised:
        slurm.launch(job(Shape(2)), types.SimpleNamespace(**VALUES))
    assert str(raised.value) == (
        "--platform=slurm: srun is not found here. Start the command on a host where Slurm's "
        "commands are installed, such as the login node of the cluster."
    )


@pytest.mark.parametrize(
    ("state", "requeue", "said"),
    [
        ("RUNNING", "exit 0", "starts again."),
        # Slurm ends all that runs in the job, this scontrol too.
        ("RUNNING", "kill -TERM $$", "starts again."),
        ("RUNNING", "echo Not allowed >&2; exit 1", "does not start again: Not allowed"),
        ("COMPLETING", "exit 0", "does not start again: its state is COMPLETING."),
    ],
)
def test_a_job_is_asked_to_start_again(state, requeue, said, monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\nif [ "$1" = requeue ]; then {requeue}; fi\necho "JobId=7 JobState={state}"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm_run.requeue("7") == f"Slurm job 7 {said}"


# Of srun --label --verbose, version 22.05, with --distribution=cyclic.
SAID = """\
srun: jobid 2: nodes(3):`tf[1-3]', cpu counts: 2(x1),1(x2)
srun: launching StepId=2.0 on host tf1, 2 tasks: [0,3]
srun: launching StepId=2.0 on host tf2, 1 tasks: 1
srun: launching StepId=2.0 on host tf3, 1 tasks: 2
srun: launch/slurm: _task_finish: Received task exit notification for 1 task of StepId=2.0 \
(status=0x0009).
srun: error: tf2: task 1: Killed
srun: launch/slurm: _task_finish: Received task exit notification for 1 task of StepId=2.0 \
(status=0x0000).
srun: launch/slurm: _task_finish: tf3: task 2: Completed
srun: launch/slurm: _task_finish: Received task exit notification for 2 tasks of StepId=2.0 \
(status=0x000f).
srun: error: tf1: tasks 0,3: Terminated
srun: error: Unable to do something
"""


def test_what_srun_says():
    srun = slurm_output.Srun()
    shown = [srun.take(line.encode()) for line in SAID.splitlines()]
    assert srun.step == "2.0"
    assert srun.places == {0: ("tf1", 0), 3: ("tf1", 1), 1: ("tf2", 2), 2: ("tf3", 3)}
    assert srun.ends == [
        slurm_output.End(1, "tf2", 137, True),
        slurm_output.End(2, "tf3", 0),
        slurm_output.End(0, "tf1", 143, True),
        slurm_output.End(3, "tf1", 143, True),
    ]
    assert [line for line in shown if line] == ["srun: error: Unable to do something"]
    assert slurm_output.culprit(srun.ends) == srun.ends[0]


@pytest.mark.parametrize(
    ("line", "whose"),
    [
        (b"0: hello", (0, b"hello")),
        (b" 3:   12: x", (3, b"  12: x")),
        (b"12: ", (12, b"")),
        (b"12:", (12, b"")),
        (b"srun: error: x", None),
        (b"", None),
    ],
)
def test_whose_line_it_is(line, whose):
    assert slurm_output.split(line) == whose


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([(0, False)], None),
        ([(138, False), (1, False), (143, True)], 1),  # the peer was heard first
        ([(138, False), (143, True), (137, True)], 137),
        ([(138, False), (143, True), (137, True, True)], 138),  # killed by the launcher
        ([(138, False), (143, True)], 138),  # a host that was lost is killed later
        ([(137, True), (138, False)], 137),
        ([(143, False), (143, False)], 143),
        ([(143, False), (1, False)], 143),
    ],
)
def test_who_is_to_blame(ends, code):
    made = [slurm_output.End(n, "tf1", *one) for n, one in enumerate(ends)]
    found = slurm_output.culprit(made)
    assert (found and found.code) == code


@pytest.mark.parametrize(
    ("state", "told", "code"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "137:0", 137),
        ("FAILED", "0:9", 137),
        ("NODE_FAIL", "1:0", 138),
        ("PREEMPTED", "0:15", 143),
        ("CANCELLED", "0:15", 143),
        ("TIMEOUT", "0:15", 1),
    ],
)
def test_the_exit_code_of_a_job(state, told, code):
    assert slurm_submit.exit_code({"JobState": state, "ExitCode": told}) == code


def test_the_table_of_endings_has_the_hosts():
    rows = [
        endings.Ending(Task("worker", 0), 143, b"", "ended by tfdp", is_signal=True, host="tf10"),
        endings.Ending(Task("worker", 1), 3, b"oh\n", host="tf1"),
    ]
    assert endings.table(rows) == [
        "task              ended    cause                        last line",
        "worker:1 on tf1   code 3   ended itself with that code  oh",
        "worker:0 on tf10  by tfdp  ended by tfdp",
    ]
