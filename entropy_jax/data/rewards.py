r"""Rewards of completions: one table of plain functions, summed with the weights of a config.

A reward is a function of a completion, its reference answer and their `Context`; what else it takes is keyword-only with a default and can
be set in the config. A new one is a function and a row of `REWARDS`. The verdict on the answer is made before, for the whole batch at once.
A penalty on length belongs to the objective, as its reward `soft_overlong`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_jax.data import marked_answers, verifiers
from entropy_jax.data.answer_verifier import AnswerVerifier, Verdict
from entropy_jax.data.countdown import read_prompt
from entropy_jax.transform import nearest
from entropy_jax.types import UserError


class Context(NamedTuple):
  """What is known of a completion beside its text.

  Attributes:
    prompt: what the model was given, as text.
    verdict: on the answer.
    finished: whether it met the end of sequence before the longest length.
  """

  prompt: str = ''
  verdict: Verdict = Verdict.REJECTED
  finished: bool = True


def accuracy(completion: str, reference: str, context: Context) -> float:
  """1 where the answer is right, else 0."""
  return float(context.verdict is Verdict.CORRECT)


def think_answer(completion: str, reference: str, context: Context, *, opened: bool = False) -> float:
  """1 for <think>...</think><answer>...</answer> and nothing else but space around and between, each tag once, neither part empty.

  Args:
    opened: whether the prompt ends in <think> already, so that the completion begins inside it.

  >>> think_answer('<think>2 + 3</think> <answer>5</answer>', '5', Context()), think_answer('<answer>5</answer>', '5', Context())
  (1.0, 0.0)
  """
  text = ('<think>' if opened else '') + completion.strip()
  places = []
  for tag in ('<think>', '</think>', '<answer>', '</answer>'):
    place = text.find(tag)
    if place < 0 or text.find(tag, place + 1) >= 0:
      return 0.0
    places += [place, place + len(tag)]
  starts, thought, between, answer, ends = 0, places[1:3], places[3:5], places[5:7], places[7]
  whole = places == sorted(places) and places[0] == starts and ends == len(text) and not text[slice(*between)].strip()
  return float(whole and all(text[slice(*part)].strip() for part in (thought, answer)))


def one_box(completion: str, reference: str, context: Context) -> float:
  r"""1 where the completion marks one answer by \boxed{...}, right or wrong."""
  marked = marked_answers.marked_answer(completion, prompt=context.prompt, forms=('box',))
  return float(marked.found is marked_answers.Found.ANSWER)


def hash_line(completion: str, reference: str, context: Context) -> float:
  """1 where the completion marks one answer by a line that begins with ####, right or wrong."""
  marked = marked_answers.marked_answer(completion, prompt=context.prompt, forms=('hash',))
  return float(marked.found is marked_answers.Found.ANSWER)


def finished(completion: str, reference: str, context: Context) -> float:
  """1 where the completion ended by itself, 0 where its length was cut."""
  return float(context.finished)


def countdown(completion: str, reference: str, context: Context) -> float:
  """1 where the completion reaches the target of the countdown problem that the reference is, with each of its numbers once.

  >>> countdown('3*5+7', '3 5 7=22:', Context()), countdown('22', '3 5 7=22:', Context())
  (1.0, 0.0)
  """
  return float(verifiers.verify_countdown(completion.strip(), *read_prompt(reference)) is verifiers.Verdict.CORRECT)


def countdown_numbers(completion: str, reference: str, context: Context) -> float:
  """1 where the completion is an expression of the countdown problem's numbers, each once, whatever its value."""
  verdict = verifiers.verify_countdown(completion.strip(), *read_prompt(reference))
  return float(verdict in (verifiers.Verdict.CORRECT, verifiers.Verdict.WRONG_VALUE))


