"""The three confidences: which statistic each asks for, and the end of a response."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_jax.ops import confidence
from entropy_jax.types import UserError

pytestmark = pytest.mark.usefixtures('strict_dtypes')


def value(form, num, p):
  (stat,) = confidence.confidence_stats(form, num)
  return float(stat.fn(jnp.log(jnp.array(p, jnp.float32))))


class TestConfidenceStats:
  def test_card_values(self):
    uniform_5, uniform_10, peaked = [0.2] * 5, [0.1] * 10, [0.96, 0.01, 0.01, 0.01, 0.01]
    np.testing.assert_allclose(value('deepconf', 5, uniform_5), 1.609438, rtol=1e-6)  # ln 5
    np.testing.assert_allclose(value('deepconf', 5, uniform_10), 2.302585, rtol=1e-6)  # ln 10
    np.testing.assert_allclose(value('deepconf', 5, peaked), 3.6923, atol=1e-4)  # -(ln .96 + 4 ln .01) / 5
    # the mean of the five largest cannot tell the uniform row from the peaked one
    np.testing.assert_allclose([value('meanprob', 5, uniform_5), value('meanprob', 5, peaked)], [0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose([value('meanprob', 1, uniform_5), value('meanprob', 1, peaked)], [0.2, 0.96], rtol=1e-6)

  def test_names_and_policy(self):
    (stat,) = confidence.confidence_stats('meanprob', 2)
    assert (stat.name, stat.of) == ('confidence@meanprob,2', 'behaviour')
    assert stat.fn is confidence.confidence_stats('meanprob', 2)[0].fn  # two methods of a chain may ask for the same one
    assert confidence.confidence_stats('sampled', 2) == ()

  def test_bad_num(self):
    with pytest.raises(UserError, match=r'num=2\.5 is no number of tokens'):
      confidence.confidence_stats('meanprob', 2.5)


class TestSampledConfidence:
  def test_sampled_alone_is_remembered(self):
    logp = jnp.log(jnp.array([[0.5, 0.1]]))
    values, state, metrics = confidence.sampled_confidence({}, logp, confidence='sampled')
    np.testing.assert_allclose(values['old_confidence_BxT'], [[0.5, 0.1]], rtol=1e-6)
    assert state == {} and metrics == {}
    assert confidence.sampled_confidence({}, logp, confidence='deepconf')[0] == {}


class TestTailMean:
  def test_last_valid_tokens(self):
    x = jnp.array([[1.0, 2.0, 3.0, 4.0], [8.0, jnp.nan, 6.0, jnp.inf], [jnp.nan] * 4])
    mask = jnp.array([[True] * 4, [True, False, True, False], [False] * 4])
    np.testing.assert_allclose(confidence.tail_mean(x, mask, 3), [3.0, 7.0, 0.0])  # (2+3+4)/3; both of two; none
    np.testing.assert_allclose(confidence.tail_mean(x, mask, 1), [4.0, 6.0, 0.0])
