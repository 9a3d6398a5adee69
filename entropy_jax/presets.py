"""The papers' full settings by name, as plain data with their source.

A preset holds what its source states, and None where it is silent. Fractions are fractions of the valid tokens, never percent: the
released Entropy Mechanism code takes KL-Cov's 2e-3 as `k_percent = 0.2`. Everything concerns large language models; a small study
keeps the objective and chooses its own learning rate, and, for the covariance methods, its own fraction (a batch of a thousand
tokens has 0.2 tokens in 2e-4).
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from entropy_jax import catalog, transform
from entropy_jax.objective import Objective
from entropy_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the source ran the objective; None where it does not say.

  Attributes:
    learning_rate: of Adam.
    group_size: responses per prompt.
    num_prompts: prompts per rollout.
    updates_per_rollout: optimizer steps made on one set of responses.
    temperature: of sampling.
    max_length: largest response length, tokens.
    dynamic_sampling: whether prompts whose responses all earn the same are replaced by others.
  """

  learning_rate: float | None = None
  group_size: int | None = None
  num_prompts: int | None = None
  updates_per_rollout: int | None = None
  temperature: float | None = None
  max_length: int | None = None
  dynamic_sampling: bool = False


@dataclasses.dataclass(frozen=True)
class Preset:
  """One published setting.

  Attributes:
    spec: the objective as named data, for `catalog.build`.
    source: where the values come from, and what is left open or differs.
    settings: how it was run.
  """

  spec: Mapping[str, Any]
  source: str
  settings: Settings = Settings()

  def objective(self, *, max_length: float | None = None) -> Objective:
    """The preset's objective.

    Args:
      max_length: the run's largest response length, for an aggregation that divides by it; None for the source's.
    """
    length = self.settings.max_length if max_length is None else max_length
    if not str(self.spec.get('aggregate')).startswith('token_sum_over'):
      return catalog.build(self.spec)
    if length is None:
      raise UserError("preset: this objective divides by the largest response length, which its source leaves open; give max_length=.")
    return catalog.build({**self.spec, 'constant': length})


def _method(name: str, **kwargs: Any) -> dict[str, Any]:
  return {'name': name, 'kwargs': kwargs}


def _spec(
  surrogate: dict[str, Any], *, advantage: str = 'grpo', aggregate: str = 'token_mean', **rooms: list[dict[str, Any]]
) -> dict[str, Any]:
  return {'advantages': [_method(advantage)], 'surrogates': [surrogate], 'aggregate': aggregate, **rooms}


_CUI = 'Cui et al., arXiv 2505.22617'
# 512 prompts x 8 responses, prompts that are always or never solved are dropped.
_ENTROPY_MECHANISM = Settings(learning_rate=5e-7, group_size=8, num_prompts=512, dynamic_sampling=True)
_EIGHT_UPDATES = dataclasses.replace(_ENTROPY_MECHANISM, updates_per_rollout=8)
# Batches of 512 prompts and minibatches of 32 make 16 updates.
_DAPO = Settings(learning_rate=1e-6, group_size=16, num_prompts=512, updates_per_rollout=16)


def _clip_cov() -> dict[str, Any]:
  weight = _method('clip_cov', fraction=2e-4, cov_low=1.0, cov_high=5.0, clip_low=1.0, clip_high=1.0)
  return _spec(_method('ppo_clip', low=1.0, high=1.0), weights=[weight])


def _kl_cov(fraction: float, coef: float) -> dict[str, Any]:
  return _spec(_method('importance'), regularizers=[_method('kl_cov', fraction=fraction, coef=coef)])


