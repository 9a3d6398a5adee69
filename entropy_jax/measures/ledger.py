"""The entropy ledger: where the entropy change of an update came from, token by token, summed over the ways to sort the tokens.

To first order an update changes the mean entropy by (dH/dtheta) . dtheta. The change of the parameters is a sum over the tokens' terms of
the objective, so the predicted change is one number a token and a term (`training.ledger` computes them), and every way to sort the
tokens splits it exactly. Here they are sorted by the signs of advantage and discriminator, and by whether a clip holds them back.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked
from entropy_jax.types import SURROGATE, Metrics

# (advantage is not negative, discriminator is not negative) -> the quadrant's name, and what the theory says it does to entropy.
QUADRANTS = {
  'rewarded_likely': (True, True),  # falls: the policy grows surer of what it does anyway
  'rewarded_unlikely': (True, False),  # rises
  'punished_likely': (False, True),  # rises
  'punished_unlikely': (False, False),  # falls
}


def entries(
  change_BxT: Mapping[str, jax.Array],
  advantage_BxT: jax.Array,
  discriminator_BxT: jax.Array,
  clipped_BxT: jax.Array,
  mask_BxT: jax.Array,
) -> Metrics:
  """Sums of the predicted entropy changes of every token, over quadrants, clipped and unclipped tokens, and terms.

  Args:
    change_BxT: term -> float32 [B, T], predicted change of the mean entropy by the term's gradient at each token, nats; `surrogate` and any
      regularizers.
    advantage_BxT: float32.
    discriminator_BxT: float32, S_k - E[S] of the sampled token, whose sign says what reinforcing the token does to the row's entropy.
    clipped_BxT: bool, tokens that the surrogate does not push although their advantage is not 0.
    mask_BxT: bool.

  Returns:
    `surrogate`, `regularizer_NAME` for every other term; `surrogate_QUADRANT` for the four quadrants, which sum to `surrogate`;
    `surrogate_clipped` and `surrogate_unclipped`, which sum to it too. float32 scalars, nats.

  Gradient: flows; callers stop it.
  Limits: a token whose advantage or discriminator is exactly 0 counts as rewarded or likely.
  Reference: On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, Theorem 3.3: reinforcing a token with
    S_k > E[S] lowers entropy, punishing it raises it.

  >>> one, two = jnp.array([[-.3, .1]]), jnp.array([[1., -1.]])
  >>> found = entries({'surrogate': one}, two, two, jnp.zeros((1, 2), bool), jnp.ones((1, 2), bool))
  >>> round(float(found['surrogate_rewarded_likely']), 6), round(float(found['surrogate_punished_unlikely']), 6)
  (-0.3, 0.1)
  """
  surrogate_BxT = change_BxT[SURROGATE]
  found = {(SURROGATE if name == SURROGATE else f'regularizer_{name}'): masked.total(x, mask_BxT) for name, x in change_BxT.items()}
  rewarded_BxT, likely_BxT = advantage_BxT >= 0, discriminator_BxT >= 0
  for name, (rewarded, likely) in QUADRANTS.items():
    found[f'{SURROGATE}_{name}'] = masked.total(surrogate_BxT, mask_BxT & (rewarded_BxT == rewarded) & (likely_BxT == likely))
  found[f'{SURROGATE}_clipped'] = masked.total(surrogate_BxT, mask_BxT & clipped_BxT)
  found[f'{SURROGATE}_unclipped'] = masked.total(surrogate_BxT, mask_BxT & ~clipped_BxT)
  return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}
