"""Tests of entropy_jax.transform."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax import transform
from entropy_jax.types import Room, RunFacts, Terms, TokenBatch, Transform, UserError, VocabStat
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

FACTS = RunFacts(updates_per_rollout=4, group_size=8, num_tokens=1000, aggregate='token_mean')


def empty_terms(batch: TokenBatch) -> Terms:
  zero_BxT = jnp.zeros(batch.mask_BxT.shape, jnp.float32)
  return Terms(batch.reward_B, zero_BxT + 0.5, zero_BxT, zero_BxT + 1.0, zero_BxT, zero_BxT)


def applied(t: Transform, batch: TokenBatch) -> Terms:
  planned, _, _ = t.plan(t.init(batch), batch)
  return t.apply(planned, batch, empty_terms(batch))


def read(name: str, batch: TokenBatch, **lift: object) -> jax.Array:
  """What a method's positional parameter of this name gets, through a surrogate that returns it."""

  def function(x):
    found.append(x)
    return jnp.zeros(batch.mask_BxT.shape, jnp.float32)

  found: list[jax.Array] = []
  function.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)])
  applied(transform.surrogate('probe', function, **lift)(), batch)
  return found[0]


class TestNearest:
  def test_names_the_closest(self):
    assert transform.nearest('klcov', ['clip_cov', 'kl_cov']) == " Did you mean 'kl_cov'?"

  def test_is_silent_when_nothing_is_close(self):
    assert transform.nearest('zzz', ['clip_cov', 'kl_cov']) == ''


class TestCheckRange:
  @pytest.mark.parametrize(
    'value, allowed',
    [(0, '[0, 1]'), (1, '[0, 1]'), (0.5, '(0, 1)'), (1e9, '[0, inf)'), (float('inf'), '(0, inf]'), (-2, '[-inf, inf]'), ('a', 'a | b')],
  )
  def test_inside(self, value, allowed: str):
    transform.check_range('method', 'key', value, allowed)

  @pytest.mark.parametrize(
    'value, allowed',
    [(0, '(0, 1]'), (1, '[0, 1)'), (-1e-9, '[0, 1]'), (1.1, '[0, 1]'), (float('inf'), '[0, inf)'), (float('-inf'), '(-inf, 0]')],
  )
  def test_outside(self, value, allowed: str):
    with pytest.raises(UserError) as error:
      transform.check_range('method', 'key', value, allowed)
    assert str(error.value) == f'method: key={value!r} is outside {allowed}; give a value in that interval.'

  @pytest.mark.parametrize('value', [True, '0.5', None, float('nan'), [0.5]])
  def test_not_a_number(self, value):
    with pytest.raises(UserError, match=r'^method: key=.* is not a number; give one in \[0, 1\]\.$'):
      transform.check_range('method', 'key', value, '[0, 1]')

  def test_names(self):
    with pytest.raises(UserError) as error:
      transform.check_range('kl', 'estimator', 'k33', 'k1 | k2 | k3')
    assert str(error.value).startswith("kl: estimator='k33' is not one of k1, k2, k3. Did you mean 'k3'?")

  def test_a_traced_value_passes_and_the_others_are_still_checked(self):
    assert not transform.is_traced(0.5) and not transform.is_traced(jnp.float32(0.5))

    def build(value):
      assert transform.is_traced(value)
      transform.check_range('method', 'key', value, '[0, 1]')
      with pytest.raises(UserError, match=r'method: other=2\.0 is outside'):
        transform.check_range('method', 'other', 2.0, '[0, 1]')
      return value

    assert jax.jit(build)(7.0) == 7.0


