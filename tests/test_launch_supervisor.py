"""Restarts, the table of a failure, secrets: local.run with stub tasks."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import pytest
from test_launch_local import HEAD, WAIT, launcher, read_line, rest_of, split_table, tasks_of

from tfdp.launch import local

# A task that counts its starts in a file of its own, and may report how far it is.
COUNT = HEAD + (
    "from tfdp.launch import progress\n"
    "me = os.path.basename(sys.argv[0])\n"
    "with open(os.environ['FOLDER'] + '/' + me + '.starts', 'a+') as starts:\n"
    "    starts.write('x'); starts.seek(0); count = len(starts.read())\n"
)


def run(folder, scripts, **named):
    """The exit code, the lines of stdout and of stderr, and the rows of the table."""
    named = {"grace_seconds": 0.2, "restart_delay_seconds": 0.01, **named}
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        code = local.run(
            tasks_of(folder, scripts), folder / "logs", stdout=out, stderr=err, **named
        )
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    err, rows = split_table((folder / "err").read_text().splitlines())
    return code, (folder / "out").read_text().splitlines(), err, rows


def starts(folder, task):
    path = folder / f"{task}.py.starts"
    return len(path.read_text()) if path.exists() else 0


def test_all_start_again_until_it_goes_well(tmp_path):
    os.mkfifo(tmp_path / "counted")
    counts = COUNT + (
        "say(os.environ.get('TFDP_RESTART'))\n"
        "open(os.environ['FOLDER'] + '/counted', 'w').close()\n"
    )
    fails_twice = COUNT + (
        "open(os.environ['FOLDER'] + '/counted').read()\nos._exit(count if count < 3 else 0)\n"
    )
    scripts = {"worker:0": counts, "worker:1": fails_twice}
    code, out, err, rows = run(tmp_path, scripts, max_restarts=2)
    assert (code, rows) == (0, [])
    assert (starts(tmp_path, "worker-0"), starts(tmp_path, "worker-1")) == (3, 3)
    assert err == [
        "worker:1 exited with code 1, before any reported step: ended itself with that code. "
        "All tasks start again in 0.01 s (restart 1 of 2).",
        "worker:1 exited with code 2, before any reported step: ended itself with that code. "
        "All tasks start again in 0.02 s (restart 2 of 2).",
        "All went well after 2 restarts.",
    ]
    assert out[-1] == "2"
    log = (tmp_path / "logs/worker-1.log").read_text()
    assert log == "(tfdp: restart 1)\n(tfdp: restart 2)\n"


def test_the_budget_has_an_end(tmp_path):
    scripts = {"worker:0": WAIT, "worker:1": COUNT + "os._exit(count)\n"}
    code, _, err, rows = run(tmp_path, scripts, max_restarts=2)
    assert code == 3
    assert starts(tmp_path, "worker-1") == 3
    assert err[2:] == [
        "Given up: no progress, and max_restarts=2 is used up.",
        f"worker:1 exited with code 3. Log: {tmp_path}/logs/worker-1.log",
    ]
    assert [row.split("  ")[0] for row in rows] == ["worker:1", "worker:0"]


def test_progress_spares_the_budget(tmp_path):
    # Five failures, each a step further, with a budget of one.
    source = (
        COUNT + "progress.report_progress(step=count, epoch=1)\nos._exit(7 if count < 6 else 0)\n"
    )
    code, _, err, _ = run(tmp_path, {"worker:0": source}, max_restarts=1)
    assert code == 0
    assert starts(tmp_path, "worker-0") == 6
    assert err[0] == (
        "worker:0 exited with code 7, epoch 1, step 1: ended itself with that code. All tasks "
        "start again in 0.01 s (there was progress: the budget is not touched)."
    )
    assert err[-1] == "All went well after 5 restarts."


def test_the_same_failure_at_the_same_step_ends_it(tmp_path):
    source = COUNT + "progress.report_progress(step=5)\nraise ValueError('always')\n"
    code, _, err, rows = run(tmp_path, {"worker:0": source}, max_restarts=100)
    assert code == 1
    assert starts(tmp_path, "worker-0") == 3
    assert err[-2:] == [
        "Given up: the same failure 3 times, epoch 0, step 5.",
        f"worker:0 exited with code 1. Log: {tmp_path}/logs/worker-0.log",
    ]
    assert rows == [
        "worker:0  code 1  exception: ValueError: always  ValueError: always",
    ]


def test_what_an_earlier_run_reported_is_no_progress(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/worker-0.step").write_text("9 9\n")
    code, _, err, _ = run(tmp_path, {"worker:0": COUNT + "os._exit(count)"}, max_restarts=1)
    assert code == 2
    assert err[0].startswith("worker:0 exited with code 1, before any reported step: ")


def test_a_worker_of_parameter_servers_starts_again_alone(tmp_path):
    os.mkfifo(tmp_path / "again")
    os.mkfifo(tmp_path / "serves")
    chief = COUNT + (
        "open(os.environ['FOLDER'] + '/serves').read()\n"
        "open(os.environ['FOLDER'] + '/again').read()\n"
        "say('trained')\n"
    )
    worker = COUNT + (
        "if count == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open(os.environ['FOLDER'] + '/again', 'w').close()\n"
        "signal.pause()\n"
    )
    ps = COUNT + "open(os.environ['FOLDER'] + '/serves', 'w').close()\nsignal.pause()\n"
    code, out, err, _ = run(
        tmp_path, {"chief:0": chief, "worker:0": worker, "ps:0": ps}, max_restarts=1
    )
    assert (code, out) == (0, ["trained"])
    assert [starts(tmp_path, t) for t in ("chief-0", "worker-0", "ps-0")] == [1, 2, 1]
    assert err == [
        "worker:0 exited with code 137 (killed by SIGKILL), before any reported step: killed from "
        "outside, or by the kernel for want of memory (see dmesg). It starts again in 0.01 s "
        "(restart 1 of 1).",
        "All went well after 1 restart.",
    ]


def test_a_parameter_server_takes_all_with_it(tmp_path):
    for name in ("chief", "ps"):
        os.mkfifo(tmp_path / name)
    chief = COUNT + (
        "if count == 1:\n"
        "    open(os.environ['FOLDER'] + '/chief', 'w').close()\n"
        "    signal.pause()\n"
        "open(os.environ['FOLDER'] + '/ps').read()\n"
    )
    ps = COUNT + (
        "if count == 1:\n"
        "    open(os.environ['FOLDER'] + '/chief').read()\n"
        "    os._exit(4)\n"
        "open(os.environ['FOLDER'] + '/ps', 'w').close()\n"
        "signal.pause()\n"
    )
    scripts = {"chief:0": chief, "worker:0": WAIT, "ps:0": ps}
    code, _, _, _ = run(tmp_path, scripts, max_restarts=1)
    assert code == 0
    assert [starts(tmp_path, t) for t in ("chief-0", "ps-0")] == [2, 2]


def test_the_evaluator_starts_again_alone(tmp_path):
    os.mkfifo(tmp_path / "evaluated")
    worker = COUNT + "open(os.environ['FOLDER'] + '/evaluated').read()\n"
    evaluator = COUNT + (
        "if count == 1: os._exit(9)\nopen(os.environ['FOLDER'] + '/evaluated', 'w').close()\n"
    )
    code, _, err, _ = run(tmp_path, {"worker:0": worker, "evaluator:0": evaluator}, max_restarts=1)
    assert code == 0
    assert [starts(tmp_path, t) for t in ("worker-0", "evaluator-0")] == [1, 2]
    assert "It starts again" in err[0]


def test_a_restart_of_all_leaves_the_evaluator_alone(tmp_path):
    os.mkfifo(tmp_path / "trained")
    worker = COUNT + (
        "if count == 1: os._exit(9)\nopen(os.environ['FOLDER'] + '/trained', 'w').close()\n"
    )
    evaluator = COUNT + "open(os.environ['FOLDER'] + '/trained').read()\n"
    code, _, _, _ = run(tmp_path, {"worker:0": worker, "evaluator:0": evaluator}, max_restarts=1)
    assert code == 0
    assert [starts(tmp_path, t) for t in ("worker-0", "evaluator-0")] == [2, 1]


def test_all_start_again_by_a_new_plan(tmp_path):
    scripts = {"worker:0": COUNT + "say(os.environ['PORT'])\nos._exit(0 if count == 2 else 1)\n"}
    ports = iter((2001, 2002))

    def make_plan(left_out=()):
        assert not left_out
        port = str(next(ports))
        return [
            dataclasses.replace(one, environment={**one.environment, "PORT": port})
            for one in tasks_of(tmp_path, scripts)
        ]

    with open(tmp_path / "out", "wb") as out:
        code = local.run(
            make_plan(),
            tmp_path / "logs",
            stdout=out,
            max_restarts=1,
            restart_delay_seconds=0,
            renew=make_plan,
        )
    assert code == 0
    assert (tmp_path / "out").read_text() == "2001\n2002\n"


@pytest.mark.parametrize(("min_workers", "code"), [(2, 0), (3, 1)])
def test_a_worker_that_fails_for_good_is_left_out(tmp_path, min_workers, code):
    # One of three machines is broken: whatever worker it is given to, fails.
    source = HEAD + (
        "if os.environ['MACHINE'] == 'broken': os._exit(1)\n"
        "if int(os.environ['COUNT']) == 3: signal.pause()\n"
        "say(os.environ['MACHINE'])\n"
    )

    def make_plan(left_out):
        lost = [process.environment["MACHINE"] for process in left_out]
        machines = [name for name in ("first", "broken", "last") if name not in lost]
        scripts = {f"worker:{index}": source for index in range(len(machines))}
        added = [{"MACHINE": name, "COUNT": str(len(machines))} for name in machines]
        return [
            dataclasses.replace(one, environment={**one.environment, **more})
            for one, more in zip(tasks_of(tmp_path, scripts), added, strict=True)
        ]

    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        got = local.run(
            make_plan([]),
            tmp_path / "logs",
            stdout=out,
            stderr=err,
            grace_seconds=0.2,
            max_restarts=1,
            min_workers=min_workers,
            restart_delay_seconds=0.01,
            renew=make_plan,
        )
    assert got == code
    said = (tmp_path / "err").read_text()
    if code:
        assert "Given up: no progress, and max_restarts=1 is used up." in said
    else:
        assert sorted((tmp_path / "out").read_text().split()) == ["[worker:1]", "first", "last"]
        assert "(with 2 workers: no progress, and max_restarts=1 is used up)" in said
        assert said.endswith("All went well after 2 restarts, without 1 of the workers.\n")


def test_the_gpu_of_a_worker_that_fails_for_good_is_given_to_no_other(tmp_path):
    (tmp_path / "script.py").write_text(
        HEAD + "import json\n"
        "gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "if gpu == '1': os._exit(1)\n"
        "workers = json.loads(os.environ['TF_CONFIG'])['cluster']['worker']\n"
        "if len(workers) == 3: signal.pause()\n"
        "say(f'GPU {gpu}')\n"
    )
    words = ["launch", "--workers=3", "--min-workers=2", "--log_dir=logs", "--", "script.py"]
    done = subprocess.run(
        [sys.executable, "-m", "tfdp", *words],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1,2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / "logs" / f"worker-{n}.log").read_text() for n in range(2)]
    assert [log.splitlines()[-1] for log in logs] == ["GPU 0", "GPU 2"]


def test_ctrl_c_ends_the_wait_for_a_restart(tmp_path):
    scripts = {"worker:0": HEAD + "os._exit(3)\n"}
    with launcher(tmp_path, scripts, max_restarts=1, restart_delay_seconds=60) as started:
        assert read_line(started).endswith("start again in 60 s (restart 1 of 1).")
        started.send_signal(signal.SIGINT)
        assert rest_of(started) == (
            130,
            ["Interrupted by SIGINT (Ctrl-C): all tasks ended. Logs: logs"],
        )


def test_the_table_tells_of_every_task(tmp_path):
    os.mkfifo(tmp_path / "ready")
    waits = HEAD + (
        "say('step 41')\nopen(os.environ['FOLDER'] + '/ready', 'w').close()\nsignal.pause()\n"
    )
    fails = HEAD + "open(os.environ['FOLDER'] + '/ready').close()\nraise OSError('no disk')\n"
    code, _, _, rows = run(tmp_path, {"worker:0": waits, "worker:1": fails})
    assert code == 1
    assert rows == [
        "worker:1  code 1   exception: OSError: no disk        OSError: no disk",
        "worker:0  by tfdp  ended because worker:1 had failed  step 41",
    ]


def test_a_stopped_task_is_named(tmp_path):
    os.mkfifo(tmp_path / "pid")
    stops = HEAD + (
        "with open(os.environ['FOLDER'] + '/pid', 'w') as pid: pid.write(str(os.getpid()))\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    # Fails as TensorFlow does: it is the one that still runs that ends with an error.
    fails = HEAD + (
        "pid = open(os.environ['FOLDER'] + '/pid').read()\n"
        "while open(f'/proc/{pid}/stat').read().split()[2] != 'T': pass\n"
        "os._exit(1)\n"
    )
    code, _, err, rows = run(tmp_path, {"worker:0": fails, "worker:1": stops})
    assert code == 1
    assert err == [
        "worker:1 was stopped (SIGSTOP) when worker:0 failed.",
        f"worker:0 exited with code 1. Log: {tmp_path}/logs/worker-0.log",
    ]
    assert "worker:1  by tfdp  stopped (SIGSTOP, or a debugger): it answered nobody" in rows


def test_secrets_of_the_environment_reach_neither_screen_nor_log(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "canary-inherited")
    source = HEAD + (
        "assert os.environ['SOME_API_KEY'] == 'canary-' + 'inherited'\n"
        "print(sorted(os.environ.items()))\n"
        "sys.stdout.flush()\n"
        "os.write(2, b'canary-inh'); os.write(2, b'erited\\n')\n"
        "raise ValueError('the key is ' + os.environ['SOME_API_KEY'])\n"
    )
    code, _, _, _ = run(tmp_path, {"worker:0": source, "worker:1": source}, max_restarts=1)
    assert code == 1
    logs = sorted((tmp_path / "logs").iterdir())
    found = [
        path.name
        for path in [tmp_path / "out", tmp_path / "err", *logs]
        if b"canary-inherited" in path.read_bytes()
    ]
    assert found == []
    # The one that failed first has said so; the other may have been ended before.
    assert any(b"the key is ***" in path.read_bytes() for path in logs)


@pytest.mark.parametrize("text", ["$(touch pwned)", "-oProxyCommand=x", "a;b", "a\nb", "\x1b[2J"])
def test_hostile_names_run_nothing_and_stay_on_their_line(tmp_path, monkeypatch, text):
    folder = tmp_path / f"x{text}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code, _, err, _ = run(folder, {"worker:0": HEAD + "os._exit(3)"})
    assert code == 3
    (last,) = err
    assert last.isprintable()
    assert re.match(r"worker:0 exited with code 3. Log: ", last)
    assert sorted(os.listdir(folder)) == ["err", "logs", "out", "worker-0.py"]
    assert os.listdir(tmp_path) == [f"x{text}"]


def test_logs_are_continued_in_new_files(tmp_path):
    source = HEAD + "for n in range(1000): os.write(1, b'%03d\\n' % n)\n"
    code, out, _, _ = run(tmp_path, {"worker:0": source}, log_bytes=1000, logs_kept=2)
    assert code == 0
    assert out == [f"{n:03d}" for n in range(1000)]
    names = ["worker-0.log.2", "worker-0.log.1", "worker-0.log"]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == sorted(names)
    kept = b"".join((tmp_path / "logs" / name).read_bytes() for name in names)
    assert kept.splitlines()[-1] == b"999"
    assert kept == b"".join(b"%03d\n" % n for n in range(1000))[-len(kept) :]
