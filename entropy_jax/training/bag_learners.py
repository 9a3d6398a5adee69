"""What a sweep over bags trains: a classifier of bags with attention-entropy maximisation, and what is logged of its splits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_jax.data.bag_kinds import InstanceBags
from entropy_jax.layers import mil_pooling
from entropy_jax.measures import bags as measures
from entropy_jax.models import mil
from entropy_jax.ops import auxiliary, categorical, schedules
from entropy_jax.training.learners import Learner
from entropy_jax.types import Metrics, Params, Ratio


class Setting(NamedTuple):
  """How a run differs from the others of its program; float32 scalars, or arrays of them.

  Attributes:
    coef: lambda, of the attention entropy; 0 is plain attention pooling.
    annealed: 1 where lambda falls to 0 along a half-cosine while the run goes on, else 0.
    sharpness: 1, or 0 for mean pooling.
  """

  coef: Any
  annealed: Any
  sharpness: Any


class Update(NamedTuple):
  """The batch of one update: rows of the training bags, and lambda."""

  row_B: jax.Array
  coef: jax.Array


class Splits(NamedTuple):
  """The bags of a run."""

  train: InstanceBags
  validation: InstanceBags
  test: InstanceBags


def updates(row_NxB: jax.Array, setting: Setting) -> Update:
  """The batches of a run [N], lambda as the setting has it at each of them."""
  N = row_NxB.shape[0]
  fall_N = schedules.fall(jnp.arange(N), N)
  return Update(row_NxB, setting.coef * (1.0 - setting.annealed * (1.0 - fall_N)))


def bag_learner(config: mil.MilConfig, bags: InstanceBags, setting: Setting) -> Learner:
  """A classifier that is trained on the given bags.

    loss = mean over bags of  CE  +  (lambda / H) sum_h sum_n a_hn ln a_hn

  Args:
    config: of the model.
    bags: to train on; batches are `Update`s of their rows, and what is measured is `Splits`.
    setting: sharpness alone is read; lambda comes with every batch.

  Returns:
    A Learner; measure gives SPLIT/NAME of what `measure_splits` finds, all without the term of the entropy.

  Reference: Zhang et al., AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image Classification,
    arXiv 2406.15303.
  """
  model, bags = mil.bag_classifier(config), jax.tree.map(jnp.asarray, bags)  # a traced row indexes no numpy array

  def loss(params: Params, update: Any) -> jax.Array:
    batch = jax.tree.map(lambda x: x[update.row_B], bags)
    found = model.logits(params, batch.instances_BxKxF, batch.mask_BxK, setting.sharpness)
    penalty_BxH = auxiliary.attention_entropy_penalty(found.attention_BxHxK, batch.mask_BxK, coef=1.0)
    cross_entropy = -jnp.mean(categorical.token_log_prob(found.logits_BxV, batch.label_B))
    return cross_entropy + update.coef * jnp.mean(penalty_BxH)

  def measure(params: Params, splits: Any) -> Metrics:
    # One pass over the bags of all splits: less to compile than a pass over each.
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *splits)
    logits = model.logits(params, whole.instances_BxKxF, whole.mask_BxK, setting.sharpness)
    return measure_splits(logits, whole, {name: part.label_B.shape[0] for name, part in splits._asdict().items()})

  return Learner(model.init, loss, lambda params: params, measure, lambda params: {})


def measure_splits(found: mil.BagLogits, bags: InstanceBags, sizes: Mapping[str, int]) -> Metrics:
  """SPLIT/NAME: loss (mean cross entropy, nats), accuracy, auc of the classes 0 and 1, and what `measures.bags.bag_attention` gives.

  Args:
    found: of the model.
    bags: one split after the other.
    sizes: the bags of each split.
  """
  score_B = found.logits_BxV[:, 1] - found.logits_BxV[:, 0]
  loss_B = -categorical.token_log_prob(found.logits_BxV, bags.label_B)
  right_B = (jnp.argmax(found.logits_BxV, axis=-1) == bags.label_B).astype(jnp.float32)
  one_B = jnp.ones_like(loss_B)
  each = {'loss': Ratio(loss_B, one_B), 'accuracy': Ratio(right_B, one_B)}
  each |= measures.bag_attention(found.attention_BxHxK, bags.mask_BxK, bags.is_target_BxK)
  metrics, start = {}, 0
  for name, size in sizes.items():
    part = slice(start, start + size)
    metrics[f'{name}/auc'] = measures.auc(score_B[part], bags.label_B[part] == 1, jnp.ones(size, bool)).compute()
    metrics |= {f'{name}/{key}': Ratio(jnp.sum(x.num[part]), jnp.sum(x.den[part])).compute() for key, x in each.items()}
    start += size
  return metrics


def attention(model: mil.BagClassifier, params: Params, bags: InstanceBags, setting: Setting) -> jax.Array:
  """weight_BxK of the attention to the instances of bags, mean over heads."""
  found = model.logits(params, bags.instances_BxKxF, bags.mask_BxK, setting.sharpness)
  return jnp.mean(mil_pooling.bag_weights(found.attention_BxHxK, bags.mask_BxK), axis=1)
