import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import tty

import pytest

from tfdp.cluster import Task
from tfdp.launch import local, process
from tfdp.launch.plan import TaskProcess

# Every stub begins with these names; none needs more than the standard library.
# One write for a line: print() would write its end apart, and another task could come between.
HEAD = (
    "import os, signal, subprocess, sys\n"
    "say = lambda text: os.write(1, str(text).encode() + b'\\n')\n"
)
WAIT = HEAD + "signal.pause()\n"
IGNORE_SIGTERM = HEAD + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def tasks_of(folder, scripts):
    """A plan that runs {"worker:1": source of a Python program, ...}."""
    processes = []
    for name, source in scripts.items():
        script = folder / f"{name.replace(':', '-')}.py"
        script.write_text(source)
        task = Task(name.split(":")[0], int(name.split(":")[1]))
        command = (sys.executable, "-u", str(script))
        processes.append(TaskProcess(task, "127.0.0.1", command, {"FOLDER": str(folder)}))
    return processes


def open_descriptors():
    return {
        fd: os.readlink(f"/proc/self/fd/{fd}")
        for fd in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


def split_table(lines):
    """The lines without the table of a failure, and the rows of that table, its head left out."""
    heads = [n for n, line in enumerate(lines) if re.match(r"task +ended +cause +last line$", line)]
    if not heads:
        return lines, []
    (begin,) = heads
    end = begin + 1
    while re.match(r"[a-z]+:\d+  ", lines[end]):
        end += 1
    return lines[:begin] + lines[end:], lines[begin + 1 : end]


def run(folder, processes, **named):
    """Runs a plan in this process; returns the exit code and the lines of stdout and stderr.

    Of stderr without the table, which test_supervisor looks at.
    """
    before = open_descriptors()
    threads = set(threading.enumerate())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        code = local.run(processes, folder / "logs", stdout=out, stderr=err, **named)
    assert open_descriptors().items() <= before.items()
    # Those that were there may have ended: tests before this one have left them.
    assert set(threading.enumerate()) <= threads
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return (
        code,
        (folder / "out").read_bytes().decode("latin-1").splitlines(),
        split_table((folder / "err").read_bytes().decode("latin-1").splitlines())[0],
    )


@contextlib.contextmanager
def launcher(folder, scripts, **named):
    """A launcher in a process of its own, its stdout and stderr as one pipe."""
    program = (
        "import pathlib, signal, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from test_launch_local import tasks_of\n"
        "from tfdp.launch import local\n"
        # Ignored where the tests themselves run in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored
        f"tasks = tasks_of(pathlib.Path({str(folder)!r}), {scripts!r})\n"
        f"sys.exit(local.run(tasks, 'logs', **{named!r}))\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait(timeout=30)
        started.stdout.close()


def read_line(started, seconds=30):
    """The next line a launcher shows."""
    line = b""
    while not line.endswith(b"\n"):
        ready = select.select([started.stdout], [], [], seconds)[0]
        assert ready, f"nothing more than {line!r} came"
        byte = os.read(started.stdout.fileno(), 1)
        assert byte, f"ended after {line!r}"
        line += byte
    return line.decode().removesuffix("\n")


def rest_of(started, seconds=30):
    out, _ = started.communicate(timeout=seconds)
    return started.returncode, split_table(out.decode().splitlines())[0]


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


def test_lines_carry_the_name_of_their_task(tmp_path):
    scripts = {
        "worker:0": HEAD + "say('a'); say('b'); print('c', file=sys.stderr)\n",
        "worker:1": HEAD + "sys.stdout.buffer.write(b'x\\n\\xff\\ny')\n",
    }
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts))
    assert code == 0
    assert [line for line in out if not line.startswith("[worker:1] ")] == ["a", "b"]
    assert [line for line in out if line.startswith("[worker:1] ")] == [
        "[worker:1] x",
        "[worker:1] \xff",
        "[worker:1] y",
    ]
    assert len(out) == 5
    assert err == ["c"]
    assert (tmp_path / "logs/worker-0.log").read_bytes() in (
        b"a\nb\nc\n",
        b"a\nc\nb\n",
        b"c\na\nb\n",
    )
    assert (tmp_path / "logs/worker-1.log").read_bytes() == b"x\n\xff\ny"


