"""The table of every method of the objective: what it is, where it stands, where it comes from; and objectives from named data.

`build` turns a plain dict, as a config holds it, into an `Objective`. `python -m entropy_jax.catalog` prints METHODS.md.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from entropy_jax import transform
from entropy_jax.methods import advantages, regularizers, rewards, surrogates, weights
from entropy_jax.objective import Objective, chain
from entropy_jax.transform import Method
from entropy_jax.types import Room, Transform, UserError

ROOMS: dict[str, Room] = {
  'rewards': Room.REWARD,
  'advantages': Room.ADVANTAGE,
  'weights': Room.WEIGHT,
  'surrogates': Room.SURROGATE,
  'regularizers': Room.REGULARIZER,
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row of the catalog.

  Attributes:
    factory: the lifted method; call it with hyper-parameters to get a Transform.
    formula: its mathematics in one line, in the code's signs: surrogates are maximised, penalties minimised.
    reference: authors, title, arXiv id and equation number where it is known.
    confirmed: whether the formula was read in the paper or its code; False stands as UNCONFIRMED in METHODS.md.
    example: hyper-parameters for a batch of a few short sequences, where the defaults are absent or would not act there.
  """

  factory: Method
  formula: str
  reference: str
  confirmed: bool = True
  example: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.factory.name

  @property
  def room(self) -> str:
    """The room's key in an objective's spec, which is also the name of its folder."""
    return next(key for key, room in ROOMS.items() if room == self.factory.room)

  @property
  def function(self) -> Callable[..., Any]:
    """The pure function on arrays."""
    return self.factory.function


_DAPO = 'Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476'
_ENTROPY_MECHANISM = 'Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617'
_GSPO = 'Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071'
_PPO = 'Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347'
_REINFORCE_PP = 'Hu et al., REINFORCE++, arXiv 2501.03262'

