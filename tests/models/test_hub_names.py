import jax
import pytest

from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models import hub_names, presets, transformer
from entropy_jax.parallel import rules
from entropy_jax.types import UserError
from tests.models import hub_folders

# The keys of released folders (Qwen2.5-0.5B, Qwen3-0.6B, Llama-3.2-1B) that matter here, and what presets.py says of them.
RELEASED = {
  'qwen2_5_0_5b': {
    'architectures': ['Qwen2ForCausalLM'],
    'hidden_act': 'silu',
    'hidden_size': 896,
    'intermediate_size': 4864,
    'max_position_embeddings': 32768,
    'max_window_layers': 24,
    'num_attention_heads': 14,
    'num_hidden_layers': 24,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
  },
  'qwen3_0_6b': {
    'architectures': ['Qwen3ForCausalLM'],
    'attention_bias': False,
    'head_dim': 128,
    'hidden_act': 'silu',
    'hidden_size': 1024,
    'intermediate_size': 3072,
    'max_position_embeddings': 40960,
    'num_attention_heads': 16,
    'num_hidden_layers': 28,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-06,
    'rope_scaling': None,
    'rope_theta': 1000000,
    'sliding_window': None,
    'tie_word_embeddings': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
  },
  'llama3_2_1b': {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'head_dim': 64,
    'hidden_act': 'silu',
    'hidden_size': 2048,
    'intermediate_size': 8192,
    'max_position_embeddings': 131072,
    'mlp_bias': False,
    'num_attention_heads': 32,
    'num_hidden_layers': 16,
    'num_key_value_heads': 8,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': {
      'factor': 32.0,
      'high_freq_factor': 4.0,
      'low_freq_factor': 1.0,
      'original_max_position_embeddings': 8192,
      'rope_type': 'llama3',
    },
    'rope_theta': 500000.0,
    'tie_word_embeddings': True,
    'vocab_size': 128256,
  },
}


class TestDecoderConfig:
  @pytest.mark.parametrize('name', RELEASED)
  def test_released_folders_are_the_presets(self, name):
    got, want = hub_names.decoder_config(RELEASED[name]), presets.PRESETS[name]
    same = lambda c: transformer.dataclasses.replace(c, head_dim=c.head_size)
    assert same(got) == same(want)

  def test_both_ways_to_say_the_positions(self):
    old = hub_names.decoder_config(hub_folders.config('llama'))
    new = hub_folders.config('llama', rope_scaling=..., rope_theta=..., rope_parameters=hub_folders.SCALING | {'rope_theta': 100.0})
    assert hub_names.decoder_config(new) == old
    assert old.rope_scaling == RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position=16)
    plain = hub_folders.config('llama', rope_scaling=..., rope_parameters={'rope_type': 'default', 'rope_theta': 7.0})
    assert (hub_names.decoder_config(plain).rope_theta, hub_names.decoder_config(plain).rope_scaling) == (7.0, None)

  def test_what_absent_keys_mean(self):
    # As the configuration classes of transformers have them.
    least = dict.fromkeys(('rope_theta', 'rms_norm_eps', 'tie_word_embeddings', 'hidden_act'), ...)
    got = hub_names.decoder_config(hub_folders.config('llama', num_key_value_heads=..., **least))
    assert (got.rope_theta, got.norm_eps, got.tie_embeddings, got.num_kv_heads) == (10000.0, 1e-6, False, 4)
    assert hub_names.decoder_config(hub_folders.config('qwen3', head_dim=...)).head_size == 128
    assert hub_names.decoder_config(hub_folders.config('qwen2', architectures=..., model_type='qwen2')).qkv_bias
    with pytest.raises(UserError, match='sliding_window is 4096 and max_length 5000'):
      hub_names.decoder_config(hub_folders.config('mistral', sliding_window=..., max_position_embeddings=5000))

  def test_windows_that_are_switched_off(self):
    assert hub_names.decoder_config(hub_folders.config('qwen2', sliding_window=8)).max_length == 64
    with pytest.raises(UserError, match='sliding_window is 8 and max_length 64'):
      hub_names.decoder_config(hub_folders.config('qwen2', sliding_window=8, use_sliding_window=True))
    assert hub_names.decoder_config(hub_folders.config('qwen2', sliding_window=8, use_sliding_window=True), max_length=8).max_length == 8

  @pytest.mark.parametrize(
    ('changes', 'text'),
    [
      ({'architectures': ['Qwen2ForSequenceClassification']}, "the architecture is 'Qwen2ForSequenceClassification': only .* Did you mean"),
      ({'architectures': [3]}, 'the architecture is 3: only'),
      ({'architectures': [], 'model_type': 'gemma'}, "model_type is 'gemma': only qwen2, qwen3, llama, mistral can be read"),
      ({'hidden_act': 'gelu'}, "hidden_act is 'gelu': the decoder has only 'silu'"),
      ({'attention_bias': True}, 'attention_bias is True: the decoder has only False'),
      ({'mlp_bias': True}, 'mlp_bias is True'),
      ({'quantization_config': {'bits': 4}}, r"quantization_config is \{'bits': 4\}: the decoder has only None"),
      ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor is 0.5'),
      ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, "the type of rope_scaling is 'yarn': only 'llama3' and 'default'"),
      ({'rope_scaling': {'rope_type': 'llama3', 'factor': 4.0}}, 'rope_scaling: low_freq_factor is missing'),
      ({'rope_scaling': 'llama3'}, "rope_scaling is 'llama3': the decoder has one set"),
      ({'rope_parameters': {'full_attention': {'rope_theta': 1.0}}}, 'the decoder has one set of rotary positions for all layers'),
      ({'rope_scaling': hub_folders.SCALING | {'factor': 0.5}}, 'rope_scaling.factor is 0.5: give a number above 1'),
      ({'hidden_size': ...}, 'hidden_size is missing'),
      ({'hidden_size': '16'}, "hidden_size is '16': it must be a positive integer"),
      ({'num_hidden_layers': True}, 'num_hidden_layers is True'),
      ({'rms_norm_eps': 0}, 'rms_norm_eps is 0: it must be a positive number'),
      ({'num_attention_heads': 3}, 'config.json: num_heads is 3, which does not divide width'),
      ({'num_key_value_heads': 3}, 'config.json: num_kv_heads is 3: choose a divisor'),
      ({'tie_word_embeddings': 'yes'}, "tie_word_embeddings is 'yes': it must be true or false"),
      ({'sliding_window': -1, 'architectures': ['MistralForCausalLM']}, 'sliding_window is -1: it must be a positive integer'),
    ],
  )
  def test_refused(self, changes, text):
    with pytest.raises(UserError, match=text) as found:
      hub_names.decoder_config(hub_folders.config('llama', **changes))
    assert '\n' not in str(found.value)


