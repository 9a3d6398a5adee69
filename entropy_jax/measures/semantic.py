"""Semantic entropy: uncertainty over meanings instead of strings, from several sampled answers to each prompt, in the estimators of its
public implementations, which are different quantities; the sequence-level entropies that they are compared with; and, on the host,
clusters from pairwise equivalence. Values are those of each sequence's group, and `over_groups` averages them over prompts.

Estimators from few samples are biased low (by about (K - 1) / (2 G) nats for K clusters): compare at equal G only.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_jax.ops import clusters, groups, masked, ranks
from entropy_jax.types import Ratio, UserError

ENTAILMENT, NEUTRAL, CONTRADICTION = 2, 1, 0  # as the usual three-class inference models number their labels


def discrete_semantic_entropy(answer_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Entropy of the empirical distribution of answers to a prompt: SE = -sum_c (n_c / G) ln(n_c / G).

  Args:
    answer_B: int [B], number of the final answer inside the group; negative: none, a cluster of its own.
    group_B: int [B], prompt ids.

  Returns:
    float32 [B], nats, the value of each sequence's group, in [0, ln G].

  Gradient: none, it counts.
  Limits: 0 for one cluster, ln G where all answers differ.
  Reference: Farquhar et al., Detecting hallucinations in large language models using semantic entropy, 2024 (discrete form).

  >>> round(float(discrete_semantic_entropy(jnp.array([0, 1, 2, 1]), jnp.zeros(4, int))[0]), 6)      # 1.5 ln 2
  1.039721
  """
  cluster_B = clusters.identify(answer_B, group_B)
  return clusters.entropy(jnp.log(clusters.frequency(cluster_B, group_B)), cluster_B, group_B)


def likelihood_semantic_entropy(answer_B: jax.Array, logp_B: jax.Array, group_B: jax.Array, *, estimator: str = 'shannon') -> jax.Array:
  """Entropy over clusters whose probability is the share of their responses' likelihoods: p_c = sum_{i in c} e^l_i / sum_i e^l_i.

    shannon (Farquhar): -sum_c p_c ln p_c;   unweighted: -(1 / K) sum_c ln p_c;   samples: -(1 / G) sum_i ln p_c(i)

  Args:
    answer_B: int [B], as in `discrete_semantic_entropy`.
    logp_B: float32 [B], log-probability l of each response: the sum over its tokens, or their mean (`response_log_likelihood`).
    group_B: int [B], prompt ids.
    estimator: 'shannon | unweighted | samples'.

  Returns:
    float32 [B], nats, the value of each sequence's group.

  Gradient: to logp_B, of the formula with the clusters held fixed.
  Limits: 0 for one cluster. shannon is at most the entropy of the responses' normalised likelihoods (grouping). Equal likelihoods give
    the discrete form. Two copies of one string count twice: leave one out where the likelihoods are exact.
  Reference: Farquhar et al., 2024 (shannon); lm-polygraph (samples).

  >>> p = jnp.log(jnp.array([.4, .2, .1, .3]))
  >>> round(float(likelihood_semantic_entropy(jnp.array([0, 0, 1, 1]), p, jnp.zeros(4, int))[0]), 6)      # p = (.6, .4)
  0.673012
  """
  cluster_B = clusters.identify(answer_B, group_B)
  return clusters.entropy(clusters.log_likelihood(logp_B, cluster_B, group_B), cluster_B, group_B, estimator=estimator)


