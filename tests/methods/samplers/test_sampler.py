"""The interface: a bound state is a function of the logits alone, and a stateless sampler keeps its empty state; a chain
sees what is left, with states apart."""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.methods import samplers

Z = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))


def kept(sampler):
  return np.flatnonzero(np.asarray(jax.jit(sampler.bind(sampler.init()))(Z))[0] > -np.inf).tolist()


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


class TestChainSamplers:
  def test_each_sees_what_is_left(self):
    # top-p .75 of the whole keeps three tokens (.7 before the third); of the first three, .444, .333 and .222, it keeps two more (.778)
    three, seventy = samplers.top_k(k=3), samplers.top_p(p=0.75)
    assert kept(seventy) == [0, 1, 2]
    assert kept(samplers.chain_samplers(three, seventy)) == [0, 1]
    assert kept(samplers.chain_samplers(seventy, samplers.top_k(k=1))) == [0]

  def test_nothing_does_nothing(self):
    none = samplers.chain_samplers()
    np.testing.assert_array_equal(none.bind(none.init())(Z), Z)

  def test_states_stay_apart(self):
    def counter(step):
      return samplers.Sampler(lambda: jnp.float32(0), lambda z, n: z + n, lambda n, entropy, mask: n + step)

    both = samplers.chain_samplers(counter(1), samplers.top_k(k=4), counter(10))
    state = both.init()
    for _ in range(2):
      new = both.remember(state, jnp.ones((1, 1)), jnp.ones((1, 1), bool))
      assert jax.tree.structure(new) == jax.tree.structure(state)
      state = new
    np.testing.assert_allclose(both.bind(state)(Z), Z + 22, rtol=1e-6)
