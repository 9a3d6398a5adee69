"""The core study as its users run it: the folder it leaves, and its mistakes. tests/experiments/test_chaos.py kills it."""

import dataclasses
import html.parser
import json

import numpy as np
import pytest

from configs.entropy_mechanism import get_config
from entropy_jax.analysis import mechanism, runs
from entropy_jax.training import countdown
from entropy_jax.types import UserError
from experiments import entropy_mechanism
from tests.experiments.conftest import run


class Images(html.parser.HTMLParser):
  """Counts embedded pictures and notes anything that would be loaded from elsewhere."""

  def __init__(self):
    super().__init__()
    self.embedded, self.outside = 0, []

  def handle_starttag(self, tag, attrs):
    for name, value in attrs:
      if name == 'src' and tag == 'img' and value.startswith('data:image/png;base64,'):
        self.embedded += 1
      elif name in ('src', 'href') and value and not value.startswith(('#', 'data:')):
        self.outside.append(value)


class TestStudy:
  def test_report_is_whole_and_self_contained(self, tiny_study):
    images = Images()
    images.feed((tiny_study / 'report.html').read_text())
    assert images.embedded >= 6 and images.outside == []
    assert len(list((tiny_study / 'figures').glob('*.png'))) == images.embedded

  def test_claims_have_intervals_and_verdicts(self, tiny_study):
    claims = json.loads((tiny_study / 'claims.json').read_text())
    assert len(claims) >= 10
    keys = {'id', 'paper', 'statement', 'metric', 'value', 'interval', 'baseline', 'criterion', 'verdict'}
    assert all(set(claim) == keys and len(claim['interval']) == 2 for claim in claims)
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}

  def test_folder_keeps_the_contract(self, tiny_study):
    assert json.loads((tiny_study / 'config.json').read_text())['tabular']['num_seeds'] == 2
    assert 'jax' in (tiny_study / 'environment.json').read_text()
    study = runs.load_study(tiny_study)
    expected = {'.', 'tabular/fork_tokens/grpo/seed_1', 'tabular/mod_sum/kl_cov_1/seed_0', 'countdown/warm_start', 'countdown/seed_1'}
    assert expected <= set(study)
    assert np.all(np.isfinite(study['.']['fork_tokens/clip_cov/success']))
    for name in ('countdown/warm_start', 'countdown/seed_0'):
      assert (tiny_study / name / 'checkpoints').is_dir() and any((tiny_study / name / 'tensorboard').iterdir())
    row = study['countdown/seed_0']
    assert {'rollout/success', 'rollout/entropy', 'policy/covariance', 'policy/entropy_change', 'verdict/correct'} <= set(row)
    assert {'eval/success', 'eval/entropy'} <= set(row)
    verdicts = sum(row[name] for name in row if name.startswith('verdict/'))
    np.testing.assert_allclose(verdicts[np.isfinite(verdicts)], 1.0, rtol=1e-5)

  def test_finished_study_is_only_judged_again(self, tiny_study):
    before = {p: p.stat().st_mtime_ns for p in tiny_study.rglob('metrics.jsonl') if p.parent != tiny_study}
    claims = (tiny_study / 'claims.json').read_bytes()
    mechanism.report(tiny_study)
    assert (tiny_study / 'claims.json').read_bytes() == claims
    assert before == {p: p.stat().st_mtime_ns for p in before}


class TestMistakes:
  @pytest.mark.parametrize(
    ('override', 'sentence'),
    [
      ('--config.countdown.num_slices=3', 'num_slices=3 does not divide the batch of 16 sequences; use one of 1, 2, 4, 8, 16'),
      ('--config.countdwn.num_steps=3', 'Did you mean'),
    ],
  )
  def test_one_sentence_before_anything_runs(self, tmp_path, override, sentence):
    done = run(tmp_path / 'run', override)
    assert done.returncode == 2 and sentence in done.stderr
    assert 'Traceback' not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'run' / 'tabular').exists()

  @pytest.mark.parametrize(
    ('mistake', 'sentence'),
    [
      (lambda c: c.update(dataset='countdown/tree'), 'countdown/three'),
      (lambda c: c.objective.surrogates[0].update(name='ppo_clop'), "Did you mean 'ppo_clip'"),
      (lambda c: c.objective.surrogates[0]['kwargs'].update(low=-1.0), r'low=-1\.0 is outside \[0'),
    ],
  )
  def test_of_names_and_hyper_parameters(self, mistake, sentence):
    config = get_config('tiny')
    mistake(config.countdown)
    with pytest.raises(UserError, match=sentence) as raised:
      entropy_mechanism.validate(config, 1, 1)
    assert '\n' not in str(raised.value)


