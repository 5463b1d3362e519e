"""Tells which task of a Slurm step this is, as JSON on one line; TensorFlow is not imported."""

import json
import os

from tfdp import cluster
from tfdp.launch import discovery

discovery.begin(os.environ)
found = cluster.from_environment(os.environ)
told = {
    "task": str(found.task),
    "address": found.cluster.address(found.task),
    "node": os.environ["SLURMD_NODENAME"],
    "procid": int(os.environ["SLURM_PROCID"]),
    "spec": found.cluster.spec(found.task),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
}
print(json.dumps(told), flush=True)
