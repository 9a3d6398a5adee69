#!/bin/bash
for task in 0 1; do
  SLURM_JOB_ID=@JOB@ SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
  tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait $task || code=$?; done
exit $code
