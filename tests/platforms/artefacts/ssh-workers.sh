#!/usr/bin/env bash
# digits: worker=2 on a
# Made by tfdp launch --platform=ssh. It needs bash 5.1 and ssh here, bash and tfdp on the hosts.
# Set these before you run it: TOKEN.
set -u
ssh=(-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=3 -o ServerAliveCountMax=3 -o ClearAllForwardings=yes -o RequestTTY=no -o RemoteCommand=none)
logs=/shared/runs/a
mkdir -p -- "$logs" || exit

# What each host is told over standard input. It ends the task when nothing comes any more.
IFS= read -r -d '' program <<'PROGRAM'
{
cd -- '/shared/my code' || exit 126
export LEVEL=yes
export TFDP_SEED=7
export PYTHONUNBUFFERED=1
export TFDP_CLUSTER='{"worker": ["a:2222", "a:2223"]}'
set -m  # a process group for the task, so that all that it starts is ended with it
/venv/bin/python -m tfdp.run train.py '--name=a b' $'--note=it\x27s "on"\x0a$(HOME)' </dev/null &
task=$!
{ while read -r -t 10 _; do :; done; kill -KILL -- "-$task"; } <&0 2>/dev/null &
wait "$task"
code=$?
kill -KILL -- "-$task" "-$!" 2>/dev/null
exit "$code"
}
PROGRAM

# The number of the task, the secrets, the program, then a sign of life each second.
tell() {
  printf 'export TFDP_TASK_INDEX=%q\n' "$1"
  printf 'export TOKEN=%q\n' "${TOKEN?Set it.}"
  printf '%s\n' "$program"
  while kill -0 $$ 2>/dev/null; do echo; sleep 1; done
}

# In the order of their numbers: worker:0, worker:1.
trains=() others=()
tell 0 | ssh "${ssh[@]}" a exec bash -s > >(tee -- "$logs"/worker-0.log) 2>&1 & trains+=($!)
tell 1 | ssh "${ssh[@]}" a exec bash -s >"$logs"/worker-1.log 2>&1 & trains+=($!)
trap 'kill "${trains[@]}" "${others[@]}" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Until all that train have ended well, or any has failed.
left=${#trains[@]} code=0
while ((left)); do
  wait -n -p ended "${trains[@]}" "${others[@]}"
  code=$?
  ((code == 0)) || break
  keep=()
  for pid in "${trains[@]}"; do [ "$pid" = "$ended" ] || keep+=("$pid"); done
  trains=("${keep[@]}") left=${#keep[@]}
  keep=()
  for pid in "${others[@]}"; do [ "$pid" = "$ended" ] || keep+=("$pid"); done
  others=("${keep[@]}")
done
exit "$code"
