"""Log-prob and entropy of tokens with their gradients: tiles of the vocabulary against the form that holds all logits.

    python -m benchmarks.vocab_stats [--sizes=512x256x32768,256x256x151936] [--rounds=9]

For T tokens, width D and vocabulary V: temporaries as the compiler counts them, and the time of values and gradients (hidden states and
kernel), each against `ops.categorical` on h W^T under one jit, in pairs of one run and random order. Values and gradients are checked to be
equal before anything is timed. The last line is JSON. Limits: a quarter of the memory, 1.15 times the time.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.ops import categorical, unembedding
from entropy_jax.ops.unembedding import Unembedding

SIZES = '512x256x32768,256x256x151936'
MEMORY_LIMIT, TIME_LIMIT = 0.25, 1.15


def programs(T: int, D: int, V: int) -> tuple[dict[str, Any], tuple[jax.Array, ...]]:
  """Both compiled forms, and what they are called with."""
  keys = jax.random.split(jax.random.key(0), 4)
  hidden_TxD = jax.random.normal(keys[0], (T, D))
  kernel_VxD = jax.random.normal(keys[1], (V, D)) * D**-0.5
  target_T, weight_2xT = jax.random.randint(keys[2], (T,), 0, V), jax.random.normal(keys[3], (2, T))

  def compiled(pair: Any) -> Any:
    def loss(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
      logp_T, entropy_T = pair(hidden, kernel)
      return jnp.sum(weight_2xT[0] * logp_T) + jnp.sum(weight_2xT[1] * entropy_T)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden_TxD, kernel_VxD).compile()

  forms = {
    'naive': lambda hidden, kernel: categorical.token_log_prob_and_entropy(hidden @ kernel.T, target_T),
    'tiles': lambda hidden, kernel: unembedding.log_prob_and_entropy(hidden, Unembedding(kernel), target_T),
  }
  return {name: compiled(pair) for name, pair in forms.items()}, (hidden_TxD, kernel_VxD)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--sizes', default=SIZES)
  parser.add_argument('--rounds', type=int, default=9)
  given = parser.parse_args(argv)
  rng, device, found = np.random.default_rng(0), jax.devices()[0], {}
  print(f'{device.platform} ({device.device_kind}), jax {jax.__version__}, {given.rounds} rounds')
  for size in given.sizes.split(','):
    made, arguments = programs(*map(int, size.split('x')))
    results = {name: jax.device_get(run(*arguments)) for name, run in made.items()}
    for got, want in zip(*(jax.tree.leaves(results[name]) for name in ('tiles', 'naive')), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(np.max(np.abs(want))))
    del results
    megabytes = {name: run.memory_analysis().temp_size_in_bytes / 2**20 for name, run in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(given.rounds):
      for name in rng.permutation(list(made)):
        started = time.perf_counter()
        jax.block_until_ready(made[name](*arguments))
        seconds[name].append(time.perf_counter() - started)
    ratio = float(np.median(np.divide(seconds['tiles'], seconds['naive'])))
    memory = megabytes['tiles'] / megabytes['naive']
    found[size] = {'time_ratio': round(ratio, 3), 'memory_ratio': round(memory, 4)}
    verdict = 'ok' if ratio <= TIME_LIMIT and memory <= MEMORY_LIMIT else 'above the limit'
    for name in made:
      print(f'{size:>18} {name:>6}: {1e3 * np.median(seconds[name]):7.0f} ms, temporaries {megabytes[name]:7.1f} MiB')
    print(f'{size:>18}  ratio: {ratio:.2f} of the time, {memory:.3f} of the memory  {verdict}')
  print(json.dumps(found))


if __name__ == '__main__':
  main()
