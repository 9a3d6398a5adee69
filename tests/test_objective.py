"""Tests of entropy_jax.objective: the contract of DESIGN section 4."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages, regularizers, rewards, surrogates, weights
from entropy_jax.objective import Objective, chain, sanitize
from entropy_jax.ops.aggregation import AGGREGATIONS
from entropy_jax.types import Ratio, Room, RunFacts, TokenBatch, UserError, VocabStat, take_rows
from tests import helpers

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=10_000, aggregate='token_mean')


def full_chain(**options: object) -> Objective:
  return chain(
    rewards.soft_overlong(max_length=6, buffer=3),
    advantages.grpo(),
    weights.top_entropy(keep=0.3),
    surrogates.ppo_clip(low=0.2, high=0.28),
    regularizers.entropy_bonus(coef=0.05),
    regularizers.kl(coef=0.1),
    **options,
  )


def loss_of(objective: Objective, batch: TokenBatch) -> Ratio:
  """prepare, plan and loss of the first update."""
  prepared, state, _ = objective.prepare(objective.init(batch), batch)
  planned, _, _ = objective.plan(state, prepared)
  return objective.loss(planned, prepared)


def numpy_token_losses(batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
  """(loss of every token, advantage of every sequence) of `full_chain`, by loops in float64."""
  names = ('reward_B', 'logp_BxT', 'old_logp_BxT', 'ref_logp_BxT', 'entropy_BxT')
  b = {name: np.asarray(getattr(batch, name), np.float64) for name in names}
  mask, group, dense = np.asarray(batch.mask_BxT), np.asarray(batch.group_B), np.asarray(batch.token_reward_BxT, np.float64)
  B, T = mask.shape
  ret = [0.0] * B
  for i in range(B):
    length = mask[i].sum()
    ret[i] = b['reward_B'][i] - min(max(length - 3, 0) / 3, 1) + sum(dense[i, t] for t in range(T) if mask[i, t])
  adv = np.zeros(B)
  for i in range(B):
    peers = [ret[j] for j in range(B) if group[j] == group[i]]
    mean, std = (0, 1) if len(peers) == 1 else (np.mean(peers), np.std(peers, ddof=1))
    adv[i] = (ret[i] - mean) / (std + 1e-6)
  entropies = sorted((b['entropy_BxT'][i, t] for i in range(B) for t in range(T) if mask[i, t]), reverse=True)
  num_kept = int(np.ceil(0.3 * len(entropies)))
  token = np.zeros((B, T))
  for i in range(B):
    for t in range(T):
      if mask[i, t]:
        ratio = np.exp(b['logp_BxT'][i, t] - b['old_logp_BxT'][i, t])
        surrogate = min(ratio * adv[i], min(max(ratio, 0.8), 1.28) * adv[i])
        weight = len(entropies) / num_kept if b['entropy_BxT'][i, t] >= entropies[num_kept - 1] else 0.0
        d = b['logp_BxT'][i, t] - b['ref_logp_BxT'][i, t]
        token[i, t] = -weight * surrogate - 0.05 * b['entropy_BxT'][i, t] + 0.1 * (np.exp(-d) + d - 1)
  return token, adv


def numpy_aggregate(name: str, token: np.ndarray, mask: np.ndarray, constant: float) -> float:
  rows = [token[i][mask[i]] for i in range(len(mask)) if mask[i].any()]
  return {
    'token_mean': np.concatenate(rows).mean(),
    'sequence_mean_token_sum': np.mean([row.sum() for row in rows]),
    'sequence_mean_token_mean': np.mean([row.mean() for row in rows]),
    'token_sum_over_constant': token[mask].sum() / constant,
    'token_sum_over_capacity': token[mask].sum() / (len(mask) * constant),
  }[name]


class TestChain:
  @pytest.mark.parametrize('aggregate', AGGREGATIONS)
  def test_equals_a_loss_written_by_hand(self, aggregate: str):
    batch = helpers.token_batch(seed=2, B=12)
    batch = batch.replace(mask_BxT=batch.mask_BxT.at[3].set(False))
    constant = 6.0 if aggregate.startswith('token_sum_over') else None
    objective = full_chain(aggregate=aggregate, constant=constant)
    token, adv = numpy_token_losses(batch)
    assert np.count_nonzero(adv) > 8
    expected = numpy_aggregate(aggregate, token, np.asarray(batch.mask_BxT), 6.0)
    actual = jax.jit(lambda b: loss_of(objective, b).compute())(batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)

  def test_the_sign_flips_once(self):
    # A = 1 and ln pi = -2, -4 on two tokens: the mean surrogate is -3, so the loss is 3; a penalty of 10 adds 10.
    batch = helpers.token_batch(B=1, T=2).replace(mask_BxT=jnp.ones((1, 2), bool), logp_BxT=jnp.array([[-2.0, -4.0]]))
    penalty = transform.regularizer('ten', lambda logp_BxT: 0.0 * logp_BxT + 10.0)
    assert loss_of(chain(advantages.unit(), surrogates.reinforce()), batch).compute() == 3.0
    assert loss_of(chain(advantages.unit(), surrogates.reinforce(), penalty()), batch).compute() == 13.0

  def test_gradient_of_the_smallest_chain(self):
    # d(-sum A ln pi / N) / d ln pi = -A / N
    batch = helpers.token_batch()
    objective = chain(surrogates.reinforce())
    planned, _, _ = objective.plan(objective.init(batch), batch)
    gradient = jax.grad(lambda x: objective.loss(planned, batch.replace(logp_BxT=x)).compute())(batch.logp_BxT)
    mask_BxT = np.asarray(batch.mask_BxT)
    np.testing.assert_allclose(gradient, np.where(mask_BxT, -np.asarray(batch.advantage_BxT), 0) / mask_BxT.sum(), rtol=1e-6)

  def test_weights_do_not_touch_penalties(self):
    batch = helpers.token_batch()
    nothing = transform.weight('nothing', lambda logp_BxT: 0.0 * logp_BxT)
    objective = chain(nothing(), surrogates.reinforce(), regularizers.entropy_bonus(coef=1.0))
    expected = -np.asarray(batch.entropy_BxT)[np.asarray(batch.mask_BxT)].mean()
    np.testing.assert_allclose(loss_of(objective, batch).compute(), expected, rtol=1e-6)

  def test_two_of_the_same_method_told_apart(self):
    batch = helpers.token_batch()
    twice = chain(surrogates.reinforce(), regularizers.entropy_bonus(coef=0.1), regularizers.entropy_bonus(name='again', coef=0.2))
    once = chain(surrogates.reinforce(), regularizers.entropy_bonus(coef=0.3))
    np.testing.assert_allclose(loss_of(twice, batch).compute(), loss_of(once, batch).compute(), rtol=1e-6)
    assert set(twice.init(batch)) == {'reinforce', 'entropy_bonus', 'again'}

  def test_remembers_what_it_is(self):
    objective = full_chain()
    assert [t.room for t in objective.transforms] == [Room.REWARD, Room.ADVANTAGE, Room.WEIGHT, Room.SURROGATE, *[Room.REGULARIZER] * 2]
    assert objective.aggregate == 'token_mean'

  def test_collects_statistics_once(self):
    def energy(logits_xV):
      return jnp.sum(logits_xV, axis=-1)

    stat = VocabStat('energy', energy, of='behaviour')
    weight = transform.weight('cold', lambda old_energy_BxT: old_energy_BxT, stats=(stat,))
    objective = chain(advantages.optimal_token_baseline(), weight(), weight(name='colder'), surrogates.reinforce())
    assert [s.name for s in objective.stats] == ['collision_probability', 'energy']
    batch = helpers.token_batch(old_stats=('energy', 'collision_probability'))
    assert np.isfinite(loss_of(objective, batch).compute())


class TestSlices:
  """The loss of the batch is the merged loss of its slices, of any size."""

  def test_unequal_slices_merge(self):
    batch = helpers.token_batch(seed=4, B=12)
    objective = full_chain(aggregate='sequence_mean_token_mean')

    @jax.jit
    def compute(batch: TokenBatch) -> tuple[Ratio, list[Ratio]]:
      prepared, state, _ = objective.prepare(objective.init(batch), batch)
      planned, _, _ = objective.plan(state, prepared)
      slices = ((0, 1), (1, 7), (8, 4))
      parts = [objective.loss(take_rows(planned, start, size), take_rows(prepared, start, size)) for start, size in slices]
      return objective.loss(planned, prepared), parts

    whole, parts = compute(batch)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    np.testing.assert_allclose(merged.num, whole.num, rtol=1e-6)
    assert merged.den == whole.den
    mean_of_means = np.mean([p.compute() for p in parts])
    assert abs(mean_of_means - whole.compute()) > 1e-2 * abs(whole.compute())  # the mistake that Ratio prevents

  def test_what_could_not_be_sliced_is_refused(self):
    def plan(logp_BxT):
      return {'table': jnp.zeros(5)}, {}

    objective = chain(transform.surrogate('odd', lambda logp_BxT: logp_BxT, plan=plan)())
    with pytest.raises(AssertionError, match=r'odd planned table of shape \(5,\): names in _B or _BxT have 8 rows, all others are scalars'):
      objective.plan({'odd': {}}, helpers.token_batch())


class TestPrepare:
  def test_rewards_come_before_advantages(self):
    batch = helpers.token_batch()
    objective = chain(rewards.soft_overlong(max_length=6, buffer=3), advantages.dr_grpo(), surrogates.reinforce())
    prepared, _, metrics = objective.prepare(objective.init(batch), batch)
    length_B = np.asarray(batch.mask_BxT).sum(1)
    expected = np.asarray(batch.reward_B) - np.clip((length_B - 3) / 3, 0, 1)
    np.testing.assert_allclose(prepared.reward_B, expected, rtol=1e-6)
    assert set(metrics) == {'reward/soft_overlong/penalised_fraction'}
    # the last row is alone in its group: its advantage is its shaped return on every valid token
    dense = np.asarray(batch.token_reward_BxT)[-1][np.asarray(batch.mask_BxT)[-1]].sum()
    np.testing.assert_allclose(prepared.advantage_BxT[-1][batch.mask_BxT[-1]], expected[-1] + dense, rtol=1e-5)

  def test_leaves_the_policy_and_the_rest_as_they_are(self):
    batch = helpers.token_batch(stats=('a',))
    objective = full_chain()
    prepared, _, _ = objective.prepare(objective.init(batch), batch)
    same = batch.replace(reward_B=None, token_reward_BxT=None, advantage_BxT=None, key=None)
    chex.assert_trees_all_equal(prepared.replace(reward_B=None, token_reward_BxT=None, advantage_BxT=None, key=None), same)

  def test_without_an_advantage_transform_the_batch_keeps_its_own(self):
    batch = helpers.token_batch()
    objective = chain(surrogates.reinforce())
    prepared, _, _ = objective.prepare(objective.init(batch), batch)
    np.testing.assert_array_equal(prepared.advantage_BxT, np.where(batch.mask_BxT, batch.advantage_BxT, 0))

  def test_an_advantage_shaper_sees_the_estimate_before_it(self):
    batch = helpers.token_batch()
    halve = transform.advantage('halve', lambda advantage_BxT: 0.5 * advantage_BxT)
    prepared = {}
    for name, extra in (('plain', ()), ('shaped', (halve(),))):
      objective = chain(advantages.grpo(), *extra, surrogates.reinforce())
      prepared[name] = objective.prepare(objective.init(batch), batch)[0].advantage_BxT
    np.testing.assert_allclose(prepared['shaped'], 0.5 * prepared['plain'], rtol=1e-6)


class TestPlan:
  def test_metrics_are_named_by_room_and_transform(self):
    batch = helpers.token_batch()
    objective = full_chain()
    _, _, metrics = objective.plan(objective.init(batch), batch)
    assert {'weight/top_entropy/selected_fraction', 'surrogate/ppo_clip/clip_fraction', 'regularizer/kl/kl'} <= set(metrics)
    assert all(x.shape == () for x in metrics.values())

  def test_state_moves_by_name(self):
    batch = helpers.token_batch()
    objective = chain(surrogates.reinforce(), regularizers.adaptive_entropy(target=10.0, initial=0.5))
    state = objective.init(batch)
    _, moved, _ = objective.plan(state, batch)
    assert moved['reinforce'] == {}
    assert moved['adaptive_entropy']['controller']['coefficient'] == np.float32(0.505)
    assert np.isinf(state['adaptive_entropy']['controller']['last_entropy'])

  def test_carries_no_gradient(self):
    batch = helpers.token_batch()
    objective = chain(weights.sampler_importance(), surrogates.ppo_clip(), regularizers.adaptive_entropy())

    def planned_sum(logp_BxT):
      planned, _, metrics = objective.plan(objective.init(batch), batch.replace(logp_BxT=logp_BxT, old_logp_BxT=logp_BxT))
      return sum(jnp.sum(x) for x in jax.tree.leaves((planned, metrics)))

    assert not np.asarray(jax.grad(planned_sum)(batch.logp_BxT)).any()


class TestSanitize:
  def test_zeroes_masked_slots_and_keeps_the_others(self):
    clean = helpers.token_batch(stats=('a',), old_stats=('b',))
    mask_BxT = np.asarray(clean.mask_BxT)
    got = sanitize(helpers.with_garbage(clean))
    for name in ('logp_BxT', 'entropy_BxT', 'old_logp_BxT', 'ref_logp_BxT', 'value_BxT', 'advantage_BxT', 'token_reward_BxT'):
      np.testing.assert_array_equal(getattr(got, name), np.where(mask_BxT, getattr(clean, name), 0))
    np.testing.assert_array_equal(got.stats['a'], np.where(mask_BxT, clean.stats['a'], 0))
    np.testing.assert_array_equal(got.old_stats['b'], np.where(mask_BxT, clean.old_stats['b'], 0))
    np.testing.assert_array_equal(got.tokens_BxN, clean.tokens_BxN)

  def test_makes_floats_float32(self):
    got = sanitize(helpers.as_bfloat16(helpers.token_batch(stats=('a',))))
    floats = [x for x in jax.tree.leaves(got) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) > 10 and {x.dtype for x in floats} == {jnp.float32.dtype}
    assert got.group_B.dtype == jnp.int32 and got.truncated_B.dtype == bool


class TestRefusals:
  """Mistakes of composition, each with its one sentence."""

  def refused(self, *transforms, **options) -> str:
    with pytest.raises(UserError) as error:
      chain(*transforms, **options)
    assert '\n' not in str(error.value) and str(error.value).endswith(('.', '?'))
    return str(error.value)

  def test_rooms_out_of_order(self):
    assert self.refused(surrogates.reinforce(), advantages.grpo()) == (
      'objective: rooms out of order in reinforce (surrogate), grpo (advantage); '
      'the order is reward -> advantage -> weight -> surrogate -> regularizer.'
    )

  def test_no_surrogate(self):
    assert self.refused(advantages.grpo()) == 'objective: exactly one surrogate is needed, and 0 were given in grpo (advantage).'
    assert self.refused() == 'objective: exactly one surrogate is needed, and 0 were given in nothing.'

  def test_two_surrogates(self):
    assert self.refused(surrogates.reinforce(), surrogates.ppo_clip()) == (
      'objective: exactly one surrogate is needed, and 2 were given in reinforce (surrogate), ppo_clip (surrogate).'
    )

  def test_duplicate_names(self):
    message = self.refused(surrogates.reinforce(), regularizers.kl(), regularizers.kl(coef=1))
    assert message.startswith("objective: the name 'kl' stands twice in ") and message.endswith('; tell them apart with name=.')

  def test_unknown_aggregate(self):
    message = self.refused(surrogates.reinforce(), aggregate='token-mean')
    assert message.startswith("objective: aggregate='token-mean' is not one of token_mean, ")
    assert message.endswith("Did you mean 'token_mean'?")

  def test_constant(self):
    needs = self.refused(surrogates.reinforce(), aggregate='token_sum_over_capacity')
    assert needs == "objective: aggregate='token_sum_over_capacity' needs constant=, for example the largest response length."
    assert self.refused(surrogates.reinforce(), constant=3.0) == "objective: aggregate='token_mean' takes no constant."
    zero = self.refused(surrogates.reinforce(), aggregate='token_sum_over_capacity', constant=0)
    assert zero == 'objective: constant=0 is outside (0, inf); give a value in that interval.'

  def test_two_statistics_of_one_name(self):
    def asking(name):
      stat = VocabStat('energy', lambda logits_xV: logits_xV[..., 0])
      return transform.weight(name, lambda energy_BxT: energy_BxT, stats=(stat,))()

    assert self.refused(asking('first'), asking('second'), surrogates.reinforce()) == (
      "objective: two different vocabulary statistics are called 'energy'; rename the one that second asks for."
    )

  def test_plan_before_prepare(self):
    objective = chain(advantages.grpo(), surrogates.reinforce())
    batch = helpers.token_batch().replace(advantage_BxT=None)
    with pytest.raises(UserError) as error:
      objective.loss(objective.plan(objective.init(batch), batch)[0], batch)
    assert str(error.value) == (
      'reinforce reads advantages, and there are none: call objective.prepare first, or add an advantage transform.'
    )

  @pytest.mark.parametrize(
    'method, field',
    [
      (regularizers.kl(), 'ref_logp_BxT'),
      (advantages.gae(), 'value_BxT'),
      (advantages.remax(), 'baseline_reward_B'),
      (weights.drop_truncated(), 'truncated_B'),
      (weights.sampler_importance(), 'sampler_logp_BxT'),
    ],
  )
  def test_missing_optional_field(self, method, field: str):
    objective = chain(*sorted((method, surrogates.reinforce()), key=lambda t: t.room))
    batch = helpers.token_batch().replace(**{field: None})
    with pytest.raises(UserError) as error:
      jax.eval_shape(lambda b: loss_of(objective, b), batch)
    assert str(error.value) == (
      f'{method.name} reads {field}, which this run does not provide: set TokenBatch.{field}, or leave {method.name} out.'
    )

  def test_missing_statistic(self):
    objective = chain(advantages.optimal_token_baseline(), surrogates.reinforce())
    with pytest.raises(UserError, match=r"^optimal_token_baseline reads the vocabulary statistic 'collision_probability', which was not"):
      jax.eval_shape(lambda b: loss_of(objective, b), helpers.token_batch())


class TestWarnings:
  def test_none_where_all_is_well(self):
    objective = chain(advantages.grpo(), surrogates.importance(), regularizers.kl_cov())
    assert objective.warnings(FACTS) == []

  def test_kl_cov_on_policy_is_a_no_op(self):
    objective = chain(advantages.grpo(), surrogates.reinforce(), regularizers.kl_cov())
    warnings = objective.warnings(FACTS._replace(updates_per_rollout=1))
    assert len(warnings) == 1 and warnings[0].startswith('kl_cov: with one update per rollout')

  def test_knows_its_own_aggregate(self):
    facts = FACTS._replace(aggregate='sequence_mean_token_mean')  # what the caller says gives way to what the chain does
    assert 'aggregate' in chain(surrogates.gspo()).warnings(facts)[0]
    assert chain(surrogates.gspo(), aggregate='sequence_mean_token_mean').warnings(FACTS) == []

  def test_come_in_the_order_of_the_rooms(self):
    objective = chain(weights.top_entropy(), surrogates.gspo(), regularizers.kl_cov(), aggregate='token_mean')
    owners = [w.split(':')[0] for w in objective.warnings(RunFacts(1, 1, 3, 'token_mean'))]
    assert owners == sorted(owners, key=['top_entropy', 'gspo', 'kl_cov'].index) and set(owners) == {'top_entropy', 'gspo', 'kl_cov'}
