"""Sweeps on a model small enough for a numpy loop, and on the real ones; what a diverged run leaves; the rows of its file."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.analysis import runs
from entropy_jax.training import sweeps
from entropy_jax.training.learners import Learner
from entropy_jax.types import UserError

N, D = 12, 3


class Pair(NamedTuple):
  x_D: jax.Array
  y: jax.Array


def linear() -> Learner:
  """Least squares of one example a step, with a count of its `advance`."""
  residual = lambda params, batch: jnp.dot(params['w'], batch.x_D) - batch.y
  return Learner(
    init=lambda key: {'w': jax.random.normal(key, (D,)), 'advanced': jnp.float32(0)},
    loss=lambda params, batch: 0.5 * jnp.square(residual(params, batch)),
    advance=lambda params: params | {'advanced': params['advanced'] + 1},
    measure=lambda params, batch: {'residual': residual(params, batch), 'w': params['w'], 'advanced': params['advanced']},
    finish=lambda params: {},
  )


def data(R: int = 2) -> tuple[Pair, Pair]:
  rng = np.random.default_rng(0)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return Pair(make(R, N, D), make(R, N)), Pair(make(D), make())


@functools.cache
def swept(rates=(0.05, 0.2, 1e12), at_a_time=None):
  batches, held_out = data()
  run = functools.partial(sweeps.sweep, linear(), make_optimizer=optax.sgd, log_every=4, at_a_time=at_a_time)
  params = jax.vmap(linear().init)(jax.random.split(jax.random.key(0), 2))
  return jax.device_get(jax.jit(run)(params, jnp.asarray(rates, jnp.float32), batches, held_out))


class TestSweep:
  def test_against_a_loop(self):
    found, (batches, held_out) = swept(), data()
    for r, key in enumerate(jax.random.split(jax.random.key(0), 2)):
      for k, rate in enumerate((0.05, 0.2)):
        w = np.asarray(jax.random.normal(key, (D,)), np.float64)
        for n in range(N):
          x, y = np.asarray(batches.x_D[r, n], np.float64), float(batches.y[r, n])
          np.testing.assert_allclose(found.loss_xN[r, k, n], 0.5 * (w @ x - y) ** 2, rtol=2e-4, atol=1e-7)
          w -= rate * (w @ x - y) * x
          if n % 4 == 3:  # measured after updates 4, 8 and 12
            np.testing.assert_allclose(found.logged['w'][r, k, n // 4], w, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.logged['residual'][r, k, n // 4], w @ held_out.x_D - held_out.y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.params['w'][r, k], w, rtol=1e-4, atol=1e-6)

  def test_advance_is_once_an_update(self):
    np.testing.assert_array_equal(swept().logged['advanced'][0, 0], [4, 8, 12])

  def test_a_diverged_run_shows_and_disturbs_no_other(self):
    found, calm = swept(), swept((0.05, 0.2))
    assert not np.isfinite(found.loss_xN[:, 2, -4:]).any() and np.isfinite(found.loss_xN[:, 2, 0]).all()
    assert not np.isfinite(found.logged['w'][:, 2, -1]).any()
    np.testing.assert_allclose(found.loss_xN[:, :2], calm.loss_xN, rtol=1e-5, atol=1e-8)

  @pytest.mark.parametrize('at_a_time', [1, 4])
  def test_one_after_another_is_the_same(self, at_a_time):
    for one, other in zip(jax.tree.leaves(swept(at_a_time=at_a_time)), jax.tree.leaves(swept())):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)

  def test_seeds_are_paired_over_rates(self):
    loss = swept().loss_xN
    np.testing.assert_array_equal(loss[:, 0, 0], loss[:, 1, 0])
    assert loss[0, 0, 0] != loss[1, 0, 0]

  def test_log_every_that_does_not_divide(self):
    batches, held_out = data()
    with pytest.raises(UserError, match=r'log_every=5 does not divide num_steps=12'):
      params = linear().init(jax.random.key(0))
      sweeps.train(linear(), params, sweeps.of_seed(batches, 0), held_out, tx=optax.sgd(0.1), log_every=5)


class TestOverRuns:
  @pytest.mark.parametrize('at_a_time', [None, 1])
  def test_every_seed_at_every_setting(self, at_a_time):
    setting_K = {'a': jnp.arange(3.0), 'b': jnp.arange(6.0).reshape(3, 2)}
    one = lambda index, setting: 100.0 * index + setting['a'] + setting['b']
    found = sweeps.over_runs(one, 2, setting_K, at_a_time=at_a_time)
    np.testing.assert_array_equal(found, [[[0, 1], [3, 4], [6, 7]], [[100, 101], [103, 104], [106, 107]]])


class TestColumn:
  def test_rates_and_named_settings(self):
    assert sweeps.column(3e-4, 'loss') == 'rate_0.0003/loss' and sweeps.column('weighted', 'loss') == 'weighted/loss'


class TestWriteSeed:
  def test_one_measure_more_is_of_the_start(self, tmp_path):
    curves = sweeps.Curves(np.ones((1, 4)), {'x': np.array([[5.0, 6.0, 7.0]])}, {})
    sweeps.write_seed(tmp_path / 'metrics.jsonl', curves, {}, ['only'], log_every=2)
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row.get('only/x') for row in rows] == [5.0, None, 6.0, None, 7.0]

  def test_rows(self, tmp_path):
    rates = (0.05, 0.2, 1e12)
    final = {'sum': np.array([1.5, 2.5, np.inf])}
    sweeps.write_seed(tmp_path / 'seed_1' / 'metrics.jsonl', sweeps.of_seed(swept(), 1), final, rates, log_every=4)
    rows = [json.loads(line) for line in (tmp_path / 'seed_1' / 'metrics.jsonl').read_text().splitlines()]
    assert len(rows) == N + 1 and [row['step'] for row in rows] == list(range(N + 1))
    assert 'rate_0.05/residual' in rows[4] and 'rate_0.05/residual' not in rows[3] and 'rate_0.05/loss' not in rows[12]
    assert rows[12].keys() >= {'rate_0.05/layer_2/w', 'rate_0.2/final/sum', 'rate_0.2/residual'} and rows[11]['rate_1e+12/loss'] is None
    assert rows[12]['rate_0.2/final/sum'] == 2.5 and rows[12]['rate_1e+12/final/sum'] is None
    found = runs.load_metrics(tmp_path / 'seed_1')
    np.testing.assert_allclose(found['rate_0.2/loss'][:-1], swept().loss_xN[1, 1], rtol=1e-6)
    np.testing.assert_allclose(found['rate_0.05/layer_1/w'][[4, 8, 12]], swept().logged['w'][1, 0, :, 1], rtol=1e-6)
    assert np.isnan(found['rate_1e+12/loss'][-4:]).all()
