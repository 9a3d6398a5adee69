"""Reinforcement learning with verifiable rewards as its users run it: the folder it leaves, what is done again, the export, mistakes."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from configs import rlvr_gsm8k as configs
from entropy_jax import parallel
from entropy_jax.data import hub_tokenizer
from entropy_jax.models import hub
from entropy_jax.training import app, ranges, rlvr, rlvr_run, rlvr_samples
from entropy_jax.types import UserError
from experiments import rlvr as experiment
from tests.experiments.conftest import ROOT, changed

# Far smaller than :tiny: small numbers, one block, a few steps; with adapters, which pass through every stage as all parameters do.
SMALL = {
  'num_devices': 1,
  'example__max_number': 12,
  'example__model': {'width': 16, 'num_layers': 1, 'num_heads': 2, 'num_kv_heads': 1, 'mlp_width': 16},
  'lora__rank': 2,
  'warm_start__num_steps': 3,
  'warm_start__batch_size': 16,
  'warm_start__warmup_steps': 1,
  'sampling__response_length': 5,
  'sampling__top_p': 0.95,
  'objective': 'seed_grpo + clip_higher + sampler_importance + kl(coef=0.1)',  # reads answers, the sampler and the reference
  'num_steps': 2,
  'num_prompts': 4,
  'group_size': 4,
  'num_minibatches': 2,
  'checkpoint_every': 2,
  'evaluation__every': 1,
  'evaluation__num_samples': 2,
  'entropy_change': False,
  'samples__num_prompts': 4,  # as many as in a rollout, whose program then serves both
  'samples__group_size': 4,
}


def small(**changes):
  return changed(configs.get_config('tiny'), **(SMALL | changes))


def run(workdir) -> None:
  config = small()
  app.prepare_workdir(workdir, config)
  experiment.main(config, workdir)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished run."""
  workdir = tmp_path_factory.mktemp('rlvr') / 'run'
  run(workdir)
  return workdir


