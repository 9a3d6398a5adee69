"""The claims of the entropy-mechanism study on made curves whose answers are known."""

import numpy as np
import pytest

from entropy_jax.analysis import mechanism
from entropy_jax.analysis.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED

SEEDS, STEPS = 6, 40


def curve(seed: int, *, gain: float = 0.0, law: bool = True) -> dict[str, np.ndarray]:
  """One seed: success rises to .95 on the law, the entropy falls fastest early; `gain` nats more entropy at every success."""
  rng = np.random.default_rng(seed)
  progress = 1 - np.exp(-np.linspace(0, 4, STEPS + 1))
  entropy = 2.0 - 1.0 * progress + gain + 0.004 * rng.normal()
  success = 1.2 - 0.16 * np.exp(entropy - gain) if law else 0.02 + 0.93 * np.linspace(0, 1, STEPS + 1)
  step_only = lambda values: np.append(values, np.nan)
  change = np.diff(entropy)
  return {
    'step': np.arange(STEPS + 1),
    mechanism.ALL: entropy,
    mechanism.SETTLED: entropy + gain,
    mechanism.FORK: entropy - gain,
    mechanism.SUCCESS: success,
    'policy/covariance': step_only(np.full(STEPS, 0.1)),
    mechanism.PREDICTED: step_only(change * 1.1),
    mechanism.MEASURED: step_only(change),
  }


def made_bed(**gains: float) -> mechanism.Testbed:
  methods = {'grpo': [curve(k) for k in range(SEEDS)]}
  methods |= {name: [curve(k, gain=gain) for k in range(SEEDS)] for name, gain in gains.items()}
  return mechanism.Testbed('fork_tokens', 0.6, methods)


def verdicts(bed: mechanism.Testbed) -> dict[str, str]:
  return {claim.id.removeprefix('fork_tokens/'): claim.verdict for claim in mechanism.tabular_claims(bed)}


class TestTabularClaims:
  def test_a_world_as_published(self):
    found = verdicts(made_bed(clip_cov=0.2, kl_cov_1=0.1, kl_cov_5=0.3, clip_higher=0.1))
    assert found.pop('clip_higher_null') == NOT_REPRODUCED  # the gain of .1 is outside the null's margin
    assert set(found.values()) == {REPRODUCED}

  def test_a_world_where_the_interventions_do_nothing(self):
    found = verdicts(made_bed(clip_cov=0.0, kl_cov_1=0.0, kl_cov_5=-0.1, clip_higher=0.0))
    assert found['clip_cov_keeps_entropy'] == found['clip_higher_raises_entropy'] == NOT_REPRODUCED
    assert found['kl_cov_strong_keeps_entropy'] == found['kl_cov_is_ordered'] == NOT_REPRODUCED
    assert found['clip_higher_null'] == REPRODUCED

  def test_success_that_is_never_reached_decides_nothing(self):
    bed = made_bed(clip_cov=0.2)
    never = mechanism.Testbed(bed.name, 0.99, bed.methods)
    assert verdicts(never)['clip_cov_keeps_entropy'] == INCONCLUSIVE

  def test_a_curve_that_breaks_the_law(self):
    bed = mechanism.Testbed('fork_tokens', 0.6, {'grpo': [curve(k, law=False) for k in range(SEEDS)]})
    assert verdicts(bed)['law_fits'] == NOT_REPRODUCED


class TestShares:
  def test_early_share(self):
    straight = np.linspace(2.0, 1.0, 31)[None]
    np.testing.assert_allclose(mechanism.early_share(straight), [1 / 3])
    # 2 -> 1 -> 0.8 at the ends of the thirds: (2 - 1) / (2 - .8)
    np.testing.assert_allclose(mechanism.early_share(np.array([[2.0, 1.0, 0.9, 0.8]])), [1 / 1.2])

  def test_relative_fall(self):
    np.testing.assert_allclose(mechanism.relative_fall(np.array([[2.0, 3.0, 0.5]])), [0.75])


class TestCountdownClaims:
  @pytest.mark.parametrize(('sign', 'verdict'), [(1, REPRODUCED), (-1, NOT_REPRODUCED)])
  def test_sign_and_rank(self, sign, verdict):
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(SEEDS):
      covariance = rng.uniform(0.01, 0.2, STEPS)
      change = -sign * covariance * rng.uniform(0.9, 1.1, STEPS)
      evaluation = np.where(np.arange(STEPS + 1) % 20 == 0, np.linspace(0.2, 0.45 + 0.01 * rng.normal(), STEPS + 1), np.nan)
      entropy = np.where(np.isfinite(evaluation), np.linspace(0.7, 0.2, STEPS + 1), np.nan)
      rows = {'policy/covariance': np.append(covariance, np.nan), 'policy/entropy_change': np.append(change, np.nan)}
      runs.append({'step': np.arange(STEPS + 1), 'eval/success': evaluation, 'eval/entropy': entropy} | rows)
    found = {claim.id: claim.verdict for claim in mechanism.countdown_claims(runs)}
    assert found['countdown/success_rises'] == found['countdown/entropy_collapses'] == REPRODUCED
    assert found['countdown/covariance_gives_the_sign'] == found['countdown/covariance_ranks_the_change'] == verdict
