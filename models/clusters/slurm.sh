#!/bin/bash
# PLaMo-13B on 60 nodes of 8 GPUs under Slurm: sbatch models/clusters/slurm.sh RECIPE [kumi train's options]
#SBATCH --nodes=60
#SBATCH --ntasks-per-node=8
#SBATCH --distribution=block
#SBATCH --signal=TERM@120
# SIGTERM two minutes before the end: all ranks save after the same step, and the next job goes on with --resume.
set -euo pipefail
recipe=$1
shift
exec srun --mpi=pmix kumi train "$recipe" --resume \
  --set sharding=zero3_local --set quantize.weights=nf4 --set precision=BF16 "$@"
