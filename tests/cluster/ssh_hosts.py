"""Hosts with an sshd each, in network namespaces without a loopback in common.

    with ssh_hosts.network(folder, 3, environment) as network:
        words = network.words("launch", network.hosts(2, 2, 1), "--workers=5", "--", "a.py")
        done = network.run(words, folder)
        network.cut(1)

Host 0, 1, ... take tasks; the launcher runs on one more, the last. Keys, configurations and the
hosts' own keys are made in the folder: neither the machine's sshd nor anybody's ~/.ssh is touched.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

from cluster import hosts, processes

ROOT = pathlib.Path(__file__).parents[2]
PYTHON_PATH = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))


def missing():
    """Why there can be no such hosts here; "" when there can."""
    for name, path in (("sshd (openssh-server)", SSHD), ("ssh", shutil.which("ssh"))):
        if path is None:
            return f"{name} is not installed"
    if os.getuid():
        return "sshd of several users needs root"
    return hosts.missing()


class Network(hosts.Network):
    """The hosts, with an sshd on all but the last."""

    def __init__(self, folder, count, environment):
        super().__init__(count + 1)
        self.folder = folder
        self.environment = environment
        self.config = folder / "ssh_config"

    def set_up(self):
        super().set_up()
        self.folder.mkdir(exist_ok=True)
        # sshd insists on that folder, which is that of every sshd of a machine.
        os.makedirs("/run/sshd", exist_ok=True)
        for name in ("user", "host"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name]
            subprocess.run(key, check=True, timeout=30)
        (self.folder / "nobody").touch()
        key = (self.folder / "host.pub").read_text().split()[:2]
        known = [" ".join([address, *key]) for address in self.addresses]
        (self.folder / "known_hosts").write_text("\n".join(known) + "\n")
        self.config.write_text(
            f"IdentityFile {self.folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile none\n"
            f"StrictHostKeyChecking yes\n"
        )

    def start_sshd(self, index, before="true", keys="user.pub"):
        """Starts the sshd of a host.

        Args:
            index: Which.
            before: A command of a shell that is run there first, with mounts of its own.
            keys: The file of the keys that may enter.
        """
        config = self.folder / f"sshd_config_{index}"
        kept = ("TFDS_DATA_DIR", "CUDA_VISIBLE_DEVICES", "PATH")
        given = {name: self.environment[name] for name in kept}
        given["PYTHONPATH"] = PYTHON_PATH
        config.write_text(
            f"ListenAddress {self.addresses[index]}\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/{keys}\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
            f"PrintMotd no\nSetEnv " + " ".join(f'"{k}={v}"' for k, v in given.items()) + "\n"
        )
        with open(self.folder / f"sshd_{index}.log", "wb") as log:
            process = self.start(
                index,
                ["sh", "-c", f"{before} && exec {SSHD} -D -e -f {config}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        processes.wait_for_text(self.folder / f"sshd_{index}.log", "listening on", 30, process)

    def hosts(self, *slots):
        """The --hosts of the first hosts, with so many slots."""
        pairs = zip(self.addresses, slots, strict=False)
        return "--hosts=" + ",".join(f"{address}:{count}" for address, count in pairs)

    def words(self, verb, *words):
        """The command line of tfdp with ssh's own settings."""
        options = [f"--ssh_args=-F '{self.config}'", "--platform=ssh"]
        return [processes.TFDP, verb, *options, *words]

    @contextlib.contextmanager
    def started(self, command, folder, **variables):
        """A running command on the launcher's host."""
        environment = {**self.environment, "PYTHONPATH": PYTHON_PATH, **variables}
        process = self.start(
            len(self.addresses) - 1,
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=30)
            process.stdout.close()
            process.stderr.close()

    def run(self, command, folder, seconds=120, **variables):
        """Runs a command on the launcher's host to its end."""
        with self.started(command, folder, **variables) as process:
            out, err = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self, word):
        """The processes on any of the hosts whose command line has that word: {pid: its host}."""
        found = {}
        inodes = {}
        for index, name in enumerate(self.names):
            inodes[os.stat(f"/run/netns/{name}").st_ino] = index
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                command = pathlib.Path("/proc", entry, "cmdline").read_bytes()
                index = inodes.get(os.stat(f"/proc/{entry}/ns/net").st_ino)
                if index is not None and word.encode() in command:
                    found[int(entry)] = index
        return found

    def left_after(self, seconds):
        """Waits for all processes of tfdp to end; returns those that still run after so long."""
        until = time.monotonic() + seconds
        while (found := self.processes("tfdp")) and time.monotonic() < until:
            time.sleep(0.05)
        return found


@contextlib.contextmanager
def network(folder, count, environment, sshd=True):
    """So many hosts and the launcher's, for as long as they are needed."""
    made = Network(folder, count, environment)
    try:
        made.set_up()
        for index in range(count if sshd else 0):
            made.start_sshd(index)
        yield made
    finally:
        made.tear_down()