class TestReading:
  """What the positional parameters of a method are bound to, by name."""

  def setup_method(self):
    self.batch = helpers.token_batch(stats=('varentropy',), old_stats=('collision',))

  def test_fields(self):
    for name in ('logp_BxT', 'entropy_BxT', 'old_entropy_BxT', 'mask_BxT', 'ref_logp_BxT', 'value_BxT', 'group_B', 'truncated_B'):
      np.testing.assert_array_equal(read(name, self.batch), getattr(self.batch, name))

  def test_log_ratio(self):
    np.testing.assert_array_equal(read('log_ratio_BxT', self.batch), self.batch.logp_BxT - self.batch.old_logp_BxT)

  def test_length_counts_valid_tokens(self):
    assert read('length_B', self.batch).tolist() == [int(row.sum()) for row in np.asarray(self.batch.mask_BxT)]

  def test_return_is_outcome_plus_dense_rewards(self):
    dense = np.where(self.batch.mask_BxT, self.batch.token_reward_BxT, 0).sum(1)
    np.testing.assert_allclose(read('return_B', self.batch), np.asarray(self.batch.reward_B) + dense, rtol=1e-6)
    np.testing.assert_array_equal(read('return_B', self.batch.replace(token_reward_BxT=None)), self.batch.reward_B)

  def test_reward_is_dense_with_the_outcome_on_the_last_valid_token(self):
    mask_BxT = jnp.array([[True, False, True, False], [False, False, False, False]])
    batch = helpers.token_batch(B=2, T=4).replace(mask_BxT=mask_BxT, reward_B=jnp.array([5.0, 7.0]), token_reward_BxT=None)
    # The empty row has no last token, so its outcome stands nowhere.
    assert read('reward_BxT', batch).tolist() == [[0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    dense = batch.replace(token_reward_BxT=jnp.ones((2, 4), jnp.float32))
    assert read('reward_BxT', dense)[0].tolist() == [1.0, 1.0, 6.0, 1.0]

  def test_statistics_of_both_policies(self):
    np.testing.assert_array_equal(read('varentropy_BxT', self.batch), self.batch.stats['varentropy'])
    np.testing.assert_array_equal(read('old_collision_BxT', self.batch), self.batch.old_stats['collision'])

  def test_planned_values_come_first(self):
    def plan(logp_BxT):
      return {'entropy_BxT': 2.0 * logp_BxT}, {}

    np.testing.assert_array_equal(read('entropy_BxT', self.batch, plan=plan), 2 * self.batch.logp_BxT)

  def test_each_method_has_its_own_key(self):
    def noise(key, mask_BxT):
      return jax.random.uniform(key, mask_BxT.shape)

    method = transform.weight('noise', noise)
    weights = [applied(method(name=name), self.batch).weight_BxT for name in ('noise', 'noise', 'other')]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])

  def test_absent_identity_is_left_to_the_method(self):
    assert read('sequence_B', self.batch.replace(sequence_B=None)) is None

  def test_what_is_missing_is_named_with_its_mend(self):
    with pytest.raises(UserError) as error:
      read('ref_logp_BxT', self.batch.replace(ref_logp_BxT=None))
    assert str(error.value) == (
      'probe reads ref_logp_BxT, which this run does not provide: set TokenBatch.ref_logp_BxT, or leave probe out.'
    )
    with pytest.raises(UserError, match=r'^probe reads advantages, and there are none: call objective\.prepare first'):
      read('advantage_BxT', self.batch.replace(advantage_BxT=None))
    with pytest.raises(UserError, match=r"^probe reads the vocabulary statistic 'energy', which was not scored: pass objective\.stats"):
      read('energy_BxT', self.batch)


def scaled(logp_BxT, *, scale: float = 2.0, limit: float | None = None, mode: str = 'up'):
  assert mode in ('up', 'down')
  return logp_BxT * (scale if limit is None else min(scale, limit))


