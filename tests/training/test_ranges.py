"""training/ranges.py: a config against its table; every shipped config has exactly one row for each of its keys."""

import dataclasses
import pathlib
import re

import pytest

from configs import common
from configs import entropy_mechanism as study
from entropy_jax.data.tfds_builders import DATASETS
from entropy_jax.models.presets import PRESETS
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError

TABLE = {
  'rate': '(0, 1]',
  'steps': 'int [1, inf)',
  'mode': 'up | down',
  'group.on': 'bool',
  'group.limit': 'int [2, 9] or None',
  'parts.*': 'objective',
}
GRPO = {'advantages': [{'name': 'grpo'}], 'surrogates': [{'name': 'ppo_clip'}]}
CONFIG = {'rate': 1, 'steps': 3, 'mode': 'up', 'group': {'on': True, 'limit': None}, 'parts': {'a': GRPO, 'b': GRPO}}


def leaf_paths(config, prefix=''):
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from leaf_paths(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}'


def refusal(**changes):
  """The sentence for a config with these keys replaced; a value of ... takes the key out."""
  config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
  with pytest.raises(UserError) as caught:
    ranges.check(config, TABLE)
  return str(caught.value)


class TestShippedConfigs:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_every_key_matches_exactly_one_row(self, variant):
    config = app.resolve(study.get_config(variant))
    rows = {path: ranges.rows_of(path, study.RANGES) for path in leaf_paths(config)}
    assert {path: found for path, found in rows.items() if len(found) != 1} == {}
    used = {found[0] for found in rows.values()}
    assert used == set(study.RANGES), 'a row without a key'
    ranges.check(config, study.RANGES)

  def test_names_are_those_that_there_are(self):
    assert study.RANGES['countdown.dataset'].split(' | ') == [name for name in DATASETS if name.startswith('countdown/')]
    assert study.RANGES['countdown.model_preset'].split(' | ') == list(PRESETS)
    assert set(ranges.DECODER) == {f.name for f in dataclasses.fields(DecoderConfig)} - {'vocab_size', 'rope_scaling'}

  def test_launch_keys_have_right_defaults(self):
    config = study.ConfigDict()
    common.run_settings(config)
    assert set(config) == set(ranges.LAUNCH)
    ranges.check_launch(app.resolve(config))
    ranges.check(app.resolve(config), ranges.LAUNCH)

  @pytest.mark.parametrize('file', [common, study])
  def test_every_key_has_a_comment(self, file):
    """Beside it or above it, where a key of this name first stands."""
    text = pathlib.Path(file.__file__).read_text()
    keys = {match[1] for match in re.finditer(r'\n  config\.(?:\w+\.)*(\w+) = (?!ConfigDict\(\)\n)', text)}
    beside = {match[1] for match in re.finditer(r'config\.(?:\w+\.)*(\w+) = .*#', text)}
    above = {match[1] for match in re.finditer(r'\n  #.*\n  config\.(?:\w+\.)*(\w+) =', text)}
    assert keys and keys - beside - above == set()


class TestCheck:
  def test_right(self):
    ranges.check(CONFIG, TABLE)
    ranges.check(CONFIG | {'group': {'on': False, 'limit': 2}}, TABLE)

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'rate': 0.0}, 'config: rate=0.0 is outside (0, 1]; give a value in that interval.'),
      ({'rate': '1'}, "config: rate='1' is not a number; give one in (0, 1]."),
      ({'rate': True}, 'config: rate=True is not a number; give one in (0, 1].'),
      ({'rate': float('nan')}, 'config: rate=nan is not a number; give one in (0, 1].'),
      ({'steps': 0}, 'config: steps=0 is outside [1, inf); give a value in that interval.'),
      ({'steps': 3.0}, 'config: steps=3.0 is not a whole number; give one in [1, inf).'),
      ({'steps': True}, 'config: steps=True is not a whole number; give one in [1, inf).'),
      ({'steps': None}, 'config: steps=None is not a whole number; give one in [1, inf).'),
      ({'steps': {'a': 1}}, "config: steps={'a': 1} is not a whole number; give one in [1, inf)."),
      ({'mode': 'dwn'}, "config: mode='dwn' is not one of up, down. Did you mean 'down'?"),
      ({'mode': ['up']}, "config: mode=['up'] is not one of up, down."),
      ({'group': {'on': 1, 'limit': 2}}, 'config: group.on=1 is not true or false; give one of these.'),
      ({'group': {'on': True, 'limit': 1}}, 'config: group.limit=1 is outside [2, 9]; give a value in that interval.'),
      ({'group': {'on': True}}, 'config: group.limit is missing; give it a value: int [2, 9] or None.'),
      ({'group': 3}, 'config: group=3 is not a group of keys; it has the keys group.on, group.limit.'),
      ({'group': {}}, 'config: group={} is not a group of keys; it has the keys group.on, group.limit.'),
      ({'stepz': 3}, "config: there is no key stepz (its value is 3). Did you mean 'steps'?"),
      ({'zzzz': {'x': 1}}, 'config: there is no key zzzz.x (its value is 1). The keys are rate, steps, mode,'),
      ({'steps': ...}, 'config: steps is missing; give it a value: int [1, inf).'),
      ({'parts': ...}, 'config: parts is missing; give at least one part, as {name: {...}}.'),
      ({'parts': {}}, 'config: parts={} is not a group of named parts; give at least one'),
      ({'parts': {'a': {}}}, 'config: parts.a: objective: exactly one surrogate is needed, and 0 were given'),
      ({'parts': {'a': 'grpo'}}, "config: parts.a: objective: 'grpo' is not a dict of rooms;"),
    ],
  )
  def test_wrong(self, changes, sentence):
    assert refusal(**changes).startswith(sentence)


