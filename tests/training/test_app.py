"""training/app.py: every mistake is one sentence; what a run writes down before it starts; another config is refused."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import pytest

from entropy_jax.training import app
from entropy_jax.training.loop import NonFiniteError
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
      'objective': {'name': 'grpo', 'beta': 0.5},
    }  # fmt: skip
    assert workdir == Path('/x/y') and config.is_locked

  def test_order_of_the_flags_is_free(self, config_file):
    assert parse('--config.num_steps=3', '--workdir', '/x', '--config', config_file)[0].num_steps == 3

  @pytest.mark.parametrize(
    ('argument', 'text'),
    [
      ('--config.learning_rat=1', "--config.learning_rat: there is no such key in the config. Did you mean 'learning_rate'?"),
      ('--config.objective.bet=1', "Did you mean 'objective.beta'?"),
      ('--config.zzz=1', 'The keys are learning_rate, limit, num_steps, objective,'),
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
    ],
  )
  def test_a_wrong_argument(self, config_file, argument, text):
    assert text in mistake(f'--config={config_file}', '--workdir=/x', argument)

  def test_missing_flags(self, config_file):
    assert '--config is missing' in mistake('--workdir=/x')
    assert '--config is missing' in mistake('--workdir=/x', '--config=')
    assert '--workdir is missing' in mistake(f'--config={config_file}')

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


class TestPrepareWorkdir:
  def config(self, **changes):
    return ml_collections.ConfigDict({'seed': 1, 'objective': {'beta': 0.1, 'sizes': (1, 2)}} | changes)

  def test_writes_what_the_run_is(self, tmp_path):
    app.prepare_workdir(tmp_path / 'a' / 'b', self.config())
    written = json.loads((tmp_path / 'a' / 'b' / 'config.json').read_text())
    assert written == {'seed': 1, 'objective': {'beta': 0.1, 'sizes': [1, 2]}}
    here = json.loads((tmp_path / 'a' / 'b' / 'environment.json').read_text())
    assert here['packages']['jax'] == jax.__version__ and here['devices'] == {'platform': 'cpu', 'kind': 'cpu', 'count': 8}
    assert here['command'].startswith('python ') and os.uname().nodename not in json.dumps({k: here[k] for k in here if k != 'command'})

  def test_same_config_resumes(self, tmp_path, capsys):
    for _ in range(2):
      app.prepare_workdir(tmp_path, self.config())
      (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    assert capsys.readouterr().err == ''

  def test_another_config_is_refused_with_both_values(self, tmp_path):
    app.prepare_workdir(tmp_path, self.config())
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    with pytest.raises(UserError, match=r'objective.beta=0.1, and this one has objective.beta=0.2; give another --workdir'):
      app.prepare_workdir(tmp_path, self.config(seed=2, objective={'beta': 0.2, 'sizes': (1, 2)}))
    with pytest.raises(UserError, match='with extra=absent, and this one has extra=true'):
      app.prepare_workdir(tmp_path, self.config(extra=True))
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1

  def test_a_mistake_before_the_first_result_does_not_bind_the_workdir(self, tmp_path):
    app.prepare_workdir(tmp_path, self.config(seed=-1))
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'metrics.jsonl').touch()
    app.prepare_workdir(tmp_path, self.config(seed=3))
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 3

  def test_damaged_config_json(self, tmp_path):
    app.prepare_workdir(tmp_path, self.config())
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    (tmp_path / 'config.json').write_text('{"seed"')
    with pytest.raises(UserError, match=r'config\.json is damaged'):
      app.prepare_workdir(tmp_path, self.config())

  def test_another_version_is_mentioned(self, tmp_path, capsys):
    app.prepare_workdir(tmp_path, self.config())
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    path = tmp_path / 'environment.json'
    old = json.loads(path.read_text())
    old['packages']['optax'] = '0.0.1'
    path.write_text(json.dumps(old))
    app.prepare_workdir(tmp_path, self.config())
    assert 'packages.optax was "0.0.1" and is now' in capsys.readouterr().err

  def test_a_place_that_cannot_be_written(self, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
      app.prepare_workdir(tmp_path / 'file' / 'run', self.config())


class TestResolve:
  def test_refuses_what_json_cannot_hold(self):
    with pytest.raises(UserError, match=r'config.a.b\[1\] is a function'):
      app.resolve(ml_collections.ConfigDict({'a': {'b': [1, lambda: 0]}}))


class TestCompilationCache:
  def test_where_it_is(self, monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
      monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/given')
      assert app.set_compilation_cache() == '/given' and jax.config.jax_compilation_cache_dir == before[0]
      monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
      monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
      assert app.set_compilation_cache() == jax.config.jax_compilation_cache_dir == str(tmp_path / 'entropy_jax')
      monkeypatch.delenv('XDG_CACHE_HOME')
      monkeypatch.setenv('HOME', str(tmp_path))
      assert app.set_compilation_cache() == str(tmp_path / '.cache' / 'entropy_jax')
    finally:
      jax.config.update('jax_compilation_cache_dir', before[0])
      jax.config.update('jax_persistent_cache_min_compile_time_secs', before[1])


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

  @pytest.mark.parametrize('error', [UserError('keep=2 is outside (0, 1].'), NonFiniteError('step 3: loss is nan.')])
  def test_one_sentence_and_code_2(self, config_file, tmp_path, capsys, error):
    def main(config, workdir):
      raise error

    with pytest.raises(SystemExit) as caught:
      app.run(main, ['p', f'--config={config_file}', f'--workdir={tmp_path}/run'])
    assert caught.value.code == 2 and capsys.readouterr().err == f'error: {error}\n'

  def test_a_defect_keeps_its_traceback(self, config_file, tmp_path):
    def main(config, workdir):
      raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
      app.run(main, ['p', f'--config={config_file}', f'--workdir={tmp_path}/run'])

  def test_help(self, capsys):
    app.run(lambda config, workdir: None, ['p', '--help'])
    assert '--config=configs/NAME.py[:variant] --workdir=DIR' in capsys.readouterr().out

  def test_as_a_process(self, config_file, tmp_path):
    script = 'from entropy_jax.training import app\napp.run(lambda config, workdir: print(config.learning_rte))\n'
    command = [sys.executable, '-c', script, f'--config={config_file}', f'--workdir={tmp_path}/run', '--config.learning_rte=3']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == "error: --config.learning_rte: there is no such key in the config. Did you mean 'learning_rate'?\n"
