"""TPU_SETUP.md says what is so: its blocks are marked and rehearsed, its keys and exit codes exist, its messages are those of the code."""

import dataclasses
import errno
import functools
import importlib.util
import inspect
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import pytest
from jax._src import xla_bridge

from configs import entropy_mechanism, rlvr_gsm8k
from entropy_jax.models import presets
from entropy_jax.parallel import pmapped, processes
from entropy_jax.training import app, loop, ranges, signals, workdir, writers
from entropy_jax.training.checkpoints import Checkpoints
from entropy_jax.training.files import Lock, StorageError
from entropy_jax.types import UserError
from experiments import entropy_mechanism as experiment

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / 'TPU_SETUP.md').read_text()
JAX = 'JAX: '


def load_script():
  spec = importlib.util.spec_from_file_location('rehearse_setup', ROOT / 'tools' / 'rehearse_setup.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


script = load_script()
BLOCKS = script.blocks(TEXT)


def section(number: int) -> str:
  return re.search(rf'^## {number} .*?(?=^## |\Z)', TEXT, re.MULTILINE | re.DOTALL)[0]


def table(text: str) -> list[list[str]]:
  """The cells of every row of its tables, without heads."""
  lines = [line for line in text.splitlines() if line.startswith('| ') and '|---' not in line]
  return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]


class TestBlocks:
  def test_the_parser_sees_every_fence(self):
    assert len(BLOCKS) * 2 == len(re.findall(r'^\s*```', TEXT, re.MULTILINE)) > 20

  def test_each_is_marked(self):
    assert not [block.line for block in BLOCKS if not block.name and not block.needs]

  def test_each_rehearsed_block_is_known_and_none_is_skipped(self):
    names = [block.name for block in BLOCKS if block.name]
    assert len(set(names)) == len(names)
    assert set(names) == set(script.REHEARSALS) == set(script.chosen([], skip_install=False))
    assert set(names) - set(script.chosen([], skip_install=True)) == {'install'}

  def test_an_unmarked_block_is_seen(self):
    marked, bare = script.blocks('<!-- rehearsed: a -->\n```\nls\n```\n\ntext\n```\nrm\n```\n')
    assert (marked.name, marked.code, bare.name, bare.needs) == ('a', 'ls\n', None, None)

  def test_a_block_brings_those_that_it_needs(self):
    assert script.chosen(['timings'], skip_install=True) == ['profile', 'timings']

  @pytest.mark.parametrize('block', BLOCKS, ids=lambda block: f'line_{block.line}')
  def test_is_shell(self, block):
    assert subprocess.run(['bash', '-n'], input=block.code, text=True, capture_output=True).stderr == ''

  def test_what_the_substitutions_replace_is_there(self):
    rehearsed = ''.join(block.code for block in BLOCKS if block.name)
    places = ('/mnt/runs', '10.0.0.2:1234', 'JAX_PROCESS_ID=0', '\nINDEX=0', 'sleep 60', 'distributed=auto')
    for text in (script.CONFIG, *script.RLVR, *places):
      assert text in f'\n{rehearsed}', text

  def test_a_block_that_fails_is_seen(self, tmp_path):
    site = script.Site(tmp_path, {'one_host': 'echo from the block; exit 4\n', 'watch': 'true\n'}, show=False)
    with pytest.raises(script.RehearsalError, match=r'host 0 ended with 4 and not 0(.|\n)*from the block'):
      script.one_host(site)
    assert site.run('watch', script.How()) == ''
    site.clean()

  def test_after_a_failure_what_rests_on_it_is_not_run(self, monkeypatch):
    def fails(site):
      raise script.RehearsalError('broken')

    monkeypatch.setitem(script.REHEARSALS, 'profile', fails)
    done = [(name, fine, seen) for name, _, fine, seen in script.rehearse(['profile', 'timings'])]
    assert done == [('profile', False, 'RehearsalError: broken'), ('timings', False, 'not run, for profile failed')]

  def test_the_cheapest_run(self):
    done = list(script.rehearse(['check', 'watch']))
    assert [(name, fine) for name, _, fine, _ in done] == [('check', True), ('watch', True)], done


