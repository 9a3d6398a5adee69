"""Every published intervention on policy entropy, side by side: what each keeps, where, and at what price, at the same success.

Command:  python -m experiments.interventions --config=configs/interventions.py --workdir=DIR
          --config.methods=clip_cov,siren        these alone (and GRPO, which all are compared with)
          --config.objective="grpo + clip_higher + top_entropy(0.2)"      adds a line of your own, as the method `objective`
Expected: the ranked tables of DIR/report.html; METHODS.md has them method by method. Of 64 claims 41 reproduced, 2 did not, 21 are
          inconclusive. At success 0.7 on fork_tokens with 4 updates a rollout, over GRPO: AEnt +0.24 nats a token [0.22, 0.26], Clip_B
          +0.21 [0.17, 0.24], Clip-Cov +0.17 [0.10, 0.20], KL-Cov (5) +0.13 [0.12, 0.15].
Time:     24 min on 2 CPU cores; `:tiny`, a look at two methods, about a minute (its verdicts are inconclusive
          by construction). `:countdown` trains the transformer alone, as long as the core study does, 5 seeds of 11 methods: an
          estimated two hours on 2 CPU cores.
Claims:   entropy_jax/analysis/predictions.py, one or more for each method with an entropy claim of its own.

A line is an objective as `entropy_jax.compose` reads it. Fractions, coefficients and thresholds are scaled to the tables: batches of
thousands of tokens from vocabularies of 32 and 6, not of millions from 150 000. Everything that a line does not name is GRPO's: the
advantage, the clip of 0.2 both ways, the token mean.

The levels of success and the numbers of rollouts were set once, after a run that took 33 minutes and left a seed of 15 methods short of
0.8 and 0.9: from its times and from who got there, before any entropy was looked at.
"""

import ml_collections

from configs import common
from entropy_jax.models import presets
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

ConfigDict = ml_collections.ConfigDict
VARIANTS = ('', 'countdown', 'tiny')
TASKS = ('fork_tokens', 'mod_sum')
EPOCHS = ('epochs_1', 'epochs_4')  # updates per rollout

