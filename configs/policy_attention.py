"""Policy entropy and attention entropy of one transformer: what the one does when reinforcement learning collapses the other.

Command:  python -m experiments.policy_attention --config=configs/policy_attention.py --workdir=DIR
          `:tiny` is the same study in less than a minute, for a look and for tests; its verdicts are inconclusive by construction
          (2 seeds).
Expected: the table of the report.
Time:     budgeted at 4 minutes on 2 CPU cores.
Claims:   no paper asks this. Predictions of this project: attention entropy falls with policy entropy and stays where the latter is held;
          sigmaReparam keeps more of it; the law R = -a exp(H) + b and the covariance identity of Cui et al., arXiv 2505.22617, hold in
          every variant, with the same coefficients.

Criteria are code, in entropy_jax/analysis/policy_attention.py, written before the study was run.
"""

from typing import Any

import ml_collections

from configs import common
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'num_seeds': 'int [1, 10000]',
  'task.num_prompts': 'int [1, inf)',
  'task.num_tokens': 'int [2, inf)',
  'task.vocab_size': 'int [2, inf)',
  'num_steps': 'int [8, inf)',
  'block': 'int [1, inf)',
  'group_size': 'int [2, 65536]',
  'learning_rate': '(0, inf)',
  'warm_start.num_steps': 'int [1, inf)',
  'warm_start.learning_rate': '(0, inf)',
  'max_grad_norm': '(0, inf)',
  'decoder': 'decoder',
  'variants.*': 'decoder',
  'objective': 'objective',
  'held_objective': 'objective',
}


def _objective(*regularizers: dict[str, Any]) -> ConfigDict:
  """GRPO, all parts as data (entropy_jax.catalog.build); one update on every rollout, so that the clip never acts."""
  return ConfigDict({
    'advantages': [{'name': 'grpo', 'kwargs': {}}],
    'surrogates': [{'name': 'ppo_clip', 'kwargs': {'low': 0.2, 'high': 0.2}}],
    'regularizers': list(regularizers),
    'aggregate': 'token_mean',
  })  # fmt: skip


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/policy_attention.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key
  # Paired over variants: seed k has the same instance, and the same kernels at the start wherever the shapes are the same.
  config.num_seeds = 5
  config.task = ConfigDict()  # mod_sum: answers of digits whose sum must hit the prompt's target
  config.task.num_prompts = 16
  config.task.num_tokens = 6
  config.task.vocab_size = 6  # digits
  config.num_steps = 160  # rollouts, one update each
  config.block = 8  # updates whose mean makes a point of what is correlated; a divisor of num_steps
  config.group_size = 16  # responses to each prompt
  config.max_grad_norm = 1.0  # clipping by the global norm
  config.decoder = ConfigDict({
    'width': 32, 'num_layers': 2, 'num_heads': 4, 'mlp_width': 64, 'positions': 'learned', 'norm_kind': 'layer', 'activation': 'relu',
    'tie_embeddings': False,
  })  # fmt: skip
  # Name -> the fields that replace those of `decoder`; `pre_ln` is the baseline of every comparison.
  config.variants = ConfigDict({
    'pre_ln': {'norm': 'pre'},
    'qk_norm': {'norm': 'pre', 'qk_norm': 'layer'},
    'sigma_reparam': {'norm': 'none', 'linear': 'sigma_reparam'},
    'sigma_reparam_pre_ln': {'norm': 'pre', 'linear': 'sigma_reparam'},
  })  # fmt: skip
  # Of Adam. Of 1e-3, 3e-3 and 1e-2 the one with which pre_ln and sigma_reparam solve the task, with one seed of another root key each.
  config.learning_rate = 3e-3
  # Imitation of the task's table, so that all variants start as about the same policy, which is uncertain and sometimes right.
  config.warm_start = ConfigDict()
  config.warm_start.num_steps = 200
  config.warm_start.learning_rate = 1e-2  # Adam with a cosine
  config.objective = _objective()  # without any control of entropy
  # The control: the baseline learns with its policy entropy held, so that what else changes while it learns is seen.
  # A first run had the controller's default step and an initial 0, with which two seeds of five lost their entropy all the same: it held
  # nothing and said nothing. This, and nothing else, was changed after that run.
  config.held_objective = _objective({'name': 'adaptive_entropy', 'kwargs': {'target': 1.0, 'step': 0.02, 'initial': 0.1}})

  if variant == 'tiny':
    config.num_seeds = 2
    config.task.num_prompts = 4
    config.task.num_tokens = 3
    config.num_steps = 20
    config.block = 5
    config.group_size = 4
    config.warm_start.num_steps = 5
    config.decoder.width = 16
    config.decoder.num_heads = 2
    config.decoder.mlp_width = 16
    config.decoder.num_layers = 1
    for name in ('qk_norm', 'sigma_reparam_pre_ln'):
      del config.variants[name]
  return config
