"""From a loss per token to the loss of the batch: the modes of the field, each as an undivided Ratio that merges over slices.

Every factory returns `(x_BxT, mask_BxT, num_sequences) -> Ratio`, where num_sequences is the number of rows of the whole global
batch. LUSPO's mode (the sequence loss times its length, averaged over sequences) is `sequence_mean_token_sum` of a loss that is
constant over the sequence.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked
from entropy_jax.types import Ratio

Aggregate = Callable[[jax.Array, jax.Array, jax.Array], Ratio]


def token_mean() -> Aggregate:
  """sum_it m x / N: every token counts the same (DAPO; verl `token-mean`, TRL `dapo` over the accumulated batch)."""
  return lambda x_BxT, mask_BxT, num_sequences: masked.mean_ratio(x_BxT, mask_BxT)


def _sequence_mean(value_B: jax.Array, mask_BxT: jax.Array) -> Ratio:
  return masked.mean_ratio(value_B, jnp.any(mask_BxT, axis=1))


def sequence_mean_token_sum() -> Aggregate:
  """Mean over non-empty sequences of sum_t m x (verl `seq-mean-token-sum`; TRL `luspo` with a sequence-level ratio)."""
  return lambda x_BxT, mask_BxT, num_sequences: _sequence_mean(masked.total(x_BxT, mask_BxT, axis=1), mask_BxT)


def sequence_mean_token_mean() -> Aggregate:
  """Mean over non-empty sequences of their token mean (original GRPO; verl `seq-mean-token-mean`, TRL `grpo`)."""
  return lambda x_BxT, mask_BxT, num_sequences: _sequence_mean(masked.mean(x_BxT, mask_BxT, axis=1), mask_BxT)


def token_sum_over_constant(*, constant: float) -> Aggregate:
  """sum_it m x / C, not divided by the number of sequences (verl `seq-mean-token-sum-norm`, C = loss_scale_factor).

  Args:
    constant: C > 0, usually the largest response length.
  """

  def aggregate(x_BxT: jax.Array, mask_BxT: jax.Array, num_sequences: jax.Array) -> Ratio:
    # Each row brings its share of C, so that the denominators of slices add up to C.
    return Ratio(masked.total(x_BxT, mask_BxT), constant * x_BxT.shape[0] / num_sequences)

  return aggregate


def token_sum_over_capacity(*, constant: float) -> Aggregate:
  """sum_it m x / (B C): Dr.GRPO as TRL has it (`dr_grpo`, C = max_completion_length).

  Args:
    constant: C > 0, the largest response length.
  """
  return lambda x_BxT, mask_BxT, num_sequences: Ratio(
    masked.total(x_BxT, mask_BxT), jnp.asarray(constant * x_BxT.shape[0], jnp.float32)
  )


AGGREGATIONS: dict[str, Callable[..., Aggregate]] = {
  f.__name__: f
  for f in (token_mean, sequence_mean_token_sum, sequence_mean_token_mean, token_sum_over_constant, token_sum_over_capacity)
}
