"""The attention-entropy study as its users run it: the folder it leaves, what is done again, its data, and its mistakes."""

import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from configs import attention_entropy as study
from entropy_jax.analysis import attention_runs, attention_study
from entropy_jax.data import digits, examples, source_bytes
from entropy_jax.training import app, ranges
from entropy_jax.types import UserError
from experiments import attention_entropy
from tests.experiments.conftest import ROOT


def command(workdir: pathlib.Path, *overrides: str) -> None:
  config = ROOT / 'configs' / 'attention_entropy.py'
  flags = [f'--config={config}:tiny', f'--workdir={workdir}', '--config.digits.num_steps=0', *overrides]
  app.run(attention_entropy.main, ['attention_entropy', *flags])


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The folder of a finished tiny study of one task."""
  workdir = tmp_path_factory.mktemp('attention') / 'study'
  command(workdir)
  return workdir


class TestStudy:
  def test_folder_keeps_the_contract(self, tiny):
    assert json.loads((tiny / 'config.json').read_text())['num_seeds'] == 2
    assert 'jax' in (tiny / 'environment.json').read_text()
    found = {path.parent.relative_to(tiny).as_posix() for path in tiny.glob('*/*/seed_*/metrics.jsonl')}
    assert found == {f'unigram/{name}/seed_{k}' for name in ('pre_ln', 'sigma_reparam') for k in range(2)}

  def test_report_holds_claims_and_figures(self, tiny):
    claims = json.loads((tiny / 'claims.json').read_text())
    # Two seeds support no claim, whatever their numbers are.
    assert {claim['verdict'] for claim in claims} == {'inconclusive'}
    expected = {'sigma_reparam_is_stable_where_entropy_collapses', 'p1_pre_ln_entropy', 'sigma_reparam_norms_are_gains'}
    assert {f'unigram/{id}' for id in expected} <= {claim['id'] for claim in claims}
    page = (tiny / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == len(list((tiny / 'figures').glob('*.png'))) == 3
    assert 'largest stable rate' in page and 'worst map' in page

  def test_every_row_is_above_its_bound(self, tiny):
    """The theorem, at every logged step of every run: 2 variants, 2 rates, 2 seeds, 2 measures of 6 sequences, 16 tokens and 2 heads."""
    assert attention_study.violations(attention_runs.load(tiny)['unigram']) == (0, 2 * 2 * 2 * 2 * 6 * 16 * 2)

  def test_runs_are_paired_and_learn(self, tiny):
    sweeps = attention_runs.load(tiny)['unigram']
    for swept in sweeps.variants.values():
      np.testing.assert_array_equal(swept.loss_KxRxN[0, :, 0], swept.loss_KxRxN[1, :, 0])  # one start for both rates
      assert abs(swept.loss_KxRxN[0, 0, 0] - swept.loss_KxRxN[0, 1, 0]) > 1e-4
      assert np.isfinite(swept.final_loss).all() and swept.final_loss[1].mean() < swept.loss_KxRxN[1, :, 0].mean() - 0.03
      assert 'scale' in swept.layered
    assert sweeps.variants['sigma_reparam'].map_names and not sweeps.baseline.map_names

  def test_what_is_missing_is_run_again_to_the_same_bits(self, tiny, tmp_path):
    again = tmp_path / 'study'
    shutil.copytree(tiny, again)
    lost = again / 'unigram' / 'pre_ln' / 'seed_1' / 'metrics.jsonl'
    whole = lost.read_bytes()
    lost.unlink()
    (again / 'report.html').unlink()
    kept = {p: p.stat().st_mtime_ns for p in again.rglob('seed_*/metrics.jsonl')}
    command(again)
    assert lost.read_bytes() == whole and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert (again / 'claims.json').read_bytes() == (tiny / 'claims.json').read_bytes() and (again / 'report.html').exists()

  def test_a_mistake_is_one_sentence(self, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
      command(tmp_path / 'run', '--config.variants.pre_ln.norm=per')
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count('\n') == 1
    assert "variants.pre_ln.norm='per' is not one of pre, post, none, deepnorm" in said
    assert not (tmp_path / 'run' / 'digits').exists()


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

  def test_the_default_study_is_as_large_as_it_is_said_to_be(self):
    config = app.resolve(study.get_config())
    assert len(config['rates']) >= 7 and config['num_seeds'] >= 3 and attention_study.HIGH in config['rates']
    assert {'post_ln', 'deepnorm', 'qk_norm', 'soft_cap', *attention_study.SIGMAS, 'spectral_norm'} <= config['variants'].keys()
    assert all(config[task]['num_steps'] for task in ('digits', 'source_bytes', 'unigram'))
    # Card: a constant rate; what the norms of maps are after training is asked where it decays, in vision and language.
    schedules = {task: config[task]['schedule'] for task in study.TASKS}
    assert schedules == {'digits': 'cosine', 'source_bytes': 'cosine', 'unigram': 'constant', 'copy': 'constant'}

  def test_the_essential_study_is_a_part_of_the_default_one(self):
    whole, part = (app.resolve(study.get_config(variant)) for variant in ('', 'essential'))
    assert part['variants'].items() < whole['variants'].items() and list(part['variants']) == ['pre_ln', 'sigma_reparam']
    left_out = {task: settings | {'num_steps': 0} for task, settings in whole.items() if task in study.TASKS}
    for task in study.TASKS:
      assert part[task] in (whole[task], left_out[task])
    assert part['unigram'] == whole['unigram']
    others = whole.keys() - {*study.TASKS, 'variants'}
    assert {key: part[key] for key in others} == {key: whole[key] for key in others}

  def test_rates_decay_where_they_are_said_to(self):
    plain = app.resolve(study.get_config())
    for task, share in (('digits', 0.5), ('unigram', 1.0)):
      tx = attention_entropy.make_optimizer(plain | {'optimizer': {'name': 'sgd'}}, task, 0.1)
      state = tx.init(jnp.zeros(()))
      for _ in range(76):  # half of the updates, and one more
        update, state = tx.update(jnp.ones(()), state)
      np.testing.assert_allclose(update, -0.1 * share, rtol=1e-6)

  def test_unknown_variant(self):
    with pytest.raises(UserError, match=r"has no variant 'tini'; allowed: essential, tiny, or none\. Did you mean 'tiny'"):
      study.get_config('tini')


class TestBatches:
  def settings(self, task):
    return app.resolve(study.get_config())[task] | {'num_steps': 3, 'batch_size': 2, 'num_held_out': 4}

  def test_more_held_out_than_trained_on(self):
    settings = app.resolve(study.get_config())['copy'] | {'num_steps': 1, 'batch_size': 2, 'num_held_out': 5}
    found, held_out = attention_entropy.batches('copy', settings, seed=0, num_seeds=1)
    assert found.inputs.shape == (1, 1, 2, 64) and held_out.inputs.shape == (5, 64)

  def test_digits_are_those_of_scan_rows(self):
    found, held_out = attention_entropy.batches('digits', self.settings('digits'), seed=5, num_seeds=2)
    train = digits.split(digits.read(), 'train')
    rows = examples.Examples({'label': train.label_R})
    for r in range(2):
      index = examples.scan_rows(rows, batch_size=2, seed=5 + r, num_steps=3)
      np.testing.assert_array_equal(found.target_BxT[r, ..., 0], train.label_R[index])
      np.testing.assert_allclose(found.inputs[r], train.image_RxHxWxC[index] / 8.0 - 1.0, rtol=1e-6)
    assert found.inputs.shape == (2, 3, 2, 8, 8, 1) and held_out.inputs.shape == (4, 8, 8, 1)
    assert float(found.inputs.min()) >= -1 and float(found.inputs.max()) <= 1
    seen = {image.tobytes() for image in np.asarray(found.inputs).reshape(-1, 64)}
    assert not seen & {image.tobytes() for image in np.asarray(held_out.inputs).reshape(-1, 64)}

  def test_bytes_are_of_the_library(self):
    found, held_out = attention_entropy.batches('source_bytes', self.settings('source_bytes'), seed=0, num_seeds=2)
    assert found.inputs.shape == found.target_BxT.shape == (2, 3, 2, 32) and held_out.inputs.shape == (4, 32)
    assert found.inputs.dtype == jnp.int32 and bool(found.mask_BxT.all())
    row = bytes(np.asarray(found.inputs[1, 2, 0]).tolist()) + bytes([int(found.target_BxT[1, 2, 0, -1])])
    files = source_bytes.split_files(source_bytes.read(), 'train')
    assert row in b''.join(bytes([source_bytes.BOUNDARY]) + file.content for file in files)

  def test_drawn_tasks(self):
    for task, num_counted in (('unigram', 64), ('copy', 32)):
      found, held_out = attention_entropy.batches(task, self.settings(task), seed=0, num_seeds=2)
      assert found.inputs.shape == (2, 3, 2, 64) and held_out.inputs.shape == (4, 64)
      np.testing.assert_array_equal(found.mask_BxT.sum(-1), num_counted)
      rows = np.asarray(found.inputs).reshape(12, 64)
      assert len({row.tobytes() for row in rows} | {row.tobytes() for row in np.asarray(held_out.inputs)}) == 16
    target, inputs, mask = np.asarray(found.target_BxT), np.asarray(found.inputs), np.asarray(found.mask_BxT)
    # What counts is known from the first half.
    np.testing.assert_array_equal(target[..., 32:][mask[..., 32:]], inputs[..., :32].reshape(-1))


class TestValidate:
  def config(self, **changes):
    config = study.get_config('tiny')
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config

  @pytest.mark.parametrize('variant', study.VARIANTS)
  def test_shipped(self, variant):
    found = attention_entropy.validate(study.get_config(variant))
    assert found['unigram', 'sigma_reparam'].linear == 'sigma_reparam' and found['digits', 'pre_ln'].norm == 'pre'
    assert found['unigram', 'pre_ln'].positions == 'learned' and found['digits', 'pre_ln'].num_tokens == 16
    assert variant or ('source_bytes', 'soft_cap') in found

  @pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
      ({'digits__num_steps': 0, 'unigram__num_steps': 0}, 'num_steps=0 of digits, source_bytes, unigram, copy leaves nothing to run'),
      ({'digits__log_every': 3}, 'digits.log_every=3 does not divide digits.num_steps=20; give a divisor'),
      ({'tail': 21}, 'tail=21 is more than digits.num_steps=20; give at most that.'),
      ({'rates': (1e-3, 0.0)}, 'rates[1]=0.0 is outside (0, inf)'),
      ({'rates': (1e-3, 1e-3)}, 'has a number twice'),
      ({'optimizer__name': 'adma'}, "optimizer.name='adma' is not one of adam, adamw, lars"),
      ({'optimizer__momentum': 0.9}, 'adam takes no momentum'),
      ({'digits__schedule': 'cosin'}, "digits.schedule='cosin' is not one of constant, linear, cosine"),
      ({'digits__schedule': 'cosine', 'optimizer__warmup_steps': 20}, 'warmup_steps=20 leaves nothing of num_steps=20'),
      ({'digits__patch_size': 3}, 'variants.pre_ln: patch_size is 3: choose a divisor of image_size (8).'),
      ({'num_heads': 3}, 'variants.pre_ln: num_heads is 3, which does not divide width (16)'),
      ({'variants__pre_ln': {'width': 4}}, 'variants.pre_ln.width is not for a variant to set; it may set linear, gain_init'),
      ({'variants__pre_ln': {'nrom': 'pre'}}, 'there is no key variants.pre_ln.nrom'),
      ({'variants__pre_ln': {'gain_init': 'sigma'}}, "variants.pre_ln: gain_init is 'sigma' while linear is 'dense'"),
    ],
  )  # fmt: skip
  def test_mistakes(self, changes, sentence):
    config = self.config(**{key: value for key, value in changes.items() if not isinstance(value, dict)})
    for value in changes.values():
      if isinstance(value, dict):
        config.variants.pre_ln = value
    with pytest.raises(UserError, match=re.escape(sentence)):
      attention_entropy.validate(config)

  def test_no_baseline_and_too_many(self):
    config = self.config()
    del config.variants['pre_ln']
    with pytest.raises(UserError, match='variants has no pre_ln, which all others are compared with'):
      attention_entropy.validate(config)
    config = self.config()
    for i in range(8):
      config.variants[f'pre_{i}'] = {'norm': 'pre'}
    with pytest.raises(UserError, match='variants has 10; a figure can tell 9 apart'):
      attention_entropy.validate(config)
