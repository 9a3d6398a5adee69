"""Runs the blocks of TPU_SETUP.md that are marked `rehearsed`, for real, and prints what came of each.

    python tools/rehearse_setup.py [--skip-install] [--show] [BLOCK ...]

Each block is taken from the document and run by bash in a temporary folder that looks like a clone of this repository, as it stands
but for what a machine without chips, hosts, cluster and cloud cannot have:

    chips                                     4 host devices of the CPU in each process, 8 where a block is for one host
    several hosts                             one folder and one process each, on the loopback address, at the same time
    --config=configs/entropy_mechanism.py     the `:tiny` variant, without tables, with one seed of few steps (TINY, below)
    --config=configs/rlvr_gsm8k.py:7b         the `:tiny` variant in fsdp, of few steps, which makes its own model and data (RLVR, below)
    /mnt/runs                                 a folder that the hosts share
    10.0.0.2:1234, distributed=auto           the loopback address with a free port; for `slurm`, auto stays auto
    JAX_PROCESS_ID=0, INDEX=0                 the index of the host, as the block's comment says
    srun, gcloud                              stand-ins: two tasks with the variables that SLURM sets; a queue that knows the states
    sleep 60                                  1 second

A rehearsal checks exit codes and what the document says of the block. Exit code 0: all are fine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / 'TPU_SETUP.md'
TREE = ('Makefile', 'README.md', 'configs', 'entropy_jax', 'experiments', 'pyproject.toml', 'setup.cfg', 'tools')
CONFIG = '--config=configs/entropy_mechanism.py'
TINY = (
  f'{CONFIG}:tiny --config.tabular.num_seeds=0 --config.countdown.num_seeds=1 --config.countdown.warm_start.num_steps=6'
  ' --config.countdown.num_steps={steps} --config.countdown.evaluate_every=0 --config.countdown.checkpoint_every=10'
)
RLVR = ('--config=configs/rlvr_gsm8k.py:7b', ' --config.model.folder=/mnt/models/Qwen2.5-7B-Instruct --config.data.data_dir=/mnt/data')
RLVR_TINY = (
  '--config=configs/rlvr_gsm8k.py:tiny --config.parallel=fsdp --config.warm_start.num_steps=11 --config.num_steps={steps}'
  ' --config.checkpoint_every=2 --config.evaluation.every=6 --config.num_prompts=8 --config.group_size=8'
)
STEPS, LONG = 6, 100  # of a run; of one that is interrupted, or compared with such
FENCE = '```'
BLOCK = re.compile(rf'^{FENCE}\n(?P<code>.*?)^{FENCE}$', re.MULTILINE | re.DOTALL)
MARK = re.compile(r'<!-- (rehearsed: (?P<name>\w+)|not rehearsed: needs (?P<needs>.+)) -->\n$')

STAND_INS = ROOT / 'tools' / 'stand_ins'
STATES = ('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE', 'SUSPENDED', 'WAITING_FOR_RESOURCES', 'ACTIVE', 'ACTIVE')


class Block(NamedTuple):
  line: int  # in the document
  name: str | None  # if it is rehearsed
  needs: str | None  # if it is not
  code: str


class How(NamedTuple):
  port: int = 0  # of process 0
  steps: int = STEPS
  devices: int = 4  # of a process
  after: str = ''  # run behind the block
  auto: bool = False  # whether distributed=auto stays
  variables: Mapping[str, str] = {}


ONE = How(devices=8)  # one host with all devices


class RehearsalError(Exception):
  """A block did not do what the document says."""


def blocks(text: str) -> list[Block]:
  """Every block of the document; one without a mark has neither name nor needs."""
  found = [(match, MARK.search(text, 0, match.start())) for match in BLOCK.finditer(text)]
  line = lambda match: text.count('\n', 0, match.start()) + 1
  return [Block(line(match), mark and mark['name'], mark and mark['needs'], match['code']) for match, mark in found]


def check(condition: object, what: str) -> None:
  if not condition:
    raise RehearsalError(what)


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


class Site:
  """The temporary folder: hosts, what they share, stand-ins, and the processes that were started."""

  def __init__(self, folder: pathlib.Path, code: dict[str, str], show: bool):
    self.folder, self.mnt, self._code, self._show = folder, folder / 'mnt', code, show
    self._started: list[subprocess.Popen[str]] = []
    self.running: list[subprocess.Popen[str]] = []  # what `background` leaves to `stop`
    self.mnt.mkdir()
    (folder / 'bin').mkdir()
    for index in (0, 1):
      self.host(index).mkdir()
      for name in (*TREE, '.venv'):
        (self.host(index) / name).symlink_to(ROOT / name)

  def host(self, index: int) -> pathlib.Path:
    return self.folder / f'host_{index}'

  def stand_in(self, name: str, mark: str, value: object) -> None:
    path = self.folder / 'bin' / name
    path.write_text((STAND_INS / f'{name}.sh').read_text().replace(mark, str(value)))
    path.chmod(0o755)

  def start(self, name: str, index: int, how: How, folder: pathlib.Path | None = None) -> subprocess.Popen[str]:
    """The block on one host, without waiting."""
    code = self._code[name] + how.after
    for old, new in {
      'distributed=auto': 'distributed=auto' if how.auto else f'distributed=127.0.0.1:{how.port},2,{index}',
      CONFIG: TINY.format(steps=how.steps),
      RLVR[0]: RLVR_TINY.format(steps=how.steps),
      RLVR[1]: '',
      '/mnt/runs': str(self.mnt),
      '10.0.0.2:1234': f'127.0.0.1:{how.port}',
      'JAX_PROCESS_ID=0': f'JAX_PROCESS_ID={index}',
      '\nINDEX=0': f'\nINDEX={index}',
      'sleep 60': 'sleep 1',
    }.items():
      code = f'\n{code}'.replace(old, new)[1:]
    script = self.host(index) / f'{name}.sh'
    script.write_text(code)
    if self._show:
      print(f'--- {name}, host {index}\n{code}', flush=True)
    flags = f'--xla_force_host_platform_device_count={how.devices} --xla_backend_optimization_level=1'
    mine = {key: value for key, value in os.environ.items() if not key.startswith(('JAX_', 'SLURM_', 'XLA_'))}
    mine |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PAUSE': '1', 'PATH': f'{self.folder / "bin"}:{mine["PATH"]}'}
    mine |= {'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'cache'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3'}
    command, place, env = ['bash', '-e', str(script)], folder or self.host(index), mine | dict(how.variables)
    with open(self.log(name, index), 'w') as log:
      process = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log, text=True, start_new_session=True)
    self._started.append(process)
    return process

  def log(self, name: str, index: int = 0) -> pathlib.Path:
    return self.host(index) / f'{name}.log'

  def finish(self, processes: Sequence[subprocess.Popen[str]], name: str, code: int = 0, seconds: float = 600) -> str:
    """Waits for the block on every host, and checks the exit code; what host 0 printed."""
    for index, process in enumerate(processes):
      try:
        ended = process.wait(seconds)
      except subprocess.TimeoutExpired:
        raise RehearsalError(f'host {index} is not done after {seconds:.0f} s\n{self._tails(name)}') from None
      check(ended == code, f'host {index} ended with {ended} and not {code}\n{self._tails(name)}')
    return self.log(name).read_text()

  def run(self, name: str, how: How, hosts: int = 1) -> str:
    return self.finish([self.start(name, k, how) for k in range(hosts)], name)

  def _tails(self, name: str) -> str:
    logs = [path for k in (0, 1) for path in (self.log(name, k), self.host(k) / 'run.log') if path.exists()]
    return '\n'.join(f'[{path.parent.name}/{path.name}]\n' + '\n'.join(path.read_text().splitlines()[-12:]) for path in logs)

  def until(self, done: Callable[[], object], what: str, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not done():
      check(time.monotonic() < deadline, f'after {seconds:.0f} s still not: {what}\n{self._tails("background")}')
      time.sleep(0.05)

  def clean(self) -> None:
    """Ends what is left of the processes that were started, group by group."""
    loops = [int(path.read_text()) for path in self.folder.glob('host_*/run.pid')]
    for group in [process.pid for process in self._started if process.poll() is None] + loops:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    for process in self._started:
      process.wait()


def rows(run: pathlib.Path) -> list[int]:
  """The steps in a run's metrics, a last line that is being written left out."""
  file = run / 'countdown' / 'seed_0' / 'metrics.jsonl'
  return [json.loads(line)['step'] for line in file.read_text().split('\n')[:-1]] if file.exists() else []


