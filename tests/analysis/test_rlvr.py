"""analysis/rlvr.py: evaluations of a folder written by hand, the claim, and the table with its intervals."""

import json

import numpy as np
import pytest

from entropy_jax.analysis import rlvr
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from entropy_jax.types import UserError


def evaluation(step, num_correct, num_samples=4):
  votes = [float(2 * c > num_samples) for c in num_correct]
  return {
    'step': step, 'num_samples': num_samples, 'num_correct': num_correct, 'majority': votes,
    'metrics': {'success': float(np.mean(num_correct)) / num_samples, 'entropy': 1.0, 'response_length': 3.0},
  }  # fmt: skip


def write_run(workdir, seeds, num_steps=8):
  """A folder with these counts before and after, a pair a seed."""
  workdir.mkdir(exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps({'num_seeds': len(seeds), 'num_steps': num_steps}))
  for k, (before, after) in enumerate(seeds):
    folder = workdir / f'seed_{k}' / 'evaluations'
    folder.mkdir(parents=True)
    (folder.parent / 'metrics.jsonl').write_text('{"step": 0, "rollout/entropy": 1.0}\n')
    for step, counts in ((0, before), (num_steps, after)):
      (folder / f'step_{step:06d}.json').write_text(json.dumps(evaluation(step, counts)))
  return workdir


class TestClaims:
  @pytest.mark.parametrize(
    ('before', 'after', 'value', 'verdict'),
    [
      ([0, 1] * 20, [2, 3] * 20, 0.5, REPRODUCED),  # every question by a half
      ([2, 2] * 20, [2, 2] * 20, 0.0, NOT_REPRODUCED),
      ([0, 4] * 4, [4, 0] * 4, 0.0, INCONCLUSIVE),  # eight questions that change by one, half of them down
    ],
  )
  def test_rise_and_its_interval_over_questions(self, tmp_path, before, after, value, verdict):
    (claim,) = rlvr.claims(rlvr.load(write_run(tmp_path / 'run', [(before, after)])))
    assert (claim.value, claim.verdict) == (value, verdict) and claim.criterion == '95 % interval entirely above 0.1'

  def test_seeds_are_averaged_before_questions_are_resampled(self, tmp_path):
    (claim,) = rlvr.claims(rlvr.load(write_run(tmp_path / 'run', [([0, 0], [4, 0]), ([0, 0], [0, 4])])))
    assert claim.value == 0.5 and claim.interval == (0.5, 0.5)


class TestLoad:
  def test_refuses_an_unfinished_run(self, tmp_path):
    workdir = write_run(tmp_path / 'run', [([0], [1])])
    (workdir / 'seed_0' / 'evaluations' / 'step_000008.json').unlink()
    with pytest.raises(UserError, match=r'has evaluations of the steps \[0\], and not of 0 and 8: finish the run first'):
      rlvr.load(workdir)


class TestPassTable:
  def test_by_hand(self, tmp_path):
    (seed,) = rlvr.load(write_run(tmp_path / 'run', [([0] * 3, [4, 2, 0])]))
    found = rlvr.pass_table(seed.evaluations[1])
    # Of two right in four, one of two draws is right with 1 - C(2,2)/C(4,2) = 5/6; of four, surely. One of three questions has a majority.
    means = {'avg@4': (1 + 0.5) / 3, 'pass@2': (1 + 5 / 6) / 3, 'pass@4': 2 / 3, 'maj@4': 1 / 3}
    assert {name: mean for name, (mean, _, _) in found.items()} == pytest.approx(means)
    assert all(0 <= low <= mean <= high <= 1 for mean, low, high in found.values())
