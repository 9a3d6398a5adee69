"""training/optimizers.py: hand-computed updates, schedules and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from entropy_jax.types import UserError


def first_update(params, grads, *args, **kwargs):
  tx = make_optimizer(*args, **kwargs)
  return jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[0])(jnp.asarray(params), jnp.asarray(grads))


class TestMakeOptimizer:
  def test_sgd_is_minus_rate_times_gradient(self):
    np.testing.assert_allclose(first_update([1.0, 2.0], [3.0, 4.0], 'sgd', 0.1), [-0.3, -0.4], rtol=1e-6)

  def test_clipping_comes_before_the_rule(self):
    # |(3, 4)| = 5 is scaled to 1: (0.6, 0.8), times 0.1
    np.testing.assert_allclose(first_update([1.0, 2.0], [3.0, 4.0], 'sgd', 0.1, max_grad_norm=1.0), [-0.06, -0.08], rtol=1e-6)

  def test_adam_first_step_is_the_sign(self):
    # m_hat = g, v_hat = g^2: g / (|g| + eps)
    np.testing.assert_allclose(first_update([1.0, 2.0], [3.0, -4.0], 'adam', 0.1), [-0.1, 0.1], rtol=1e-5)

  def test_adamw_adds_decoupled_decay(self):
    # -(0.1) (sign(g) + 0.01 p) = -(0.1 + 0.001), 0.1 - 0.002
    np.testing.assert_allclose(first_update([[1.0, 2.0]], [[3.0, -4.0]], 'adamw', 0.1, weight_decay=0.01), [[-0.101, 0.098]], rtol=1e-5)

  @pytest.mark.parametrize('name', ['adamw', 'lion', 'lars'])
  def test_decay_is_of_matrices_alone(self, name):
    params = {
      'up': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2), 'gain': jnp.ones(())},
      'norm': {'scale': jnp.ones(2)},
      'softmax': {'temperature': jnp.ones((2, 3))},
      'spectral': {'u': jnp.ones(2)},
    }
    tx = make_optimizer(name, 0.1, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, params)
    changes, _ = jax.jit(lambda: tx.update(zero, tx.init(params), params))()
    assert [jax.tree_util.keystr(p) for p, c in jax.tree_util.tree_leaves_with_path(changes) if np.any(c)] == ["['up']['kernel']"]

  def test_lars_by_hand(self):
    # |p| = 5, |g + 0.5 p| = |(0, 2) + (1.5, 2)| = |(1.5, 4)|, trust .001 * 5 / |(1.5, 4)|
    first = first_update([[3.0, 4.0]], [[0.0, 2.0]], 'lars', 0.1, weight_decay=0.5)
    np.testing.assert_allclose(first, [[-0.1 * 0.005 / np.hypot(1.5, 4) * x for x in (1.5, 4.0)]], rtol=1e-5)
    # |p| / |g| = 5 / 2, times .02
    turned = first_update([[3.0, 4.0]], [[0.0, 2.0]], 'lars', 0.1, trust_coefficient=0.02)
    np.testing.assert_allclose(turned, [[0.0, -0.1 * 0.02 * 2.5 * 2.0]], rtol=1e-5)
    # No matrix, so neither decay nor trust: plain descent.
    np.testing.assert_allclose(first_update([3.0, 4.0], [0.0, 2.0], 'lars', 0.1, weight_decay=0.5), [0.0, -0.2], rtol=1e-6)

  def test_lion_first_step_is_the_sign_of_the_gradient(self):
    np.testing.assert_allclose(first_update([1.0, 2.0], [3.0, -4.0], 'lion', 0.1, b2=0.99), [-0.1, 0.1], rtol=1e-5)

  def test_momentum_reaches_sgd(self):
    tx = make_optimizer('sgd', 1.0, momentum=0.5)
    state = tx.init(jnp.zeros(1))
    first, state = tx.update(jnp.ones(1), state)
    second, _ = tx.update(jnp.ones(1), state)
    np.testing.assert_allclose([first[0], second[0]], [-1.0, -1.5])  # 1, then 1 + 0.5

  @pytest.mark.parametrize('name', OPTIMIZERS)
  def test_each_descends_a_parabola(self, name):
    tx = make_optimizer(name, 0.05, max_grad_norm=1.0, num_steps=60, schedule='cosine', warmup_steps=2)

    def body(carry, _):
      params, state = carry
      updates, state = tx.update(2 * params, state, params)
      return (params + updates, state), None

    params, _ = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=60)[0])(jnp.array([1.0, -2.0]))
    assert float(jnp.sum(params**2)) < 0.7 * 5.0

  @pytest.mark.parametrize(
    ('name', 'kwargs', 'text'),
    [
      ('adamm', {}, "name='adamm' is not one of adam, adamw, lars, lion, rmsprop, sgd. Did you mean 'adam'"),
      ('adam', {'schedule': 'cosin'}, "Did you mean 'cosine'"),
      ('adam', {'learning_rate': -1.0}, r'learning_rate=-1.0 is outside \(0, inf\)'),
      ('adam', {'learning_rate': float('nan')}, 'learning_rate=nan'),
      ('adam', {'b2': 1.0}, r'b2=1.0 is outside \[0, 1\)'),
      ('adam', {'max_grad_norm': 0.0}, 'max_grad_norm=0.0'),
      ('adam', {'weight_decay': 0.1}, 'adam takes no weight_decay.*use adamw, lars, lion'),
      ('adam', {'momentum': 0.0}, 'adam takes no momentum'),
      ('sgd', {'trust_coefficient': 0.1}, 'sgd takes no trust_coefficient, and it is 0.1; leave it at 0.001, or use lars.'),
      ('sgd', {'schedule': 'linear'}, 'needs num_steps'),
      ('sgd', {'warmup_steps': -1}, 'warmup_steps=-1'),
      ('sgd', {'schedule': 'linear', 'num_steps': 5, 'warmup_steps': 5}, 'warmup_steps=5 leaves nothing'),
    ],
  )
  def test_refuses(self, name, kwargs, text):
    with pytest.raises(UserError, match=text):
      make_optimizer(name, **({'learning_rate': 0.1} | kwargs))


class TestMakeSchedule:
  @pytest.mark.parametrize('schedule', SCHEDULES)
  def test_matches_the_equation(self, schedule):
    rate = make_schedule(0.3, schedule=schedule, warmup_steps=4, num_steps=20, final_fraction=0.1)
    shape = {'constant': lambda x: 1.0, 'linear': lambda x: 1 - x, 'cosine': lambda x: (1 + np.cos(np.pi * x)) / 2}[schedule]
    for k in range(25):
      x = min(max(k - 4, 0) / 16, 1.0)
      floor = 0.0 if schedule == 'constant' else 0.1
      expected = 0.3 * k / 4 if k < 4 else 0.3 * (floor + (1 - floor) * shape(x))
      np.testing.assert_allclose(float(rate(k)), expected, rtol=1e-5, atol=1e-8)