def whole(run: pathlib.Path, steps: int) -> str:
  """Checks that a run is done, with every row once."""
  check((run / 'report.html').exists(), f'there is no {run / "report.html"}')
  check(rows(run) == list(range(steps + 1)), f'the rows of {run} are {rows(run)}')
  files = sorted(str(path.relative_to(run)) for path in run.glob('countdown/*/metrics*'))
  check(files == ['countdown/seed_0/metrics.jsonl', 'countdown/warm_start/metrics.jsonl'], f'{run} has {files}')
  return f'{steps} steps, each row once'


# --- one rehearsal a block; what it returns is what was seen ----------------------------------------------------------


def install(site: Site) -> str:
  clone = site.folder / 'clone'
  clone.mkdir()
  subprocess.run(['cp', '-r', *(str(ROOT / name) for name in TREE), str(clone)], check=True)
  (site.folder / 'bin' / 'python3.11').symlink_to(os.path.realpath(sys.executable))
  site.finish([site.start('install', 0, How(), folder=clone)], 'install', seconds=1200)
  command = [str(clone / '.venv' / 'bin' / 'python'), '-c', 'import entropy_jax; print(entropy_jax.__file__)']
  seen = subprocess.run(command, capture_output=True, text=True, cwd=clone)
  check(seen.stdout.strip() == str(clone / 'entropy_jax' / '__init__.py'), seen.stdout + seen.stderr)
  return 'the package imports from the new environment'