def test_the_chief_is_not_worker_0_where_there_is_a_chief(tmp_path):
    scripts = {"worker:0": HEAD + "say('w')", "chief:0": HEAD + "say('c')"}
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts))
    assert (code, err) == (0, [])
    assert out in (["c", "[worker:0] w"], ["[worker:0] w", "c"])


def test_lines_of_two_tasks_stay_whole(tmp_path):
    # Written in pieces that end anywhere, by both at once.
    source = HEAD + (
        "lines = [f'{NAME} line {n} ' + 'x' * (n % 90) + '\\n' for n in range(3000)]\n"
        "text = ''.join(lines).encode()\n"
        "while text:\n"
        "    text = text[os.write(1, text[:77]):]\n"
    )
    scripts = {f"worker:{n}": source.replace("{NAME}", "AB"[n]) for n in (0, 1)}
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts))
    assert (code, err) == (0, [])
    lines = {name: [f"{name} line {n} " + "x" * (n % 90) for n in range(3000)] for name in "AB"}
    assert [line for line in out if line.startswith("A ")] == lines["A"]
    assert [line for line in out if not line.startswith("A ")] == [
        f"[worker:1] {line}" for line in lines["B"]
    ]


def test_much_output_is_shown_and_logged_in_full(tmp_path):
    flood = HEAD + "line = b'x' * 99 + b'\\n'\nfor _ in range(1000): os.write(1, line * 100)\n"
    endless = HEAD + "for _ in range(160): os.write(1, b'y' * (1 << 16))\n"
    code, out, err = run(tmp_path, tasks_of(tmp_path, {"worker:0": flood, "worker:1": endless}))
    assert (code, err) == (0, [])
    assert out.count("x" * 99) == 100_000
    pieces = [line.removeprefix("[worker:1] ") for line in out if line != "x" * 99]
    assert "".join(pieces) == "y" * (160 << 16)
    assert (tmp_path / "logs/worker-0.log").stat().st_size == 10_000_000
    assert (tmp_path / "logs/worker-1.log").read_bytes() == b"y" * (160 << 16)


def test_a_failure_ends_the_others_and_its_traceback_is_last(tmp_path):
    scripts = {
        "worker:0": WAIT,
        "worker:1": "def f():\n    raise ValueError('no such layer')\nf()\n",
    }
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts))
    script = tmp_path / "worker-1.py"
    assert (code, out) == (1, [])
    assert [line for line in err if "^^" not in line] == [
        "[worker:1] Traceback (most recent call last):",
        f'[worker:1]   File "{script}", line 3, in <module>',
        "[worker:1]     f()",
        f'[worker:1]   File "{script}", line 2, in f',
        "[worker:1]     raise ValueError('no such layer')",
        "[worker:1] ValueError: no such layer",
        f"worker:1 exited with code 1. Log: {tmp_path}/logs/worker-1.log",
    ]


def test_the_traceback_is_repeated_when_others_spoke_after_it(tmp_path):
    os.mkfifo(tmp_path / "ready")
    last_words = HEAD + (
        "def end(*_):\n"
        "    say('the other side has gone')\n"
        "    os._exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open(os.environ['FOLDER'] + '/ready', 'w').close()\n"
        "signal.pause()\n"
    )
    fails = HEAD + "open(os.environ['FOLDER'] + '/ready').close()\nraise SystemError('boom')\n"
    with open(tmp_path / "both", "wb") as both:
        code = local.run(
            tasks_of(tmp_path, {"worker:0": last_words, "worker:1": fails}),
            tmp_path / "logs",
            stdout=both,
            stderr=both,
        )
    traceback = [
        "[worker:1] Traceback (most recent call last):",
        f'[worker:1]   File "{tmp_path}/worker-1.py", line 4, in <module>',
        "[worker:1]     raise SystemError('boom')",
        "[worker:1] SystemError: boom",
    ]
    assert code == 1
    assert split_table((tmp_path / "both").read_text().splitlines())[0] == [
        *traceback,
        "the other side has gone",
        *traceback,
        f"worker:1 exited with code 1. Log: {tmp_path}/logs/worker-1.log",
    ]


