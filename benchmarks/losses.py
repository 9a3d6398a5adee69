"""Loss and gradient of four policy losses, log-probs given, against torch formulas written here, in pairs.

    python -m benchmarks.losses [--rounds=15] [--calls=30]

512 sequences of up to 128 tokens. Ours is the library's way from a batch to the gradient of its log-probs, `Objective.plan` and
`Objective.loss` under one jit, selection of tokens and zeroing of padding included; torch's is the released form of the loss, run as it is
(eager, autograd), with as many threads. Values and gradients are checked to be equal before anything is timed: KL-Cov must choose the same
tokens by itself, Clip-Cov, whose choice is random, as many out of the same band, and it is then given ours. A round times `calls` calls of
each side, in random order, and takes the median; ratios are torch's time over ours, the limit is 1.5. The last line is JSON.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from entropy_jax import catalog
from entropy_jax.types import TokenBatch

B, T = 512, 128
LIMIT = 1.5
FRACTION = {'clip_cov': 2e-4, 'kl_cov': 2e-3}
BAND = (1.0, 5.0)


def _spec(surrogate: str, aggregate: str = 'token_mean', **kwargs: Any) -> dict[str, Any]:
  return {'surrogates': [{'name': surrogate, 'kwargs': kwargs}], 'aggregate': aggregate}


SPECS: dict[str, dict[str, Any]] = {
  'GRPO': _spec('ppo_clip', low=0.2, high=0.2),
  'GSPO': _spec('gspo', 'sequence_mean_token_mean', low=3e-4, high=4e-4),
  'Clip-Cov': _spec('ppo_clip', low=1.0, high=1.0) | {'weights': [{'name': 'clip_cov', 'kwargs': {'fraction': FRACTION['clip_cov']}}]},
  'KL-Cov': _spec('importance')
  | {'regularizers': [{'name': 'kl_cov', 'kwargs': {'fraction': FRACTION['kl_cov'], 'coef': 1.0}}]},
}


def batch_of(key: jax.Array) -> TokenBatch:
  """Responses of 64 to 128 tokens some updates after they were sampled; one advantage a sequence."""
  keys = jax.random.split(key, 6)
  length_B = jax.random.randint(keys[0], (B,), T // 2, T + 1)
  mask_BxT = jnp.arange(T)[None] < length_B[:, None]
  old_BxT = -jax.random.exponential(keys[1], (B, T))
  zero_BxT = jnp.zeros((B, T))
  return TokenBatch(
    tokens_BxN=jnp.zeros((B, T + 1), jnp.int32),
    token_mask_BxN=jnp.concatenate([jnp.ones((B, 1), bool), mask_BxT], axis=1),
    mask_BxT=mask_BxT,
    group_B=jnp.arange(B) // 16,
    reward_B=jnp.zeros(B),
    old_logp_BxT=old_BxT,
    old_entropy_BxT=zero_BxT,
    logp_BxT=jnp.minimum(old_BxT + 0.15 * jax.random.normal(keys[2], (B, T)), 0.0),
    entropy_BxT=zero_BxT,
    key=keys[3],
    advantage_BxT=jnp.where(mask_BxT, jax.random.normal(keys[4], (B, 1)), 0.0),
  )


def ours(name: str, batch: TokenBatch) -> tuple[Callable[[], Any], Callable[[], Any]]:
  """(a function that gives loss and gradient, one that gives what was planned)."""
  objective = catalog.build(SPECS[name])
  state = objective.init(batch)

  def loss(logp_BxT: jax.Array, batch: TokenBatch) -> jax.Array:
    current = batch.replace(logp_BxT=logp_BxT)
    planned, _, _ = objective.plan(state, current)
    return objective.loss(planned, current).compute()

  both = jax.jit(jax.value_and_grad(loss))
  plan = jax.jit(lambda batch: objective.plan(state, batch)[0])
  return lambda: jax.block_until_ready(both(batch.logp_BxT, batch)), lambda: plan(batch)


class Theirs:
  """The losses in torch; `chosen` replaces the random choice of Clip-Cov."""

  def __init__(self, batch: TokenBatch):
    read = lambda x: torch.from_numpy(np.array(x))
    self.logp, self.old, self.counted = read(batch.logp_BxT).requires_grad_(), read(batch.old_logp_BxT), read(batch.mask_BxT).float()
    self.advantage = read(batch.advantage_BxT)
    self.chosen: torch.Tensor | None = None

  def mean(self, x: torch.Tensor) -> torch.Tensor:
    return (x * self.counted).sum() / self.counted.sum().clamp(min=1.0)

  def log_ratio(self) -> torch.Tensor:
    return (self.logp - self.old).clamp(-20.0, 20.0)

  def covariance(self) -> torch.Tensor:
    with torch.no_grad():
      return (self.advantage - self.mean(self.advantage)) * (self.logp - self.mean(self.logp))

  def clipped(self, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(the larger of both losses, where it is the bounded one)."""
    ratio = self.log_ratio().exp()
    free, bounded = -self.advantage * ratio, -self.advantage * ratio.clamp(1.0 - low, 1.0 + high)
    return torch.maximum(free, bounded), bounded > free

  def band(self) -> torch.Tensor:
    """Indices of the tokens that Clip-Cov may choose."""
    _, bounded = self.clipped(1.0, 1.0)
    covariance = self.covariance()
    return ((covariance > BAND[0]) & (covariance < BAND[1]) & ~bounded & (self.counted > 0)).flatten().nonzero()[:, 0]

  def number(self, method: str) -> int:
    return max(int(FRACTION[method] * self.counted.sum().item()), 1)

  def loss(self, name: str) -> torch.Tensor:
    if name == 'GRPO':
      return self.mean(self.clipped(0.2, 0.2)[0])
    if name == 'GSPO':
      length = self.counted.sum(1).clamp(min=1.0)
      ratio = ((self.logp - self.old) * self.counted).sum(1).div(length).exp()[:, None]
      loss = torch.maximum(-self.advantage * ratio, -self.advantage * ratio.clamp(1 - 3e-4, 1 + 4e-4))
      return ((loss * self.counted).sum(1) / length).mean()
    if name == 'Clip-Cov':
      loss, bounded = self.clipped(1.0, 1.0)
      covariance = self.covariance()
      if self.chosen is None:
        eligible = (covariance > BAND[0]) & (covariance < BAND[1]) & ~bounded & (self.counted > 0)
        indices = eligible.flatten().nonzero()[:, 0]
        chosen = indices[torch.randperm(len(indices))[: self.number('clip_cov')]]
      else:
        chosen = self.chosen
      kept = torch.ones_like(loss).flatten().index_fill(0, chosen, 0.0).view_as(loss)
      return self.mean(loss * kept)
    log_ratio = self.log_ratio()
    with torch.no_grad():
      covariance = self.covariance().masked_fill(self.counted == 0, -torch.inf).flatten()
      chosen = torch.zeros_like(covariance).index_fill(0, covariance.topk(self.number('kl_cov')).indices, 1.0).view_as(log_ratio)
    return self.mean(-self.advantage * log_ratio.exp() + chosen * log_ratio.abs())

  def both(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    loss = self.loss(name)
    return loss.detach(), torch.autograd.grad(loss, self.logp)[0]


def check(name: str, both: Callable[[], Any], plan: Callable[[], Any], theirs: Theirs) -> float:
  """Raises unless loss and gradient are equal; the largest difference of the gradient, of its largest element."""
  theirs.chosen = None
  if name == 'Clip-Cov':
    weight_BxT, band = np.asarray(plan()['clip_cov']['weight_BxT']), theirs.band().numpy()
    chosen = np.flatnonzero((weight_BxT == 0) & (theirs.counted.numpy() > 0))
    assert len(chosen) == min(theirs.number('clip_cov'), len(band)) and np.isin(chosen, band).all(), 'another choice of tokens'
    theirs.chosen = torch.from_numpy(chosen)
  value, gradient = both()
  their_value, their_gradient = theirs.both(name)
  theirs.chosen = None
  np.testing.assert_allclose(float(value), their_value.item(), rtol=1e-4, atol=1e-6)
  scale = float(their_gradient.abs().max())
  difference = float(np.abs(np.asarray(gradient) - their_gradient.numpy()).max()) / scale
  assert difference <= 1e-4, f'{name}: gradients differ by {difference:.1e} of the largest element'
  return difference


def median_seconds(call: Callable[[], Any], calls: int) -> float:
  seconds = []
  for _ in range(calls):
    started = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - started)
  return float(np.median(seconds))


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--calls', type=int, default=30)
  given = parser.parse_args(argv)
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  rng, batch = np.random.default_rng(0), jax.jit(batch_of)(jax.random.key(0))
  theirs, ratios = Theirs(batch), {}
  print(f'{jax.devices()[0].platform}, jax {jax.__version__}, torch {torch.__version__}, {cores} cores, {B} x {T} tokens')
  print('| loss | gradients differ by | ours, ms | torch, ms | ratio, median | middle half | |\n|---|---|---|---|---|---|---|')
  for name in SPECS:
    both, plan = ours(name, batch)
    difference = check(name, both, plan, theirs)
    calls: dict[str, Callable[[], Any]] = {'ours': both, 'theirs': functools.partial(theirs.both, name)}
    for call in calls.values():
      median_seconds(call, 3)
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(given.rounds):
      for side in rng.permutation(list(calls)):
        seconds[side].append(median_seconds(calls[side], given.calls))
    ratio = np.divide(seconds['theirs'], seconds['ours'])
    low, high = np.quantile(ratio, [0.25, 0.75])
    ratios[name] = round(float(np.median(ratio)), 2)
    verdict = 'ok' if ratios[name] >= LIMIT else f'below {LIMIT}'
    milliseconds = ' | '.join(f'{1e3 * np.median(seconds[side]):.2f}' for side in calls)
    print(f'| {name} | {difference:.1e} | {milliseconds} | {ratios[name]:.2f} | {low:.2f} to {high:.2f} | {verdict} |', flush=True)
  print(json.dumps({'benchmark': 'losses', 'limit': LIMIT, 'ratio': ratios}))


if __name__ == '__main__':
  main()
