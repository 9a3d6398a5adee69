"""The decoder against `transformers` on random small folders of every architecture: logits, greedy generation, weights there and back.

    python -m benchmarks.versus_transformers [--seed=0] [--tokens=24]

Needs the extra `bench` (transformers, torch). Both read the same folder in float32: prompts padded on the left to three lengths, logits of
every real token, then greedy responses of --tokens tokens, token by token. The folder is then exported again and compared bit by bit, and
loaded by `transformers`, which must give the logits it gave before. Decoders of ours are exported without a source and read by
`transformers`, with a tokenizer made here: the text that both make of a conversation, and its ids, must be the same. Weights are drawn
ten times larger than a fresh model's, biases and scales too, so that every part of the network is heard.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ['HF_HUB_OFFLINE'] = '1'  # folders made here, and nothing else

import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from entropy_jax.data import hub_tokenizer
from entropy_jax.layers.attention import RopeScaling
from entropy_jax.models import hub
from entropy_jax.models.policy import Policy
from entropy_jax.models.transformer import DecoderConfig, transformer_policy
from entropy_jax.rollout import generate

LIMIT = 1e-4  # of the largest difference of a logit
LENGTHS = (40, 33, 17)  # real tokens of the prompts
_SIZES = {
  'vocab_size': 512,
  'hidden_size': 64,
  'intermediate_size': 160,
  'num_hidden_layers': 3,
  'num_attention_heads': 8,
  'num_key_value_heads': 2,
  'max_position_embeddings': 256,
  'bos_token_id': None,
  'eos_token_id': None,
  'pad_token_id': None,
}
_SCALING = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}


@dataclasses.dataclass(frozen=True)
class Case:
  """A folder: what class makes it, with which settings, in which type, in files of which size."""

  model: str
  settings: dict[str, Any]
  dtype: str = 'float32'
  shard: str = '1GB'


CASES = {
  'Qwen2.5, tied': Case('Qwen2', {'tie_word_embeddings': True, 'rope_theta': 1e6}),
  'Qwen2.5, untied, 8 files': Case('Qwen2', {'tie_word_embeddings': False, 'rope_theta': 1e6}, shard='100KB'),
  'Qwen3, tied': Case('Qwen3', {'tie_word_embeddings': True, 'head_dim': 16, 'rope_theta': 1e6}),
  'Qwen3, untied, bf16': Case('Qwen3', {'tie_word_embeddings': False, 'head_dim': 16}, dtype='bfloat16'),
  'Llama 3.1, scaled': Case('Llama', {'rope_scaling': _SCALING, 'rope_theta': 5e5, 'rms_norm_eps': 1e-5}),
  'Llama 3.2, scaled, tied': Case('Llama', {'rope_scaling': _SCALING, 'rope_theta': 5e5, 'tie_word_embeddings': True, 'head_dim': 16}),
  'Llama 3, bf16': Case('Llama', {'rope_theta': 5e5}, dtype='bfloat16'),
  'Mistral': Case('Mistral', {'sliding_window': None, 'head_dim': 16}),
  'Mistral, window 128': Case('Mistral', {'sliding_window': 128, 'rms_norm_eps': 1e-5}),
}


def make(case: Case, folder: Path, seed: int) -> Any:
  """Writes the folder; the model of it in float32."""
  torch.manual_seed(seed)
  config = getattr(transformers, f'{case.model}Config')(**_SIZES | case.settings)
  model = getattr(transformers, f'{case.model}ForCausalLM')(config)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter)
      parameter.copy_(1 + 0.3 * noise if 'norm' in name else 0.2 * noise)
  model = model.to(getattr(torch, case.dtype))
  model.save_pretrained(folder, max_shard_size=case.shard)
  return read(folder)


def read(folder: Path) -> Any:
  """What `transformers` makes of a folder, in float32."""
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager').eval()


def inputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts padded on the left."""
  tokens = np.random.default_rng(seed).integers(0, _SIZES['vocab_size'], (len(LENGTHS), max(LENGTHS)), np.int32)
  mask = np.arange(max(LENGTHS)) >= max(LENGTHS) - np.array(LENGTHS)[:, None]
  return np.where(mask, tokens, 0), mask


