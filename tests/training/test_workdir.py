"""training/workdir.py: what a run writes down before it starts; another config is refused, but for how it is launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import pytest

from entropy_jax.training import app, workdir
from entropy_jax.types import UserError
from tests.parallel.test_processes import environment, free_port

ROOT = Path(__file__).resolve().parents[2]


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

  def test_launch_keys_may_differ_and_the_newest_stay(self, tmp_path, capsys):
    launch = {'parallel': 'pmap', 'num_devices': 0, 'distributed': '', 'profile_steps': '', 'max_rejected': 3}
    app.prepare_workdir(tmp_path, self.config(**launch))
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    app.prepare_workdir(tmp_path, self.config(**launch | {'num_devices': 2, 'parallel': 'fsdp'}))
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'parallel was "pmap", is "fsdp", num_devices was 0, is 2; the run goes on, for its numbers do not depend on that.' in said
    written = json.loads((tmp_path / 'config.json').read_text())
    assert (written['num_devices'], written['parallel'], written['seed']) == (2, 'fsdp', 1)
    with pytest.raises(UserError, match='with seed=1, and this one has seed=2'):
      app.prepare_workdir(tmp_path, self.config(**launch | {'seed': 2}))

  def test_a_run_from_before_there_were_launch_keys_goes_on(self, tmp_path, capsys):
    app.prepare_workdir(tmp_path, self.config())
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    app.prepare_workdir(tmp_path, self.config(num_devices=0))
    assert 'num_devices was absent, is 0;' in capsys.readouterr().err


SCRIPT = """
from entropy_jax.training import app
def main(config, workdir):
  import jax
  if jax.process_index() == 0:
    print('first', config.seed, jax.device_count(), flush=True)
app.run(main)
"""
CONFIG = """
import ml_collections
def get_config():
  return ml_collections.ConfigDict({'seed': 1, 'distributed': '', 'num_devices': 0})
"""


class TestTwoProcesses:
  """Process 0 writes and decides; the others hear its verdict and never wait in vain."""

  def run(self, folder, *own):
    """(exit code, stdout, stderr) of two processes, started with these arguments of their own."""
    (folder / 'study.py').write_text(CONFIG)
    address, started = f'127.0.0.1:{free_port()}', []
    for index, arguments in enumerate(own):
      command = [sys.executable, '-c', SCRIPT, f'--config={folder}/study.py', f'--config.distributed={address},2,{index}', *arguments]
      pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
      started.append(subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes))
    said = [process.communicate(timeout=120) for process in started]
    # The collectives of processors greet their peers on stdout.
    clean = lambda text: '\n'.join(line for line in text.splitlines() if 'Gloo' not in line and 'peer ranks' not in line and len(line) > 2)
    return [(process.returncode, clean(out), clean(err)) for process, (out, err) in zip(started, said)]

  def test_runs_and_is_refused_in_one_voice(self, tmp_path):
    place = f'--workdir={tmp_path}/run'
    first, second = self.run(tmp_path, [place], [place])
    assert first[0] == second[0] == 0, (first, second)
    assert first[1] == 'first 1 8' and second[1] == ''
    written = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert written['seed'] == 1 and written['distributed'].endswith(',2,0')
    (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 0}\n')
    other = '--config.seed=2'
    first, second = self.run(tmp_path, [place, other], [place, other])
    assert first[0] == second[0] == 2
    assert first[2] == f'error: --workdir: {tmp_path}/run holds a run with seed=1, and this one has seed=2;' + (
      ' give another --workdir, or the same config to resume.'
    )
    assert second[1:] == ('', '')

  def test_different_configs(self, tmp_path):
    place = f'--workdir={tmp_path}/run'
    first, second = self.run(tmp_path, [place], [place, '--config.seed=5'])
    assert first[0] == second[0] == 2 and second[2] == ''
    assert first[2] == 'error: --config: process 1 has another config than process 0; start all with the same command.'


class TestCompilationCache:
  def test_where_it_is(self, monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    try:
      monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/given')
      assert workdir.set_compilation_cache() == '/given' and jax.config.jax_compilation_cache_dir == before[0]
      monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
      monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
      assert workdir.set_compilation_cache() == jax.config.jax_compilation_cache_dir == str(tmp_path / 'entropy_jax')
      monkeypatch.delenv('XDG_CACHE_HOME')
      monkeypatch.setenv('HOME', str(tmp_path))
      assert workdir.set_compilation_cache() == str(tmp_path / '.cache' / 'entropy_jax')
    finally:
      jax.config.update('jax_compilation_cache_dir', before[0])
      jax.config.update('jax_persistent_cache_min_compile_time_secs', before[1])