class TestRawConfig:
  @pytest.mark.parametrize('name', [name for name in presets.PRESETS if not name.startswith('study')])
  def test_there_and_back(self, name):
    config = presets.PRESETS[name]
    same = lambda c: transformer.dataclasses.replace(c, head_dim=c.head_size, num_kv_heads=c.kv_heads)
    assert same(hub_names.decoder_config(hub_names.raw_config(config))) == same(config)

  @pytest.mark.parametrize(
    ('changes', 'text'),
    [
      ({'norm': 'post'}, "norm is 'post': of the published architectures only decoders with 'pre'"),
      ({'positions': 'learned'}, "positions is 'learned'"),
      ({'linear': 'sigma_reparam'}, "linear is 'sigma_reparam'"),
      ({'logit_cap': 3.0}, 'logit_cap is 3.0'),
      ({'qk_norm': 'l2'}, "qkv_bias is False and qk_norm 'l2'"),
      ({'qk_norm': 'rms', 'qkv_bias': True}, "qkv_bias is True and qk_norm 'rms': Qwen2ForCausalLM has biases alone"),
    ],
  )
  def test_refused(self, changes, text):
    with pytest.raises(UserError, match=text):
      hub_names.raw_config(presets.preset('study_tiny', **changes))


class TestTensorOf:
  def test_names_of_every_parameter(self):
    for name in ('qwen2', 'qwen3', 'llama tied'):
      raw = hub_folders.config(name)
      shapes = jax.eval_shape(transformer.transformer_policy(hub_names.decoder_config(raw)).init, jax.random.key(0))
      found = {}
      for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        tensor = hub_names.tensor_of(rules.path_of(path))
        found[tensor.name] = leaf.shape[::-1] if tensor.transposed else leaf.shape
      assert found == hub_folders.shapes(raw)

  @pytest.mark.parametrize('path', ['block_0/attention/sink/sink', 'position', 'block_0/attention/query/gain', 'final_norm/bias', 'lora/a'])
  def test_none_for_what_they_do_not_have(self, path):
    assert hub_names.tensor_of(path) is None
