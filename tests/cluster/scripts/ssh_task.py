"""A task without TensorFlow, for launches over ssh: tells what it was given, and does as told."""

import json
import os
import pathlib
import signal
import sys
import time

import tfdp

what, *rest = sys.argv[1:]
restart = os.environ.get("TFDP_RESTART", "0")
task = json.loads(os.environ["TF_CONFIG"])["task"]
me = f"{task['type']}:{task['index']}"

if what == "tell":
    port = json.loads(os.environ["TF_CONFIG"])["cluster"][task["type"]][task["index"]]
    given = {name: os.environ.get(name) for name in ("GREETING", "MY_THING", "TFDP_SEED")}
    print(json.dumps([me, os.getcwd(), port, given, rest]), flush=True)
elif what == "fail":  # the second task, until it has come further twice
    print(f"{me} in restart {restart}", flush=True)
    if me == "worker:1" and int(restart) < 2:
        tfdp.report_progress(step=10 + int(restart))
        sys.exit(int(rest[0]))
    # The others of the group are ended with it.
    if int(restart) < 2:
        time.sleep(600)
elif what == "fewer":  # the second of three fails whatever is done
    count = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
    print(f"{me} of {count}", flush=True)
    if count == 3:
        sys.exit(5) if me == "worker:1" else time.sleep(600)
elif what == "wait":  # for a signal, after which there is something to save

    def save(*_):
        pathlib.Path(f"saved-{task['index']}").touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    pathlib.Path(f"ready-{task['index']}").touch()
    time.sleep(600)
