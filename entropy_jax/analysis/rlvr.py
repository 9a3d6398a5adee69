"""What a folder of a run with verifiable rewards says: the evaluations of every seed, and the claim with its criterion.

The criterion was fixed before any run. Questions are the sample: an interval says what other questions of the same kind would give.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import runs, statistics
from entropy_jax.analysis.claims import LEVEL, Above, Claim, judge
from entropy_jax.measures import diversity
from entropy_jax.types import UserError

OWN = 'Requirement of this project'
LEAST_RISE = 0.1
EVALUATIONS = 'evaluations'


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation: of every question how many of n responses were right.

  Attributes:
    step: rollouts before it.
    num_correct_P: int.
    num_samples: n.
    majority_P: whether the answer that most of the n responses give is right, maj@n; a tie is shared.
    metrics: what else was measured, by name.
  """

  step: int
  num_correct_P: np.ndarray
  num_samples: int
  majority_P: np.ndarray
  metrics: Mapping[str, float]

  @property
  def shares(self) -> np.ndarray:
    """Share of right responses of every question, [P]; its mean is avg@n, and pass@1 estimated from n."""
    return self.num_correct_P / self.num_samples


@dataclasses.dataclass(frozen=True)
class Seed:
  """A seed's curves and evaluations, the first before any update and the last after all."""

  curves: runs.RunMetrics
  evaluations: Sequence[Evaluation]


def load(workdir: pathlib.Path) -> list[Seed]:
  """Every seed of a finished run."""
  config = runs.load_config(workdir)
  found = []
  for k in range(config['num_seeds']):
    directory = workdir / f'seed_{k}'
    paths = sorted((directory / EVALUATIONS).glob('step_*.json'))
    evaluations = [_evaluation(path) for path in paths]
    steps = [evaluation.step for evaluation in evaluations]
    if not steps or steps[0] != 0 or steps[-1] != config['num_steps']:
      raise UserError(f'{directory} has evaluations of the steps {steps}, and not of 0 and {config["num_steps"]}: finish the run first.')
    found.append(Seed(runs.load_metrics(directory), evaluations))
  return found


def _evaluation(path: pathlib.Path) -> Evaluation:
  raw: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
  return Evaluation(raw['step'], np.array(raw['num_correct'], np.int64), raw['num_samples'], np.array(raw['majority']), raw['metrics'])


def claims(found: Sequence[Seed]) -> list[Claim]:
  """What the run decides."""
  change_P = np.mean([seed.evaluations[-1].shares - seed.evaluations[0].shares for seed in found], axis=0)
  return [
    judge(
      id='success_rises',
      paper=OWN,
      statement='Reinforcement learning raises the success on held-out questions.',
      metric=f'share of right responses after minus before, mean over {change_P.size} questions; interval by bootstrap over questions',
      value=float(change_P.mean()),
      interval=statistics.bootstrap_interval(change_P, level=LEVEL),
      criterion=Above(LEAST_RISE),
      baseline='the policy that reinforcement learning started from',
    )
  ]


def pass_table(evaluation: Evaluation) -> dict[str, tuple[float, float, float]]:
  """'avg@n', 'pass@k' for k in powers of 2 and 'maj@n' -> (mean, low, high), 95 % by bootstrap over questions."""
  n = evaluation.num_samples
  powers = [2**i for i in range(n.bit_length())]
  found = diversity.mean_pass_at_k(evaluation.num_correct_P, n, k=powers, level=LEVEL)
  named = {f'pass@{k}': (float(found.mean_K[i]), float(found.low_K[i]), float(found.high_K[i])) for i, k in enumerate(powers)}
  votes_P = evaluation.majority_P
  named[f'maj@{n}'] = (float(votes_P.mean()), *statistics.bootstrap_interval(votes_P, level=LEVEL, method='percentile'))
  return {f'avg@{n}': named.pop('pass@1')} | named