class TestMethod:
  """Hyper-parameters: defaults, what is refused, and with what sentence."""

  method = transform.regularizer('scaled', scaled, scale='[0, 10]', limit='(0, 1]', mode='up | down')

  def test_defaults(self):
    assert self.method.defaults() == {'scale': 2.0, 'limit': None, 'mode': 'up'}

  def test_default_and_given(self):
    batch = helpers.token_batch()
    expected = np.where(batch.mask_BxT, batch.logp_BxT, 0)
    np.testing.assert_allclose(applied(self.method(), batch).penalty_BxT, 2 * expected, rtol=1e-6)
    np.testing.assert_allclose(applied(self.method(scale=3), batch).penalty_BxT, 3 * expected, rtol=1e-6)
    np.testing.assert_allclose(applied(self.method(limit=0.5), batch).penalty_BxT, 0.5 * expected, rtol=1e-6)

  def test_none_is_off_only_where_the_default_is(self):
    self.method(limit=None)
    with pytest.raises(UserError, match=r'^scaled: scale=None is not a number'):
      self.method(scale=None)

  def test_zero_is_a_value(self):
    batch = helpers.token_batch()
    assert not np.asarray(applied(self.method(scale=0), batch).penalty_BxT).any()

  def test_unknown(self):
    with pytest.raises(UserError) as error:
      self.method(scal=1)
    assert str(error.value) == "scaled: unknown hyper-parameter 'scal'; allowed: scale, limit, mode. Did you mean 'scale'?"

  def test_out_of_range(self):
    with pytest.raises(UserError, match=r'^scaled: scale=11 is outside \[0, 10\]'):
      self.method(scale=11)
    with pytest.raises(UserError, match=r"^scaled: mode='dwn' is not one of up, down\. Did you mean 'down'"):
      self.method(mode='dwn')

  @pytest.mark.parametrize(
    ('hyper', 'sentence'),
    [
      ({'on': 1}, 'switched: on=1 is not true or false; give one of these.'),
      ({'on': 'yes'}, "switched: on='yes' is not true or false; give one of these."),
      ({'on': None}, 'switched: on=None is not true or false; give one of these.'),
      ({'scale': True}, 'switched: scale=True is not a number; give one in [-inf, inf].'),
      ({'scale': [1.0]}, 'switched: scale=[1.0] is not a number; give one in [-inf, inf].'),
      ({'scale': float('nan')}, 'switched: scale=nan is not a number; give one in [-inf, inf].'),
      ({'mode': 3}, "switched: mode=3 is not a text; give one such as 'up'."),
      ({'name': 3}, 'switched: name=3 is not a name; give a text that tells this switched from another.'),
      ({'name': ''}, "switched: name='' is not a name; give a text"),
    ],
  )
  def test_kinds_without_a_range_are_those_of_the_defaults(self, hyper, sentence):
    def switched(logp_BxT, *, on: bool = False, scale: float = 2.0, mode: str = 'up'):
      return logp_BxT

    method = transform.surrogate('switched', switched)
    method(on=True, scale=-3, mode='down')
    with pytest.raises(UserError) as error:
      method(**hyper)
    assert str(error.value).startswith(sentence)

  def test_hyper_parameters_that_do_not_go_together(self):
    def check(*, scale, limit):
      if limit is not None and limit > scale:
        raise UserError(f'scaled: limit={limit} exceeds scale={scale}.')

    method = transform.regularizer('scaled', scaled, check=check, limit='(0, 9]')
    method(scale=3.0, limit=3.0)
    with pytest.raises(UserError, match=r'^scaled: limit=2.5 exceeds scale=2.0\.$'):
      method(limit=2.5)  # against the default of the other

  def test_a_traced_hyper_parameter_gives_the_numbers_of_its_value(self):
    def check(*, scale):
      if scale < 0:
        raise UserError('scaled: negative.')

    method = transform.regularizer('scaled', scaled, check=check, scale='[0, inf)')
    batch = helpers.token_batch()

    def penalty(scale):
      return applied(method(scale=scale), batch).penalty_BxT

    np.testing.assert_allclose(jax.jit(penalty)(0.3), penalty(0.3), rtol=1e-6)
    with pytest.raises(UserError, match=r'scale=-1\.0 is outside'):
      penalty(-1.0)

  def test_reads_the_fields_that_it_names(self):
    def plan(old_logp_BxT, mask_BxT):
      return {}, {}

    method = transform.surrogate('ratio', lambda log_ratio_BxT, advantage_BxT, mine: mine, plan=plan)
    assert method.reads == {'old_logp_BxT', 'mask_BxT', 'advantage_BxT'}  # derived and planned ones are no fields

  def test_required(self):
    def needs(logp_BxT, *, target: float):
      return logp_BxT * target

    with pytest.raises(UserError) as error:
      transform.surrogate('needs', needs, target='(0, 1]')()
    assert str(error.value) == 'needs: target has no default; give target= a value in (0, 1].'

  def test_another_name_for_a_second_one(self):
    first, second = self.method(), self.method(name='again')
    assert (first.name, second.name) == ('scaled', 'again')

  def test_a_range_of_nothing_is_the_authors_mistake(self):
    with pytest.raises(AssertionError, match='scaled has no hyper-parameter'):
      transform.regularizer('scaled', scaled, factor='[0, 1]')

  def test_notes_see_the_hyper_parameters(self):
    method = transform.regularizer('scaled', scaled, notes=(lambda facts, *, hyper: f'{facts.group_size} {hyper["scale"]}',))
    assert [note(FACTS) for note in method(scale=5.0).notes] == ['8 5.0']


