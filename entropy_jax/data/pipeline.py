"""Grain pipelines from a data source of problems to batches of tokens, as numpy arrays of fixed shape.

The records of a split are decoded once and held in memory; a grain `MapDataset` makes the batches. Training batch k
depends on the seed and k alone, so the state of an iterator is one number: a run that resumes from it, on any machine
and with any number of processes, sees the batches that it would have seen. Records are a permutation of the split in
every epoch, another one in each, and a batch may hold the end of one epoch and the beginning of the next.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from entropy_jax.data import countdown
from entropy_jax.data.tokenizers import CharacterTokenizer
from entropy_jax.types import UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problems:
  """The records of a split, decoded, with M numbers each.

  Attributes:
    numbers_RxM: int32, the numbers of each of the R rows.
    target_R: int32.
    prompts: R texts.
    solutions: for every row its correct answers, at least one.
  """

  numbers_RxM: np.ndarray
  target_R: np.ndarray
  prompts: tuple[str, ...]
  solutions: tuple[tuple[str, ...], ...]

  @classmethod
  def read(cls, source: Iterable[Mapping[str, Any]]) -> 'Problems':
    """Decodes every record of a data source with the features of `tfds_builders.Countdown`."""
    records = list(source)
    if not records:
      raise UserError('source: holds no record; give a split or a slice of one that holds problems.')
    return cls(
      np.stack([record['numbers'] for record in records]).astype(np.int32),
      np.array([record['target'] for record in records], np.int32),
      tuple(_text(record['prompt']) for record in records),
      tuple(tuple(_text(solution) for solution in record['solutions']) for record in records),
    )

  def __len__(self) -> int:
    return len(self.prompts)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 (hex) of what the batches are made of."""
    content = [self.numbers_RxM.tolist(), self.target_R.tolist(), self.prompts, self.solutions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def prompt_length(self) -> int:
    """Tokens of the longest prompt, beginning of sequence included."""
    return 1 + max(map(len, self.prompts))

  def response_length(self) -> int:
    """Tokens of the longest solution, end of sequence included."""
    return 1 + max(len(solution) for solutions in self.solutions for solution in solutions)


@functools.lru_cache(maxsize=4)
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
  """The order of the rows in an epoch: a permutation of 0..num_rows - 1, a function of the arguments alone.

  Sorts the raw output of a counter-based generator, whose stream numpy keeps stable between versions. Grain's own
  shuffle is not used because it walks cycles in a domain of at least 2^16: 86 us a row on a split of 1,700 rows and
  11 ms a row on one of 10 (grain 0.2.18), more than everything else here together.
  """
  order = np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(num_rows), kind='stable')
  order.flags.writeable = False  # it is shared by the cache
  return order


class ShuffledRows:
  """A grain data source whose element k is the rows of batch k, over endless epochs."""

  def __init__(self, num_rows: int, batch_size: int, seed: int):
    self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed

  def __len__(self) -> int:
    return 2**62 // self._batch_size

  def __getitem__(self, k: int) -> np.ndarray:
    places = range(k * self._batch_size, (k + 1) * self._batch_size)
    first, last = places[0] // self._num_rows, places[-1] // self._num_rows
    order = np.concatenate([epoch_order(self._num_rows, self._seed, epoch) for epoch in range(first, last + 1)])
    start = places[0] - first * self._num_rows
    return order[start : start + self._batch_size]


