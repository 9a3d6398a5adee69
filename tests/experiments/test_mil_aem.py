"""The AEM study as its users run it: the folder it leaves, what is done again, its bags, and its mistakes."""

import json
import re
import shutil

import numpy as np
import pytest

from configs import mil_aem as study
from entropy_jax.analysis import mil_runs
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import mil_aem
from tests.experiments.conftest import run_here


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished tiny study."""
  workdir = tmp_path_factory.mktemp('mil') / 'study'
  run_here(mil_aem, study.get_config('tiny'), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    assert json.loads((tiny / 'config.json').read_text())['num_seeds'] == 2
    assert 'jax' in (tiny / 'environment.json').read_text()
    found = {path.parent.relative_to(tiny).as_posix() for path in tiny.glob('*/seed_*/metrics.jsonl')}
    assert found == {'digit_kinds/seed_0', 'digit_kinds/seed_1'}
    claims = json.loads((tiny / 'claims.json').read_text())
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'} and len(claims) == 10
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 3

  def test_runs_are_paired_and_apart(self, tiny):
    found = mil_runs.load(tiny)['digit_kinds']
    assert list(found.measured) == ['aem_0', 'aem_1', 'annealed_1', 'mean_pooling']
    first = [json.loads((tiny / 'digit_kinds' / f'seed_{k}' / 'metrics.jsonl').read_text().splitlines()[0]) for k in range(2)]
    # Before the first update lambda has not acted: the loss differs by the entropy, and annealing has not begun.
    assert all(row['aem_1/loss'] == row['annealed_1/loss'] < row['aem_0/loss'] for row in first)
    assert abs(first[0]['aem_0/loss'] - first[1]['aem_0/loss']) > 1e-4
    np.testing.assert_allclose(found.measured['mean_pooling']['test/relative_entropy'], 1.0, rtol=1e-5)
    assert np.all(found.final('aem_1', 'train/entropy') > found.final('aem_0', 'train/entropy') - 1e-3)
    assert np.all(found.final('aem_0', 'train/loss') < 0.69)

  def test_kept_bags_are_whole(self, tiny):
    kept = mil_runs.load(tiny)['digit_kinds'].examples
    mask = np.array(kept['mask_BxN'])
    for weight in kept['weight'].values():
      np.testing.assert_allclose(np.sum(weight, axis=-1), 1.0, atol=1e-4)
      assert not np.array(weight)[~mask].any()
    assert kept['label_B'] == [0, 1, 0, 1] and np.array(kept['instances_BxNxF']).shape == (4, 10, 64)

  def test_what_is_missing_is_run_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost, kept = (again / 'digit_kinds' / f'seed_{k}' / 'metrics.jsonl' for k in (1, 0))
    whole, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    (again / 'report.html').unlink()
    run_here(mil_aem, study.get_config('tiny'), again)
    assert lost.read_bytes() == whole and kept.stat().st_mtime_ns == stamp
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes() and (again / 'report.html').exists()


class TestConfig:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_shipped(self, variant):
    config = app.resolve(study.get_config(variant))
    ranges.check(config, study.RANGES)
    assert 0.0 in config['coefs'] and (variant or (config['num_seeds'] >= 5 and all(config[task]['num_steps'] for task in study.TASKS)))

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestDraw:
  def test_splits_share_no_image_and_seeds_no_bag(self):
    settings = app.resolve(study.get_config())['digit_kinds'] | {'num_steps': 3}
    splits, rows = mil_aem.draw('digit_kinds', settings, seed=4, num_seeds=2)
    seen = []
    for bags, num_bags in zip(splits, (30, 60, 300)):
      assert bags.instances_BxKxF.shape == (2, num_bags, 40, 64)
      shown = np.asarray(bags.instances_BxKxF)[np.asarray(bags.mask_BxK)]
      assert shown.min() == -1 and shown.max() == 1
      seen.append({image.tobytes() for image in shown})
      assert np.any(np.asarray(bags.instances_BxKxF[0] != bags.instances_BxKxF[1]))
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert rows.shape == (2, 3, 6) and int(rows.max()) < 30

  def test_another_number_of_seeds_keeps_the_first(self):
    settings = app.resolve(study.get_config())['gaussian'] | {'num_steps': 3, 'num_train': 6, 'num_validation': 4, 'num_test': 4}
    one, two = (mil_aem.draw('gaussian', settings, seed=0, num_seeds=n)[0] for n in (1, 2))
    np.testing.assert_array_equal(one.test.instances_BxKxF[0], two.test.instances_BxKxF[0])
    assert np.any(np.asarray(one.train.instances_BxKxF[0, :4] != one.test.instances_BxKxF[0]))


class TestValidate:
  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'digit_kinds.num_steps': 0}, 'num_steps=0 of gaussian, digits, digit_kinds leaves nothing to run'),
      ({'log_every': 3}, 'log_every=3 does not divide digit_kinds.num_steps=40; give a divisor'),
      ({'coefs': (0.1, 1.0)}, 'coefs=[0.1, 1.0] has no 0, which all others are compared with; add it.'),
      ({'coefs': (0.0, -1.0)}, 'coefs[1]=-1.0 is outside [0, inf)'),
      ({'coefs': tuple(map(float, range(8)))}, 'coefs has 8; a figure can tell 7 apart'),
      ({'digit_kinds.batch_size': 13}, 'digit_kinds: batch_size=13 is more than num_train=12; give at most that.'),
      ({'digit_kinds.max_targets': 9}, 'digit_kinds: min_targets=2, max_targets=9: must be 1 <= min_targets <= max_targets <= 6'),
      ({'digit_kinds.kinds': (10,)}, 'digit_kinds.kinds[0]=10 is outside [0, 9]'),
      ({'digit_kinds.first_share': 1.5}, 'digit_kinds.first_share=1.5 is outside [0, 1]'),
      ({'gaussian.num_steps': 10, 'gaussian.num_kinds': 17}, 'gaussian: num_kinds=17: must be in 1..16'),
      ({'optimizer.schedule': 'cosin'}, "optimizer.schedule='cosin' is not one of constant, linear, cosine"),
    ],
  )  # fmt: skip
  def test_mistakes(self, changes, sentence):
    config = study.get_config('tiny')
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(sentence)):
      mil_aem.validate(config)
