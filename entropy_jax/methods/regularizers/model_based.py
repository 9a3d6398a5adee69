"""Entropy to order, by prediction: the coefficient that brings the predicted entropy of the next update to the target.

The entropy ledger says how much of an update's first-order entropy change its regularizer made, and what change was measured. From these
the controller keeps a model of the next update with two numbers, the response (nats per unit of the coefficient) and the drift (nats that
everything else makes), and solves it for the coefficient. It scales any regularizer (`transform.controlled`); `model_based_entropy` is the
entropy bonus under it.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked
from entropy_jax.transform import Controller
from entropy_jax.types import Metrics, PyTree, TokenBatch, UserError


def model_based_penalty(entropy_BxT: jax.Array) -> jax.Array:
  """The entropy bonus with the coefficient of `model_based_controller`: -c_k H.

  Args:
    entropy_BxT: float32 [B, T], entropy of the current policy at every token, nats.
    target, horizon, smoothing, minimum, maximum, initial: see `model_based_controller`.

  Returns:
    float32 [B, T], minimised; before the coefficient, -H.

  Gradient: -c_k dH; none through the coefficient.
  Limits: minimum = maximum = initial is the entropy bonus.
  Reference: this library's own. The prediction is Lemma 1 of Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models, arXiv 2505.22617, in the parameters instead of a row's logits.
  """
  return -entropy_BxT


def model_based_controller(
  *,
  target: float = 0.5,
  horizon: float = 4.0,
  smoothing: float = 0.8,
  minimum: float = -1.0,
  maximum: float = 1.0,
  initial: float = 0.01,
) -> Controller:
  """The controller of `model_based_entropy`, for any regularizer that moves entropy.

      c_(k+1) = ((target - h_(k+1)) / horizon - drift) / response, kept in [minimum, maximum]
      response <- (1 - s) own_k / c_k + s response;   drift <- (1 - s) (measured_k - own_k) + s drift

  with h the token mean of the entropy that the update sees, own the regularizer's first-order change of it, measured the update's change.

  Args:
    target: entropy to hold, nats.
    horizon: updates in which a deviation should be gone, at least 1; larger is calmer.
    smoothing: s, of the two estimates, in [0, 1).
    minimum, maximum: bounds of the coefficient; a negative one pushes entropy down.
    initial: coefficient of the first update, not 0: it is the probe that the response is first measured with. A later coefficient
      below a tenth of it, in size, measures none.

  Returns:
    a Controller that observes the ledger; state {coefficient, response, drift, num_seen}. An update without a valid token, or whose
    coefficient is too small to measure a response with, leaves the response as it is.

  Raises:
    UserError: minimum, initial and maximum are not in this order, or initial is 0.
  """
  if not minimum <= initial <= maximum or initial == 0:
    raise UserError(
      f'model_based_entropy: initial={initial!r} is 0 or not between minimum={minimum!r} and maximum={maximum!r}; '
      'give minimum <= initial <= maximum, not 0.'
    )
  least = 0.1 * abs(initial)  # a coefficient far below the probe measures rounding, not a response

  def init() -> PyTree:
    zero = jnp.float32(0.0)
    return {'coefficient': jnp.float32(initial), 'response': zero, 'drift': zero, 'num_seen': zero}

  def update(state: PyTree, batch: TokenBatch) -> tuple[jax.Array, PyTree, Metrics]:
    entropy = masked.mean(batch.entropy_BxT, batch.mask_BxT)
    wanted = (target - entropy) / horizon - state['drift']
    known = state['response'] > 0  # a regularizer that lowers the entropy it should raise is not steered by its own model
    solved = jnp.clip(wanted / jnp.where(known, state['response'], 1.0), minimum, maximum)
    scale = jnp.where(known & jnp.any(batch.mask_BxT), solved, state['coefficient'])
    metrics = {'coefficient': scale, 'entropy': entropy, 'response': state['response'], 'drift': state['drift']}
    return scale, {**state, 'coefficient': scale}, metrics

  def observe(state: PyTree, own: jax.Array, measured: jax.Array) -> PyTree:
    scale, first = state['coefficient'], state['num_seen'] == 0
    usable = jnp.abs(scale) >= least
    response = own / jnp.where(usable, scale, 1.0)
    keep = jnp.where(first, 0.0, smoothing)
    return {
      'coefficient': scale,
      'response': jnp.where(usable, keep * state['response'] + (1.0 - keep) * response, state['response']),
      'drift': keep * state['drift'] + (1.0 - keep) * (measured - own),
      'num_seen': state['num_seen'] + 1.0,
    }

  return Controller(init, update, observe)


model_based_entropy = transform.regularizer(
  'model_based_entropy',
  model_based_penalty,
  controller=model_based_controller,
  target='[0, inf)',
  horizon='[1, inf)',
  smoothing='[0, 1)',
  minimum='[-inf, inf]',
  maximum='[-inf, inf]',
  initial='[-inf, inf]',
)
