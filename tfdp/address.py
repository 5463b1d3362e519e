"""An address: "host:port", an IPv6 host in brackets.

    address.split("a:2222")      # ("a", 2222)
    address.split("[::1]:2222")  # ("::1", 2222)
    address.split("a")           # ValueError: without a port. Write "host:port", as in "host:2222".

Names are not looked up: only what can never be an address is refused.
"""

import re
from typing import Any

# Letters, digits, dots, dashes and the underscores of container networks. Whatever else stands in
# a host name is a mistake, or worse, once the name reaches ssh or a shell.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


def split(address: Any) -> tuple[str, int]:
    """Takes an address apart, an IPv6 host without its brackets.

    Raises:
      ValueError: It is none. The message goes on after the words "the address ...,".
    """
    if not isinstance(address, str):
        raise ValueError('not text. Write "host:port".')
    if any(char.isspace() or not char.isprintable() for char in address):
        raise ValueError('with a space or control character. Write "host:port".')
    if "://" in address:
        raise ValueError('with a scheme. Write only "host:port".')
    if address.startswith("["):
        host, closed, rest = address[1:].partition("]")
        if not closed or rest[:1] not in ("", ":") or not _is_ipv6(host):
            raise ValueError('which is no IPv6 address. Write it like "[::1]:2222".')
        port = rest[1:]
    else:
        host, colon, port = address.rpartition(":")
        if not colon:
            host, port = port, ""
        if ":" in host:
            raise ValueError('with several colons. Write "host:port", IPv6 like "[::1]:2222".')
        if host and not _HOST.fullmatch(host):
            raise ValueError("whose host is no host name. Use letters, digits, dots and dashes.")
    if not host:
        raise ValueError('without a host. Write "host:port", as in "localhost:2222".')
    if not port:
        raise ValueError('without a port. Write "host:port", as in "host:2222".')
    # Not isdigit(): it takes the digits of every script.
    if not re.fullmatch("[0-9]+", port):
        raise ValueError("whose port is not a number. Use 1 to 65535.")
    if len(port) > 5 or not 1 <= int(port) <= 65535:
        raise ValueError("whose port is out of range. Use 1 to 65535.")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    import ipaddress  # Few clusters need it, and start-up counts.

    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
