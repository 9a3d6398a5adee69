"""Time of an update with one method more than GRPO over that of GRPO, method by method, in pairs of one run.

    python -m benchmarks.method_overhead [--methods=clip_cov,siren] [--rounds=21]

An update is `training.step.learn` (rewards, advantages, plan, loss, gradient, Adam) on one batch of 64 sequences of 24 response tokens,
with a decoder of about a million parameters and a vocabulary of 512. In every round GRPO and the method make one update each, in random
order; the ratio is of two updates of the same round. A method that takes the place of GRPO's advantage or of PPO's clip is timed in that
place. The last line is JSON: every median.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax import catalog, compose
from entropy_jax.catalog import CATALOG, ROOMS
from entropy_jax.models import transformer
from entropy_jax.training import optimizers, state, step
from entropy_jax.types import TokenBatch

PROMPT, RESPONSE, SEQUENCES, GROUP, VOCABULARY = 8, 24, 64, 16, 512
# What a method reads beside log-probs and entropies, and the limit for it. The ledger differentiates the entropy of the whole batch, which
# is another update's worth of work and has no limit.
LIMITS = {'': 1.03, 'vocabulary statistics': 1.15, 'the ledger': float('inf')}
SHAPE = transformer.DecoderConfig(
  vocab_size=VOCABULARY, width=128, num_layers=4, num_heads=4, num_kv_heads=4, mlp_width=384, max_length=PROMPT + RESPONSE
)


def batch_of(key: jax.Array) -> TokenBatch:
  """Random tokens with every field that some method reads, the statistics of the behaviour policy too: `generate` returns them."""
  keys = iter(jax.random.split(key, 40))
  shape = (SEQUENCES, RESPONSE)
  uniform = lambda low, high: jax.random.uniform(next(keys), shape, minval=low, maxval=high)
  position_T, length_B = jnp.arange(RESPONSE), jax.random.randint(next(keys), (SEQUENCES,), RESPONSE // 2, RESPONSE + 1)
  mask_BxT = position_T < length_B[:, None]
  zero_BxT = jnp.zeros(shape)
  outcome_B = jax.random.bernoulli(next(keys), 0.4, (SEQUENCES,)).astype(jnp.float32)
  return TokenBatch(
    tokens_BxN=jax.random.randint(next(keys), (SEQUENCES, PROMPT + RESPONSE), 0, VOCABULARY),
    token_mask_BxN=jnp.concatenate([jnp.ones((SEQUENCES, PROMPT), bool), mask_BxT], axis=1),
    mask_BxT=mask_BxT,
    group_B=jnp.arange(SEQUENCES) // GROUP,
    reward_B=outcome_B,
    old_logp_BxT=uniform(-7.0, -5.0),
    old_entropy_BxT=uniform(5.0, 6.2),
    logp_BxT=zero_BxT,
    entropy_BxT=zero_BxT,
    key=next(keys),
    token_reward_BxT=zero_BxT,
    ref_logp_BxT=uniform(-7.0, -5.0),
    sampler_logp_BxT=uniform(-7.0, -5.0),
    value_BxT=zero_BxT,
    baseline_reward_B=outcome_B[::-1],
    truncated_B=length_B == RESPONSE,
    sequence_B=jnp.arange(SEQUENCES),
    segment_BxT=jnp.broadcast_to(position_T // 6, shape).astype(jnp.int32),
    planning_BxT=jnp.broadcast_to(position_T < 4, shape).astype(jnp.int32),
    phase_BxT=jnp.broadcast_to(jnp.where(position_T < 12, 0, jnp.where(position_T == 12, 1, 2)), shape).astype(jnp.int32),
    answer_B=jax.random.randint(next(keys), (SEQUENCES,), -1, 5),
    process_logp_BxT=uniform(-7.0, -5.0),
    imitated_B=jnp.arange(SEQUENCES) % 16 == 0,
    old_stats={
      stat.name: uniform(0.1, 0.9) for name in CATALOG for stat in catalog.build(spec_of(name)).stats if stat.of == 'behaviour'
    },
  )


def spec_of(name: str | None) -> dict[str, Any]:
  """GRPO, with the method in its room."""
  if name is None:
    return compose.parse('grpo')
  entry = CATALOG[name]
  rooms = {room: [] for room in ROOMS} | {entry.room: [{'name': name, 'kwargs': dict(entry.example)}]}
  return compose.parse(compose.line(rooms))


def updater(name: str | None, batch: TokenBatch) -> Callable[[], None]:
  """A function that makes one update and waits for it."""
  policy, tx = transformer.transformer_policy(SHAPE), optimizers.make_optimizer('adam', 1e-4, max_grad_norm=1.0)
  objective = catalog.build(spec_of(name))
  start = state.create(policy.init(jax.random.key(0)), tx, objective, jax.eval_shape(lambda: batch))
  learn = jax.jit(functools.partial(step.learn, objective=objective, policy=policy, tx=tx))

  def one() -> None:
    jax.block_until_ready(learn(start, batch))

  return one


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--methods', default=','.join(CATALOG))
  parser.add_argument('--rounds', type=int, default=21)
  given = parser.parse_args(argv)
  batch, rng, device = jax.jit(batch_of)(jax.random.key(0)), np.random.default_rng(0), jax.devices()[0]
  print(f'{device.platform} ({device.device_kind}), {transformer.num_parameters(SHAPE):,} parameters, {given.rounds} rounds')
  plain, found = updater(None, batch), {}
  plain()
  for name in given.methods.split(','):
    method = updater(name, batch)
    for warm in (method, method, plain):
      warm()
    ratios = []
    for _ in range(given.rounds):
      took = {}
      for which in rng.permutation(['plain', 'method']):
        started = time.perf_counter()
        (plain if which == 'plain' else method)()
        took[str(which)] = time.perf_counter() - started
      ratios.append(took['method'] / took['plain'])
    objective = catalog.build(spec_of(name))
    kind = 'the ledger' if objective.observe is not None else 'vocabulary statistics' if objective.stats else ''
    found[name] = float(np.median(ratios))
    low, high = np.quantile(ratios, [0.25, 0.75])
    verdict = 'ok' if found[name] <= LIMITS[kind] else f'above {LIMITS[kind]}'
    print(f'{name:>28}: {found[name]:.3f}, middle half {low:.3f} to {high:.3f}  {verdict:11} {kind}', flush=True)
  print(json.dumps({'ratio': found}))


if __name__ == '__main__':
  main()