RewardFunction = Callable[..., float]
REWARDS: dict[str, RewardFunction] = {
  'accuracy': accuracy,
  'think_answer': think_answer,
  'one_box': one_box,
  'hash_line': hash_line,
  'finished': finished,
  'countdown': countdown,
  'countdown_numbers': countdown_numbers,
}


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A reward of a sum: its function, its weight, and the settings that a config gives it."""

  function: RewardFunction
  weight: float
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RewardSum:
  """The reward of a batch: reward_b = sum_k w_k f_k(completion_b, reference_b, context_b).

  Attributes:
    parts: name -> reward.
    verifier: of the answers; None where no reward asks for the verdict, which is then REJECTED.
  """

  parts: Mapping[str, Weighted]
  verifier: AnswerVerifier | None

  def __call__(
    self,
    completions: Sequence[str],
    references: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    finished_B: Sequence[bool] | np.ndarray | None = None,
  ) -> tuple[np.ndarray, dict[str, float]]:
    """The rewards of B completions.

    Args:
      completions: B texts, any strings at all.
      references: B right answers.
      prompts: B texts; None where rewards need none.
      finished_B: bool [B]; None for all True.

    Returns:
      reward_B (float32), and metrics: reward/NAME the mean of each part before its weight, reward/sum the mean of all, and the numbers of
      completions whose answer was reward/parsed (compared with the reference), reward/timed_out or reward/rejected.
    """
    num = len(completions)
    verdicts = [Verdict.REJECTED] * num if self.verifier is None else self.verifier.verify(completions, references, prompts)
    given = [''] * num if prompts is None else list(prompts)
    ended = [True] * num if finished_B is None else [bool(x) for x in finished_B]
    contexts = [Context(*values) for values in zip(given, verdicts, ended, strict=True)]
    total_B = np.zeros(num)
    metrics: dict[str, float] = {}
    for name, part in self.parts.items():
      rows = zip(completions, references, contexts, strict=True)
      value_B = np.array([part.function(*row, **part.settings) for row in rows], np.float64).reshape(num)
      if not np.isfinite(value_B).all():
        row = int(np.flatnonzero(~np.isfinite(value_B))[0])
        raise UserError(f'rewards.{name}: is {value_B[row]} for completion {row} of the batch; give a finite number for every text.')
      total_B += part.weight * value_B
      metrics[f'reward/{name}'] = float(value_B.mean()) if num else 0.0
    metrics['reward/sum'] = float(total_B.mean()) if num else 0.0
    if self.verifier is None:
      return total_B.astype(np.float32), metrics
    timed_out, rejected = (verdicts.count(verdict) for verdict in (Verdict.TIMED_OUT, Verdict.REJECTED))
    counts = {'parsed': num - timed_out - rejected, 'timed_out': timed_out, 'rejected': rejected}
    return total_B.astype(np.float32), metrics | {f'reward/{name}': float(count) for name, count in counts.items()}


def build(config: Mapping[str, Any], verifier: AnswerVerifier | None) -> RewardSum:
  """The sum that a config describes.

  Args:
    config: name of `REWARDS` -> its weight, or a mapping with weight and settings of the function: {'accuracy': 1.0, 'think_answer':
      {'weight': 0.1, 'opened': True}}.
    verifier: of the answers; None for rewards that need no verdict.
  """
  if verifier is None and 'accuracy' in config:
    raise UserError('rewards.accuracy: is that of the verdict on the answer, and there is no verifier; give one, or leave it out.')
  if not config:
    raise UserError(f'rewards={{}}: must name at least one of {", ".join(REWARDS)}; give each a weight.')
  return RewardSum({name: weighted(name, value) for name, value in config.items()}, verifier)


def weighted(name: str, value: Any) -> Weighted:
  """A row of the config: a weight, or a mapping with weight and settings."""
  if name not in REWARDS:
    raise UserError(f'rewards.{name}: is not one of {", ".join(REWARDS)}; give one of these.{nearest(name, list(REWARDS))}')
  settings = dict(value) if isinstance(value, Mapping) else {'weight': value}
  weight = settings.pop('weight', None)
  if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
    raise UserError(f'rewards.{name}.weight={weight!r}: must be a finite number; give one.')
  known = [key for key, parameter in inspect.signature(REWARDS[name]).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
  for key in settings:
    if key not in known:
      raise UserError(f'rewards.{name}.{key}: is not one of {", ".join(["weight", *known])}; give one of these.{nearest(key, known)}')
  return Weighted(REWARDS[name], float(weight), settings)