class TestUntilDone:
  """tools/until_done.sh, whose command here plays the exit codes of a list, one a start."""

  def run(self, tmp_path, codes, **variables):
    (tmp_path / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
    (tmp_path / 'command.sh').write_text('code=$(head -n 1 codes)\nsed -i 1d codes\nexit "$code"\n')
    command = [ROOT / 'tools' / 'until_done.sh', 'bash', 'command.sh']
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {'PAUSE': '0'} | variables, capture_output=True, text=True, timeout=60)
    return done.returncode, (tmp_path / 'codes').read_text().split()

  @pytest.mark.parametrize('code', [0, 2, 3])
  def test_ends(self, tmp_path, code):
    assert self.run(tmp_path, [143, 130, 137, 134, 1, code, 9]) == (code, ['9'])

  def test_gives_up_after_quick_failures_in_a_row(self, tmp_path):
    assert self.run(tmp_path, [1] * 5 + [0]) == (1, ['0'])

  def test_interruptions_and_long_runs_are_no_failures(self, tmp_path):
    assert self.run(tmp_path, [1, 1, 1, 1, 143, 1, 1, 1, 1, 0]) == (0, [])
    assert self.run(tmp_path, [1] * 9 + [0], QUICK='0') == (0, [])

  def test_a_signal_to_the_group_ends_both(self, tmp_path):
    (tmp_path / 'command.sh').write_text('trap "echo saved; exit 143" TERM\necho ready\nwhile true; do sleep 0.05; done\n')
    command = [ROOT / 'tools' / 'until_done.sh', 'bash', 'command.sh']
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with process:
      assert process.stdout.readline() == 'ready\n'
      os.killpg(process.pid, signal.SIGTERM)
      assert process.stdout.read() == 'saved\n'
    assert process.returncode == 143


class TestClaims:
  def test_exit_codes(self):
    codes = table(section(6))
    assert [row[0] for row in codes][1:4] == ['0', str(app.MISTAKE_CODE), str(app.NON_FINITE_CODE)]
    assert codes[4][0] == f'{signals.exit_code(signal.SIGTERM)}, {signals.exit_code(signal.SIGINT)}'

  def test_config_keys_exist(self):
    configs = entropy_mechanism.get_config(), rlvr_gsm8k.get_config()
    keys = set(re.findall(r'config\.([a-z_]+(?:\.[a-z_]+)*)(?=[=`])', TEXT)) - {'json'}
    assert {'distributed', 'parallel', 'num_devices', 'countdown.num_slices', 'countdown.model.remat', 'model.folder', 'lora.rank'} <= keys
    for key in keys:
      *groups, last = key.split('.')
      found = [functools.reduce(lambda group, part: group.get(part, {}), groups, config) for config in configs]
      assert any(last in group for group in found), key
    assert ranges.LAUNCH.keys() >= {'parallel', 'num_devices', 'distributed', 'profile_steps'}

  def test_the_values_of_the_distributed_table(self):
    assert processes.parse('auto') == 'auto'
    assert processes.parse('HOST:1234,2,1') == ('HOST:1234', 2, 1)
    assert all(f'`{name}`' in section(4) for name in processes.VARIABLES)
    assert processes.TIMEOUT == 300 and 'they wait 300 s' in section(4)
    assert workdir.VISIBLE_SECONDS == 20 and '20 s' in section(7)

  def test_the_defaults_fit_what_it_says(self):
    config = entropy_mechanism.get_config()
    for num_devices, num_processes in ((128, 16), (64, 8), (1, 1)):
      experiment.validate(config, num_devices, num_processes)
    for num_devices, num_processes in ((256, 16), (128, 32), (48, 1)):
      with pytest.raises(UserError, match='cannot be cut evenly'):
        experiment.validate(config, num_devices, num_processes)

  def test_bytes_per_parameter(self):
    params = {'w': jnp.zeros((1000,), jnp.float32)}
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(optax.adam(1e-3).init(params)) if leaf.ndim)
    assert (2 * params['w'].nbytes + moments) / 1000 == 16  # parameter and gradient 4 each, two moments 8; the document's 16
    assert '= **16**' in section(5)

  def test_mixed_precision_and_remat_are_fields_of_the_model(self):
    fields = {field.name for field in dataclasses.fields(presets.preset('study_tiny', vocab_size=8))}
    assert {'dtype', 'remat'} <= fields

  def test_pinned_range(self):
    assert 'jax>=0.10,<0.11' in (ROOT / 'setup.cfg').read_text()
    assert set(re.findall(r'jax\[\w+\]([^\'"`\s]+)', TEXT)) == {'>=0.10,<0.11'}

  def test_links_inside_the_document(self):
    heads = re.findall(r'^## (.*)', TEXT, re.MULTILINE)
    anchors = {re.sub(r'[^a-z0-9 -]', '', head.lower()).replace(' ', '-') for head in heads}
    assert set(re.findall(r'\]\(#([^)]+)\)', TEXT)) <= anchors


