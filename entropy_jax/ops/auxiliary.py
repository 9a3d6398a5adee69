"""Losses that are added to cross entropy in supervised training: the z-loss on logits, and two that steer the entropy of attention.

Each returns arrays, or a `Ratio` that merges over layers and slices of the batch; masked slots may hold anything and reach neither value
nor gradient.
"""

import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.ops import categorical, masked
from entropy_jax.types import Ratio, UserError


def _choose(owner: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0)
    raise UserError(f'{owner}: {key}={value!r} is not one of {", ".join(allowed)}; the nearest is {near[0]!r}.')


def z_loss(logits_xV: jax.Array, *, coef: float = 1e-4) -> jax.Array:
  """c (ln Z)^2 with Z = sum_v exp(y_v): what keeps the logits of the vocabulary, or of a router, from drifting.

  Args:
    logits_xV: [..., V], any float type; at least one finite a row.
    coef: c >= 0.

  Returns:
    [...], float32, at least 0.

  Gradient: 2 c ln Z softmax(y), and 0 to c.
  Limits: 0 in value and gradient where ln Z = 0. Not invariant to a shift of the logits, which is its purpose.
  Reference: Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, arXiv 2204.02311; Wortsman et al., Small-scale proxies for
    large-scale Transformer training instabilities, arXiv 2309.14322.

  >>> round(float(z_loss(jnp.array([2., 1., 0.]))) * 1e4, 5)      # ln Z = 2.407606
  5.79657
  """
  log_z = jax.nn.logsumexp(logits_xV.astype(jnp.float32), axis=-1)
  return jax.lax.stop_gradient(jnp.asarray(coef, jnp.float32)) * jnp.square(log_z)


class TokenLosses(NamedTuple):
  """Per token, float32, 0 where masked: the cross entropy alone, which is what one reports, and the z-loss to add to it."""

  cross_entropy_BxT: jax.Array
  z_loss_BxT: jax.Array


def token_losses(logits_BxTxV: jax.Array, target_BxT: jax.Array, mask_BxT: jax.Array, *, z_coef: float | None = 1e-4) -> TokenLosses:
  """Cross entropy -ln p(target) and z-loss of every token, apart.

  Args:
    logits_BxTxV: any float type; -inf for impossible tokens.
    target_BxT: int; anything where masked.
    mask_BxT: bool, the tokens that count.
    z_coef: of `z_loss`, None for none.

  Returns:
    TokenLosses; `masked.mean_ratio` of each is the token-weighted mean.

  Gradient: of their sum (1 + 2 c ln Z) softmax(y) - onehot(target) on valid tokens, 0 on others.

  >>> found = token_losses(jnp.array([[[2., 1., 0.]]]), jnp.array([[0]]), jnp.array([[True]]))
  >>> round(float(found.cross_entropy_BxT[0, 0]), 6)            # 2.407606 - 2
  0.407606
  """
  # Sanitised before anything is computed: masking the outputs alone leaves 0 * NaN in the backward pass.
  logits = jnp.where(mask_BxT[..., None], logits_BxTxV.astype(jnp.float32), 0.0)
  target = jnp.where(mask_BxT, target_BxT, 0)
  z_BxT = jnp.zeros(mask_BxT.shape, jnp.float32) if z_coef is None else masked.zero(z_loss(logits, coef=z_coef), mask_BxT)
  return TokenLosses(masked.zero(-categorical.token_log_prob(logits, target), mask_BxT), z_BxT)


def entropy_guided_penalty(
  entropy_BxHxQ: jax.Array,
  threshold_H: jax.Array,
  mask_BxQ: jax.Array,
  *,
  num_keys: int | jax.Array,
  tolerance: float = 0.2,
  edge: str = 'jump',
) -> jax.Array:
  """Entropy-guided attention of one layer: the squared distance of every row's entropy from its head's threshold, outside a tolerance.

    d = H - r_h E with E = ln(num_keys),  penalty = d^2 where |d| > tolerance E, else 0

  Args:
    entropy_BxHxQ: attention entropy in nats, differentiable.
    threshold_H: [H], r of every head, learnt, a fraction of E.
    mask_BxQ: bool, the queries that count.
    num_keys: the context length T, for all rows the same, as the method has it; or int [B, Q], the keys that each query sees, for a
      maximum that its row can reach.
    tolerance: gamma >= 0.
    edge: 'jump', the method: the penalty starts with tolerance^2 E^2 at the edge; 'hinge', another, continuous one: (|d| - tolerance E)^2.

  Returns:
    penalty_BxHxQ, float32, 0 where masked.

  Gradient: outside the tolerance 2 d to H and -2 E d to r; 0 inside.
  Limits: two-sided, against overload (H above) and collapse (H below). With r = .5 and tolerance >= .5 it is 0 everywhere. With num_keys
    the context length the first row, whose entropy is always 0, pushes r down and nothing else.
  Reference: Jha and Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489. UNCONFIRMED: where r starts.
  Differs: the released code takes the entropy of the weights as -sum a ln(a + 1e-9) and does not mask padding.

  >>> H = jnp.array([[[1.386294, .7, 0.]]])
  >>> penalty = entropy_guided_penalty(H, jnp.array([.5]), jnp.ones((1, 3), bool), num_keys=4)
  >>> [round(x, 5) for x in penalty[0, 0].tolist()]
  [0.48045, 0.0, 0.48045]
  """
  _choose('entropy_guided', 'edge', edge, ('jump', 'hinge'))
  mask = jnp.broadcast_to(mask_BxQ[:, None, :], entropy_BxHxQ.shape)
  keys = num_keys if jnp.ndim(num_keys) else jnp.full((1, 1), num_keys)
  largest = jnp.log(jnp.where(mask_BxQ, keys, 1).astype(jnp.float32))[:, None, :]
  target = threshold_H.astype(jnp.float32).reshape(1, -1, 1) * largest
  distance = masked.zero(masked.zero(entropy_BxHxQ.astype(jnp.float32), mask) - target, mask)
  outside = jnp.abs(distance) > tolerance * largest
  if edge == 'hinge':
    return jnp.square(jnp.where(outside, jnp.abs(distance) - tolerance * largest, 0.0))
  return jnp.square(jnp.where(outside, distance, 0.0))