class TestValidate:
  """Pairs of values, against the config of the tiny study; single values are fuzzed in tests/chaos."""

  def config(self, **changes):
    config = get_config('tiny')
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config

  def test_gives_what_runs(self):
    objectives, parts = entropy_mechanism.validate(self.config(countdown__model__dtype='bfloat16', countdown__model__remat=True), 8, 2)
    assert set(objectives) == {'grpo', 'clip_cov', 'kl_cov_1'}
    assert (parts.shape.dtype, parts.shape.remat, parts.shape.num_layers) == ('bfloat16', True, 1)

  @pytest.mark.parametrize(
    ('changes', 'counts', 'sentence'),
    [
      ({'countdown__num_minibatches': 3}, (1, 1), 'num_minibatches=3 does not divide the batch of 16 sequences; use one of 1, 2, 4, 8'),
      ({'countdown__num_minibatches': 4, 'countdown__num_slices': 8}, (1, 1), 'num_slices=8 does not divide the batch of 4 sequences'),
      ({}, (3, 1), 'a slice of 16 sequences cannot be cut evenly over num_devices=3; make it a multiple of 3, or num_devices 1 or 2.'),
      ({'num_devices': 3}, (8, 1), 'over num_devices=3'),
      ({'countdown__num_slices': 4}, (8, 1), 'num_slices=4: a slice of 4 sequences cannot be cut evenly over num_devices=8'),
      ({'countdown__warm_start__batch_size': 6}, (4, 1), 'warm_start.batch_size=6 cannot be cut evenly over num_devices=4'),
      ({'countdown__num_prompts': 6}, (4, 4), 'num_prompts=6 cannot be cut evenly over processes=4'),
      ({'countdown__warm_start__warmup_steps': 20}, (1, 1), 'warmup_steps=20 leaves nothing of countdown.warm_start.num_steps=20'),
      ({'countdown__num_seeds': 0, 'tabular__num_seeds': 0}, (1, 1), 'leave nothing to run'),
      ({'num_devices': 2, 'distributed': 'auto'}, (1, 1), 'several processes use all their devices'),
    ],
  )  # fmt: skip
  def test_pairs(self, changes, counts, sentence):
    with pytest.raises(UserError) as caught:
      entropy_mechanism.validate(self.config(**changes), *counts)
    assert sentence in str(caught.value) and str(caught.value).startswith('config: ')

  def test_an_objective_that_needs_a_reference_policy(self):
    config = self.config()
    config.countdown.objective.regularizers = [{'name': 'kl', 'kwargs': {}}]
    with pytest.raises(UserError, match=r'^config: countdown\.objective: objective: regularizers: kl reads ref_logp_BxT, which this run'):
      entropy_mechanism.validate(config)

  def test_what_only_the_data_tells(self, tmp_path):
    config, read = self.config().countdown, countdown.read_problems
    shape = countdown.Countdown.build(config, {'': config.objective.to_dict()}).shape
    problems = read(config, shape, tmp_path)
    assert sum(countdown.lengths(problems)) == 24
    with pytest.raises(UserError, match=r'model\.max_length=23 is less than the 24 tokens of prompt and response; give at least 24\.'):
      read(config, dataclasses.replace(shape, max_length=23), tmp_path)
    config.warm_start.batch_size = len(problems['train']) + 1
    with pytest.raises(UserError, match=r'warm_start\.batch_size=2034 is more than the 2033 problems of .*; give at most 2033\.'):
      read(config, shape, tmp_path)
    (tmp_path / 'file').touch()
    config.data_dir = 'file/data'
    with pytest.raises(UserError, match=r"data_dir='file/data' is no folder"):
      read(config, shape, tmp_path)
