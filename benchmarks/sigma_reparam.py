"""Time of sigmaReparam's dense layer over flax's Dense, forward and backward, in pairs.

    python -m benchmarks.sigma_reparam [--widths 256 512 1024] [--tokens=2048] [--rounds=40] [--dtype=float32]

A pass is the output and the gradients of parameters and inputs. In every round each layer makes one pass in a new order; a ratio is of two
passes of the same round, so that what else the machine does meets both. 'dense again' is Dense compiled a second time: what its ratio is
away from 1 is what the machine cannot tell. 'mutable' makes the power iteration in the forward pass, as a loop without `advance` does;
'advance' is that step outside, once per update however many passes an update has.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax.layers import spectral
from entropy_jax.layers.sigma_reparam import SigmaReparamDense, SpectralNormDense


def passes(width: int, num_tokens: int, dtype: str) -> dict[str, Callable[[], Any]]:
  """name -> a function that makes one pass and waits for it."""
  keys = jax.random.split(jax.random.key(0), 3)
  x_RxD, cotangent_RxD = (jax.random.normal(key, (num_tokens, width), dtype) for key in keys[:2])

  dense = functools.partial(nn.Dense, width, dtype=dtype)
  sigma = functools.partial(SigmaReparamDense, width, dtype=dtype)
  variables = jax.jit(sigma().init)(keys[2], x_RxD)
  without_gain = {name: value for name, value in variables['params'].items() if name != 'gain'}

  def one(layer: nn.Module, mutable: bool = False) -> Callable[[], Any]:
    params = variables['params'] if isinstance(layer, SigmaReparamDense) else without_gain
    state = {} if type(layer) is nn.Dense else {'spectral': variables['spectral']}

    @jax.jit
    def both(params: Any, state: Any, x_RxD: jax.Array, cotangent_RxD: jax.Array) -> Any:
      def forward(params: Any, x_RxD: jax.Array) -> Any:
        if mutable:
          return layer.apply({'params': params, **state}, x_RxD, mutable=['spectral'])
        return layer.apply({'params': params, **state}, x_RxD), {}

      y_RxD, backward, moved = jax.vjp(forward, params, x_RxD, has_aux=True)
      return y_RxD, backward(cotangent_RxD), moved

    return lambda: jax.block_until_ready(both(params, state, x_RxD, cotangent_RxD))

  advance = jax.jit(spectral.advance)
  return {
    'dense': one(dense()),
    'dense again': one(dense()),
    'sigmaReparam': one(sigma()),
    'sigmaReparam, mutable': one(sigma(), mutable=True),
    'spectral normalisation': one(SpectralNormDense(width, dtype=dtype)),
    'advance': lambda: jax.block_until_ready(advance(variables['params'], variables['spectral'])),
  }


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--widths', type=int, nargs='+', default=[256, 512, 1024])
  parser.add_argument('--tokens', type=int, default=2048)
  parser.add_argument('--rounds', type=int, default=40)
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
  given = parser.parse_args(argv)
  rng, device = np.random.default_rng(0), jax.devices()[0]
  print(f'{device.platform} ({device.device_kind}), jax {jax.__version__}, {given.tokens} tokens, {given.dtype}, {given.rounds} rounds')
  for width in given.widths:
    calls = passes(width, given.tokens, str(jnp.dtype(given.dtype)))
    for call in calls.values():
      for _ in range(2):  # compiles, then warms up
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(given.rounds):
      for name in rng.permutation(list(calls)):
        started = time.perf_counter()
        calls[name]()
        seconds[name].append(time.perf_counter() - started)
    print(f'width {width}: dense {np.median(seconds["dense"]) * 1e3:.2f} ms')
    for name in list(calls)[1:]:
      ratio = np.array(seconds[name]) / np.array(seconds['dense'])
      low, high = np.quantile(ratio, [0.25, 0.75])
      print(f'  {name} over dense: median ratio {np.median(ratio):.3f}, middle half {low:.3f} to {high:.3f}')


if __name__ == '__main__':
  main()
