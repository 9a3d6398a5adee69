"""Advantages of a prompt scaled by how much its sampled answers agree: prompts whose answers scatter are learnt from more carefully."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.methods.advantages.group import dr_grpo_advantage
from entropy_jax.ops import clusters, groups, masked
from entropy_jax.types import Metrics, Ratio


def seed_grpo_advantage(
  return_B: jax.Array,
  answer_B: jax.Array,
  old_logp_BxT: jax.Array,
  mask_BxT: jax.Array,
  group_B: jax.Array,
  *,
  alpha: float = 0.02,
  shape: str = 'linear',
  gamma: float = 2.0,
  estimator: str = 'unweighted',
  probability: str = 'frequency',
) -> tuple[jax.Array, Metrics]:
  """The centred reward times a function of the prompt's semantic entropy: A_i = (R_i - mean_g(R)) f(alpha SE / ln G).

    f(x) = 1 - x;   SE = -(1 / K) sum_c ln p_c over the K clusters of equal final answers

  Args:
    return_B: float32 [B].
    answer_B: int [B], number of the final answer inside the group; negative: none, which agrees with nobody.
    old_logp_BxT: float32 [B, T], behaviour policy; read with probability='likelihood'.
    mask_BxT: bool [B, T].
    group_B: int [B], prompt ids.
    alpha: >= 0; below 1 no advantage changes its sign.
    shape: 'linear', f = 1 - x; 'exponential', exp(-x); 'focal', (1 - x)^gamma. The paper names the last two without their formulas: they
      and gamma are readings, not confirmed. None goes below 0.
    gamma: > 0, of focal.
    estimator: 'unweighted', the paper's, which counts rare clusters as much as large ones; or 'shannon', -sum_c p_c ln p_c.
    probability: p_c as 'frequency', n_c / G; or as 'likelihood', the cluster's share of exp(sum_t lp) over the group.

  Returns:
    (A float32 [B], metrics: semantic_entropy and scale, means over responses). A sums to 0 over every group of two or more.

  Gradient: none, advantages are planned.
  Limits: alpha=0 is Dr.GRPO; one cluster gives f = 1, G clusters of frequency 1 / G give f(alpha). A prompt that is confidently wrong
    keeps A = 0. Equal rewards give exactly 0. A response alone in its group has A = R.
  Reference: Chen et al., SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization, arXiv 2505.12346, Eq. 1-9.
  Differs: no code is released. With likelihoods that are not normalised, as Eq. 5 may be read, SE is hundreds of nats and f negative;
    here p sums to 1 over a group's clusters and f is held at 0.

  >>> a, _ = seed_grpo_advantage(jnp.array([1., 0.]), jnp.array([0, 1]), jnp.zeros((2, 1)), jnp.ones((2, 1), bool), jnp.zeros(2, int))
  >>> [round(x, 6) for x in a.tolist()]      # two answers of two: SE = ln 2, f = .98
  [0.49, -0.49]
  """
  cluster_B = clusters.identify(answer_B, group_B)
  if probability == 'frequency':
    log_p_B = jnp.log(clusters.frequency(cluster_B, group_B))
  else:
    log_p_B = clusters.log_likelihood(masked.total(old_logp_BxT, mask_BxT, axis=1), cluster_B, group_B)
  entropy_B = clusters.entropy(log_p_B, cluster_B, group_B, estimator=estimator)
  x_B = alpha * Ratio(entropy_B, jnp.log(groups.size(group_B))).compute()
  left_B = jnp.maximum(1.0 - x_B, 0.0)
  scale_B = jnp.exp(-x_B) if shape == 'exponential' else left_B**gamma if shape == 'focal' else left_B
  metrics = {'semantic_entropy': jnp.mean(entropy_B), 'scale': jnp.mean(scale_B)}
  return dr_grpo_advantage(return_B, group_B) * scale_B, metrics


seed_grpo = transform.advantage(
  'seed_grpo',
  seed_grpo_advantage,
  alpha='[0, inf)',
  shape='linear | exponential | focal',
  gamma='(0, inf)',
  estimator='unweighted | shannon',
  probability='frequency | likelihood',
)
