"""The measures of attention in a rollout: the rows they are of, what they cost nothing of, and that slices and parts change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import catalog
from entropy_jax.models.tabular import tabular_policy
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.parallel.split import Split
from entropy_jax.rollout.batch import token_batch
from entropy_jax.rollout.generate import given
from entropy_jax.training import attention, state, step
from entropy_jax.types import UserError, take_rows

CONFIG = DecoderConfig(vocab_size=7, width=8, num_layers=2, num_heads=2, mlp_width=8, max_length=8)
POLICY = transformer_policy(CONFIG)
TX = optax.sgd(0.1)


@pytest.fixture(scope='module')
def params():
  found = jax.jit(POLICY.init)(jax.random.key(0))
  for block in ('block_0', 'block_1'):
    found[block]['attention']['query']['kernel'] *= 6.0  # far from uniform attention
  return found


@pytest.fixture(scope='module')
def batch():
  """Four rows of two prompt tokens, of which one may be padding on the left, and responses of 4, 1, 3 and 2 tokens."""
  tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, 7)
  prompt_mask = jnp.array([[True, True], [False, True], [True, True], [False, True]])
  real_BxT = jnp.arange(4)[None] < jnp.array([4, 1, 3, 2])[:, None]
  responses = given(tokens[:, 2:], real_BxT)
  return token_batch(tokens[:, :2], prompt_mask, responses, jnp.arange(4) // 2, jnp.array([1.0, 0.0, 0.0, 1.0]), jax.random.key(2))


@pytest.fixture(scope='module')
def measured(params, batch):
  return jax.device_get(jax.jit(functools.partial(attention.measures, POLICY))(params, batch))


def numpy_measures(params, batch):
  """Row by row: every real token of a response, the position before it, and the keys up to there."""
  logits, _ = jax.jit(POLICY.attention)(params, batch.tokens_BxN, batch.token_mask_BxN)
  logits, real = np.asarray(logits, np.float64), np.asarray(batch.token_mask_BxN)
  entropy, most, largest = np.zeros(2), np.zeros(2), np.zeros(2)
  share, count = np.zeros((2, 4, 2)), np.zeros(4)
  for b, t in zip(*np.nonzero(np.asarray(batch.mask_BxT))):
    n = 2 + t - 1
    keys = [k for k in range(n + 1) if real[b, k]]
    count[b] += 1
    for i, h in np.ndindex(2, 2):
      a = logits[i, b, h, n, keys]
      p = np.exp(a - a.max()) / np.exp(a - a.max()).sum()
      largest[i] = max(largest[i], np.abs(a).max())
      share[i, b, h] += p[0]
      if len(keys) > 1:
        entropy[i] -= (p * np.log(p)).sum()
        most[i] += np.log(len(keys))
  sinks = (share / count[None, :, None] > 0.3).mean(axis=(1, 2))
  return {'entropy': entropy / most, 'largest_logit': largest, 'sink_rate': sinks}


class TestMeasures:
  def test_numpy_row_by_row(self, params, batch, measured):
    want = numpy_measures(params, batch)
    for i in range(2):
      for name, values in want.items():
        np.testing.assert_allclose(measured[f'attention/layer_{i}/{name}'], values[i], rtol=1e-5, err_msg=name)
    assert 0.05 < measured['attention/entropy'] < 0.95
    np.testing.assert_allclose(measured['attention/entropy'], want['entropy'].mean(), rtol=1e-5)
    np.testing.assert_allclose(measured['attention/largest_logit'], want['largest_logit'].max(), rtol=1e-5)
    np.testing.assert_allclose(measured['attention/sink_rate'], want['sink_rate'].mean(), rtol=1e-6)
    assert len(measured) == 9

  def test_slices_change_nothing(self, params, batch, measured):
    cut = jax.jit(functools.partial(attention.measures, POLICY, num_slices=2))(params, batch)
    for name, value in measured.items():
      np.testing.assert_allclose(cut[name], value, rtol=1e-6, err_msg=name)

  def test_parts_change_nothing(self, params, batch, measured):
    total = lambda tree: jax.tree.map(lambda x: jax.lax.psum(x, 'parts'), tree)
    gather = lambda tree: jax.tree.map(lambda x: jax.lax.all_gather(x, 'parts', tiled=True), tree)
    split = Split(2, lambda: jax.lax.axis_index('parts'), gather, total)
    part = lambda start: attention.measures(POLICY, params, take_rows(batch.replace(key=None), start, 2), split=split)
    found = jax.jit(jax.vmap(part, axis_name='parts'))(jnp.array([0, 2]))
    for name, value in measured.items():
      np.testing.assert_allclose(found[name], [value, value], rtol=1e-6, err_msg=name)

  def test_a_policy_without_attention(self, batch):
    with pytest.raises(UserError, match='this policy has no attention that could be measured; leave it off'):
      attention.measures(tabular_policy(2, 4, 7), {}, batch)


class TestLearn:
  def test_the_update_is_the_same_and_its_metrics_are_of_the_policy_before(self, params, batch, measured):
    objective = catalog.build({'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]})
    start = state.create(params, TX, objective, batch)
    learn = lambda on: jax.jit(functools.partial(step.learn, objective=objective, policy=POLICY, tx=TX, attention=on))(start, batch)
    (plain, without), (after, with_it) = jax.device_get((learn(False), learn(True)))
    jax.tree.map(np.testing.assert_array_equal, plain.params, after.params)
    assert set(with_it) - set(without) == set(measured) and not any(name.startswith('attention/') for name in without)
    for name, value in measured.items():
      np.testing.assert_allclose(with_it[name], value, rtol=1e-5, err_msg=name)
