"""The train step: the same numbers for any slicing and any devices, a bad update refused, every row used once an epoch."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import catalog
from entropy_jax.data import fork_tokens
from entropy_jax.layers import spectral
from entropy_jax.models import transformer
from entropy_jax.models.tabular import TABLE
from entropy_jax.parallel import ROWS, STATE, WHOLE, make
from entropy_jax.rollout import score as scoring
from entropy_jax.rollout.batch import group_prompts, token_batch
from entropy_jax.rollout.generate import generate, given
from entropy_jax.training import scanned, state, step
from entropy_jax.types import UserError, VocabStat

# Everything that looks at the whole batch at once: global ranks, a random choice, a controller.
COMPOSED = {
  'advantages': [{'name': 'grpo'}],
  'weights': [
    {'name': 'top_entropy', 'kwargs': {'keep': 0.5}},
    {'name': 'clip_cov', 'kwargs': {'fraction': 0.1, 'low_quantile': 0.5, 'high_quantile': 1.0}},
  ],
  'surrogates': [{'name': 'ppo_clip'}],
  'regularizers': [
    {'name': 'kl_cov', 'kwargs': {'fraction': 0.1}},
    {'name': 'adaptive_entropy', 'kwargs': {'target': 3.0, 'initial': 0.1}},
  ],
}
PLAIN = {'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]}
# Not Adam, which would turn the rounding error of a gradient that is 0 into a full step.
TX = optax.sgd(1.0, momentum=0.9)


class Setting:
  """A small fork_tokens rollout: 4 prompts, 8 responses each, with some of the tokens masked as if the response had ended."""

  def __init__(self, spec):
    self.objective = catalog.build(spec)
    task = fork_tokens.make(jax.random.key(0), num_prompts=4, vocab_size=8)
    self.policy = scanned.policy_of(task)
    params = self.policy.init(jax.random.key(1))
    prompt, group = group_prompts(jnp.arange(4)[:, None], 8)
    real = jnp.ones_like(prompt, bool)

    @jax.jit
    def rollout():
      sampled = generate(self.policy, params, prompt, real, jax.random.key(2), num_tokens=6)
      length_B = jax.random.randint(jax.random.key(3), (32,), 1, 7)
      sampled = sampled.replace(mask_BxT=jnp.arange(6)[None, :] < length_B[:, None])
      reward = jax.random.bernoulli(jax.random.key(4), 0.4, (32,)).astype(jnp.float32)
      return token_batch(prompt, real, sampled, group, reward, jax.random.key(5))

    self.batch = rollout()
    self.state = jax.jit(lambda: state.create(params, TX, self.objective, self.batch))()

  def learn(self, **options):
    learn = functools.partial(step.learn, objective=self.objective, policy=self.policy, tx=TX, **options)
    return jax.jit(learn)(self.state, self.batch)


@pytest.fixture(scope='module')
def composed():
  return Setting(COMPOSED)


@pytest.fixture(scope='module')
def plain():
  return Setting(PLAIN)


class TestUpdate:
  @pytest.mark.parametrize('num_slices', [2, 8, 32])
  def test_slices_change_nothing(self, composed, num_slices):
    whole, whole_metrics = composed.learn(num_epochs=2)
    sliced, metrics = composed.learn(num_epochs=2, num_slices=num_slices)
    chex.assert_trees_all_close(sliced.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(sliced.objective_state, whole.objective_state, rtol=1e-5)

  @pytest.mark.parametrize('num_epochs', [1, 2])
  def test_slices_change_nothing_where_the_rollout_was_scored_already(self, composed, num_epochs):
    whole, whole_metrics = composed.learn(num_epochs=num_epochs)
    sliced, metrics = composed.learn(num_epochs=num_epochs, num_slices=8, on_policy=True)
    chex.assert_trees_all_close(sliced.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(sliced.objective_state, whole.objective_state, rtol=1e-5)

  @pytest.mark.parametrize('on_policy', [False, True])
  def test_only_the_first_update_plans_from_the_scores_of_the_rollout(self, plain, on_policy):
    seen = []

    def plan(objective_state, batch):
      jax.debug.callback(lambda x: seen.append(float(x)), jnp.max(jnp.where(batch.mask_BxT, jnp.abs(batch.logp_BxT), 0.0)))
      return plain.objective.plan(objective_state, batch)

    # Of a rollout that says 100 of every token, to tell its scores from those that are made again.
    said = plain.batch.replace(old_logp_BxT=jnp.full_like(plain.batch.old_logp_BxT, -100.0))
    spy = {'objective': plain.objective._replace(plan=plan), 'policy': plain.policy, 'tx': TX, 'on_policy': on_policy}
    learn = jax.jit(functools.partial(step.learn, num_slices=2, num_epochs=2, num_minibatches=2, **spy))
    jax.block_until_ready(learn(plain.state, said))
    jax.effects_barrier()
    assert [x == 100.0 for x in seen] == [on_policy, False, False, False] and max(seen[1:]) < 50

  def test_gradient_is_that_of_a_hand_written_loss(self, plain):
    # One on-policy update of plain SGD: table + lr * sum over tokens of A (onehot - p) / N, written with numpy loops.
    b = jax.device_get(plain.batch.replace(key=None))
    table = np.asarray(plain.state.params[TABLE], np.float64)
    expected, num_tokens = table.copy(), b.mask_BxT.sum()
    for i in range(32):
      same = b.reward_B[b.group_B == b.group_B[i]].astype(np.float64)
      advantage = (b.reward_B[i] - same.mean()) / (same.std(ddof=1) + 1e-6) if same.std() > 0 else 0.0
      for t in range(6):
        if b.mask_BxT[i, t]:
          prompt, token = b.tokens_BxN[i, 0], b.tokens_BxN[i, 1 + t]
          p = np.exp(table[prompt, t, 0]) / np.exp(table[prompt, t, 0]).sum()
          expected[prompt, t, 0] += 2.0 * advantage * (np.eye(8)[token] - p) / num_tokens
    start = state.create(plain.state.params, optax.sgd(2.0), plain.objective, plain.batch)
    learn = functools.partial(step.learn, objective=plain.objective, policy=plain.policy, tx=optax.sgd(2.0))
    found, _ = jax.jit(learn)(start, plain.batch)
    np.testing.assert_allclose(found.params[TABLE], expected, rtol=1e-4, atol=1e-5)

  def test_kl_cov_is_nothing_on_policy(self, plain):
    # With one update a rollout the log-ratio is 0 everywhere, and the penalty's gradient at 0 is 0; jnp.abs would push with 5.
    kl_cov = {'name': 'kl_cov', 'kwargs': {'fraction': 0.2, 'coef': 5.0}}
    found = Setting({'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'importance'}], 'regularizers': [kl_cov]})
    chex.assert_trees_all_close(found.learn()[0].params, plain.learn()[0].params, rtol=1e-6)
    # Off-policy, from the second update on, it is something.
    difference = found.learn(num_epochs=3)[0].params[TABLE] - plain.learn(num_epochs=3)[0].params[TABLE]
    assert np.abs(np.asarray(difference)).max() > 1e-4

  def test_bad_update_is_refused_and_counted(self, plain):
    bad = plain.batch.replace(reward_B=plain.batch.reward_B.at[3].set(jnp.nan))
    learn = functools.partial(step.learn, objective=plain.objective, policy=plain.policy, tx=TX)
    after, metrics = jax.jit(learn)(plain.state, bad)
    chex.assert_trees_all_equal(after.params, plain.state.params)
    chex.assert_trees_all_equal(after.opt_state, plain.state.opt_state)
    assert int(after.num_rejected) == 1 and int(after.num_updates) == 1
    assert not np.isfinite(metrics['update/loss'])

  def test_good_update_moves_and_is_not_counted_as_bad(self, plain):
    after, metrics = plain.learn()
    assert int(after.num_rejected) == 0 and np.isfinite(metrics['update/loss'])
    assert np.abs(np.asarray(after.params[TABLE] - plain.state.params[TABLE])).max() > 1e-3


class TestScoresFirst:
  def test_a_statistic_that_the_rollout_does_not_hold(self, plain):
    largest, smallest = (lambda z: jnp.max(z, axis=-1)), (lambda z: jnp.min(z, axis=-1))
    of = lambda *stats: step.scores_first(plain.objective._replace(stats=tuple(VocabStat('x', *stat) for stat in stats)))
    assert not of() and not of((largest, 'behaviour'))
    assert of((largest, 'current')) and of((largest, 'current'), (smallest, 'behaviour'))
    assert not of((largest, 'current'), (largest, 'behaviour'))


class TestLearn:
  def test_structure_never_changes(self, composed):
    after, _ = composed.learn(num_epochs=2, num_minibatches=2)
    chex.assert_trees_all_equal_structs(after, composed.state)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, composed.state)

  def test_minibatches_use_every_row_once_an_epoch(self, plain):
    seen = []

    def plan(objective_state, batch):
      jax.debug.callback(lambda rows: seen.append(rows.tolist()), batch.sequence_B)
      return plain.objective.plan(objective_state, batch)

    spy = plain.objective._replace(plan=plan)
    learn = functools.partial(step.learn, objective=spy, policy=plain.policy, tx=TX, num_epochs=2, num_minibatches=4)
    jax.block_until_ready(jax.jit(learn)(plain.state, plain.batch))
    jax.effects_barrier()
    assert [len(rows) for rows in seen] == [8] * 8
    epochs = [list(itertools.chain(*seen[:4])), list(itertools.chain(*seen[4:]))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert epochs[0] != epochs[1]

  def test_counts_every_update(self, plain):
    after, _ = plain.learn(num_epochs=3, num_minibatches=2)
    assert int(after.num_updates) == 6

  @pytest.mark.parametrize('options', [{'num_minibatches': 5}, {'num_minibatches': 0}, {'num_slices': 7}])
  def test_batch_that_does_not_divide_is_refused(self, plain, options):
    with pytest.raises(UserError, match=r'does not divide the batch of 32 sequences; use one of 1, 2, 4, 8, 16, 32'):
      plain.learn(**options)

  def test_statistics_of_the_behaviour_policy_are_scored(self, plain):
    found = Setting({'advantages': [{'name': 'optimal_token_baseline'}], 'surrogates': [{'name': 'reinforce'}]})
    after, metrics = found.learn()
    assert np.isfinite(metrics['update/loss']) and int(after.num_rejected) == 0
    # Where the batch holds them, from `generate`, they are taken as they are.
    (stat,) = found.objective.stats
    tokens = (found.batch.tokens_BxN, found.batch.token_mask_BxN, 6)
    scores = jax.jit(lambda p: scoring.score(found.policy, p, *tokens, stats=(stat,)))(found.state.params)
    found.batch = found.batch.replace(old_stats=scores.stats)
    chex.assert_trees_all_close(found.learn()[0].params, after.params, rtol=1e-6)
    found.batch = found.batch.replace(old_stats={stat.name: 0.5 * scores.stats[stat.name]})
    assert float(jnp.max(jnp.abs(found.learn()[0].params[TABLE] - after.params[TABLE]))) > 1e-4


class Reparametrised:
  """Imitation of random responses by a decoder whose maps carry a state."""

  def __init__(self):
    config = transformer.DecoderConfig(
      vocab_size=8, width=16, num_layers=1, num_heads=2, mlp_width=16, max_length=8, linear='sigma_reparam', remat=True
    )
    self.policy = transformer.transformer_policy(config)
    self.objective = catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]})
    prompt, response_BxT = jnp.split(jax.random.randint(jax.random.key(0), (32, 6), 0, 8), [2], axis=1)
    real_BxT = jnp.arange(4)[None] < 1 + jnp.arange(32)[:, None] % 4
    self.batch = token_batch(prompt, prompt >= 0, given(response_BxT, real_BxT), jnp.arange(32), jnp.ones(32), jax.random.key(5))
    self.state = jax.jit(lambda: state.create(self.policy.init(jax.random.key(1)), TX, self.objective, self.batch))()
    self.programs = {}

  def compiled(self, name, num_devices, num_slices):
    layout = make(name, num_devices)
    learn = functools.partial(step.learn, objective=self.objective, policy=self.policy, tx=TX, num_slices=num_slices)
    fn = lambda split, state, rows, key: learn(state, rows.replace(key=key, sequence_B=None), split=split)
    return layout, layout.compile(fn, takes=(STATE, ROWS, WHOLE), gives=(STATE, WHOLE))

  def learn(self, name='jit', num_devices=1, num_slices=1, params=None):
    key = (name, num_devices, num_slices)
    if key not in self.programs:
      self.programs[key] = self.compiled(*key)
    layout, compiled = self.programs[key]
    rows = layout.rows(jax.tree.map(np.asarray, self.batch.replace(key=None)))
    start = self.state if params is None else self.state.replace(params=params)
    return jax.device_get(compiled(layout.build(lambda: start), rows, self.batch.key))


@pytest.fixture(scope='module')
def reparametrised():
  found = Reparametrised()
  return found, found.learn()


class TestState:
  """The vectors of reparametrised maps move by one step an update, whatever an update is made of."""

  def test_one_step_with_the_new_kernels(self, reparametrised):
    setting, (after, _) = reparametrised
    want = spectral.advance(after.params['params'], setting.state.params['spectral'])
    chex.assert_trees_all_close(after.params['spectral'], want, atol=1e-6)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params['spectral'], setting.state.params['spectral'])
    assert min(jax.tree.leaves(moved)) > 1e-5

  @pytest.mark.parametrize('layout', [('jit', 1, 4), ('pmap', 8, 1), ('pmap', 8, 4), ('fsdp', 8, 4)], ids=str)
  def test_slices_and_devices_change_nothing(self, reparametrised, layout):
    setting, (whole, whole_metrics) = reparametrised
    cut, metrics = setting.learn(*layout)
    chex.assert_trees_all_close(cut.params, whole.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, whole_metrics, rtol=1e-4, atol=1e-6)

  def test_a_refused_update_makes_none(self, reparametrised):
    setting, _ = reparametrised
    params = setting.state.params
    # Kernels of another model, so that a step would move the vectors, and a loss that is not finite.
    kernels = jax.tree.map(lambda x: jnp.flip(x, 0) if x.ndim > 1 else x, params['params'])
    params = {**params, 'params': {**kernels, 'embed': kernels['embed'].at[0].set(jnp.nan)}}
    after, _ = setting.learn(params=params)
    assert int(after.num_rejected) == 1
    chex.assert_trees_all_equal(after.params, jax.device_get(params))
    moved = jax.jit(setting.policy.advance)(params)['spectral']
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(params['spectral']), strict=True))
