import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.models import tabular
from entropy_jax.types import UserError

P, T, S, V = 3, 4, 6, 5


def running_sum(num_states=S):
  return tabular.tabular_policy(
    P,
    T,
    V,
    num_states=num_states,
    transition=lambda state, token: (state + token) % num_states,
    init_fn=jax.random.normal,
  )


class TestTabularPolicy:
  def test_hidden_reads_the_row_of_prompt_position_and_state(self):
    policy = running_sum()
    params = policy.init(jax.random.key(0))
    table = np.asarray(params[tabular.TABLE])
    assert table.shape == (P, T, S, V)
    tokens = np.array([[2, 4, 3, 1, 0], [0, 1, 1, 1, 4]])
    logits = jax.jit(policy.logits)(params, jnp.asarray(tokens), jnp.ones((2, 5), bool))
    # Row 0: states 0, 4, (4+3)%6=1, (1+1)%6=2. Row 1: 0, 1, 2, 3.
    for b, states in enumerate([(0, 4, 1, 2), (0, 1, 2, 3)]):
      for t, s in enumerate(states):
        np.testing.assert_array_equal(logits[b, t], table[tokens[b, 0], t, s])
    np.testing.assert_array_equal(logits[:, T], np.zeros((2, V)))

  def test_steps_equal_hidden(self):
    policy = running_sum()
    params = policy.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (7, 1 + T), 0, P)
    logits = jax.jit(policy.logits)(params, tokens, jnp.ones_like(tokens, bool))
    cache, z = policy.start(params, tokens[:, :1], jnp.ones((7, 1), bool), T)
    step = jax.jit(policy.step)
    for t in range(T):
      np.testing.assert_array_equal(z, logits[:, t])
      if t < T - 1:
        cache, z = step(params, cache, tokens[:, t + 1])

  def test_gradient_counts_visits(self):
    policy = tabular.tabular_policy(2, 2, 3)
    tokens = jnp.array([[1, 0, 2], [1, 2, 2], [0, 1, 1]])
    mask = jnp.ones((3, 3), bool)
    grad = jax.jit(jax.grad(lambda p: policy.logits(p, tokens, mask).sum()))(policy.init(jax.random.key(0)))[tabular.TABLE]
    # Prompt 1 stands in two rows, prompt 0 in one; each visit adds 1 to every entry of its row.
    np.testing.assert_array_equal(grad[0], np.ones((2, 1, 3)))
    np.testing.assert_array_equal(grad[1], 2 * np.ones((2, 1, 3)))

  def test_seeds_are_vmapped(self):
    policy = running_sum()
    params = jax.vmap(policy.init)(jax.random.split(jax.random.key(0), 3))
    tokens = jax.random.randint(jax.random.key(1), (3, 4, 1 + T), 0, P)
    mask = jnp.ones((4, 1 + T), bool)
    together = jax.jit(jax.vmap(policy.logits, in_axes=(0, 0, None)))(params, tokens, mask)
    for s in range(3):
      alone = jax.jit(policy.logits)(jax.tree.map(lambda x, s=s: x[s], params), tokens[s], mask)
      np.testing.assert_array_equal(together[s], alone)

  def test_padding_content_reaches_nothing(self):
    policy = running_sum()
    params = policy.init(jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 0, 0]])
    mask = jnp.array([[True, True, True, False, False]])
    f = jax.jit(jax.value_and_grad(lambda p, tokens: jnp.sum(jnp.sin(policy.hidden(p, tokens, mask)[:, :3]))))
    clean = f(params, tokens)
    dirty = f(params, tokens.at[:, 3:].set(-77))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)

  def test_unknown_prompt_is_seen(self):
    policy = tabular.tabular_policy(2, 2, 3)
    params = policy.init(jax.random.key(0))
    assert jnp.all(jnp.isnan(policy.logits(params, jnp.array([[2, 0]]), jnp.ones((1, 2), bool))))

  def test_starts_uniform_without_init_fn(self):
    assert not jnp.any(tabular.tabular_policy(2, 2, 3).init(jax.random.key(0))[tabular.TABLE])

  @pytest.mark.parametrize(
    'make, message',
    [
      (lambda: tabular.tabular_policy(0, 1, 2), 'num_prompts of the tabular policy is 0'),
      (lambda: tabular.tabular_policy(1, 1, 2, num_states=2), 'num_states is 2: give a transition'),
      (lambda: tabular.tabular_policy(1, 1, 2, transition=lambda s, t: s), 'num_states is 1'),
      (lambda: tabular.tabular_policy(1, 1, 2, init_fn=lambda k, s: jnp.zeros(3)).init(jax.random.key(0)), 'made shape'),
    ],
  )
  def test_bad_shapes(self, make, message):
    with pytest.raises(UserError, match=message):
      make()

  def test_bad_calls(self):
    policy = tabular.tabular_policy(2, 2, 3)
    params = policy.init(jax.random.key(0))
    ones = lambda *shape: (jnp.ones(shape, jnp.int32), jnp.ones(shape, bool))
    with pytest.raises(UserError, match='response has 3 tokens'):
      policy.hidden(params, *ones(1, 4))
    with pytest.raises(UserError, match='has 2 tokens: give one'):
      policy.start(params, *ones(1, 2), 2)
    with pytest.raises(UserError, match='table has 2 positions'):
      policy.start(params, *ones(1, 1), 3)
