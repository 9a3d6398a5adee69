"""The entropy-control study as its users run it: the folder it leaves, what is done again, and its mistakes."""

import json
import re
import shutil

import numpy as np
import pytest

from configs import entropy_control as study
from entropy_jax.analysis import control_report, control_runs, runs
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import entropy_control
from tests.experiments.conftest import ROOT, run_here


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished tiny study."""
  workdir = tmp_path_factory.mktemp('control') / 'study'
  run_here(entropy_control, study.get_config('tiny'), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    assert json.loads((tiny / 'config.json').read_text())['num_seeds'] == 2
    assert 'jax' in (tiny / 'environment.json').read_text()
    found = set(runs.load_study(tiny))
    for name in ('aepo', 'model_based', 'ter'):
      expected = {f'fork_tokens/{name}/seed_{k}' for k in range(2)} | {f'fork_tokens/{name}/tuning/setting_{i}/seed_0' for i in range(2)}
      assert expected <= found
    assert 'fork_tokens/grpo/seed_1' in found and 'fork_tokens/grpo/tuning/setting_0/seed_0' not in found

  def test_report_holds_claims_and_figures(self, tiny):
    claims = json.loads((tiny / 'claims.json').read_text())
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}
    expected = {f'fork_tokens/{id}' for id in ('model_based_tracks_closer', 'aepo_is_ordered', 'aepo_is_steady', 'ter_holds_target')}
    assert expected <= {claim['id'] for claim in claims}
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 2
    assert 'setting chosen on other seeds' in page

  def test_runs_are_paired_and_their_tuning_is_apart(self, tiny):
    bed = control_runs.load(tiny)['fork_tokens']
    start = {name: held.entropy_KxRxN[:, :, 0] for name, held in bed.controllers.items()}
    for name in start:  # one instance a seed, whatever controls it and whatever it is to hold
      np.testing.assert_allclose(start[name], np.broadcast_to(start['grpo'][:1], start[name].shape), rtol=1e-6)
    tuned = control_runs.stacked([control_runs.tuning_folder(tiny / 'fork_tokens' / 'ter', 0, 0)], bed.targets, 'entropy')
    assert tuned is not None and np.abs(tuned[:, :, 0] - start['grpo']).min() > 1e-4

  def test_controllers_act(self, tiny):
    bed = control_runs.load(tiny)['fork_tokens']
    free = bed.controllers['grpo'].entropy_KxRxN
    np.testing.assert_allclose(free[0], free[1], atol=1e-4)  # it knows no target
    for name in ('ter', 'model_based', 'aepo'):
      assert np.abs(bed.controllers[name].entropy_KxRxN - free)[:, :, -1].min() > 1e-4, name

  def test_what_is_missing_is_run_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost = again / 'fork_tokens' / 'ter' / 'seed_1' / 'metrics.jsonl'
    whole = lost.read_bytes()
    lost.unlink()
    (again / 'report.html').unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob('seed_*/metrics.jsonl')}
    run_here(entropy_control, study.get_config('tiny'), again)
    assert lost.read_bytes() == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes() and (again / 'report.html').exists()

  def test_a_finished_study_is_only_judged_again(self, tiny):
    before = (tiny / 'claims.json').read_bytes()
    control_report.report(tiny)
    assert (tiny / 'claims.json').read_bytes() == before

  def test_a_mistake_is_one_sentence(self, tmp_path, capsys):
    flags = [f'--config={ROOT / "configs" / "entropy_control.py"}:tiny', f'--workdir={tmp_path}/run']
    with pytest.raises(SystemExit) as caught:
      app.run(entropy_control.main, ['p', *flags, '--config.controllers.ter.settings[0].coef=-1.0'])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1
    assert 'controllers.ter.objective' in said and 'coef=-1.0 is outside [0, inf)' in said
    assert not (tmp_path / 'run' / 'fork_tokens').exists()


class TestConfig:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_every_key_matches_exactly_one_row(self, variant):
    config = app.resolve(study.get_config(variant))
    paths = set()

    def walk(group, prefix=''):
      for key, value in group.items():
        if isinstance(value, dict):
          walk(value, f'{prefix}{key}.')
        else:
          paths.add(f'{prefix}{key}')

    walk(config)
    rows = {path: ranges.rows_of(path, study.RANGES) for path in paths}
    assert {path: found for path, found in rows.items() if len(found) != 1} == {}
    assert {found[0] for found in rows.values()} == set(study.RANGES), 'a row without a key'

  def test_every_controller_has_as_many_settings(self):
    config = app.resolve(study.get_config())
    assert {len(c['settings']) for c in config['controllers'].values() if c['origin'] != 'reference'} == {study.NUM_SETTINGS}

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestBind:
  SPEC = {'regularizers': [{'name': 'ter', 'kwargs': {'target': 'target', 'coef': 'coef', 'mode': 'token'}}], 'aggregate': 'token_mean'}

  def test_names_become_numbers(self):
    found = entropy_control.bind(self.SPEC, {'target': 0.5, 'coef': 0.1, 'ter': 9.0})
    assert found == {'regularizers': [{'name': 'ter', 'kwargs': {'target': 0.5, 'coef': 0.1, 'mode': 'token'}}], 'aggregate': 'token_mean'}
    assert self.SPEC['regularizers'][0]['kwargs']['coef'] == 'coef'

  def test_names_that_may(self):
    assert entropy_control._names(self.SPEC) == {'target', 'coef', 'token', 'token_mean'}


class TestValidate:
  def config(self, **changes):
    config = study.get_config('tiny')
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config

  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_shipped(self, variant):
    found = entropy_control.validate(study.get_config(variant))
    assert found['aepo'].rollout == 'arbitrary_entropy' and found['ter'].settings[0].keys() == {'coef'} and not found['ter'].each_target
    assert variant or found['epo'].each_target

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'fork_tokens__num_steps': 0}, 'num_steps=0 of fork_tokens and mod_sum leaves nothing to run'),
      ({'fork_tokens__settle_by': 12}, 'fork_tokens.settle_by=12 leaves nothing of fork_tokens.num_steps=12; give less than 12.'),
      ({'targets': (0.7, -0.7)}, 'targets[1]=-0.7 is outside (0, inf)'),
      ({'controllers__ter__origin': 'reference'}, 'origins 1 published, 1 here, 2 reference; give at least one'),
      ({'controllers__ter__origin': 'here'}, 'origins 1 published, 2 here, 1 reference'),
      ({'controllers__ter__objective': 'grpo + terr(target=target, coef=coef)'}, 'controllers.ter.objective: objective: there is no'),
      ({'controllers__ter__objective': 'grpo + ter(target=target, coef=0.1)'}, "controllers.ter.settings has 'coef', which"),
      ({'controllers__ter__objective': 'grpo + ter(target=goal, coef=coef)'}, "target='goal' is not a number"),
      ({'controllers__ter__rollout': 'hot'}, "controllers.ter.rollout='hot' is not one of sampled, arbitrary_entropy"),
      ({'controllers__aepo__rollout': 'sampled'}, 'imitate reads imitated_B, which this run does not provide'),
    ],
  )  # fmt: skip
  def test_mistakes(self, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
      entropy_control.validate(self.config(**changes))

  def test_unequal_grids_and_temperatures(self):
    config = self.config()
    config.controllers.ter.settings = config.controllers.ter.settings[:1]
    with pytest.raises(UserError, match=r"unequal numbers of settings \(.*'ter': 1.*; give each as many as the others"):
      entropy_control.validate(config)
    config = self.config()
    config.controllers.aepo.settings[0]['low'] = 1.5
    with pytest.raises(UserError, match=r'config: controllers\.aepo\.objective: arbitrary_entropy: low=1\.5 is outside \(0, 1\]'):
      entropy_control.validate(config)

  def test_more_than_a_figure_can_tell_apart(self):
    config = self.config()
    for i in range(7):
      config.controllers[f'ter_{i}'] = config.controllers.ter
    with pytest.raises(UserError, match='has 10 besides the reference; a figure can tell 9 apart'):
      entropy_control.validate(config)