# --- every message of section 10, produced ----------------------------------------------------------------------------


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def nobody_listens(tmp_path, monkeypatch):
  processes.initialize(f'127.0.0.1:{free_port()},2,1', timeout=0.3)


def nobody_comes(tmp_path, monkeypatch):
  processes.initialize(f'127.0.0.1:{free_port()},2,0', timeout=0.3)


def taken_port(tmp_path, monkeypatch):
  with processes._server(0) as other:
    processes.initialize(f'127.0.0.1:{other.getsockname()[1]},2,0', timeout=0.3)


def no_cluster(tmp_path, monkeypatch):
  for name in [name for name in os.environ if name.startswith(('SLURM_', 'OMPI_', 'JAX_COORDINATOR'))]:
    monkeypatch.delenv(name)
  monkeypatch.setattr(xla_bridge, 'backends_are_initialized', lambda: False)  # as at the start of a process
  processes.initialize('auto')


def half_an_environment(tmp_path, monkeypatch):
  for name in processes.VARIABLES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  processes.parse('')


def too_many_devices(tmp_path, monkeypatch):
  pmapped.make(16)


def uneven_batch(tmp_path, monkeypatch):
  experiment.validate(entropy_mechanism.get_config('tiny'), 5, 1)


def workdir_in_use(tmp_path, monkeypatch):
  with Lock(tmp_path), Lock(tmp_path):
    pass


def another_config(tmp_path, monkeypatch):
  workdir.prepare(tmp_path, {'seed': 0})
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
  workdir.prepare(tmp_path, {'seed': 1})


def saved(tmp_path, steps, damaged):
  """Checkpoints of these steps, of which some are damaged; then what a start of the run says or raises."""
  state = {'w': jnp.arange(4.0)}
  said = []
  checkpoints = Checkpoints(tmp_path, report=said.append)
  try:
    for step in steps:
      checkpoints.save(step, state, {})
    for step in damaged:
      (tmp_path / str(step) / 'manifest.json').write_text('{}')
    checkpoints.restore_latest(state)
  finally:
    checkpoints.close()
  return said[0]


def damaged_checkpoint(tmp_path, monkeypatch):
  return saved(tmp_path, [1, 2], [2])


def all_damaged(tmp_path, monkeypatch):
  return saved(tmp_path, [1], [1])


def full_disk(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)

  def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(checkpoints._manager, 'save', full)
  try:
    checkpoints.save(1, {'w': jnp.zeros(2)}, {})
  finally:
    checkpoints.close()


def train(directory, num_steps, bad=()):
  def body(state, batch, key):
    return state + 1, {'loss': jnp.where(jnp.isin(state, jnp.array([-1, *bad])), jnp.nan, 1.0)}

  settings = {'key': jax.random.key(0), 'checkpoint_every': 2, 'progress': 'silent', 'tensorboard': False}
  return loop.train(workdir=directory, num_steps=num_steps, state=jnp.zeros((), jnp.int32), body=body, data=None, **settings)


