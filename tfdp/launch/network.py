"""Addresses of a cluster as sockets: who may be reached there, and listening at one's own.

network.refuse_public(cluster)           # no address that the whole internet may reach
listener = network.listen(cluster, task)
family, address = network.resolve(cluster, other, trust_network=False)
"""

import contextlib
import ipaddress
import socket
from collections.abc import Mapping

from tfdp.cluster import Cluster, ClusterError, Task

TRUST_VARIABLE = "TFDP_TRUST_NETWORK"


def is_trusted(environ: Mapping[str, str]) -> bool:
    """Whether addresses that the whole internet may reach are allowed."""
    return environ.get(TRUST_VARIABLE, "") not in ("", "0")


def refuse_public(cluster: Cluster) -> None:
    """Refuses addresses that anybody in the internet may reach; names are not looked up.

    Raises:
      ClusterError: There is one.
    """
    for task in cluster.tasks:
        _refuse_public(task, cluster.address(task), cluster.host(task))


def listen(cluster: Cluster, task: Task) -> socket.socket:
    """Listens at a task's own address: where that is loopback, there; else on every interface.

    Raises:
      OSError: It is taken, or not permitted.
    """
    host, port = cluster.host(task), cluster.port(task)
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", port), backlog=128)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
    return socket.create_server(("", port), backlog=128)


def resolve(cluster: Cluster, task: Task, trust_network: bool) -> tuple[int, tuple]:
    """The family and the address of a task, looked up.

    Raises:
      OSError: The name is not found.
      ClusterError: It is one that the whole internet may reach, and that is not allowed.
    """
    found = socket.getaddrinfo(cluster.host(task), cluster.port(task), type=socket.SOCK_STREAM)
    # IPv4 first, as the servers of TensorFlow are usually reached.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    if not trust_network:
        _refuse_public(task, cluster.address(task), str(address[0]))
    return family, address


def _refuse_public(task: Task, shown: str, host: str) -> None:
    try:
        is_public = ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return  # a name
    if is_public:
        raise ClusterError(
            f"{task} has the address {shown}, which the whole internet may reach, and TensorFlow's "
            f"server asks for no password. Use addresses of a private network; or, where a "
            f"firewall keeps others out, give --trust-network ({TRUST_VARIABLE}=1)."
        )
