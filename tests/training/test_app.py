"""training/app.py: every mistake is one sentence with its exit code."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from entropy_jax.training import app
from entropy_jax.training.loop import Interrupted, NonFiniteError
from entropy_jax.types import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import ml_collections
from entropy_jax.types import UserError

def get_config(variant=''):
  if variant not in ('', 'tiny'):
    raise UserError(f'config: variant={variant!r} is not one of tiny.')
  config = ml_collections.ConfigDict()
  config.learning_rate = 1e-3
  config.num_steps = 2 if variant else 10
  config.twice = config.get_ref('num_steps') * 2
  config.resume = True
  config.sizes = (1, 2)
  config.rooms = [{'name': 'grpo'}]
  config.nothing = []
  config.limit = ml_collections.config_dict.placeholder(float)
  config.objective = ml_collections.ConfigDict({'name': 'grpo', 'beta': 0.1})
  return config
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'study.py'
  path.write_text(CONFIG)
  return str(path)


def parse(*arguments):
  return app.parse(['program', *arguments])


def mistake(*arguments):
  """The sentence for a command line that is refused."""
  with pytest.raises(UserError) as caught:
    parse(*arguments)
  sentence = app.explain(caught.value)
  assert '\n' not in sentence and 'Traceback' not in sentence
  return sentence


class TestParse:
  def test_overrides_references_and_variants(self, config_file):
    config, workdir = parse(
      f'--config={config_file}:tiny', '--workdir=/x/y', '--config.learning_rate=2', '--config.objective.beta', '0.5', '--noconfig.resume',
      '--config.sizes=(3, 4)', '--config.num_steps=7',
    )  # fmt: skip
    assert app.resolve(config) == {
      'learning_rate': 2.0, 'num_steps': 7, 'twice': 14, 'resume': False, 'sizes': [3, 4], 'limit': None,
      'rooms': [{'name': 'grpo'}], 'nothing': [], 'objective': {'name': 'grpo', 'beta': 0.5},
    }  # fmt: skip
    assert workdir == Path('/x/y') and config.is_locked

  def test_order_of_the_flags_is_free(self, config_file):
    assert parse('--config.num_steps=3', '--workdir', '/x', '--config', config_file)[0].num_steps == 3

  @pytest.mark.parametrize(
    ('argument', 'text'),
    [
      ('--config.learning_rat=1', "--config.learning_rat: there is no such key in the config. Did you mean 'learning_rate'?"),
      ('--config.objective.bet=1', "Did you mean 'objective.beta'?"),
      ('--config.zzz=1', 'The keys are learning_rate, limit, nothing, num_steps, objective,'),
      ('--config.sizes[9]=1', '--config.sizes[9]: there is no such key'),
      ('--config.learning_rate=fast', "--config.learning_rate='fast' is not a number; the default is 0.001."),
      ('--config.num_steps=1.5', "--config.num_steps='1.5' is not a whole number; the default is 10."),
      ('--config.resume=maybe', "--config.resume='maybe' is not true or false"),
      ('--config.limit=low', "--config.limit='low' is not a number; the default is None."),
      ('--config.objective=3', "--config.objective='3' would replace a group of keys"),
      ('--config.num_steps', 'Missing value for flag --config.num_steps'),
      ('--wrkdir=3', "--wrkdir is not a flag of this program"),
      ('--wrkdir=3', "Did you mean 'workdir'?"),
      ('surplus', "'surplus' is not expected"),
      ('--config.=3', '--config.: there is no such key'),
      ('--config.rooms=3', "--config.rooms='3' would replace a list, which no flag can; set a value in it, such as --config.rooms[0]"),
      ('--config.rooms[0]=3', '--config.rooms[0].name...=value'),
      ('--config.nothing=[1]', "--config.nothing='[1]' would replace a list, which no flag can; change it in the config file."),
      ('--flagfile=/absent', 'Unable to open flagfile'),
    ],
  )
  def test_a_wrong_argument(self, config_file, argument, text):
    assert text in mistake(f'--config={config_file}', '--workdir=/x', argument)

  def test_missing_flags(self, config_file):
    assert '--config is missing' in mistake('--workdir=/x')
    assert '--config is missing' in mistake('--workdir=/x', '--config=')
    assert '--workdir is missing' in mistake(f'--config={config_file}')

  def test_a_workdir_below_a_file(self, config_file):
    assert mistake(f'--config={config_file}', f'--workdir={config_file}/run/1') == (
      f"--workdir='{config_file}/run/1': {config_file} is no folder; give a folder that is there or can be made."
    )

  def test_missing_file_and_unknown_variant(self, config_file):
    folder = os.path.dirname(config_file)
    assert f"Did you mean '{config_file}'?" in mistake(f'--config={folder}/studi.py', '--workdir=/x')
    assert mistake(f'--config={config_file}:big', '--workdir=/x') == "config: variant='big' is not one of tiny."

  @pytest.mark.parametrize(
    ('text', 'expected'),
    [
      ('def get_config(v=""):\n  return 1 / 0\n', 'study.py, line 2, raised ZeroDivisionError: division by zero'),
      ('def get_config(v=""):\n  return {"": 1}[v]\n', "study.py has no variant 'tiny'"),
      ('def get_config():\n  return 1\n', "study.py has no variants, and 'tiny' was given"),
      ('def get_config(v="")\n', 'study.py raised SyntaxError'),
      ('def get_config(v=""):\n  return 12\n', 'get_config of'),
      ('x = 3\n', "AttributeError: module 'config_config' has no attribute 'get_config'"),
    ],
  )
  def test_a_faulty_file(self, tmp_path, text, expected):
    path = tmp_path / 'study.py'
    path.write_text(text)
    assert expected in mistake(f'--config={path}:tiny', '--workdir=/x')


class TestResolve:
  def test_refuses_what_json_cannot_hold(self):
    with pytest.raises(UserError, match=r'config.a.b\[1\] is a function'):
      app.resolve(ml_collections.ConfigDict({'a': {'b': [1, lambda: 0]}}))


class TestExplain:
  def test_mistakes_are_sentences_and_defects_are_not(self):
    assert app.explain(UserError('a\n b.')) == 'a b.'
    assert app.explain(NonFiniteError('step 3: loss is nan.')) == 'step 3: loss is nan.'
    assert 'No space left on device (/x/y)' in app.explain(OSError(errno.ENOSPC, 'No space left on device', '/x/y'))
    assert app.explain(OSError(errno.ECONNRESET, 'reset')) is None
    assert app.explain(KeyError('x')) is None and app.explain(AssertionError()) is None


class TestRun:
  @pytest.fixture(autouse=True)
  def own_cache(self, monkeypatch, tmp_path):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'unused'))

  def test_main_gets_config_and_workdir(self, config_file, tmp_path):
    seen = []
    argv = ['p', f'--config={config_file}:tiny', f'--workdir={tmp_path}/run']
    app.run(lambda config, workdir: seen.append((config.num_steps, workdir)), argv)
    assert seen == [(2, tmp_path / 'run')] and (tmp_path / 'run' / 'config.json').exists()

  @pytest.mark.parametrize(('error', 'code'), [(UserError('keep=2 is outside (0, 1].'), 2), (NonFiniteError('step 3: loss is nan.'), 3)])
  def test_one_sentence_and_the_code(self, config_file, tmp_path, capsys, error, code):
    def main(config, workdir):
      raise error

    with pytest.raises(SystemExit) as caught:
      app.run(main, ['p', f'--config={config_file}', f'--workdir={tmp_path}/run'])
    assert caught.value.code == code and capsys.readouterr().err == f'error: {error}\n'

  def test_an_interrupted_run_keeps_its_code(self, config_file, tmp_path):
    def main(config, workdir):
      raise Interrupted('stopped at step 3.', signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
      app.run(main, ['p', f'--config={config_file}', f'--workdir={tmp_path}/run'])
    assert caught.value.code == 143

  @pytest.mark.parametrize(
    ('lines', 'sentence'),
    [
      ("config.parallel = 'pmpa'", "config: parallel='pmpa' is not one of pmap, fsdp. Did you mean 'pmap'?"),
      ('config.num_devices = -1', 'config: num_devices=-1 is outside [0, inf); give a value in that interval.'),
      ('config.num_devices = 9', 'config.num_devices=9: there are 8 devices; give 0 for all, or 1 to 8.'),
      ("config.profile_steps = '5-3'", "profile_steps='5-3' ends before it begins"),
      ('config.max_rejected = 0', 'config: max_rejected=0 is outside [1, inf); give a value in that interval.'),
      ("config.distributed = 'here'", "config.distributed='here' has 1 parts and not 3"),
      ("config.distributed = 'auto'; config.num_devices = 2", 'several processes use all their devices; give num_devices=0.'),
    ],
  )
  def test_wrong_launch_keys(self, tmp_path, capsys, lines, sentence):
    path = tmp_path / 'study.py'
    path.write_text(f'import ml_collections\n\ndef get_config():\n  config = ml_collections.ConfigDict()\n  {lines}\n  return config\n')
    with pytest.raises(SystemExit) as caught:
      app.run(lambda config, workdir: None, ['p', f'--config={path}', f'--workdir={tmp_path}/run'])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith('error: ') and said.count('\n') == 1 and sentence in said
    assert not (tmp_path / 'run').exists()

  def test_a_defect_keeps_its_traceback(self, config_file, tmp_path):
    def main(config, workdir):
      raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
      app.run(main, ['p', f'--config={config_file}', f'--workdir={tmp_path}/run'])

  def test_help(self, capsys):
    app.run(lambda config, workdir: None, ['p', '--help'])
    out = capsys.readouterr().out
    assert '--config=configs/NAME.py[:variant] --workdir=DIR' in out and '143  SIGTERM came' in out

  def test_as_a_process(self, config_file, tmp_path):
    script = 'from entropy_jax.training import app\napp.run(lambda config, workdir: print(config.learning_rte))\n'
    command = [sys.executable, '-c', script, f'--config={config_file}', f'--workdir={tmp_path}/run', '--config.learning_rte=3']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == "error: --config.learning_rte: there is no such key in the config. Did you mean 'learning_rate'?\n"