class TrainingBatches(Iterator[Batch]):
  """Endless training batches with a state that can be saved; `batch(k)` is the k-th of them, whatever came before."""

  def __init__(self, dataset: grain.MapDataset, identity: str):
    self._dataset = dataset
    self._identity = identity
    # One thread makes the next two batches while the accelerator works on this one.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    self._iterator = iter(dataset.to_iter_dataset(options))

  def __next__(self) -> Batch:
    return next(self._iterator)

  def next(self) -> Batch:
    """The next batch; the name that the training loop calls."""
    return next(self)

  def batch(self, k: int) -> Batch:
    """Batch k, counted from 0, without moving the iterator."""
    return self._dataset[k]

  def get_state(self) -> dict[str, Any]:
    """The position, ready for JSON: what `set_state` of a pipeline with the same arguments continues from."""
    return {'pipeline': self._identity, 'grain': self._iterator.get_state()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues from a state; refuses that of a pipeline with other data, seed, sizes or options."""
    try:
      identity, position = state['pipeline'], state['grain']
    except (TypeError, KeyError, IndexError):
      raise UserError(f'state={state!r:.40}: is not the state of a pipeline; give what get_state returned.') from None
    if identity != self._identity:
      raise UserError(
        f'state: belongs to pipeline {identity[:12]}, this one is {self._identity[:12]}; resume with the '
        'data, seed, batch size, lengths and options of the run that saved it.'
      )
    self._iterator.set_state(position)


def training_batches(
  problems: Problems,
  tokenizer: CharacterTokenizer,
  *,
  batch_size: int,
  seed: int,
  supervised: bool = False,
  shuffle_numbers: bool = False,
  prompt_length: int | None = None,
  response_length: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> TrainingBatches:
  """Endless shuffled batches of B = batch_size / process_count problems.

  Args:
    problems: the split, see `Problems.read`.
    tokenizer: whose alphabet holds every prompt and solution.
    batch_size: problems in a batch over all processes, at most the size of the split.
    seed: of the order of records and of the choices below, in 0..2^63 - 1.
    supervised: also give a correct answer, uniform among those of the record; the choice is drawn for every place of
      every batch from (seed, k) by grain's RandomMap, so a later epoch can show another one.
    shuffle_numbers: show the numbers of the prompt in a random order, drawn in the same way, not in that of the record.
    prompt_length: P, tokens of a prompt with beginning of sequence; None takes the longest of the split.
    response_length: T, tokens of an answer with end of sequence; None takes the longest of the split.
    process_index: which contiguous block of every batch this process gets.
    process_count: number of processes, divides batch_size.

  Returns:
    An iterator of dicts of numpy arrays: prompt_tokens_BxP (int32, padded on the left), prompt_mask_BxP (bool),
    numbers_BxM (int32, in the order shown), target_B (int32), index_B (int32, row in the split); with supervised also
    response_tokens_BxT (int32, padded on the right, end of sequence included) and response_mask_BxT (bool).
  """
  if not 1 <= batch_size <= len(problems):
    raise UserError(f'batch_size={batch_size}: must be in 1..{len(problems)}, the size of the split; give such a size.')
  if not 0 <= seed < 2**63:
    raise UserError(f'seed={seed}: must be in 0..2^63 - 1; give a non-negative integer.')
  block = process_rows(batch_size, process_index, process_count)
  make = functools.partial(
    _make_batch,
    problems=problems,
    tokenizer=tokenizer,
    prompt_length=_length('prompt_length', prompt_length, problems.prompt_length()),
    response_length=_length('response_length', response_length, problems.response_length()) if supervised else None,
  )
  num_numbers = problems.numbers_RxM.shape[1]

  def draw(row_B: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    # For the whole batch, whatever the number of processes; both are always drawn, so no option changes the other.
    uniform_B = rng.random(batch_size)
    order_BxM = rng.permuted(np.tile(np.arange(num_numbers), (batch_size, 1)), axis=1)
    return row_B[block], uniform_B[block], order_BxM[block]

  dataset = grain.MapDataset.source(ShuffledRows(len(problems), batch_size, seed)).seed(seed).random_map(draw)
  dataset = dataset.map(lambda drawn: make(drawn[0], drawn[1], drawn[2] if shuffle_numbers else None))
  options = [batch_size, seed, supervised, shuffle_numbers, *(make.keywords[k] for k in _LENGTHS)]
  identity = json.dumps([problems.digest, tokenizer.digest, *options])
  return TrainingBatches(dataset, hashlib.sha256(identity.encode()).hexdigest())


def evaluation_batches(
  problems: Problems,
  tokenizer: CharacterTokenizer,
  *,
  batch_size: int,
  supervised: bool = False,
  prompt_length: int | None = None,
  response_length: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> list[Batch]:
  """Every problem once, in order, in batches of one shape.

  Args: as `training_batches`; batch_size may exceed the split. With supervised the answer is the record's first.

  Returns:
    Batches as of `training_batches`, with valid_B (bool): False on the rows that fill up the last batch, which repeat
    the last problem and are to be left out of every average.
  """
  if batch_size < 1:
    raise UserError(f'batch_size={batch_size}: must be at least 1; give a positive integer.')
  block = process_rows(batch_size, process_index, process_count)
  limit_prompt = _length('prompt_length', prompt_length, problems.prompt_length())
  limit_response = _length('response_length', response_length, problems.response_length()) if supervised else None
  batches = []
  for start in range(0, len(problems), batch_size):
    row_B = np.arange(start, start + batch_size)[block]
    batch = _make_batch(
      np.minimum(row_B, len(problems) - 1),
      np.zeros(len(row_B)),
      None,
      problems=problems,
      tokenizer=tokenizer,
      prompt_length=limit_prompt,
      response_length=limit_response,
    )
    batches.append(batch | {'valid_B': row_B < len(problems)})
  return batches


def problems_of(batch: Mapping[str, np.ndarray]) -> list[tuple[tuple[int, ...], int]]:
  """The B pairs of numbers and target of a batch, as `verifiers.countdown_rewards` takes them."""
  return [(tuple(n), t) for n, t in zip(batch['numbers_BxM'].tolist(), batch['target_B'].tolist(), strict=True)]


_LENGTHS = ('prompt_length', 'response_length')


def _make_batch(
  row_B: np.ndarray,
  uniform_B: np.ndarray,
  order_BxM: np.ndarray | None,
  *,
  problems: Problems,
  tokenizer: CharacterTokenizer,
  prompt_length: int,
  response_length: int | None,
) -> Batch:
  """The arrays of the given rows; uniform_B in [0, 1) chooses the answer, order_BxM the order of the numbers."""
  rows = row_B.tolist()
  numbers_BxM, target_B = problems.numbers_RxM[row_B], problems.target_R[row_B]
  prompts: Sequence[str] = [problems.prompts[row] for row in rows]
  if order_BxM is not None:
    numbers_BxM = np.take_along_axis(numbers_BxM, order_BxM, axis=1)
    prompts = [countdown.prompt_text(*shown) for shown in zip(numbers_BxM.tolist(), target_B.tolist(), strict=True)]
  prompt = tokenizer.encode_batch(prompts, prompt_length, side='left', bos=True)
  batch = {
    'prompt_tokens_BxP': prompt.tokens,
    'prompt_mask_BxP': prompt.mask,
    'numbers_BxM': numbers_BxM,
    'target_B': target_B,
    'index_B': row_B.astype(np.int32),
  }
  if response_length is not None:
    choices = (problems.solutions[row] for row in rows)
    answers = [choice[int(u * len(choice))] for choice, u in zip(choices, uniform_B.tolist(), strict=True)]
    response = tokenizer.encode_batch(answers, response_length, eos=True)
    batch |= {'response_tokens_BxT': response.tokens, 'response_mask_BxT': response.mask}
  return batch


def _length(key: str, given: int | None, needed: int) -> int:
  if given is not None and given < needed:
    raise UserError(f'{key}={given}: the longest text of the split needs {needed} tokens; give at least {needed}.')
  return needed if given is None else given


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
  """The rows of a batch that a process gets."""
  if batch_size % process_count:
    raise UserError(f'batch_size={batch_size}: must be a multiple of process_count={process_count}; round it to one.')
  if not 0 <= process_index < process_count:
    raise UserError(f'process_index={process_index}: must be in 0..{process_count - 1}; give the index of the process.')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
