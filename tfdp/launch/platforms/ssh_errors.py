"""What an ssh that has failed means, and what to do about it, on one line. Pure.

explain("b", 255, "me@b: Permission denied (publickey).", "python3")
# "b: ssh is refused (Permission denied (publickey)). Put your public key into ..."
"""

import re

from tfdp.launch.dry_run import quote

# What ssh says, what it means, what to do; {name} is the host.
_OF_SSH = (
    (
        r"Permission denied|Too many authentication failures|Authentications that can continue",
        "ssh is refused",
        "Put your public key into ~/.ssh/authorized_keys there (ssh-copy-id {name}), or start "
        "ssh-agent. Passwords are never asked for",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the key of the host is not known here, or is another one",
        "Connect once by hand and compare it: ssh {name}",
    ),
    (r"Could not resolve hostname", "there is no such host", "Look at its name, or ~/.ssh/config"),
    (
        r"Connection timed out|No route to host|Network is unreachable|Connection refused"
        r"|timed out during banner exchange|Connection closed by|kex_exchange_identification",
        "the host is not reached by ssh",
        "Is it up, does sshd run there, and does a firewall let you through",
    ),
    (
        r"Bad configuration option|command-line line|Bad owner or permissions|unknown option",
        "ssh does not take its settings",
        "Look at --ssh_args and ~/.ssh/config",
    ),
)


def explain(name: str, code: int | None, said: str, python: str) -> str:
    """Return why the agent did not start on a host, and what to do.

    Args:
        name: The host.
        code: The exit code of ssh; None where it does not answer.
        said: What ssh, and the host, have written.
        python: The interpreter that was to run there.
    """
    last = _last_line(said)
    if code is None:
        return f"{name}: no answer. Is it overloaded, or does its login shell wait for something?"
    if code == 255:
        for pattern, what, remedy in _OF_SSH:
            if found := _line_with(pattern, said):
                return f"{name}: {what} ({found}). {remedy.format(name=name)}."
        return f"{name}: ssh failed ({last or 'it says nothing'}). Try by hand: ssh {name} true"
    shown = quote(python)
    if found := _line_with(r"No module named '?tfdp", said):
        return (
            f"{name}: {shown} has no tfdp ({found}). Install it there, or name another interpreter "
            f"with --remote_python."
        )
    if code in (126, 127) or _line_with(r"No such file|[Nn]ot found", said):
        return (
            f"{name}: there is no Python {shown} ({last or f'code {code}'}). Name one that is "
            f"there with --remote_python."
        )
    return (
        f"{name}: {shown} -m tfdp.launch.agent failed with code {code} ({last}). It needs Python "
        f"3.11 or later, and tfdp."
    )


def lost(task: str, name: str, why: str) -> str:
    """Return the line of a task whose host, or the way to it, was lost."""
    return (
        f"tfdp: {task} ({name}) was lost: {why}. {name} has crashed, its link is cut, or its ssh "
        f"or its agent was killed."
    )


def _line_with(pattern: str, text: str) -> str:
    """The last line with the pattern, of printable characters."""
    lines = [line for line in text.splitlines() if re.search(pattern, line)]
    return _last_line(lines[-1]) if lines else ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return "".join(char if char.isprintable() else " " for char in line)[:200].rstrip(".")
