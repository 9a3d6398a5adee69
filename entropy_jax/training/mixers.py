"""Rollouts that are more than samples of the policy: other responses mixed into the batch inside a compiled study."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.measures import policy as measures
from entropy_jax.methods.advantages import group
from entropy_jax.methods.selection import arbitrary_entropy as selection
from entropy_jax.training.scanned import Mixer, Sampler
from entropy_jax.types import Metrics, PyTree, TokenBatch


def _by_prompt(batch: TokenBatch, order_M: jax.Array) -> TokenBatch:
  """The rows of a batch whose groups are of one size and in succession, in another order of the prompts."""
  size = batch.group_B.shape[0] // order_M.shape[0]
  row_B = (order_M[:, None] * size + jnp.arange(size)[None, :]).reshape(-1)
  return jax.tree.map(lambda x: x[row_B], batch.replace(key=None)).replace(key=batch.key)


def arbitrary_entropy(
  *,
  target: float,
  high: float = 1.2,
  low: float = 0.8,
  most: int = 60,
  share: float = 0.25,
) -> Mixer:
  """The rollout of arbitrary entropy policy optimisation; goes with the advantage `imitate`.

  Args:
    target: H*, nats.
    high, low: temperatures of the extra responses at or below the target and above it.
    most: rows that may be replaced.
    share: of the prompts that get extra responses, in (0, 1]; all but this one may be values of a traced program.

  Returns:
    a Mixer whose state is the entropy estimate of the step before. Metrics `rollout/temperature`, `rollout/num_imitated`.

  Limits: a table has the same prompts in every rollout, so a random share of them takes the place of the first ones, which the published
    code takes from a shuffled stream. The advantage of the rows that stay is taken among themselves.
  Reference: see `methods.selection.arbitrary_entropy`.
  """

  allowed = {'target': '[0, inf)', 'high': '[1, inf)', 'low': '(0, 1]', 'most': '[0, inf)', 'share': '(0, 1]'}
  transform.check_ranges('arbitrary_entropy', allowed, target=target, high=high, low=low, most=most, share=share)

  def mix(entropy: PyTree, batch: TokenBatch, sampler: Sampler) -> tuple[PyTree, TokenBatch, Metrics]:
    order_key, extra_key = jax.random.split(jax.random.fold_in(batch.key, 1))
    order_M = jax.random.permutation(order_key, sampler.num_prompts)
    temperature = selection.next_temperature(entropy, target=target, high=high, low=low)
    extra = sampler.sample(order_M[: max(int(share * sampler.num_prompts), 1)], extra_key, temperature)
    advantage_B = group.grpo_advantage(extra.reward_B, extra.group_B)
    ordered = _by_prompt(batch, order_M)
    mixed, metrics = selection.replace_rows(ordered, extra, advantage_B, entropy, target=target, most=most)
    mixed = sampler.score(mixed)
    entropy = measures.monte_carlo_entropy(mixed.old_logp_BxT, mixed.mask_BxT).compute()
    return entropy, mixed, {'rollout/temperature': temperature, 'rollout/num_imitated': metrics['num_imitated']}

  return Mixer(lambda: jnp.float32(selection.INITIAL_ENTROPY), mix)
