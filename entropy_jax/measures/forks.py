"""Entropy at the forks of a response and elsewhere: the few positions where the policy chooses, and the many where it carries on.

Forks are given (a task that knows them) or found: the largest entropies of a batch, or all above a level. An intervention that raises
the mean entropy may do so at positions that change nothing, so both classes are logged.
"""

import jax
import jax.numpy as jnp

from entropy_jax.measures import policy
from entropy_jax.ops import masked, selection
from entropy_jax.types import Ratio, UserError


def fork_positions(
  entropy_BxT: jax.Array,
  mask_BxT: jax.Array,
  *,
  fraction: float | None = 0.2,
  level: float | jax.Array | None = None,
  sequence_B: jax.Array | None = None,
) -> jax.Array:
  """The tokens with the largest entropies of the batch, ceil(fraction N) of N, or all whose entropy exceeds a level, bool [B, T].

  Args:
    entropy_BxT: float32, nats.
    mask_BxT: bool.
    fraction: in (0, 1]; None with a level.
    level: nats, strict; None with a fraction.
    sequence_B: int, identity of each row, by which ties are broken; None for the row number.

  Gradient: none.
  Limits: fraction=1 is the mask.
  Reference: Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning;
    there 20 % of the tokens exceed .672 nats.

  >>> H = jnp.array([[.1, .9, .2, .3, .8, .05]])
  >>> fork_positions(H, jnp.ones((1, 6), bool))[0].tolist()                 # ceil(.2 * 6) = 2
  [False, True, False, False, True, False]
  >>> fork_positions(H, jnp.ones((1, 6), bool), fraction=None, level=.25)[0].tolist()
  [False, True, False, True, True, False]
  """
  if (fraction is None) == (level is None):
    raise UserError(f'forks: fraction={fraction!r} and level={level!r}; give one of the two and None for the other.')
  entropy_BxT = jax.lax.stop_gradient(entropy_BxT)
  if level is not None:
    return mask_BxT & (masked.zero(entropy_BxT, mask_BxT) > level)
  if fraction is None or not 0.0 < fraction <= 1.0:
    raise UserError(f'forks: fraction={fraction!r} is outside (0, 1]; give a value in that interval.')
  num_tokens = jnp.sum(mask_BxT, dtype=jnp.int32)
  return selection.top(entropy_BxT, mask_BxT, selection.fraction_of(num_tokens, fraction, round_up=True), sequence_B)


def entropy_at_forks(entropy_BxT: jax.Array, mask_BxT: jax.Array, fork_BxT: jax.Array) -> dict[str, Ratio]:
  """Mean entropy of the forks and of the rest, as {'forks': Ratio, 'rest': Ratio}, nats.

  Args:
    entropy_BxT: float32, nats.
    mask_BxT: bool.
    fork_BxT: bool, from the task or from `fork_positions`; the positions of another policy or of an earlier step may be given, and for
      a comparison over time they should be.

  Gradient: 1 / N_c to each token of class c.
  Limits: both merge to `policy.token_entropy`; a class without a token has den 0.

  >>> found = entropy_at_forks(jnp.array([[3., 1., 2.]]), jnp.ones((1, 3), bool), jnp.array([[True, False, False]]))
  >>> {name: float(ratio.compute()) for name, ratio in found.items()}
  {'forks': 3.0, 'rest': 1.5}
  """
  both = policy.entropy_by_class(entropy_BxT, fork_BxT.astype(jnp.int32), mask_BxT, num_classes=2)
  return {name: Ratio(both.num[c], both.den[c]) for c, name in ((1, 'forks'), (0, 'rest'))}


def fork_overlap(before_BxT: jax.Array, after_BxT: jax.Array, mask_BxT: jax.Array) -> Ratio:
  """Share of the earlier forks that are still forks, sum [before and after] / sum [before], a Ratio in [0, 1].

  Limits: 1 for equal sets. With the same number of forks before and after, chance is their fraction of all tokens.
  """
  return masked.mean_ratio(after_BxT.astype(jnp.float32), before_BxT & mask_BxT)


def share_below(entropy_BxT: jax.Array, mask_BxT: jax.Array, *, level: float = 0.01) -> Ratio:
  """Share of the tokens whose entropy is below the level in nats: those that are all but certain."""
  return masked.mean_ratio((masked.zero(entropy_BxT, mask_BxT) < level).astype(jnp.float32), mask_BxT)
