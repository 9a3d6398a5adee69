"""Random batches for tests, made in numpy, with every optional field filled; and what may be done to a batch without changing a loss."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_jax import objective
from entropy_jax.methods import surrogates
from entropy_jax.types import Metrics, PyTree, TokenBatch, Transform

GARBAGE = np.array([np.nan, np.inf, -np.inf, 3e38, -7.0], np.float32)
GARBAGE_INT = np.array([-1, 2**31 - 1, -(2**31), 99, 1], np.int32)


def token_batch(
  seed: int = 0, B: int = 8, T: int = 6, P: int = 2, V: int = 7, *, stats: Sequence[str] = (), old_stats: Sequence[str] = ()
) -> TokenBatch:
  """A random off-policy batch: ragged masks (one with a hole), unequal interleaved groups, the last row alone in its group."""
  rng = np.random.default_rng(seed)
  length_B = rng.integers(1, T + 1, B)
  length_B[0] = T
  mask_BxT = np.arange(T) < length_B[:, None]
  if T > 2:
    mask_BxT[0, 1] = False  # a tool's output inside the response
  group_B = 7 * rng.integers(0, max(B // 3, 1), B) + 3
  group_B[-1] = 10_000
  logp_BxT = -rng.exponential(1.0, (B, T)) - 0.01

  def near(scale: float) -> np.ndarray:
    return np.minimum(logp_BxT + rng.normal(0, scale, (B, T)), -1e-3)

  def uniform(low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (B, T))

  fields = {
    'tokens_BxN': rng.integers(0, V, (B, P + T), np.int32),
    'token_mask_BxN': np.concatenate([np.ones((B, P), bool), np.arange(T) < length_B[:, None]], axis=1),
    'mask_BxT': mask_BxT,
    'group_B': group_B.astype(np.int32),
    'reward_B': rng.normal(0, 1, B),
    'old_logp_BxT': near(0.2),
    'old_entropy_BxT': uniform(0.05, 2),
    'logp_BxT': logp_BxT,
    'entropy_BxT': uniform(0.05, 2),
    # Their own generator, so that the other fields do not depend on which statistics a method asks for.
    'stats': {name: np.random.default_rng(seed + 1).uniform(0.1, 0.9, (B, T)) for name in stats},
    'old_stats': {name: np.random.default_rng(seed + 2).uniform(0.1, 0.9, (B, T)) for name in old_stats},
    'advantage_BxT': rng.normal(0, 1, (B, T)),
    'token_reward_BxT': rng.normal(0, 0.1, (B, T)),
    'ref_logp_BxT': near(0.5),
    'sampler_logp_BxT': near(0.3),
    'value_BxT': rng.normal(0, 1, (B, T)),
    'baseline_reward_B': rng.normal(0, 1, B),
    'truncated_B': np.arange(B) % 4 == 1,
    'sequence_B': (rng.permutation(B) + 100).astype(np.int32),
  } | _semantic(seed, mask_BxT, near)

  def to_jax(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32 if np.issubdtype(x.dtype, np.floating) else x.dtype)

  return TokenBatch(**jax.tree.map(to_jax, fields), key=jax.random.key(seed))


def _semantic(seed: int, mask_BxT: np.ndarray, near: Callable[[float], np.ndarray]) -> dict[str, np.ndarray]:
  """Steps, phrases, phases, answers and what comes with them; after all others, whose draws do not change."""
  rng = np.random.default_rng(seed + 3)
  B, T = mask_BxT.shape
  position_T = np.arange(T)
  mark_B = rng.integers(1, T + 1, B)[:, None]  # T: no mark
  return {
    'segment_BxT': np.where(mask_BxT, np.minimum(position_T // 2, 2), -1).astype(np.int32),
    'planning_BxT': (rng.uniform(size=(B, T)) < 0.4).astype(np.int32),
    'phase_BxT': np.where(position_T < mark_B, 0, np.where(position_T == mark_B, 1, 2)).astype(np.int32),
    'answer_B': rng.integers(-1, 2, B).astype(np.int32),
    'process_logp_BxT': near(0.4),
    'imitated_B': np.arange(B) % 4 == 2,
  }


def _map(change: Callable[[str, np.ndarray], np.ndarray], batch: TokenBatch) -> TokenBatch:
  """change(name, array) on every array but the key; statistics count as [B, T]."""

  def one(name: str, x: Any) -> Any:
    if isinstance(x, dict):
      return {key: one(key + '_BxT', value) for key, value in x.items()}
    return x if x is None or name == 'key' else jnp.asarray(change(name, np.array(x)))

  return TokenBatch(**{f.name: one(f.name, getattr(batch, f.name)) for f in dataclasses.fields(batch)})


def _is_token_value(name: str, x: np.ndarray) -> bool:
  return name.endswith('_BxT') and x.dtype != bool


def _garbage(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return np.resize(GARBAGE_INT if np.issubdtype(x.dtype, np.integer) else GARBAGE, shape).astype(x.dtype)


def with_garbage(batch: TokenBatch) -> TokenBatch:
  """NaN, infinities and large numbers in every masked slot of every token-level array."""
  mask_BxT = np.array(batch.mask_BxT)
  return _map(lambda name, x: np.where(mask_BxT, x, _garbage(x, x.shape)) if _is_token_value(name, x) else x, batch)


def padded(batch: TokenBatch, extra: int) -> TokenBatch:
  """`extra` masked tokens after every response, with garbage in them."""

  def change(name: str, x: np.ndarray) -> np.ndarray:
    if not name.endswith(('_BxT', '_BxN')):
      return x
    more = np.zeros((x.shape[0], extra), x.dtype)
    if _is_token_value(name, x):
      more = _garbage(x, more.shape)
    return np.concatenate([x, more], axis=1)

  return _map(change, batch)


def permuted(batch: TokenBatch, order_B: np.ndarray) -> TokenBatch:
  """The rows in another order; `sequence_B` goes with them."""
  return _map(lambda name, x: x[order_B], batch)


def as_bfloat16(batch: TokenBatch) -> TokenBatch:
  """Every float array in bfloat16."""
  return _map(lambda name, x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x, batch)


def entropy_term(regularizer: Transform, batch: TokenBatch, stat: str) -> tuple[PyTree, Callable[..., Any]]:
  """A regularizer of one vocabulary statistic alone: (initial state, compiled update).

  The update is (state, statistic, mask) -> (loss, its gradient to the statistic, state, metrics), with every advantage 0.
  """
  chain = objective.chain(surrogates.reinforce(), regularizer)
  batch = batch.replace(advantage_BxT=jnp.zeros_like(batch.advantage_BxT))

  @jax.jit
  def update(state: PyTree, value: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, PyTree, Metrics]:
    def loss(value: jax.Array) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
      given = batch.replace(stats={stat: value}, mask_BxT=mask)
      planned, new, metrics = chain.plan(state, given)
      return chain.loss(planned, given).compute(), (new, metrics)

    (total, (new, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(value)
    return total, gradient, new, {k.split('/')[-1]: v for k, v in metrics.items()}

  return chain.init(batch), update
