"""Entropy-SFT: the card's numbers, exact counts, limits, and the loss that maximum likelihood makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import objective
from entropy_jax.methods import advantages, surrogates, weights
from entropy_jax.types import RunFacts, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FAST = {'xla_backend_optimization_level': 0}
jitted = jax.jit(weights.entropy_sft.function, static_argnames=('keep', 'normalize'), compiler_options=FAST)
ROWS = np.array([[0.7, 0.2, 0.1], [0.34, 0.33, 0.33], [0.05, 0.9, 0.05]])
CE = -np.log(ROWS[[0, 1, 2], [0, 1, 0]])
ENTROPY = -np.sum(ROWS * np.log(ROWS), axis=1)
THREE = (jnp.asarray(-CE, jnp.float32)[None], jnp.asarray(ENTROPY, jnp.float32)[None], jnp.ones((1, 3), bool), jnp.array([0]))


def oracle(batch, keep, entropy_scale):
  """Kept tokens, by sorting in Python."""
  mask = np.asarray(batch.mask_BxT)
  delta = -np.asarray(batch.logp_BxT, np.float64) - entropy_scale * np.asarray(batch.entropy_BxT, np.float64)
  kept = np.zeros(mask.shape, bool)
  for index in sorted(np.argwhere(mask).tolist(), key=lambda i: -delta[tuple(i)])[: max(int(keep * mask.sum()), 1)]:
    kept[tuple(index)] = True
  return kept


class TestEntropySft:
  def test_card_values(self):
    np.testing.assert_allclose(CE, [0.35667, 1.10866, 2.99573], atol=1e-5)
    np.testing.assert_allclose(ENTROPY, [0.80182, 1.09851, 0.39439], atol=1e-5)
    # delta = (-.28478, .22985, 2.68021); K = floor(.8 * 3) = 2, N / K = 1.5
    w, metrics = jitted(*THREE)
    np.testing.assert_allclose(w, [[0.0, 1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(metrics['threshold'], 0.22985, atol=1e-5)
    # K = floor(.4 * 3) = 1: the confident mistake
    np.testing.assert_allclose(jitted(*THREE, keep=0.4)[0], [[0.0, 0.0, 3.0]], rtol=1e-6)

  def test_normalize_all(self):
    assert jitted(*THREE, normalize='all')[0].tolist() == [[0.0, 1.0, 1.0]]

  def test_a_scale_of_entropy_changes_the_order(self):
    # delta with scale 3: (-2.04879, -2.18687, 1.81257): the diffuse token is now last
    np.testing.assert_allclose(jitted(*THREE, entropy_scale=3.0)[0], [[1.5, 0.0, 1.5]], rtol=1e-6)

  @pytest.mark.parametrize(('keep', 'entropy_scale'), [(0.8, 0.8), (0.8, 0.0), (0.001, 0.8)])
  def test_against_numpy(self, keep, entropy_scale):
    batch = helpers.token_batch(seed=1, B=12, T=9)
    kept = oracle(batch, keep, entropy_scale)
    fields = (batch.logp_BxT, batch.entropy_BxT, batch.mask_BxT, batch.sequence_B)
    w, metrics = jitted(*fields, keep=keep, entropy_scale=entropy_scale)
    np.testing.assert_allclose(w, np.where(kept, np.asarray(batch.mask_BxT).sum() / kept.sum(), 0.0), rtol=1e-6)
    np.testing.assert_allclose(metrics['selected_fraction'], kept.sum() / np.asarray(batch.mask_BxT).sum(), rtol=1e-6)

  def test_loss_is_the_mean_cross_entropy_of_kept_tokens(self):
    batch = helpers.token_batch(seed=1, B=12, T=9)

    def run(keep):
      chain = objective.chain(advantages.unit(), weights.entropy_sft(keep=keep), surrogates.reinforce())
      prepared, state, _ = chain.prepare(chain.init(batch), batch)
      planned, _, _ = chain.plan(state, prepared)
      return jax.value_and_grad(lambda lp: chain.loss(planned, prepared.replace(logp_BxT=lp)).compute())(batch.logp_BxT)

    loss, gradient = jax.jit(run, static_argnums=0)(0.5)
    kept = oracle(batch, 0.5, 0.8)
    np.testing.assert_allclose(loss, -np.asarray(batch.logp_BxT)[kept].mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.where(kept, -1 / kept.sum(), 0.0), rtol=1e-5)
    loss, _ = jax.jit(run, static_argnums=0)(1.0)  # ordinary supervised fine-tuning
    np.testing.assert_allclose(loss, -np.asarray(batch.logp_BxT)[np.asarray(batch.mask_BxT)].mean(), rtol=1e-5)

  def test_no_valid_token(self):
    w, metrics = jitted(*THREE[:2], jnp.zeros((1, 3), bool), THREE[3])
    assert not np.any(w) and float(metrics['threshold']) == 0

  def test_notes_and_bad_input(self):
    facts = RunFacts(updates_per_rollout=1, group_size=1, num_tokens=4096, aggregate='sequence_mean_token_mean')
    (note,) = [text for text in (n(facts) for n in weights.entropy_sft().notes) if text is not None]
    assert note.startswith("entropy_sft: normalize='kept'")
    for hyper in ({'keep': 0.0}, {'entropy_scale': -1.0}, {'normalize': 'none'}):
      with pytest.raises(UserError, match=r'is outside|is not one of'):
        weights.entropy_sft(**hyper)
