"""Keys that every experiment has: how and where it is launched. Their values are checked by `entropy_jax.training.app`."""

import ml_collections


def run_settings(config: ml_collections.ConfigDict) -> None:
  """Adds the keys that a run may change when it is resumed, because its numbers do not depend on them."""
  config.parallel = 'pmap'  # 'pmap': parameters replicated, batch split; 'fsdp': parameters and optimizer sharded too
  config.num_devices = 0  # devices to use, 0 for all
  # Several processes: '' takes JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID from the environment if they are set;
  # 'auto' asks the cluster (TPU pod, SLURM, Open MPI, Kubernetes); 'HOST:PORT,COUNT,INDEX' says it.
  config.distributed = ''
  config.profile_steps = ''  # 'FIRST-LAST': trace these steps of each training run of the experiment into its folder's profile/
  config.max_rejected = 3  # stop after so many steps in a row with an update that was not finite
