"""The table of sharding rules: every parameter of every model matches exactly one row, and every row is somebody's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from entropy_jax.data import fork_tokens
from entropy_jax.models import encoder_decoder, lora, presets, transformer, vision
from entropy_jax.parallel import rules
from entropy_jax.training import optimizers, scanned
from entropy_jax.types import UserError

VARIANTS = {
  'learned positions': {'positions': 'learned'},
  'untied, biases, query-key norms': {'tie_embeddings': False, 'qkv_bias': True, 'qk_norm': 'rms'},
  'post-norm': {'norm': 'post'},
  'no norm': {'norm': 'none'},
  'sigma_reparam': {'linear': 'sigma_reparam', 'norm_kind': 'layer', 'qk_norm': 'l2'},
  'spectral_norm': {'linear': 'spectral_norm', 'sink': True, 'softmax_temperature': 'clip', 'qk_norm': 'layer'},
  'fused': {'norm': 'none', 'activation': 'fused'},
  'crrelu': {'activation': 'crrelu'},
}


def parameters(config):
  return jax.eval_shape(transformer.transformer_policy(config).init, jax.random.key(0))


def image():
  sizes = {'image_size': 8, 'channels': 1, 'patch_size': 4, 'num_classes': 8}
  config = vision.VisionConfig(width=16, num_layers=1, num_heads=2, mlp_width=32, linear='sigma_reparam', pool='token', **sizes)
  return jax.eval_shape(vision.vision_classifier(config).init, jax.random.key(0))


def translation():
  sizes = {'source_vocab_size': 8, 'target_vocab_size': 8, 'source_length': 8, 'target_length': 8}
  config = encoder_decoder.EncoderDecoderConfig(width=16, num_layers=1, num_heads=2, mlp_width=32, linear='sigma_reparam', **sizes)
  return jax.eval_shape(encoder_decoder.translator(config).init, jax.random.key(0))


def table():
  return jax.eval_shape(scanned.policy_of(fork_tokens.make(jax.random.key(0), num_prompts=4, vocab_size=8)).init, jax.random.key(0))


def adapters():
  policy = transformer.transformer_policy(presets.PRESETS['study_tiny'])
  return jax.eval_shape(lora.lora_policy(policy, lora.LoraConfig()).init, jax.random.key(0))


CONFIGS = presets.PRESETS | {name: dataclasses.replace(presets.PRESETS['study_tiny'], **changes) for name, changes in VARIANTS.items()}
OTHERS = {'adapters': adapters, 'table': table, 'image': image, 'translation': translation}
MODELS = [*CONFIGS, *OTHERS]


def paths(tree):
  return {rules.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def model(name):
  return paths(OTHERS[name]() if name in OTHERS else parameters(CONFIGS[name]))


class TestTable:
  @pytest.mark.parametrize('name', MODELS)
  def test_every_parameter_matches_exactly_one_row(self, name):
    found = {path: len(rules.matches(path)) for path in model(name)}
    assert found and set(found.values()) == {1}, {path: n for path, n in found.items() if n != 1}

  def test_every_row_is_needed(self):
    every = {path for name in MODELS for path in model(name)}
    assert [row[0] for row in rules.RULES if not any(row in rules.matches(path) for path in every)] == []

  @pytest.mark.parametrize('name', [*presets.PRESETS, 'sigma_reparam', 'fused', 'adapters', 'image', 'translation'])
  def test_every_matrix_is_cut_over_8_devices(self, name):
    for path, leaf in model(name).items():
      spec = rules.partition(path, leaf.shape, 8)
      assert (rules.DATA in spec) == (leaf.ndim > 1), f'{path} {leaf.shape} {spec}'


class TestPartition:
  def test_moments_are_cut_as_their_parameter(self):
    params = parameters(presets.PRESETS['study_tiny'])
    state = jax.eval_shape(optimizers.make_optimizer('adam', 1e-3, max_grad_norm=1.0).init, params)
    mesh = Mesh(np.array(jax.devices()), (rules.DATA,), axis_types=(AxisType.Auto,))
    specs = {rules.path_of(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(rules.shardings(state, mesh))}
    moments = [path for path in specs if path.endswith('block_0/mlp/up/kernel')]
    assert len(moments) == 2 and {specs[path] for path in moments} == {PartitionSpec(rules.DATA, None)}
    assert {spec for path, spec in specs.items() if path.endswith('count')} == {PartitionSpec()}

  def test_what_does_not_divide_is_everywhere(self):
    assert rules.partition('params/embed', (22, 64), 8) == PartitionSpec(None, rules.DATA)
    assert rules.partition('params/embed', (22, 60), 8) == PartitionSpec()

  def test_counters_and_controllers_are_everywhere(self):
    state = {'objective_state': {'adaptive': jnp.zeros((3, 8))}, 'num_updates': jnp.int32(0)}
    mesh = Mesh(np.array(jax.devices()), (rules.DATA,), axis_types=(AxisType.Auto,))
    assert {s.spec for s in jax.tree.leaves(rules.shardings(state, mesh))} == {PartitionSpec()}

  def test_unknown_matrix_is_refused(self):
    with pytest.raises(UserError, match=r'no sharding rule knows the parameter params/router/kernel of shape \[8, 4\]; add a row'):
      rules.partition('params/router/kernel', (8, 4), 8)

  def test_two_rows_are_refused(self, monkeypatch):
    monkeypatch.setattr(rules, 'matches', lambda path: list(rules.RULES[:2]))
    with pytest.raises(UserError, match='matches 2 sharding rules'):
      rules.partition('params/embed', (22, 64), 8)
