"""EMPG: the card's numbers, plain loops over steps as oracle, limits and degenerate batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective, transform
from entropy_jax.methods import advantages
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


@functools.cache
def compiled(**hyper):
  return jax.jit(functools.partial(advantages.empg.function, **hyper))


def empg(advantage, entropy, segment, mask=None, **hyper):
  """Padded to [2, 4] with garbage, so that one compilation serves all."""
  num_rows, num_tokens = np.shape(entropy)
  mask = np.ones((num_rows, num_tokens), bool) if mask is None else mask

  def wide(x, fill, dtype):
    return np.pad(np.asarray(x, dtype), ((0, 2 - num_rows), (0, 4 - num_tokens)), constant_values=fill)

  value, metrics = compiled(**hyper)(
    wide(advantage, np.nan, np.float32), wide(entropy, np.inf, np.float32), wide(segment, 1, np.int32), wide(mask, False, bool)
  )
  return np.asarray(value)[:num_rows, :num_tokens], {k: float(v) for k, v in metrics.items()}


def oracle(batch, sharpness=1.0, clarity_sharpness=1.0, clarity=0.1):
  """Steps as a list of (row, tokens), in float64."""
  mask, segment = np.asarray(batch.mask_BxT), np.asarray(batch.segment_BxT)
  base, H = np.asarray(batch.advantage_BxT, np.float64), np.asarray(batch.old_entropy_BxT, np.float64)
  found = []
  for b in range(len(mask)):
    numbers = sorted({int(s) for s, m in zip(segment[b], mask[b], strict=True) if m and s >= 0})
    rows = [[t for t in range(mask.shape[1]) if mask[b, t] and segment[b, t] == n] for n in numbers]
    found += [(b, tokens, k + 1 < len(rows)) for k, tokens in enumerate(rows)]
  h = np.array([H[b, tokens].mean() for b, tokens, _ in found])
  normal = (h - h.min()) / (h.max() - h.min() + 1e-8)
  g = np.exp(-sharpness * normal)
  g = g / (g.mean() + 1e-8)
  f = np.exp(-clarity_sharpness * normal)
  result, of_step = np.where(mask, base, 0.0), []
  for i, (b, tokens, has_next) in enumerate(found):
    result[b, tokens] = base[b, tokens] * g[i] + (clarity * f[i + 1] if has_next else 0.0)
    of_step.append(result[b, tokens].mean())
  for b, tokens, _ in found:
    result[b, tokens] -= np.mean(of_step)
  return result


class TestEmpg:
  H = [[0.2, 0.6, 1.0]]
  STEPS = [[0, 1, 2]]

  def test_card_values(self):
    # Hn = (0, .5, 1), e^-Hn = (1, .606531, .367879), mean .658137: g = (1.519441, .921588, .558971)
    # A' = (1.519441 + .1 * .606531, .921588 + .1 * .367879, .558971) = (1.580094, .958376, .558971), mean 1.032480
    value, metrics = empg([[1.0, 1.0, 1.0]], self.H, self.STEPS)
    np.testing.assert_allclose(value, [[0.547614, -0.074105, -0.473509]], atol=2e-6)
    assert metrics['num_steps'] == 3
    np.testing.assert_allclose(metrics['step_entropy'], 0.6, rtol=1e-6)
    np.testing.assert_allclose(metrics['negative_fraction'], 2 / 3, rtol=1e-6)  # two steps of a success end below 0

  def test_scale_has_mean_one(self):
    # without a bonus A - mean A' = g - 1
    value, _ = empg([[1.0, 1.0, 1.0]], self.H, self.STEPS, clarity=0.0)
    np.testing.assert_allclose(value, [[0.519441, -0.078412, -0.441029]], atol=2e-6)

  @pytest.mark.parametrize('hyper', [{}, {'sharpness': 2.0, 'clarity_sharpness': 0.5, 'clarity': 0.3}])
  def test_against_loops_over_steps(self, hyper):
    batch = helpers.token_batch(seed=1, B=16, T=9)
    dirty = helpers.with_garbage(batch)
    value, metrics = compiled(**hyper)(dirty.advantage_BxT, dirty.old_entropy_BxT, dirty.segment_BxT, dirty.mask_BxT)
    np.testing.assert_allclose(value, oracle(batch, **hyper), rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(float(m)) for m in metrics.values())

  def test_means_are_over_steps_and_not_tokens(self):
    # steps of 1 and 3 tokens: equal entropies, A = 1 and 0; mean over steps 1/2, over tokens 1/4
    value, _ = empg([[1.0, 0.0, 0.0, 0.0]], np.ones((1, 4)), [[0, 1, 1, 1]], clarity=0.0)
    np.testing.assert_allclose(value, [[0.5, -0.5, -0.5, -0.5]], atol=1e-6)

  def test_sums_to_zero_over_steps(self):
    segment = np.array([[0, 0, 0, 1], [0, 1, 1, 2]])
    value, _ = empg([[1.0] * 4, [-0.5] * 4], np.random.default_rng(0).uniform(0, 2, (2, 4)), segment)
    steps = [value[0, 0], value[0, 3], value[1, 0], value[1, 1], value[1, 3]]
    np.testing.assert_allclose(np.sum(steps), 0.0, atol=1e-6)

  def test_no_scale_and_no_bonus_is_the_base_minus_its_mean_over_steps(self):
    entropy = np.random.default_rng(0).uniform(0, 2, (2, 3))
    value, _ = empg([[2.0] * 3, [-1.0] * 3], entropy, [[0, 1, 2], [0, 0, 0]], sharpness=0.0, clarity=0.0)
    np.testing.assert_allclose(value, [[0.75] * 3, [-2.25] * 3], rtol=1e-5)  # mean of (2, 2, 2, -1) = 1.25

  def test_equal_entropies_in_steps_of_any_length(self):
    # .1 + .1 + .1 over 3 is not .1 in float32: without care min-max would make 0 and 1 of the two
    value, _ = empg([[1.0] * 4], np.full((1, 4), 0.1), [[0, 1, 1, 1]], clarity=0.0)
    np.testing.assert_allclose(value, np.zeros((1, 4)), atol=1e-6)

  def test_tokens_in_no_step_keep_their_advantage(self):
    value, metrics = empg([[0.7, 1.0, 1.0, 9.0]], [[5.0, 0.2, 1.0, 3.0]], [[-1, 0, 1, 2]], np.array([[True, True, True, False]]))
    alone, _ = empg([[1.0, 1.0]], [[0.2, 1.0]], [[0, 1]])
    np.testing.assert_allclose(value, [[0.7, *alone[0], 0.0]], rtol=1e-6)
    assert metrics['num_steps'] == 2

  def test_confident_errors_are_punished_most(self):
    value, _ = empg([[-1.0, -1.0, -1.0]], self.H, self.STEPS, clarity=0.0)
    assert value[0, 0] < value[0, 1] < value[0, 2]

  def test_in_a_chain_after_grpo(self):
    batch = helpers.token_batch()
    chain = objective.chain(advantages.grpo(), advantages.empg(), likelihood())
    prepared, _, metrics = jax.jit(chain.prepare)(chain.init(batch), batch)
    dense = np.where(batch.mask_BxT, batch.token_reward_BxT, 0.0).sum(1)
    base = jax.jit(advantages.grpo.function)(np.asarray(batch.reward_B) + dense, batch.group_B)
    expected = oracle(batch.replace(advantage_BxT=jnp.broadcast_to(base[:, None], batch.mask_BxT.shape)))
    np.testing.assert_allclose(prepared.advantage_BxT, expected, rtol=1e-4, atol=1e-5)
    assert metrics['advantage/empg/num_steps'] > 3

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^empg: clarity=-1 is outside \[0, inf\)'):
      advantages.empg(clarity=-1)


class TestScoreNorm:
  """The proposition behind EMPG: in the logits the expected squared score is 1 - exp(-Renyi-2 entropy), so certain steps learn less."""

  @pytest.mark.parametrize(('p', 'expected'), [((0.5, 0.5), 0.5), ((0.9, 0.1), 0.18), ((0.25,) * 4, 0.75)])
  def test_expected_squared_score(self, p, expected):
    p = np.array(p)
    score = np.eye(len(p)) - p  # row a: one-hot(a) - p
    np.testing.assert_allclose(np.sum(p * np.sum(score**2, axis=1)), expected)
