"""Tasks on hosts that are reached by ssh: --platform=ssh --hosts=a:2,b.

Before anything is started, an agent on each host says what it is like (ssh_hosts): its versions,
GPUs and free ports, and whether the folder and the script are there. Then a process here stands for
each task (relay): the launcher looks after it as after a task of its own. Read ssh_script for what
--dry-run prints.
"""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from tfdp.launch import hosts as hosts_lib
from tfdp.launch import network, plan
from tfdp.launch.platforms import ssh_hosts, ssh_reach, ssh_script
from tfdp.launch.platforms.job import Job
from tfdp.launch.platforms.ssh_reach import reach

__all__ = ["define", "launch", "reach", "render", "slots"]


def define(add: Callable[..., object]) -> None:
    """Define the flags of hosts that are reached by ssh."""
    add(flags.DEFINE_string, "hosts", "", "ssh: hosts and how many tasks each takes: a:2,me@b.")
    add(flags.DEFINE_string, "hostfile", "", "ssh: a file with a line for each host: b slots=2.")
    add(flags.DEFINE_string, "ssh_args", "", "ssh: its own arguments, as in '-p 2222 -i key'.")
    add(flags.DEFINE_string, "remote_python", "", "ssh: the interpreter there; default: as here.")
    add(flags.DEFINE_string, "remote_dir", "", "ssh: the folder there; default: as here.")
    add(flags.DEFINE_bool, "sync", False, "ssh: copy this folder to each host by rsync, first.")
    add(
        flags.DEFINE_integer,
        "port",
        0,
        "ssh: the port of the first task of each host, the others follow; 0: free ones.",
    )


def render(job: Job, values: flags.FlagValues) -> str:
    """Return a bash script that starts the tasks without tfdp's launcher."""
    placed = hosts_lib.place(job.shape, ssh_reach.named(values))
    return ssh_script.render(
        job,
        placed,
        ssh_hosts.Ssh(ssh_reach.arguments(values), values.remote_python or job.python),
        directory=values.remote_dir or job.directory,
        first_port=values.port,
        sync=values.sync,
    )


def launch(job: Job, values: flags.FlagValues) -> int:
    """Start the tasks on their hosts, look after them, and return the exit code of the run."""
    from tfdp.launch import local, output

    script = "" if job.script[0] == "-m" else job.script[0]
    with reach(job.shape, values, job.directory, job.python, script) as reached:
        for line in reached.problems:
            sys.stderr.write(output.printable(f"tfdp: {line}").decode())
        if reached.problems:
            return 2

        def make_plan(left_out: Sequence[plan.TaskProcess] = ()) -> list[plan.TaskProcess]:
            fewer = job.shape.without(len(left_out))
            placed = reached.place(fewer, [process.host for process in left_out])
            cluster = reached.cluster(fewer, placed)
            if not job.trust_network:
                network.refuse_public(cluster)
            processes = job.plan(cluster, reached.ssh.python)
            divide = values.cores == "divide"
            gpus = reached.gpus(
                cluster,
                placed,
                0 if "CUDA_VISIBLE_DEVICES" in job.environment else None,
                job.gpus_per_task,
            )
            return reached.relays(processes, placed, gpus, divide, job.secrets)

        processes = make_plan()
        names = ", ".join(dict.fromkeys(process.host for process in processes))
        where = f"{job.shape} on {names}, seed {job.seed}. Logs: {job.log_dir}"
        print(output.printable(where).decode(), end="", flush=True)
        code = local.look_after(processes, job.log_dir, values, make_plan)
        if code == 0:
            # Servers are ended with the training. Another run may want the same ports at once.
            reached.wait_for_ports()
        return code


def slots(values: flags.FlagValues) -> int:
    """Return how many tasks the hosts of the flags take.

    Raises:
        Error: The flags name no hosts.
    """
    return sum(host.slots for host in ssh_reach.named(values))
