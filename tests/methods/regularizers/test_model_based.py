"""Tests of entropy_jax.methods.regularizers.model_based: the two estimates, the solved coefficient, and a target that is reached."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import compose, transform
from entropy_jax.data import fork_tokens
from entropy_jax.methods import regularizers
from entropy_jax.methods.regularizers import model_based
from entropy_jax.training import scanned
from entropy_jax.types import UserError
from tests import helpers


def at(entropy: float):
  batch = helpers.token_batch()
  return batch.replace(entropy_BxT=jnp.full_like(batch.entropy_BxT, entropy))


class TestModelBasedEntropy:
  def test_solves_for_the_coefficient(self):
    # After one update with c = .1 whose part was .02 of a measured -.03: response .02 / .1 = .2, drift -.03 - .02 = -.05. At entropy .9
    # and target 1 in 4 updates: c = ((1 - .9) / 4 + .05) / .2 = .375.
    controller = model_based.model_based_controller(target=1.0, initial=0.1, horizon=4.0)
    scale, state, _ = controller.update(controller.init(), at(1.0))
    np.testing.assert_allclose(scale, 0.1)  # nothing is known yet
    state = controller.observe(state, jnp.float32(0.02), jnp.float32(-0.03))
    scale, state, metrics = controller.update(state, at(0.9))
    np.testing.assert_allclose([scale, metrics['response'], metrics['drift']], [0.375, 0.2, -0.05], rtol=1e-5)
    # Smoothing .8: response .8 x .2 + .2 x (.0375 / .375) = .18; drift .8 x -.05 + .2 x (0 - .0375) = -.0475.
    state = controller.observe(state, jnp.float32(0.0375), jnp.float32(0.0))
    np.testing.assert_allclose([state['response'], state['drift']], [0.18, -0.0475], rtol=1e-5)

  def test_bounds_and_pushing_down(self):
    controller = model_based.model_based_controller(target=0.2, initial=0.1, minimum=-0.3, maximum=0.5)
    _, state, _ = controller.update(controller.init(), at(1.0))
    state = controller.observe(state, jnp.float32(0.01), jnp.float32(0.01))
    assert controller.update(state, at(2.0))[0] == np.float32(-0.3) and controller.update(state, at(0.0))[0] == 0.5

  def test_what_measures_nothing_changes_no_response(self):
    controller = model_based.model_based_controller(target=1.0, initial=0.1)
    _, state, _ = controller.update(controller.init(), at(1.0))
    state = controller.observe(state, jnp.float32(0.02), jnp.float32(0.0)) | {'coefficient': jnp.float32(1e-5)}
    again = controller.observe(state, jnp.float32(3.0), jnp.float32(0.0))
    assert again['response'] == state['response'] and again['drift'] != state['drift']

  @pytest.mark.parametrize('maximum', [50.0, float('inf')])
  def test_learns_from_a_probe_that_is_small_beside_the_bounds(self, maximum):
    controller = model_based.model_based_controller(target=1.0, initial=0.01, maximum=maximum)
    _, state, _ = controller.update(controller.init(), at(1.0))
    np.testing.assert_allclose(controller.observe(state, jnp.float32(0.002), jnp.float32(0.0))['response'], 0.2, rtol=1e-5)

  def test_an_update_without_tokens_keeps_the_coefficient(self):
    controller = model_based.model_based_controller(target=1.0, initial=0.1)
    _, state, _ = controller.update(controller.init(), at(1.0))
    state = controller.observe(state, jnp.float32(0.02), jnp.float32(-0.03))
    empty = at(0.5).replace(mask_BxT=jnp.zeros_like(at(0.5).mask_BxT))
    np.testing.assert_allclose(controller.update(state, empty)[0], 0.1)

  @pytest.mark.parametrize('hyper', [{'initial': 0.0}, {'initial': 2.0}, {'minimum': 0.5}])
  def test_bounds_out_of_order(self, hyper):
    with pytest.raises(UserError, match='give minimum <= initial <= maximum, not 0'):
      regularizers.model_based_entropy(**hyper)

  def test_holds_a_target_that_grpo_falls_through(self):
    task = functools.partial(fork_tokens.make, num_prompts=8, vocab_size=16)
    how = {'tx': optax.sgd(10.0), 'num_steps': 60, 'group_size': 16}

    def final(line: str) -> np.ndarray:
      run = jax.jit(lambda key: scanned.run(task, key, objective=compose.objective(line), **how))
      return np.asarray(run(jax.random.key(0))['exact/entropy_all'])[-15:]

    held = final('grpo + model_based_entropy(target=1.4)')
    free = final('grpo')
    assert np.abs(held - 1.4).mean() < 0.05 < np.abs(free - 1.4).mean()

  def test_scales_any_regularizer(self):
    controller = model_based.model_based_controller(target=1.0, initial=0.1)
    steered = transform.controlled(regularizers.entropy_bonus(coef=2.0, name='bonus'), controller)
    batch = at(1.0)
    planned, state, _ = steered.plan(steered.init(batch), batch)
    ledger = {'regularizer_bonus': jnp.float32(0.02), 'measured': jnp.float32(-0.03)}
    assert steered.observe is not None
    np.testing.assert_allclose(steered.observe(state, ledger)['controller']['response'], 0.2, rtol=1e-6)
    np.testing.assert_allclose(planned['scale'], 0.1)
