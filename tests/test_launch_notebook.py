"""notebook_launcher with real processes that need no TensorFlow; training is in tests/cluster."""

import os
import signal
import threading
import time

import pytest

import tfdp
from tfdp.launch import notebook
from tfdp.run import check_script


def refusal(*arguments, **named):
    with pytest.raises(tfdp.Error) as raised:
        tfdp.notebook_launcher(*arguments, **named)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_chief_s_value_comes_back_and_the_output_is_shown(place, capsys):
    offset = 5  # of this function: it is sent along

    def task(a, b):
        import json
        import os

        index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        print(f"here is {index}, höher")
        return [a + b + offset, index, os.getpid()]

    total, index, process = tfdp.notebook_launcher(task, args=(1, 2), workers=2, log_dir="logs")
    assert (total, index) == (8, 0)
    assert process != os.getpid()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "[worker:1] here is 1, höher",
        "here is 0, höher",
    ]
    assert (place / "logs" / "worker-1.log").read_text() == "here is 1, höher\n"


def test_a_worker_that_fails_is_named_with_its_traceback(capsys):
    def task():
        import json
        import os
        import time

        if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
            raise ValueError("the second worker's own mistake")
        time.sleep(60)

    assert refusal(task, workers=2, log_dir="logs") == (
        "task has failed in one of 2 workers, with exit code 1: the lines above say which one, and "
        "why. Logs: logs"
    )
    shown = capsys.readouterr().err
    assert "[worker:1] ValueError: the second worker's own mistake" in shown
    assert shown.splitlines()[-1] == "worker:1 exited with code 1. Log: logs/worker-1.log"


@pytest.fixture
def ctrl_c():
    """Where the tests run in the background SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_ends_all_workers(place):
    def task(folder):
        import os
        import pathlib
        import time

        pathlib.Path(folder, str(os.getpid())).touch()
        time.sleep(60)

    (place / "pids").mkdir()

    def interrupt():
        until = time.monotonic() + 30
        while len(os.listdir("pids")) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        tfdp.notebook_launcher(task, args=(str(place / "pids"),), workers=2)
    thread.join()
    pids = [int(name) for name in os.listdir("pids")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_cannot_be_sent_is_refused_before_processes_start(place):
    lock = threading.Lock()
    message = refusal(lambda: lock, workers=2)
    assert message.startswith("<lambda> and its arguments cannot be sent to the workers: ")
    assert message.endswith("inside of it, and give it plain values and arrays.")
    assert not (place / "runs").exists()


def test_what_cannot_be_sent_back_is_named(capsys):
    def task():
        import threading

        return threading.Lock()

    refusal(task, workers=1, log_dir="logs")
    assert "What task returned (lock) cannot be sent back" in capsys.readouterr().err


def test_a_task_of_a_cluster_launches_no_other(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    assert refusal(print).startswith("notebook_launcher: TF_CONFIG is set")


def test_no_workers_are_refused():
    assert refusal(print, workers=0).startswith("--workers=0 is not a whole number from 1 up")


def test_without_cloudpickle_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", None)
    assert refusal(print) == ("notebook_launcher needs cloudpickle: pip install 'tfdp[notebook]'.")


@pytest.mark.parametrize("argv", [["a/train.ipynb"], ["-m", "a/train.ipynb"]])
def test_a_notebook_is_no_script(argv):
    assert check_script(argv) == (
        "'a/train.ipynb' is a notebook, not a script. Call tfdp.notebook_launcher(FUNCTION, "
        "workers=2) in it, or write a script: jupyter nbconvert --to script a/train.ipynb"
    )


def test_it_is_called_from_the_main_thread():
    found = []

    def call():
        try:
            notebook.notebook_launcher(print, workers=1, log_dir="logs")
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == ["run was called in another thread. Call it from the main thread."]
