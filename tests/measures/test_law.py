"""The R-H law: exact recovery, scipy as oracle, coverage of the intervals under autocorrelated noise, and every refusal."""

import json

import numpy as np
import pytest
import scipy.stats

from entropy_jax.measures import law
from entropy_jax.types import UserError

H = np.linspace(2.0, 0.1, 60)


def noisy(rng, *, rho=0.0, scale=0.02, a=0.1, b=0.8):
  """The law plus AR(1) noise with a stationary start."""
  e = np.empty(H.size)
  x = rng.normal()
  for t in range(H.size):
    x = rho * x + np.sqrt(1 - rho**2) * rng.normal()
    e[t] = x
  return b - a * np.exp(H) + scale * e


class TestFitLaw:
  def test_card_values(self):
    # H = (1, .5, .1, .01), a = .2, b = .6: R = .6 - .2 e^H
    h = np.array([1, 0.5, 0.1, 0.01])
    r = np.array([0.056344, 0.270256, 0.378966, 0.397990])
    fit = law.fit_law(h, r, min_points=4)
    assert (fit.a, fit.b, fit.ceiling) == pytest.approx((0.2, 0.6, 0.4), abs=2e-6)
    assert fit.r_squared == pytest.approx(1)
    assert fit.interval_a == pytest.approx((0.2, 0.2), abs=1e-5)
    assert fit.entropy_range == (0.01, 1)

  def test_against_scipy(self):
    r = noisy(np.random.default_rng(0))
    fit, oracle = law.fit_law(H, r), scipy.stats.linregress(np.exp(H), r)
    assert (fit.a, fit.b) == pytest.approx((-oracle.slope, oracle.intercept))
    assert fit.r_squared == pytest.approx(oracle.rvalue**2)
    assert fit.rmse == pytest.approx(np.sqrt(np.mean((r - oracle.intercept - oracle.slope * np.exp(H)) ** 2)))
    # Independent noise: the interval is about as wide as the classical one.
    classical = 2 * scipy.stats.t.ppf(0.975, 58) * oracle.stderr
    width = np.diff(law.fit_law(H, r, block_length=1).interval_a)[0]
    assert 0.7 < width / classical < 1.6

  @pytest.mark.parametrize(('rho', 'least'), [(0.0, 0.88), (0.8, 0.75)])
  def test_intervals_cover_the_truth(self, rho, least):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
      low, high = law.fit_law(H, noisy(rng, rho=rho), num_resamples=200).interval_a
      hits += low <= 0.1 <= high
    # Independent resampling reaches .47 at rho .8; three standard errors of 100 hits are about .1 below .87.
    assert hits / 100 >= least

  def test_autocorrelated_noise_widens_the_interval(self):
    rng = np.random.default_rng(2)
    widths = [[np.diff(law.fit_law(H, noisy(rng, rho=rho), num_resamples=200).interval_ceiling)[0] for _ in range(10)] for rho in (0, 0.8)]
    assert np.mean(widths[1]) > 1.5 * np.mean(widths[0])

  def test_level_and_seed(self):
    r = noisy(np.random.default_rng(3))
    narrow, wide = law.fit_law(H, r, level=0.5), law.fit_law(H, r, level=0.99)
    assert wide.interval_b[0] < narrow.interval_b[0] < narrow.b < narrow.interval_b[1] < wide.interval_b[1]
    assert law.fit_law(H, r, seed=1) == law.fit_law(H, r, seed=1)
    assert law.fit_law(H, r, seed=1).interval_a != law.fit_law(H, r, seed=2).interval_a

  def test_constant_success_explains_nothing(self):
    fit = law.fit_law(H, np.full(60, 0.5))
    assert (fit.a, fit.b) == pytest.approx((0, 0.5), abs=1e-12)
    assert fit.r_squared <= 1e-9

  def test_summary_is_json(self):
    summary = json.loads(json.dumps(law.fit_law(H, noisy(np.random.default_rng(4))).summary()))
    assert {'a', 'b', 'ceiling', 'r_squared', 'interval_a', 'num_points', 'autocorrelation'} <= summary.keys()
    assert not any(key.startswith(('draws', 'noise')) for key in summary)


