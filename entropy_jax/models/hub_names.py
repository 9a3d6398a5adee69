"""What Hugging Face folders call the decoder and its parameters: config.json to `DecoderConfig` and back, tensor names by parameter path.

Four architectures, which differ in three things only: biases on query, key and value, normalised query and key heads, and the size of a
head where config.json does not say it. Rotary positions pair the halves of a head in all of them and in layers/attention.py, and heads
lie behind one another in the outputs of the maps in both: a kernel here is the transposed weight there, and nothing is permuted.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models.transformer import DecoderConfig
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

CONFIG = 'config.json'


@dataclasses.dataclass(frozen=True)
class Family:
  """What an architecture fixes; the rest stands in config.json.

  Attributes:
    architecture: its name in config.json.
    model_type: its other name there.
    qkv_bias, qk_norm: as in `DecoderConfig`.
    head_dim: where config.json has none; None for width / heads.
    num_kv_heads: where config.json has none; None for as many as query heads.
    sliding_window: where config.json has none; None for no window.
    window_switch: the key without which `sliding_window` is not used; None where it always is.
  """

  architecture: str
  model_type: str
  qkv_bias: bool = False
  qk_norm: str | None = None
  head_dim: int | None = None
  num_kv_heads: int | None = None
  sliding_window: int | None = None
  window_switch: str | None = None


_SWITCH = 'use_sliding_window'
QWEN2 = Family('Qwen2ForCausalLM', 'qwen2', qkv_bias=True, num_kv_heads=32, sliding_window=4096, window_switch=_SWITCH)
QWEN3 = Family('Qwen3ForCausalLM', 'qwen3', qk_norm='rms', head_dim=128, num_kv_heads=32, sliding_window=4096, window_switch=_SWITCH)
LLAMA = Family('LlamaForCausalLM', 'llama')
MISTRAL = Family('MistralForCausalLM', 'mistral', num_kv_heads=8, sliding_window=4096)
# Where two could export a decoder the first does; Mistral's differs from Llama's in what it says of windows alone.
FAMILIES = {family.architecture: family for family in (QWEN2, QWEN3, LLAMA, MISTRAL)}

# Keys of config.json that would change the network -> what they may be. Absent is as good as the first.
_FIXED: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'partial_rotary_factor': (1, None),
  'quantization_config': (None,),
}
# Fields of DecoderConfig that published architectures leave at their default.
_DEFAULTS = (
  'linear',
  'norm',
  'norm_kind',
  'activation',
  'logit_cap',
  'sink',
  'softmax_temperature',
  'entropy_abf_window',
  'positions',
  'final_logit_cap',
)


class Tensor(NamedTuple):
  """A tensor of the folder, and whether it is the transposed parameter."""

  name: str
  transposed: bool


_OUTSIDE = {
  'embed': Tensor('model.embed_tokens.weight', False),
  'final_norm/scale': Tensor('model.norm.weight', False),
  'unembed': Tensor('lm_head.weight', True),
}
_NORMS = {
  'attention_norm': 'input_layernorm',
  'mlp_norm': 'post_attention_layernorm',
  'attention/query_norm': 'self_attn.q_norm',
  'attention/key_norm': 'self_attn.k_norm',
}
_MAPS = {
  'attention/query': 'self_attn.q_proj',
  'attention/key': 'self_attn.k_proj',
  'attention/value': 'self_attn.v_proj',
  'attention/output': 'self_attn.o_proj',
  'mlp/gate': 'mlp.gate_proj',
  'mlp/up': 'mlp.up_proj',
  'mlp/down': 'mlp.down_proj',
}


def tensor_of(path: str) -> Tensor | None:
  """The tensor of the parameter at this path, None where published architectures have no such parameter.

  >>> tensor_of('block_2/mlp/up/kernel')
  Tensor(name='model.layers.2.mlp.up_proj.weight', transposed=True)
  """
  if path in _OUTSIDE:
    return _OUTSIDE[path]
  inside = re.fullmatch(r'block_(\d+)/(.+)/(kernel|bias|scale)', path)
  if inside is None:
    return None
  number, where, kind = inside.groups()
  name = (_NORMS if kind == 'scale' else _MAPS).get(where)
  return None if name is None else Tensor(f'model.layers.{number}.{name}.{"bias" if kind == "bias" else "weight"}', kind == 'kernel')


def is_ignored(name: str) -> bool:
  """Whether it is no parameter but a table that old folders carry: the rotary frequencies, which config.json says too."""
  return name.endswith('rotary_emb.inv_freq')


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file; anything else is a UserError."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: give a Hugging Face model folder that is complete.') from None
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path} is no JSON ({str(error).splitlines()[0]}): fetch the file again.') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error.strerror}): give a Hugging Face model folder that can.') from None
  if not isinstance(found, dict):
    raise UserError(f'{path} holds a {type(found).__name__} and no JSON object: fetch the file again.')
  return found


def family_of(raw: Mapping[str, Any], where: str | Path = CONFIG) -> Family:
  """The family of the architecture that a config.json names."""
  named = raw.get('architectures')
  if not named:
    types = {family.model_type: family for family in FAMILIES.values()}
    kind = raw.get('model_type')
    if isinstance(kind, str) and kind in types:
      return types[kind]
    raise UserError(f'{where}: model_type is {kind!r}: only {", ".join(types)} can be read.{nearest(str(kind), list(types))}')
  name = named[0] if isinstance(named, list) else named
  if not isinstance(name, str) or name not in FAMILIES:
    raise UserError(
      f'{where}: the architecture is {name!r}: only {", ".join(FAMILIES)} can be read.{nearest(str(name), list(FAMILIES))}'
    )
  return FAMILIES[name]


def _number(raw: Mapping[str, Any], key: str, where: str | Path, *, default: Any = ..., whole: bool = True) -> Any:
  """The positive number at a key; `default` where the key is absent or null."""
  value = raw.get(key)
  if value is None:
    if default is ...:
      raise UserError(f'{where}: {key} is missing: fetch the file that belongs to the weights.')
    return default
  fits = isinstance(value, int) or (isinstance(value, float) and not whole)
  if not fits or isinstance(value, bool) or not value > 0:
    raise UserError(f'{where}: {key} is {value!r}: it must be a positive {"integer" if whole else "number"}.')
  return value


def _rope(raw: Mapping[str, Any], where: str | Path) -> tuple[float, RopeScaling | None]:
  """Base of the frequencies and their scaling: rope_theta and rope_scaling or, since transformers 5, both in rope_parameters."""
  together, apart = raw.get('rope_parameters') or {}, raw.get('rope_scaling') or {}
  for key, value in (('rope_parameters', together), ('rope_scaling', apart)):
    if not isinstance(value, dict) or any(isinstance(x, dict) for x in value.values()):
      raise UserError(f'{where}: {key} is {value!r}: the decoder has one set of rotary positions for all layers.')
  theta = _number(raw if together.get('rope_theta') is None else together, 'rope_theta', where, default=10000.0, whole=False)
  scaling, inside = (apart, f'{where}: rope_scaling') if apart else (together, f'{where}: rope_parameters')
  kind = scaling.get('rope_type') or scaling.get('type') or 'default'
  if kind == 'default':
    return float(theta), None
  if kind != 'llama3':
    raise UserError(f"{where}: the type of rope_scaling is {kind!r}: only 'llama3' and 'default' can be read.")
  factors = [_number(scaling, key, inside, whole=False) for key in ('factor', 'low_freq_factor', 'high_freq_factor')]
  length = _number(scaling, 'original_max_position_embeddings', inside)
  return float(theta), RopeScaling(
    factor=float(factors[0]), low_freq_factor=float(factors[1]), high_freq_factor=float(factors[2]), original_max_position=length
  )


def decoder_config(raw: Mapping[str, Any], *, max_length: int | None = None, where: str | Path = CONFIG) -> DecoderConfig:
  """The decoder that a config.json describes.

  Args:
    raw: what stands in it.
    max_length: longest N = P + T to be used; None for all that the model was made for.
    where: what messages call the file.

  Raises:
    UserError: another architecture, or one of these with something that the decoder has not: other rotary scalings, biases elsewhere,
      quantised weights, a sliding window shorter than max_length.
  """
  family = family_of(raw, where)
  for key, allowed in _FIXED.items():
    unused = key == 'attention_bias' and family.qkv_bias  # Qwen2 has its biases whatever this says
    if not unused and raw.get(key, allowed[0]) not in allowed:
      raise UserError(f'{where}: {key} is {raw[key]!r}: the decoder has only {allowed[0]!r}; choose another checkpoint.')
  theta, scaling = _rope(raw, where)
  heads = _number(raw, 'num_attention_heads', where)
  longest = _number(raw, 'max_position_embeddings', where)
  if max_length is not None and not 0 < max_length <= longest:
    raise UserError(f'max_length is {max_length!r}: {where} allows 1 to {longest} positions.')
  length = longest if max_length is None else max_length
  window = raw.get('sliding_window', family.sliding_window)
  if family.window_switch is not None and not raw.get(family.window_switch):
    window = None
  if window is not None and length > _number({'sliding_window': window}, 'sliding_window', where):
    raise UserError(f'{where}: sliding_window is {window} and max_length {length}: give max_length={window} or less, where both agree.')
  tied = raw.get('tie_word_embeddings', False)
  if not isinstance(tied, bool):
    raise UserError(f'{where}: tie_word_embeddings is {tied!r}: it must be true or false.')
  try:
    return DecoderConfig(
      vocab_size=_number(raw, 'vocab_size', where),
      width=_number(raw, 'hidden_size', where),
      num_layers=_number(raw, 'num_hidden_layers', where),
      num_heads=heads,
      num_kv_heads=_number(raw, 'num_key_value_heads', where, default=family.num_kv_heads or heads),
      head_dim=_number(raw, 'head_dim', where, default=family.head_dim),
      mlp_width=_number(raw, 'intermediate_size', where),
      max_length=length,
      rope_theta=theta,
      rope_scaling=scaling,
      norm_eps=float(_number(raw, 'rms_norm_eps', where, default=1e-6, whole=False)),
      tie_embeddings=tied,
      qkv_bias=family.qkv_bias,
      qk_norm=family.qk_norm,
    )
  except UserError as error:
    raise error if str(error).startswith(str(where)) else UserError(f'{where}: {error}') from None


def raw_config(config: DecoderConfig) -> dict[str, Any]:
  """The config.json of a decoder, in the keys that transformers 4 and 5 both read.

  Raises:
    UserError: it has something that none of the architectures has.
  """
  plain = {field.name: field.default for field in dataclasses.fields(DecoderConfig)}
  other = [key for key in _DEFAULTS if getattr(config, key) != plain[key]]
  if other:
    what = f'{other[0]} is {getattr(config, other[0])!r}'
    raise UserError(f'{what}: of the published architectures only decoders with {plain[other[0]]!r} are some, so it has no export.')
  found = [f for f in FAMILIES.values() if (f.qkv_bias, f.qk_norm) == (config.qkv_bias, config.qk_norm)]
  if not found:
    raise UserError(
      f'qkv_bias is {config.qkv_bias} and qk_norm {config.qk_norm!r}: {QWEN2.architecture} has biases alone, {QWEN3.architecture} '
      f"qk_norm='rms' alone and {LLAMA.architecture} neither; export one of these."
    )
  family, scaling = found[0], config.rope_scaling
  return {
    'architectures': [family.architecture],
    'model_type': family.model_type,
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'intermediate_size': config.mlp_width,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_size,
    'hidden_act': 'silu',
    'max_position_embeddings': config.max_length,
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'rope_scaling': None
    if scaling is None
    else {
      'rope_type': 'llama3',
      'factor': scaling.factor,
      'low_freq_factor': scaling.low_freq_factor,
      'high_freq_factor': scaling.high_freq_factor,
      'original_max_position_embeddings': scaling.original_max_position,
    },
    'tie_word_embeddings': config.tie_embeddings,
    'attention_bias': family.qkv_bias,
    'mlp_bias': False,
    'use_sliding_window': False,
    'sliding_window': None,
    'attention_dropout': 0.0,
    # The classes' own defaults may lie outside of a small vocabulary.
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
  }