def entropy_guided_loss(
  penalty_BxHxQ: jax.Array, mask_BxQ: jax.Array, *, coef: float = 1e-5, reduction: str = 'sum', num_sequences: int | jax.Array | None = None
) -> Ratio:
  """The penalties of a layer as a term of the loss; merge the layers' Ratios, then compute.

    'sum'   coef (1/L) sum_l (1/H) sum_h sum_{b,i} penalty, the method: its strength grows with batch and length
    'mean'  coef times the mean penalty over layers, heads and valid queries

  Args:
    penalty_BxHxQ: from `entropy_guided_penalty`.
    mask_BxQ: bool, as there.
    coef: lambda; 1e-5 belongs to 'sum' with batches of about 128. 'mean' needs coef times the number of queries for the same.
    reduction: 'sum' or 'mean'.
    num_sequences: rows of the whole batch where this is a slice of it, so that slices merge to the sum; None for the rows at hand.

  Returns:
    Ratio.

  Gradient: coef / (L H) to every penalty for 'sum'.
  Reference: as `entropy_guided_penalty`; the released code sums over batch and positions and averages over heads and layers.
  """
  _choose('entropy_guided', 'reduction', reduction, ('sum', 'mean'))
  B, H, _ = penalty_BxHxQ.shape
  num = coef * jnp.sum(penalty_BxHxQ, dtype=jnp.float32)
  if reduction == 'mean':
    return Ratio(num, H * masked.count(mask_BxQ))
  # Each row brings its share of H, so that the denominators of slices add up to H.
  return Ratio(num, jnp.asarray(H * B / (B if num_sequences is None else num_sequences), jnp.float32))


def attention_entropy_penalty(logits_BxHxK: jax.Array, mask_BxK: jax.Array, *, coef: float = 0.1, form: str = 'nats') -> jax.Array:
  """AEM: minus the entropy of the attention of a bag, lambda sum_n a_n ln a_n, added to the loss so that entropy is maximised.

  Args:
    logits_BxHxK: attention logits of K instances in B bags, H heads (or classes).
    mask_BxK: bool, real instances; the others are outside the softmax.
    coef: lambda >= 0. The README's .1; a later version of the paper anneals it, lambda `schedules.fall(step, steps)`, UNCONFIRMED.
    form: 'nats', the method: the term grows with ln K, so that large bags weigh more; 'relative', another: entropy over ln(instances).

  Returns:
    penalty_BxH, float32, in [-coef ln K, 0]; 0 for an empty bag. The method averages it over heads and bags.

  Gradient: coef a_n (ln a_n + H), which sums to 0 over instances; 0 for equal logits.
  Limits: the least at equal logits; 0 at one instance. Up to the constant coef ln K it is coef KL(a || uniform). Unchanged when a
    constant is added to the logits.
  Reference: Zhang et al., AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image Classification,
    arXiv 2406.15303.
  Differs: the released code divides by the number of heads in training, and in evaluation by a further axis.

  >>> round(float(attention_entropy_penalty(jnp.array([[[2., 0., 0., 0.]]]), jnp.ones((1, 4), bool), coef=1.)[0, 0]), 6)
  -0.918284
  """
  _choose('attention_entropy', 'form', form, ('nats', 'relative'))
  mask = jnp.broadcast_to(mask_BxK[:, None, :], logits_BxHxK.shape)
  entropy = categorical.entropy(jnp.where(mask, logits_BxHxK.astype(jnp.float32), -jnp.inf))
  num_B = masked.count(mask_BxK, axis=-1)
  if form == 'relative':
    several = num_B > 1
    entropy = jnp.where(several[:, None], entropy / jnp.log(jnp.where(several, num_B, 2.0))[:, None], 0.0)
  return jnp.where(num_B[:, None] > 0, -coef * entropy, 0.0)