@pytest.mark.parametrize(
    ("source", "code", "last_line"),
    [
        ("os._exit(3)", 3, "worker:1 exited with code 3. Log: {log}"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "worker:1 exited with code 137 (killed by SIGKILL). Log: {log}",
        ),
        ("os.abort()", 134, "worker:1 exited with code 134 (killed by SIGABRT). Log: {log}"),
        (
            "os.kill(os.getpid(), 40)",
            168,
            "worker:1 exited with code 168 (killed by signal 40). Log: {log}",
        ),
    ],
)
@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_exit_code_is_that_of_the_failure(
    tmp_path, monkeypatch, source, code, last_line, has_pidfd
):
    if not has_pidfd:
        monkeypatch.setattr(process, "_open_pidfd", lambda pid: None)
    scripts = {"worker:0": WAIT, "worker:1": HEAD + "say('here')\n" + source}
    result = run(tmp_path, tasks_of(tmp_path, scripts))
    log = tmp_path / "logs/worker-1.log"
    assert result == (
        code,
        ["[worker:1] here"],
        # Shown last, but on the other stream: to say why on stderr too would be to say it twice.
        [last_line.format(log=log)],
    )
    assert log.read_bytes() == b"here\n"


def test_the_first_failure_counts(tmp_path):
    # worker:0 ends, as fast as it can, when the kernel tells it that worker:1 has ended.
    follows = HEAD + (
        "import select\n"
        "first = os.pidfd_open(int(open(os.environ['FOLDER'] + '/pid').read()))\n"
        "open(os.environ['FOLDER'] + '/go', 'w').close()\n"
        "select.select([first], [], [])\n"
        "os._exit(11)\n"
    )
    fails = HEAD + (
        "with open(os.environ['FOLDER'] + '/pid', 'w') as pid: pid.write(str(os.getpid()))\n"
        "open(os.environ['FOLDER'] + '/go').close()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for repeat in range(10):
        folder = tmp_path / str(repeat)
        folder.mkdir()
        for name in ("pid", "go"):
            os.mkfifo(folder / name)
        code, _, err = run(folder, tasks_of(folder, {"worker:0": follows, "worker:1": fails}))
        assert code == 137
        assert err == [
            f"worker:1 exited with code 137 (killed by SIGKILL). Log: {folder}/logs/worker-1.log"
        ]


def test_tasks_that_ignore_sigterm_are_killed(tmp_path):
    os.mkfifo(tmp_path / "ready")
    stubborn = (
        IGNORE_SIGTERM
        + "open(os.environ['FOLDER'] + '/ready', 'w').close()\n"
        + ("while True: signal.pause()\n")
    )
    fails = HEAD + "open(os.environ['FOLDER'] + '/ready').close()\nos._exit(5)\n"
    scripts = {"worker:0": stubborn, "worker:1": fails}
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts), grace_seconds=0.2)
    assert (code, out) == (5, [])
    assert err == [f"worker:1 exited with code 5. Log: {tmp_path}/logs/worker-1.log"]


def test_what_a_task_started_ends_with_it(tmp_path):
    # Both exit codes: a task that ended well leaves nothing behind either.
    for code in (0, 4):
        folder = tmp_path / str(code)
        folder.mkdir()
        source = HEAD + f"say(subprocess.Popen(['sleep', '600']).pid)\nos._exit({code})\n"
        result, out, _ = run(folder, tasks_of(folder, {"worker:0": source}))
        assert result == code
        wait_for_end(int(out[0]))


