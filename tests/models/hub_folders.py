"""Small Hugging Face folders written with safetensors alone, and the forward pass of each architecture in numpy."""

import json

import numpy as np
from safetensors.numpy import save_file

SIZES = {
  'vocab_size': 24,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'hidden_act': 'silu',
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'rope_theta': 100.0,
  'tie_word_embeddings': False,
}
SCALING = {'rope_type': 'llama3', 'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 3.0, 'original_max_position_embeddings': 16}
CONFIGS = {
  'qwen2': {'architectures': ['Qwen2ForCausalLM'], 'use_sliding_window': False, 'sliding_window': 8, 'rope_scaling': None},
  'qwen2 tied': {'architectures': ['Qwen2ForCausalLM'], 'tie_word_embeddings': True},
  'qwen3': {'architectures': ['Qwen3ForCausalLM'], 'head_dim': 6, 'attention_bias': False},
  'llama': {'architectures': ['LlamaForCausalLM'], 'rope_scaling': SCALING, 'attention_bias': False, 'mlp_bias': False},
  # The keys of transformers 5; heads that are no part of the width.
  'llama tied': {
    'architectures': ['LlamaForCausalLM'],
    'rope_theta': None,
    'rope_parameters': SCALING | {'rope_theta': 100.0},
    'tie_word_embeddings': True,
    'head_dim': 8,
    'num_key_value_heads': 1,
  },
  'mistral': {'architectures': ['MistralForCausalLM'], 'sliding_window': None},
}


def config(name, **changes):
  """A config.json; keys set to None are null in it, and those set to ... absent."""
  return {key: value for key, value in (SIZES | CONFIGS[name] | changes).items() if value is not ...}


def shapes(c):
  """Tensor -> shape, as the architecture has them: [outputs, inputs]."""
  D, F, V = c['hidden_size'], c['intermediate_size'], c['vocab_size']
  head = c.get('head_dim', D // c['num_attention_heads'])
  H, K = c['num_attention_heads'] * head, c['num_key_value_heads'] * head
  family = c['architectures'][0]
  found = {'model.embed_tokens.weight': (V, D), 'model.norm.weight': (D,)}
  if not c['tie_word_embeddings']:
    found['lm_head.weight'] = (V, D)
  for i in range(c['num_hidden_layers']):
    inside = {'input_layernorm.weight': (D,), 'post_attention_layernorm.weight': (D,)}
    inside |= {f'self_attn.{x}_proj.weight': (n, D) for x, n in (('q', H), ('k', K), ('v', K))}
    inside |= {'self_attn.o_proj.weight': (D, H)}
    inside |= {'mlp.gate_proj.weight': (F, D), 'mlp.up_proj.weight': (F, D), 'mlp.down_proj.weight': (D, F)}
    if family == 'Qwen2ForCausalLM':
      inside |= {f'self_attn.{x}_proj.bias': (n,) for x, n in (('q', H), ('k', K), ('v', K))}
    if family == 'Qwen3ForCausalLM':
      inside |= {'self_attn.q_norm.weight': (head,), 'self_attn.k_norm.weight': (head,)}
    found |= {f'model.layers.{i}.{name}': shape for name, shape in inside.items()}
  return found


def tensors(c, dtype=np.float32, seed=0):
  """Random weights that are far from a fresh model's, so that every one of them is heard."""
  rng = np.random.default_rng(seed)
  draw = lambda name, shape: (1.0 if 'norm' in name else 0.0) + 0.4 * rng.standard_normal(shape)
  return {name: draw(name, shape).astype(dtype) for name, shape in shapes(c).items()}


def write(folder, c, values, files=1):
  """The folder, with the tensors dealt out to so many files."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(c))
  if files == 1:
    save_file(values, folder / 'model.safetensors')
    return folder
  table = {name: f'model-{i % files + 1:05d}-of-{files:05d}.safetensors' for i, name in enumerate(values)}
  for file in set(table.values()):
    save_file({name: values[name] for name in values if table[name] == file}, folder / file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': table}))
  return folder


def forward(c, values, tokens):
  """logits [N, V] of one sequence in float64, from the tensors as they are named in the folder."""
  w = {name: np.asarray(value, np.float64) for name, value in values.items()}
  N, heads, groups = len(tokens), c['num_attention_heads'], c['num_key_value_heads']
  size = c.get('head_dim', c['hidden_size'] // heads)
  rope = c.get('rope_parameters') or c.get('rope_scaling') or {}
  frequencies = []
  for i in range(size // 2):
    f = (rope.get('rope_theta') or c['rope_theta']) ** (-2 * i / size)
    if rope:
      wavelength, old = 2 * np.pi / f, rope['original_max_position_embeddings']
      low, high = old / rope['low_freq_factor'], old / rope['high_freq_factor']
      if wavelength > low:
        f = f / rope['factor']
      elif wavelength >= high:
        smooth = (old / wavelength - rope['low_freq_factor']) / (rope['high_freq_factor'] - rope['low_freq_factor'])
        f = (1 - smooth) * f / rope['factor'] + smooth * f
    frequencies.append(f)
  angle = np.outer(np.arange(N), frequencies + frequencies)  # [N, size]: the halves of a head turn together

  def norm(x, name):
    return w[name] * x / np.sqrt((x**2).mean(-1, keepdims=True) + c['rms_norm_eps'])

  def at(x, name):
    return x @ w[name + '.weight'].T + w.get(name + '.bias', 0.0)

  def turned(x):  # [heads, N, size]
    rotated = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], -1)
    return x * np.cos(angle) + rotated * np.sin(angle)

  def split(x, number):
    return x.reshape(N, number, size).transpose(1, 0, 2)

  x = w['model.embed_tokens.weight'][tokens]
  for i in range(c['num_hidden_layers']):
    at_layer = f'model.layers.{i}.'
    attn = at_layer + 'self_attn.'
    y = norm(x, at_layer + 'input_layernorm.weight')
    q, k, v = split(at(y, attn + 'q_proj'), heads), split(at(y, attn + 'k_proj'), groups), split(at(y, attn + 'v_proj'), groups)
    if attn + 'q_norm.weight' in w:
      q, k = norm(q, attn + 'q_norm.weight'), norm(k, attn + 'k_norm.weight')
    q, k = turned(q), turned(k)
    k, v = np.repeat(k, heads // groups, 0), np.repeat(v, heads // groups, 0)
    scores = np.where(np.tri(N, dtype=bool), q @ k.transpose(0, 2, 1) / np.sqrt(size), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    read = (p / p.sum(-1, keepdims=True)) @ v
    x = x + at(read.transpose(1, 0, 2).reshape(N, -1), attn + 'o_proj')
    y = norm(x, at_layer + 'post_attention_layernorm.weight')
    gate = at(y, at_layer + 'mlp.gate_proj')
    x = x + at(gate / (1 + np.exp(-gate)) * at(y, at_layer + 'mlp.up_proj'), at_layer + 'mlp.down_proj')
  head = w['model.embed_tokens.weight' if c['tie_word_embeddings'] else 'lm_head.weight']
  return norm(x, 'model.norm.weight') @ head.T
