"""Wall time of the tabular study: plain GRPO and four interventions on fork_tokens, five seeds each, compilation included.

    python -m benchmarks.tabular_study

The compilation cache is left off, so every program is compiled. Limit: 60 s on 2 cores.
"""

import os
import pathlib
import tempfile
import time

import jax

from configs.entropy_mechanism import get_config
from entropy_jax import catalog
from experiments import entropy_mechanism

METHODS = ('grpo', 'clip_higher', 'clip_cov', 'kl_cov_1', 'entropy_bonus')


def main() -> None:
  config = get_config()
  config.tabular.num_seeds = 5
  objectives = {name: catalog.build(config.tabular.methods[name].to_dict()) for name in METHODS}
  with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    entropy_mechanism.tabular('fork_tokens', config, objectives, pathlib.Path(folder))
    seconds = time.perf_counter() - started
  cores = len(os.sched_getaffinity(0))
  print(f'{len(METHODS)} methods x 5 seeds x {config.tabular.fork_tokens.num_steps} rollouts: {seconds:.1f} s of wall time')
  print(f'{seconds / 60:.2f} of the limit of 60 s; {cores} cores, jax {jax.__version__}, {jax.devices()[0].device_kind}')


if __name__ == '__main__':
  main()