class TestRefusals:
  R = 0.8 - 0.1 * np.exp(H)

  @pytest.mark.parametrize(
    ('h', 'r', 'kwargs', 'words'),
    [
      (1 + 0.1 * H, R, {}, ['ranges over 0.19 nats', '1.01 to 1.2', 'at least 0.3', 'min_range_nats']),
      (np.ones(60), R, {'min_range_nats': 0.0}, ['ranges over 0 nats']),
      (H[:5], R[:5], {}, ['5 points', 'at least 8', 'min_points']),
      (H[:2], R[:2], {'min_points': 1}, ['2 points', 'at least 3']),
      (np.where(np.arange(60) == 7, np.nan, H), R, {}, ['entropy', 'nan at point 7', '1 of 60']),
      (H, np.where(np.arange(60) > 57, np.inf, R), {}, ['success', 'inf at point 58', '2 of 60']),
      (H, R[:-1], {}, ['(60,)', '(59,)']),
      (H[None], R[None], {}, ['(1, 60)']),
      (H, R, {'level': 95}, ['level=95', 'between 0 and 1']),
      (H, R, {'num_resamples': 0}, ['num_resamples=0']),
      (H, R, {'block_length': 61}, ['block_length=61', '1 to 60']),
    ],
  )
  def test_says_what_and_why_in_one_sentence(self, h, r, kwargs, words):
    with pytest.raises(UserError) as error:
      law.fit_law(h, r, **kwargs)
    assert all(word in str(error.value) for word in words), error.value
    assert '\n' not in str(error.value)
    assert str(error.value).count('. ') == 0


class TestPredict:
  def test_on_the_line(self):
    fit = law.fit_law(H, 0.6 - 0.2 * np.exp(H))
    np.testing.assert_allclose(law.predict(fit, [0.0, 1.0]), [0.4, 0.6 - 0.2 * np.e])


class TestPredictInterval:
  def test_covers_new_points(self):
    rng = np.random.default_rng(5)
    fit = law.fit_law(H, noisy(rng))
    low, high = law.predict_interval(fit, H)
    fresh = np.stack([noisy(rng) for _ in range(50)])
    assert 0.88 < np.mean((low <= fresh) & (fresh <= high)) < 0.995

  def test_is_wider_outside_the_points(self):
    fit = law.fit_law(H[:20], noisy(np.random.default_rng(6))[:20], min_range_nats=0.1)
    low, high = law.predict_interval(fit, [H[10], -2.0])
    assert (high - low)[1] > (high - low)[0]


class TestEarlyPrediction:
  def test_exact_law_is_predicted_exactly(self):
    early = law.early_prediction(H, 0.6 - 0.2 * np.exp(H))
    assert (early.num_fitted, early.num_held_out) == (20, 40)
    assert early.rmse == pytest.approx(0, abs=1e-9)
    assert early.final_predicted == pytest.approx(early.final_measured)
    assert early.predicted_M.shape == early.low_M.shape == early.high_M.shape == (40,)

  def test_errors_by_hand(self):
    # The law holds in the first half; later success is .1 above it and .3 above it at the last point.
    r = 0.6 - 0.2 * np.exp(H)
    r[30:] += 0.1
    r[-1] += 0.2
    early = law.early_prediction(H, r, fraction=0.5)
    assert early.final_error == pytest.approx(-0.3)
    assert early.mean_error == pytest.approx(-(29 * 0.1 + 0.3) / 30)
    assert early.rmse == pytest.approx(np.sqrt((29 * 0.01 + 0.09) / 30))
    assert early.coverage == 0

  def test_interval_covers_noise_around_the_law(self):
    rng = np.random.default_rng(7)
    coverage = [law.early_prediction(H, noisy(rng), fraction=0.5, num_resamples=300).coverage for _ in range(20)]
    assert np.mean(coverage) > 0.85
    early = law.early_prediction(H, noisy(rng), fraction=0.5)
    assert early.final_interval[0] < early.final_predicted < early.final_interval[1]

  def test_sees_nothing_of_the_held_out_part(self):
    r = noisy(np.random.default_rng(8))
    changed = r.copy()
    changed[20:] = 0.0
    assert law.early_prediction(H, r).fit == law.early_prediction(H, changed).fit

  @pytest.mark.parametrize(('num', 'fitted'), [(99, 33), (60, 20), (61, 20)])
  def test_a_third(self, num, fitted):
    h = np.linspace(2, 0, num)
    assert law.early_prediction(h, -np.exp(h)).num_fitted == fitted

  @pytest.mark.parametrize('fraction', [0.0, 1.0, 1.5, -1, 0.001, float('nan')])
  def test_refuses_a_useless_fraction(self, fraction):
    with pytest.raises(UserError, match='fraction='):
      law.early_prediction(H, -np.exp(H), fraction=fraction)

  def test_refuses_a_flat_first_part(self):
    h = np.concatenate([np.full(30, 2.0), np.linspace(2, 0, 30)])
    with pytest.raises(UserError, match='ranges over 0 nats'):
      law.early_prediction(h, -np.exp(h))


class TestLagOneAutocorrelation:
  def test_recovers_the_coefficient_of_a_long_series(self):
    rng = np.random.default_rng(9)
    e = np.zeros(4000)
    for t in range(1, 4000):
      e[t] = 0.6 * e[t - 1] + rng.normal()
    assert law.lag_one_autocorrelation(e) == pytest.approx(0.6, abs=0.05)

  def test_no_residual_has_none(self):
    assert law.lag_one_autocorrelation(np.zeros(10)) == 0