def check_block(site: Site) -> str:
  alone = site.run('check', ONE._replace(variables={'DISTRIBUTED': ''})).splitlines()[-1]
  check(alone == 'process 0 of 1: 8 of 8 devices, cpu', alone)
  port = free_port()
  site.finish([site.start('check', k, How(variables={'DISTRIBUTED': f'127.0.0.1:{port},2,{k}'})) for k in (0, 1)], 'check')
  for k in (0, 1):
    said = site.log('check', k).read_text()
    check(f'process {k} of 2: 4 of 8 devices, cpu' in said.splitlines(), said)
  return f'{alone}; and 4 of 8 in each of 2'


def one_host(site: Site) -> str:
  site.run('one_host', ONE)
  return whole(site.host(0) / 'runs' / 'one_host', STEPS)


def several_hosts(site: Site) -> str:
  site.run('several_hosts', How(free_port(), LONG), 2)
  return f'2 processes ended with 0; {whole(site.mnt / "plain", LONG)}'


def several_hosts_flag(site: Site) -> str:
  before = (site.mnt / 'plain/countdown/seed_0/metrics.jsonl').read_bytes()
  site.run('several_hosts_flag', How(free_port(), LONG), 2)
  check((site.mnt / 'plain/countdown/seed_0/metrics.jsonl').read_bytes() == before, 'metrics.jsonl was changed')
  return '2 processes ended with 0; nothing was done twice'


