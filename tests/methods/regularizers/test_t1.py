"""T1: the sum of its two parts, and a reference that follows the policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers.t1 import moving_average
from entropy_jax.types import UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch()
BATCH = BATCH.replace(advantage_BxT=jnp.zeros_like(BATCH.advantage_BxT))


def value_and_gradient(*transforms):
  chain = objective.chain(surrogates.reinforce(), *transforms)

  @jax.jit
  def run():
    def loss(logp, entropy):
      batch = BATCH.replace(logp_BxT=logp, entropy_BxT=entropy)
      planned, _, _ = chain.plan(chain.init(batch), batch)
      return chain.loss(planned, batch).compute()

    return jax.value_and_grad(loss, argnums=(0, 1))(BATCH.logp_BxT, BATCH.entropy_BxT)

  return jax.tree.map(np.asarray, run())


class TestT1:
  @pytest.mark.parametrize(('entropy_coef', 'kl_coef', 'estimator'), [(0.2, 0.3, 'k3'), (0.0, 0.3, 'k2'), (0.2, 0.0, 'k3')])
  def test_is_the_bonus_and_the_kl(self, entropy_coef, kl_coef, estimator):
    value, gradient = value_and_gradient(regularizers.t1(entropy_coef=entropy_coef, kl_coef=kl_coef, estimator=estimator))
    parts = regularizers.entropy_bonus(coef=entropy_coef), regularizers.kl(coef=kl_coef, estimator=estimator)
    expected_value, expected_gradient = value_and_gradient(*parts)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for got, expected in zip(gradient, expected_gradient):
      np.testing.assert_allclose(got, expected, rtol=1e-6)

  def test_coefficients_must_be_given(self):
    with pytest.raises(UserError, match='t1: entropy_coef has no default'):
      regularizers.t1(kl_coef=0.1)


class TestMovingAverage:
  PARAMS = {'w': jnp.array([1.0, -2.0]), 'b': jnp.array(0.5, jnp.bfloat16)}
  START = {'w': jnp.array([3.0, 0.0]), 'b': jnp.array(0.0, jnp.bfloat16)}

  def test_one_update(self):
    # .75 (3, 0) + .25 (1, -2) = (2.5, -.5); .25 * .5 = .125, in bfloat16
    moved = moving_average(self.START, self.PARAMS, decay=0.75)
    np.testing.assert_allclose(moved['w'], [2.5, -0.5], rtol=1e-6)
    assert moved['b'].dtype == jnp.bfloat16 and float(moved['b']) == 0.125

  def test_the_distance_shrinks_by_the_decay_to_the_n(self):
    update = jax.jit(lambda reference: moving_average(reference, self.PARAMS, decay=0.9))
    reference = self.START
    for _ in range(20):
      reference = update(reference)
    expected = 0.9**20 * (np.asarray(self.START['w']) - np.asarray(self.PARAMS['w']))
    np.testing.assert_allclose(np.asarray(reference['w']) - np.asarray(self.PARAMS['w']), expected, rtol=1e-4)

  def test_limits(self):
    np.testing.assert_array_equal(moving_average(self.START, self.PARAMS, decay=1.0)['w'], self.START['w'])
    copy = moving_average(self.START, self.PARAMS, decay=0.0)
    np.testing.assert_array_equal(copy['w'], self.PARAMS['w'])
    # decay 0: reference and policy agree, and the KL penalty is 0 with gradient 0
    agree = lambda logp: regularizers.t1.function(jnp.zeros(3), logp, jax.lax.stop_gradient(logp), entropy_coef=0.0, kl_coef=1.0)
    logp = jnp.array([-0.1, -1.0, -5.0])
    assert not np.asarray(agree(logp)).any()
    assert not np.asarray(jax.grad(lambda x: jnp.sum(agree(x)))(logp)).any()

  def test_no_gradient_to_the_policy(self):
    gradient = jax.grad(lambda w: jnp.sum(moving_average({'w': self.START['w']}, {'w': w}, decay=0.5)['w']))(self.PARAMS['w'])
    assert not np.asarray(gradient).any()
