"""Published weights in our decoder and back: a Hugging Face folder to parameters, and parameters to a folder that `transformers` loads.

Qwen2, Qwen2.5, Qwen3, Llama 3 and Mistral, from safetensors. Headers are compared with the architecture before any value is read; tensors
are then read one after the other, each device's part of it alone, so that the host never holds more than one of them.
"""

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from entropy_jax.models import hub_files, hub_names
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.transform import check_range
from entropy_jax.types import Params, PyTree, UserError

_EMBED, _HEAD = hub_names.Tensor('model.embed_tokens.weight', False), hub_names.Tensor('lm_head.weight', True)
_EXPORTS = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}
# What belongs to the tokenizer and to generation, copied as it is.
COPIED = (
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
  'LICENSE',
)
# Fields of a decoder that say how it is run or was started, and not what its weights mean.
_FREE = {'max_length', 'dtype', 'remat', 'kernel_init', 'gain_init', 'entropy_abf_exempt'}


def config_of(folder: str | os.PathLike[str], *, max_length: int | None = None) -> DecoderConfig:
  """The decoder that a folder's config.json describes, see `hub_names.decoder_config`."""
  path = Path(folder) / hub_names.CONFIG
  return hub_names.decoder_config(hub_names.read_json(path), max_length=max_length, where=path)


def load(
  folder: str | os.PathLike[str],
  *,
  max_length: int | None = None,
  dtype: str = 'float32',
  remat: bool = False,
  param_dtype: str = 'float32',
  shardings: Callable[[PyTree], PyTree] | None = None,
) -> tuple[DecoderConfig, Params]:
  """Reads a model.

  Args:
    folder: config.json, and model.safetensors or several files with model.safetensors.index.json.
    max_length: longest N = P + T that will be used; None for all positions the model was made for.
    dtype: of the decoder's arithmetic, 'float32' or 'bfloat16'.
    remat: of the decoder.
    param_dtype: of the parameters; 'bfloat16' holds half the memory, for policies that are not trained.
    shardings: abstract parameters -> their shardings, such as `functools.partial(parallel.rules.shardings, mesh=mesh)`; each process
      reads what its devices hold. None for the default device.

  Returns:
    (config, params) for `transformer_policy(config)`.

  Raises:
    UserError: another architecture, missing, unknown or misshapen tensors, other formats than safetensors, a damaged file.

  Limits: at any time this process holds on the host what its devices take of one tensor, and a part of that as it is in the file.
  """
  folder = Path(folder)
  check_range('hub.load', 'param_dtype', param_dtype, 'float32 | bfloat16')
  if not folder.is_dir():
    raise UserError(f'{folder} is no folder: give a Hugging Face model folder that lies here (nothing is downloaded).')
  config = dataclasses.replace(config_of(folder, max_length=max_length), dtype=dtype, remat=remat)
  shapes = {path: jax.ShapeDtypeStruct(shape, jnp.dtype(param_dtype)) for path, shape in _shapes(config)}
  places = {} if shardings is None else traverse_util.flatten_dict(shardings(traverse_util.unflatten_dict(shapes, sep='/')), sep='/')
  with hub_files.opened(folder) as tensors:
    _check(folder, tensors, config, shapes)
    params = {path: _place(tensors, path, leaf, places.get(path)) for path, leaf in shapes.items()}
  return config, traverse_util.unflatten_dict(params, sep='/')


