"""Optimizers by name, from optax alone: an update rule, a schedule with warm-up, and clipping by the global norm."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from entropy_jax.transform import check_range, nearest
from entropy_jax.types import Params, PyTree, UserError

SCHEDULES = ('constant', 'linear', 'cosine')


def is_matrix(params: Params) -> PyTree:
  """Which parameters are matrices (True or False for each): kernels, embeddings and tables, and so what weight decay is for.

  Biases, scales of norms, gains of reparametrised maps and the vectors of their state have at most one axis and are none; the
  temperatures of attention, one a head and position, have two and are none either.
  """

  def one(path: tuple[Any, ...], x: jax.Array) -> bool:
    return x.ndim >= 2 and not (path and getattr(path[-1], 'key', '') == 'temperature')

  return jax.tree_util.tree_map_with_path(one, params)


def _adamw(rate: optax.Schedule, **kwargs: Any) -> optax.GradientTransformation:
  return optax.adamw(rate, mask=is_matrix, **kwargs)


def _lion(rate: optax.Schedule, **kwargs: Any) -> optax.GradientTransformation:
  return optax.lion(rate, mask=is_matrix, **kwargs)


def _lars(rate: optax.Schedule, *, momentum: float | None, **kwargs: Any) -> optax.GradientTransformation:
  # Off is 0 here. What is no matrix has no trust ratio either: a gain of 1 would otherwise move by a thousandth of the rate.
  return optax.lars(rate, momentum=momentum or 0.0, weight_decay_mask=is_matrix, trust_ratio_mask=is_matrix, **kwargs)


# What each rule takes beside the learning rate.
_TAKES: dict[str, tuple[Callable[..., optax.GradientTransformation], tuple[str, ...]]] = {
  'adam': (optax.adam, ('b1', 'b2', 'eps')),
  'adamw': (_adamw, ('b1', 'b2', 'eps', 'weight_decay')),
  'lars': (_lars, ('momentum', 'weight_decay', 'trust_coefficient')),
  'lion': (_lion, ('b1', 'b2', 'weight_decay')),
  'rmsprop': (optax.rmsprop, ('eps', 'momentum')),
  'sgd': (optax.sgd, ('momentum',)),
}
OPTIMIZERS = tuple(_TAKES)


def _check_name(key: str, name: str, allowed: tuple[str, ...]) -> None:
  if name not in allowed:
    raise UserError(f'optimizer: {key}={name!r} is not one of {", ".join(allowed)}.{nearest(str(name), allowed)}')


def _check_steps(key: str, value: Any, least: int) -> None:
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise UserError(f'optimizer: {key}={value!r} is not a whole number of at least {least}; give one.')


def make_schedule(
  learning_rate: float,
  *,
  schedule: str = 'constant',
  warmup_steps: int = 0,
  num_steps: int | None = None,
  final_fraction: float = 0.0,
) -> optax.Schedule:
  """The learning rate of each update: a linear warm-up from 0, then a schedule.

      rate(k) = learning_rate * k / warmup_steps                                              k < warmup_steps
      rate(k) = learning_rate * (f + (1 - f) * s((k - warmup_steps) / (num_steps - warmup_steps)))      otherwise

  with f = final_fraction and s(x) = 1 (constant), 1 - x (linear) or (1 + cos(pi x)) / 2 (cosine), and s = 0 from
  num_steps on; a constant schedule ignores num_steps and final_fraction.

  Args:
    learning_rate: peak, in (0, inf).
    schedule: a name in SCHEDULES.
    warmup_steps: updates before the peak; the update k = 0 then has rate 0. At least 0.
    num_steps: updates of the run, more than warmup_steps; needed by linear and cosine.
    final_fraction: f, in [0, 1].

  Returns:
    A function from the number of updates made to the rate.

  Raises:
    UserError: unknown schedule, a value out of range, or a decay without num_steps.

  >>> rate = make_schedule(2.0, schedule='linear', warmup_steps=2, num_steps=6)
  >>> [float(rate(k)) for k in (0, 1, 2, 4, 6, 9)]
  [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]
  """
  _check_name('schedule', schedule, SCHEDULES)
  check_range('optimizer', 'learning_rate', learning_rate, '(0, inf)')
  check_range('optimizer', 'final_fraction', final_fraction, '[0, 1]')
  _check_steps('warmup_steps', warmup_steps, 0)
  if schedule == 'constant':
    after = optax.constant_schedule(learning_rate)
  else:
    if num_steps is None:
      raise UserError(f'optimizer: schedule={schedule!r} needs num_steps, the number of updates of the run; set it.')
    _check_steps('num_steps', num_steps, 1)
    if num_steps <= warmup_steps:
      raise UserError(f'optimizer: warmup_steps={warmup_steps} leaves nothing of num_steps={num_steps}; give fewer.')
    decay_steps = num_steps - warmup_steps
    if schedule == 'linear':
      after = optax.linear_schedule(learning_rate, learning_rate * final_fraction, decay_steps)
    else:
      after = optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final_fraction)
  if warmup_steps == 0:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), after], [warmup_steps])


def make_optimizer(
  name: str,
  learning_rate: float,
  *,
  schedule: str = 'constant',
  warmup_steps: int = 0,
  num_steps: int | None = None,
  final_fraction: float = 0.0,
  max_grad_norm: float | None = None,
  weight_decay: float = 0.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum: float | None = None,
  trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
  """An optax optimizer by name: clip by the global norm, then the update rule at the scheduled rate.

  Args:
    name: a name in OPTIMIZERS.
    learning_rate: peak rate, in (0, inf).
    schedule, warmup_steps, num_steps, final_fraction: see `make_schedule`.
    max_grad_norm: the gradient is scaled down to this global norm, in (0, inf); None: no clipping.
    weight_decay: of matrices alone (`is_matrix`), in [0, inf); adamw and lion: decoupled, times the learning rate; lars: added to the
      gradient before the trust ratio.
    b1, b2: decay of the first and second moment, in [0, 1); adam, adamw and lion.
    eps: added to the denominator, in (0, inf); adam, adamw and rmsprop.
    momentum: heavy-ball momentum in [0, 1), sgd, lars and rmsprop only; None: off.
    trust_coefficient: c of lars' trust ratio c |p| / |gradient|, of matrices alone, in (0, inf): how far a matrix turns in an update, while
      the rate alone says how far all else moves.

  Raises:
    UserError: an unknown name, a value out of range, or a hyper-parameter that the rule does not take.
  """
  _check_name('name', name, OPTIMIZERS)
  rule, takes = _TAKES[name]
  check_range('optimizer', 'weight_decay', weight_decay, '[0, inf)')
  check_range('optimizer', 'b1', b1, '[0, 1)')
  check_range('optimizer', 'b2', b2, '[0, 1)')
  check_range('optimizer', 'eps', eps, '(0, inf)')
  check_range('optimizer', 'trust_coefficient', trust_coefficient, '(0, inf)')
  if momentum is not None:
    check_range('optimizer', 'momentum', momentum, '[0, 1)')
  if max_grad_norm is not None:
    check_range('optimizer', 'max_grad_norm', max_grad_norm, '(0, inf)')
  # A value that would be silently ignored is refused where it is not the neutral one.
  neutral = (('weight_decay', weight_decay, 0.0), ('momentum', momentum, None), ('trust_coefficient', trust_coefficient, 0.001))
  for key, value, off in neutral:
    if value != off and key not in takes:
      able = ', '.join(n for n, (_, keys) in _TAKES.items() if key in keys)
      raise UserError(f'optimizer: {name} takes no {key}, and it is {value!r}; leave it at {off}, or use {able}.')
  values = {
    'weight_decay': weight_decay, 'b1': b1, 'b2': b2, 'eps': eps, 'momentum': momentum, 'trust_coefficient': trust_coefficient,
  }  # fmt: skip
  rate = make_schedule(
    learning_rate, schedule=schedule, warmup_steps=warmup_steps, num_steps=num_steps, final_fraction=final_fraction
  )
  update = rule(rate, **{key: values[key] for key in takes})
  return update if max_grad_norm is None else optax.chain(optax.clip_by_global_norm(max_grad_norm), update)