class TestLift:
  """What each room does with what its method returns."""

  def setup_method(self):
    self.batch = helpers.with_garbage(helpers.token_batch())
    self.mask_BxT = np.asarray(self.batch.mask_BxT)

  def test_rooms(self):
    lifts = (transform.reward, transform.advantage, transform.weight, transform.surrogate, transform.regularizer)
    assert [lift.room for lift in lifts] == sorted(Room)

  def test_a_sequence_reward_replaces(self):
    t = transform.reward('doubled', lambda reward_B: 2.0 * reward_B)()
    terms = applied(t, self.batch)
    np.testing.assert_array_equal(terms.reward_B, 2 * self.batch.reward_B)
    assert (np.asarray(terms.token_reward_BxT) == 0.5).all()

  def test_a_token_reward_adds_where_valid(self):
    t = transform.reward('dense', lambda logp_BxT: logp_BxT)()
    terms = applied(t, self.batch)
    np.testing.assert_array_equal(terms.token_reward_BxT, 0.5 + np.where(self.mask_BxT, self.batch.logp_BxT, np.float32(0)))
    np.testing.assert_array_equal(terms.reward_B, self.batch.reward_B)

  def test_an_advantage_of_sequences_stands_on_their_valid_tokens(self):
    t = transform.advantage('plain', lambda reward_B: reward_B)()
    expected = np.where(self.mask_BxT, np.asarray(self.batch.reward_B)[:, None], np.float32(0))
    np.testing.assert_array_equal(applied(t, self.batch).advantage_BxT, expected)

  def test_weights_multiply(self):
    t = transform.weight('entropic', lambda entropy_BxT: (entropy_BxT, {'seen': jnp.float32(3)}))()
    planned, _, metrics = t.plan({}, self.batch)
    terms = empty_terms(self.batch)
    once = t.apply(planned, self.batch, terms)
    twice = t.apply(planned, self.batch, once)
    expected = np.where(self.mask_BxT, self.batch.entropy_BxT, np.float32(0))
    np.testing.assert_array_equal(once.weight_BxT, expected)
    np.testing.assert_allclose(twice.weight_BxT, expected**2, rtol=1e-6)
    assert metrics == {'seen': 3}

  def test_penalties_add_and_masked_slots_stay_zero(self):
    t = transform.regularizer('level', lambda logp_BxT: logp_BxT)()
    planned, _, _ = t.plan({}, self.batch)
    once = t.apply(planned, self.batch, empty_terms(self.batch))
    twice = t.apply(planned, self.batch, once)
    expected = np.where(self.mask_BxT, self.batch.logp_BxT, np.float32(0))
    np.testing.assert_array_equal(once.penalty_BxT, expected)
    np.testing.assert_array_equal(twice.penalty_BxT, 2 * expected)

  def test_the_surrogate_is_set(self):
    t = transform.surrogate('level', lambda logp_BxT: logp_BxT)()
    terms = t.apply({}, self.batch, empty_terms(self.batch).replace(surrogate_BxT=jnp.full(self.mask_BxT.shape, 9.0)))
    np.testing.assert_array_equal(terms.surrogate_BxT, np.where(self.mask_BxT, self.batch.logp_BxT, np.float32(0)))

  def test_statistics_are_declared(self):
    stat = VocabStat('varentropy', lambda logits_xV: logits_xV[..., 0])
    assert transform.surrogate('v', lambda varentropy_BxT: varentropy_BxT, stats=(stat,))().stats == (stat,)