def slurm(site: Site) -> str:
  site.stand_in('srun', '@JOB@', free_port())
  site.run('slurm', How(auto=True))
  facts = json.loads((site.mnt / 'slurm' / 'environment.json').read_text())
  check(facts['processes'] == 2 and facts['devices']['count'] == 8, str(facts))
  return f'2 tasks found one another; {whole(site.mnt / "slurm", STEPS)}'


def fsdp(site: Site) -> str:
  site.run('fsdp', ONE)
  config = json.loads((site.host(0) / 'runs/fsdp/config.json').read_text())
  countdown = config['countdown']
  given = (config['parallel'], countdown['num_slices'], countdown['model']['remat'], countdown['model']['dtype'])
  check(given == ('fsdp', 2, True, 'bfloat16'), str(given))
  return whole(site.host(0) / 'runs' / 'fsdp', STEPS)


def rlvr(site: Site) -> str:
  site.run('rlvr', How(free_port()), 2)
  run = site.mnt / 'rlvr'
  check((run / 'report.html').exists(), f'there is no {run / "report.html"}')
  steps = [json.loads(line)['step'] for line in (run / 'seed_0' / 'metrics.jsonl').read_text().splitlines()]
  check(steps == list(range(STEPS + 1)), f'the rows are {steps}')
  check((run / 'seed_0' / 'export' / 'model.safetensors').exists(), 'there is no export')
  return f'2 processes of 4 devices each, fsdp: {STEPS} rollouts, report and export'


def _background(site: Site) -> list[subprocess.Popen[str]]:
  how = How(free_port(), LONG, after='code=0; wait $! || code=$?; exit $code\n')
  return [site.start('background', k, how) for k in (0, 1)]


def _signal(site: Site, index: int, number: int) -> None:
  """To the process that the loop of this host has started."""
  loop = (site.host(index) / 'run.pid').read_text().strip()
  found = subprocess.run(['pgrep', '-P', loop, '-f', 'experiments'], capture_output=True, text=True, check=True)
  os.kill(int(found.stdout.split()[0]), number)


def _restarted(site: Site, code: int, index: int) -> bool:
  return f'exit code {code}, starting again' in (site.host(index) / 'run.log').read_text()


def background(site: Site) -> str:
  """Ends with the run at work; `stop` goes on from here."""
  site.running = _background(site)
  study = site.mnt / 'study'
  site.until(lambda: len(rows(study)) > 10, 'step 10')
  _signal(site, 1, signal.SIGTERM)
  site.until(lambda: all(_restarted(site, 143, k) for k in (0, 1)), 'both loops start again after 143')
  reached = len(rows(study))
  site.until(lambda: len(rows(study)) > max(reached, 30), 'more rows after the restart')
  return f'SIGTERM to one training near step {reached}: both saved, ended with 143, were started again and went on'


def stop(site: Site) -> str:
  site.run('stop', How(), 2)
  site.finish(site.running, 'background', code=143)
  study = site.mnt / 'study'
  reached = len(rows(study))
  check(reached < LONG, 'the run was done before it could be stopped')
  again = _background(site)
  site.until(lambda: len(rows(study)) > reached + 20, 'more rows after the second start')
  began = time.monotonic()
  _signal(site, 1, signal.SIGKILL)
  site.until(lambda: _restarted(site, 137, 1) and _restarted(site, 134, 0), 'the other host notices the loss')
  noticed = time.monotonic() - began
  site.finish(again, 'background')
  seen = f'stopped near step {reached}, started; kill -9 of one was noticed after {noticed:.0f} s'
  return f'{seen}; ended with 0; {whole(study, LONG)}'


def watch(site: Site) -> str:
  site.stand_in('gcloud', '@FOLDER@', site.folder)
  (site.folder / 'states').write_text('\n'.join(STATES) + '\n')
  site.run('watch', How(variables={'NAME': 'study', 'ZONE': 'zone', 'TYPE': 'v5litepod-16', 'VERSION': 'version'}))
  calls = (site.folder / 'calls').read_text().split()
  check(calls == ['create', 'delete', 'create', 'delete'], str(calls))
  return f'stand-in for gcloud: {", ".join(calls)}'


