"""A Slurm cluster on this machine: each host is a network namespace with a slurmd of its own.

    with slurm.cluster(tmp_path, hosts=3) as cluster:
        done = cluster.run(["srun", "--ntasks=3", "hostname"], cwd=..., env=...)
        cluster.down("tf2")

The hosts are tf1, tf2, ... of 4 CPUs; the controller and the commands of the test have a namespace
of theirs, as on a login node. `missing()` says why this machine can have no such cluster;
scripts/platforms installs what it needs.
"""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time

from cluster import hosts

CPUS = 4
GPUS = 4
PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "salloc", "munged")
_SECONDS = 60


def missing():
    """Why there can be no cluster of Slurm here; "" when there can."""
    for program in PROGRAMS:
        if not _found(program):
            return f"{program} is not installed: scripts/platforms installs it on Debian, as root"
    return hosts.missing()


def _found(program):
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """The hosts tf1, tf2, ... and the controller; index 0 of the network is the login node."""

    def __init__(self, network, folder, count, environment):
        self.folder = folder
        self.names = [f"tf{number}" for number in range(1, count + 1)]
        self.environment = {**environment, "SLURM_CONF": str(folder / "slurm.conf")}
        self._network = network
        self._started = {}

    def set_up(self):
        self._configure()
        self._munge()
        self._daemon("slurmctld", 0, ["-i"])
        for index, name in enumerate(self.names, 1):
            self._daemon("slurmd", index, ["-N", name], name)
        self.wait_for(self._are_idle, "the hosts are idle")

    def tear_down(self):
        with contextlib.suppress(subprocess.SubprocessError):
            self.run(["scancel", "--user=root"])
            self.run(["scancel", "--user=root", "--signal=KILL", "--full"])
        for process in self._started.values():
            process.terminate()
        for process in self._started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        # What a slurmd has started outlives it.
        for name in self._network.names:
            for _ in range(3):
                listed = subprocess.run(
                    ["ip", "netns", "pids", name], capture_output=True, text=True, timeout=30
                )
                for pid in listed.stdout.split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)

    def run(self, command, seconds=60, **named):
        """Runs a command on the login node, to its end."""
        named = {"capture_output": True, "text": True, "env": self.environment, **named}
        return subprocess.run(
            self.command(command), timeout=seconds, stdin=subprocess.DEVNULL, **named
        )

    def start(self, command, **named):
        """Starts a command on the login node; the caller ends it."""
        named = {"env": self.environment, "stdin": subprocess.DEVNULL, **named}
        return subprocess.Popen(self.command(command), start_new_session=True, **named)

    def command(self, command):
        return self._on_host(0, command)

    def _on_host(self, index, command):
        """The command in the network of a host, with the names of all hosts in /etc/hosts."""
        # Not ip netns exec: it hides /sys/fs/cgroup, which slurmd looks at.
        script = f'mount --bind {shlex.quote(str(self.folder / "hosts"))} /etc/hosts && exec "$@"'
        network = f"--net=/run/netns/{self._network.names[index]}"
        return ["nsenter", network, "unshare", "--mount", "sh", "-c", script, "sh", *command]

    def job(self, job_id):
        """What Slurm says about a job, by name."""
        done = self.run(["scontrol", "show", "job", "--oneliner", str(job_id)])
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    def down(self, name):
        """Sets a host down, as an operator would."""
        self.run(
            ["scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test"], check=True
        )

    def up(self, name):
        """Sets it back, as soon as it has given back what ran there."""

        def resumed():
            self.run(["scontrol", "update", f"NodeName={name}", "State=RESUME"])
            return self._are_idle()

        self.wait_for(resumed, "the hosts are idle")

    def pids(self, name):
        """The processes of a host: {pid: command line}."""
        index = self.names.index(name) + 1
        listed = subprocess.run(
            ["ip", "netns", "pids", self._network.names[index]],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        found = {}
        for pid in listed.stdout.split():
            with contextlib.suppress(OSError):
                words = pathlib.Path("/proc", pid, "cmdline").read_bytes()
                found[int(pid)] = words.replace(b"\0", b" ").decode()
        return found

    def tasks(self):
        """The tasks that run on all hosts: {pid: command line}."""
        return {
            pid: command
            for name in self.names
            for pid, command in self.pids(name).items()
            if "-m tfdp.run" in command and "srun" not in command and "tfdp launch" not in command
        }

    def wait_for(self, is_true, what, seconds=_SECONDS):
        until = time.monotonic() + seconds
        while not (value := is_true()):
            assert time.monotonic() < until, f"{what}: not after {seconds} s\n{self._logs()}"
            for name, process in self._started.items():
                assert process.poll() is None, f"{name} has ended\n{self._logs()}"
            time.sleep(0.1)
        return value

    def wait_for_no_tasks(self, seconds=_SECONDS):
        self.wait_for(lambda: not self.tasks(), "no task is left", seconds)

    def _are_idle(self):
        done = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"])
        return done.stdout.split()[1::2] == ["idle"] * len(self.names)

    def _daemon(self, program, index, words, name="login"):
        log = open(self.folder / f"{program}-{name}.log", "wb")
        with log:
            self._started[f"{program} {name}"] = subprocess.Popen(
                self._on_host(index, [_found(program), "-D", *words]),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _munge(self):
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        with open(folder / "log", "wb") as log:
            self._started["munged"] = subprocess.Popen(
                [
                    *(_found("munged"), "--foreground", "--force"),
                    *(f"--{flag}={folder / name}" for flag, name in files.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for((folder / "socket").exists, "munged listens")

    def _configure(self):
        folder, addresses = self.folder, self._network.addresses
        for name in ("state", "spool"):
            (folder / name).mkdir()
        last = len(self.names)
        lines = [
            "ClusterName=tfdp",
            f"SlurmctldHost={socket.gethostname()}({addresses[0]})",
            "SlurmUser=root",
            "SlurmdUser=root",
            # A job that starts again waits until the credentials of its last run have expired.
            f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool/%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            # No control groups: they are the machine's own.
            "ProctrackType=proctrack/pgid",
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "MpiDefault=none",
            # Often: a job that starts again is found by the next look at the queue.
            "SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SlurmdParameters=config_overrides",
            "ReturnToService=2",
            "KillWait=10",
            "GresTypes=gpu",
            *(
                f"NodeName={name} NodeAddr={addresses[index]} CPUs={CPUS} Gres=gpu:{GPUS}"
                for index, name in enumerate(self.names, 1)
            ),
            f"PartitionName=all Nodes=tf[1-{last}] Default=YES MaxTime=INFINITE State=UP",
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        # Any device file stands for a GPU: nobody opens it here.
        (folder / "gres.conf").write_text(f"Name=gpu File=/dev/tty[0-{GPUS - 1}]\n")
        names = [f"{addresses[index]} {name}" for index, name in enumerate(self.names, 1)]
        text = "\n".join(["127.0.0.1 localhost", *names, f"{addresses[0]} {socket.gethostname()}"])
        (folder / "hosts").write_text(text + "\n")

    def _logs(self):
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("slurm*.log"))
        )


@contextlib.contextmanager
def cluster(folder, count, environment):
    """So many hosts with Slurm, for as long as they are needed."""
    with hosts.network(count + 1) as network:
        made = Cluster(network, folder, count, environment)
        try:
            made.set_up()
            yield made
        finally:
            made.tear_down()
