import os
import select
import signal
import subprocess
import sys

import pytest

from tfdp.launch import task_start

TIED = (
    "import os\nfrom tfdp.launch import task_start\ntied = task_start.tie_to_launcher(os.environ)\n"
)


def wait_for_end(pid, seconds=30):
    """Waits for a process that need not be a child of this one."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], seconds)[0], f"process {pid} still runs"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "environ",
    [
        {"A": "1"},
        {"A": "1", task_start.PID_VARIABLE: ""},
        {"A": "1", task_start.PID_VARIABLE: "x", task_start.FD_VARIABLE: "y"},
        {"A": "1", task_start.FD_VARIABLE: "99999999999999999999"},
    ],
)
def test_without_a_launcher_nothing_happens(environ):
    assert task_start.tie_to_launcher(environ) is False
    assert environ == {"A": "1"}


def run_tied(program, environ, **named):
    return subprocess.run(
        [sys.executable, "-c", TIED + program],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **named,
    )


def test_a_task_of_a_living_launcher_goes_on():
    read_end, write_end = os.pipe()
    done = run_tied(
        f"print(tied, sorted(k for k in os.environ if 'TFDP_LAUNCHER' in k), "
        f"os.get_inheritable({read_end}))",
        {task_start.PID_VARIABLE: str(os.getpid()), task_start.FD_VARIABLE: str(read_end)},
        pass_fds=[read_end],
    )
    os.close(read_end)
    os.close(write_end)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True [] False\n", "")


@pytest.mark.parametrize("has_pipe", [True, False])
def test_a_task_of_a_dead_launcher_ends(has_pipe):
    read_end, write_end = os.pipe()
    os.close(write_end)
    environ = {task_start.PID_VARIABLE: "999999999"}
    if has_pipe:
        environ[task_start.FD_VARIABLE] = str(read_end)
    done = run_tied("print('still here')", environ, pass_fds=[read_end])
    os.close(read_end)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "The launcher of this task (process 999999999) is gone: ending.\n",
    )


def test_a_wrapper_between_launcher_and_task_is_no_dead_launcher():
    read_end, write_end = os.pipe()
    done = run_tied(
        "print('still here')",
        {task_start.PID_VARIABLE: "999999999", task_start.FD_VARIABLE: str(read_end)},
        pass_fds=[read_end],
    )
    os.close(read_end)
    os.close(write_end)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_task_dies_with_its_launcher():
    # Without the pipe: what ends the task is the signal at the death of its parent.
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            f"os.environ[{task_start.PID_VARIABLE!r}] = str(os.getpid())\n"
            "subprocess.run([sys.executable, '-c', sys.argv[1]])\n",
            TIED + "import signal\nprint(os.getpid(), flush=True)\nsignal.pause()\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        task = int(launcher.stdout.readline())
        launcher.send_signal(signal.SIGKILL)
        wait_for_end(task)


def test_the_watch_kills_the_group():
    # The way of systems other than Linux, in a process that has a group of its own.
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "from tfdp.launch import task_start\n"
            "grandchild = subprocess.Popen(['sleep', '600'])\n"
            "print(grandchild.pid, flush=True)\n"
            f"task_start._watch({read_end})\n",
        ],
        stdout=subprocess.PIPE,
        pass_fds=[read_end],
        start_new_session=True,
        text=True,
    )
    with process:
        grandchild = int(process.stdout.readline())
        os.close(read_end)
        os.close(write_end)
        assert process.wait(timeout=30) == -signal.SIGKILL
        wait_for_end(grandchild)
