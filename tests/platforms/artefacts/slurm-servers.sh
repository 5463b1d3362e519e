#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --ntasks=5
#SBATCH --cpus-per-task=4
#SBATCH --partition=long
#SBATCH --account=me
#SBATCH '--chdir=/shared/my code'
#SBATCH --output=/shared/runs/a/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --mem=4G

# Submit it with: mkdir -p /shared/runs/a && sbatch FILE
: "${TOKEN:?is not set. Set it where you submit this script.}"
export LEVEL=yes
export TFDP_SEED=7
export PYTHONUNBUFFERED=1
export TFDP_TASKS=chief=1,worker=2,ps=2
export TFDP_RESTART=${SLURM_RESTART_COUNT:-0}
# srun does not inherit it any more since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The tasks are told as well: they save, and end with 143.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
said=/shared/runs/a/srun-$SLURM_JOB_ID.txt
srun --job-name=digits --ntasks=5 --kill-on-bad-exit=1 --wait=600 --export=ALL --unbuffered --open-mode=append --output=/shared/runs/a/task-%t.log /venv/bin/python -m tfdp.run -m pkg.train 2>"$said" &
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
  [ "${SLURM_RESTART_COUNT:-0}" -ge 3 ] || again=yes
fi
# A job that was cancelled, or that Slurm itself starts again, is not RUNNING any more.
if [ -n "$again" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
