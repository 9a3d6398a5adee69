"""Seconds of each part of a reinforcement step of the study's transformer, beside a matrix product of as many FLOPs.

    python -m benchmarks.train_step

The product is that of one MLP layer's shapes, repeated to the part's FLOPs: what the same arithmetic costs when nothing else is done.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from configs.entropy_mechanism import get_config
from entropy_jax.models import presets, transformer
from entropy_jax.rollout.generate import generate
from entropy_jax.rollout.score import score

PROMPT, RESPONSE, VOCABULARY, REPEATS = 13, 11, 22, 5


def seconds(fn: Callable[[], Any]) -> float:
  """Best of a few calls, after one that compiles."""
  jax.block_until_ready(fn())
  times = []
  for _ in range(REPEATS):
    started = time.perf_counter()
    jax.block_until_ready(fn())
    times.append(time.perf_counter() - started)
  return min(times)


def main() -> None:
  config = get_config().countdown
  shape = presets.preset(config.model_preset, vocab_size=VOCABULARY, **config.model.to_dict())
  policy = transformer.transformer_policy(shape)
  params, num_sequences = policy.init(jax.random.key(0)), config.num_prompts * config.group_size
  tokens = jax.random.randint(jax.random.key(1), (num_sequences, PROMPT + RESPONSE), 3, VOCABULARY)
  real = jnp.ones(tokens.shape, bool)
  log_prob = lambda p: jnp.mean(score(policy, p, tokens, real, RESPONSE).logp_BxT)
  sample = jax.jit(lambda p: generate(policy, p, tokens[:, :PROMPT], real[:, :PROMPT], jax.random.key(2), num_tokens=RESPONSE).tokens_BxT)
  forward, backward = jax.jit(log_prob), jax.jit(jax.value_and_grad(log_prob))

  rows = num_sequences * (PROMPT + RESPONSE - 1)
  x, w = jnp.ones((rows, shape.width)), jnp.ones((shape.width, shape.mlp_width))
  product = jax.jit(lambda: x @ w)
  rate = 2 * rows * shape.width * shape.mlp_width / seconds(product)
  num = transformer.num_parameters(shape)
  print(f'{num:,} parameters, {num_sequences} sequences of {PROMPT} + {RESPONSE} tokens; product {rate / 1e9:.0f} GFLOP/s')
  for name, fn, flops in (
    ('generate', lambda: sample(params), 2 * num * rows),
    ('score', lambda: forward(params), 2 * num * rows),
    ('score and gradient', lambda: backward(params), 6 * num * rows),
  ):
    took = seconds(fn)
    tokens_per_second, ratio = num_sequences * RESPONSE / took, took / (flops / rate)
    print(f'{name:>20}: {took * 1e3:6.0f} ms, {tokens_per_second:8.0f} response tokens/s, {ratio:.1f} x the product')


if __name__ == '__main__':
  main()