def test_servers_end_when_the_chief_has_ended(tmp_path):
    for name in ("p", "w"):
        os.mkfifo(tmp_path / name)
    serves = IGNORE_SIGTERM + (
        "open(os.environ['FOLDER'] + '/{}', 'w').close()\nwhile True: signal.pause()\n"
    )
    chief = (
        HEAD + "for name in 'pw': open(os.environ['FOLDER'] + '/' + name).close()\nsay('trained')\n"
    )
    scripts = {"chief:0": chief, "worker:0": serves.format("w"), "ps:0": serves.format("p")}
    # Long grace: were they asked to end, and not killed, the test would not.
    result = run(tmp_path, tasks_of(tmp_path, scripts), grace_seconds=600)
    assert result == (0, ["trained"], [])


def test_a_server_that_fails_ends_the_training(tmp_path):
    scripts = {"chief:0": WAIT, "worker:0": WAIT, "ps:0": HEAD + "os._exit(6)"}
    code, out, err = run(tmp_path, tasks_of(tmp_path, scripts))
    assert (code, out) == (6, [])
    assert err == [f"ps:0 exited with code 6. Log: {tmp_path}/logs/ps-0.log"]


def test_a_server_that_ends_early_is_named(tmp_path):
    os.mkfifo(tmp_path / "go")
    chief = HEAD + "open(os.environ['FOLDER'] + '/go').close()\nos._exit(7)\n"
    with launcher(tmp_path, {"chief:0": chief, "worker:0": WAIT, "ps:0": HEAD}) as started:
        assert read_line(started) == "ps:0 ended with code 0 before the chief did."
        open(tmp_path / "go", "w").close()
        assert rest_of(started) == (7, ["chief:0 exited with code 7. Log: logs/chief-0.log"])


def test_the_evaluator_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "trained")
    worker = HEAD + "held = open(os.environ['FOLDER'] + '/trained', 'w')\n"
    evaluator = HEAD + "open(os.environ['FOLDER'] + '/trained').read()\nsay('evaluated')\n"
    scripts = {"worker:0": worker, "evaluator:0": evaluator}
    assert run(tmp_path, tasks_of(tmp_path, scripts)) == (0, ["[evaluator:0] evaluated"], [])


def test_the_evaluator_is_not_waited_for_without_end(tmp_path):
    scripts = {"worker:0": HEAD, "evaluator:0": WAIT}
    assert run(tmp_path, tasks_of(tmp_path, scripts), evaluator_seconds=0.1) == (
        0,
        [],
        [
            "The evaluator was ended 0.1 s after the training. "
            "It should return when it has seen the last checkpoint."
        ],
    )


def test_an_evaluator_alone_is_run(tmp_path):
    scripts = {"evaluator:0": HEAD + "say('evaluated')\n"}
    assert run(tmp_path, tasks_of(tmp_path, scripts)) == (0, ["evaluated"], [])


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        (("/no/python", "x"), 127, "/no/python was not found. Is it installed?"),
        (("/etc/passwd",), 126, "/etc/passwd: Permission denied."),
        (("/",), 126, "/: Permission denied."),
        ((sys.executable, "x" * (1 << 22)), 126, f"{sys.executable}: Argument list too long."),
    ],
)
def test_a_program_that_cannot_be_started(tmp_path, command, code, why):
    started = tasks_of(tmp_path, {"worker:0": IGNORE_SIGTERM + "while True: signal.pause()\n"})
    broken = TaskProcess(Task("worker", 1), "127.0.0.1", command)
    # run() asserts that no child is left.
    assert run(tmp_path, [*started, broken], grace_seconds=600) == (
        code,
        [],
        [f"worker:1 could not be started: {why}"],
    )