# Name -> objective. The first is the baseline.
LINES = {
  'grpo': 'grpo + ppo_clip(0.2, 0.2)',
  # Other baselines.
  'reinforce': 'grpo + reinforce',
  'importance': 'grpo + importance',
  'cispo': 'grpo + cispo(high=0.2)',
  'sapo': 'grpo + sapo',
  'gspo': 'grpo + gspo(0.1, 0.1) + aggregate(sequence_mean_token_mean)',
  'gmpo': 'grpo + gmpo(0.2, 0.2) + aggregate(sequence_mean_token_mean)',
  'vespo': 'grpo + vespo',
  'dr_grpo': 'dr_grpo + ppo_clip(0.2, 0.2)',
  'grpo_pass_at_k': 'grpo_pass_at_k + ppo_clip(0.2, 0.2)',
  'reinforce_plus_plus': 'reinforce_plus_plus + ppo_clip(0.2, 0.2)',
  'optimal_token_baseline': 'optimal_token_baseline + ppo_clip(0.2, 0.2)',
  # Clips and weights.
  'clip_higher': 'grpo + clip_higher',
  'clip_cov': 'grpo + clip_cov(fraction=0.02, low_quantile=0.98, cov_high=1e9, clip_low=0.2, clip_high=0.2) + ppo_clip(0.2, 0.2)',
  'clip_b': 'grpo + clip_b(mu=1.0) + ppo_clip(0.2, 0.2)',
  'clip_v': 'grpo + clip_v(mu=1.0, max_fraction=0.02) + ppo_clip(0.2, 0.2)',
  'steer': 'grpo + steer + ppo_clip(0.2, 0.2)',
  'steer_strong': 'grpo + steer(minimum=0.1) + ppo_clip(0.2, 0.2)',
  'steer_discriminator': 'grpo + steer_discriminator(minimum=0.1) + ppo_clip(0.2, 0.2)',
  'top_entropy': 'grpo + top_entropy(0.2) + ppo_clip(0.2, 0.2)',
  'bottom_entropy': 'grpo + top_entropy(0.8, side=bottom) + ppo_clip(0.2, 0.2)',
  'hapo_clip': 'grpo + hapo_clip',
  'echo': 'grpo + echo_shaping(num=2) + echo_clip(num=2, window=2)',
  'agentic_aepo': 'grpo + agentic_aepo + agentic_aepo_clip(0.2, 0.2)',
  # Regularizers.
  'kl_cov_1': 'grpo + kl_cov(fraction=0.02, coef=1.0) + importance',
  'kl_cov_5': 'grpo + kl_cov(fraction=0.02, coef=5.0) + importance',
  'lp_reg': 'grpo + lp_reg(fraction=0.05) + ppo_clip(0.2, 0.2)',
  'lp_reg_released': 'grpo + lp_reg_released(fraction=0.05) + ppo_clip(1.0, 9.0)',
  'entropy_bonus': 'grpo + entropy_bonus(0.01) + ppo_clip(0.2, 0.2)',
  'entropy_bonus_strong': 'grpo + entropy_bonus(0.1) + ppo_clip(0.2, 0.2)',
  'adaptive_entropy': 'grpo + adaptive_entropy(target=1.4) + ppo_clip(0.2, 0.2)',
  'siren': 'grpo + siren(coef=0.1) + ppo_clip(0.2, 0.2)',
  'aent': 'grpo + aent(clamp=0.3, coef=0.05) + ppo_clip(0.2, 0.2)',
  'ter': 'grpo + ter(target=1.4, coef=0.1) + ppo_clip(0.2, 0.2)',
  'epo': 'grpo + epo(coef=0.01, max_turns=6) + ppo_clip(0.2, 0.2)',
  'epo_smooth': 'grpo + epo_smooth(coef=0.01, max_turns=6) + ppo_clip(0.2, 0.2)',
  'tea_rl': 'grpo + tea_rl(coef=0.01) + ppo_clip(0.2, 0.2)',
  'model_based_entropy': 'grpo + model_based_entropy(target=1.4) + ppo_clip(0.2, 0.2)',
  # Rewards and advantages.
  'pear': 'grpo + pear + ppo_clip(0.2, 0.2)',
  'ares': 'grpo + ares(width=1, percentile=0.8) + ppo_clip(0.2, 0.2)',
  'pshw': 'pshw + ppo_clip(0.2, 0.2)',
  'tlga': 'tlga + ppo_clip(0.2, 0.2)',
  'qae_04': 'qae(0.4) + ppo_clip(0.2, 0.2)',
  'qae_06': 'qae(0.6) + ppo_clip(0.2, 0.2)',
  'canon_inter': 'canon(mu=1.0) + ppo_clip(0.2, 0.2)',
  'canon_intra': 'canon(mu=0.0) + ppo_clip(0.2, 0.2)',
  'edge_grpo': 'edge_grpo + ppo_clip(0.2, 0.2)',
  'edge_grpo_released': 'edge_grpo + edge_grpo_entropy + ppo_clip(0.2, 0.2)',
  'empg': 'grpo + empg + ppo_clip(0.2, 0.2)',
  'seed_grpo': 'seed_grpo + ppo_clip(0.2, 0.2)',
  'seed_grpo_strong': 'seed_grpo(alpha=1.0) + ppo_clip(0.2, 0.2)',
  'ucas': 'ucas + ppo_clip(0.2, 0.2)',
  'riskpo': 'riskpo(bundle=4, scale=bundle) + ppo_clip(0.2, 0.2)',
  'hicra': 'dr_grpo + hicra(0.2) + ppo_clip(0.2, 0.2)',
  'progrpo': 'grpo + progrpo(coef=0.3, fraction=0.25, prompt=0.5) + ppo_clip(0.2, 0.2)',
  'progrpo_strong': 'grpo + progrpo(coef=1.0, fraction=0.25, prompt=0.5) + ppo_clip(0.2, 0.2)',
  'ear_res': 'grpo + ear_res + ppo_clip(0.2, 0.2)',
  'ear_clip': 'grpo + ear_clip(1.0) + ppo_clip(0.2, 0.2)',
  # Rewards without labels.
  'ttrl': 'grpo + ttrl + ppo_clip(0.2, 0.2)',
  'empo': 'grpo + empo + ppo_clip(0.2, 0.2)',
}