def kuhn_semantic_entropy(answer_B: jax.Array, logp_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Minus the mean over clusters of their log-likelihood, which is not normalised: SE = -(1 / K) sum_c ln sum_{i in c} e^l_i.

  Args:
    answer_B, logp_B, group_B: as in `likelihood_semantic_entropy`; the original takes the mean over tokens for l.

  Returns:
    float32 [B], nats, the value of each sequence's group; no entropy of a distribution: it may be of any size or sign.

  Gradient: to logp_B, with the clusters held fixed.
  Limits: likelihoods that sum to 1 over the group give the unweighted form of `likelihood_semantic_entropy`.
  Reference: Kuhn et al., Semantic Uncertainty: Linguistic Invariances for Uncertainty Estimation in Natural Language Generation, 2023.
  Differs: its code subtracts 5 from every log-likelihood, which adds 5 to all values and changes no ranking.

  >>> p = jnp.log(jnp.array([.4, .2, .1, .3]))
  >>> round(float(kuhn_semantic_entropy(jnp.array([0, 0, 1, 1]), p, jnp.zeros(4, int))[0]), 6)     # -(ln .6 + ln .4) / 2
  0.713558
  """
  cluster_B = clusters.identify(answer_B, group_B)
  log_p_B = clusters.log_likelihood(logp_B, cluster_B, group_B, normalized=False)
  return clusters.entropy(log_p_B, cluster_B, group_B, estimator='unweighted')


def predictive_entropy(logp_B: jax.Array, group_B: jax.Array) -> jax.Array:
  """Monte Carlo entropy over strings, -(1 / G) sum_i l_i, nats, [B]: what semantic entropy is compared with.

  >>> round(float(predictive_entropy(jnp.log(jnp.array([.4, .2, .1, .3])), jnp.zeros(4, int))[0]), 6)
  1.508072
  """
  return -groups.mean(logp_B, group_B)


def response_log_likelihood(logp_BxT: jax.Array, mask_BxT: jax.Array, *, per_token: bool = True) -> jax.Array:
  """l of each response: the mean log-probability of its tokens, or their sum, [B]; 0 for one without a token."""
  return masked.mean(logp_BxT, mask_BxT, axis=1) if per_token else masked.total(logp_BxT, mask_BxT, axis=1)


def over_groups(value_B: jax.Array, group_B: jax.Array) -> Ratio:
  """Mean over prompts of a value that is equal within a group, however many responses each prompt has.

  >>> float(over_groups(jnp.array([1., 1., 1., 3.]), jnp.array([5, 5, 5, 2])).compute())
  2.0
  """
  return masked.mean_ratio(value_B, ranks.within(jnp.zeros_like(value_B), group_B) == 0)


def entailment_equivalence(label_NxN: ArrayLike, *, strict: bool = False) -> NDArray[np.bool_]:
  """Which of N answers mean the same, from the label of every ordered pair: ENTAILMENT, NEUTRAL or CONTRADICTION.

  Args:
    label_NxN: int, label_NxN[i, j] of "i entails j".
    strict: True asks for entailment both ways; False refuses only a contradiction in either, or neutral in both.

  Returns:
    bool [N, N], symmetric, True on the diagonal.

  >>> entailment_equivalence([[2, 2, 0], [1, 2, 1], [1, 1, 2]]).tolist()
  [[True, True, False], [True, True, False], [False, False, True]]
  """
  label_NxN = np.asarray(label_NxN)
  if strict:
    same_NxN = (label_NxN == ENTAILMENT) & (label_NxN.T == ENTAILMENT)
  else:
    contradicted_NxN = (label_NxN == CONTRADICTION) | (label_NxN.T == CONTRADICTION)
    same_NxN = ~contradicted_NxN & ~((label_NxN == NEUTRAL) & (label_NxN.T == NEUTRAL))
  return same_NxN | np.eye(len(label_NxN), dtype=bool)


def greedy_clusters(equivalent_NxN: ArrayLike) -> NDArray[np.int64]:
  """A cluster for each of N answers: in order, one without a cluster opens one and takes every later answer equivalent to it.

  Args:
    equivalent_NxN: bool.

  Returns:
    int64 [N], numbered from 0 in the order of opening: an `answer_B` of one group.

  Raises:
    UserError: a table that is not square.

  Limits: equivalence need not be transitive, and then the result depends on the order of the answers.

  >>> greedy_clusters([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).tolist()
  [0, 0, 1]
  """
  table_NxN = np.asarray(equivalent_NxN, bool)
  if table_NxN.ndim != 2 or table_NxN.shape[0] != table_NxN.shape[1]:
    raise UserError(f'equivalent_NxN has shape {table_NxN.shape}: give a square table, one row and one column an answer.')
  cluster_N = np.full(len(table_NxN), -1, np.int64)
  for i, row_N in enumerate(table_NxN):
    if cluster_N[i] < 0:
      members_N = (cluster_N < 0) & row_N & (np.arange(len(row_N)) >= i)
      members_N[i] = True
      cluster_N[members_N] = cluster_N.max() + 1
  return cluster_N
