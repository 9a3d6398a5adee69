"""The entropy mechanism of reinforcement learning with verifiable rewards: collapse, its theorem, its law, and what holds it off.

Command:  make study-entropy_mechanism, part of make reproduce
          (or: python -m experiments.entropy_mechanism --config=configs/entropy_mechanism.py --workdir=DIR)
Expected: the table in README.md.
Time:     about 10 minutes on 2 CPU cores by itself.
          `:tiny` is the same study in about a minute, for a look and for tests; its verdicts are inconclusive by
          construction (2 seeds).
Claims:   Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617;
          Yu et al., DAPO, arXiv 2503.14476 (clip-higher).
"""

import ml_collections

from configs import common
from entropy_jax.models import presets
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'tiny')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'ledger': 'bool',
  'attention': 'bool',
  'tabular.num_seeds': 'int [0, inf)',
  'tabular.methods.*': 'objective',
  **{
    f'tabular.{task}.{key}': allowed
    for task in ('fork_tokens', 'mod_sum')
    for key, allowed in {
      'num_steps': 'int [1, inf)',
      'group_size': 'int [1, inf)',
      'num_epochs': 'int [1, inf)',
      'learning_rate': '(0, inf)',
      'matched_success': '(0, 1)',
    }.items()
  },
  'countdown.dataset': 'countdown/three | countdown/three_many | countdown/four',
  'countdown.data_dir': 'folder',
  'countdown.num_seeds': 'int [0, inf)',
  'countdown.model_preset': ' | '.join(presets.PRESETS),
  'countdown.model': 'decoder',
  'countdown.warm_start.num_steps': 'int [1, inf)',
  'countdown.warm_start.batch_size': 'int [1, inf)',
  'countdown.warm_start.learning_rate': '(0, inf)',
  'countdown.warm_start.warmup_steps': 'int [0, inf)',
  'countdown.objective': 'objective',
  'countdown.num_steps': 'int [1, inf)',
  'countdown.num_prompts': 'int [1, 65536]',
  'countdown.group_size': 'int [1, 65536]',
  'countdown.num_epochs': 'int [1, inf)',
  'countdown.num_minibatches': 'int [1, inf)',
  'countdown.num_slices': 'int [1, inf)',
  'countdown.temperature': '(0, inf)',
  'countdown.learning_rate': '(0, inf)',
  'countdown.max_grad_norm': '(0, inf)',
  'countdown.evaluate_every': 'int [0, inf)',
  'countdown.num_eval_samples': 'int [1, inf)',
  'countdown.checkpoint_every': 'int [1, inf)',
}


def _objective(surrogate: str = 'ppo_clip', weights=(), regularizers=(), **surrogate_kwargs) -> ConfigDict:
  """GRPO advantages and token-mean aggregation around the given parts; all rooms are data (entropy_jax.catalog.build)."""
  return ConfigDict({
    'advantages': [{'name': 'grpo', 'kwargs': {}}],
    'weights': list(weights),
    'surrogates': [{'name': surrogate, 'kwargs': surrogate_kwargs}],
    'regularizers': list(regularizers),
    'aggregate': 'token_mean',
  })


def _kl_cov(coef: float) -> ConfigDict:
  # KL-Cov takes the place of the ratio clip: its surrogate is unclipped.
  return _objective('importance', regularizers=[{'name': 'kl_cov', 'kwargs': {'fraction': 0.02, 'coef': coef}}])


