"""Named decoder shapes: small ones for studies, and the published families whose weights the decoder can hold.

Sizes are those of the models' released config.json; each preset's parameter count is checked against arithmetic by hand in the tests.
"""

import dataclasses
from typing import Any

from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

_QWEN2_5 = DecoderConfig(
  vocab_size=151936,
  width=896,
  num_layers=24,
  num_heads=14,
  num_kv_heads=2,
  mlp_width=4864,
  max_length=32768,
  rope_theta=1e6,
  qkv_bias=True,
)
_QWEN3 = DecoderConfig(
  vocab_size=151936,
  width=1024,
  num_layers=28,
  num_heads=16,
  num_kv_heads=8,
  head_dim=128,
  mlp_width=3072,
  max_length=40960,
  rope_theta=1e6,
  qk_norm='rms',
)
_LLAMA3_2 = DecoderConfig(
  vocab_size=128256,
  width=2048,
  num_layers=16,
  num_heads=32,
  num_kv_heads=8,
  mlp_width=8192,
  max_length=131072,
  rope_theta=5e5,
  rope_scaling=RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192),
  norm_eps=1e-5,
)
_STUDY = DecoderConfig(vocab_size=32, width=128, num_layers=3, num_heads=4, mlp_width=384, max_length=64)

PRESETS: dict[str, DecoderConfig] = {
  # Studies on a processor: about 0.1, 0.64 and 1.5 million parameters with a small vocabulary.
  'study_tiny': dataclasses.replace(_STUDY, width=64, num_layers=2, mlp_width=192),
  'study_small': _STUDY,
  'study_medium': dataclasses.replace(_STUDY, width=176, num_layers=4, mlp_width=512),
  'qwen2_5_0_5b': _QWEN2_5,
  'qwen2_5_1_5b': dataclasses.replace(_QWEN2_5, width=1536, num_layers=28, num_heads=12, mlp_width=8960),
  'qwen3_0_6b': _QWEN3,
  'qwen3_1_7b': dataclasses.replace(_QWEN3, width=2048, mlp_width=6144),
  'llama3_2_1b': _LLAMA3_2,
  'llama3_2_3b': dataclasses.replace(_LLAMA3_2, width=3072, num_layers=28, num_heads=24, head_dim=128),
}


def preset(name: str, **changes: Any) -> DecoderConfig:
  """The named shape, with fields of `DecoderConfig` replaced.

  >>> preset('study_small', vocab_size=20).vocab_size
  20
  """
  if name not in PRESETS:
    raise UserError(f'model preset is {name!r}: choose one of {", ".join(PRESETS)}.{nearest(name, list(PRESETS))}')
  fields = [f.name for f in dataclasses.fields(DecoderConfig)]
  for key in changes:
    if key not in fields:
      raise UserError(f'{key} is no field of DecoderConfig; they are {", ".join(fields)}.{nearest(key, fields)}')
  return dataclasses.replace(PRESETS[name], **changes)
