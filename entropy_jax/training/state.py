"""What training carries from one update to the next: the whole of it is checkpointed, and nothing else is."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from entropy_jax.objective import Objective
from entropy_jax.types import Params, PyTree, TokenBatch, without_frozen


class TrainState(struct.PyTreeNode):
  """Parameters, optimizer, the objective's state (controllers), and counters. Randomness is not in it: keys derive from (root, step).

  Attributes:
    params: all of them; what is `types.Frozen` in them stays as it is.
    opt_state: of what is not frozen.
    num_updates: int32, optimizer steps applied or rejected so far.
    num_rejected: int32, updates refused because the loss or the gradient was not finite.
  """

  params: Params
  opt_state: PyTree
  objective_state: PyTree
  num_updates: jax.Array
  num_rejected: jax.Array


def create(params: Params, tx: optax.GradientTransformation, objective: Objective, batch: TokenBatch) -> TrainState:
  """The state before the first update; `batch` gives the objective its shapes and may be abstract."""
  return TrainState(
    params=params,
    opt_state=tx.init(without_frozen(params)),
    objective_state=objective.init(batch),
    num_updates=jnp.zeros((), jnp.int32),
    num_rejected=jnp.zeros((), jnp.int32),
  )
