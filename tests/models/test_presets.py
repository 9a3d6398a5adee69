import pytest

from entropy_jax.models import presets, transformer
from entropy_jax.types import UserError


def by_hand(c):
  """Parameters by arithmetic: one term for each matrix and vector of the published description."""
  q, kv = c.num_heads * c.head_size, c.kv_heads * c.head_size
  attention = c.width * (q + 2 * kv) + q * c.width
  attention += (q + 2 * kv) * c.qkv_bias + 2 * c.head_size * (c.qk_norm == 'rms')
  layer = attention + 3 * c.width * c.mlp_width + 2 * c.width
  return c.vocab_size * c.width * (1 if c.tie_embeddings else 2) + c.num_layers * layer + c.width


class TestPresets:
  @pytest.mark.parametrize(
    'name, published',
    [('qwen2_5_0_5b', 494_032_768), ('qwen3_0_6b', 596_049_920), ('llama3_2_1b', 1_235_814_400)],
  )
  def test_published_counts(self, name, published):
    config = presets.preset(name)
    assert transformer.num_parameters(config) == published == by_hand(config)

  @pytest.mark.parametrize('name', presets.PRESETS)
  def test_counts_by_hand(self, name):
    # Two layers, so that the shapes of big ones are made quickly; the counts above are of whole models.
    config = presets.preset(name, num_layers=2)
    assert transformer.num_parameters(config) == by_hand(config)

  def test_study_size(self):
    assert 0.5e6 < transformer.num_parameters(presets.preset('study_small')) < 0.8e6

  def test_unknown_name(self):
    with pytest.raises(UserError, match=r"'qwen3_0_6':.*Did you mean 'qwen3_0_6b'"):
      presets.preset('qwen3_0_6')

  def test_unknown_field(self):
    with pytest.raises(UserError, match=r"num_layer is no field .*'num_layers'"):
      presets.preset('study_small', num_layer=2)
