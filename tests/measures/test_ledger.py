"""Tests of entropy_jax.measures.ledger: every way to sort the tokens splits the same total."""

import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from entropy_jax.measures import dynamics, ledger

# Two rows of four tokens, the last of the second is masked and holds garbage.
CHANGE_BxT = np.array([[-0.4, 0.1, 0.2, -0.05], [-0.3, 0.02, 0.07, np.nan]], np.float32)
ADVANTAGE_BxT = np.array([[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 0.0, np.nan]], np.float32)
DISCRIMINATOR_BxT = np.array([[0.2, -0.1, 0.3, -0.2], [0.1, 0.4, -0.1, np.nan]], np.float32)
CLIPPED_BxT = np.array([[True, False, False, False], [False, True, False, True]])
MASK_BxT = np.array([[True] * 4, [True] * 3 + [False]])


def found(**more):
  change = {'surrogate': jnp.asarray(CHANGE_BxT)} | {name: jnp.asarray(x) for name, x in more.items()}
  arrays = (ADVANTAGE_BxT, DISCRIMINATOR_BxT, CLIPPED_BxT, MASK_BxT)
  return {name: float(x) for name, x in ledger.entries(change, *map(jnp.asarray, arrays)).items()}


class TestEntries:
  def test_hand_computed_quadrants(self):
    sums = found()
    np.testing.assert_allclose(sums['surrogate_rewarded_likely'], -0.7, rtol=1e-6)  # -.4 - .3
    np.testing.assert_allclose(sums['surrogate_rewarded_unlikely'], 0.17, rtol=1e-6)  # .1, and .07 whose advantage is 0
    np.testing.assert_allclose(sums['surrogate_punished_likely'], 0.22, rtol=1e-6)  # .2 + .02
    np.testing.assert_allclose(sums['surrogate_punished_unlikely'], -0.05, rtol=1e-6)

  def test_every_sorting_splits_the_same_total(self):
    sums = found()
    np.testing.assert_allclose(sums['surrogate'], -0.36, rtol=1e-6)
    np.testing.assert_allclose(sum(sums[f'surrogate_{q}'] for q in ledger.QUADRANTS), sums['surrogate'], rtol=1e-6)
    np.testing.assert_allclose(sums['surrogate_clipped'], -0.38, rtol=1e-6)  # -.4 + .02; the masked token is not counted
    np.testing.assert_allclose(sums['surrogate_clipped'] + sums['surrogate_unclipped'], sums['surrogate'], rtol=1e-6)

  def test_regularizers_stand_beside_the_surrogate(self):
    sums = found(entropy_bonus=np.full_like(CHANGE_BxT, 0.5))
    np.testing.assert_allclose(sums['regularizer_entropy_bonus'], 3.5, rtol=1e-6)  # seven valid tokens
    np.testing.assert_allclose(sums['surrogate'], -0.36, rtol=1e-6)

  def test_quadrants_are_where_the_entropy_rises_and_falls_on_a_bandit(self):
    # Every action k of 64 states once: reinforcing it by A moves the state's logits by A (e_k - p), and the entropy by what a central
    # difference in float64 says. The theorem is that the sign of A and of S_k - E[S] tell which way, so the quadrants are the four
    # pairs of signs of A and of that change.
    rng = np.random.default_rng(0)
    logits, advantage = rng.normal(size=(64, 32)), rng.normal(size=(64, 32))
    move = 1e-5 * advantage[:, :, None] * (np.eye(32) - scipy.special.softmax(logits, axis=-1)[:, None, :])
    up, down = (scipy.stats.entropy(scipy.special.softmax(logits[:, None] + step, axis=-1), axis=-1) for step in (move, -move))
    change = (up - down) / 2e-5
    z = jnp.asarray(logits, jnp.float32)
    discriminator = dynamics.entropy_discriminator(z) - dynamics.expected_discriminator(z)[:, None]
    whole = jnp.ones((64, 32), bool)
    sums = ledger.entries({'surrogate': jnp.asarray(change, jnp.float32)}, jnp.asarray(advantage), discriminator, ~whole, whole)
    for name, (rewarded, likely) in ledger.QUADRANTS.items():
      falls = rewarded == likely
      expected = change[((advantage >= 0) == rewarded) & ((change < 0) == falls)].sum()
      assert abs(expected) > 1
      np.testing.assert_allclose(sums[f'surrogate_{name}'], expected, rtol=1e-5, err_msg=name)
