"""Arbitrary entropy: the controller, the rows that are replaced, the theory behind the temperatures, and a controlled run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.data import fork_tokens, tabular_task
from entropy_jax.measures import dynamics, policy
from entropy_jax.methods import advantages, surrogates
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.methods.selection import arbitrary_entropy as aepo
from entropy_jax.models.tabular import TABLE
from entropy_jax.objective import chain
from entropy_jax.rollout import batch as batches
from entropy_jax.rollout import generate, score
from entropy_jax.training import scanned, step
from entropy_jax.training import state as states
from entropy_jax.types import UserError
from tests import helpers

BATCH, EXTRA = (helpers.token_batch(seed=seed).replace(imitated_B=None) for seed in (0, 1))
EXTRA = EXTRA.replace(sequence_B=EXTRA.sequence_B + 1000)
ADVANTAGE = jnp.array([-0.3, 0.9, 0.05, 1.2, 0.0, 0.0501, -1.0, 0.4])  # rows 1, 3, 5 and 7 exceed .05
replace = jax.jit(aepo.replace_rows, static_argnames=('target', 'most', 'above'))


class TestNextTemperature:
  def test_at_the_target_it_heats(self):
    got = [float(aepo.next_temperature(jnp.float32(h), target=0.75)) for h in (0.0, 0.75, 0.7501)]
    np.testing.assert_allclose(got, [1.2, 1.2, 0.8])

  def test_initial_estimate_heats(self):
    assert float(aepo.next_temperature(aepo.INITIAL_ENTROPY)) == pytest.approx(1.2)

  @pytest.mark.parametrize('kwargs', [{'high': 0.9}, {'low': 1.1}, {'low': 0.0}, {'target': -1.0}])
  def test_refuses(self, kwargs):
    with pytest.raises(UserError, match=f'arbitrary_entropy: {next(iter(kwargs))}='):
      aepo.next_temperature(0.5, **kwargs)


class TestNumImitated:
  @pytest.mark.parametrize(
    ('kept', 'entropy', 'want'),
    [(7, 0.5, 7), (7, 0.51, 3), (100, 0.1, 60), (100, 0.9, 30), (1, 0.9, 0), (0, 0.1, 0)],
  )
  def test_cut_then_halved(self, kept, entropy, want):
    assert int(aepo.num_imitated(jnp.int32(kept), entropy)) == want


class TestReplaceRows:
  def test_kept_rows_stand_first(self):
    batch, metrics = replace(BATCH, EXTRA, ADVANTAGE, 0.4)
    np.testing.assert_array_equal(batch.imitated_B, [True] * 4 + [False] * 4)
    for name in ('tokens_BxN', 'token_mask_BxN', 'mask_BxT', 'reward_B', 'old_logp_BxT', 'sequence_B', 'segment_BxT'):
      want = np.concatenate([np.asarray(getattr(EXTRA, name))[[1, 3, 5, 7]], np.asarray(getattr(BATCH, name))[4:]])
      np.testing.assert_array_equal(getattr(batch, name), want, err_msg=name)
    assert (float(metrics['num_kept']), float(metrics['num_imitated'])) == (4.0, 4.0)
    np.testing.assert_allclose(metrics['entropy_error'], -0.1, atol=1e-6)

  def test_above_the_target_half_as_many(self):
    batch, _ = replace(BATCH, EXTRA, ADVANTAGE, 0.6)
    np.testing.assert_array_equal(batch.imitated_B, [True] * 2 + [False] * 6)
    np.testing.assert_array_equal(batch.tokens_BxN[:2], EXTRA.tokens_BxN[jnp.array([1, 3])])

  def test_at_most(self):
    batch, metrics = replace(BATCH, EXTRA, ADVANTAGE, 0.6, most=3)
    assert int(batch.imitated_B.sum()) == 1 and float(metrics['num_kept']) == 4.0  # min(3, 4) // 2

  def test_advantage_of_imitated_rows_is_one(self):
    batch, _ = replace(BATCH, EXTRA, ADVANTAGE, 0.4)
    want = np.where(batch.imitated_B[:, None], np.asarray(batch.mask_BxT, np.float32), BATCH.advantage_BxT)
    np.testing.assert_array_equal(batch.advantage_BxT, want)
    batch, _ = replace(BATCH.replace(advantage_BxT=None), EXTRA, ADVANTAGE, 0.4)
    assert batch.advantage_BxT is None

  def test_groups_of_their_own(self):
    batch, _ = replace(BATCH, EXTRA, ADVANTAGE, 0.4)
    own, rest = np.asarray(batch.group_B[:4]), np.asarray(batch.group_B[4:])
    assert len(set(own)) == 4 and not set(own) & set(rest)
    np.testing.assert_array_equal(rest, BATCH.group_B[4:])

  def test_nothing_kept_is_the_batch(self):
    batch, metrics = replace(BATCH, EXTRA, jnp.full(8, 0.05), 0.4)
    assert not batch.imitated_B.any() and float(metrics['num_imitated']) == 0.0
    jax.tree.map(np.testing.assert_array_equal, batch.replace(imitated_B=None, key=None), BATCH.replace(key=None))

  def test_fewer_and_more_extra_rows_than_places(self):
    few = jax.tree.map(lambda x: x[:3] if jnp.ndim(x) else x, EXTRA)
    batch, _ = replace(BATCH, few, jnp.ones(3), 0.4)
    np.testing.assert_array_equal(batch.reward_B, np.concatenate([EXTRA.reward_B[:3], BATCH.reward_B[3:]]))
    short = jax.tree.map(lambda x: x[:2] if jnp.ndim(x) else x, BATCH)
    batch, _ = replace(short, EXTRA, ADVANTAGE, 0.4)
    np.testing.assert_array_equal(batch.reward_B, EXTRA.reward_B[jnp.array([1, 3])])
    assert batch.imitated_B.all()

  def test_garbage_in_masked_slots_stays_there(self):
    batch, _ = replace(helpers.with_garbage(BATCH), helpers.with_garbage(EXTRA), ADVANTAGE, 0.4)
    assert np.isfinite(np.asarray(batch.old_logp_BxT)[np.asarray(batch.mask_BxT)]).all()
    assert np.isfinite(np.asarray(batch.advantage_BxT)[:4]).all()

  def test_other_fields_or_lengths(self):
    with pytest.raises(UserError, match=r"do not hold the same fields \(\['value_BxT'\]\); fill them the same way"):
      aepo.replace_rows(BATCH, EXTRA.replace(value_BxT=None), ADVANTAGE, 0.4)
    with pytest.raises(UserError, match='has rows of another shape in the extra responses; pad both'):
      aepo.replace_rows(BATCH, helpers.padded(EXTRA, 2), ADVANTAGE, 0.4)

  def test_ratio_starts_at_one_once_the_rows_are_scored_again(self):
    # a real rollout: old log-probs of hot rows are not those of temperature 1 until the caller scores them
    task = fork_tokens.make(jax.random.key(1), num_prompts=4, num_tokens=4, vocab_size=8)
    model, prompt = scanned.policy_of(task), jnp.arange(4, dtype=jnp.int32)[:, None]

    @jax.jit
    def run():
      params = model.init(jax.random.key(0))
      made = []
      for key, temperature in ((1, 1.0), (2, aepo.next_temperature(0.0))):
        ones = jnp.ones_like(prompt, bool)
        out = generate.generate(model, params, prompt, ones, jax.random.key(key), num_tokens=4, temperature=temperature)
        made.append(batches.token_batch(prompt, ones, out, prompt[:, 0], jnp.ones(4), jax.random.key(0)))
      batch, _ = aepo.replace_rows(made[0], made[1], jnp.array([0.0, 1.0, 1.0, 0.0]), 0.0)
      return batch, score.score(model, params, batch.tokens_BxN, batch.token_mask_BxN, 4)

    batch, scores = run()
    gap = np.abs(np.asarray(batch.old_logp_BxT - scores.logp_BxT)).max(axis=1)
    assert np.all(gap[:2] > 1e-2) and np.all(gap[2:] < 1e-5)


class TestTheory:
  """With R = 1 the expected logit step is q - p, q = softmax(z / T): dH = -eta sum_j S_j (q_j - p_j) has the sign of T - 1."""

  @staticmethod
  def change(logits, temperature):
    step = jax.nn.softmax(logits / temperature, axis=-1) - jax.nn.softmax(logits, axis=-1)
    return -jnp.sum(jnp.where(jnp.isfinite(logits), dynamics.entropy_discriminator(logits) * step, 0.0), axis=-1)

  def test_card(self):
    z = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    got = [float(self.change(z, t)) for t in (0.8, 1.2, 1.0)]
    np.testing.assert_allclose(got, [-0.0109511, 0.0074741, 0.0], atol=5e-8)

  def test_sign_in_20000_random_cases(self):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, (20_000, 11)).astype(np.float32)
    z[np.arange(11) >= rng.integers(2, 12, 20_000)[:, None]] = -np.inf  # V = 2 to 11
    low, high = (np.asarray(jax.jit(self.change)(z, t)) for t in (0.8, 1.2))
    settled = np.max(jax.nn.softmax(z, axis=-1), axis=-1) > 1 - 1e-5  # where float32 says nothing
    assert settled.mean() < 0.01
    assert np.all(low[~settled] < 0) and np.all(high[~settled] > 0)


class TestControl:
  """The whole loop on the fork task, with advantages of the whole groups, as released."""

  @staticmethod
  @functools.partial(jax.jit, static_argnums=0)
  def run(target):
    task = fork_tokens.make(jax.random.key(7), num_prompts=8, num_tokens=4, vocab_size=16)
    model, tx = scanned.policy_of(task), optax.sgd(15.0)
    objective = chain(surrogates.ppo_clip(low=0.2, high=0.2))
    prompt, group = batches.group_prompts(jnp.arange(8)[:, None], 16)

    def rollout(params, key, num, temperature):
      ones = jnp.ones((num, 1), bool)
      out = generate.generate(model, params, prompt[:num], ones, key, num_tokens=4, temperature=temperature)
      batch = batches.token_batch(prompt[:num], ones, out, group[:num], task.reward(prompt[:num, 0], out.tokens_BxT), key)
      advantage = grpo_advantage(batch.reward_B, batch.group_B)
      return batch.replace(advantage_BxT=jnp.broadcast_to(advantage[:, None], batch.mask_BxT.shape)), advantage

    def one(carry, key):
      state, entropy = carry
      batch, _ = rollout(state.params, key, 128, 1.0)
      hot, advantage = rollout(state.params, jax.random.fold_in(key, 1), 32, aepo.next_temperature(entropy, target=target))
      batch, _ = aepo.replace_rows(batch, hot, advantage, entropy, target=target, most=32)
      scores = score.score(model, state.params, batch.tokens_BxN, batch.token_mask_BxN, 4)
      batch = batch.replace(old_logp_BxT=scores.logp_BxT, old_entropy_BxT=scores.entropy_BxT, imitated_B=None)
      entropy = policy.monte_carlo_entropy(batch.old_logp_BxT, batch.mask_BxT).compute()
      state, _ = step.learn(state, batch, objective=objective, policy=model, tx=tx, num_epochs=2)
      return (state, entropy), tabular_task.entropy(task, state.params[TABLE])['all']

    params = model.init(jax.random.key(0))
    state = states.create(params, tx, objective, BATCH)
    return jax.lax.scan(one, (state, jnp.float32(aepo.INITIAL_ENTROPY)), jax.random.split(jax.random.key(0), 100))[1]

  def test_mean_entropy_of_the_end_rises_with_the_target(self):
    low, high = (np.asarray(self.run(target))[-20:] for target in (0.4, 1.2))
    assert low.mean() + 0.05 < high.mean()
    assert low.std() < 0.05 and high.std() < 0.05


class TestWithTheImitationAdvantage:
  def test_imitated_rows_get_one_and_the_rest_their_own_groups(self):
    batch, _ = replace(BATCH, EXTRA, ADVANTAGE, 0.4)
    objective = chain(advantages.grpo(), advantages.imitate(), surrogates.ppo_clip())
    prepared, _, _ = objective.prepare(objective.init(batch), batch)
    imitated = np.asarray(prepared.advantage_BxT)[:4]
    np.testing.assert_array_equal(imitated, np.asarray(batch.mask_BxT, np.float32)[:4])
    rest = grpo_advantage((batch.reward_B + jnp.sum(batch.token_reward_BxT, axis=1, where=batch.mask_BxT))[4:], batch.group_B[4:])
    np.testing.assert_allclose(np.asarray(prepared.advantage_BxT)[4:, 0], rest, rtol=1e-5)
