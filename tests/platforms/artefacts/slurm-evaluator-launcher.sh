#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --ntasks=3
#SBATCH '--chdir=/home/me/a b'
#SBATCH --output=/runs/a%%1/slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

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

# exec: the signal comes to the launcher.
exec python3 -m tfdp launch --platform=slurm --workers=2 --evaluator --env=HF_TOKEN --env=PIN --job_name=digits --log_dir=/runs/a%1 --signal=USR1@300 -- train.py --lr=0.1