def test_a_log_that_cannot_be_written_is_said_before_anything_starts(tmp_path):
    (tmp_path / "logs").write_text("not a folder")
    marker = HEAD + "open(os.environ['FOLDER'] + '/started', 'w')"
    assert run(tmp_path, tasks_of(tmp_path, {"worker:0": marker})) == (
        2,
        [],
        [f"The log {tmp_path}/logs/worker-0.log cannot be written: File exists. Choose another."],
    )
    assert not (tmp_path / "started").exists()


def test_a_plan_may_name_its_logs(tmp_path):
    (named,) = tasks_of(tmp_path, {"worker:0": HEAD + "say('x')"})
    log = tmp_path / "elsewhere" / "a.log"
    named = TaskProcess(named.task, named.host, named.command, named.environment, log=log)
    assert run(tmp_path, [named])[0] == 0
    assert log.read_bytes() == b"x\n"
    assert not (tmp_path / "logs").exists()


def test_what_a_task_finds(tmp_path):
    # The last of three, so that a descriptor leaked by the start of the others would be seen; its
    # failure ends them.
    last = HEAD + (
        "lifeline = int(os.environ['TFDP_LAUNCHER_FD'])\n"
        "fds = [int(fd) for fd in os.listdir('/proc/self/fd')]\n"
        "is_open = lambda fd: os.path.exists(f'/proc/self/fd/{fd}')  # listdir's own is not\n"
        "say([fd for fd in fds if fd not in (0, 1, 2, lifeline) and is_open(fd)])\n"
        "say(is_open(lifeline))\n"
        "say(os.readlink('/proc/self/fd/0'))\n"
        "say(os.environ['TFDP_LAUNCHER_PID'] == str(os.getppid()))\n"
        "say(os.getsid(0) == os.getpgrp() == os.getpid())\n"
        "say(os.environ['FOLDER'] == sys.argv[0].rpartition('/')[0])\n"
        "say(os.environ['INHERITED'])\n"
        "os._exit(9)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INHERITED", "yes")
        patch.setenv("FOLDER", "replaced")
        code, out, _ = run(
            tmp_path, tasks_of(tmp_path, {"worker:0": WAIT, "worker:1": WAIT, "worker:2": last})
        )
    assert code == 9
    assert out == [
        "[worker:2] " + line for line in ("[]", "True", "/dev/null", "True", "True", "True", "yes")
    ]


def test_a_terminal_shows_the_progress_bar_of_the_chief(tmp_path):
    terminal, program_side = os.openpty()
    tty.setraw(program_side)
    source = HEAD + "for part in (b'1/2\\r', b'2/2\\x1b[K', b'\\n'): os.write(1, part)\n"
    with (
        open(program_side, "wb", buffering=0) as stdout,
        open(terminal, "rb", buffering=0) as reader,
    ):
        code = local.run(
            tasks_of(tmp_path, {"worker:0": source}),
            tmp_path / "logs",
            stdout=stdout,
            stderr=stdout,
        )
        assert code == 0
        shown = b""
        while not shown.endswith(b"\n"):  # a read takes what one write has brought
            shown += reader.read(1000)
        assert shown == b"1/2\r2/2\x1b[K\n"


CLAIM = (
    HEAD + "from tfdp.launch import task_start\n"
    "task_start.claim_terminal(os.environ)\n"
    "say(f'{sys.stdout.isatty()} {sorted(k for k in os.environ if k.startswith(\"TFDP_T\"))}')\n"
)


def test_only_the_chief_is_told_of_a_terminal(tmp_path):
    terminal, program_side = os.openpty()
    tty.setraw(program_side)
    with (
        open(program_side, "wb", buffering=0) as stdout,
        open(terminal, "rb", buffering=0) as reader,
    ):
        plan = tasks_of(tmp_path, {"worker:0": CLAIM, "worker:1": CLAIM})
        assert local.run(plan, tmp_path / "logs", stdout=stdout, stderr=stdout) == 0
        assert sorted(reader.read(1000).splitlines()) == [b"True []", b"[worker:1] False []"]


