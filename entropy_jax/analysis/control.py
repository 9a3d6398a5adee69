"""How well an entropy follows its target: tracking error, settling, overshoot, and what is learned meanwhile.

All measures take one curve a seed, `entropy_RxN`, whose columns are rollouts 0 .. N - 1, and give one value a seed.
"""

import numpy as np

from entropy_jax.types import UserError


def _window(value_RxN: np.ndarray, start: int) -> np.ndarray:
  value_RxN = np.atleast_2d(np.asarray(value_RxN, np.float64))
  if not 0 <= start < value_RxN.shape[1]:
    raise UserError(f'settle_by={start} leaves nothing of {value_RxN.shape[1]} rollouts; give less than {value_RxN.shape[1]}.')
  return value_RxN[:, start:]


def tracking_error(entropy_RxN: np.ndarray, target: float, *, start: int) -> np.ndarray:
  """Mean of |H - H*| over the rollouts from `start` on, nats, [R].

  The window is the same for every controller: one that begins where each has settled would forgive those that settle late, and has no
  value for those that never do.

  >>> tracking_error(np.array([[2., 1., .9, 1.2]]), 1.0, start=2).round(3).tolist()     # (.1 + .2) / 2
  [0.15]
  """
  return np.mean(np.abs(_window(entropy_RxN, start) - target), axis=1)


def shortfall(entropy_RxN: np.ndarray, target: float, *, start: int) -> np.ndarray:
  """Mean of max(0, H* - H) over the rollouts from `start` on, nats, [R]: what a controller that only raises entropy promises to avoid.

  >>> shortfall(np.array([[2., 1., .9, 1.2]]), 1.0, start=2).round(3).tolist()
  [0.05]
  """
  return np.mean(np.maximum(0.0, target - _window(entropy_RxN, start)), axis=1)


def settling_time(entropy_RxN: np.ndarray, target: float, *, band: float) -> np.ndarray:
  """First rollout from which |H - H*| <= band until the end, [R]; NaN for a curve that ends outside the band.

  >>> settling_time(np.array([[2., 1., 2., 1.1, .9], [1., 1., 1., 1., 2.]]), 1.0, band=.15).tolist()
  [3.0, nan]
  """
  outside_RxN = np.abs(np.atleast_2d(np.asarray(entropy_RxN, np.float64)) - target) > band
  num_steps = outside_RxN.shape[1]
  last_outside_R = np.where(outside_RxN.any(axis=1), num_steps - 1 - np.argmax(outside_RxN[:, ::-1], axis=1), -1)
  return np.where(last_outside_R == num_steps - 1, np.nan, last_outside_R + 1.0)


def overshoot(entropy_RxN: np.ndarray, target: float) -> np.ndarray:
  """How far the entropy goes beyond the target, seen from where it starts, at its worst, nats, [R]; 0 if it never reaches it.

  >>> overshoot(np.array([[2., 1.2, .9, 1.3], [.5, .8, 1.2, 1.1], [2., 1.5, 1.4, 1.3]]), 1.0).round(3).tolist()
  [0.1, 0.2, 0.0]
  """
  entropy_RxN = np.atleast_2d(np.asarray(entropy_RxN, np.float64))
  side_R = np.sign(entropy_RxN[:, :1] - target)
  return np.max(np.maximum(0.0, side_R * (target - entropy_RxN)), axis=1)


def final_mean(value_RxN: np.ndarray, *, share: float = 0.2) -> np.ndarray:
  """Mean over the last share of the rollouts (at least one), [R].

  >>> final_mean(np.array([[0., 0., 0., 1., 3.]]), share=.4).tolist()
  [2.0]
  """
  return np.mean(_last(value_RxN, share), axis=1)


def final_spread(value_RxN: np.ndarray, *, share: float = 0.2) -> np.ndarray:
  """Standard deviation over the last share of the rollouts, [R].

  >>> final_spread(np.array([[0., 0., 0., 1., 3.]]), share=.4).tolist()
  [1.0]
  """
  return np.std(_last(value_RxN, share), axis=1)


def _last(value_RxN: np.ndarray, share: float) -> np.ndarray:
  value_RxN = np.atleast_2d(np.asarray(value_RxN, np.float64))
  num_steps = value_RxN.shape[1]
  return value_RxN[:, num_steps - max(round(share * num_steps), 1) :]


def choose(error_SxKxR: np.ndarray, *, each_target: bool = False) -> np.ndarray:
  """Which setting to use at each target, [K]: the one with the smallest mean error over targets and tuning seeds, the first of equals.

  Args:
    error_SxKxR: of every setting, target and tuning seed; a setting with an error that is not finite is not chosen.
    each_target: choose for each target alone. For controllers that know no target: it is the only way to order an entropy from them.

  >>> error = np.array([[[.1], [.9]], [[.3], [.2]]])      # 2 settings, 2 targets, 1 seed
  >>> choose(error).tolist(), choose(error, each_target=True).tolist()
  ([1, 1], [0, 1])
  """
  error_SxK = np.mean(np.asarray(error_SxKxR, np.float64), axis=2)
  error_SxK = np.where(np.isfinite(error_SxK), error_SxK, np.inf)
  if each_target:
    return np.argmin(error_SxK, axis=0)
  return np.full(error_SxK.shape[1], np.argmin(np.mean(error_SxK, axis=1)))
