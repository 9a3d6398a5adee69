"""ECHO's shaping and the agentic AEPO's advantage: the cards' numbers, loops as oracles, the three confidences, limits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective, transform
from entropy_jax.methods import advantages
from entropy_jax.methods.advantages import confidence
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


@functools.cache
def compiled(name, **hyper):
  return jax.jit(functools.partial(getattr(advantages, name).function, **hyper))


def z(x, where):
  """Whitened over the entries where it holds, deviation with ddof = 1, as numpy has it."""
  chosen = np.asarray(x, np.float64)[where]
  return np.where(where, (np.asarray(x, np.float64) - chosen.mean()) / math.sqrt(chosen.var(ddof=1) + 1e-8), 0.0)


class TestEchoShaping:
  H = np.float32([[1.0, 3.0]])
  SAME = np.full((1, 2), 0.2, np.float32)
  ONE = np.ones((1, 2), np.float32)

  def shape(self, A=ONE, H=H, C=SAME, **hyper):
    value, metrics = compiled('echo_shaping', **hyper)(A, H, C, np.zeros(len(H), np.int32), np.ones(H.shape, bool))
    return np.asarray(value), {k: float(v) for k, v in metrics.items()}

  def test_card_values(self):
    # z(H) = -+.70711 (mean 2, deviation sqrt 2), z(1 - C) = 0: A = 1 -+ .1 * .70711
    np.testing.assert_allclose(self.shape(whiten=True)[0], [[0.92929, 1.07071]], atol=1e-5)

  def test_paper_form(self):
    # S = H + (1 - C) = 1.8 and 3.8, bounded at 2: A = 1 + .18 and 1 + .2
    value, metrics = self.shape()
    np.testing.assert_allclose(value, [[1.18, 1.2]], rtol=1e-6)
    np.testing.assert_allclose(metrics['shaping'], 1.9, rtol=1e-6)
    assert metrics['bounded_fraction'] == 0.5
    np.testing.assert_allclose(metrics['confidence'], 0.2, rtol=1e-6)

  def test_no_strength_is_the_base(self):
    np.testing.assert_array_equal(self.shape(A=np.float32([[0.3, -0.7]]), strength=0.0)[0], np.float32([[0.3, -0.7]]))

  @pytest.mark.parametrize(('whiten', 'additive', 'bound'), [(False, 0.0, 2.0), (True, 0.0, 1.0), (True, 0.5, 2.0), (False, 0.5, np.inf)])
  def test_against_loops(self, whiten, additive, bound):
    batch = helpers.token_batch(seed=4, B=10, T=7, old_stats=['confidence'])
    mask, group = np.asarray(batch.mask_BxT), np.asarray(batch.group_B)
    C = np.asarray(batch.old_stats['confidence'])
    H = np.asarray(batch.old_entropy_BxT, np.float64)
    raw = 0.7 * z(H, mask) + 1.3 * z(1.0 - C, mask) if whiten else 0.7 * H + 1.3 * (1.0 - C)
    S = np.where(mask, np.clip(raw, -bound, bound), 0.0)
    mean = np.array([S[group == g][mask[group == g]].mean() for g in group])
    expected = np.where(mask, np.asarray(batch.advantage_BxT) * (1.0 + 0.2 * S) + additive * (S - mean[:, None]), 0.0)
    dirty = helpers.with_garbage(batch)
    hyper = {'strength': 0.2, 'entropy_scale': 0.7, 'confidence_scale': 1.3, 'bound': bound, 'additive': additive, 'whiten': whiten}
    value, _ = compiled('echo_shaping', **hyper)(
      dirty.advantage_BxT, dirty.old_entropy_BxT, dirty.old_stats['confidence'], dirty.group_B, dirty.mask_BxT
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)

  def test_equal_entropy_and_confidence_leave_the_base_when_whitened(self):
    value, _ = self.shape(H=self.ONE, whiten=True)
    np.testing.assert_array_equal(value, self.ONE)

  @pytest.mark.parametrize(
    ('kind', 'num', 'row', 'expected'),
    [
      ('meanprob', 5, [0.2] * 5, 0.2),
      ('meanprob', 5, [0.96] + [0.01] * 4, 0.2),  # says nothing: both have their whole mass in five tokens
      ('deepconf', 5, [0.2] * 5, 1.6094),  # ln 5
      ('deepconf', 5, [0.1] * 10, 2.3026),  # ln 10
      ('deepconf', 5, [0.96] + [0.01] * 4, 3.6923),  # -(ln .96 + 4 ln .01) / 5
      ('meanprob', 1, [0.5, 0.1, 0.4], 0.5),
    ],
  )
  def test_statistics(self, kind, num, row, expected):
    (stat,) = advantages.echo_shaping(confidence=kind, num=num).stats
    assert stat.of == 'behaviour' and stat.name == f'confidence@{kind},{num}'
    np.testing.assert_allclose(stat.fn(jnp.log(jnp.array(row))), expected, atol=5e-5)

  def test_statistic_is_one_function_object(self):
    first, again = (advantages.echo_shaping(name=name).stats[0] for name in ('a', 'b'))
    assert first.fn is again.fn

  def prepare(self, batch, **hyper):
    chain = objective.chain(advantages.unit(), advantages.echo_shaping(**hyper), likelihood())
    prepared, state, _ = jax.jit(chain.prepare)(chain.init(batch), batch)
    assert jax.tree.structure(state) == jax.tree.structure(chain.init(batch))
    return np.asarray(prepared.advantage_BxT)

  def test_each_confidence_reaches_the_advantage(self):
    batch = helpers.token_batch(old_stats=['confidence@meanprob,5', 'confidence@deepconf,2'])
    batch = batch.replace(old_stats={**batch.old_stats, 'confidence@deepconf,2': batch.old_stats['confidence@deepconf,2'] + 1.0})
    H, mask = np.asarray(batch.old_entropy_BxT), np.asarray(batch.mask_BxT)
    given = {
      'meanprob': batch.old_stats['confidence@meanprob,5'],
      'deepconf': batch.old_stats['confidence@deepconf,2'],
      'sampled': np.exp(np.asarray(batch.old_logp_BxT)),
    }
    for kind, C in given.items():
      expected = np.where(mask, 1.0 + 0.1 * np.clip(H + 1.0 - np.asarray(C), -2, 2), 0.0)
      found = self.prepare(batch, confidence=kind, num=2 if kind == 'deepconf' else 5)
      np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=kind)

  def test_sampled_confidence_needs_no_statistic(self):
    assert advantages.echo_shaping(confidence='sampled').stats == ()
    assert self.prepare(helpers.token_batch(), confidence='sampled').any()
    with pytest.raises(UserError, match='was not scored'):
      self.prepare(helpers.token_batch())

  def test_bad_input(self):
    with pytest.raises(UserError, match=r"confidence='deepcon' is not one of meanprob, deepconf, sampled\. Did you mean 'deepconf'\?"):
      advantages.echo_shaping(confidence='deepcon')
    with pytest.raises(UserError, match=r'num=2.5 is no number of tokens'):
      advantages.echo_shaping(num=2.5)


class TestAgenticAepo:
  def test_by_hand(self):
    # z = -+.70711: 1 -+ .3 * .70711
    value, _ = compiled('agentic_aepo')(
      np.ones((1, 2), np.float32), np.float32([[1.0, 3.0]]), np.zeros(1, np.int32), np.ones((1, 2), bool)
    )
    np.testing.assert_allclose(value, [[0.787868, 1.212132]], rtol=1e-5)

  @pytest.mark.parametrize('pool', ['group', 'batch'])
  def test_against_loops(self, pool):
    batch = helpers.token_batch(seed=5, B=10, T=7)
    mask, group = np.asarray(batch.mask_BxT), np.asarray(batch.group_B)
    H = np.asarray(batch.old_entropy_BxT)
    expected = np.zeros(mask.shape)
    for b in range(len(mask)):
      members = mask & ((group == group[b]) | (pool == 'batch'))[:, None]
      scale = 1.0 + 0.3 * z(H, members)[b] if members.sum() > 1 else 1.0
      expected[b] = np.where(mask[b], np.asarray(batch.advantage_BxT)[b] * scale, 0.0)
    dirty = helpers.with_garbage(batch)
    value, _ = compiled('agentic_aepo', pool=pool)(dirty.advantage_BxT, dirty.old_entropy_BxT, dirty.group_B, dirty.mask_BxT)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)

  def test_equal_entropies_are_the_base(self):
    base = np.float32([[0.4, -0.4, 0.1], [1.0, 1.0, 1.0]])
    value, _ = compiled('agentic_aepo')(base, np.full((2, 3), 0.1, np.float32), np.array([5, 5], np.int32), np.ones((2, 3), bool))
    np.testing.assert_array_equal(value, base)

  def test_sign_turns_beyond_one_over_strength(self):
    # 99 entropies of 1 and one of 0: z of the last is -9.9, far below -1 / .3
    H = np.ones((1, 100), np.float32)
    H[0, -1] = 0.0
    value, metrics = compiled('agentic_aepo')(np.ones((1, 100), np.float32), H, np.zeros(1, np.int32), np.ones((1, 100), bool))
    assert value[0, -1] < 0 < value[0, 0]
    np.testing.assert_allclose(metrics['flipped_fraction'], 0.01, rtol=1e-6)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r"pool='sequence' is not one of group, batch"):
      advantages.agentic_aepo(pool='sequence')


class TestWhitenInGroup:
  def test_mean_and_deviation_of_every_group(self):
    batch = helpers.token_batch(seed=6, B=9, T=8)
    mask, group = np.asarray(batch.mask_BxT), np.asarray(batch.group_B)
    value = np.asarray(jax.jit(confidence.whiten_in_group)(helpers.with_garbage(batch).old_entropy_BxT, batch.group_B, batch.mask_BxT))
    for g in set(group.tolist()):
      inside = value[group == g][mask[group == g]]
      if inside.size > 1:
        np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [0.0, 1.0], atol=1e-5)
    assert not value[~mask].any()