class TestNoteFraction:
  def test_speaks_below_one_token(self):
    note = transform.note_fraction('kl_cov', 'fraction')
    assert note(FACTS, hyper={'fraction': 1e-3}) is None
    assert note(FACTS, hyper={'fraction': 2e-4}) == (
      'kl_cov: fraction=0.0002 of at most 1000 tokens is less than one token, so every update takes one token whatever fraction is: '
      'raise fraction to at least 1/1000, or make the batch larger.'
    )


class TestNoteOnPolicy:
  def test_speaks_with_one_update(self):
    note = transform.note_on_policy('kl_cov', 'it is a no-op', 'make more updates')
    assert note(FACTS, hyper={}) is None
    assert note(FACTS._replace(updates_per_rollout=1), hyper={}) == (
      'kl_cov: with one update per rollout the ratio to the behaviour policy is 1, so it is a no-op: make more updates.'
    )


class TestScheduled:
  def test_follows_the_number_of_updates(self):
    # 1, then linearly to 0 in 4 updates: 1, .75, .5
    controller = transform.scheduled(optax.linear_schedule(1.0, 0.0, 4))
    batch, state, scales = helpers.token_batch(), controller.init(), []
    with jax.numpy_dtype_promotion('standard'):  # optax's schedules promote
      for _ in range(3):
        scale, state, metrics = controller.update(state, batch)
        scales.append(float(scale))
        assert metrics['coefficient'] == scale
    assert scales == [1.0, 0.75, 0.5] and state['num_updates'] == 3


class TestControlled:
  """A regularizer times a planned coefficient."""

  def setup_method(self):
    self.batch = helpers.token_batch()
    self.inner = transform.regularizer('level', lambda logp_BxT: logp_BxT)()

    def doubling(state, batch):
      return state, 2.0 * state, {'coefficient': state}

    self.controller = transform.Controller(lambda: jnp.float32(3), doubling)

  def test_coefficient_multiplies_and_moves(self):
    t = transform.controlled(self.inner, self.controller)
    state = t.init(self.batch)
    plain = np.asarray(applied(self.inner, self.batch).penalty_BxT)
    for coefficient in (3, 6):
      planned, moved, metrics = t.plan(state, self.batch)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, moved)
      before = empty_terms(self.batch).replace(penalty_BxT=jnp.ones(plain.shape, jnp.float32))
      np.testing.assert_allclose(t.apply(planned, self.batch, before).penalty_BxT, 1 + coefficient * plain, rtol=1e-6)
      assert metrics['coefficient'] == coefficient
      state = moved

  def test_keeps_name_room_and_notes(self):
    t = transform.controlled(self.inner, self.controller)
    assert (t.name, t.room, t.notes, t.stats) == (self.inner.name, Room.REGULARIZER, self.inner.notes, self.inner.stats)

  def test_only_a_regularizer(self):
    surrogate = transform.surrogate('level', lambda logp_BxT: logp_BxT)()
    with pytest.raises(UserError, match=r'^level: only a regularizer has a coefficient to control, and this is a surrogate\.$'):
      transform.controlled(surrogate, self.controller)

  def test_a_method_with_a_controller_takes_its_hyper_parameters(self):
    def controller(*, initial: float = 3.0) -> transform.Controller:
      return self.controller._replace(init=lambda: jnp.float32(initial))

    method = transform.regularizer('held', lambda logp_BxT: logp_BxT, controller=controller, initial='(0, inf)')
    assert method.defaults() == {'initial': 3.0}
    plain = np.asarray(applied(self.inner, self.batch).penalty_BxT)
    np.testing.assert_allclose(applied(method(initial=5), self.batch).penalty_BxT, 5 * plain, rtol=1e-6)
    with pytest.raises(UserError, match=r'^held: initial=0 is outside \(0, inf\)'):
      method(initial=0)


