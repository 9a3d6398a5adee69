"""PEAR: the card's numbers, a loop as oracle, the order of correct responses, phases that are absent."""

import functools

import jax
import numpy as np
import pytest

from entropy_jax import transform
from entropy_jax.methods import advantages, rewards
from entropy_jax.objective import chain
from entropy_jax.types import Phase, UserError
from tests import helpers

pytestmark = pytest.mark.usefixtures('strict_dtypes')

likelihood = transform.surrogate('likelihood', lambda logp_BxT, advantage_BxT: advantage_BxT * logp_BxT)


@functools.cache
def compiled(**hyper):
  return jax.jit(functools.partial(rewards.pear.function, **hyper))


def pear(think, answer, /, *, correct=1.0, **hyper):
  """One response with two thinking tokens of this entropy, a mark of entropy 9 and one answer token."""
  entropy = np.float32([[think, think, 9.0, answer]])
  phase = np.array([[Phase.THINK, Phase.THINK, Phase.MARK, Phase.ANSWER]], np.int32)
  value, metrics = compiled(**hyper)(np.float32([correct]), entropy, phase, np.ones((1, 4), bool))
  return float(value[0]), {k: float(v) for k, v in metrics.items()}


class TestPear:
  @pytest.mark.parametrize(
    ('think', 'answer', 'hyper', 'expected'),
    [
      (0.6, 0.2, {}, 0.6),  # P = .4
      (0.2, 0.6, {}, 1.0),  # P = max(0, -.4)
      (0.6, 0.2, {'answer': 0.0}, 0.4),  # P = .6
      (1.5, 0.1, {}, -0.4),  # P = 1.4, below the reward of a wrong response
      (1.5, 0.1, {'floor': 0.0}, 0.0),
      (0.6, 0.2, {'answer': 1e6}, 1.0),  # the correctness reward
      (0.0, 0.2, {'score': 2.0}, 1.0),  # at most 1
    ],
  )
  def test_card_values(self, think, answer, hyper, expected):
    assert pear(think, answer, **hyper)[0] == pytest.approx(expected, abs=1e-6)

  def test_wrong_responses_earn_a_constant(self):
    assert pear(1.5, 0.1, correct=0.0)[0] == pear(0.1, 1.5, correct=0.5)[0] == 0.0  # the threshold itself is not above it
    assert pear(0.6, 0.2, correct=0.0, wrong=0.25)[0] == 0.25

  def test_metrics(self):
    _, metrics = pear(0.6, 0.2)
    np.testing.assert_allclose([metrics[k] for k in ('think_entropy', 'answer_entropy', 'penalty')], [0.6, 0.2, 0.4], rtol=1e-5)
    assert metrics['correct_fraction'] == 1.0

  def test_without_a_mark_everything_is_thinking(self):
    phase, entropy = np.zeros((1, 4), np.int32), np.float32([[0.3, 0.6, 0.0, 0.3]])
    value, metrics = compiled()(np.float32([1.0]), entropy, phase, np.ones((1, 4), bool))
    np.testing.assert_allclose(value, [0.7], rtol=1e-6)
    assert float(metrics['answer_entropy']) == 0.0

  def test_against_a_loop(self):
    batch = helpers.token_batch(seed=9, B=12, T=8)
    dirty = helpers.with_garbage(batch)
    value, _ = compiled(answer=0.5, threshold=0.0)(dirty.reward_B, dirty.old_entropy_BxT, dirty.phase_BxT, dirty.mask_BxT)
    expected = []
    for b in range(12):
      H = {phase: [] for phase in Phase}
      for t in range(8):
        if batch.mask_BxT[b, t]:
          H[Phase(int(batch.phase_BxT[b, t]))].append(float(batch.old_entropy_BxT[b, t]))
      mean = {phase: np.mean(h) if h else 0.0 for phase, h in H.items()}
      penalty = max(0.0, mean[Phase.THINK] - 0.5 * mean[Phase.ANSWER])
      expected.append(min(1.0, 1.0 - penalty) if batch.reward_B[b] > 0 else 0.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)

  def test_groups_of_correct_responses_learn_to_be_certain(self):
    # GRPO sees nothing in (1, 1, 1); after PEAR its advantages fall with the entropy of the thinking
    batch = helpers.token_batch(B=3, T=2)
    batch = batch.replace(
      mask_BxT=np.ones((3, 2), bool),
      token_mask_BxN=np.ones((3, 4), bool),
      group_B=np.zeros(3, np.int32),
      reward_B=np.ones(3, np.float32),
      token_reward_BxT=None,
      old_entropy_BxT=np.float32([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]),
      phase_BxT=np.zeros((3, 2), np.int32),
    )
    objective = chain(rewards.pear(), advantages.grpo(), likelihood())
    prepared, _, _ = jax.jit(objective.prepare)(objective.init(batch), batch)
    np.testing.assert_allclose(prepared.advantage_BxT[:, 0], [1.0, 0.0, -1.0], atol=1e-4)

  def test_bad_input(self):
    with pytest.raises(UserError, match=r'^pear: floor=2 is outside'):
      rewards.pear(floor=2)