def test_nobody_is_told_of_a_terminal_where_there_is_none(tmp_path):
    _, out, _ = run(tmp_path, tasks_of(tmp_path, {"worker:0": CLAIM, "worker:1": CLAIM}))
    assert sorted(out) == ["False []", "[worker:1] False []"]


def test_run_is_for_the_main_thread(tmp_path):
    raised = []

    def call():
        try:
            local.run(tasks_of(tmp_path, {"worker:0": HEAD}), tmp_path)
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(timeout=30)
    assert raised == ["run was called in another thread. Call it from the main thread."]


@pytest.mark.parametrize("scripts", [{}, {"worker:0": HEAD}])
def test_a_plan_has_each_task_once(tmp_path, scripts):
    with pytest.raises(ValueError, match="each task once"):
        run(tmp_path, tasks_of(tmp_path, scripts) * 2)


STUBBORN = IGNORE_SIGTERM + (
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    "grandchild = subprocess.Popen([sys.executable, '-S', '-c', "
    "'import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); '"
    "'print(os.getppid(), os.getpid(), flush=True); signal.pause()'])\n"
    "while True: signal.pause()\n"
)


def pids_of(started, count):
    """The processes of so many STUBBORN tasks."""
    lines = [read_line(started) for _ in range(count)]
    return [int(pid) for line in lines for pid in line.split()[-2:]]


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        (signal.SIGINT, "SIGINT (Ctrl-C)", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
    ],
)
def test_a_signal_to_the_launcher_ends_all(tmp_path, number, name, code):
    scripts = {"worker:0": STUBBORN, "worker:1": STUBBORN}
    with launcher(tmp_path, scripts, grace_seconds=0.2, preempt_seconds=0.2) as started:
        pids = pids_of(started, 2)
        started.send_signal(number)
        assert rest_of(started) == (code, [f"Interrupted by {name}: all tasks ended. Logs: logs"])
        for pid in pids:
            wait_for_end(pid)


def test_sigterm_leaves_the_chief_its_servers_until_it_has_saved(tmp_path):
    server = HEAD + (
        "signal.signal(signal.SIGTERM, lambda *_: say('asked to end'))\n"
        "say('ready')\n"
        "while True: signal.pause()\n"
    )
    chief = HEAD + (
        "def save(*_):\n"
        "    say('saves')\n"
        "    with open(os.environ['FOLDER'] + '/done', 'w') as file: file.write('saved')\n"
        "    os._exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "say('ready')\n"
        "while True: signal.pause()\n"
    )
    scripts = {"chief:0": chief, "ps:0": server, "worker:0": server}
    # Long times: were somebody waited for in vain, the test would not end.
    with launcher(tmp_path, scripts, grace_seconds=0.0, preempt_seconds=600) as started:
        assert sum("ready" in read_line(started) for _ in range(3)) == 3
        started.send_signal(signal.SIGTERM)
        code, rest = rest_of(started)
    assert (code, rest) == (143, ["saves", "Interrupted by SIGTERM: all tasks ended. Logs: logs"])
    assert (tmp_path / "done").read_text() == "saved"


def test_the_second_ctrl_c_kills_at_once(tmp_path):
    source = HEAD + (
        "signal.signal(signal.SIGTERM, lambda *_: say('asked to end'))\n"
        "say('ready')\n"
        "while True: signal.pause()\n"
    )
    with launcher(tmp_path, {"worker:0": source}, grace_seconds=600) as started:
        assert read_line(started) == "ready"
        started.send_signal(signal.SIGINT)
        assert read_line(started) == "asked to end"
        started.send_signal(signal.SIGINT)
        assert rest_of(started) == (
            130,
            ["Interrupted by SIGINT (Ctrl-C): all tasks ended. Logs: logs"],
        )


