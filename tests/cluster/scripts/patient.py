"""Does as it is told in its first run, and ends well in the others; TensorFlow is not imported.

patient.py wait         waits until it is ended; with SIGTERM it saves, and ends with 143
patient.py ignore       waits, whatever signal comes
patient.py 3            the task worker:1 ends with that code, the others wait
"""

import json
import os
import signal
import sys
import threading

what, restart = sys.argv[1], int(os.environ["TFDP_RESTART"])
task = json.loads(os.environ["TF_CONFIG"])["task"]
name = f"{task['type']}:{task['index']}"
print(f"{name} begins run {restart} with {os.environ.get('PIN', 'no PIN')}.", flush=True)
if restart:
    print(f"{name} ends well.", flush=True)
    sys.exit(0)
if what.isdecimal():
    if name == "worker:1":
        sys.exit(int(what))
    what = "wait"


def save(*_):
    print(f"{name} has saved.", flush=True)
    os._exit(143)


signal.signal(signal.SIGTERM, save if what == "wait" else signal.SIG_IGN)
print(f"{name} waits.", flush=True)
while True:
    threading.Event().wait(1)
