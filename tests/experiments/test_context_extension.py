"""The context-extension study: the folder it leaves, what is done again, its data, and its mistakes."""

import json
import re

import jax
import numpy as np
import pytest

from configs import context_extension as study
from entropy_jax.analysis import context_runs
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import context_extension
from tests.experiments.conftest import changed, run_here


def config(**changes):
  return changed(study.get_config('tiny'), **changes)


def smaller():
  """The tiny study, smaller still: no more than what the rules of a study need."""
  extended = {'rope_theta': 5e5, 'entropy_abf_window': 8, 'entropy_abf_exempt': 1}
  return config(
    context=8, tuned_context=16, longest=24, bin_size=4, lag=2, width=8, num_layers=2, mlp_width=8, short__num_steps__recall=4,
    short__batch_size=2, extensions={'none': {'rope_theta': 1e4, 'entropy_abf_exempt': 1}, 'entropy_abf': extended},
  )  # fmt: skip


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished study."""
  workdir = tmp_path_factory.mktemp('context') / 'study'
  run_here(context_extension, smaller(), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, finished):
    assert json.loads((finished / 'config.json').read_text())['context'] == 8
    found = {path.parent.relative_to(finished).as_posix() for path in finished.glob('*/*/seed_*/metrics.jsonl')}
    assert found == {f'recall/{name}/seed_{k}' for name in ('short', 'none', 'entropy_abf') for k in range(2)}
    claims = json.loads((finished / 'claims.json').read_text())
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}
    assert {claim['id'] for claim in claims} == {'recall/first_layers_grow_most', 'recall/entropy_abf_holds_beyond_tuning'}
    page = (finished / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((finished / 'figures').glob('*.png'))) == 3
    assert len((finished / 'metrics.jsonl').read_text().splitlines()) == 3

  def test_every_extension_starts_from_the_same_model(self, finished):
    task = context_runs.load(finished)['recall']
    none, extended = task.extensions['none'], task.extensions['entropy_abf']
    np.testing.assert_array_equal(none.step_C, [0, 2, 4])
    assert none.loss_RxCxJ.shape == (2, 3, 6) and np.isfinite(none.loss_RxCxJ).all()
    # Up to a few positions at a small model's start the base hardly matters; beyond the window the scale does.
    np.testing.assert_allclose(none.loss_RxCxJ[:, 0, 0], extended.loss_RxCxJ[:, 0, 0], rtol=1e-2)
    assert not np.allclose(none.entropy_RxCxLxJ[:, 0, 1, 4:], extended.entropy_RxCxLxJ[:, 0, 1, 4:], atol=1e-6)
    assert (none.loss_RxCxJ[:, 0] != none.loss_RxCxJ[:, -1]).all()

  def test_what_is_missing_is_run_again_to_the_same_bits(self, finished):
    lost = finished / 'recall' / 'none' / 'seed_1' / 'metrics.jsonl'
    whole, claims = lost.read_bytes(), (finished / 'claims.json').read_bytes()
    lost.unlink()
    kept = {p: p.stat().st_mtime_ns for p in finished.glob('*/*/seed_*/metrics.jsonl')}
    context_extension.main(smaller(), finished)
    assert lost.read_bytes() == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (finished / 'claims.json').read_bytes() == claims


class TestConfig:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_every_row_has_its_keys(self, variant):
    ranges.check(app.resolve(study.get_config(variant)), study.RANGES)
    models = context_extension.validate(study.get_config(variant))
    assert models['entropy_abf'].entropy_abf_window == study.get_config(variant).context and models['abf'].rope_theta == 5e5
    assert models['short'] == models['none'] and models['short'].positions == 'rotary'

  def test_the_default_study_has_both_tasks_and_all_extensions(self):
    found = app.resolve(study.get_config())
    assert context_extension.tasks(found) == list(study.TASKS) and found['num_seeds'] >= 3
    assert found['extensions'].keys() == set(context_runs.ORDER) and found['num_layers'] > 2

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestData:
  PLAIN = app.resolve(study.get_config('tiny'))

  def test_recall_names_the_token_so_far_back(self):
    found = jax.device_get(context_extension.recall(jax.random.key(0), num_sequences=2, length=9, lag=3, num_symbols=5))
    np.testing.assert_array_equal(found.target_BxT[:, 3:], found.inputs[:, :-3])
    np.testing.assert_array_equal(found.mask_BxT, [[False] * 3 + [True] * 6] * 2)
    assert found.inputs.max() < 5

  @pytest.mark.parametrize('task', study.TASKS)
  def test_sequences_of_training_tuning_and_measures_differ(self, task):
    plain = self.PLAIN | {'short': self.PLAIN['short'] | {'num_steps': {'source_bytes': 3, 'recall': 3}}}
    short, tuning = (context_extension.training(task, part, plain) for part in ('short', 'tuning'))
    measured = context_extension.held_out(task, plain)
    assert short.inputs.shape == (2, 3, 4, 16) and tuning.inputs.shape == (2, 4, 2, 32) and measured.inputs.shape == (2, 64)
    starts = [np.asarray(x.inputs)[..., :16].reshape(-1, 16) for x in (short, tuning, measured)]
    # Of random tokens no two are alike; rows of source code begin with spaces often enough.
    found = len({row.tobytes() for rows in starts for row in rows})
    assert found == 24 + 16 + 2 if task == 'recall' else found > 30


class TestValidate:
  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'short__num_steps': {'source_bytes': 0, 'recall': 0}}, 'short.num_steps=0 of source_bytes, recall leaves nothing to run'),
      ({'tuned_context': 16}, 'context=16, tuned_context=16, longest=64 do not grow in this order'),
      ({'bin_size': 5}, 'bin_size=5 does not divide context=16; give a divisor of all three lengths.'),
      ({'lag': 16}, 'lag=16 leaves no target in context=16; give less.'),
      ({'tuning__log_every': 3}, 'tuning.log_every=3 does not divide tuning.num_steps=4; give a divisor.'),
      ({'tuning__learning_rate': 0.0}, 'tuning.learning_rate=0.0 is outside (0, inf)'),
      ({'optimizer__weight_decay': 0.1}, 'adam takes no weight_decay'),
      ({'extensions': {'abf': {'rope_theta': 5e5}}}, 'extensions has no none, which others are compared with; add it.'),
      ({'extensions': {'none': {}, 'short': {}}}, 'extensions has 2 parts; give at most 9, none of them called short.'),
      ({'extensions__none': {'positions': 'learned'}}, 'extensions.none.positions is not for an extension to set; it may set rope_theta'),
      ({'extensions__none': {'entropy_abf_window': 1}}, 'extensions.none.entropy_abf_window=1 is outside [2, inf)'),
      ({'num_layers': 2}, 'extensions.abf: entropy_abf_exempt is 2 of 2 layers; give at least 1 and fewer than num_layers'),
      ({'num_heads': 3}, 'num_heads is 3, which does not divide width (16)'),
    ],
  )
  def test_mistakes(self, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
      context_extension.validate(config(**changes))