def compare(site: Site) -> str:
  check(site.run('compare', How()) == 'equal\n', 'the files differ')
  return 'bitwise equal: interrupted three times, and never'


def profile(site: Site) -> str:
  said = site.run('profile', ONE)
  check('.xplane.pb' in said.splitlines()[-1], said[-500:])
  return f'a trace; {whole(site.host(0) / "runs" / "profile", STEPS)}'


def timings(site: Site) -> str:
  said = site.run('timings', How())
  wanted = ('data', 'generate', 'verify', 'score', 'update', 'evaluate', 'checkpoint', 'compile', 'step')
  absent = [name for name in wanted if f'seconds/{name}' not in said]
  check(not absent, f'{absent} are not in\n{said}')
  return f'{len(said.splitlines())} lines'


IN_ORDER = (one_host, several_hosts, several_hosts_flag, slurm, fsdp, rlvr, background, stop, watch, compare, profile, timings)
REHEARSALS: dict[str, Callable[[Site], str]] = {'install': install, 'check': check_block, **{run.__name__: run for run in IN_ORDER}}
# What a rehearsal finds left behind by those before it.
NEEDS = {'several_hosts_flag': {'several_hosts'}, 'stop': {'background'}, 'timings': {'profile'}}
NEEDS['compare'] = {'several_hosts', 'background', 'stop'}


def chosen(names: Sequence[str], skip_install: bool) -> list[str]:
  """The blocks to run, with those that they need, in order."""
  unknown = [name for name in names if name not in REHEARSALS]
  if unknown:
    raise SystemExit(f'there is no block {", ".join(unknown)}; there are {", ".join(REHEARSALS)}')
  wanted = {need for name in names or REHEARSALS for need in (name, *NEEDS.get(name, ()))}
  return [name for name in REHEARSALS if name in wanted and not (skip_install and name == 'install')]


def rehearse(names: Sequence[str], *, show: bool = False) -> Iterator[tuple[str, float, bool, str]]:
  """(block, seconds, whether it is fine, what was seen) of each; after a failure, what needs the block fails too."""
  code = {block.name: block.code for block in blocks(DOCUMENT.read_text()) if block.name}
  if different := code.keys() ^ REHEARSALS.keys():
    raise SystemExit(f'the document and this script have different blocks: {", ".join(sorted(different))}')
  failed: set[str] = set()
  with tempfile.TemporaryDirectory(prefix='rehearsal-', ignore_cleanup_errors=True) as folder:
    site = Site(pathlib.Path(folder), code, show)
    try:
      for name in names:
        began, missing = time.monotonic(), failed & NEEDS.get(name, set())
        fine = not missing
        try:
          seen = REHEARSALS[name](site) if fine else f'not run, for {", ".join(sorted(missing))} failed'
        except (RehearsalError, OSError, subprocess.CalledProcessError) as error:
          fine, seen = False, f'{type(error).__name__}: {error}'
        failed |= set() if fine else {name}
        yield name, time.monotonic() - began, fine, seen
    finally:
      site.clean()


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--skip-install', action='store_true', help='do not build an environment, which takes minutes and a network')
  parser.add_argument('--show', action='store_true', help='print each block as it is run')
  parser.add_argument('blocks', nargs='*', help=f'of {", ".join(REHEARSALS)}; default all')
  given = parser.parse_args()
  bad = 0
  print(f'{"block":20} {"seconds":>7}  ok   seen', flush=True)
  for name, seconds, fine, seen in rehearse(chosen(given.blocks, given.skip_install), show=given.show):
    bad += not fine
    print(f'{name:20} {seconds:7.1f}  {"yes" if fine else "NO":3}  {seen}', flush=True)
  return 1 if bad else 0


if __name__ == '__main__':
  sys.exit(main())