_TABLE = (
  # Rewards
  Entry(
    rewards.soft_overlong,
    'R - factor clip((n - (max_length - buffer)) / buffer, 0, 1)',
    _DAPO,
    example={'max_length': 6, 'buffer': 3},
  ),
  Entry(
    rewards.kl_in_reward,
    'r_t = -coef (ln pi_old - ln pi_ref)_t, added to the dense rewards',
    'Ouyang et al., Training language models to follow instructions with human feedback, arXiv 2203.02155',
    example={'coef': 0.1},
  ),
  # Advantages
  Entry(
    advantages.grpo,
    'A = (R - mean_g R) / (std_g R + epsilon)',
    'Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300',
  ),
  Entry(
    advantages.dr_grpo,
    'A = R - mean_g R',
    'Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783',
  ),
  Entry(
    advantages.rloo,
    'A_i = R_i - mean_{j != i} R_j',
    'Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs, arXiv 2402.14740',
  ),
  Entry(
    advantages.opo,
    'A = R - sum_g n R / sum_g n',
    'Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585',
  ),
  Entry(
    advantages.gpg,
    'A = B / #(R != 0) (R - mean_g R)',
    'Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546',
  ),
  Entry(
    advantages.grpo_pass_at_k,
    'A = (R_1st - R_2nd) / (std_g R + epsilon) for the best response of the group, 0 for the others',
    'Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement Learning, arXiv 2503.19595',
  ),
  Entry(
    advantages.reinforce_plus_plus,
    'A = whiten over tokens of G_t = r_t + discount G_{t+1}',
    _REINFORCE_PP,
  ),
  Entry(
    advantages.reinforce_plus_plus_baseline,
    'A = whiten over tokens of R - mean_g R',
    _REINFORCE_PP,
  ),
  Entry(
    advantages.remax,
    'A_t = sum_{s >= t} r_s - R(greedy response)',
    'Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models, '
    'arXiv 2310.10505',
  ),
  Entry(
    advantages.gae,
    'A_t = d_t + discount trace A_{t+1}, d_t = r_t + discount V_{t+1} - V_t',
    'Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv 1506.02438',
  ),
  Entry(
    advantages.optimal_token_baseline,
    'A_it = G_it - sum_g G_t W_t / sum_g W_t, W_t = sum_{j <= t} (1 - 2 pi_j + sum_v pi_v^2)',
    'Li et al., The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078',
  ),
  Entry(
    advantages.unit,
    'A = 1 on every valid token',
    'Maximum likelihood of the given responses',
  ),
  # Weights
  Entry(
    weights.top_entropy,
    'w = N / K on the K = max(1, ceil(keep N)) tokens of largest entropy, else 0',
    'Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning, '
    'arXiv 2506.01939',
  ),
  Entry(
    weights.clip_cov,
    'w = 0 on K = max(1, floor(fraction N)) random tokens with cov_low < (A - mean A) (lp - mean lp) < cov_high, else 1',
    _ENTROPY_MECHANISM + ', Eq. 10-12',
    example={'fraction': 0.2, 'low_quantile': 0.5, 'high_quantile': 1.0},
  ),
  Entry(
    weights.drop_truncated,
    'w = 0 on responses that ran out of length, else 1',
    _DAPO,
  ),
  Entry(
    weights.off_policy_sequence_mask,
    'w = 1 where A >= 0 or mean_t(ln pi_sampler - ln pi) <= threshold, else 0',
    'DeepSeek-AI, DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models, arXiv 2512.02556',
    example={'threshold': 0.05},
  ),
  Entry(
    weights.sampler_importance,
    'w = min(pi_old / pi_sampler, maximum)',
    'TRL documentation, vLLM importance sampling correction',
    example={'maximum': 1.2},
  ),
  # Surrogates
  Entry(
    surrogates.reinforce,
    'A ln pi',
    'Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992',
  ),
  Entry(
    surrogates.importance,
    'A r, r = pi / pi_old',
    _PPO + ', Eq. 6',
  ),
  Entry(
    surrogates.ppo_clip,
    'min(r A, clip(r, 1 - low, 1 + high) A)',
    _PPO + ', Eq. 7',
    example={'high': 0.28, 'dual_clip': 3.0},
  ),
  Entry(
    surrogates.gspo,
    'min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t ln r)',
    _GSPO,
    example={'low': 0.03, 'high': 0.04},
  ),
  Entry(
    surrogates.gspo_token,
    'gspo with ln s_t = lp - sg(lp) + sg(mean_t ln r)',
    _GSPO,
    example={'low': 0.03, 'high': 0.04},
  ),
  Entry(
    surrogates.gmpo,
    'mean_t(A) exp(mean_t c_t), c_t = ln r clipped to [-low, high] on the side that the sign of A pushes to',
    'Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673',
    example={'low': 0.1, 'high': 0.1},
  ),
  Entry(
    surrogates.cispo,
    'sg(clip(r, 1 - low, 1 + high)) A ln pi',
    'MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585',
  ),
  Entry(
    surrogates.sapo,
    'A (4 / tau) sigmoid(tau (r - 1)), tau by the sign of A',
    'Gao et al., Soft Adaptive Policy Optimization, arXiv 2511.20347',
  ),
  Entry(
    surrogates.vespo,
    'sg(phi(w)) A ln pi, phi(w) = exp(lambda) w^k exp(-lambda w), w = prod_t r',
    'VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training, arXiv 2602.10693',
  ),
  # Regularizers
  Entry(
    regularizers.entropy_bonus,
    '-coef H',
    'Williams and Peng, Function Optimization Using Connectionist Reinforcement Learning Algorithms, 1991',
    example={'coef': 0.1},
  ),
  Entry(
    regularizers.adaptive_entropy,
    '-c H, c = a if the last update saw H <= target, else 0; a moves by +-step',
    'He et al., Skywork Open Reasoner 1 Technical Report, arXiv 2505.22312',
    example={'target': 10.0, 'initial': 0.5},
  ),
  Entry(
    regularizers.kl,
    'coef k(d), d = ln pi - ln pi_ref; k1 = d, absolute = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1',
    'Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300',
    example={'coef': 0.1, 'bias_correction': True},
  ),
  Entry(
    regularizers.adaptive_kl,
    'c k(d); c <- c (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)',
    'Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, section 2.2',
    example={'target': 0.1, 'horizon': 100.0, 'initial': 0.1},
  ),
  Entry(
    regularizers.kl_cov,
    'coef |ln r| on the K = max(1, floor(fraction N)) tokens of largest (A - mean A) (lp - mean lp), else 0',
    _ENTROPY_MECHANISM + ', Eq. 13-14',
    example={'fraction': 0.2},
  ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _TABLE}


def _transform(room: str, index: int, given: Any) -> Transform:
  where = f'objective: {room}[{index}]'
  if not isinstance(given, Mapping) or 'name' not in given:
    raise UserError(f"{where}={given!r} is not a method; write {{'name': ..., 'kwargs': {{...}}}}.")
  for key in given:
    if key not in ('name', 'kwargs'):
      raise UserError(f'{where} has the unknown key {key!r}; allowed: name, kwargs (hyper-parameters belong in kwargs).')
  name = given['name']
  if not isinstance(name, str) or name not in CATALOG:
    same_room = [n for n, e in CATALOG.items() if e.room == room]
    close = transform.nearest(str(name), list(CATALOG)) or f' This room has {", ".join(same_room)}.'
    raise UserError(f'{where}: there is no method {name!r}.{close}')
  found = CATALOG[name]
  if found.room != room:
    raise UserError(f'{where}: {name!r} stands in the wrong room; move it to {found.room}.')
  kwargs = given.get('kwargs', {})
  if not isinstance(kwargs, Mapping):
    raise UserError(f'{where}: kwargs={kwargs!r} of {name} is not a dict of hyper-parameters; write {{key: value}}.')
  for key in kwargs:
    if not isinstance(key, str):
      raise UserError(f'{where}: {key!r} is no hyper-parameter of {name}; allowed: {", ".join(found.factory.defaults()) or "none"}.')
  return found.factory(**kwargs)


def build(spec: Mapping[str, Any]) -> Objective:
  """The objective that plain data describes.

  Args:
    spec: rooms as keys (rewards, advantages, weights, surrogates, regularizers), each a sequence of {'name': method, 'kwargs':
      hyper-parameters}, kwargs optional (a 'name' in kwargs tells two of the same method apart); and optionally 'aggregate'
      ('token_mean') and 'constant' (None), as `objective.chain` takes them. Absent rooms are empty.

  Returns:
    the chain of the rooms in their order, whatever the order of the keys.

  Raises:
    UserError: an unknown room, method, key or hyper-parameter, a value out of range, a method under another room than its own, or
      what `objective.chain` refuses.

  >>> build({'surrogates': [{'name': 'ppo_clip', 'kwargs': {'high': .28}}], 'advantages': [{'name': 'grpo'}]}).transforms[0].name
  'grpo'
  """
  if not isinstance(spec, Mapping):
    raise UserError(f'objective: {spec!r} is not a dict of rooms; write {{room: [{{name: ..., kwargs: ...}}]}}.')
  allowed = (*ROOMS, 'aggregate', 'constant')
  for key in spec:
    if key not in allowed:
      raise UserError(f'objective: unknown key {key!r}; allowed: {", ".join(allowed)}.{transform.nearest(str(key), allowed)}')
  transforms = []
  for room in ROOMS:
    given = spec.get(room, ())
    if not isinstance(given, Sequence) or isinstance(given, str):
      raise UserError(f"objective: {room}={given!r} is not a list of methods; write [{{'name': ..., 'kwargs': {{...}}}}].")
    transforms += [_transform(room, index, item) for index, item in enumerate(given)]
  return chain(*transforms, aggregate=spec.get('aggregate', 'token_mean'), constant=spec.get('constant'))


def check_reads(spec: Mapping[str, Any], absent: Collection[str]) -> None:
  """Refuses an objective whose methods read what a run does not provide: a field in `absent`, or advantages where none are made.

  Args:
    spec: as `build` takes it, and has taken it.
    absent: fields of TokenBatch that are None in the run's batches.

  >>> check_reads({'surrogates': [{'name': 'reinforce'}], 'advantages': [{'name': 'gae'}]}, {'ref_logp_BxT'})
  """
  none_made = not spec.get('advantages')
  for room in ROOMS:
    for given in spec.get(room, ()):
      reads = CATALOG[given['name']].factory.reads
      missing = sorted(reads & set(absent))
      what = f'objective: {room}: {given["name"]}'
      if missing:
        raise UserError(f'{what} reads {missing[0]}, which this run does not provide; leave {given["name"]} out.')
      if none_made and 'advantage_BxT' in reads:
        raise UserError(f'{what} reads advantages, and advantages=[] makes none; give one, such as grpo.')


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def _code(text: str) -> str:
  return f'`{_cell(text)}`'


def _hyper_parameters(method: Method) -> str:
  parts = []
  for key, default in method.defaults().items():
    value = 'required' if default is inspect.Parameter.empty else f'= {default!r}'
    joint = ' or in' if default is None else ' in'
    allowed = f'{joint} {method.ranges[key]}' if key in method.ranges else ''
    parts.append(_code(f'{key} {value}{allowed}'))
  return '<br>'.join(parts) or 'none'


def markdown() -> str:
  """METHODS.md: one table a room."""
  lines = [
    '# Methods',
    '',
    'Generated from the catalog by `make docs`; do not edit. Formulas have the code\'s signs: surrogates are maximised, penalties',
    'minimised, and the loss is the aggregate of `penalty - weight * surrogate`. R is the reward, A the advantage, r = pi / pi_old the',
    'importance ratio, H the entropy in nats, lp = ln pi, N the number of valid tokens, g a group, n a length, sg stop-gradient.',
    'Defaults are the paper\'s. `UNCONFIRMED` marks a formula that was reconstructed rather than read in the paper or its code.',
  ]
  for room in ROOMS:
    lines += ['', f'## {room.capitalize()}', '']
    lines += ['| method | formula | hyper-parameters | paper | status |', '|---|---|---|---|---|']
    for row in CATALOG.values():
      if row.room == room:
        status = 'confirmed' if row.confirmed else 'UNCONFIRMED'
        cells = (_code(row.name), _code(row.formula), _hyper_parameters(row.factory), _cell(row.reference), status)
        lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(markdown(), end='')