class TestRun:
  def test_folder_keeps_the_contract(self, finished):
    assert json.loads((finished / 'config.json').read_text())['num_seeds'] == 1
    made_of = json.loads((finished / 'provenance.json').read_text())
    assert len(made_of['model']) == len(made_of['tokenizer']) == len(made_of['train']['digest']) == 64
    rows = [json.loads(line) for line in (finished / 'seed_0' / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [0, 1, 2]
    for name in ('reward/countdown', 'reward/finished', 'rollout/entropy', 'policy/covariance', 'update/loss'):
      assert np.isfinite(rows[0][name])
    assert (finished / 'warm_start' / 'metrics.jsonl').exists()

  def test_evaluations_are_of_every_question(self, finished):
    found = [json.loads(path.read_text()) for path in sorted((finished / 'seed_0' / 'evaluations').glob('*.json'))]
    assert [one['step'] for one in found] == [0, 1, 2]
    asked = len((finished / 'example' / 'held_out.jsonl').read_text().splitlines())
    for one in found:
      assert len(one['num_correct']) == asked and max(one['num_correct']) <= one['num_samples'] == 2
      assert one['metrics']['success'] == pytest.approx(np.mean(one['num_correct']) / 2)

  def test_report_holds_claims_figures_and_samples(self, finished):
    (claim,) = json.loads((finished / 'claims.json').read_text())
    assert claim['id'] == 'success_rises' and claim['verdict'] != 'reproduced'  # two rollouts teach nothing
    page = (finished / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((finished / 'figures').glob('*.png'))) == 2
    assert page.count('class="samples"') == 2 and 'sampler_importance' in page and 'pass@2' in page

  def test_samples_before_and_after_are_of_the_same_questions(self, finished):
    before, after = (rlvr_samples.read(finished / 'seed_0' / f'samples_{when}.jsonl') for when in ('before', 'after'))
    assert [one['prompt'] for one in before] == [one['prompt'] for one in after] and len(before) == 8
    for one in before:
      assert len(one['tokens']) == len(one['entropy']) == len(one['covariance']) and one['reward'] in (0.0, 1.0)

  def test_export_answers_as_the_trained_policy(self, finished):
    """The folder is read by the loader of published folders, and evaluated as the run evaluated its last policy, to the same answers."""
    config = app.resolve(small(model__folder=str(finished / 'seed_0' / 'export'), lora__rank=None))
    plan, material = rlvr.plan(config), rlvr.read(config, finished)
    mode = parallel.make('pmap', 1)
    model = rlvr_run.load(config, plan, material, mode)
    stages = rlvr_run.Stages(config, plan, material, mode, model, jax.random.key(config['seed']))
    _, found = stages.evaluate(model.params)
    last = json.loads((finished / 'seed_0' / 'evaluations' / 'step_000002.json').read_text())
    assert np.mean(np.array(found['num_correct']) == last['num_correct']) > 0.98  # adapters are added up in another order
    start, _ = hub.load(finished / 'example' / 'model', max_length=128)
    assert hub.config_of(finished / 'seed_0' / 'export', max_length=128) == start
    assert hub_tokenizer.load(finished / 'seed_0' / 'export').digest == hub_tokenizer.load(finished / 'example' / 'model').digest

  def test_what_is_missing_is_made_again_to_the_same_bits(self, finished, tmp_path):
    again = tmp_path / 'run'
    shutil.copytree(finished, again)
    lost = [again / 'seed_0' / 'samples_after.jsonl', again / 'seed_0' / 'export' / 'model.safetensors']
    whole = [path.read_bytes() for path in lost]
    lost[0].unlink()
    shutil.rmtree(again / 'seed_0' / 'export')
    (again / 'report.html').unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob('metrics.jsonl') if p.parent != again}
    run(again)
    assert [path.read_bytes() for path in lost] == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (finished / 'claims.json').read_bytes() and (again / 'report.html').exists()

  def test_other_weights_are_refused(self, finished, tmp_path):
    again = tmp_path / 'run'
    shutil.copytree(finished, again)
    path = again / 'example' / 'model' / 'model.safetensors'
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match='model is not what it was when this run was started'):
      run(again)

  def test_a_mistake_is_one_sentence(self, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
      config = ROOT / 'configs' / 'rlvr_gsm8k.py'
      app.run(experiment.main, ['p', f'--config={config}:tiny', f'--workdir={tmp_path}/run', '--config.num_slices=7'])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1 and 'num_slices=7 does not divide the batch of' in said
    assert not (tmp_path / 'run' / 'example').exists()


class TestConfig:
  @pytest.mark.parametrize('variant', configs.VARIANTS)
  def test_every_key_has_a_row(self, variant):
    config = configs.get_config(variant)
    ranges.check(app.resolve(config), configs.RANGES)
    plan = experiment.validate(config, {'7b': 32}.get(variant, 1))
    assert plan.adapters is None and plan.sampler is None and not plan.warnings
    assert 'ref_logp_BxT' not in plan.reads

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: 7b, tiny, or none\. Did you mean 'tiny'"):
      configs.get_config('tini')


class TestValidate:
  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'num_minibatches': 3}, 'num_minibatches=3 does not divide the batch of 16 sequences'),
      ({'num_prompts': 5}, 'a slice of 10 sequences cannot be cut evenly over num_devices=4'),
      ({'warm_start__batch_size': 6}, 'warm_start.batch_size=6: a slice of 6 sequences cannot be cut evenly over num_devices=4'),
      ({'warm_start__warmup_steps': 3}, 'warm_start: optimizer: warmup_steps=3 leaves nothing of num_steps=3'),
      ({'model__max_length': 20}, 'model.max_length=20 is less than the 25 tokens of data.prompt_length and sampling.response_length'),
      ({'objective': 'grpo + clip_hihger'}, "objective: objective: there is no method or preset 'clip_hihger'. Did you mean 'clip_higher'"),
      ({'objective': 'gae'}, 'objective: objective: advantages: gae reads value_BxT, which this run does not provide'),
      ({'sampling__top_p': None}, 'sampler_importance reads sampler_logp_BxT, which this run does not provide'),
      ({'rewards': {'countdwon': 1.0}}, "rewards.countdwon: is not one of accuracy, think_answer"),
      ({'rewards': {'countdown': 0.0}}, 'rewards: all weights are 0, which leaves nothing to train on'),
      ({'rewards': {'accuracy': 1.0}, 'evaluation__success': 'accuracy'}, 'rewards.accuracy is that of its verdict; enable it'),
      ({'evaluation__success': 'finnished'}, "evaluation.success='finnished' is none of the rewards countdown, countdown_numbers,"),
      ({'model__param_dtype': 'bfloat16', 'lora__rank': None}, "model.param_dtype='bfloat16' would train in bfloat16"),
      ({'lora__targets': '('}, "lora: targets='(' is no pattern"),
      ({'optimizer__name': 'sgd', 'optimizer__weight_decay': 0.1}, 'optimizer: optimizer: sgd takes no weight_decay'),
      ({'export__folder': '/a', 'num_seeds': 2}, "export.folder='/a' is one folder for 2 seeds; give a relative one."),
    ],
  )
  def test_mistakes(self, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
      experiment.validate(small(num_devices=0, **changes), 4)
