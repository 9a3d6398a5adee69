"""The pytrees that flow through the library, and the alphabet of their axes.

Axis letters stand in every array's name: B sequences, P prompt tokens, T response tokens, N = P + T tokens, V vocabulary,
G responses per prompt, L layers, H heads, Q queries, K keys, D width, S states. `logp_BxT` has shape [B, T]; `logits_xV` has
any leading axes.
Entropy is in nats and every quantity is float32; masks are bool.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Params = Any
PyTree = Any
Metrics = dict[str, jax.Array]


class UserError(ValueError):
  """A mistake in what the user gave: one sentence that names the key, the value, what is allowed and what to do."""


class Room(enum.IntEnum):
  """The rooms of an objective, in the order in which data passes through them."""

  REWARD = 1
  ADVANTAGE = 2
  WEIGHT = 3
  SURROGATE = 4
  REGULARIZER = 5


class Phase(enum.IntEnum):
  """What a token of a reasoning response belongs to, in `TokenBatch.phase_BxT`."""

  THINK = 0
  MARK = 1  # the token that ends the thinking
  ANSWER = 2


class VocabStat(NamedTuple):
  """A statistic of the whole vocabulary row that a transform asks the scoring pass for.

  Attributes:
    name: key in `TokenBatch.stats` (of='current') or `TokenBatch.old_stats` (of='behaviour'). A statistic with a parameter is called
      name@value; methods read it by the part before the @.
    fn: logits_...xV (float32, divided by the sampling temperature) -> stat_... , float32.
    of: 'current' for the policy being trained (differentiable), 'behaviour' for the one that sampled.
  """

  name: str
  fn: Callable[[jax.Array], jax.Array]
  of: str = 'current'


class Ratio(struct.PyTreeNode):
  """A mean that is not divided yet, num / den, so that parts of a batch merge exactly.

  >>> parts = [Ratio(jnp.float32(1.), jnp.float32(1.)), Ratio(jnp.float32(6.), jnp.float32(3.))]
  >>> float(parts[0].merge(parts[1]).compute())     # (1 + 6) / (1 + 3); the mean of the parts' means would be 1.5
  1.75
  """

  num: jax.Array
  den: jax.Array

  def merge(self, other: 'Ratio') -> 'Ratio':
    return Ratio(self.num + other.num, self.den + other.den)

  def compute(self) -> jax.Array:
    """num / den, and 0 where den is 0 (nothing was counted), with a finite gradient in both cases."""
    empty = self.den == 0
    return jnp.where(empty, 0.0, self.num / jnp.where(empty, 1.0, self.den))


class TokenBatch(struct.PyTreeNode):
  """B sequences of T response tokens after P prompt tokens: what every method reads.

  Only `logp_BxT`, `entropy_BxT` and `stats` (the current policy) carry a gradient. Optional fields are None when the run has
  no such thing. Log-probabilities and entropies are those of the sampling distribution (logits over the temperature).
  """

  tokens_BxN: jax.Array  # int32, prompt then response, N = P + T
  token_mask_BxN: jax.Array  # bool, real tokens (prompts are padded on the left, responses on the right)
  mask_BxT: jax.Array  # bool, tokens the policy generated, end of sequence included
  group_B: jax.Array  # int32, prompt id; groups may be unequal in size and interleaved
  reward_B: jax.Array  # float32, outcome reward
  old_logp_BxT: jax.Array  # float32, behaviour policy
  old_entropy_BxT: jax.Array  # float32, behaviour policy
  logp_BxT: jax.Array  # float32, current policy, differentiable
  entropy_BxT: jax.Array  # float32, current policy, differentiable
  key: jax.Array  # PRNG key of this update
  stats: Mapping[str, jax.Array] = struct.field(default_factory=dict)  # name -> [B, T], current policy, differentiable
  old_stats: Mapping[str, jax.Array] = struct.field(default_factory=dict)  # name -> [B, T], behaviour policy
  advantage_BxT: jax.Array | None = None  # float32, set by Objective.prepare
  token_reward_BxT: jax.Array | None = None  # float32, dense rewards beside the outcome
  ref_logp_BxT: jax.Array | None = None  # float32, reference policy
  sampler_logp_BxT: jax.Array | None = None  # float32, reported by the engine that sampled
  value_BxT: jax.Array | None = None  # float32, critic
  baseline_reward_B: jax.Array | None = None  # float32, reward of the greedy response to the same prompt (ReMax)
  truncated_B: jax.Array | None = None  # bool, ran out of length before the end of sequence
  sequence_B: jax.Array | None = None  # int32, identity of each row: random choices follow it when rows move
  segment_BxT: jax.Array | None = None  # int32, step (turn) of the trajectory that the token belongs to, from 0; negative: to none
  planning_BxT: jax.Array | None = None  # int32, number from 1 of the strategic phrase that the token stands in; 0: execution
  phase_BxT: jax.Array | None = None  # int32, a Phase
  answer_B: jax.Array | None = None  # int32, equal within a group where the final answers are equal; negative: no answer
  process_logp_BxT: jax.Array | None = None  # float32, log-prob under an implicit process-reward model
  imitated_B: jax.Array | None = None  # bool, a correct response that a rollout added to be imitated


class Terms(struct.PyTreeNode):
  """What the rooms write: one field a room, combined into the loss by `objective.chain`."""

  reward_B: jax.Array  # replaced by rewards
  token_reward_BxT: jax.Array  # added to by rewards
  advantage_BxT: jax.Array  # replaced by advantages
  weight_BxT: jax.Array  # multiplied by weights
  surrogate_BxT: jax.Array  # set once, maximised
  penalty_BxT: jax.Array  # added to by regularizers, minimised


SURROGATE = 'surrogate'  # what the loss terms call the surrogate; regularizers go by their names
Planned = dict[str, Any]  # name -> array, or a nested dict of them


class RunFacts(NamedTuple):
  """What a run knows before it compiles, for build-time warnings.

  Attributes:
    updates_per_rollout: optimizer steps made on one set of responses; 1 is purely on-policy.
    group_size: responses per prompt.
    num_tokens: upper bound on the response tokens of one optimizer step.
    aggregate: name of the aggregation mode.
  """

  updates_per_rollout: int
  group_size: int
  num_tokens: int
  aggregate: str


class Transform(NamedTuple):
  """One method in its room: a global plan without gradient and a local, differentiable apply.

  Attributes:
    room: where it stands in the objective.
    name: its key in the objective's state and metrics.
    stats: the vocabulary statistics that it reads.
    init: batch -> state, a pytree whose structure never changes.
    plan: (state, whole global batch) -> (planned, state, metrics). Names in planned end in _B or _BxT when they follow the
      sequences; every other name is a scalar.
    apply: (planned, batch or slice, terms) -> terms.
    notes: build-time warnings as functions of the run's facts.
    observe: None, or (state, the entropy ledger of the update that was just made) -> state; a run whose objective observes keeps the
      ledger of every update (`training.ledger`).
  """

  room: Room
  name: str
  stats: tuple[VocabStat, ...]
  init: Callable[[TokenBatch], PyTree]
  plan: Callable[[PyTree, TokenBatch], tuple[Planned, PyTree, Metrics]]
  apply: Callable[[Planned, TokenBatch, Terms], Terms]
  notes: tuple[Callable[[RunFacts], str | None], ...] = ()
  observe: Callable[[PyTree, Metrics], PyTree] | None = None


def follows_sequences(name: str) -> bool:
  """Whether an array of this name has one row a sequence (its shape suffix starts with B)."""
  return name.rsplit('_', 1)[-1].split('x')[0] == 'B'


def take_rows(tree: PyTree, start: jax.Array | int, size: int) -> PyTree:
  """Rows [start, start + size) of every per-sequence array of a TokenBatch or of planned values; scalars go everywhere."""

  def take(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
    names = [getattr(p, 'name', getattr(p, 'key', '')) for p in path]
    per_sequence = follows_sequences(str(names[-1])) or names[0] in ('stats', 'old_stats')
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=0) if per_sequence else x

  return jax.tree_util.tree_map_with_path(take, tree)


class Frozen(struct.PyTreeNode):
  """A part of a tree of parameters that no update changes, such as the model under low-rank adapters.

  Models read it like the rest. It is neither differentiated, nor in the optimizer's state, nor in checkpoints, and goes into compiled
  functions as an argument that is never donated and is no result.
  """

  tree: PyTree


def _is_frozen(node: Any) -> bool:
  return isinstance(node, Frozen)


def without_frozen(tree: PyTree) -> PyTree:
  """The tree with nothing in its frozen parts, of which there is no leaf left: what is trained.

  >>> without_frozen({'a': 1, 'base': Frozen({'w': 2})})
  {'a': 1, 'base': Frozen(tree=None)}
  """
  return jax.tree.map(lambda x: Frozen(None) if _is_frozen(x) else x, tree, is_leaf=_is_frozen)


def frozen_of(tree: PyTree) -> tuple[PyTree, ...]:
  """The frozen parts of the tree, in order; None for those without leaves, such as a state of an optimizer mirrors them."""
  return tuple(x.tree for x in jax.tree.leaves(tree, is_leaf=_is_frozen) if _is_frozen(x))


def with_frozen(tree: PyTree, parts: tuple[PyTree, ...]) -> PyTree:
  """The tree with these frozen parts: `with_frozen(without_frozen(tree), frozen_of(tree))` is the tree.

  >>> with_frozen({'a': 3, 'base': Frozen(None)}, ({'w': 2},))
  {'a': 3, 'base': Frozen(tree={'w': 2})}
  """
  leaves, structure = jax.tree.flatten(tree, is_leaf=_is_frozen)
  places = [i for i, x in enumerate(leaves) if _is_frozen(x)]
  for i, part in zip(places, parts, strict=True):
    leaves[i] = Frozen(part)
  return jax.tree.unflatten(structure, leaves)