class TestRemember:
  """A method with a state: what it remembers reaches its functions by name."""

  def lifted(self, **more: object) -> Transform:
    def last_reward(*, start: float = 0.5) -> dict[str, jax.Array]:
      return {'last': jnp.float32(start)}

    def remember(state, reward_B, *, start: float = 0.5):
      return {'last': state['last']}, {'last': jnp.mean(reward_B)}, {'seen': state['last']}

    return transform.advantage('surprise', lambda reward_B, last: reward_B - last, init=last_reward, remember=remember, **more)()

  def test_an_advantage_sees_the_update_before(self):
    batch = helpers.token_batch()
    t = self.lifted()
    planned, state, metrics = t.plan(t.init(batch), batch)
    np.testing.assert_allclose(planned['advantage_BxT'][:, 0], batch.reward_B - 0.5)
    np.testing.assert_allclose(metrics['seen'], 0.5)
    again, _, _ = t.plan(state, batch)
    np.testing.assert_allclose(again['advantage_BxT'][:, 0], batch.reward_B - jnp.mean(batch.reward_B), rtol=1e-6)

  def test_a_regularizer_without_a_plan_is_planned_by_what_it_remembers(self):
    batch = helpers.token_batch()
    t = transform.regularizer(
      'anchored',
      lambda entropy_BxT, scale: scale * entropy_BxT,
      init=lambda *, scale=2.0: {'scale': jnp.float32(scale)},
      remember=lambda state, mask_BxT: (state, {'scale': state['scale'] + 1.0}, {}),
      scale='(0, inf)',
    )(scale=3.0)
    planned, state, _ = t.plan(t.init(batch), batch)
    assert planned == {'scale': 3.0} and state == {'scale': 4.0}
    np.testing.assert_allclose(t.apply(planned, batch, empty_terms(batch)).penalty_BxT[0, 0], 3 * batch.entropy_BxT[0, 0], rtol=1e-6)

  def test_both_or_neither(self):
    with pytest.raises(AssertionError, match='init and remember'):
      transform.weight('half', lambda mask_BxT: mask_BxT, init=dict)


class TestParametrisedStatistics:
  def test_are_read_by_the_part_before_the_at(self):
    batch = helpers.token_batch(stats=['mass@0.8', 'mass@0.5'])
    stats = {0.8: VocabStat('mass@0.8', jnp.sum), 0.5: VocabStat('mass@0.5', jnp.sum)}
    method = transform.surrogate('probe', lambda mass_BxT: mass_BxT, stats=lambda *, kept=0.8: (stats[kept],))
    for kept in (0.8, 0.5):
      t = method(kept=kept)
      assert t.stats == (stats[kept],)
      np.testing.assert_allclose(applied(t, batch).surrogate_BxT[0, 0], batch.stats[f'mass@{kept}'][0, 0])
