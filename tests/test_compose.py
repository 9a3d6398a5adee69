"""Tests of entropy_jax.compose: one line of text makes the objective that it says, and refuses what it cannot be."""

import itertools

import pytest

from entropy_jax import catalog, compose, presets
from entropy_jax.catalog import CATALOG, ROOMS
from entropy_jax.types import UserError


class TestParse:
  def test_the_usual_stands_where_nothing_is_said(self):
    spec = compose.parse('entropy_bonus(0.01)')
    assert spec['advantages'] == [{'name': 'grpo', 'kwargs': {}}] and spec['surrogates'] == [{'name': 'ppo_clip', 'kwargs': {}}]
    assert spec['regularizers'] == [{'name': 'entropy_bonus', 'kwargs': {'coef': 0.01}}] and 'aggregate' not in spec

  def test_four_rooms_in_one_line(self):
    text = 'grpo + clip_higher + top_entropy(0.2) + kl_cov(fraction=0.02, coef=5) + aggregate(sequence_mean_token_mean)'
    spec = compose.parse(text)
    assert [m['name'] for room in ROOMS for m in spec[room]] == ['grpo', 'top_entropy', 'ppo_clip', 'kl_cov']
    assert spec['surrogates'][0]['kwargs'] == {'low': 0.2, 'high': 0.28}
    assert spec['regularizers'][0]['kwargs'] == {'fraction': 0.02, 'coef': 5}
    assert spec['aggregate'] == 'sequence_mean_token_mean'

  def test_names_stand_for_themselves_and_signs_are_numbers(self):
    assert compose.parse('kl(coef=0.1, estimator=k2)')['regularizers'][0]['kwargs'] == {'coef': 0.1, 'estimator': 'k2'}
    kwargs = compose.parse('clip_cov(cov_low=-1.5, low_quantile=None)')['weights'][0]['kwargs']
    assert kwargs == {'cov_low': -1.5, 'low_quantile': None}

  def test_a_preset_is_a_start_and_methods_take_places_in_it(self):
    spec = compose.parse('dapo + rloo + cispo(high=5.0) + top_entropy(0.2)')
    assert [m['name'] for m in spec['advantages']] == ['rloo'] and [m['name'] for m in spec['surrogates']] == ['cispo']
    assert [m['name'] for m in spec['rewards']] == ['soft_overlong'] and [m['name'] for m in spec['weights']] == ['top_entropy']
    assert presets.PRESETS['dapo'].spec['advantages'] == [{'name': 'grpo', 'kwargs': {}}]  # the preset itself is untouched

  def test_the_same_method_twice_under_two_names(self):
    spec = compose.parse("entropy_bonus(0.01) + entropy_bonus(0.02, name='second')")
    assert [m['kwargs'] for m in spec['regularizers']] == [{'coef': 0.01}, {'coef': 0.02, 'name': 'second'}]

  @pytest.mark.parametrize('name', sorted(set(presets.PRESETS) - set(CATALOG) - set(compose.SHORT)))
  def test_every_preset_by_its_name(self, name):
    spec = compose.parse(name)
    for room in ROOMS:
      assert spec[room] == [dict(m) for m in presets.PRESETS[name].spec.get(room, ())]
    assert spec.get('aggregate', 'token_mean') == presets.PRESETS[name].spec.get('aggregate', 'token_mean')

  @pytest.mark.parametrize(
    ('text', 'sentence'),
    [
      ('grpo +', "'grpo +' cannot be read; write names joined by +"),
      ('grpo - ppo_clip', "'grpo - ppo_clip' in 'grpo - ppo_clip' is not a method"),
      ('grpo + 3', "'3' in 'grpo + 3' is not a method"),
      ('__import__("os").system("x")', 'is not a method'),
      ('top_entropi(0.2)', "there is no method or preset 'top_entropi'. Did you mean 'top_entropy'?"),
      ('top_entropy(0.2, 1, 2, 3, 4)', 'top_entropy takes'),
      ('top_entropy(0.2, keep=0.3)', "top_entropy gets 'keep' twice"),
      ('top_entropy(keep=[1])', "'[1]' in top_entropy(...) is no number"),
      ('top_entropy(keep=open("x"))', 'is no number'),
      ('grpo + rloo', 'grpo and rloo in'),
      ('ppo_clip + gspo', 'ppo_clip and gspo in'),
      ('dapo + kl_cov_7b', 'are both whole presets; start from one'),
      ('dapo(high=3)', 'the preset dapo takes no hyper-parameters'),
      ('grpo + aggregate(tokenmean)', "aggregate='tokenmean' is not one of"),
    ],
  )
  def test_mistakes(self, text, sentence):
    with pytest.raises(UserError) as raised:
      compose.parse(text)
    assert sentence in str(raised.value) and '\n' not in str(raised.value)

  def test_unknown_and_wrong_hyper_parameters_are_refused_when_built(self):
    with pytest.raises(UserError, match='top_entropy: keep=2 is outside'):
      compose.objective('top_entropy(2)')
    with pytest.raises(UserError, match=r"unknown hyper-parameter 'keeep'.*Did you mean 'keep'"):
      compose.objective('top_entropy(keeep=0.2)')


class TestLine:
  @pytest.mark.parametrize('name', sorted(CATALOG))
  def test_reads_back(self, name):
    entry = CATALOG[name]
    spec = {room: [] for room in ROOMS} | {entry.room: [{'name': name, 'kwargs': dict(entry.example)}]}
    text = compose.line(spec)
    back = compose.parse(text)
    assert {'name': name, 'kwargs': dict(entry.example)} in back[entry.room]
    assert compose.line(back) == compose.line(compose.parse(compose.line(back)))

  def test_aggregate_and_constant(self):
    spec = compose.parse('grpo + aggregate(token_sum_over_capacity, 32)')
    assert spec['constant'] == 32 and compose.parse(compose.line(spec)) == spec


class TestPairs:
  def test_any_two_methods_build_or_are_refused_in_one_sentence(self):
    built = refused = 0
    for one, two in itertools.combinations(sorted(CATALOG), 2):
      spec = {}
      for name in (one, two):
        spec.setdefault(CATALOG[name].room, []).append({'name': name, 'kwargs': dict(CATALOG[name].example)})
      text = compose.line({room: spec.get(room, []) for room in ROOMS})
      try:
        objective = compose.objective(text)
      except UserError as error:
        refused += 1
        same_place = CATALOG[one].room == CATALOG[two].room in ('surrogates', 'advantages')
        assert same_place or 'statistic' in str(error) or 'aggregate' in str(error), f'{text}: {error}'
        assert '\n' not in str(error) and (one in str(error) or two in str(error))
      else:
        built += 1
        assert {one, two} <= {t.name for t in objective.transforms}
        assert catalog.build(compose.parse(text)).stats == objective.stats
    assert built > 3 * refused > 0
