"""The bash script of tasks on hosts: what --dry-run prints, and --output writes. Pure.

    print(render(job, placed, ssh, directory="/shared/digits"))

It needs bash 5.1 and ssh here, bash and tfdp on the hosts, and nothing of tfdp's launcher. All that
a host is told goes over standard input, as lines of bash: no secret is in an argument list, and
whatever stands in a path or a value is quoted once. A task is ended when its standard input is
closed or silent, which is when the script, its ssh or the link has ended.
"""

from collections.abc import Sequence

from tfdp import cluster as cluster_lib
from tfdp.launch import discovery, hosts, plan
from tfdp.launch.dry_run import quote
from tfdp.launch.platforms import ssh_hosts
from tfdp.launch.platforms.job import Job

# What it takes where no port is named: --dry-run asks no host which are free.
_FIRST_PORT = 2222

_SCRIPT = """\
#!/usr/bin/env bash
# {title}
# Made by tfdp launch --platform=ssh. It needs bash 5.1 and ssh here, bash and tfdp on the hosts.
{secrets_comment}set -u
ssh=({ssh})
logs={logs}
mkdir -p -- "$logs" || exit
{sync}
# What each host is told over standard input. It ends the task when nothing comes any more.
IFS= read -r -d '' program <<'PROGRAM'
{program}
PROGRAM

# {told}
tell() {{
  printf 'export {index}=%q\\n' "$1"
{gpus}{secrets}  printf '%s\\n' "$program"
  while kill -0 $$ 2>/dev/null; do echo; sleep 1; done
}}

# {order}
trains=() others=()
{tasks}
trap 'kill "${{trains[@]}}" "${{others[@]}}" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Until all that train have ended well, or any has failed.
left=${{#trains[@]}} code=0
while ((left)); do
  wait -n -p ended "${{trains[@]}}" "${{others[@]}}"
  code=$?
  ((code == 0)) || break
  keep=()
  for pid in "${{trains[@]}}"; do [ "$pid" = "$ended" ] || keep+=("$pid"); done
  trains=("${{keep[@]}}") left=${{#keep[@]}}
  keep=()
  for pid in "${{others[@]}}"; do [ "$pid" = "$ended" ] || keep+=("$pid"); done
  others=("${{keep[@]}}")
done
exit "$code"
"""

_PROGRAM = """\
{{
cd -- {directory} || exit 126
{exports}
set -m  # a process group for the task, so that all that it starts is ended with it
{command} </dev/null &
task=$!
{{ while read -r -t 10 _; do :; done; kill -KILL -- "-$task"; }} <&0 2>/dev/null &
wait "$task"
code=$?
kill -KILL -- "-$task" "-$!" 2>/dev/null
exit "$code"
}}"""


def render(
    job: Job,
    placed: Sequence[hosts.Host],
    ssh: ssh_hosts.Ssh,
    *,
    directory: str,
    first_port: int = 0,
    sync: bool = False,
) -> str:
    """Return the script.

    Args:
        job: What is run.
        placed: The host of each task.
        ssh: How hosts are reached.
        directory: The folder on the hosts.
        first_port: The port of the first task of each host.
        sync: Whether the folder is copied to them first.

    Raises:
        Error: The addresses make no cluster.
    """
    used: dict[str, int] = {}
    addresses = []
    for host in placed:
        number = used[host.name] = used.get(host.name, -1) + 1
        addresses.append(host.at((first_port or _FIRST_PORT) + number))
    cluster = job.shape.cluster(addresses)
    secrets = job.secret_names()
    variables = {**job.open_environment(), **job.task_environment()}
    variables[discovery.CLUSTER_VARIABLE] = discovery.cluster_text(cluster)
    gpus = _gpus(job, cluster, placed) if job.gpus_per_task else {}
    command = (ssh.python, *job.command[1:])
    program = _PROGRAM.format(
        directory=_home(directory),
        exports="\n".join(f"export {name}={quote(value)}" for name, value in variables.items()),
        command=" ".join([_home(command[0]), *map(quote, command[1:])]),
    )
    names = list(dict.fromkeys(host.name for host in placed))
    return _SCRIPT.format(
        title=f"{quote(job.name)}: {job.shape} on {', '.join(names)}",
        secrets_comment=(
            f"# Set these before you run it: {', '.join(secrets)}.\n" if secrets else ""
        ),
        ssh=" ".join(map(quote, ssh.words("")[1:-2])),
        logs=quote(job.log_dir),
        sync=_sync(job, names, ssh, directory) if sync else "",
        program=program,
        told=f"The number of the task{', its GPUs' * bool(gpus)}{', the secrets' * bool(secrets)}, "
        f"the program, then a sign of life each second.",
        gpus="  printf 'export CUDA_VISIBLE_DEVICES=%q\\n' \"$2\"\n" if gpus else "",
        index=discovery.INDEX_VARIABLE,
        secrets="".join(
            f"  printf 'export {name}=%q\\n' \"${{{name}?Set it.}}\"\n" for name in secrets
        ),
        order=f"In the order of their numbers: {', '.join(map(str, job.shape.tasks))}.",
        tasks="\n".join(
            f"tell {number}{f' {gpus[task]}' if gpus else ''} "
            f'| ssh "${{ssh[@]}}" {quote(host.name)} exec bash -s'
            f"{_log(task, number)} & {_list(task, job)}+=($!)"
            for number, (task, host) in enumerate(zip(job.shape.tasks, placed, strict=True))
        ),
    )


def _home(path: str) -> str:
    """A path there, where a leading ~/ is the user's folder."""
    return "~/" + quote(path[2:]) if path.startswith("~/") and path != "~/" else quote(path)


def _gpus(
    job: Job, cluster: cluster_lib.Cluster, placed: Sequence[hosts.Host]
) -> dict[cluster_lib.Task, str]:
    """The GPUs of each task, by their numbers: which a host has is not known here."""
    most = [str(number) for number in range(job.gpus_per_task * len(placed))]
    return hosts.share_gpus(
        dict(zip(job.shape.tasks, placed, strict=True)),
        plan.computing(cluster),
        {host.name: most for host in placed},
        job.gpus_per_task,
    )


def _log(task: cluster_lib.Task, number: int) -> str:
    # The first one, which reports, is shown as well.
    name = plan.log_name(task)
    return f' >"$logs"/{name} 2>&1' if number else f' > >(tee -- "$logs"/{name}) 2>&1'


def _list(task: cluster_lib.Task, job: Job) -> str:
    serves = task.type in ("ps", "evaluator") or (task.type == "worker" and job.shape.ps)
    return "others" if serves else "trains"


def _sync(job: Job, names: Sequence[str], ssh: ssh_hosts.Ssh, directory: str) -> str:
    lines = [
        " ".join(map(quote, ssh_hosts.rsync(job.directory, directory, name, ssh))) + " || exit"
        for name in names
    ]
    return "\n".join(lines) + "\n"
