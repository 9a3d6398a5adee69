"""Every mode gives the numbers of one device: rows handed out and brought back, gathered, summed, states placed, trained."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.models import presets, transformer
from entropy_jax.parallel import ROWS, STATE, WHOLE, check_rows, make
from entropy_jax.parallel.split import WHOLE as WHOLE_BATCH
from entropy_jax.training import step
from entropy_jax.types import UserError
from tests.training.test_step import COMPOSED, TX, Setting

LAYOUTS = [('jit', 0), ('pmap', 1), ('pmap', 4), ('pmap', 8), ('fsdp', 1), ('fsdp', 8)]
ROWS_BxK = np.arange(48, dtype=np.float32).reshape(16, 3)


@pytest.fixture(scope='module', params=LAYOUTS, ids=lambda layout: f'{layout[0]} x {layout[1]}')
def layout(request):
  return make(*request.param)


class TestModes:
  def test_rows_come_back_in_order(self, layout):
    rows = layout.rows({'x': ROWS_BxK, 'flag_B': np.arange(16) % 3 == 0})
    back = layout.local(rows)
    np.testing.assert_array_equal(back['x'], ROWS_BxK)
    np.testing.assert_array_equal(back['flag_B'], np.arange(16) % 3 == 0)

  def test_split_is_the_whole_batch_on_every_part(self, layout):
    def fn(split, state, rows, key):
      size = len(rows['x_BxK'])
      everything = split.gather(rows['x_BxK'])
      own = split.own({'x_BxK': everything}, 16)['x_BxK']
      result = {'sum': split.total(rows['x_BxK'].sum()), 'key': jax.random.uniform(key)}
      result['all'] = jnp.sum(everything * jnp.arange(16)[:, None])
      rows = {'row_B': split.rows(size), 'own_BxK': own, 'double_BxK': 2 * rows['x_BxK']}
      return {'w': state['w'] + 1}, rows, result

    compiled = layout.compile(fn, takes=(STATE, ROWS, WHOLE), gives=(STATE, ROWS, WHOLE), donate=(0,))
    state = layout.build(lambda: {'w': jnp.ones(())})
    for turn in range(2):  # the second takes what the first gave
      state, rows, result = compiled(state, layout.rows({'x_BxK': ROWS_BxK}), jax.random.key(3))
      rows = layout.local(rows)
      np.testing.assert_array_equal(rows['row_B'], np.arange(16))
      np.testing.assert_array_equal(rows['own_BxK'], ROWS_BxK)
      np.testing.assert_array_equal(rows['double_BxK'], 2 * ROWS_BxK)
      assert float(state['w']) == 2 + turn
      assert float(result['sum']) == ROWS_BxK.sum() and float(result['all']) == (ROWS_BxK * np.arange(16)[:, None]).sum()
      assert float(result['key']) == float(jax.random.uniform(jax.random.key(3)))

  def test_results_feed_further_calls(self, layout):
    double = layout.compile(lambda split, rows: ({'x': 2 * rows['x']},), takes=(ROWS,), gives=(ROWS,))
    (rows,) = double(layout.rows({'x': ROWS_BxK}))
    (rows,) = double(rows)
    np.testing.assert_array_equal(layout.local(rows)['x'], 4 * ROWS_BxK)

  def test_state_is_donated(self, layout):
    compiled = layout.compile(lambda split, s, rows: ({'w': s['w'] * 2},), takes=(STATE, ROWS), gives=(STATE,), donate=(0,))
    state = layout.build(lambda: {'w': jnp.ones((8,))})
    compiled(state, layout.rows(ROWS_BxK))
    assert state['w'].is_deleted()

  def test_fsdp_keeps_a_shard_of_every_parameter_on_each_device(self):
    layout = make('fsdp', 8)
    make_state = lambda: {'params': {'mlp': {'up': {'kernel': jnp.ones((64, 32))}}}}
    kernel = lambda state: state['params']['mlp']['up']['kernel']
    state = layout.build(make_state)
    plus_one = lambda split, state: (jax.tree.map(lambda x: x + 1, state),)
    (after,) = layout.compile(plus_one, takes=(STATE,), gives=(STATE,))(state)
    for array in (kernel(state), kernel(after)):
      assert [shard.data.shape for shard in array.addressable_shards] == [(8, 32)] * 8


@pytest.fixture(scope='module')
def composed():
  return Setting(COMPOSED)


def learned(composed, layout, **options):
  learn = functools.partial(step.learn, objective=composed.objective, policy=composed.policy, tx=TX, num_epochs=2, **options)
  fn = lambda split, state, rows, key: learn(state, rows.replace(key=key, sequence_B=None), split=split)
  compiled = layout.compile(fn, takes=(STATE, ROWS, WHOLE), gives=(STATE, WHOLE))
  state = layout.build(lambda: composed.state)
  rows = layout.rows(jax.tree.map(np.asarray, composed.batch.replace(key=None)))
  return jax.device_get(compiled(state, rows, composed.batch.key))


class TestLearn:
  """The whole step, with every kind of global selection and a controller."""

  @pytest.mark.parametrize('options', [{}, {'num_slices': 2, 'num_minibatches': 2}], ids=str)
  @pytest.mark.parametrize('layout', [('pmap', 8), ('fsdp', 8)], ids=lambda layout: layout[0])
  def test_equals_one_device(self, composed, layout, options):
    whole, whole_metrics = learned(composed, make('jit'), **options)
    cut, metrics = learned(composed, make(*layout), **options)
    chex.assert_trees_all_close(cut.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(cut.opt_state, whole.opt_state, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(cut.objective_state, whole.objective_state, rtol=1e-5)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)

  def test_a_bad_row_on_one_device_stops_the_update_on_all(self, composed):
    reward_B = composed.batch.reward_B.at[5].set(jnp.nan)
    bad = composed.batch.replace(reward_B=reward_B)
    setting = Setting.__new__(Setting)
    setting.__dict__ = {**composed.__dict__, 'batch': bad}
    after, metrics = learned(setting, make('pmap', 8))
    chex.assert_trees_all_equal(after.params, jax.device_get(composed.state.params))
    chex.assert_trees_all_equal(after.objective_state, jax.device_get(composed.state.objective_state))
    assert int(after.num_rejected) == 2 and metrics['update/rejected'] == 1.0

  def test_rows_that_the_devices_do_not_divide(self, composed):
    learn = functools.partial(step.learn, objective=composed.objective, policy=composed.policy, tx=TX, num_minibatches=8)
    split = WHOLE_BATCH._replace(num_parts=8)
    with pytest.raises(UserError, match=r'num_devices=8 does not divide the batch of 4 sequences of a minibatch; use one of 1, 2, 4'):
      jax.eval_shape(functools.partial(learn, split=split), composed.state, composed.batch)


class TestMistakes:
  @pytest.mark.parametrize(
    ('name', 'num_devices', 'text'),
    [
      ('pmpa', 0, "config.parallel='pmpa' is not one of pmap, fsdp, jit. Did you mean 'pmap'?"),
      ('pmap', 9, 'config.num_devices=9: there are 8 devices; give 0 for all, or 1 to 8.'),
      ('fsdp', -1, 'config.num_devices=-1: there are 8 devices; give 0 for all, or 1 to 8.'),
    ],
  )
  def test_refused(self, name, num_devices, text):
    with pytest.raises(UserError) as error:
      make(name, num_devices)
    assert str(error.value) == text

  def test_rows(self):
    with pytest.raises(UserError, match=r'config.num_prompts: 12 sequences cannot be cut evenly over 8 devices; give 16'):
      check_rows('config.num_prompts', 12, make('pmap', 8))
    check_rows('config.num_prompts', 16, make('pmap', 8))


class TestMixedPrecision:
  def test_optimizer_is_float32_under_bfloat16_compute(self):
    policy = transformer.transformer_policy(presets.preset('study_tiny', dtype='bfloat16', remat=True))
    params = jax.eval_shape(policy.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(optax.adam(1e-3).init, params)) if leaf.ndim} == {jnp.dtype('float32')}
    hidden = jax.eval_shape(policy.hidden, params, jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 5), bool))
    assert hidden.dtype == jnp.bfloat16