# Lines whose advantages are not divided by their standard deviation, about a half: they get twice the learning rate.
UNNORMALISED = ('dr_grpo', 'optimal_token_baseline', 'canon_inter', 'canon_intra', 'seed_grpo', 'seed_grpo_strong', 'hicra')

# The transformer part: ten interventions, fixed before any run from the pre-checks of the method cards on the same two tables, by the
# entropy that they keep at matched success there. They are not the ten that come out on top of this study's own tables.
TOP_TEN = ('clip_b', 'clip_cov', 'kl_cov_5', 'entropy_bonus', 'aent', 'siren', 'ucas', 'progrpo_strong', 'canon_intra', 'riskpo')

# What each key may be: entropy_jax/training/ranges.py. What keys may not be together: `validate` of the experiment.
RANGES = ranges.LAUNCH | {
  'seed': 'int [0, 2147483647]',
  'ledger': 'bool',
  'attention': 'bool',
  'methods': 'text',
  'objective': 'text or None',
  'lines.*': 'text',
  'tabular.num_seeds': 'int [0, inf)',
  'tabular.epochs': 'text',
  'tabular.unnormalised': 'text or None',
  'tabular.unnormalised_rate': '(0, inf)',
  **{
    f'tabular.{task}.{key}': allowed
    for task in TASKS
    for key, allowed in {
      'group_size': 'int [1, inf)',
      'matched_success': '(0, 1)',
      **{f'{epochs}.num_steps': 'int [1, inf)' for epochs in EPOCHS},
      **{f'{epochs}.learning_rate': '(0, inf)' for epochs in EPOCHS},
    }.items()
  },
  'countdown.dataset': 'countdown/three | countdown/three_many | countdown/four',
  'countdown.data_dir': 'folder',
  'countdown.num_seeds': 'int [0, inf)',
  'countdown.methods': 'text',
  'countdown.model_preset': ' | '.join(presets.PRESETS),
  'countdown.model': 'decoder',
  'countdown.warm_start.num_steps': 'int [1, inf)',
  'countdown.warm_start.batch_size': 'int [1, inf)',
  'countdown.warm_start.learning_rate': '(0, inf)',
  'countdown.warm_start.warmup_steps': 'int [0, inf)',
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


def get_config(variant: str = '') -> ConfigDict:
  """The study; variant '', 'countdown' or 'tiny'."""
  if variant not in VARIANTS:
    close = nearest(variant, VARIANTS)
    raise UserError(f'--config: configs/interventions.py has no variant {variant!r}; allowed: countdown, tiny, or none.{close}')
  config = ConfigDict()
  common.run_settings(config)
  config.seed = 0  # root of every key: instances, initial parameters, rollouts, shuffles
  config.ledger = False  # whether each update accounts for its entropy change; costs about three more passes
  config.attention = False  # whether each rollout of the transformer logs its attention, see training/attention.py; one more pass

  config.methods = 'all'  # names of `lines`, separated by commas; GRPO is always among them
  config.objective = ml_collections.config_dict.placeholder(str)  # None, or a line that is compared as the method `objective`
  config.lines = ConfigDict(LINES)  # name -> objective in one line

  config.tabular = ConfigDict()
  # Vmapped, and paired over methods: seed k has the same instance and rollout noise in each. 0 leaves the tables out.
  config.tabular.num_seeds = 5
  config.tabular.epochs = '1,4'  # full-batch updates per rollout, 1, 4 or both: purely on-policy, and where ratios move
  config.tabular.unnormalised = ','.join(UNNORMALISED)  # lines that get unnormalised_rate times the learning rate; None for none
  config.tabular.unnormalised_rate = 2.0
  config.tabular.fork_tokens = ConfigDict()
  config.tabular.fork_tokens.group_size = 16  # responses per prompt
  config.tabular.fork_tokens.matched_success = 0.7  # methods are compared where they first reach it
  config.tabular.fork_tokens.epochs_1 = ConfigDict({'num_steps': 130, 'learning_rate': 60.0})  # rollouts; of SGD on the token mean
  config.tabular.fork_tokens.epochs_4 = ConfigDict({'num_steps': 100, 'learning_rate': 20.0})
  config.tabular.mod_sum = ConfigDict()
  config.tabular.mod_sum.group_size = 8
  config.tabular.mod_sum.matched_success = 0.8
  config.tabular.mod_sum.epochs_1 = ConfigDict({'num_steps': 140, 'learning_rate': 77.0})  # 0.6 a prompt and position, times 128
  config.tabular.mod_sum.epochs_4 = ConfigDict({'num_steps': 100, 'learning_rate': 46.0})  # 0.36 a prompt and position

  config.countdown = ConfigDict()
  config.countdown.dataset = 'countdown/three_many'  # TFDS name, prepared into data_dir on first use
  config.countdown.data_dir = 'data'  # under the workdir unless absolute
  config.countdown.num_seeds = 2  # runs of each method from one warm start; 0 leaves the transformer out
  config.countdown.methods = ','.join(TOP_TEN)  # of those in `methods`; GRPO and `objective` are always among them
  config.countdown.model_preset = 'study_small'  # models.presets
  config.countdown.model = ConfigDict()  # fields of DecoderConfig that replace the preset's
  config.countdown.model.num_layers = 3  # blocks
  config.countdown.model.mlp_width = 272  # hidden width
  config.countdown.model.dtype = 'float32'  # of the arithmetic; 'bfloat16' is mixed precision: parameters and sums stay float32
  config.countdown.warm_start = ConfigDict()
  config.countdown.warm_start.num_steps = 110  # short on purpose: a policy that is sometimes right, as a base model is
  config.countdown.warm_start.batch_size = 128  # problems with an answer each
  config.countdown.warm_start.learning_rate = 3e-3
  config.countdown.warm_start.warmup_steps = 50  # of linear growth, then a cosine
  config.countdown.num_steps = 32  # rollouts
  config.countdown.num_prompts = 8  # per rollout
  config.countdown.group_size = 16  # responses per prompt
  config.countdown.num_epochs = 2  # passes over a rollout: with one, ratios are 1 and half of the methods do nothing
  config.countdown.num_minibatches = 1
  config.countdown.num_slices = 1  # gradient accumulation; changes memory, not numbers
  config.countdown.temperature = 1.0  # of sampling, and of what the objective sees
  config.countdown.learning_rate = 3e-4
  config.countdown.max_grad_norm = 1.0  # clipping by the global norm
  config.countdown.evaluate_every = 8  # steps; 0: at the end alone
  config.countdown.num_eval_samples = 2  # responses per held-out problem
  config.countdown.checkpoint_every = 32  # steps, and at the end

  if variant == 'countdown':  # the transformer alone, for as long as the core study trains it
    config.tabular.num_seeds = 0
    config.countdown.num_seeds = 5
    config.countdown.num_steps = 120
    config.countdown.num_prompts = 16
    config.countdown.evaluate_every = 10
    config.countdown.num_eval_samples = 4

  if variant == 'tiny':
    config.methods = 'clip_b'
    config.tabular.num_seeds = 2
    config.tabular.epochs = '4'
    for task in TASKS:
      config.tabular[task].epochs_4.num_steps = 30
    config.countdown.num_seeds = 1
    config.countdown.methods = 'clip_b'
    config.countdown.model_preset = 'study_tiny'
    config.countdown.model.num_layers = 1
    config.countdown.warm_start.num_steps = 20
    config.countdown.warm_start.batch_size = 32
    config.countdown.warm_start.warmup_steps = 5
    config.countdown.num_steps = 6
    config.countdown.num_prompts = 4
    config.countdown.group_size = 4
    config.countdown.num_epochs = 1
    config.countdown.evaluate_every = 3
    config.countdown.num_eval_samples = 1
    config.countdown.checkpoint_every = 3
  return config
