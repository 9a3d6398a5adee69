"""The claims, figures and report of the entropy-control study on made curves whose answers are known."""

import numpy as np
import pytest

from entropy_jax.analysis import control_report, control_runs
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from entropy_jax.analysis.control_runs import Controlled

TARGETS, SEEDS, STEPS = [0.5, 1.0, 1.5], 5, 40
ORIGIN = {'grpo': 'reference', 'model_based': 'here'}


def curves(seed: int, offset: float, *, wander: float = 0.002, settles: bool = True, target: bool = True) -> np.ndarray:
  """[K, R, N]: from 2 down to the target plus an offset within some rollouts, and then wandering about it."""
  rng = np.random.default_rng(seed)
  goal_K = np.array(TARGETS) if target else np.full(3, 0.8)
  decay_N = np.exp(-np.arange(STEPS + 1) / (2.0 if settles else 1e3))
  goal_KxRxN = goal_K[:, None, None] + offset + 0.02 * offset * rng.normal(size=(1, SEEDS, 1))
  return goal_KxRxN + (2.0 - goal_KxRxN) * decay_N + wander * rng.normal(size=(3, SEEDS, STEPS + 1))


def bed(**given) -> control_runs.Testbed:
  """A testbed of GRPO, which ends at .8, model_based, 5e-3 off its target, and what is given by name."""
  values = {'grpo': curves(0, 0.0, target=False), 'model_based': curves(1, 0.005)} | given
  held = {}
  for place, (name, entropy) in enumerate(values.items()):
    own = entropy[:, :, :-1] - 0.2 if name in ('aent', 'siren') else None
    success = np.full(entropy.shape, 0.9) - 0.01 * place
    settings = [{'coef': 0.1}, {'coef': 0.2}]
    held[name] = Controlled(ORIGIN.get(name, 'published'), settings, np.array([1, 1, 1]), entropy, success, own)
  return control_runs.Testbed('fork_tokens', TARGETS, 20, 0.05, held)


def verdicts(testbed: control_runs.Testbed) -> dict[str, str]:
  return {claim.id.removeprefix('fork_tokens/'): claim.verdict for claim in control_report.claims(testbed)}


class TestClaims:
  def test_closer_than_the_best(self):
    testbed = bed(ter=curves(2, 0.02), siren_mean=curves(3, 0.04))
    claims = {claim.id: claim for claim in control_report.claims(testbed)}
    closer = claims['fork_tokens/model_based_tracks_closer']
    assert closer.verdict == REPRODUCED and closer.baseline == 'ter'
    np.testing.assert_allclose(closer.value, 0.005 - 0.02, atol=3e-3)
    above = claims['fork_tokens/model_based_tracks_closer_above']
    assert above.verdict == REPRODUCED and above.metric.endswith('minus ter')
    assert claims['fork_tokens/ter_holds_target'].verdict == claims['fork_tokens/model_based_holds_target'].verdict == REPRODUCED

  def test_a_better_published_one_is_said(self):
    assert verdicts(bed(ter=curves(2, 0.001)))['model_based_tracks_closer'] == NOT_REPRODUCED

  def test_equal_runs_are_not_closer(self):
    # The difference is 0 for every seed: its interval is a point on the threshold.
    testbed = bed(ter=curves(1, 0.005))
    assert verdicts(testbed)['model_based_tracks_closer'] == NOT_REPRODUCED
    claim = control_report.claims(testbed)[0]
    assert claim.value == 0.0 and claim.interval == (0.0, 0.0)

  def test_two_seeds_decide_nothing(self):
    full = bed(ter=curves(2, 0.02))
    fewer = {
      name: Controlled(c.origin, c.settings, c.chosen_K, c.entropy_KxRxN[:, :2], c.success_KxRxN[:, :2], None)
      for name, c in full.controllers.items()
    }
    found = verdicts(control_runs.Testbed(full.name, TARGETS, 20, 0.05, fewer))
    assert set(found.values()) == {INCONCLUSIVE}

  def test_targets_above_the_reference_alone(self):
    """One that follows GRPO down to .8 misses the target .5 by .3, and holds the others; only the second comparison is with it."""
    one_sided = curves(2, 0.02)
    one_sided[0] = curves(0, 0.0, target=False)[0]
    testbed = bed(adaptive_entropy=one_sided, ter=curves(3, 0.06))
    claims = {claim.id.removeprefix('fork_tokens/'): claim for claim in control_report.claims(testbed)}
    assert claims['model_based_tracks_closer'].baseline == 'ter'
    assert claims['model_based_tracks_closer_above'].baseline == 'adaptive_entropy'
    assert claims['adaptive_entropy_holds_target'].verdict == NOT_REPRODUCED
    assert claims['adaptive_entropy_keeps_above'].verdict == REPRODUCED

  def test_a_statistic_of_its_own(self):
    # Its own statistic is .2 below the entropy, which is .2 above the target.
    found = verdicts(bed(aent=curves(2, 0.2, wander=0.02), siren=curves(3, 0.0)))
    assert found['aent_holds_its_own'] == REPRODUCED and found['aent_holds_target'] == NOT_REPRODUCED
    assert found['siren_holds_its_own'] == NOT_REPRODUCED and found['siren_holds_target'] == REPRODUCED

  def test_order_and_steadiness_of_aepo(self):
    found = verdicts(bed(aepo=curves(2, 0.02)))
    assert found['aepo_is_ordered'] == found['aepo_is_steady'] == REPRODUCED
    flat = curves(2, 0.0, wander=0.2)
    flat[2] = flat[1] - 0.3
    found = verdicts(bed(aepo=flat))
    assert found['aepo_is_ordered'] == found['aepo_is_steady'] == NOT_REPRODUCED


class TestTable:
  def test_closest_first_with_intervals(self):
    made = control_report.table(bed(ter=curves(2, 0.02), aent=curves(3, 0.2, settles=False)))
    assert [row[0] for row in made.rows] == ['model_based', 'ter', 'aent']
    assert all(len(row) == len(made.header) for row in made.rows)
    assert made.rows[0][1] == 'coef 0.2' and made.rows[0][2].startswith('0.005 [') and made.rows[0][4] == '15 of 15'
    assert made.rows[2][4:6] == ['0 of 15', 'never']
    assert made.rows[0][7].startswith('0.890')


class TestFigures:
  @pytest.mark.parametrize('num_targets', [1, 3])
  def test_panels_and_lines(self, num_targets):
    full = bed(ter=curves(2, 0.02))
    part = control_runs.Testbed(
      full.name, TARGETS[:num_targets], 20, 0.05,
      {
        name: Controlled(c.origin, c.settings, c.chosen_K[:num_targets], c.entropy_KxRxN[:num_targets], c.success_KxRxN[:num_targets], None)
        for name, c in full.controllers.items()
      },
    )  # fmt: skip
    panels = control_report.tracking_curves(part, most=2).axes
    assert len(panels) == min(num_targets, 2) and panels[-1].get_title(loc='left') == f'target {TARGETS[num_targets - 1]:g}'
    labels = panels[0].get_legend_handles_labels()[1]
    assert labels == ['grpo, no target', 'model_based', 'ter']
    (axes,) = control_report.error_by_target(part).axes
    assert axes.get_yscale() == 'log' and {'model_based', 'ter'} <= set(axes.get_legend_handles_labels()[1])
