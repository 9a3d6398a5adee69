"""Statistics of the vocabulary row: values by hand, loops over sorted lists, gradients in closed form, impossible tokens, ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax import objective, transform
from entropy_jax.methods import surrogates
from entropy_jax.ops import categorical, vocabulary

pytestmark = pytest.mark.usefixtures('strict_dtypes')

# All rows have 9 tokens and come in sixes, so that each statistic is compiled once.
LOGITS = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32) * 3
HOLES = np.where(np.arange(9) % 4 == 1, -np.inf, LOGITS).astype(np.float32)  # tokens 1 and 5 are impossible
DEGENERATE = np.stack(
  [
    HOLES[0],
    np.full(9, -np.inf),
    np.where(np.arange(9) == 2, 0.0, -np.inf),
    np.linspace(-1e4, 1e4, 9),
    np.zeros(9),
    np.full(9, 3e38),
  ]
).astype(np.float32)
LP_REG = (0.6, 0.25, 0.1, 0.04, 0.006, 0.004)
# No token of this row is near the place where it would enter or leave any of the kept sets below.
CLEAR = np.log([0.42, 0.21, 0.12, 0.1, 0.08, 0.046, 0.02, 0.002, 0.002]).astype(np.float32)
STATS = {
  s.name: s
  for s in (
    vocabulary.nucleus_entropy_stat(0.8),
    vocabulary.nucleus_entropy_stat(0.8, crossing=False),
    vocabulary.clamped_entropy_stat(0.4),
    vocabulary.proxy_kl_stat(0.02),
    vocabulary.proxy_kl_stat(0.2, relative=False),
    vocabulary.largest_log_prob_stat(),
    vocabulary.collision_probability_stat(),
    vocabulary.self_confidence_stat(),
    vocabulary.log_normalizer_stat(),
    vocabulary.top_mean_probability_stat(2),
    vocabulary.top_mean_probability_stat(5),
    vocabulary.deepconf_confidence_stat(5),
  )
}


def softmax(logits):
  return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def rows(*probabilities):
  """Logits of the given distributions, with impossible tokens up to 9 and copies of the first up to 6."""
  padded = [np.pad(np.asarray(p, np.float64), (0, 9 - len(p))) for p in probabilities]
  with np.errstate(divide='ignore'):
    return np.log(padded + padded[:1] * (6 - len(padded))).astype(np.float32)


@functools.cache
def compiled(fn):
  return jax.jit(lambda z: (fn(z), jax.grad(lambda z: jnp.sum(fn(z)))(z)))


def value_and_gradient(name, logits):
  """Six values and the gradient of their sum."""
  return jax.tree.map(np.asarray, compiled(STATS[name].fn)(jnp.asarray(logits)))


def entropy_and_gradient(p, keep):
  """Entropy of p over the kept tokens, renormalised, and -q (ln q + H) towards their logits."""
  q = np.where(keep, p, 0) / p[keep].sum()
  h = scipy.stats.entropy(q)
  return h, np.where(q > 0, -q * (np.log(np.where(q > 0, q, 1)) + h), 0)


def check(name, logits, expected):
  """Values and gradients against expected(p) -> (value, gradient), row by row."""
  values, gradients = value_and_gradient(name, logits)
  for p, value, gradient in zip(softmax(logits), values, gradients):
    h, g = expected(p)
    np.testing.assert_allclose(value, h, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, g, atol=2e-6)


class TestStat:
  def test_names_say_the_parameters(self):
    assert list(STATS) == [
      'nucleus_entropy@0.8',
      'nucleus_entropy@0.8,crossing=False',
      'clamped_entropy@0.4',
      'proxy_kl@0.02',
      'proxy_kl@0.2,relative=False',
      'largest_log_prob',
      'collision_probability',
      'self_confidence',
      'log_normalizer',
      'top_mean_probability@2',
      'top_mean_probability@5',
      'deepconf_confidence@5',
    ]

  def test_two_methods_may_ask_for_the_same(self):
    one = transform.weight('one', lambda nucleus_entropy_BxT: nucleus_entropy_BxT, stats=(vocabulary.nucleus_entropy_stat(0.8),))
    asks = lambda *, mass=0.8: (vocabulary.nucleus_entropy_stat(mass, crossing=True), vocabulary.log_normalizer_stat())
    two = transform.weight('two', lambda nucleus_entropy_BxT: nucleus_entropy_BxT, stats=asks)
    chain = objective.chain(one(), two(), surrogates.ppo_clip())
    assert [s.name for s in chain.stats] == ['nucleus_entropy@0.8', 'log_normalizer']

  def test_of_the_behaviour_policy(self):
    stat = vocabulary.proxy_kl_stat(0.02, of='behaviour')
    assert (stat.name, stat.of) == ('proxy_kl@0.02', 'behaviour')
    assert stat.fn is STATS['proxy_kl@0.02'].fn

  def test_whole_numbers_are_floats(self):
    assert vocabulary.nucleus_entropy_stat(1) == vocabulary.nucleus_entropy_stat(1.0)


@pytest.mark.parametrize('name', STATS)
class TestEveryStatistic:
  def test_finite_in_value_and_gradient(self, name):
    value, gradient = value_and_gradient(name, DEGENERATE)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~np.isfinite(DEGENERATE)], 0)

  def test_bfloat16_gives_float32(self, name):
    assert jax.eval_shape(STATS[name].fn, jax.ShapeDtypeStruct((2, 3, 9), jnp.bfloat16)) == jax.ShapeDtypeStruct((2, 3), jnp.float32)

  def test_gradient_by_finite_differences(self, name):
    step = np.float32(1e-2)
    moved = CLEAR + np.concatenate([np.eye(9), -np.eye(9)]).astype(np.float32) * step
    if name.startswith('proxy_kl'):  # its proxy stays where it is
      values = kl_from_proxy_of(CLEAR, moved, **STATS[name].fn.keywords)
    else:
      values = np.concatenate([value_and_gradient(name, part)[0] for part in np.split(moved, 3)])
    slope = (values[:9].astype(np.float64) - values[9:]) / (2 * step)
    np.testing.assert_allclose(value_and_gradient(name, np.tile(CLEAR, (6, 1)))[1][0], slope, atol=1e-4)


def kl_from_proxy_of(fixed, logits, threshold, relative=True):
  """KL from the filtered row `fixed` to each row of `logits`, in numpy."""
  p = softmax(fixed)
  q = np.where(p > threshold * (p.max() if relative else 1.0), p, 0)
  return np.array([scipy.stats.entropy(q / q.sum(), row) for row in softmax(logits)])


class TestNucleusEntropy:
  P = (0.5, 0.25, 0.15, 0.10)
  NAME = {True: 'nucleus_entropy@0.8', False: 'nucleus_entropy@0.8,crossing=False'}

  def nucleus(self, p, crossing):
    keep, total = np.zeros(len(p), bool), 0.0
    for v in np.argsort(-p, kind='stable'):
      if total >= 0.8 or (not crossing and total + p[v] >= 0.8):
        break
      keep[v], total = True, total + p[v]
    return keep

  def test_card_values(self):
    # q = (.5, .25, .15) / .9 has entropy .980990; without the token that crosses .8, (2/3, 1/3) has .636514
    np.testing.assert_allclose(value_and_gradient(self.NAME[True], rows(self.P))[0], np.full(6, 0.980990), atol=1e-6)
    np.testing.assert_allclose(value_and_gradient(self.NAME[False], rows(self.P))[0], np.full(6, 0.636514), atol=1e-6)

  @pytest.mark.parametrize('crossing', [True, False])
  def test_one_token_with_the_mass_has_no_entropy(self, crossing):
    value, gradient = value_and_gradient(self.NAME[crossing], rows([0.85, 0.1, 0.05]))
    assert not value.any() and not gradient.any()

  @pytest.mark.parametrize('crossing', [True, False])
  @pytest.mark.parametrize('logits', [LOGITS, HOLES])
  def test_against_a_loop(self, logits, crossing):
    def expected(p):
      keep = self.nucleus(p, crossing)
      return entropy_and_gradient(p, keep) if keep.any() else (0.0, np.zeros(9))

    check(self.NAME[crossing], logits, expected)

  def test_nothing_outside_the_nucleus_has_a_gradient(self):
    _, gradient = value_and_gradient(self.NAME[True], rows(self.P))
    assert not gradient[:, 3:].any() and (gradient[:, :3] != 0).all()

  def test_ties_are_kept_in_the_order_of_the_vocabulary(self):
    # .28 + 5 * .09 = .73 < .8 < .28 + 6 * .09 = .82: the first six of the eight equal tokens stay
    p = np.array([0.09] * 4 + [0.28] + [0.09] * 4)
    keep = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    assert (self.nucleus(p, True) == keep).all()
    check(self.NAME[True], rows(p), lambda _: entropy_and_gradient(p, keep))

  def test_mass_one_is_the_entropy(self):
    whole = vocabulary.nucleus_entropy_stat(1.0).fn
    assert jax.make_jaxpr(whole)(HOLES).pretty_print() == jax.make_jaxpr(categorical.entropy)(HOLES).pretty_print()


class TestClampedEntropy:
  P = np.array([0.4, 0.3, 0.2, 0.1])

  @pytest.mark.parametrize(('fraction', 'value'), [(0.0, 1.279854), (0.2, 1.279854), (0.25, 1.060857), (0.3, 1.060857), (0.5, 0.682908)])
  def test_card_values(self, fraction, value):
    # .25 and .3 drop one token of four: q = (4, 3, 2) / 9; .5 drops two: (4, 3) / 7
    got = jax.jit(vocabulary.clamped_entropy_stat(fraction).fn)(np.log(self.P).astype(np.float32))
    np.testing.assert_allclose(got, value, atol=1e-6)

  @pytest.mark.parametrize('logits', [LOGITS, HOLES])
  def test_against_a_sort(self, logits):
    def expected(p):
      keep = np.zeros(9, bool)
      keep[np.argsort(-p, kind='stable')[: 9 - 3]] = True  # floor(.4 * 9) = 3
      return entropy_and_gradient(p, keep)

    check('clamped_entropy@0.4', logits, expected)

  def test_dropped_logits_have_no_gradient_and_the_bound_holds(self):
    value, gradient = value_and_gradient('clamped_entropy@0.4', LOGITS)
    np.testing.assert_array_equal((gradient == 0).sum(axis=-1), np.full(6, 3))
    assert (value <= np.log(9 - 3)).all()

  def test_ties_are_kept_in_the_order_of_the_vocabulary(self):
    p, keep = np.full(9, 1 / 9), np.arange(9) < 6  # exactly three of the nine are dropped
    check('clamped_entropy@0.4', rows(p), lambda _: entropy_and_gradient(p, keep))

  def test_the_count_is_exact_in_decimals(self):
    # In floats .29 * 100 = 28.999999999999996; 29 tokens are meant, and 71 stay
    assert int(0.29 * 100) == 28
    got = jax.jit(vocabulary.clamped_entropy_stat(0.29).fn)(jnp.zeros(100))
    np.testing.assert_allclose(got, np.log(71), rtol=1e-6)


class TestLargestLogProb:
  def test_value_and_gradient(self):
    check('largest_log_prob', HOLES, lambda p: (np.log(p.max()), (np.arange(9) == p.argmax()) - p))


class TestProxyKl:
  def test_card_values(self):
    # the proxy is (.606061, .252525, .101010, .040404, 0, 0): KL = -ln .99
    value, gradient = value_and_gradient('proxy_kl@0.02', rows(LP_REG))
    np.testing.assert_allclose(value, np.full(6, 0.0100503), atol=1e-6)
    expected = [0.6 - 0.606061, 0.25 - 0.252525, 0.1 - 0.101010, 0.04 - 0.040404, 0.006, 0.004, 0, 0, 0]
    np.testing.assert_allclose(gradient[0], expected, atol=1e-6)
    # the fixed .2 keeps .6 and .25
    np.testing.assert_allclose(value_and_gradient('proxy_kl@0.2,relative=False', rows(LP_REG))[0], np.full(6, -np.log(0.85)), atol=1e-6)

  def test_threshold_zero_is_no_penalty(self):
    value, gradient = compiled(vocabulary.proxy_kl_stat(0.0).fn)(HOLES)
    np.testing.assert_allclose(value, np.zeros(6), atol=1e-6)
    np.testing.assert_allclose(gradient, np.zeros((6, 9)), atol=1e-6)

  def test_fixed_threshold_may_keep_nothing(self):
    value, gradient = value_and_gradient('proxy_kl@0.2,relative=False', rows([0.125] * 8))
    assert not value.any() and not gradient.any()

  @pytest.mark.parametrize(('name', 'floor'), [('proxy_kl@0.02', lambda p: 0.02 * p.max()), ('proxy_kl@0.2,relative=False', lambda p: 0.2)])
  def test_against_a_loop(self, name, floor):
    def expected(p):
      q = np.where(p > floor(p), p, 0)
      return -np.log(q.sum()), p - q / q.sum()

    check(name, HOLES, expected)


class TestCollisionProbability:
  def test_value_and_gradient(self):
    check('collision_probability', HOLES, lambda p: ((p**2).sum(), 2 * p * (p - (p**2).sum())))

  def test_limits(self):
    value, _ = value_and_gradient('collision_probability', rows([0.125] * 8, [1.0]))
    np.testing.assert_allclose(value[:2], [1 / 8, 1], rtol=1e-6)


class TestSelfConfidence:
  def test_card_values(self):
    # z = (2, 0, -1): ln(e^2 + 1 + e^-1) - 1/3 = 2.169846 - .333333; KL(uniform || p) = 1.836513 - ln 3 = .737900
    value, _ = value_and_gradient('self_confidence', rows(np.exp([2.0, 0.0, -1.0]), np.ones(7)))
    np.testing.assert_allclose(value[:2], [1.836513, np.log(7)], atol=1e-6)
    np.testing.assert_allclose(value[0] - np.log(3), 0.737900, atol=1e-6)

  def test_value_and_gradient(self):
    check('self_confidence', LOGITS, lambda p: (-np.log(p).mean(), p - 1 / 9))

  def test_impossible_tokens_are_left_out(self):
    expected = [scipy.special.logsumexp(z) - z[z > -np.inf].mean() for z in HOLES]  # 7 of 9
    np.testing.assert_allclose(value_and_gradient('self_confidence', HOLES)[0], expected, rtol=1e-5)


class TestLogNormalizer:
  def test_value_and_gradient(self):
    values, gradients = value_and_gradient('log_normalizer', HOLES)
    np.testing.assert_allclose(values, scipy.special.logsumexp(HOLES, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(gradients, softmax(HOLES), atol=1e-6)

  def test_follows_a_shift(self):
    shifted, _ = value_and_gradient('log_normalizer', LOGITS + 10)
    np.testing.assert_allclose(shifted, value_and_gradient('log_normalizer', LOGITS)[0] + 10, rtol=1e-5)


class TestTopMeanProbability:
  def test_value_and_gradient(self):
    def expected(p):
      top = p >= np.sort(p)[-2]
      return p[top].mean(), (p * top - p * p[top].sum()) / 2

    check('top_mean_probability@2', HOLES, expected)

  def test_card_values(self):
    # (.96, .01 x 4) and five of .2: both have the mean 1 / 5 over five
    value, _ = value_and_gradient('top_mean_probability@5', rows([0.96, 0.01, 0.01, 0.01, 0.01], [0.2] * 5))
    np.testing.assert_allclose(value, np.full(6, 0.2), rtol=1e-5)

  def test_a_smaller_vocabulary(self):
    got = jax.jit(STATS['top_mean_probability@5'].fn)(jnp.zeros(3))
    np.testing.assert_allclose(got, 1 / 3, rtol=1e-6)


class TestDeepconfConfidence:
  def test_card_values(self):
    # ln 5, ln 8, -(ln .96 + 4 ln .01) / 5
    value, _ = value_and_gradient('deepconf_confidence@5', rows([0.2] * 5, [0.125] * 8, [0.96, 0.01, 0.01, 0.01, 0.01]))
    np.testing.assert_allclose(value[:3], [1.6094, np.log(8), 3.6923], atol=1e-4)

  def test_value_and_gradient(self):
    def expected(p):
      top = p >= np.sort(p)[-5]
      return -np.log(p[top]).mean(), p - top / 5

    check('deepconf_confidence@5', HOLES, expected)

  def test_impossible_tokens_are_left_out(self):
    value, _ = value_and_gradient('deepconf_confidence@5', rows([0.5, 0.5]))
    np.testing.assert_allclose(value, np.full(6, np.log(2)), rtol=1e-6)