def their_logits(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  real = torch.from_numpy(mask.astype(np.int64))
  places = (real.cumsum(-1) - 1).clamp(min=0)
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long(), attention_mask=real, position_ids=places).logits.numpy()


def their_greedy(model: Any, tokens: np.ndarray, mask: np.ndarray, num_tokens: int) -> np.ndarray:
  settings = {'max_new_tokens': num_tokens, 'min_new_tokens': num_tokens, 'do_sample': False, 'pad_token_id': 0}
  with torch.no_grad():
    out = model.generate(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask.astype(np.int64)), **settings)
  return out[:, tokens.shape[1] :].numpy()


def our_greedy(policy: Policy, params: Any, tokens: np.ndarray, mask: np.ndarray, num_tokens: int) -> np.ndarray:
  @jax.jit
  def respond(params: Any) -> jax.Array:
    key = jax.random.key(0)  # unused at temperature 0
    return generate.generate(policy, params, tokens, mask, key, num_tokens=num_tokens, temperature=0).tokens_BxT

  return np.asarray(respond(params))


def weights(folder: Path) -> dict[str, np.ndarray]:
  return {name: value for file in sorted(folder.glob('*.safetensors')) for name, value in load_file(file).items()}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  return set(a) == set(b) and all(a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a)


def compare(case: Case, seed: int, num_tokens: int) -> dict[str, Any]:
  """The row of a folder."""
  with tempfile.TemporaryDirectory() as given:
    folder, copy = Path(given) / 'theirs', Path(given) / 'ours'
    model = make(case, folder, seed)
    window = case.settings.get('sliding_window')
    config, params = hub.load(folder, max_length=window)
    policy = transformer_policy(config)
    tokens, mask = inputs(seed)
    want = their_logits(model, tokens, mask)
    logits = np.asarray(jax.jit(policy.logits)(params, tokens, mask))
    response, theirs = our_greedy(policy, params, tokens, mask, num_tokens), their_greedy(model, tokens, mask, num_tokens)
    hub.save(copy, config, params, source=folder, dtype=case.dtype, shard_bytes=200_000)
    again = their_logits(read(copy), tokens, mask)
    return {
      'files': len(list(folder.glob('*.safetensors'))),
      'largest logit': float(np.abs(want[mask]).max()),
      'difference': float(np.abs(logits - want)[mask].max()),
      'tokens': int((response == theirs).sum()),
      'of': int(theirs.size),
      'weights': same_bits(weights(folder), weights(copy)),
      'exported': bool(np.array_equal(again, want)),
    }


# What chat templates use: variables, conditions, loops that are left, JSON, words of the assistant marked, tools.
TEMPLATE = """{%- set state = namespace(asked=0) %}
{%- if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'stop' %}{% break %}{% endif %}
    {%- if message['role'] == 'user' %}{% set state.asked = state.asked + 1 %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'].strip() }}{% endgeneration %}
    {%- else %}{{ message.content | trim }}{% endif %}
    {{- eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant ' ~ state.asked ~ ('' if enable_thinking is defined else '!') ~ '\n' }}{% endif %}
"""
MESSAGES = [
  {'role': 'system', 'content': 'Be brief.  '},
  {'role': 'user', 'content': 'What is 3 + 4? \N{SNOWMAN}\n'},
  {'role': 'assistant', 'content': ' 7 <b> '},
  {'role': 'user', 'content': '"And" 12 + 8?'},
  {'role': 'stop', 'content': 'not read'},
]
OURS: dict[str, dict[str, Any]] = {
  'as Qwen2': {'qkv_bias': True},
  'as Qwen3': {'qk_norm': 'rms', 'head_dim': 24, 'tie_embeddings': False},
  'as Llama 3': {'rope_scaling': RopeScaling(factor=8.0, original_max_position=16), 'norm_eps': 1e-5},
}