def lost_rows(tmp_path, monkeypatch, capsys):
  train(tmp_path, 4)
  file = tmp_path / writers.METRICS
  file.write_text(''.join(file.read_text().splitlines(keepends=True)[:1]))
  capsys.readouterr()
  train(tmp_path, 5)
  return capsys.readouterr().err.splitlines()


def not_finite(tmp_path, monkeypatch):
  train(tmp_path, 4, bad=[2])


# Messages that take two processes are produced by tests of the processes; here their text in the source.
TWO = {
  'two processes call themselves': processes,
  'does not hold the config.json of process 0': workdir,
  'has another config than process 0': workdir,
}
# A fragment of the message -> what makes the code say it.
PRODUCERS: dict[str, Callable] = {
  'could not be reached': nobody_listens,
  'has not heard of': nobody_comes,
  'cannot be listened on': taken_port,
  'this is no host of': no_cluster,
  'the environment has': half_an_environment,
  'config.num_devices=': too_many_devices,
  'cannot be cut evenly': uneven_batch,
  'another process is training': workdir_in_use,
  'holds a run with': another_config,
  'DAMAGED CHECKPOINT': damaged_checkpoint,
  'every one in': all_damaged,
  'No space left on device': full_disk,
  'lost outside of training': lost_rows,
  'step ...: ... is ...': not_finite,
}


def messages() -> list[str]:
  """The messages of section 10, with ... for what varies."""
  cells = [row[0].split('` (')[0].removesuffix('`') for row in table(section(10))[1:]]
  return [cell.replace(f'{JAX}`', JAX).removeprefix('`').split('` with')[0] for cell in cells]


def matches(message: str, said: str) -> bool:
  return re.fullmatch('.*'.join(re.escape(part) for part in message.split('...')), said) is not None


class TestMessages:
  @pytest.mark.parametrize('fragment', PRODUCERS)
  def test_is_what_the_code_says(self, fragment, tmp_path, monkeypatch, capsys):
    produce = PRODUCERS[fragment]
    try:
      wanted = inspect.signature(produce).parameters
      said = produce(tmp_path, monkeypatch, *([capsys] if 'capsys' in wanted else []))
    except (UserError, StorageError, loop.NonFiniteError) as error:
      said = app.explain(error)
    [message] = [message for message in messages() if fragment in message]
    assert any(matches(message, line) for line in ([said] if isinstance(said, str) else said)), (message, said)

  def test_every_message_has_a_test(self):
    for message in messages():
      tested = [fragment for fragment in (*PRODUCERS, *TWO) if fragment in message]
      assert message.startswith(JAX) or len(tested) == 1, (message, tested)

  def test_of_two_processes(self):
    for text, module in TWO.items():
      assert [m for m in messages() if text in m], text
      start = text.split('config.json')[0]
      assert start in inspect.getsource(module), text

  def test_of_jax(self):
    # Adjacent literals of the source are joined, as Python does.
    source = re.sub(r'"\s*\n\s*f?"', '', inspect.getsource(xla_bridge)).replace('{default_platform}', 'cpu').replace('{platform}', 'tpu')
    theirs = [m.removeprefix(JAX).split('...')[0] for m in messages() if m.startswith(JAX)]
    assert len(theirs) == 4
    assert not [text for text in theirs if text not in source and not text.startswith('RESOURCE_EXHAUSTED')]


def test_a_mistake_ends_with_2_before_anything_compiles(tmp_path):
  command = [sys.executable, '-m', 'experiments.entropy_mechanism', f'{script.CONFIG}:tiny', f'--workdir={tmp_path}']
  done = subprocess.run([*command, '--config.distributed=HOST'], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
  assert done.stderr.startswith("error: config.distributed='HOST'")
