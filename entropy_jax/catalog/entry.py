"""A row of the catalog, and the rooms that its tables stand for."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from entropy_jax.transform import Method
from entropy_jax.types import Room

ROOMS: dict[str, Room] = {
  'rewards': Room.REWARD,
  'advantages': Room.ADVANTAGE,
  'weights': Room.WEIGHT,
  'surrogates': Room.SURROGATE,
  'regularizers': Room.REGULARIZER,
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row of the catalog.

  Attributes:
    factory: the lifted method; call it with hyper-parameters to get a Transform.
    formula: its mathematics in one line, in the code's signs: surrogates are maximised, penalties minimised.
    reference: authors, title, arXiv id and equation number where it is known.
    confirmed: whether the formula was read in the paper or its code; False stands as UNCONFIRMED in METHODS.md.
    example: hyper-parameters for a batch of a few short sequences, where the defaults are absent or would not act there.
  """

  factory: Method
  formula: str
  reference: str
  confirmed: bool = True
  example: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.factory.name

  @property
  def room(self) -> str:
    """The room's key in an objective's spec, which is also the name of its folder."""
    return next(key for key, room in ROOMS.items() if room == self.factory.room)

  @property
  def function(self) -> Callable[..., Any]:
    """The pure function on arrays."""
    return self.factory.function
