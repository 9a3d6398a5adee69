"""Clusters of equal answers, their probabilities and their entropies, against counting by hand."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.ops import clusters

pytestmark = pytest.mark.usefixtures('strict_dtypes')

RNG = np.random.default_rng(1)
GROUP = RNG.choice(np.array([5, -3, 40], np.int32), 24)
GROUP[3] = 999  # alone
ANSWER = RNG.integers(-1, 3, 24).astype(np.int32)
LOGP = RNG.normal(-20, 5, 24).astype(np.float32)
CLUSTER = clusters.identify(jnp.array(ANSWER), jnp.array(GROUP))


def key(i):
  """What the cluster of a row is, said differently: no answer is the row's own."""
  return (int(GROUP[i]), ('none', i) if ANSWER[i] < 0 else int(ANSWER[i]))


def by_cluster(prompt, values):
  """cluster -> the values of its rows, for one prompt."""
  found = collections.defaultdict(list)
  for i in np.flatnonzero(prompt == GROUP):
    found[key(i)].append(float(values[i]))
  return found


class TestIdentify:
  def test_equal_where_group_and_answer_are(self):
    for i in range(24):
      for j in range(24):
        assert (int(CLUSTER[i]) == int(CLUSTER[j])) == (key(i) == key(j)), (i, j)

  def test_any_negative_number_means_no_answer(self):
    assert len(set(clusters.identify(jnp.array([-1, -1, -7]), jnp.zeros(3, jnp.int32)).tolist())) == 3


class TestFrequency:
  def test_counts(self):
    expected = [sum(key(j) == key(i) for j in range(24)) / np.sum(GROUP[i] == GROUP) for i in range(24)]
    np.testing.assert_allclose(clusters.frequency(CLUSTER, jnp.array(GROUP)), expected, rtol=1e-6)


class TestLogSumExp:
  def test_loop(self):
    expected = [scipy.special.logsumexp(LOGP[g == GROUP]) for g in GROUP]
    np.testing.assert_allclose(clusters.log_sum_exp(jnp.array(LOGP), jnp.array(GROUP)), expected, rtol=1e-6)

  def test_far_from_zero(self):
    # ln(e^-1000 + e^-1000) = -1000 + ln 2, and e^-1000 is 0 in floats; impossible members are left out
    x = jnp.array([-1000.0, -1000.0, -jnp.inf, -jnp.inf])
    result = clusters.log_sum_exp(x, jnp.array([0, 0, 0, 1]))
    np.testing.assert_allclose(result, [-1000 + np.log(2)] * 3 + [-np.inf], rtol=1e-7)


class TestLogLikelihood:
  def test_loop(self):
    normalized = clusters.log_likelihood(jnp.array(LOGP), CLUSTER, jnp.array(GROUP))
    plain = clusters.log_likelihood(jnp.array(LOGP), CLUSTER, jnp.array(GROUP), normalized=False)
    for i in range(24):
      mass = scipy.special.logsumexp([LOGP[j] for j in range(24) if key(j) == key(i)])
      np.testing.assert_allclose(plain[i], mass, rtol=1e-6)
      np.testing.assert_allclose(normalized[i], mass - scipy.special.logsumexp(LOGP[GROUP[i] == GROUP]), rtol=1e-4, atol=2e-6)

  def test_sums_to_one_over_clusters(self):
    p = np.exp(clusters.log_likelihood(jnp.array(LOGP), CLUSTER, jnp.array(GROUP)))
    for prompt in set(GROUP.tolist()):
      np.testing.assert_allclose(sum(values[0] for values in by_cluster(prompt, p).values()), 1.0, rtol=1e-5)


class TestEntropy:
  @pytest.mark.parametrize(
    ('counts', 'unweighted', 'shannon'),
    [
      # -(ln(7/8) + ln(1/8)) / 2 = (.133531 + 2.079442) / 2; 7/8 .133531 + 1/8 2.079442
      ((7, 1), 1.106486, 0.376770),
      ((4, 4), np.log(2), np.log(2)),
      # (.470004 + 3 2.079442) / 4; 5/8 .470004 + 3/8 2.079442
      ((5, 1, 1, 1), 1.677082, 1.073543),
      ((1,) * 8, np.log(8), np.log(8)),
      ((8,), 0.0, 0.0),
    ],
  )
  def test_counts(self, counts, unweighted, shannon):
    answer = jnp.array(np.repeat(np.arange(len(counts)), counts))
    group = jnp.zeros(8, jnp.int32)
    log_p = jnp.log(clusters.frequency(answer, group))
    expected = {'unweighted': unweighted, 'shannon': shannon, 'samples': shannon}
    for estimator, value in expected.items():
      np.testing.assert_allclose(clusters.entropy(log_p, answer, group, estimator=estimator), np.full(8, value), rtol=2e-6, atol=1e-7)

  @pytest.mark.parametrize('estimator', ['shannon', 'unweighted', 'samples'])
  def test_loop(self, estimator):
    log_p = clusters.log_likelihood(jnp.array(LOGP), CLUSTER, jnp.array(GROUP))
    actual = np.asarray(clusters.entropy(log_p, CLUSTER, jnp.array(GROUP), estimator=estimator))
    for prompt in set(GROUP.tolist()):
      found = by_cluster(prompt, np.asarray(log_p, np.float64))
      p = np.exp([values[0] for values in found.values()])
      size = np.array([len(values) for values in found.values()])
      expected = {
        'shannon': scipy.stats.entropy(p),
        'unweighted': -np.mean(np.log(p)),
        'samples': -np.sum(size * np.log(p)) / size.sum(),
      }[estimator]
      np.testing.assert_allclose(actual[prompt == GROUP], expected, rtol=1e-4, atol=1e-5)

  def test_impossible_clusters_count_nothing(self):
    log_p = jnp.array([0.0, -jnp.inf])
    assert clusters.entropy(log_p, jnp.array([0, 1]), jnp.zeros(2, jnp.int32)).tolist() == [0.0, 0.0]