def save(
  folder: str | os.PathLike[str],
  config: DecoderConfig,
  params: Params,
  *,
  source: str | os.PathLike[str] | None = None,
  dtype: str = 'float32',
  shard_bytes: int = 5_000_000_000,
  keys: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model as a Hugging Face folder; all processes of a run call it, and process 0 writes.

  Args:
    folder: must not exist, or be empty; it comes into being at once, when all of it is written.
    config: of the decoder.
    params: its parameters, on any devices.
    source: the folder that the weights came from, whose config.json, tokenizer and generation settings are kept; None for a config.json
      made from `config`, and no tokenizer.
    dtype: of the file, 'float32', 'bfloat16' or 'float16'. What was loaded is written again bit by bit in the type it had, or float32.
    shard_bytes: size of a file from which on there are several.
    keys: of config.json beside those, such as {'eos_token_id': 2}.

  Raises:
    UserError: a decoder that is none of the architectures, parameters that are not its own, a folder that is not empty.
  """
  folder = Path(folder)
  check_range('hub.save', 'dtype', dtype, ' | '.join(_EXPORTS))
  if not isinstance(shard_bytes, int) or shard_bytes < 1:
    raise UserError(f'shard_bytes is {shard_bytes!r}: give a positive number of bytes.')
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f'{folder} is there already: give a folder that is new or empty.')
  raw = hub_names.raw_config(config) if source is None else _raw_of(Path(source), config)
  raw |= {'dtype' if 'dtype' in raw else 'torch_dtype': dtype} | dict(keys or {})
  own = traverse_util.flatten_dict(params, sep='/')
  _check_params(own, config)
  written = {}
  for path, leaf in own.items():
    name, transposed = _tensor(path)
    shape = leaf.shape[::-1] if transposed else leaf.shape
    written[name] = hub_files.Written(shape, functools.partial(_made, leaf, transposed))
  if jax.process_index() > 0:
    for tensor in written.values():
      tensor.make()  # takes part in gathering it
    return
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    hub_files.write(partial, written, dtype=_EXPORTS[dtype], shard_bytes=shard_bytes)
    (partial / hub_names.CONFIG).write_text(json.dumps(raw, indent=2) + '\n', encoding='utf-8')
    for name in COPIED:
      if source is not None and (Path(source) / name).is_file():
        shutil.copyfile(Path(source) / name, partial / name)
    if folder.exists():
      folder.rmdir()
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


@functools.lru_cache(8)
def _shapes(config: DecoderConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """Path and shape of the decoder's parameters."""
  shapes = traverse_util.flatten_dict(jax.eval_shape(transformer_policy(config).init, jax.random.key(0)), sep='/')
  return tuple((path, leaf.shape) for path, leaf in shapes.items())


def _tensor(path: str) -> hub_names.Tensor:
  found = hub_names.tensor_of(path)
  if found is None:
    raise UserError(f'params: published architectures have no parameter {path}: give those of a decoder that is one of them.')
  return found


def _made(leaf: jax.Array, transposed: bool) -> np.ndarray:
  return _oriented(_whole(leaf), transposed)


def _oriented(x: Any, transposed: bool) -> Any:
  return x.T if transposed else x


def _check(folder: Path, tensors: hub_files.Tensors, config: DecoderConfig, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
  """Compares the headers with the architecture: one sentence for all that differs."""
  want = {}
  for path, leaf in shapes.items():
    name, transposed = _tensor(path)
    want[name] = leaf.shape[::-1] if transposed else leaf.shape
  entries, wrong = tensors.entries, []
  missing = [name for name in want if name not in entries]
  known = set(want) | ({_HEAD.name} if config.tie_embeddings else set())
  extra = sorted(name for name in entries if name not in known and not hub_names.is_ignored(name))
  misshapen = [
    f'{name} is {list(entries[name].shape)} and not {list(shape)}'
    for name, shape in want.items()
    if name in entries and entries[name].shape != shape
  ]
  foreign = [f'{name} is {entries[name].dtype}' for name in sorted(known & set(entries)) if entries[name].dtype not in hub_files.DTYPES]
  for names, text in ((missing, 'it lacks {}'), (extra, 'it has no use for {}'), (misshapen, '{}'), (foreign, '{}, no float of 16 or 32')):
    if names:
      wrong.append(text.format(hub_files.listed(names)))
  if wrong:
    mend = 'fetch the weights and the config.json that belong together'
    if missing == [_HEAD.name]:
      mend = 'fetch the whole model, or set tie_word_embeddings to true in config.json if it is tied'
    raise UserError(f'{folder} is not the model of its config.json: {"; ".join(wrong)}; {mend}.')
  if config.tie_embeddings and _HEAD.name in entries and not _same(tensors, _EMBED.name, _HEAD.name):
    raise UserError(
      f'{folder}: tie_word_embeddings is true, but {_HEAD.name} is another matrix than {_EMBED.name}: set it to false in config.json.'
    )


def _same(tensors: hub_files.Tensors, a: str, b: str) -> bool:
  """Whether two tensors hold the same bits, compared a block of rows at a time."""
  first, second = tensors.entries[a], tensors.entries[b]
  if first[:2] != second[:2]:
    return False
  rows = max((1 << 26) // max(first.shape[-1] * 4, 1), 1)
  parts = [(slice(i, min(i + rows, first.shape[0])), slice(None)) for i in range(0, first.shape[0], rows)]
  return all(tensors.read(a, part).tobytes() == tensors.read(b, part).tobytes() for part in parts)


def _place(tensors: hub_files.Tensors, path: str, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
  """A parameter, made from what each device holds of it."""
  name, transposed = _tensor(path)

  def read(index: hub_files.Index | None) -> np.ndarray:
    bounds = [slice(*s.indices(size)) for s, size in zip(index or (slice(None),) * len(leaf.shape), leaf.shape, strict=True)]
    index = tuple(bounds[::-1] if transposed else bounds)
    part = _oriented(tensors.read(name, index), transposed)
    return np.asarray(part, leaf.dtype, order='C')  # at most one copy, into order and type at once

  if sharding is None:
    placed = jax.device_put(read(None))
  else:
    placed = jax.make_array_from_callback(leaf.shape, sharding, read, dtype=leaf.dtype)
  return jax.block_until_ready(placed)  # or copies on their way to the devices would gather on the host


def _raw_of(source: Path, config: DecoderConfig) -> dict[str, Any]:
  """The config.json of the source, whose decoder must be this one."""
  path = source / hub_names.CONFIG
  raw = hub_names.read_json(path)
  there = hub_names.decoder_config(raw, max_length=config.max_length, where=path)
  own, other = dataclasses.asdict(config), dataclasses.asdict(there)
  own['num_kv_heads'], other['num_kv_heads'] = config.kv_heads, there.kv_heads
  own['head_dim'], other['head_dim'] = config.head_size, there.head_size
  for key in own:
    if key not in _FREE and own[key] != other[key]:
      raise UserError(f'{key} is {own[key]!r} and that of {path} {other[key]!r}: give the folder the model came from, or source=None.')
  return raw


def _check_params(own: Mapping[str, jax.Array], config: DecoderConfig) -> None:
  want = dict(_shapes(config))
  for path, shape in want.items():
    if path not in own:
      raise UserError(f'params: {path} is missing: give the parameters of a decoder with this config.')
    if own[path].shape != shape:
      raise UserError(f'params: {path} has shape {list(own[path].shape)} and not {list(shape)}: give those of this config.')
  more = sorted(set(own) - set(want))
  if more:
    raise UserError(f'params: {hub_files.listed(more)} are none of a decoder with this config: merge or drop what was added.')


def _whole(x: jax.Array) -> np.ndarray:
  """The array on this host. Of copies of its shards, because an array keeps the host's copy that was once made of it."""
  if not isinstance(x, jax.Array):
    return np.asarray(x)
  if not x.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  whole = np.empty(x.shape, x.dtype)
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      whole[shard.index] = np.asarray(jnp.copy(shard.data))
  return whole
