"""The learner of bags: its loss against numpy, lambda by step, what it logs, and that its sweep holds what the method promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_jax.data import bag_kinds
from entropy_jax.models import mil
from entropy_jax.training import bag_learners, sweeps
from entropy_jax.training.bag_learners import Setting, Splits, Update

CONFIG = mil.MilConfig(num_features=4, widths=(6,), attention_width=3)
MAKE = {'size': 9, 'num_features': 4, 'min_targets': 1, 'max_targets': 3, 'num_kinds': 2}
SPLITS = Splits(*[bag_kinds.gaussian_bags(num_bags=n, seed=i, **MAKE) for i, n in enumerate((6, 4, 8))])
PLAIN = Setting(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(1.0))
MODEL = mil.bag_classifier(CONFIG)
LEARNER = bag_learners.bag_learner(CONFIG, SPLITS.train, PLAIN)
PARAMS = jax.tree.map(lambda x: 3 * x, jax.jit(LEARNER.init)(jax.random.key(0)))


def numpy_of(bags):
  """(cross entropy, attention entropy) of every bag."""
  found = jax.jit(MODEL.logits)(PARAMS, *bags[:2], 1.0)
  logp = np.asarray(found.logits_BxV, np.float64)
  logp -= np.log(np.exp(logp).sum(axis=-1, keepdims=True))
  weight = np.exp(np.asarray(found.attention_BxHxK[:, 0], np.float64))
  weight /= weight.sum(axis=-1, keepdims=True)
  return -logp[np.arange(len(logp)), bags.label_B], -np.sum(weight * np.log(weight), axis=-1)


class TestUpdates:
  def test_constant_and_annealed(self):
    rows = jnp.zeros((4, 2), jnp.int32)
    assert bag_learners.updates(rows, Setting(0.3, 0.0, 1.0)).coef.tolist() == pytest.approx([0.3] * 4)
    # lambda (1 + cos(pi t / 4)) / 2
    assert bag_learners.updates(rows, Setting(2.0, 1.0, 1.0)).coef.tolist() == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932])


class TestBagLearner:
  def test_loss(self):
    loss = jax.jit(LEARNER.loss)
    rows = np.array([4, 1, 3])
    cross, entropy = (x[rows] for x in numpy_of(SPLITS.train))
    for coef in (0.0, 0.7):
      np.testing.assert_allclose(loss(PARAMS, Update(rows, coef)), cross.mean() - coef * entropy.mean(), rtol=1e-5)

  def test_measures(self):
    found = jax.jit(LEARNER.measure)(PARAMS, SPLITS)
    assert {key.split('/')[0] for key in found} == set(Splits._fields) and len(found) == 3 * 7
    for name, bags in SPLITS._asdict().items():
      cross, entropy = numpy_of(bags)
      np.testing.assert_allclose(found[f'{name}/loss'], cross.mean(), rtol=1e-5)
      np.testing.assert_allclose(found[f'{name}/entropy'], entropy.mean(), rtol=1e-5)
      np.testing.assert_allclose(found[f'{name}/relative_entropy'], entropy.mean() / np.log(9), rtol=1e-5)
      np.testing.assert_allclose(found[f'{name}/accuracy'], np.mean(cross < np.log(2)), rtol=1e-6)
      score = np.where(bags.label_B == 1, -cross, np.log(-np.expm1(-cross)))  # ln p of the positive class
      won = score[bags.label_B == 1][:, None] > score[bags.label_B == 0]
      np.testing.assert_allclose(found[f'{name}/auc'], won.mean(), rtol=1e-6)
      per_target = np.exp(entropy)[bags.label_B == 1] / bags.is_target_BxK.sum(axis=1)[bags.label_B == 1]
      np.testing.assert_allclose(found[f'{name}/instances_per_target'], per_target.mean(), rtol=1e-5)

  def test_attention(self):
    got = bag_learners.attention(MODEL, PARAMS, SPLITS.test, PLAIN)
    np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(bag_learners.attention(MODEL, PARAMS, SPLITS.test, PLAIN._replace(sharpness=0.0)), 1 / 9, rtol=1e-5)


class TestSweep:
  def test_lambda_widens_attention_and_settings_keep_apart(self):
    """Entropy grows with lambda, mean pooling is uniform throughout, and a setting alone gives the numbers that it gives among others."""
    settings = Setting(jnp.array([0.0, 1.0, 10.0, 0.0]), jnp.zeros(4), jnp.array([1.0, 1.0, 1.0, 0.0]))
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 6, (2, 30, 3)))

    def one(index, setting):
      learner = bag_learners.bag_learner(CONFIG, SPLITS.train, setting)
      batches = bag_learners.updates(rows[index], setting)
      return sweeps.train(learner, PARAMS, batches, SPLITS, tx=optax.adam(0.05), log_every=15)

    run = jax.jit(lambda settings: sweeps.over_runs(one, 2, settings, at_a_time=1))
    found = run(settings)
    assert found.loss_xN.shape == (2, 4, 30) and found.logged['test/auc'].shape == (2, 4, 2)
    entropy = found.logged['train/entropy'][..., -1]
    assert np.all(np.diff(entropy[:, :3], axis=1) > 0)
    np.testing.assert_allclose(found.logged['train/relative_entropy'][:, 3], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.logged['test/instance_auc'][:, 3], 0.5)
    assert np.all(found.loss_xN[:, 0, -5:].mean(axis=-1) < found.loss_xN[:, 0, :5].mean(axis=-1))
    order = jnp.array([2, 0, 3, 1])
    again = run(jax.tree.map(lambda x: x[order], settings))
    np.testing.assert_array_equal(again.loss_xN, found.loss_xN[:, order])
