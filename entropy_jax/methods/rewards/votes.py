"""Rewards without labels: the responses to a prompt judge each other by their answers.

A negative `answer_B` is no answer: it agrees with nothing, another missing answer included.
"""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import clusters, groups, masked, ranks, selection
from entropy_jax.types import Metrics, UserError

_NOBODY = jnp.iinfo(jnp.int32).max


def majority(answer_B: jax.Array, group_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(answer that most responses of the group give, -1 where none gives one; number of its votes), int32 and float32 [B].

  Of several answers with equally many votes the smallest number wins, so that the order of the rows does not matter.

  >>> label, votes = majority(jnp.array([2, 0, 2, -1, 1, 0, -1]), jnp.array([0, 0, 0, 0, 0, 0, 9]))
  >>> label.tolist(), votes.tolist()
  ([0, 0, 0, 0, 0, 0, -1], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0])
  """
  votes_B = jnp.where(answer_B >= 0, groups.size(clusters.identify(answer_B, group_B)), 0.0)
  most_B = groups.max(votes_B, group_B)
  label_B = groups.min(jnp.where((answer_B >= 0) & (votes_B == most_B), answer_B, _NOBODY), group_B)
  return jnp.where(most_B > 0.0, label_B, -1), most_B


def _check_trained(*, trained: int | None) -> None:
  if trained is not None and not isinstance(trained, int):
    raise UserError(f'ttrl: trained={trained!r} is no number of responses; give an integer of at least 1, or None for all.')


def ttrl_reward(
  reward_B: jax.Array,
  answer_B: jax.Array,
  group_B: jax.Array,
  sequence_B: jax.Array | None,
  *,
  trained: int | None = None,
  threshold: float = 0.5,
) -> tuple[jax.Array, Metrics]:
  """1 for the responses whose answer is the majority's, else 0: R_i = 1[a_i = mode(a_1 .. a_N)].

  Args:
    reward_B: float32 [B], the verifier's outcome, for the metrics alone; it does not enter the reward.
    answer_B: int [B], number of the answer inside the group, negative for none.
    group_B: int [B], prompt ids.
    sequence_B: int [B] or None, identity of the rows: their order in the group for `trained`.
    trained: None, or the number N_s of responses of each group that are trained on; all of them vote. The others get the mean reward of
      the trained ones, so that a baseline of the group is that of the trained and their own advantage is 0.
    threshold: a response is correct, for the metrics, if its outcome is above it.

  Returns:
    (reward_B, float32 [B]; metrics, means over groups: majority_ratio, votes of the label over all responses, with and without an answer;
    label_accuracy, whether a response with the label is correct; reward_accuracy, the share of responses on which R and the verifier
    agree; ground_truth_ratio, the share of correct ones; pass_at_n, whether one is).

  Gradient: none, rewards are planned.
  Limits: equal answers, and groups without an answer, give equal rewards: advantage 0. With majority ratio p and the population's
    deviation, GRPO's advantages are sqrt((1 - p) / p) and -sqrt(p / (1 - p)): an accuracy that is below p is not seen.
  Reference: Zuo et al., TTRL: Test-Time Reinforcement Learning, arXiv 2504.16084.
  Differs: the first answer met wins a tie in the released code, the smallest number here; it leaves the responses beyond N_s out of the
    batch, here GRPO's deviation still counts them: sqrt((N_s - 1) / (N - 1)) of that over the trained alone.

  >>> R, _ = ttrl_reward(jnp.zeros(4), jnp.array([0, 0, 1, -1]), jnp.zeros(4, int), None)
  >>> R.tolist()
  [1.0, 1.0, 0.0, 0.0]
  """
  label_B, votes_B = majority(answer_B, group_B)
  agrees_B = (answer_B >= 0) & (answer_B == label_B)
  voted_B = agrees_B.astype(jnp.float32)
  correct_B = (reward_B > threshold).astype(jnp.float32)
  one_a_group_B = ranks.within(jnp.zeros_like(reward_B), group_B, sequence_B) == 0
  measured = {
    'majority_ratio': votes_B / groups.size(group_B),
    'label_accuracy': groups.max(jnp.where(agrees_B, correct_B, 0.0), group_B),
    'reward_accuracy': groups.mean((voted_B == correct_B).astype(jnp.float32), group_B),
    'ground_truth_ratio': groups.mean(correct_B, group_B),
    'pass_at_n': groups.max(correct_B, group_B),
  }
  metrics = {name: masked.mean(value_B, one_a_group_B) for name, value_B in measured.items()}
  if trained is None:
    return voted_B, metrics
  trained_B = ranks.within(jnp.zeros_like(reward_B), group_B, sequence_B) < trained
  share_B = groups.sum(masked.zero(voted_B, trained_B), group_B) / groups.sum(trained_B.astype(jnp.float32), group_B)
  return jnp.where(trained_B, voted_B, share_B), metrics


ttrl = transform.reward('ttrl', ttrl_reward, check=_check_trained, trained='[1, inf)', threshold='[-inf, inf]')


def empo_reward(
  answer_B: jax.Array,
  group_B: jax.Array,
  *,
  empty: float = 0.0,
  empty_alone: bool = False,
  low: float | None = None,
  high: float | None = None,
  min_frequency: float | None = None,
) -> tuple[jax.Array, Metrics]:
  """The share of the group's responses that give the same answer: R_i = n_c(i) / G, whose mean is minimised by answer entropy 0.

    filters, in a group of which every response gets 0: H <= low ln G;   H >= high ln G;   max_c n_c / G < min_frequency with several
    answers. H is the Shannon entropy over answers.

  Args:
    answer_B: int [B], number of the answer inside the group, negative for none: a cluster of its own, not counted as agreeing.
    group_B: int [B], prompt ids of groups of G responses.
    empty: reward of a response without an answer, under every filter.
    empty_alone: it earns 1 / G instead, as the cluster of its own that it is, and falls under the filters.
    low: None, or the share of ln G in [0, 1] up to which a group is too certain to learn from.
    high: None, or the share of ln G from which it is too uncertain; 1 drops the groups in which all answers differ.
    min_frequency: None, or the smallest share of the most frequent answer.

  Returns:
    (reward_B, float32 [B]; metrics, means over responses: answer_entropy, nats, frequency and filtered_fraction).

  Gradient: none, rewards are planned.
  Limits: equal answers, or all different ones, give advantage 0 whatever the filters, and so do clusters of equal size. The mean reward
    of a group is sum_c (n_c / G)^2 = exp(-Renyi-2 entropy), so it is this entropy, not Shannon's, that training lowers.
  Reference: Zhang et al., Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization (EMPO),
    arXiv 2504.05812.
  Differs: the released code has three settings: for mathematics empty=0 and high=1; for free-form answers empty=-.5 and
    min_frequency=.2, and an answer that repeats its question gets 0; in its verl version empty_alone, and min_frequency=.25 commented
    out. The numbers of the paper's two thresholds on the entropy are not known to us: both are off.

  >>> R, _ = empo_reward(jnp.array([0, 0, 0, 0, 1, 1, 2]), jnp.zeros(7, int))
  >>> [round(r, 6) for r in R.tolist()]
  [0.571429, 0.571429, 0.571429, 0.571429, 0.285714, 0.285714, 0.142857]
  """
  cluster_B = clusters.identify(answer_B, group_B)
  frequency_B = clusters.frequency(cluster_B, group_B)
  entropy_B = clusters.entropy(jnp.log(frequency_B), cluster_B, group_B)
  most_B = groups.max(frequency_B, group_B)
  # Compared coarsely: the entropy of answers that all differ is ln G up to the rounding of G terms.
  measured_B, largest_B = selection.coarse(entropy_B), jnp.log(groups.size(group_B))
  dropped_B = jnp.zeros(answer_B.shape, bool)
  if high is not None:
    dropped_B = dropped_B | (measured_B >= selection.coarse(high * largest_B))
  if low is not None:
    dropped_B = dropped_B | (measured_B <= selection.coarse(low * largest_B))
  if min_frequency is not None:
    dropped_B = dropped_B | ((selection.coarse(most_B) < selection.coarse(jnp.float32(min_frequency))) & (most_B < 1.0))
  kept_B = jnp.where(dropped_B, 0.0, frequency_B)
  metrics = {
    'answer_entropy': jnp.mean(entropy_B),
    'frequency': jnp.mean(frequency_B),
    'filtered_fraction': jnp.mean(dropped_B, dtype=jnp.float32),
  }
  return (kept_B if empty_alone else jnp.where(answer_B >= 0, kept_B, empty)), metrics


empo = transform.reward(
  'empo', empo_reward, empty='(-inf, inf)', low='[0, 1]', high='[0, 1]', min_frequency='[0, 1]'
)
