import json
import os
import stat
import subprocess
import sys

import pytest

from tfdp.cluster import Cluster, Task
from tfdp.launch import dry_run, plan
from tfdp.launch.plan import TaskProcess
from tfdp.launch.redaction import Redactor

# What a shell, ssh or a terminal would act on, were it let.
HOSTILE = [
    "-oProxyCommand=touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "a\ntouch pwned\n",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "\\'; touch pwned #",
    "\x1b]0;title\x07\x1b[2J",
    "a=b; touch pwned",
    "!history",
    "*",
    "~root",
    "",
    " ",
    "\udcff\udc80",
    "naïve ✓",
    "-P",
]

# Tells all that it was started with.
TELL = (
    f"#!{sys.executable}\n"
    "import json, os, sys\n"
    "print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))\n"
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_replayed_command_is_exactly_the_planned_one(text, tmp_path):
    folder = tmp_path / ("folder" + text.replace("/", ""))
    folder.mkdir()
    program = folder / "tell"
    program.write_text(TELL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    task = TaskProcess(
        Task("worker", 0),
        "127.0.0.1",
        (str(program), "-m", "tfdp.run", text, f"--a={text}"),
        {"TF_CONFIG": '{"cluster": {}}', "VALUE": text},
        directory=folder,
    )
    line = dry_run.command_line(task, Redactor())
    assert line.isprintable()
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env={}, capture_output=True, timeout=60, check=True
    )
    argv, environ, cwd = json.loads(done.stdout)
    assert argv == list(task.command[1:])
    assert environ["VALUE"] == text
    assert environ["TF_CONFIG"] == '{"cluster": {}}'
    assert cwd == str(folder)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "pwned" in name]


def test_the_text_of_a_plan():
    cluster = Cluster(worker=("127.0.0.1:2001", "127.0.0.1:2002"))
    processes = plan.plan(
        cluster,
        ["a.py", "--password", "canary-flag", "--note=canary-environment"],
        seed=7,
        log_dir="runs/a b",
        python="/py",
        directory="/work here",
        environ={"MY_TOKEN": "canary-task"},
    )
    text = dry_run.render(processes, Redactor({"OTHER_TOKEN": "canary-environment"}))
    spec = '{"cluster": {"worker": ["127.0.0.1:2001", "127.0.0.1:2002"]}'
    lines = []
    for index in (0, 1):
        config = f'{spec}, "task": {{"type": "worker", "index": {index}}}}}'
        assert config == cluster.tf_config(Task("worker", index))
        lines += [
            f"# worker:{index} on 127.0.0.1. Log: 'runs/a b/worker-{index}.log'",
            f"cd -- '/work here' && MY_TOKEN='***' TF_CONFIG='{config}' TFDP_SEED=7 "
            "PYTHONUNBUFFERED=1 /py -m tfdp.run a.py --password '***' '--note=***'",
        ]
    assert text.splitlines() == lines
    assert "canary" not in text
