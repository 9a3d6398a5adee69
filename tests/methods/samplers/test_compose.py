"""Chains of samplers: each sees what the one before it left, states stay apart, and named data comes in the stated order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.methods import samplers
from entropy_jax.types import UserError

Z = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))


def kept(sampler):
  return np.flatnonzero(np.asarray(jax.jit(sampler.bind(sampler.init()))(Z))[0] > -np.inf).tolist()


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


class TestFromConfig:
  def test_names_come_in_the_stated_order(self):
    # Chained as it is written, top-p would act before top-k: three tokens, and not two.
    spec = {'top_p': {'p': 0.75}, 'top_k': {'k': 3}}
    assert kept(samplers.from_config(spec)) == [0, 1]
    assert kept(samplers.from_config([{'name': name, 'kwargs': kwargs} for name, kwargs in spec.items()])) == [0, 1, 2]

  def test_defaults_and_nothing(self):
    assert kept(samplers.from_config([{'name': 'top_h'}])) == kept(samplers.top_h()) == kept(samplers.from_config({'top_h': {}}))
    assert kept(samplers.from_config({})) == kept(samplers.from_config([])) == [0, 1, 2, 3]

  def test_the_order_of_the_table(self):
    truncations = ['top_h', 'top_k', 'top_p', 'min_p', 'typical', 'epsilon', 'eta']  # as in Hugging Face's generate
    assert list(samplers.SAMPLERS) == ['dual_temperature', 'adaptive_temperature', *truncations]
    assert all(getattr(samplers, name) is made for name, made in samplers.SAMPLERS.items())
    made = {name for name in samplers.__all__ if f'{name}_logits' in samplers.__all__} | {'adaptive_temperature'}
    assert set(samplers.SAMPLERS) == made

  @pytest.mark.parametrize(
    'spec, message',
    [
      ({'topp': {}}, "there is no 'topp'; there are dual_temperature, .*Did you mean 'top_p'?"),
      ({'top_p': 0.9}, 'top_p=0.9 is not a dict of hyper-parameters'),
      ({'top_p': {'k': 3}}, "'k' is no hyper-parameter of top_p; allowed: p."),
      ({'top_p': {'p': 2.0}}, r'top_p: p=2.0 is outside \(0, 1\]'),
      ('top_p', "'top_p' is no description of samplers"),
      (['top_p'], "'top_p' in a list is no sampler"),
      ([{'name': 'top_p', 'p': 0.9}], 'in a list is no sampler'),
    ],
  )
  def test_mistakes(self, spec, message):
    with pytest.raises(UserError, match=message):
      samplers.from_config(spec)
