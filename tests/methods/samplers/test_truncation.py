"""Truncations: the card's numbers by hand, loops over sorted lists in float64, ties, impossible tokens, and what twice the rule does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from entropy_jax.methods import samplers
from entropy_jax.types import UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')

# The test distribution of the cards: H = 1.75 bits = 1.2130076 nats. Rows have 9 tokens, of which the rest is impossible.
V = 9
P4 = (0.5, 0.25, 0.125, 0.125)
LOGITS = (2.5 * np.random.default_rng(3).normal(size=(40, V))).astype(np.float32)
HOLES = np.where(np.arange(V) % 4 == 1, -np.inf, LOGITS).astype(np.float32)  # tokens 1 and 5 are impossible
DEGENERATE = np.stack(
  [np.full(V, -np.inf), np.where(np.arange(V) == 2, 0.0, -np.inf), np.linspace(-1e4, 1e4, V), np.zeros(V), np.full(V, 3e38)]
).astype(np.float32)
# name -> (function, its hyper-parameter, values for random rows)
RULES = {
  'top_k': (samplers.top_k_logits, 'k', (1, 3, 9, 50)),
  'top_p': (samplers.top_p_logits, 'p', (0.1, 0.6, 0.9, 1.0)),
  'min_p': (samplers.min_p_logits, 'm', (0.01, 0.2, 1.0)),
  'typical': (samplers.typical_logits, 'mass', (0.1, 0.6, 0.9, 1.0)),
  'top_h': (samplers.top_h_logits, 'alpha', (0.05, 0.4, 0.8, 1.0)),
  'top_h_partial': (functools.partial(samplers.top_h_logits, mode='partial'), 'alpha', (0.05, 0.4, 0.8, 1.0)),
  'epsilon': (samplers.epsilon_logits, 'epsilon', (3e-4, 0.05, 0.9)),
  'eta': (samplers.eta_logits, 'epsilon', (3e-4, 0.05, 0.9)),
}


@functools.cache
def compiled(name):
  function, key, _ = RULES[name]
  return jax.jit(lambda logits, value: function(logits, **{key: value}))


def cut(name, logits, value):
  """float32 [rows, 9]: the rule on rows that are filled up to forty, so that each rule is compiled once."""
  logits = np.asarray(logits, np.float32)
  full = np.zeros((40, V), np.float32)
  full[: len(logits)] = logits
  kind = jnp.int32 if name == 'top_k' else jnp.float32
  return np.asarray(compiled(name)(full, kind(value)))[: len(logits)]


def sets(name, logits, value):
  return [set(np.flatnonzero(row > -np.inf).tolist()) for row in cut(name, logits, value)]


def p4(name, value):
  return of(name, P4, value)


def of(name, p, value):
  """The tokens kept of one distribution over the first tokens."""
  with np.errstate(divide='ignore'):
    return sets(name, np.log(np.pad(np.asarray(p, np.float64), (0, V - len(p))))[None], value)[0]


def entropy(p):
  return -sum(x * np.log(x) for x in p if x > 0)


def oracle(name, logits, value):
  """The set of one row, from sorted lists in float64."""
  p = scipy.special.softmax(np.asarray(logits, np.float64))
  order = sorted(range(V), key=lambda v: (-p[v], v))
  possible = [v for v in order if p[v] > 0]
  h, best = entropy(p), order[0]
  if name == 'top_k':
    return {v for v in possible if p[v] >= p[order[min(value, V) - 1]]}
  if name == 'top_p':
    return {v for n, v in enumerate(possible) if sum(p[order[:n]]) < value}
  if name in ('min_p', 'epsilon', 'eta'):
    floor = {'min_p': value * p[best], 'epsilon': value, 'eta': min(value, np.sqrt(value) * np.exp(-h))}[name]
    return {v for v in possible if p[v] >= floor * (1 - 1e-9)} | {best}
  if name == 'typical':
    far = {v: abs(-np.log(p[v]) - h) for v in possible}
    near = sorted(possible, key=far.get)
    last = next((v for n, v in enumerate(near) if sum(p[near[: n + 1]]) >= value - 1e-9), near[-1])
    return {v for v in possible if far[v] <= far[last] + 1e-9}
  kept = 1
  while kept < len(possible):
    first = p[order[: kept + 1]]
    measure = entropy(first / sum(first)) if name == 'top_h' else entropy(first)
    if measure > value * h + 1e-9:
      break
    kept += 1
  return set(order[:kept])


class TestEveryRule:
  @pytest.mark.parametrize('name', RULES)
  def test_sorted_lists_say_the_same(self, name):
    for value in RULES[name][2]:
      for rows in (LOGITS, HOLES):
        assert sets(name, rows, value) == [oracle(name, row, value) for row in rows], value

  @pytest.mark.parametrize('name', RULES)
  def test_what_is_kept_is_kept_as_it_was(self, name):
    for value in RULES[name][2]:
      got = cut(name, HOLES, value)
      np.testing.assert_array_equal(got, np.where(got > -np.inf, HOLES, -np.inf))

  @pytest.mark.parametrize('name', RULES)
  def test_degenerate_rows(self, name):
    for value in RULES[name][2]:
      nothing, certain, peaked, uniform, large = sets(name, DEGENERATE, value)
      assert nothing == set() and certain == {2} and V - 1 in peaked
      assert uniform and uniform == large  # a constant added to the logits changes nothing

  @pytest.mark.parametrize('name', RULES)
  def test_tokens_may_be_renamed(self, name):
    names = np.random.default_rng(0).permutation(V)
    value = RULES[name][2][1]
    np.testing.assert_array_equal(cut(name, LOGITS[:, names], value), cut(name, LOGITS, value)[:, names])

  @pytest.mark.parametrize('name', RULES)
  def test_the_set_grows_with_the_parameter_or_shrinks(self, name):
    values = RULES[name][2]
    small, large = (values[0], values[-1]) if name[:3] in ('top', 'typ') else (values[-1], values[0])
    less, more = sets(name, LOGITS, small), sets(name, LOGITS, large)
    assert all(a <= b for a, b in zip(less, more)) and less != more

  @pytest.mark.parametrize('name', RULES)
  def test_rules_that_are_idempotent(self, name):
    again = [cut(name, cut(name, LOGITS, value), value) for value in RULES[name][2]]
    same = all(np.array_equal(twice, cut(name, LOGITS, value)) for twice, value in zip(again, RULES[name][2]))
    assert same == (name in ('top_k', 'min_p', 'epsilon'))

  def test_gradient_is_one_to_what_is_kept(self):
    def total(logits):
      rows = [function(logits, **{key: values[1]}) for function, key, values in RULES.values()]
      return sum(jnp.sum(jnp.where(x > -jnp.inf, x, 0.0)) for x in rows)

    want = sum((cut(name, HOLES, values[1]) > -np.inf).astype(np.float32) for name, (_, _, values) in RULES.items())
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(HOLES), want)


class TestTopK:
  def test_ties_with_the_last_are_kept(self):
    assert [p4('top_k', k) for k in (1, 2, 3, 4)] == [{0}, {0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3}]

  def test_only_whole_numbers(self):
    for k, message in ((0, r'k=0 is outside \[1, inf\]'), (2.5, 'k=2.5 is not a whole number')):
      with pytest.raises(UserError, match=f'top_k: {message}'):
        samplers.top_k(k=k)


class TestTopP:
  def test_the_mass_before_a_token_is_less_than_p(self):
    # before them stand 0, .5, .75, .875
    values = (0.5, 0.51, 0.75, 0.76, 0.875, 0.88, 0.9)
    assert [p4('top_p', p) for p in values] == [{0}, {0, 1}, {0, 1}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3}]

  def test_twice_is_less(self):
    # {0, 1, 2} of .76 has the masses .571, .286, .143: .857 stands before the third
    assert p4('top_p', 0.76) == {0, 1, 2} and of('top_p', P4[:3], 0.76) == {0, 1}

  def test_everything_possible_for_one(self):
    tail = np.log([0.999999999] + [1e-10] * 8)  # a mass of less than the tolerance
    assert sets('top_p', tail[None], 1.0) == [set(range(V))] and sets('top_p', tail[None], 0.99) == [{0}]


class TestMinP:
  def test_a_share_of_the_largest(self):
    # .25 x .5 = .125 is reached by all, .3 x .5 = .15 and .6 x .5 = .3 are not
    assert [p4('min_p', m) for m in (0.25, 0.3, 0.5, 0.6)] == [{0, 1, 2, 3}, {0, 1}, {0, 1}, {0}]

  def test_one_keeps_the_largest_and_its_ties(self):
    assert p4('min_p', 1.0) == {0} and of('min_p', (0.4, 0.2, 0.4), 1.0) == {0, 2}


class TestTypical:
  def test_nearest_to_the_entropy_first(self):
    # s = |-ln p - 1.2130076| = .519860, .173287, .866434, .866434: the order is 1, 0, then 2 and 3 together
    found = [p4('typical', mass) for mass in (0.2, 0.3, 0.5, 0.74, 0.8, 0.9)]
    assert found == [{1}, {0, 1}, {0, 1}, {0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3}]

  def test_uniform_rows_are_kept_whole(self):
    # every surprise is the entropy
    for mass in (0.01, 0.5, 1.0):
      assert of('typical', [1 / 5] * 5, mass) == set(range(5))


class TestTopH:
  @pytest.mark.parametrize(
    'alpha, renorm, partial',
    [
      # prefixes have 0, .918296, 1.378783, 1.75 bits, and partial sums of .5, 1, 1.375, 1.75
      (0.4, {0}, {0}),  # budget .7
      (0.55, {0, 1}, {0}),  # budget .9625
      (0.8, {0, 1, 2}, {0, 1, 2}),  # budget 1.4
      (1.0, {0, 1, 2, 3}, {0, 1, 2, 3}),
      (1e-6, {0}, {0}),
    ],
  )
  def test_prefixes(self, alpha, renorm, partial):
    assert (p4('top_h', alpha), p4('top_h_partial', alpha)) == (renorm, partial)

  @pytest.mark.parametrize(
    'size, alpha, renorm, partial',
    # floor(V^alpha): 16^.5 = 4, 16^.4 = 3.03, 8^.75 = 4.76, 100^.4 = 6.31; floor(alpha V)
    [(16, 0.5, 4, 8), (16, 0.4, 3, 6), (8, 0.75, 4, 6), (100, 0.4, 6, 40)],
  )
  def test_uniform_rows(self, size, alpha, renorm, partial):
    both = jax.jit(lambda z: [jnp.sum(samplers.top_h_logits(z, alpha=alpha, mode=mode) > -jnp.inf) for mode in ('renorm', 'partial')])
    assert [int(kept) for kept in both(jnp.zeros(size))] == [renorm, partial]

  def test_the_entropy_is_within_the_budget(self):
    for alpha in (0.05, 0.4, 0.8):
      got = scipy.stats.entropy(scipy.special.softmax(cut('top_h', HOLES, alpha).astype(np.float64), axis=1), axis=1)
      whole = scipy.stats.entropy(scipy.special.softmax(HOLES.astype(np.float64), axis=1), axis=1)
      assert np.all(got <= alpha * whole + 1e-5)

  def test_modes_have_names(self):
    with pytest.raises(UserError, match="top_h: mode='renormalised' is not one of renorm, partial"):
      samplers.top_h(mode='renormalised')


class TestEpsilon:
  def test_a_floor(self):
    assert [p4('epsilon', e) for e in (0.125, 0.2, 0.3, 0.9)] == [{0, 1, 2, 3}, {0, 1}, {0}, {0}]


class TestEta:
  def test_a_floor_that_falls_with_the_entropy(self):
    # sqrt(eta) exp(-1.2130076) = .094015, .132957, .162839
    assert [p4('eta', e) for e in (0.1, 0.2, 0.3)] == [{0, 1, 2, 3}, {0, 1}, {0, 1}]

  def test_uniform_rows(self):
    # min(.1, sqrt(.1) / 5) = .063 < 1 / 5, and min(.5, sqrt(.5) / 5) = .14: more than what .2 as the floor itself would keep
    assert of('eta', [1 / 5] * 5, 0.1) == of('eta', [1 / 5] * 5, 0.5) == set(range(5))

  def test_loses_nothing_that_epsilon_keeps(self):
    for value in RULES['eta'][2]:
      assert all(a <= b for a, b in zip(sets('epsilon', HOLES, value), sets('eta', HOLES, value)))


class TestTruncationDivergence:
  def test_is_the_divergence_of_sets_and_depends_on_their_mass(self):
    # the sets of the card; {0, 1} and {0, 2, 3} both have the mass .75
    for kept, want in (((0,), 0.2157616), ((0, 1), 0.0956026), ((0, 2, 3), 0.0956026), ((1, 2), 0.2903048)):
      p = np.array(P4)
      q = np.where(np.isin(np.arange(4), kept), p, 0.0)
      middle = (p + q / q.sum()) / 2
      divergence = (scipy.stats.entropy(p, middle) + scipy.stats.entropy(q, middle)) / 2
      got = float(samplers.truncation_divergence(jnp.float32(q.sum())))
      np.testing.assert_allclose([got, divergence], want, atol=2e-7)

  def test_falls_from_ln_2_to_0(self):
    curve = np.asarray(samplers.truncation_divergence(jnp.linspace(0.0, 1.0, 50)))
    assert np.all(np.diff(curve) < 0)
    np.testing.assert_allclose(curve[[0, -1]], [np.log(2), 0.0], atol=1e-7)
    np.testing.assert_allclose(jax.grad(samplers.truncation_divergence)(0.5), (np.log(0.5) - np.log(1.5)) / 2, rtol=1e-5)


class TestFactories:
  @pytest.mark.parametrize(
    'make, key, value, allowed',
    [
      (samplers.top_p, 'p', 0.0, r'\(0, 1\]'),
      (samplers.min_p, 'm', 1.5, r'\(0, 1\]'),
      (samplers.typical, 'mass', -1.0, r'\(0, 1\]'),
      (samplers.top_h, 'alpha', 0, r'\(0, 1\]'),
      (samplers.epsilon, 'epsilon', 1.0, r'\(0, 1\)'),
      (samplers.eta, 'epsilon', 0.0, r'\(0, 1\)'),
    ],
  )
  def test_ranges(self, make, key, value, allowed):
    with pytest.raises(UserError, match=rf'{make.__name__}: {key}={value!r} is outside {allowed}'):
      make(**{key: value})

  def test_they_are_the_functions_without_a_state(self):
    for name, (_, key, values) in RULES.items():
      mode = {'mode': 'partial'} if name == 'top_h_partial' else {}
      sampler = getattr(samplers, name.removesuffix('_partial'))(**{key: values[1]}, **mode)
      assert jax.tree.leaves(sampler.init()) == []
      np.testing.assert_array_equal(jax.jit(sampler.bind(sampler.init()))(HOLES), cut(name, HOLES, values[1]))