PRESETS: dict[str, Preset] = {
  'grpo': Preset(
    _spec(
      _method('ppo_clip', low=0.2, high=0.2),
      aggregate='sequence_mean_token_mean',
      regularizers=[_method('kl', coef=1e-3, estimator='k3')],
    ),
    'Shao et al., arXiv 2402.03300; clip and KL coefficient are the defaults of verl.',
  ),
  'grpo_entropy_mechanism': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.2)),
    f'{_CUI}, the baseline of the R-H law: no KL, batch 256; the number of updates per rollout is left open.',
    _ENTROPY_MECHANISM,
  ),
  'clip_higher': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.28)),
    f'Yu et al., arXiv 2503.14476, the clip alone, in the runs of {_CUI}, where it is a baseline.',
    _EIGHT_UPDATES,
  ),
  'clip_cov_7b': Preset(
    _clip_cov(), f'{_CUI}, 7B script: low = high = 1 leave the ratio free between 0 and 2.', _EIGHT_UPDATES
  ),
  'clip_cov_32b': Preset(_clip_cov(), f'{_CUI}; one fraction is given for both sizes, so this equals clip_cov_7b.', _EIGHT_UPDATES),
  'kl_cov_7b': Preset(_kl_cov(2e-3, 1.0), f'{_CUI}, 7B: k_percent = 0.2 in the released code.', _EIGHT_UPDATES),
  'kl_cov_32b': Preset(_kl_cov(2e-4, 1.0), f'{_CUI}, 32B: k_percent = 0.02 in the released code.', _EIGHT_UPDATES),
  'kl_cov_verl': Preset(_kl_cov(2e-4, 0.1), "verl's configuration defaults: the paper's 32B fraction, a tenth of its coefficient."),
  'dapo': Preset(
    _spec(
      _method('ppo_clip', low=0.2, high=0.28),
      rewards=[_method('soft_overlong', max_length=20480, buffer=4096, factor=1.0)],
    ),
    'Yu et al., arXiv 2503.14476: clip-higher, token mean, soft overlong punishment, dynamic sampling; no KL. Overlong filtering, the '
    'weight drop_truncated, is its alternative to the soft punishment.',
    dataclasses.replace(_DAPO, max_length=20480, dynamic_sampling=True),
  ),
  'dr_grpo': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.2), advantage='dr_grpo', aggregate='token_sum_over_capacity'),
    'Liu et al., arXiv 2503.20783, divided by the largest response length as in TRL; give max_length.',
  ),
  'rloo': Preset(
    _spec(_method('reinforce'), advantage='rloo', aggregate='sequence_mean_token_sum'),
    'Ahmadian et al., arXiv 2402.14740: a response is one action, its log-probability the sum over tokens.',
    Settings(updates_per_rollout=1),
  ),
  'gpg': Preset(_spec(_method('reinforce'), advantage='gpg'), 'Chu et al., arXiv 2504.02546, with the aggregation of verl.'),
  'reinforce_plus_plus': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.2), advantage='reinforce_plus_plus'), 'Hu et al., arXiv 2501.03262, defaults of verl.'
  ),
  'gspo': Preset(
    _spec(_method('gspo', low=3e-4, high=4e-4), aggregate='sequence_mean_token_mean'),
    'Zheng et al., arXiv 2507.18071: no KL, 4 minibatches per rollout.',
    Settings(updates_per_rollout=4),
  ),
  'luspo': Preset(
    _spec(_method('gspo', low=3e-4, high=4e-4), aggregate='sequence_mean_token_sum'),
    "arXiv 2602.05261: GSPO's sequence loss times its length; clip of GSPO.",
  ),
  'gmpo': Preset(
    _spec(_method('gmpo', low=0.4, high=0.4), aggregate='sequence_mean_token_mean'),
    'Zhao et al., arXiv 2507.20673: the clip is in log space.',
  ),
  'cispo': Preset(
    _spec(_method('cispo', high=5.0, form='trl')), 'MiniMax-M1, arXiv 2506.13585; the bound is the one that TRL recommends.'
  ),
  'sapo': Preset(
    _spec(_method('sapo', temperature_positive=1.0, temperature_negative=1.05), aggregate='sequence_mean_token_mean'),
    'Gao et al., arXiv 2511.20347.',
  ),
  'vespo': Preset(
    _spec(_method('vespo', k_positive=2.0, lambda_positive=3.0, k_negative=3.0, lambda_negative=2.0)),
    'arXiv 2602.10693, values of TRL.',
  ),
  'entropy_80_20': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.28), weights=[_method('top_entropy', keep=0.2, normalize='kept')]),
    'Wang et al., arXiv 2506.01939: the token loss of DAPO over the top 20 % of tokens by entropy; no KL, no entropy bonus.',
    _DAPO,
  ),
  'skywork_adaptive_entropy': Preset(
    _spec(
      _method('ppo_clip', low=0.2, high=0.2),
      regularizers=[_method('adaptive_entropy', target=0.2, step=0.005, minimum=0.0, maximum=1.0, initial=0.0)],
    ),
    'He et al., Skywork-OR1, arXiv 2505.22312, with the values and the lagged gate of TRL.',
  ),
  'intellect_2': Preset(
    _spec(_method('ppo_clip', low=0.2, high=0.2, delta=4.0)),
    'Prime Intellect, INTELLECT-2, arXiv 2505.07291: the two-sided clip; low and high are those of PPO.',
  ),
}


def preset(name: str) -> Preset:
  """A copy of the preset of this name, free to be changed.

  >>> preset('kl_cov_7b').spec['regularizers']
  [{'name': 'kl_cov', 'kwargs': {'fraction': 0.002, 'coef': 1.0}}]
  """
  if name not in PRESETS:
    close = transform.nearest(name, list(PRESETS)) or f' There are {", ".join(PRESETS)}.'
    raise UserError(f'preset: there is no preset {name!r}.{close}')
  return copy.deepcopy(PRESETS[name])
