"""TER: the card's numbers, both sides of the target, the value of the whole batch, and the note on other aggregations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import regularizers, surrogates
from entropy_jax.methods.regularizers import target
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

BATCH = helpers.token_batch()
BATCH = BATCH.replace(advantage_BxT=jnp.zeros_like(BATCH.advantage_BxT))
MASK = np.asarray(BATCH.mask_BxT)


@functools.cache
def compiled(**hyper):
  chain = objective.chain(surrogates.reinforce(), regularizers.ter(**hyper))

  def run(entropy, mask):
    def loss(entropy):
      batch = BATCH.replace(entropy_BxT=entropy, mask_BxT=mask)
      planned, _, metrics = chain.plan(chain.init(batch), batch)
      return chain.loss(planned, batch).compute(), metrics

    return jax.value_and_grad(loss, has_aux=True)(entropy)

  return jax.jit(run)


def update(entropy, mask=MASK, **hyper):
  entropy = jnp.broadcast_to(jnp.asarray(entropy, jnp.float32), mask.shape)
  (loss, metrics), gradient = compiled(**hyper)(entropy, jnp.asarray(mask))
  return float(loss), np.asarray(gradient), {k.split('/')[-1]: float(v) for k, v in metrics.items()}


class TestTer:
  @pytest.mark.parametrize(('entropy', 'value', 'sign'), [(0.3, 2.5e-4, -1), (0.55, 0.0, 0), (0.9, 3.5e-4, 1)])
  def test_card_values(self, entropy, value, sign):
    # 1e-3 |.3 - .55|, 0 and 1e-3 |.9 - .55|; the gradient is c sign(mean H - H*) / N
    loss, gradient, metrics = update(entropy)
    np.testing.assert_allclose(loss, value, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(gradient, np.where(MASK, sign * 1e-3 / MASK.sum(), 0.0), rtol=1e-6)
    np.testing.assert_allclose(metrics['distance'], entropy - 0.55, atol=1e-6)

  def test_the_token_mean_decides_and_not_the_token(self):
    # Ragged lengths: the absolute value of the batch's mean, not the mean of absolute values.
    entropy = np.asarray(BATCH.entropy_BxT)
    mean = entropy[MASK].astype(np.float64).mean()
    assert (entropy[MASK] < 0.9).any() and (entropy[MASK] > 0.9).any() and mean > 0.9
    loss, gradient, metrics = update(entropy, coef=0.5, target=0.9)
    np.testing.assert_allclose(loss, 0.5 * (mean - 0.9), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.where(MASK, 0.5 / MASK.sum(), 0.0), rtol=1e-6)
    np.testing.assert_allclose(metrics['entropy'], mean, rtol=1e-6)

  def test_below_the_target_it_is_the_entropy_bonus(self):
    _, gradient, _ = update(BATCH.entropy_BxT, coef=0.25, target=3.0)
    np.testing.assert_allclose(gradient, np.where(MASK, -0.25 / MASK.sum(), 0.0), rtol=1e-6)

  def test_no_valid_token(self):
    loss, gradient, metrics = update(0.3, np.zeros_like(MASK))
    assert loss == 0 and not gradient.any() and metrics['distance'] == 0

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'target=-1 is outside \[0, inf\)'):
      regularizers.ter(target=-1)


class TestNoteTokenMean:
  def test_only_other_aggregations(self):
    facts = RunFacts(updates_per_rollout=1, group_size=8, num_tokens=1000, aggregate='token_mean')
    note = target.note_token_mean('ter')
    assert note(facts, hyper={}) is None
    text = note(facts._replace(aggregate='sequence_mean_token_mean'), hyper={})
    assert 'aggregate=sequence_mean_token_mean' in text and 'set aggregate=token_mean' in text

  def test_it_warns_for_a_reason(self):
    # Above the target the gradient is that of whatever mean the aggregation takes, not of the mean that is held
    def gradient(aggregate):
      chain = objective.chain(surrogates.reinforce(), regularizers.ter(coef=1.0, target=0.0), aggregate=aggregate)

      def loss(entropy):
        batch = BATCH.replace(entropy_BxT=entropy)
        return chain.loss(chain.plan(chain.init(batch), batch)[0], batch).compute()

      return np.asarray(jax.jit(jax.grad(loss))(BATCH.entropy_BxT))

    np.testing.assert_allclose(gradient('token_mean'), MASK / MASK.sum(), rtol=1e-6)
    by_sequence = MASK / MASK.sum(axis=1, keepdims=True) / len(MASK)
    np.testing.assert_allclose(gradient('sequence_mean_token_mean'), by_sequence, rtol=1e-6)
    assert np.abs(by_sequence - MASK / MASK.sum()).max() > 0.02
