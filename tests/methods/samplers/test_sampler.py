"""The interface: a bound state is a function of the logits alone, and a stateless sampler keeps its empty state."""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.methods import samplers


class TestSampler:
  def test_bind(self):
    sampler = samplers.Sampler(lambda: jnp.float32(2), lambda z, state: state * z, lambda state, h, m: state + jnp.sum(h, where=m))
    state = sampler.init()
    np.testing.assert_array_equal(sampler.bind(state)(jnp.ones((1, 3))), [[2.0, 2.0, 2.0]])
    state = sampler.remember(state, jnp.array([[1.0, jnp.nan]]), jnp.array([[True, False]]))
    np.testing.assert_array_equal(sampler.bind(state)(jnp.ones((1, 3))), [[3.0, 3.0, 3.0]])


class TestStateless:
  def test_remembers_nothing(self):
    sampler = samplers.stateless(jnp.negative)
    state = sampler.remember(sampler.init(), jnp.ones((1, 2)), jnp.ones((1, 2), bool))
    assert jax.tree.leaves(state) == [] and jax.tree.structure(state) == jax.tree.structure(sampler.init())
    np.testing.assert_array_equal(sampler.bind(state)(jnp.array([[1.0, -2.0]])), [[-1.0, 2.0]])
