"""What EDGE-GRPO's released code trains beside its advantage, because it leaves the entropy in the advantage differentiable."""

import jax
import jax.numpy as jnp

from entropy_jax import transform
from entropy_jax.ops import masked


def edge_grpo_entropy_penalty(
  entropy_BxT: jax.Array, advantage_BxT: jax.Array, mask_BxT: jax.Array, *, coef: float = 1.0, entropy_epsilon: float = 1e-8
) -> jax.Array:
  """Advantage-weighted log-entropy of the response: coef A_it (ln h_i - sg ln h_i), h_i the mean entropy over its tokens.

  Args:
    entropy_BxT: float32 [B, T], current policy, nats.
    advantage_BxT: float32 [B, T], from the `edge_grpo` advantage in the same chain.
    mask_BxT: bool [B, T].
    coef: 1 as released.
    entropy_epsilon: > 0 nats, added to h_i.

  Returns:
    penalty, float32 [B, T], always 0: only its gradient acts.

  Gradient: coef A_it / h_i towards h_i: it lowers the entropy of responses with A > 0 and raises that of the others.
  Limits: with it `edge_grpo` is the released loss where the importance ratio is 1 (one update per rollout, as released): there the loss
    holds -A(h) with A = GRPO sg(mean h) / h_i, whose gradient is + A / h_i grad h_i.
  Reference: EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity, released code.
  Differs: the paper describes the advantage as a constant: leave this out. The released h_i counts padding, this one does not.

  >>> h = jnp.array([[.2, .6]])
  >>> g = jax.grad(lambda h: edge_grpo_entropy_penalty(h, jnp.full((1, 2), 3.), jnp.ones((1, 2), bool)).sum())(h)
  >>> [round(x, 4) for x in g[0].tolist()]      # two tokens of 3 / .4, shared by two entropies
  [7.5, 7.5]
  """
  log_h_B = jnp.log(masked.mean(entropy_BxT, mask_BxT, axis=1) + entropy_epsilon)
  return coef * jax.lax.stop_gradient(advantage_BxT) * (log_h_B - jax.lax.stop_gradient(log_h_B))[:, None]


edge_grpo_entropy = transform.regularizer(
  'edge_grpo_entropy', edge_grpo_entropy_penalty, coef='[0, inf)', entropy_epsilon='(0, inf)'
)