def test_ctrl_c_while_a_failure_is_cleaned_up(tmp_path):
    source = HEAD + (
        "signal.signal(signal.SIGTERM, lambda *_: say('asked to end'))\n"
        "say(os.getpid())\n"
        "while True: signal.pause()\n"
    )
    with launcher(
        tmp_path,
        {
            "worker:0": source,
            "worker:1": WAIT.replace("signal.pause", "say(os.getpid()); signal.pause"),
        },
        grace_seconds=600,
    ) as started:
        lines = [read_line(started), read_line(started)]
        (victim,) = [line for line in lines if line.startswith("[worker:1] ")]
        os.kill(int(victim.split()[-1]), signal.SIGKILL)
        assert read_line(started) == "asked to end"
        started.send_signal(signal.SIGINT)
        code, rest = rest_of(started)
        assert code == 137
        assert rest == [
            victim,
            "worker:1 exited with code 137 (killed by SIGKILL). Log: logs/worker-1.log",
        ]


def test_a_task_that_is_killed_ends_all(tmp_path):
    scripts = {"worker:0": STUBBORN, "worker:1": STUBBORN}
    with launcher(tmp_path, scripts, grace_seconds=0.2) as started:
        lines = [read_line(started), read_line(started)]
        (line,) = [line for line in lines if line.startswith("[worker:1] ")]
        os.kill(int(line.split()[1]), signal.SIGKILL)
        code, rest = rest_of(started)
        assert code == 137
        assert rest[-1] == (
            "worker:1 exited with code 137 (killed by SIGKILL). Log: logs/worker-1.log"
        )
        for pid in (int(pid) for line in lines for pid in line.split()[-2:]):
            wait_for_end(pid)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_launcher_that_is_killed_leaves_nobody(tmp_path, is_tied):
    # Tied or not, the kernel ends the whole group: no code of the task has to run for it.
    tie = (
        "from tfdp.launch import task_start\ntask_start.tie_to_launcher(os.environ)\n"
        if is_tied
        else ""
    )
    source = STUBBORN.replace("grandchild =", tie + "grandchild =")
    with launcher(tmp_path, {"worker:0": source, "worker:1": source}) as started:
        pids = pids_of(started, 2)
        assert len(pids) == 4
        started.send_signal(signal.SIGKILL)
        for pid in pids:
            wait_for_end(pid)


def test_a_screen_that_nobody_reads_does_not_stop_the_launcher(tmp_path):
    flood = HEAD + "while True: os.write(1, b'x' * 4095 + b'\\n')\n"
    with launcher(tmp_path, {"worker:0": flood}, grace_seconds=0.2) as started:
        assert os.read(started.stdout.fileno(), 1) == b"x"
        started.send_signal(signal.SIGTERM)
        # The pipe is full, and is not read before the launcher has ended.
        assert started.wait(timeout=30) == 143


def test_output_goes_on_when_the_screen_has_room_again(tmp_path):
    # Far more than the pipe and the launcher hold, read only in the end.
    flood = (
        HEAD
        + "for n in range(2000): os.write(1, b'%07d ' % n + b'x' * 4087 + b'\\n')\nos._exit(3)\n"
    )
    with launcher(tmp_path, {"worker:0": flood, "worker:1": WAIT}) as started:
        deadline = time.monotonic() + 30
        log = tmp_path / "logs/worker-0.log"
        while not log.exists() or log.stat().st_size < 1 << 20:
            assert time.monotonic() < deadline
        code, out = rest_of(started)
    assert code == 3
    assert [line[:8] for line in out[:2000]] == [f"{n:07d} " for n in range(2000)]
    assert out[2000:] == ["worker:0 exited with code 3. Log: logs/worker-0.log"]


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path):
    os.mkfifo(tmp_path / "gone")
    source = HEAD + (
        "say('first')\nopen(os.environ['FOLDER'] + '/gone').read()\n"
        "for n in range(1000): say('more')\nsay('done')\n"
    )
    with launcher(tmp_path, {"worker:0": source}) as started:
        assert read_line(started) == "first"
        started.stdout.close()
        open(tmp_path / "gone", "w").close()
        assert started.wait(timeout=30) == 0
    assert (tmp_path / "logs/worker-0.log").read_text() == "first\n" + "more\n" * 1000 + "done\n"