def _methods() -> ConfigDict:
  """Plain GRPO and the interventions. The tables have 32 (6) tokens where a language model has 150 000, so fractions of
  tokens are 10 to 100 times the papers' (0.02 against 2e-4 and 2e-3), and Clip-Cov's lower bound is a quantile."""
  clip_cov = {'fraction': 0.02, 'low_quantile': 0.98, 'cov_high': 1e9, 'clip_low': 0.2, 'clip_high': 0.2}
  return ConfigDict({
    'grpo': _objective(low=0.2, high=0.2),
    'clip_higher': _objective(low=0.2, high=0.28),
    'clip_cov': _objective(weights=[{'name': 'clip_cov', 'kwargs': clip_cov}], low=0.2, high=0.2),
    'kl_cov_1': _kl_cov(1.0),
    'kl_cov_5': _kl_cov(5.0),
    'entropy_bonus': _objective(regularizers=[{'name': 'entropy_bonus', 'kwargs': {'coef': 0.01}}], low=0.2, high=0.2),
  })


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/entropy_mechanism.py has no variant {variant!r}; allowed: tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key: instances, initial parameters, rollouts, shuffles

  config.ledger = False  # whether each update accounts for its entropy change, token by token; costs about three more passes
  config.attention = False  # whether each rollout of the transformer logs its attention, see training/attention.py; one more pass

  config.tabular = ConfigDict()
  # Vmapped, and paired over methods: seed k has the same instance and rollout noise in each. 0 leaves the tables out.
  config.tabular.num_seeds = 8
  config.tabular.methods = _methods()  # name -> objective
  config.tabular.fork_tokens = ConfigDict()
  config.tabular.fork_tokens.num_steps = 200  # rollouts
  config.tabular.fork_tokens.group_size = 16  # responses per prompt
  config.tabular.fork_tokens.num_epochs = 4  # full-batch updates per rollout
  config.tabular.fork_tokens.learning_rate = 20.0  # SGD on the token-mean loss
  config.tabular.fork_tokens.matched_success = 0.8  # methods are compared where they first reach it
  config.tabular.mod_sum = ConfigDict()
  config.tabular.mod_sum.num_steps = 200
  config.tabular.mod_sum.group_size = 8
  config.tabular.mod_sum.num_epochs = 4
  config.tabular.mod_sum.learning_rate = 46.0  # 0.36 per prompt and position, times 32 prompts and 4 positions
  config.tabular.mod_sum.matched_success = 0.9

  config.countdown = ConfigDict()
  config.countdown.dataset = 'countdown/three_many'  # TFDS name, prepared into data_dir on first use
  config.countdown.data_dir = 'data'  # under the workdir unless absolute
  config.countdown.num_seeds = 5  # reinforcement runs from one warm start; 0 leaves the transformer out
  config.countdown.model_preset = 'study_small'  # models.presets
  config.countdown.model = ConfigDict()  # fields of DecoderConfig that replace the preset's
  config.countdown.model.num_layers = 3  # blocks
  config.countdown.model.mlp_width = 272  # hidden width
  config.countdown.model.linear = 'dense'  # or 'sigma_reparam', 'spectral_norm'
  config.countdown.model.norm = 'pre'  # or 'post', 'none', 'deepnorm'
  config.countdown.model.dtype = 'float32'  # of the arithmetic; 'bfloat16' is mixed precision: parameters and sums stay float32
  config.countdown.model.remat = False  # recompute each block in the backward pass: less memory, more time, the same numbers
  config.countdown.warm_start = ConfigDict()
  config.countdown.warm_start.num_steps = 110  # short on purpose: a policy that is sometimes right, as a base model is
  config.countdown.warm_start.batch_size = 128  # problems with an answer each
  config.countdown.warm_start.learning_rate = 3e-3
  config.countdown.warm_start.warmup_steps = 50  # of linear growth, then a cosine
  config.countdown.objective = _objective(low=0.2, high=0.2)  # plain GRPO
  config.countdown.num_steps = 120  # rollouts
  config.countdown.num_prompts = 16  # per rollout
  config.countdown.group_size = 16  # responses per prompt
  config.countdown.num_epochs = 1
  config.countdown.num_minibatches = 1  # 1 update per rollout: on-policy, as in the paper's theorem plots
  config.countdown.num_slices = 1  # gradient accumulation; changes memory, not numbers
  config.countdown.temperature = 1.0  # of sampling, and of what the objective sees
  config.countdown.learning_rate = 3e-4
  config.countdown.max_grad_norm = 1.0  # clipping by the global norm
  config.countdown.evaluate_every = 30  # steps; 0: at the end alone
  config.countdown.num_eval_samples = 4  # responses per held-out problem
  config.countdown.checkpoint_every = 50  # steps, and at the end

  if variant == 'tiny':
    config.tabular.num_seeds = 2
    config.tabular.fork_tokens.num_steps = 40
    config.tabular.mod_sum.num_steps = 40
    for name in ('kl_cov_5', 'clip_higher', 'entropy_bonus'):
      del config.tabular.methods[name]
    config.countdown.num_seeds = 2
    config.countdown.model_preset = 'study_tiny'
    config.countdown.model.num_layers = 1
    config.countdown.warm_start.num_steps = 20
    config.countdown.warm_start.batch_size = 32
    config.countdown.warm_start.warmup_steps = 5
    config.countdown.num_steps = 8
    config.countdown.num_prompts = 4
    config.countdown.group_size = 4
    config.countdown.evaluate_every = 4
    config.countdown.num_eval_samples = 1
    config.countdown.checkpoint_every = 4
  return config
