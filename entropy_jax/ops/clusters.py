"""Answers to one prompt that mean the same: clusters inside groups, their probabilities, and the entropy over them.

`answer_B` numbers the answers inside a group; a negative number means that there is none, and such a response is a cluster of its own,
because two missing answers do not agree. Every function returns one value a sequence, that of its cluster or of its group.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import groups, ranks
from entropy_jax.types import Ratio


def identify(answer_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """A number for the cluster of each response: equal where group and answer are, different from all others without an answer, int32 [B].

  >>> identify(jnp.array([4, 4, -1, -1, 4]), jnp.array([0, 0, 0, 0, 9])).tolist()
  [2, 2, 0, 1, 3]
  """
  alone_B = jnp.where(answer_B < 0, jnp.arange(answer_B.shape[0], dtype=jnp.int32), -1)
  return ranks.identify(group_B, jnp.maximum(answer_B, -1), alone_B)


def frequency(cluster_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """n_c / G, the share of the group's responses that are in the cluster of each, [B].

  >>> frequency(jnp.array([0, 0, 1, 2]), jnp.zeros(4, int)).tolist()
  [0.5, 0.5, 0.25, 0.25]
  """
  return groups.size(cluster_B) / groups.size(group_B)


def log_sum_exp(x_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """ln sum exp(x) over the group of each sequence, [B], without overflow; -inf where every member is."""
  top_B = groups.max(x_B, group_B)
  finite_B = jnp.where(jnp.isfinite(top_B), top_B, 0.0)
  total_B = groups.sum(jnp.exp(x_B - finite_B), group_B)
  return jnp.where(total_B > 0, finite_B + jnp.log(jnp.where(total_B > 0, total_B, 1.0)), -jnp.inf)


def log_likelihood(logp_B: jax.Array, cluster_B: jax.Array, group_B: jax.Array, *, normalized: bool = True) -> jax.Array:
  """ln sum_{i in c} exp(logp_i), with normalized divided by the sum over the group, at most 0, [B].

  Args:
    logp_B: float32, log-probability of each response, the sum over its tokens or (length-normalised) their mean.
    cluster_B: int, from `identify`.
    group_B: int.

  >>> p = log_likelihood(jnp.log(jnp.array([.2, .1, .05, .15])), jnp.array([0, 0, 1, 1]), jnp.zeros(4, int))
  >>> [round(x, 6) for x in jnp.exp(p).tolist()]
  [0.6, 0.6, 0.4, 0.4]
  """
  total_B = log_sum_exp(logp_B, cluster_B)
  return jnp.minimum(total_B - log_sum_exp(logp_B, group_B), 0.0) if normalized else total_B


def entropy(log_p_B: jax.Array, cluster_B: jax.Array, group_B: jax.Array, *, estimator: str = 'shannon') -> jax.Array:
  """Entropy of the group over its K clusters from ln p of each response's own cluster, nats, [B].

    shannon: -sum_c p_c ln p_c        unweighted: -(1 / K) sum_c ln p_c        samples: -(1 / G) sum_i ln p_c(i)

  Args:
    log_p_B: float32, equal within a cluster.
    cluster_B: int, from `identify`.
    group_B: int.
    estimator: 'shannon' (an expectation over clusters), 'unweighted' (clusters count alike, so rare ones count too much) or 'samples' (an
      expectation over the responses; equal to shannon where p is the frequency).

  >>> answers, one = jnp.array([0, 1, 2, 1]), jnp.zeros(4, int)
  >>> p = jnp.log(frequency(answers, one))
  >>> [round(float(entropy(p, answers, one, estimator=e)[0]), 6) for e in ('shannon', 'unweighted', 'samples')]
  [1.039721, 1.155245, 1.039721]
  """
  size_B = groups.size(cluster_B)
  possible_B = log_p_B > -jnp.inf
  log_p_B = jnp.where(possible_B, log_p_B, 0.0)
  if estimator == 'shannon':
    return groups.sum(jnp.where(possible_B, -jnp.exp(log_p_B) * log_p_B, 0.0) / size_B, group_B) + 0.0
  if estimator == 'samples':
    return groups.mean(-log_p_B, group_B) + 0.0
  return Ratio(groups.sum(-log_p_B / size_B, group_B), groups.sum(1.0 / size_B, group_B)).compute() + 0.0
