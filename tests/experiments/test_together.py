"""python -m experiments: several studies at a time, their lines told apart, a failure and a signal kept where they belong."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from entropy_jax.analysis import report
from entropy_jax.types import UserError
from experiments import __main__ as together

# Waits until so many have come, so that it ends in time only where they run at once.
MEETS = """
import pathlib, sys, time
folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
(folder / sys.argv[3]).touch()
end = time.monotonic() + 30
while len(list(folder.iterdir())) < number:
  assert time.monotonic() < end
  time.sleep(0.01)
print('a line')
print('on stderr', file=sys.stderr)
"""
# Saves on a signal, as studies do.
SAVES = """
import signal, sys, time
def save(number, frame):
  print('saved', number)
  sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print('trains')
time.sleep(60)
"""


def python(source: str, *arguments: str) -> list[str]:
  return [sys.executable, '-c', source, *arguments]


class TestCommand:
  def test_of_a_study_and_a_variant(self, tmp_path):
    assert together.command('mil_aem', tmp_path)[1:] == [
      '-m', 'experiments.mil_aem', '--config=configs/mil_aem.py', f'--workdir={tmp_path}/mil_aem',
    ]  # fmt: skip
    assert together.command('rlvr_gsm8k.tiny', tmp_path)[2:] == [
      'experiments.rlvr', '--config=configs/rlvr_gsm8k.py:tiny', f'--workdir={tmp_path}/rlvr_gsm8k.tiny',
    ]  # fmt: skip

  @pytest.mark.parametrize(
    ('given', 'says'),
    [
      ('mil_eam', "there is no study 'mil_eam'; the studies are attention_bound, .*Did you mean 'mil_aem'"),
      ('common', "there is no study 'common'"),
      ('mil_aem.tinny', "mil_aem has no variant 'tinny'; allowed: tiny, or none. Did you mean 'tiny'"),
    ],
  )
  def test_mistakes(self, tmp_path, given, says):
    with pytest.raises(UserError, match=says):
      together.command(given, tmp_path)

  def test_every_study_of_make_is_there(self, tmp_path):
    text = pathlib.Path('Makefile').read_text()
    named = re.search(r'^REST := (.*)$', text, re.MULTILINE).group(1).split()
    named += re.search(r'^CORE := (.*)$', text, re.MULTILINE).group(1).split()
    assert len(named) >= 9
    for name in named:
      together.command(name, tmp_path)


class TestTogether:
  def test_so_many_at_a_time_with_their_names(self, tmp_path, capfd):
    names = ['a', 'b', 'c', 'd']
    runs = together.Together({name: python(MEETS, str(tmp_path), '2' if name < 'c' else '4', name) for name in names}, 2)
    assert runs.run() is None
    said = capfd.readouterr().out.splitlines()
    assert sorted(said) == sorted(f'{name}: {line}' for name in names for line in ('a line', 'on stderr'))
    assert [runs.ended[name].code for name in names] == [0] * 4
    assert re.fullmatch(rf'b: \d+ s, {tmp_path}/b/report.html', together.summary(['b'], runs.ended, tmp_path)[0])

  def test_one_at_a_time(self, tmp_path):
    commands = {name: python('import os, sys; os.mkdir(sys.argv[1]); os.rmdir(sys.argv[1])', str(tmp_path / 'held')) for name in 'abc'}
    runs = together.Together(commands, 1)
    runs.run()
    assert [runs.ended[name].code for name in 'abc'] == [0] * 3

  def test_the_first_has_precedence(self, capfd):
    source = 'import os, time; time.sleep(0.5); print(os.getpriority(os.PRIO_PROCESS, 0))'
    together.Together(dict.fromkeys('abc', python(source)), 2).run()
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert sorted(capfd.readouterr().out.splitlines()) == [f'a: {mine}', *(f'{name}: {max(mine, together.LATER)}' for name in 'bc')]

  def test_a_failure_does_not_stop_the_others(self, tmp_path):
    runs = together.Together({'bad': python('print("error: so"); raise SystemExit(2)'), 'good': python('print("done")')}, 1)
    assert runs.run() is None
    assert runs.ended['bad'][::2] == (2, 'error: so') and runs.ended['good'][::2] == (0, 'done')
    lines = together.summary(['bad', 'good', 'late'], runs.ended, tmp_path)
    assert re.fullmatch(r'bad: exit code 2 after \d+ s: error: so', lines[0]) and lines[2] == 'late: not started'

  def test_one_that_is_killed(self):
    runs = together.Together({'a': python('import os; os.kill(os.getpid(), 9)'), 'b': python('')}, 2)
    assert runs.run() is None and (runs.ended['a'].code, runs.ended['b'].code) == (137, 0)

  @pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
  def test_a_signal_goes_to_all_that_run(self, number):
    source = f"""
from experiments import __main__ as together
runs = together.Together(dict.fromkeys('abc', [{sys.executable!r}, '-c', {SAVES!r}]), 2)
print('ended by', runs.run())
print(together.summary('abc', runs.ended, together.ROOT))
"""
    process = subprocess.Popen([sys.executable, '-uc', source], stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline(), process.stdout.readline()]
    assert sorted(said) == ['a: trains\n', 'b: trains\n']
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and f'a: saved {number}\n' in rest and f'b: saved {number}\n' in rest
    assert f'ended by {int(number)}' in rest and f'exit code {128 + number} after' in rest and "'c: not started'" in rest


def test_index_of_what_is_there(tmp_path):
  assert together.write_index(tmp_path) is None
  for name in 'ab':
    report.write_report(tmp_path / name / 'report.html', report.Report(f'Study {name}', 'So it is.'))
  page = together.write_index(tmp_path).read_text()
  assert re.findall(r'<a href="(.*?)">(.*?)</a>', page) == [('a/report.html', 'Study a'), ('b/report.html', 'Study b')]


class TestRoom:
  def test_on_processors(self, monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert together.room() == min(len(os.sched_getaffinity(0)), together.MOST)

  def test_an_accelerator_is_for_one(self, tmp_path, monkeypatch):
    (tmp_path / 'jax.py').write_text("default_backend = lambda: 'tpu'")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert together.room() == 1


class TestCommandLine:
  """`main` in processes of its own, as users start it."""

  def run(self, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-m', 'experiments', *arguments], capture_output=True, text=True, timeout=120, check=False)

  def test_a_mistake_is_one_sentence_before_anything_starts(self, tmp_path):
    done = self.run('mil_aem', 'mil_aem.huge', f'--out={tmp_path}')
    assert done.returncode == 2 and done.stdout == '' and not list(tmp_path.iterdir())
    assert done.stderr == "error: mil_aem.huge: mil_aem has no variant 'huge'; allowed: tiny, or none.\n"
    assert 'give at least 1' in self.run('mil_aem', '--at_once=-1').stderr

  def test_one_study_is_run_as_itself(self, tmp_path):
    (tmp_path / 'file').touch()
    done = self.run('mil_aem.tiny', f'--out={tmp_path / "file"}')
    assert done.returncode == 2 and done.stderr.startswith('error: ') and len(done.stderr.splitlines()) == 1

  def test_of_several_the_first_failure_is_the_code(self, tmp_path):
    (tmp_path / 'file').touch()
    done = self.run('mil_aem.tiny', 'mil_aem', f'--out={tmp_path / "file"}', '--at_once=2')
    lines = done.stdout.splitlines()
    assert done.returncode == 2 and sorted(line.split(': error: ')[0] for line in lines[:2]) == ['mil_aem', 'mil_aem.tiny']
    assert re.match(r'mil_aem.tiny: exit code 2 after \d+ s: error: ', lines[2])
