"""training/mixers.py and the hook of training/scanned.py that they go into: which rows, which prompts, which temperature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import compose
from entropy_jax.data import fork_tokens
from entropy_jax.training import mixers, scanned
from entropy_jax.types import UserError
from tests import helpers

NUM_PROMPTS, GROUP = 8, 8
TASK = functools.partial(fork_tokens.make, num_prompts=NUM_PROMPTS, num_tokens=4, vocab_size=8)
OPTIONS = {'xla_backend_optimization_level': 0}


def train(mixer: scanned.Mixer, *, line: str = 'grpo', num_steps: int = 4, rate: float = 10.0):
  how = {'objective': compose.objective(line), 'tx': optax.sgd(rate), 'num_steps': num_steps, 'group_size': GROUP}
  return jax.device_get(jax.jit(lambda key: scanned.train(TASK, key, mixer=mixer, **how), compiler_options=OPTIONS)(jax.random.key(0)))


class TestByPrompt:
  def test_whole_groups_move(self):
    batch = helpers.token_batch().replace(group_B=jnp.repeat(jnp.arange(4, dtype=jnp.int32), 2))
    moved = mixers._by_prompt(batch, jnp.array([2, 0, 3, 1]))
    np.testing.assert_array_equal(moved.group_B, [2, 2, 0, 0, 3, 3, 1, 1])
    np.testing.assert_array_equal(moved.tokens_BxN, np.asarray(batch.tokens_BxN)[[4, 5, 0, 1, 6, 7, 2, 3]])
    assert moved.key is batch.key


class TestMixer:
  def test_a_mixer_that_only_looks_changes_no_number(self):
    """Its state counts the rollouts, and what it samples and scores besides draws from no other key."""

    def mix(state, batch, sampler):
      colder = sampler.sample(jnp.array([5, 1]), jax.random.key(3), jnp.float32(0.01))
      assert colder.tokens_BxN.shape == (2 * GROUP, 5) and sampler.num_prompts == NUM_PROMPTS
      same = sampler.score(batch)
      drift = jnp.max(jnp.abs(same.old_logp_BxT - batch.old_logp_BxT))
      first_is_five = jnp.all(colder.tokens_BxN[:, 0] == jnp.repeat(jnp.array([5, 1]), GROUP))
      return state + 1, batch, {'count': state, 'drift': drift, 'entropy': jnp.mean(colder.old_entropy_BxT), 'prompts': first_is_five}

    plain, tables = train(scanned.NO_MIXER)
    looked, same_tables = train(scanned.Mixer(lambda: jnp.float32(0.0), mix))
    np.testing.assert_allclose(same_tables, tables, atol=1e-5)
    np.testing.assert_array_equal(looked['count'], [0, 1, 2, 3])
    assert looked['drift'].max() < 1e-5  # an ordinary rollout is the policy's own at temperature 1
    assert looked['entropy'].max() < 0.05 and looked['prompts'].all()
    assert set(plain) == set(looked) - {'count', 'drift', 'entropy', 'prompts'}


class TestArbitraryEntropy:
  @pytest.mark.parametrize('wrong', [{'target': -0.1}, {'high': 0.5}, {'low': 1.5}, {'most': -1}, {'share': 0.0}])
  def test_refuses(self, wrong):
    with pytest.raises(UserError, match=f'arbitrary_entropy: {next(iter(wrong))}='):
      mixers.arbitrary_entropy(**{'target': 0.5, **wrong})

  def test_one_rollout_against_its_parts(self):
    """Rows, advantages and the next state of one call, with responses whose rewards are 0 and 1; targets may be traced."""
    batch = helpers.token_batch().replace(group_B=jnp.repeat(jnp.arange(4, dtype=jnp.int32), 2), imitated_B=None, advantage_BxT=None)
    asked = {}

    def sample(prompt_M, key, temperature):
      asked['prompts'] = prompt_M
      part = jax.tree.map(lambda x: x[: 2 * prompt_M.shape[0]], batch.replace(key=None)).replace(key=key)
      return part.replace(reward_B=jnp.array([0.0, 1.0]), tokens_BxN=jnp.full_like(part.tokens_BxN, 7))

    sampler = scanned.Sampler(4, sample, lambda b: b.replace(old_logp_BxT=jnp.full_like(b.old_logp_BxT, -0.25)))

    def mix(target, entropy):
      found, mixed, metrics = mixers.arbitrary_entropy(target=target, high=1.4, low=0.6).mix(entropy, batch, sampler)
      return found, mixed.imitated_B, mixed.tokens_BxN, metrics

    # At once: nothing seen yet, above the target .5, below the target .9.
    state = jnp.stack([mixers.arbitrary_entropy(target=0.5).init(), jnp.float32(0.8), jnp.float32(0.8)])
    targets = jnp.array([0.5, 0.5, 0.9])
    entropy, imitated, tokens, metrics = jax.jit(jax.vmap(mix), compiler_options=OPTIONS)(targets, state)
    assert asked['prompts'].shape == (1,)  # a quarter of four prompts
    np.testing.assert_allclose(metrics['rollout/temperature'], [1.4, 0.6, 1.4], rtol=1e-6)
    # Of rewards 0 and 1 the second exceeds the mean: it is the one row to be put first, and above the target 1 // 2 = 0 rows are.
    np.testing.assert_array_equal(metrics['rollout/num_imitated'], [1.0, 0.0, 1.0])
    np.testing.assert_array_equal(imitated, [[True] + [False] * 7, [False] * 8, [True] + [False] * 7])
    assert np.all(np.asarray(tokens[0, 0]) == 7) and not np.all(np.asarray(tokens[1, 0]) == 7)
    np.testing.assert_allclose(entropy, 0.25)
