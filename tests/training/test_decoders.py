"""A decoder on a tabular task: its tokens and logits, the entropy change it reports, and that a short run learns and repeats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from entropy_jax import catalog
from entropy_jax.data import mod_sum
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.rollout import generate, score
from entropy_jax.training import decoders, scanned
from entropy_jax.types import UserError

CONFIG = DecoderConfig(
  vocab_size=decoders.vocab_size(4, 3), width=8, num_layers=1, num_heads=2, mlp_width=8, max_length=4, linear='sigma_reparam',
  tie_embeddings=False,
)  # fmt: skip
POLICY = decoders.decoder_policy(CONFIG, 3)
MAKE = functools.partial(mod_sum.make, num_prompts=4, num_tokens=3, vocab_size=3)


@pytest.fixture(scope='module')
def params():
  return jax.jit(POLICY.init)(jax.random.key(0))


class TestDecoderPolicy:
  tokens = jnp.array([[3, 0, 2, 1], [1, 2, 2, 0]])
  real = jnp.ones((2, 4), bool)

  def test_prompts_are_tokens_after_those_of_answers(self, params):
    inner = transformer_policy(CONFIG)
    want = jax.jit(inner.logits)(params, self.tokens.at[:, 0].add(3), self.real)
    got = jax.jit(POLICY.logits)(params, self.tokens, self.real)
    np.testing.assert_array_equal(got, want[..., :3])
    seen = jax.jit(POLICY.attention)(params, self.tokens, self.real).logits_LxBxHxQxK
    np.testing.assert_array_equal(seen, jax.jit(inner.attention)(params, self.tokens.at[:, 0].add(3), self.real).logits_LxBxHxQxK)

  def test_sampling_and_scoring_agree(self, params):
    prompt = jnp.repeat(jnp.arange(4), 8)[:, None]

    @jax.jit
    def both(params):
      sampled = generate.generate(POLICY, params, prompt, prompt >= 0, jax.random.key(1), num_tokens=3)
      tokens = jnp.concatenate([prompt, sampled.tokens_BxT], axis=1)
      return sampled, score.score(POLICY, params, tokens, tokens >= 0, 3)

    sampled, scores = both(params)
    assert int(sampled.tokens_BxT.max()) == 2 and float(sampled.entropy_BxT.max()) <= np.log(3) + 1e-6
    np.testing.assert_allclose(scores.logp_BxT, sampled.logp_BxT, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_BxT, sampled.entropy_BxT, rtol=1e-4, atol=1e-5)

  def test_no_token_for_a_prompt(self):
    with pytest.raises(UserError, match='vocab_size is 7: 7 answer tokens leave no token for a prompt'):
      decoders.decoder_policy(CONFIG, 7)


class TestImitate:
  def test_the_loss_is_the_divergence_from_the_table_at_the_states_visited(self, params):
    task = MAKE(jax.random.key(2))
    got = float(jax.jit(lambda params, key: decoders.imitation_loss(task, POLICY, params, key, 5))(params, jax.random.key(6)))
    of_prompt, of_tokens = jax.random.split(jax.random.key(6))
    prompt = np.asarray(jax.random.randint(of_prompt, (5,), 0, 4))
    tokens = np.asarray(jax.random.randint(of_tokens, (5, 3), 0, 3))
    read = jnp.asarray(np.concatenate([prompt[:, None], tokens[:, :2]], axis=1))
    said = scipy.special.log_softmax(np.asarray(jax.jit(POLICY.logits)(params, read, read >= 0), np.float64), axis=-1)
    total = 0.0
    for b in range(5):
      for t in range(3):
        row = scipy.special.log_softmax(np.asarray(task.table_MxTxSxV[prompt[b], t, tokens[b, :t].sum() % 3], np.float64))
        total += (np.exp(row) * (row - said[b, t])).sum()
    assert got == pytest.approx(total / 15, rel=1e-4)

  def test_it_comes_nearer_and_the_vectors_move_along(self, params):
    task = MAKE(jax.random.key(2))
    imitate = lambda params: decoders.imitate(task, POLICY, params, jax.random.key(7), tx=optax.adam(1e-2), num_steps=60, num_sequences=32)
    after, loss = jax.jit(imitate, compiler_options={'xla_backend_optimization_level': 0})(params)
    assert loss.shape == (60,) and float(loss[-5:].mean()) < 0.6 * float(loss[:5].mean())
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after['spectral'], params['spectral'])
    assert min(jax.tree.leaves(moved)) > 1e-4


class TestEntropyChange:
  def test_a_small_move_is_predicted(self, params):
    task = MAKE(jax.random.key(2))

    @jax.jit
    def change(params, size):
      batch = scanned.rollout(task, POLICY, params, jax.random.key(3), jnp.arange(4), group_size=8)
      moved = jax.tree.map(lambda x: x * (1 + size), params)
      before, after = (score.score(POLICY, p, batch.tokens_BxN, batch.token_mask_BxN, 3).entropy_BxT for p in (params, moved))
      return decoders.entropy_change(POLICY, params, moved, batch), jnp.mean(after - before)

    found, want = change(params, 0.03)
    measured, predicted = found['policy/entropy_change'], found['policy/entropy_change_predicted']
    np.testing.assert_allclose(measured, want, rtol=1e-3)
    # The error is of second order: halving the move quarters it.
    half = change(params, 0.015)[0]
    error = lambda x: abs(float(x['policy/entropy_change'] - x['policy/entropy_change_predicted']))
    assert abs(measured) > 1e-4 and error(found) < 0.2 * abs(predicted)
    assert 0.15 < error(half) / error(found) < 0.35


@pytest.fixture(scope='module')
def curves():
  """Two seeds of a decoder that starts as it is initialised."""
  objective = catalog.build({'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]})
  how = {'objective': objective, 'tx': optax.adam(1e-2), 'num_steps': 40, 'group_size': 16}
  train = lambda key: decoders.train(MAKE, lambda task: POLICY, key, **how)
  options = {'xla_backend_optimization_level': 0}
  return jax.device_get(jax.jit(jax.vmap(train), compiler_options=options)(jax.random.split(jax.random.key(4), 2)))


class TestTrain:
  def test_it_learns_and_loses_entropy(self, curves):
    assert all(x.shape == (2, 40) and np.all(np.isfinite(x)) for x in curves.values())
    late = lambda name: curves[name][:, -5:].mean(axis=1)
    assert np.all(late('rollout/reward') > curves['rollout/reward'][:, :5].mean(axis=1) + 0.2)
    assert np.all(late('policy/entropy') < 0.8 * curves['policy/entropy'][:, 0])
    assert {'attention/entropy', 'attention/layer_0/sink_rate', 'policy/covariance'} <= set(curves)

  def test_changes_are_predicted_and_add_up(self, curves):
    for predicted, measured in zip(curves['policy/entropy_change_predicted'], curves['policy/entropy_change']):
      assert np.corrcoef(predicted, measured)[0, 1] > 0.8
    # On other rollouts than those that the curve is of, so only about.
    fall = curves['policy/entropy'][:, -1] - curves['policy/entropy'][:, 0]
    np.testing.assert_allclose(curves['policy/entropy_change'][:, :-1].sum(axis=1), fall, rtol=0.5)

  def test_seeds_differ(self, curves):
    assert np.all(curves['policy/entropy'][0, :3] != curves['policy/entropy'][1, :3])
