"""The recipes study as its users run it: the folder it leaves, what is done again, its data, and its mistakes."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from configs import sigma_reparam_recipes as study
from entropy_jax.analysis import recipes_runs, recipes_study
from entropy_jax.data import digits
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import sigma_reparam_recipes
from tests.experiments.conftest import ROOT, run_here


def smaller() -> object:
  """The tiny study with two recipes and one model of the deep part."""
  config = study.get_config('tiny')
  config.digits.update({'width': 8, 'num_heads': 2, 'mlp_width': 8, 'num_steps': 4, 'log_every': 2, 'batch_size': 8})
  config.digits.num_seeds = 2
  for name, recipe in config.digits.recipes.items():
    if name == 'tuned':
      recipe.optimizer.warmup_steps = 1
  del config.digits.recipes['sigma_reparam_sgd']
  config.translation.update({'width': 8, 'mlp_width': 8, 'num_steps': 4, 'log_every': 2, 'tail': 2, 'num_held_out': 4})
  config.translation.depths = (1,)
  del config.translation.variants['sigma_reparam_post_ln']
  return config.lock()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished study."""
  workdir = tmp_path_factory.mktemp('recipes') / 'study'
  run_here(sigma_reparam_recipes, smaller(), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    found = {path.parent.relative_to(tiny).as_posix() for path in tiny.rglob('seed_*/metrics.jsonl')}
    parts = ('tuning/seed_0', 'final/seed_0', 'final/seed_1')
    images = {f'digits/{name}/{part}' for name in ('tuned', 'pre_ln_sgd') for part in parts}
    assert found == images | {f'translation/post_ln/depth_1/seed_{k}' for k in range(2)}

  def test_report_holds_claims_and_figures(self, tiny):
    claims = json.loads((tiny / 'claims.json').read_text())
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}
    assert {claim['id'] for claim in claims} == {'digits/pre_ln_sgd_loses_more_than_one_point', 'translation/post_ln_fails_at_1'}
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 4

  def test_the_chosen_rate_is_that_of_the_validation_part(self, tiny):
    for recipe in recipes_runs.load_recipes(tiny).values():
      accuracy = recipes_runs.accuracy(recipe.tuning).mean(axis=1)
      assert accuracy[list(recipe.tuning.rate_K).index(recipe.rate)] == accuracy.max()
      assert recipe.final.loss_KxRxN.shape == (1, 2, 4) and recipe.tuning.loss_KxRxN.shape == (2, 1, 4)
      np.testing.assert_array_equal(recipe.tuning.loss_KxRxN[0, :, 0], recipe.tuning.loss_KxRxN[1, :, 0])  # one start for both rates
      assert recipe.final.loss_KxRxN[0, 0, 0] != recipe.final.loss_KxRxN[0, 1, 0]

  def test_runs_are_paired_and_deep_ones_start_near_the_uniform_loss(self, tiny):
    (deep,) = recipes_runs.load_deep(tiny).values()
    for swept in deep.depths.values():
      np.testing.assert_allclose(swept.loss_KxRxN[0, :, 0], swept.loss_KxRxN[1, :, 0])
      assert 1.5 < swept.loss_KxRxN[0, 0, 0] < 6.0 and np.isfinite(swept.final_loss).all()

  def test_what_is_missing_is_run_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost = [again / 'translation/post_ln/depth_1/seed_1/metrics.jsonl', again / 'digits/tuned/final/seed_1/metrics.jsonl']
    whole = [file.read_bytes() for file in lost]
    for file in lost:
      file.unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob('seed_*/metrics.jsonl')}
    sigma_reparam_recipes.main(smaller(), again)
    assert [file.read_bytes() for file in lost] == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes()