class TestKinds:
  def test_decoder(self):
    ranges.check_value('model', {'num_layers': 2, 'dtype': 'bfloat16', 'head_dim': None}, 'decoder')
    for wrong, sentence in {
      'num_layer': "config: there is no key model.num_layer; allowed: width, num_layers,",
      'vocab_size': 'config: there is no key model.vocab_size',
    }.items():
      with pytest.raises(UserError, match=re.escape(sentence)):
        ranges.check_value('model', {wrong: 2}, 'decoder')
    with pytest.raises(UserError, match=r"model\.dtype='float16' is not one of float32, bfloat16\."):
      ranges.check_value('model', {'dtype': 'float16'}, 'decoder')
    with pytest.raises(UserError, match='model=3 is not a group of keys; allowed in it: width'):
      ranges.check_value('model', 3, 'decoder')

  def test_steps_and_processes(self):
    for value in ('', '0-0', '3-12'):
      ranges.check_value('profile_steps', value, 'steps')
    for value in ('12-3', '5', 'a-b', 5, None, True):
      with pytest.raises(UserError, match='profile_steps='):
        ranges.check_value('profile_steps', value, 'steps')
    ranges.check_value('distributed', 'h:1,2,0', 'processes')
    with pytest.raises(UserError, match=r'config\.distributed='):
      ranges.check_value('distributed', 'h:1,2,2', 'processes')

  def test_numbers(self):
    ranges.check_value('targets', (0.3, 1), 'numbers (0, inf)')
    for value, sentence in {
      (): r'config: targets=\(\) is no list of numbers; give at least one in \(0, inf\)\.',
      0.5: r'config: targets=0\.5 is no list of numbers',
      (0.3, 0.0): r'config: targets\[1\]=0\.0 is outside \(0, inf\)',
      (0.3, '1'): r"config: targets\[1\]='1' is not a number",
      (0.3, 0.5, 0.3): 'has a number twice; give each once',
    }.items():
      with pytest.raises(UserError, match=sentence):
        ranges.check_value('targets', value, 'numbers (0, inf)')

  def test_settings(self):
    for value in ([{}], [{'coef': 0.1}, {'coef': 3}]):
      ranges.check_value('grid', value, 'settings')
    for value, sentence in (
      ([], r'config: grid=\[\] is no list of settings; give at least one'),
      ({'coef': 0.1}, 'is no list of settings'),
      ([0.1], r'config: grid=\[0\.1\] is no list of settings'),
      ([{'coef': 0.1}, {'step': 0.1}], r"config: grid\[1\] has the names \['step'\], and the first setting \['coef'\]; name the same ones"),
      ([{'coef': 'small'}], r"config: grid\[0\]\.coef='small' is not a number"),
    ):
      with pytest.raises(UserError, match=sentence):
        ranges.check_value('grid', value, 'settings')

  def test_folder(self, tmp_path):
    (tmp_path / 'file').touch()
    for value in ('data', 'a/b', str(tmp_path), str(tmp_path / 'new' / 'er')):
      ranges.check_value('data_dir', value, 'folder')
    for value in ('', 3, str(tmp_path / 'file'), str(tmp_path / 'file' / 'below'), '/' + 'x' * 300, '/a\0b'):
      with pytest.raises(UserError, match='data_dir='):
        ranges.check_value('data_dir', value, 'folder')

  def test_a_folder_that_cannot_be_written(self, tmp_path, monkeypatch):
    monkeypatch.setattr('os.access', lambda path, mode: False)  # for root everything can be written
    with pytest.raises(UserError, match=f'{tmp_path} cannot be written; give a folder'):
      ranges.check_folder('--workdir', tmp_path / 'run')


class TestDivides:
  def test_names_the_nearest_divisors(self):
    ranges.check_divides('n', 4, 16, 'rows')
    with pytest.raises(UserError) as caught:
      ranges.check_divides('n', 3, 16, 'rows')
    assert str(caught.value) == 'config: n=3 does not divide the batch of 16 rows; use one of 1, 2, 4, 8, 16.'
    with pytest.raises(UserError, match=r'use one of 50, 56, 60, 63, 70, 72, 75, 80, 84, 90, 100, 105\.$'):
      ranges.check_divides('n', 79, 25200, 'rows')  # of its 90 divisors

  def test_is_quick_for_any_size(self):
    with pytest.raises(UserError):
      ranges.check_divides('n', 7, 65536 * 65536, 'rows')
