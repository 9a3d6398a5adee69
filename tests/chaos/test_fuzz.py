"""chaos/fuzz.py: 1,000 wrong configs of every kind are refused in one sentence before anything compiles, and no right one is."""

import collections
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import entropy_mechanism as config_file
from entropy_jax import catalog, presets
from entropy_jax.chaos import fuzz
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import entropy_mechanism

ROOT = pathlib.Path(__file__).resolve().parents[2]


def check(argv):
  config, _ = app.parse(argv)
  entropy_mechanism.validate(config)


@pytest.fixture(scope='module')
def bases():
  found = []
  for variant in config_file.VARIANTS:
    argument = f'{ROOT / "configs" / "entropy_mechanism.py"}' + (f':{variant}' if variant else '')
    config, _ = app.parse(['p', f'--config={argument}', '--workdir=runs'])
    found.append(fuzz.Base(argument, app.resolve(config), config_file.RANGES, entropy_mechanism.ABSENT))
  return found


@pytest.fixture(scope='module')
def cases(bases):
  return fuzz.generate(11, bases, num_cases=1000)


class TestGenerate:
  def test_kinds_are_even_and_no_two_cases_alike(self, cases):
    assert collections.Counter(case.kind for case in cases) == dict.fromkeys(fuzz.KINDS, 200)
    assert len({json.dumps([case.arguments, case.config], sort_keys=True) for case in cases}) == 1000

  def test_seed_decides(self, bases, cases):
    # repr, because NaN among the values is not equal to itself
    assert repr(fuzz.generate(11, bases, num_cases=20)) == repr(cases[:20])
    assert repr(fuzz.generate(12, bases, num_cases=20)) != repr(cases[:20])

  def test_reaches_most_keys_and_methods(self, bases, cases):
    """Every key with a range of its own is broken somewhere, and nearly every method is put into some objective."""
    broken = {case.key.split('.')[-1] for case in cases}
    named = {pattern.split('.')[-1] for pattern in config_file.RANGES} - {'*', 'model', 'objective'}
    assert len(named - broken) <= 2, named - broken
    hyper = {key for entry in catalog.CATALOG.values() for key in entry.factory.ranges}
    assert len(hyper - broken) <= len(hyper) // 2, hyper - broken  # 200 cases of a kind for 122 hyper-parameters and as many keys
    written = json.dumps([case.config for case in cases if case.config is not None])
    unwritten = {name for name in catalog.CATALOG if f'"{name}"' not in written}
    assert len(unwritten) <= len(catalog.CATALOG) // 10, unwritten

  def test_says_when_a_base_has_too_few_mistakes(self):
    base = fuzz.Base('x.py', {'on': True}, {'on': 'bool'})
    with pytest.raises(ValueError, match='do not have 100 different mistakes'):
      fuzz.generate(0, [base], num_cases=100)


class TestRun:
  def test_all_wrong_configs_are_refused_before_compilation(self, cases, tmp_path):
    result = fuzz.run(cases, check, tmp_path)
    assert result.slipped == [] and result.compilations == 0
    assert result.refused == dict.fromkeys(fuzz.KINDS, 200)
    assert 0 < result.milliseconds < 1000

  def test_nothing_shipped_is_refused(self, bases, tmp_path):
    cases = fuzz.shipped(bases)
    assert fuzz.run(cases, check, tmp_path).slipped == []
    # The one preset that reads a reference policy, which this experiment does not have, is refused for that, and is right in itself.
    in_the_study = {case.key for case in cases if case.kind == 'preset'}
    assert set(presets.PRESETS) - in_the_study == {'grpo'}
    for name, spec in fuzz._specs().items():
      ranges.check_value(name, spec, 'objective')

  def test_finds_what_slips_through(self, cases, tmp_path):
    """A check that lets everything pass, one that breaks, one that says too little, one that compiles."""
    case = next(c for c in cases if c.kind == 'out of range' and c.value)

    def breaks(argv):
      raise KeyError('x')

    def mumbles(argv):
      raise UserError('something is wrong.')

    def compiles(argv):
      jax.jit(lambda x: x * 1.2345).lower(jnp.ones(3)).compile()
      raise UserError('too late.')

    for bad, what in {len: 'not refused', breaks: 'KeyError', mumbles: f'the key {case.key!r} and the value', compiles: 'compiled'}.items():
      result = fuzz.run([case], bad, tmp_path)
      assert len(result.slipped) == 1 and what in result.slipped[0].what and result.refused == {'out of range': 0}
    assert result.compilations >= 1

  def test_a_right_case_that_is_refused_slips(self, bases, tmp_path):
    def refuses(argv):
      raise UserError('no.')

    assert fuzz.run(fuzz.shipped(bases)[:1], refuses, tmp_path).slipped[0].what == 'refused: no.'

  def test_the_file_holds_what_the_case_says(self, cases, tmp_path):
    case = next(c for c in cases if c.config is not None and c.kind == 'illegal pair')
    seen = []
    fuzz.run([case], lambda argv: seen.append(app.resolve(app.parse(argv)[0])), tmp_path)
    assert seen == [json.loads(json.dumps(case.config))]


class TestPlain:
  def test_outside_is_outside(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      assert not 0 < fuzz.plain.outside(rng, '(0, 1]', whole=False) <= 1
      whole = fuzz.plain.outside(rng, '[1, 9]', whole=True)
      assert isinstance(whole, int) and not 1 <= whole <= 9
    assert fuzz.plain.outside(rng, '[-inf, inf]', whole=False) is None
    assert fuzz.plain.outside(rng, '[0, inf)', whole=True) < 0

  def test_misspelt_is_another_word(self):
    rng = np.random.default_rng(0)
    assert all(fuzz.plain.misspelt(rng, 'aa') not in ('', 'aa') for _ in range(300))

  def test_replaced_and_without_leave_the_original(self):
    config = {'a': {'b': [{'c': 1}]}}
    assert fuzz.plain.replaced(config, ('a', 'b', 0, 'c'), 2) == {'a': {'b': [{'c': 2}]}}
    assert fuzz.plain.without(config, ('a', 'b')) == {'a': {}} and config == {'a': {'b': [{'c': 1}]}}
    assert list(fuzz.plain.leaves(config)) == [(('a', 'b', 0, 'c'), 1)] and fuzz.plain.dotted(('a', 'b', 0, 'c')) == 'a.b[0].c'

  def test_required_hyper_parameters_are_those_of_the_catalog(self):
    for name, entry in catalog.CATALOG.items():
      catalog.build(fuzz.plain.spec_with(name, {}))
      required = {key for key, default in entry.factory.defaults().items() if default is inspect.Parameter.empty}
      assert required == set(fuzz.plain.REQUIRED.get(name, {}))