class TestConfig:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_every_key_matches_exactly_one_row(self, variant):
    config, found = app.resolve(study.get_config(variant)), set()

    def walk(group, prefix=''):
      for key, value in group.items():
        if isinstance(value, dict) and value:
          walk(value, f'{prefix}{key}.')
        else:
          rows = ranges.rows_of(f'{prefix}{key}', study.RANGES)
          assert len(rows) == 1, f'{prefix}{key}: {rows}'
          found.add(rows[0])

    walk(config)
    missing = set(study.RANGES) - found
    assert missing == (set() if not variant else {'digits.recipes.*.optimizer.trust_coefficient'}), 'a row without a key'

  def test_the_default_study_is_as_large_as_it_is_said_to_be(self):
    config = app.resolve(study.get_config())
    recipes = config['digits']['recipes']
    assert {'tuned', *recipes_study.WITHIN, *recipes_study.SHORT} == recipes.keys()
    assert len({len(recipe['rates']) for recipe in recipes.values()}) == 1
    assert config['digits']['num_seeds'] >= recipes_study.MIN_SEEDS and config['translation']['num_seeds'] >= recipes_study.MIN_DEEP_SEEDS
    # What the recipes do without.
    for name in recipes_study.WITHIN:
      assert recipes[name]['model'] == {'norm': 'none', 'linear': 'sigma_reparam', 'gain_init': 'sigma'}
      assert recipes[name]['optimizer']['name'] in ('sgd', 'lars')
      assert not {'warmup_steps', 'weight_decay'} & recipes[name]['optimizer'].keys()

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestData:
  def test_the_validation_part_is_of_the_training_set(self):
    parts = sigma_reparam_recipes.image_parts()
    (fit, validation), (train, test) = parts['tuning'], parts['final']
    assert len(validation) == len(test) and len(fit) + len(validation) == len(train)
    np.testing.assert_array_equal(np.concatenate([fit.fields['image'], validation.fields['image']]), train.fields['image'])
    np.testing.assert_array_equal(test.fields['label'], digits.split(digits.read(), 'test').label_R)
    batch = sigma_reparam_recipes.image_batch(test.take(np.arange(3)))
    assert batch.inputs.shape == (3, 8, 8, 1) and float(batch.inputs.min()) == -1.0 and float(batch.inputs.max()) <= 1.0

  def test_sentences_of_seeds_differ(self):
    settings = app.resolve(study.get_config('tiny'))['translation'] | {'num_steps': 2, 'batch_size': 3, 'num_held_out': 4}
    batches, held_out = sigma_reparam_recipes.sentence_batches(settings, seed=1)
    assert batches.target_BxT.shape == (2, 2, 3, 7) and held_out.target_BxT.shape == (4, 7)
    assert bool((batches.target_BxT[0] != batches.target_BxT[1]).any())
    later, _ = sigma_reparam_recipes.sentence_batches(settings, seed=2)
    np.testing.assert_array_equal(later.target_BxT[0], batches.target_BxT[1])


class TestValidate:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_shipped(self, variant):
    found = sigma_reparam_recipes.validate(study.get_config(variant))
    assert found.recipes['sigma_reparam_sgd'].linear == 'sigma_reparam' and found.recipes['tuned'].norm == 'pre'
    assert {name for name, _ in found.deep} >= {'post_ln', 'sigma_reparam_post_ln'}
    assert all(model.num_layers == depth for (_, depth), model in found.deep.items())

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'digits.num_steps': 0, 'translation.num_steps': 0}, 'num_steps=0 of digits and translation leaves nothing to run'),
      ({'digits.log_every': 3}, 'digits.log_every=3 does not divide digits.num_steps=20; give a divisor'),
      ({'translation.tail': 21}, 'translation.tail=21 is more than translation.num_steps=20; give at most that.'),
      ({'translation.depths': (1.5, 2)}, 'translation.depths=1.5 is not a whole number'),
      ({'translation.rates': (1e-3, 0.0)}, 'translation.rates[1]=0.0 is outside (0, inf)'),
      ({'digits.recipes.tuned.rates': (1e-3,)}, 'digits.recipes.pre_ln_sgd.rates has 2, and 1 of tuned; give as many'),
      ({'digits.recipes.tuned.optimizer.name': 'adma'}, "digits.recipes.tuned.optimizer.name='adma' is not one of adamw, lars, sgd"),
      ({'digits.recipes.tuned.optimizer.warmup_steps': 20}, 'digits.recipes.tuned.optimizer: optimizer: warmup_steps=20 leaves nothing'),
      ({'digits.patch_size': 3}, 'patch_size is 3: choose a divisor of image_size (8).'),
      ({'translation.num_heads': 3}, 'translation.variants.post_ln: num_heads is 3, which does not divide width (16)'),
      ({'translation.max_clauses': 0}, 'translation.max_clauses=0 is outside [1, inf)'),
    ],
  )  # fmt: skip
  def test_mistakes(self, changes, sentence):
    config = study.get_config('tiny')
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
      sigma_reparam_recipes.validate(config)

  def test_groups(self):
    config = study.get_config('tiny')
    config.translation.variants.post_ln = {'norm': 'post', 'width': 4}
    with pytest.raises(UserError, match=r'translation.variants.post_ln.width is not for it to set; it may set linear, gain_init'):
      sigma_reparam_recipes.validate(config)
    config = study.get_config('tiny')
    del config.digits.recipes['tuned']
    with pytest.raises(UserError, match=r'digits\.recipes has no tuned, which all others are compared with'):
      sigma_reparam_recipes.validate(config)
    config = study.get_config('tiny')
    del config.digits.recipes.pre_ln_sgd['optimizer']
    with pytest.raises(UserError, match=r'digits\.recipes\.pre_ln_sgd has model, rates; give model, optimizer and rates\.'):
      sigma_reparam_recipes.validate(config)


def test_the_command_says_a_mistake_in_one_sentence(tmp_path):
  argv = ['x', f'--config={pathlib.Path(ROOT) / "configs" / "sigma_reparam_recipes.py"}:tiny', f'--workdir={tmp_path / "run"}']
  with pytest.raises(SystemExit) as stopped:
    app.run(sigma_reparam_recipes.main, [*argv, '--config.translation.variants.post_ln.norm=per'])
  assert stopped.value.code == 2 and not (tmp_path / 'run' / 'digits').exists()
