"""The study of policy entropy and attention entropy as its users run it: the folder it leaves, what is done again, and its mistakes."""

import json
import re
import shutil

import numpy as np
import pytest

from configs import policy_attention as configs
from entropy_jax.analysis import policy_attention as study
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import policy_attention as experiment
from tests.experiments.conftest import ROOT, run_here


def run(workdir) -> None:
  """The tiny study of the baseline and the control alone: two programs."""
  config = configs.get_config('tiny')
  del config.variants['sigma_reparam']
  config.held_objective.regularizers[0]['kwargs']['target'] = 2.0  # more than there can be, so that it acts at once
  run_here(experiment, config, workdir)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished study."""
  workdir = tmp_path_factory.mktemp('policy') / 'study'
  run(workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    assert json.loads((tiny / 'config.json').read_text())['num_seeds'] == 2
    assert 'jax' in (tiny / 'environment.json').read_text()
    found = {path.parent.relative_to(tiny).as_posix() for path in tiny.glob('*/seed_*/metrics.jsonl')}
    assert found == {f'{name}/seed_{k}' for name in (study.BASELINE, study.HELD) for k in range(2)}

  def test_report_holds_claims_and_figures(self, tiny):
    claims = json.loads((tiny / 'claims.json').read_text())
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}  # two seeds support no claim
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 5  # there is one layer

  def test_runs_are_paired_and_differ(self, tiny):
    found = study.load(tiny)
    first = {name: np.array([run[study.POLICY][0] for run in trained.runs]) for name, trained in found.items()}
    np.testing.assert_array_equal(first['pre_ln'], first[study.HELD])  # one start, two objectives
    assert first['pre_ln'][0] != first['pre_ln'][1]
    assert np.any(found['pre_ln'].points(study.POLICY) != found[study.HELD].points(study.POLICY))
    for trained in found.values():
      assert all(np.isfinite(values).all() for run in trained.runs for name, values in run.items() if name != 'warm_start/kl')
      assert all(run['warm_start/kl'][0] > 0 for run in trained.runs)
      assert np.all((trained.points(study.ATTENTION) > 0) & (trained.points(study.ATTENTION) <= 1))

  def test_what_is_missing_is_run_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost = again / 'pre_ln' / 'seed_1' / 'metrics.jsonl'
    whole = lost.read_bytes()
    lost.unlink()
    (again / 'report.html').unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob('seed_*/metrics.jsonl')}
    run(again)
    assert lost.read_bytes() == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes() and (again / 'report.html').exists()

  def test_a_mistake_is_one_sentence(self, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
      config = ROOT / 'configs' / 'policy_attention.py'
      app.run(experiment.main, ['p', f'--config={config}:tiny', f'--workdir={tmp_path}/run', '--config.block=7'])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1 and 'block=7 does not divide the batch of 20 updates' in said
    assert not (tmp_path / 'run' / 'pre_ln').exists()


class TestConfig:
  @pytest.mark.parametrize('variant', configs.VARIANTS)
  def test_every_key_has_a_row(self, variant):
    config = app.resolve(configs.get_config(variant))
    ranges.check(config, configs.RANGES)
    runs = experiment.validate(configs.get_config(variant))
    assert [*runs][-1] == study.HELD and study.BASELINE in runs
    assert runs[study.HELD].decoder == runs[study.BASELINE].decoder and runs['sigma_reparam'].decoder.linear == 'sigma_reparam'
    assert variant or (config['num_seeds'] >= 5 and {'qk_norm', 'sigma_reparam_pre_ln'} <= set(runs))

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      configs.get_config('tini')


class TestValidate:
  @pytest.mark.parametrize(
    ('key', 'value', 'sentence'),
    [
      ('block', 10, 'block=10 leaves fewer than 4 points a run; give at most 5.'),
      ('group_size', 1, 'group_size=1 is outside [2, 65536]'),
      ('decoder.width', 15, 'variants.pre_ln: num_heads is 2, which does not divide width (15)'),
      ('variants.pre_ln.norm', 'per', "variants.pre_ln.norm='per' is not one of pre, post, none, deepnorm"),
      ('variants.pre_ln_held', {'norm': 'pre'}, 'variants.pre_ln_held has the name of the control; give it another.'),
      ('objective.surrogates', [{'name': 'ppo_clib', 'kwargs': {}}], 'objective'),
    ],
  )
  def test_mistakes(self, key, value, sentence):
    config = configs.get_config('tiny')
    *groups, name = key.split('.')
    group = config
    for part in groups:
      group = group[part]
    group[name] = value
    with pytest.raises(UserError, match=re.escape(sentence)):
      experiment.validate(config)

  def test_no_baseline_and_too_many(self):
    config = configs.get_config('tiny')
    for i in range(8):
      config.variants[f'more_{i}'] = {'norm': 'pre'}
    with pytest.raises(UserError, match='variants has 10; a figure can tell 8 and the control apart'):
      experiment.validate(config)
    config.variants = {'sigma_reparam': {'linear': 'sigma_reparam'}}
    with pytest.raises(UserError, match='variants has no pre_ln, which all others are compared with'):
      experiment.validate(config)
