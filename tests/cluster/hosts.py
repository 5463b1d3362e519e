"""Several hosts on this machine: network namespaces, each with an address and a link of its own.

    with hosts.network(3) as network:
        process = network.start(0, ["python", "train.py"], env=..., stdout=...)
        network.cut(1)
        network.mend(1)

A bridge in a namespace of its own is the switch. Needs root (or the right to make namespaces), ip
and tc; `missing()` says what is not there.
"""

import contextlib
import itertools
import os
import pathlib
import subprocess

SUBNET = "10.213.97"
_numbers = itertools.count()


def missing():
    """Why this machine can have no such hosts; "" when it can."""
    for command in (["ip", "-V"], ["tc", "-V"]):
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return f"{command[0]} is not installed (iproute2)"
    name = f"tfdp-{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.decode().strip()}"
    try:
        # What a host needs: a bridge, and a link that can be limited.
        _ip("-n", name, "link", "add", "br0", "type", "bridge")
        _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        _limit(name, "eth0")
    except subprocess.CalledProcessError as error:
        return f"links between namespaces are not permitted: {error.stderr.decode().strip()}"
    finally:
        _ip("netns", "del", name)
    return ""


class Network:
    """Hosts 0, 1, ... and the switch between them.

    Args:
        count: How many.
        rate: Of each link, as tc writes it.
        burst: What passes at once after a pause, as tc writes it.
    """

    def __init__(self, count, rate="1gbit", burst="256kb"):
        self._limit = (rate, burst)
        # Several networks of one process are strangers to each other, with the same addresses.
        name = f"tfdp-{os.getpid()}-{next(_numbers)}"
        self.names = [f"{name}-{index}" for index in range(count)]
        self._switch = f"{name}-switch"
        self.addresses = [f"{SUBNET}.{index + 1}" for index in range(count)]
        self._started = []

    def set_up(self):
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for index, name in enumerate(self.names):
            _ip("netns", "add", name)
            # Both ends are made in namespaces: none of this is seen by the machine itself.
            _ip(
                *("-n", name, "link", "add", "eth0", "type", "veth"),
                *("peer", "name", f"port{index}", "netns", self._switch),
            )
            _ip("-n", self._switch, "link", "set", f"port{index}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{self.addresses[index]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            _limit(name, "eth0", *self._limit)
            _limit(self._switch, f"port{index}", *self._limit)

    def tear_down(self):
        for process in self._started:
            process.kill()
            process.wait(timeout=30)
        for name in (*self.names, self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def start(self, index, command, **named):
        """Starts a process on a host; it is ended with the network."""
        process = subprocess.Popen(["ip", "netns", "exec", self.names[index], *command], **named)
        self._started.append(process)
        return process

    def name_hosts(self, lines):
        """Gives every host a hosts file of these lines; returns the files, to be removed."""
        files = []
        for name in self.names:
            file = pathlib.Path("/etc/netns", name, "hosts")  # `ip netns exec` puts it in place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{line}\n" for line in lines))
            files.append(file)
        return files

    def cut(self, index):
        """Cuts a host's link: packets vanish, nobody is told."""
        _ip("-n", self._switch, "link", "set", f"port{index}", "nomaster")

    def mend(self, index):
        """Puts the link back."""
        _ip("-n", self._switch, "link", "set", f"port{index}", "master", "br0")


@contextlib.contextmanager
def network(count, rate="1gbit", burst="256kb"):
    """So many hosts, for as long as they are needed."""
    made = Network(count, rate, burst)
    try:
        made.set_up()
        yield made
    finally:
        made.tear_down()


def _limit(name, link, rate="1gbit", burst="256kb"):
    subprocess.run(
        [
            *("tc", "-n", name, "qdisc", "add", "dev", link, "root"),
            *("tbf", "rate", rate, "burst", burst, "latency", "50ms"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
