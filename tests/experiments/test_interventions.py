"""The interventions study as its users run it: its lines, its mistakes, and the folder that the tiny one leaves."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.interventions import LINES, TOP_TEN, UNNORMALISED, get_config
from entropy_jax.analysis import interventions as analysis
from entropy_jax.analysis import runs
from entropy_jax.training import tables
from entropy_jax.types import UserError
from experiments import interventions
from tests.experiments.conftest import ROOT, environment

FIELDS = {'answer_B', 'segment_BxT', 'planning_BxT', 'phase_BxT'}


def run(workdir, *overrides: str) -> subprocess.CompletedProcess:
  config = ROOT / 'configs' / 'interventions.py'
  command = [sys.executable, '-m', 'experiments.interventions', f'--config={config}:tiny', f'--workdir={workdir}', *overrides]
  return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False)


def config(variant: str = '', **changes):
  found = get_config(variant)
  found.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
  return found


class TestLines:
  def test_all_build_and_run_where_their_fields_are(self):
    study = interventions.validate(config())
    assert set(study.tabular['mod_sum']) == set(LINES) and next(iter(study.tabular['mod_sum'])) == 'grpo'
    assert set(LINES) - set(study.tabular['fork_tokens']) == {'pear'}
    assert len(study.notes) == 1 and 'fork_tokens: pear is left out' in study.notes[0] and 'phase_BxT' in study.notes[0]
    assert list(study.text.objectives) == ['grpo', *TOP_TEN] and len(TOP_TEN) == 10
    assert study.epochs == ['epochs_1', 'epochs_4'] and set(UNNORMALISED) <= set(LINES)

  def test_absent_is_what_the_tasks_do_not_annotate(self):
    for name, task in interventions.TABLES.items():
      made = task.make(jax.random.key(0))
      filled = set(made.annotate(jnp.zeros((1, made.num_tokens), jnp.int32)))
      assert interventions.ABSENT[name] == tables.ABSENT | (FIELDS - filled)


class TestChosen:
  def test_names_and_a_line_of_ones_own(self):
    found = interventions.chosen(config(methods='clip_cov, siren', objective='grpo + clip_higher + top_entropy(0.2)'))
    assert list(found) == ['grpo', 'clip_cov', 'siren', 'objective'] and found['siren'] == LINES['siren']
    study = interventions.validate(config(methods='clip_cov,siren', objective='dr_grpo + hicra'))
    assert list(study.tabular['fork_tokens']) == ['grpo', 'clip_cov', 'siren', 'objective']
    assert list(study.text.objectives) == ['grpo', 'clip_cov', 'siren']  # nobody says what plans in text
    assert any('countdown: objective is left out' in note for note in study.notes)


class TestMistakes:
  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'methods': 'clip_cof'}, "methods='clip_cof' names 'clip_cof', which is none of the lines; .* Did you mean 'clip_cov'"),
      ({'objective': 'grpo + clip_hihger'}, r"^config: objective: objective: there is no method or preset 'clip_hihger'\. Did you mean"),
      ({'objective': 'grpo + kl(coef=0.1)'}, r'^config: objective: objective: regularizers: kl reads ref_logp_BxT, which this run'),
      ({'lines.clip_b': 'grpo + clip_b(mu=-1.0)'}, r'^config: lines\.clip_b: .*mu=-1\.0'),
      ({'tabular.epochs': '2'}, "tabular.epochs='2' is not 1, 4 or '1,4'"),
      ({'tabular.unnormalised': 'dr_grop'}, "tabular.unnormalised='dr_grop' names 'dr_grop'.* Did you mean 'dr_grpo'"),
      ({'countdown.methods': 'clip_c'}, "countdown.methods='clip_c' names 'clip_c'"),
      ({'tabular.num_seeds': 0, 'countdown.num_seeds': 0}, 'leave nothing to run'),
      ({'tabular.fork_tokens.matched_success': 1.0}, r'matched_success=1\.0 is outside \(0, 1\)'),
      ({'tabular.mod_sum.epochs_1.num_steps': 0}, r'num_steps=0 is outside \[1'),
      ({'countdown.num_minibatches': 3}, 'num_minibatches=3 does not divide the batch of 128 sequences'),
    ],
  )
  def test_one_sentence(self, changes, sentence):
    wrong = get_config()
    wrong.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=sentence) as caught:
      interventions.validate(wrong)
    assert str(caught.value).startswith('config: ')

  def test_a_baseline_there_must_be(self):
    wrong = get_config()
    del wrong.lines['grpo']
    with pytest.raises(UserError, match=r'^config: lines\.grpo is missing'):
      interventions.validate(wrong)


class TestStudy:
  def test_tiny_study_with_a_line_of_ones_own(self, tmp_path):
    workdir, own = tmp_path / 'run', '--config.objective=grpo + top_entropy(0.5)'
    tables_steps = (f'--config.tabular.{task}.epochs_4.num_steps=6' for task in ('fork_tokens', 'mod_sum'))
    steps = (*tables_steps, '--config.countdown.num_steps=3')
    done = run(workdir, own, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    study = runs.load_study(workdir)
    methods = ('grpo', 'clip_b', 'objective')
    expected = {f'tabular/{task}/epochs_4/{m}/seed_{k}' for task in ('fork_tokens', 'mod_sum') for m in methods for k in range(2)}
    expected |= {f'countdown/{m}/seed_0' for m in methods} | {'countdown/warm_start', '.'}
    assert set(study) == expected
    assert np.all(np.isfinite(study['.']['fork_tokens/epochs_4/objective/entropy']))
    for name in ('grpo', 'clip_b'):  # one instance a seed, whatever the method
      assert study[f'tabular/fork_tokens/epochs_4/{name}/seed_1']['exact/success'][0] == study[
        'tabular/fork_tokens/epochs_4/objective/seed_1'
      ]['exact/success'][0]
    claims = json.loads((workdir / 'claims.json').read_text())
    assert {claim['id'] for claim in claims} == {f'{task}/epochs_4/clip_b_entropy' for task in ('fork_tokens', 'mod_sum')}
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}  # two seeds support none
    page = (workdir / 'report.html').read_text()
    assert 'grpo + top_entropy(0.5)' in page and 'Transformer on countdown' in page and page.count('data:image/png') == 4

    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('metrics.jsonl') if path.parent != workdir}
    judged = (workdir / 'claims.json').read_bytes()
    analysis.report(workdir)
    assert (workdir / 'claims.json').read_bytes() == judged
    assert before == {path: path.stat().st_mtime_ns for path in before}

    refused = run(workdir, '--config.objective=grpo + ter', *steps)  # another config in the same folder
    assert refused.returncode == 2 and 'objective' in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
