#!/bin/bash
# The same under PBS with Open MPI: qsub -v RECIPE=/path/to/recipe.txtpb models/clusters/pbs.sh
#PBS -l select=60:mpiprocs=8
#PBS -l place=scatter
set -euo pipefail
cd "$PBS_O_WORKDIR"
exec mpirun -n 480 --map-by ppr:8:node kumi train "$RECIPE" --resume \
  --set sharding=zero3_local --set quantize.weights=nf4 --set precision=BF16
