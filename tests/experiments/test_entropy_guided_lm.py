"""The entropy-guided study: the folder it leaves, what is done again, and its mistakes."""

import json
import re

import numpy as np
import pytest

from configs import entropy_guided_lm as study
from entropy_jax.analysis import entropy_guided_runs
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import entropy_guided_lm
from tests.experiments.conftest import changed, run_here


def config(**changes):
  return changed(study.get_config('tiny'), **changes)


def smaller():
  """The tiny study, smaller still: no more than what the rules of a study need."""
  variants = study.get_config('tiny').variants
  return config(
    num_steps=4, log_every=2, batch_size=2, num_held_out=2, length=9, width=8, num_layers=1, mlp_width=8,
    variants={name: variants[name] for name in ('ln_gelu', 'guided')},
  )  # fmt: skip


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished study."""
  workdir = tmp_path_factory.mktemp('guided') / 'study'
  run_here(entropy_guided_lm, smaller(), workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, finished):
    assert json.loads((finished / 'config.json').read_text())['num_seeds'] == 2
    found = {path.parent.relative_to(finished).as_posix() for path in finished.glob('*/seed_*/metrics.jsonl')}
    assert found == {f'{name}/seed_{k}' for name in ('ln_gelu', 'guided') for k in range(2)}
    claims = json.loads((finished / 'claims.json').read_text())
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'} and 'p1_ln_gelu_first_layer' in {claim['id'] for claim in claims}
    page = (finished / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((finished / 'figures').glob('*.png'))) == 5
    assert len((finished / 'metrics.jsonl').read_text().splitlines()) == 2

  def test_seeds_differ_and_thresholds_learn(self, finished):
    ladder = entropy_guided_runs.load(finished)
    for found in ladder.variants.values():
      assert np.isfinite(found.held_out_RxC).all() and abs(found.loss_RxN[0, 0] - found.loss_RxN[1, 0]) > 1e-4
      assert found.entropy_RxCxLxH.shape == (2, 2, 1, 2) and (found.entropy_RxCxLxH <= 1 + 1e-6).all()
    assert (ladder.variants['guided'].threshold_RxCxLxH[:, -1] != 0.5).all() and ladder.baseline.threshold_RxCxLxH is None

  def test_what_is_missing_is_run_again_to_the_same_bits(self, finished):
    lost = finished / 'guided' / 'seed_1' / 'metrics.jsonl'
    whole, claims = lost.read_bytes(), (finished / 'claims.json').read_bytes()
    lost.unlink()
    kept = {p: p.stat().st_mtime_ns for p in finished.glob('*/seed_*/metrics.jsonl')}
    entropy_guided_lm.main(smaller(), finished)
    assert lost.read_bytes() == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (finished / 'claims.json').read_bytes() == claims


class TestConfig:
  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_every_row_has_its_keys(self, variant):
    ranges.check(app.resolve(study.get_config(variant)), study.RANGES)
    assert entropy_guided_lm.validate(study.get_config(variant))['guided'].softmax_temperature == 'softplus'

  def test_the_default_study_is_the_whole_ladder(self):
    found = app.resolve(study.get_config())
    assert found['variants'].keys() == set(entropy_guided_runs.LADDER) and found['num_seeds'] >= 3
    assert found['penalties'].keys() == {'guided', 'guided_strong'}
    np.testing.assert_allclose(found['penalties']['guided'], 1e-5 * 128 * 128, rtol=2e-3)

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestValidate:
  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'log_every': 3}, 'log_every=3 does not divide num_steps=20; give a divisor.'),
      ({'penalties': {'gudied': 0.1}}, 'penalties.gudied is for no variant; give the name of one of guided, ln_gelu, softmax_only.'),
      ({'penalties__guided': 0.0}, 'penalties.guided=0.0 is outside (0, inf)'),
      ({'optimizer__name': 'adma'}, "optimizer.name='adma' is not one of adam, adamw"),
      ({'optimizer__weight_decay': 0.1}, 'adam takes no weight_decay'),
      ({'num_heads': 3}, 'num_heads is 3, which does not divide width (16)'),
      ({'variants__ln_gelu': {'width': 4}}, 'variants.ln_gelu.width is not for a variant to set; it may set kernel_init, norm'),
      ({'variants__guided': {'activation': 'fused'}}, "variants.guided: activation is 'fused'"),
      ({'variants': {'gelu': {'norm': 'none'}}}, 'variants has no ln_gelu, which all others are compared with'),
      ({'variants': {f'v{i}': {} for i in range(9)} | {'ln_gelu': {}}}, 'variants has 10; a figure can tell 9 apart'),
    ],
  )
  def test_mistakes(self, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
      entropy_guided_lm.validate(config(**changes))