def same_texts(folder: Path, tokenizer: hub_tokenizer.HubTokenizer) -> bool:
  """Whether the tokenizer of the folder is ours in `transformers`: chats, ids, texts."""
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  same = []
  tools = [{'name': 'a < b', 'arguments': {'x': [1, None]}}]
  for options in ({}, {'add_generation_prompt': False}, {'enable_thinking': False}, {'tools': tools}):
    text = tokenizer.chat(MESSAGES, **options)
    ids = tokenizer.encode(text)
    want = theirs.apply_chat_template(MESSAGES, tokenize=False, **{'add_generation_prompt': True} | options)
    same += [want == text, theirs(text, add_special_tokens=False)['input_ids'] == ids]
    same += [theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special=True)]
  same += [theirs.eos_token_id == tokenizer.eos_id, theirs.pad_token_id == tokenizer.pad_id]
  return all(same)


def ours(changes: dict[str, Any], seed: int) -> dict[str, Any]:
  """A decoder of ours, exported without a source, in `transformers`; and a tokenizer with chats."""
  base = DecoderConfig(vocab_size=300, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=96, max_length=512)
  config = dataclasses.replace(base, **changes)
  policy = transformer_policy(config)
  leaves, tree = jax.tree.flatten(policy.init(jax.random.key(seed)))
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  params = jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])
  tokenizer = hub_tokenizer.train(['What is 12 + 7? The answer is 19.', 'Größe 3/4'] * 4, vocab_size=300)
  tokenizer = dataclasses.replace(tokenizer, template=TEMPLATE)
  with tempfile.TemporaryDirectory() as given:
    folder = Path(given) / 'ours'
    hub.save(folder, config, params)
    hub_tokenizer.save(folder, tokenizer)
    ids = tokenizer.encode(tokenizer.chat(MESSAGES))
    tokens, mask = np.array([ids], np.int32), np.ones((1, len(ids)), bool)
    difference = np.abs(np.asarray(jax.jit(policy.logits)(params, tokens, mask)) - their_logits(read(folder), tokens, mask)).max()
    return {'difference': float(difference), 'chat': same_texts(folder, tokenizer)}


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--tokens', type=int, default=24)
  given = parser.parse_args(argv)
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  versions = f'jax {jax.__version__}, transformers {transformers.__version__}, torch {torch.__version__}'
  print(f'{jax.devices()[0].platform}, {versions}, limit {LIMIT:g}')
  print('| folder | files | largest logit | largest difference | greedy tokens equal | weights back, bit by bit | its logits again |')
  print('|---|---|---|---|---|---|---|')
  rows, missed = {}, []
  for name, case in CASES.items():
    row = rows[name] = compare(case, given.seed, given.tokens)
    text = f'{row["files"]} | {row["largest logit"]:.3g} | {row["difference"]:.2e} | {row["tokens"]} of {row["of"]}'
    print(f'| {name} | {text} | {row["weights"]} | {row["exported"]} |', flush=True)
    good = row['difference'] <= LIMIT and row['tokens'] == row['of'] and row['weights'] and row['exported']
    missed += [] if good else [name]
  mine = {name: ours(changes, given.seed) for name, changes in OURS.items()}
  print('| decoder of ours, exported | largest difference | chat, ids and texts equal |')
  print('|---|---|---|')
  for name, row in mine.items():
    print(f'| {name} | {row["difference"]:.2e} | {row["chat"]} |')
    missed += [] if row['difference'] <= LIMIT and row['chat'] else [name]
  worst = max(row['difference'] for row in [*rows.values(), *mine.values()])
  print(json.dumps({'benchmark': 'versus_transformers', 'limit': LIMIT, 'worst': worst, 'missed': missed, 'rows': rows, 'ours': mine}))
  sys.exit(1 if missed else 0)


if __name__ == '__main__':
  main()
