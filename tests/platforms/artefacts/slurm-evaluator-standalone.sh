#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --ntasks=3
#SBATCH '--chdir=/home/me/a b'
#SBATCH --output=/runs/a%%1/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

# Submit it with: mkdir -p /runs/a%1 && sbatch FILE
: "${HF_TOKEN:?is not set. Set it where you submit this script.}"
: "${PIN:?is not set. Set it where you submit this script.}"
export A='it'"'"'s'
export TFDP_SEED=7
export TFDP_EVALUATOR=slurm-$SLURM_JOB_ID
export PYTHONUNBUFFERED=1
export TFDP_TASKS=worker=2,evaluator=1
export TFDP_RESTART=${SLURM_RESTART_COUNT:-0}
# srun does not inherit it any more since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The tasks are told as well: they save, and end with 143.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1
said=/runs/a%1/srun-$SLURM_JOB_ID.txt
srun --job-name=digits --ntasks=3 --kill-on-bad-exit=1 --wait=600 --export=ALL --unbuffered --open-mode=append --output=/runs/a%%1/task-%t.log python3 -m tfdp.run train.py --lr=0.1 2>"$said" &
step=$!
# A signal ends wait before the step has ended.
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done
cat "$said" >&2

# The code of srun is the highest of all tasks, those that it has ended included: what it
# says of each counts. 143: saved. 2: a bad setting, which no new start mends.
again=
if grep -q "Exited with exit code 143$" "$said"; then
  again=yes
elif [ $code != 0 ] && ! grep -q "Exited with exit code 2$" "$said"; then
  [ "${SLURM_RESTART_COUNT:-0}" -ge 0 ] || again=yes
fi
# A job that was cancelled, or that Slurm itself starts again, is not RUNNING any more.
if [ -n "$again" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
