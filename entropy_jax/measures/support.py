"""What training did to the support of a model: which correct answers it keeps, finds and loses within a budget of samples.

A correct answer is in the empirical support at budget k when k samples show it with probability 1 - zeta: its probability exceeds
-ln(zeta) / k. All counts depend on k, and the net change usually changes its sign with it, so report the curve (`support_curve`). Numbers
of samples go through `measures.diversity` (pass@k). Host functions take numpy arrays, and the last two take arrays of the scoring pass.
"""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy_jax.measures import diversity, policy
from entropy_jax.ops import categorical
from entropy_jax.types import UserError

Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Support:
  """How many correct answers (or problems) stand in the support of the base model and of the trained one.

  The published counts do not say whether they are of problems or of answers; give either, and say which.

  Attributes:
    preserved: P, in both.
    expanded: E, in the trained one alone.
    shrunk: S, in the base alone.
    neither: O.
    empty: what a ratio without a denominator is, NaN or 0.

  Reference: Wu et al., The Invisible Leash: Why RLVR May or May Not Escape Its Origin, arXiv 2507.14843.

  >>> found = Support(2388, 48, 175)
  >>> [round(x, 6) for x in (found.retention, found.discovery, found.discovery_score, found.net_change)]
  [0.931721, 0.019704, 0.038593, -0.04864]
  """

  preserved: int
  expanded: int
  shrunk: int
  neither: int = 0
  empty: float = math.nan

  def _share(self, num: float, den: float) -> float:
    return num / den if den else self.empty

  @property
  def retention(self) -> float:
    """SRR = P / (P + S), the share of the base model's support that is kept."""
    return self._share(self.preserved, self.preserved + self.shrunk)

  @property
  def discovery(self) -> float:
    """NDR = E / (P + E), the share of the trained model's support that is new."""
    return self._share(self.expanded, self.preserved + self.expanded)

  @property
  def discovery_score(self) -> float:
    """SDS = 2 SRR NDR / (SRR + NDR), their harmonic mean."""
    return self._share(2 * self.retention * self.discovery, self.retention + self.discovery)

  @property
  def net_change(self) -> float:
    """NSCR = (E - S) / (P + E + S), in [-1, 1]: negative when more was lost than found."""
    return self._share(self.expanded - self.shrunk, self.preserved + self.expanded + self.shrunk)


def support_threshold(k: ArrayLike, *, zeta: float = 0.05) -> NDArray[np.float64]:
  """eps = -ln(zeta) / k: an answer of this probability is missed by k samples with probability (1 - eps)^k < zeta.

  Args:
    k: samples, at least 1.
    zeta: in (0, 1).

  >>> round(float(support_threshold(8192)), 7)
  0.0003657
  """
  k_K = np.asarray(k, np.float64)
  if not np.all(k_K >= 1):
    raise UserError(f'support: k={k!r} is no number of samples; give at least 1.')
  if not 0.0 < zeta < 1.0:
    raise UserError(f'support: zeta={zeta!r} is outside (0, 1); give the probability with which an answer may be missed, such as 0.05.')
  return -math.log(zeta) / k_K


def support(base: ArrayLike, trained: ArrayLike, correct: ArrayLike | None = None, *, empty: float = math.nan) -> Support:
  """The four counts, from which answers stand in each support.

  Args:
    base: bool, any shape, in the support of the base model.
    trained: bool, same shape, of the trained model.
    correct: bool, same shape; None where all entries are correct answers (or problems, in the support when solved once).
    empty: NaN or 0, what a ratio of nothing is.

  >>> support([True, True, False, False], [True, False, True, False])
  Support(preserved=1, expanded=1, shrunk=1, neither=1, empty=nan)
  """
  base_A, trained_A = _bools('base', base), _bools('trained', trained)
  counts = np.ones(base_A.shape, bool) if correct is None else _bools('correct', correct)
  if not base_A.shape == trained_A.shape == counts.shape:
    shapes = f'{base_A.shape}, {trained_A.shape} and {counts.shape}'
    raise UserError(f'support: base, trained and correct have shapes {shapes}; give one entry an answer in each.')

  def number(which: Bools) -> int:
    return int(np.sum(which & counts))

  return Support(
    number(base_A & trained_A), number(~base_A & trained_A), number(base_A & ~trained_A), number(~base_A & ~trained_A), empty
  )


def support_from_probabilities(
  base_prob: ArrayLike, trained_prob: ArrayLike, correct: ArrayLike, *, k: int, zeta: float = 0.05, empty: float = math.nan
) -> Support:
  """The counts over answers whose probabilities are enumerated: in the support where the probability exceeds -ln(zeta) / k."""
  eps = support_threshold(k, zeta=zeta)
  return support(np.asarray(base_prob) > eps, np.asarray(trained_prob) > eps, correct, empty=empty)


def support_from_samples(base_correct: ArrayLike, trained_correct: ArrayLike, *, empty: float = math.nan) -> Support:
  """The counts over problems (or answers) from how many of k samples showed them, the same k for both: in the support where any did."""
  return support(np.asarray(base_correct) > 0, np.asarray(trained_correct) > 0, empty=empty)


def support_curve(
  base_prob: ArrayLike, trained_prob: ArrayLike, correct: ArrayLike, k: Sequence[int], *, zeta: float = 0.05, empty: float = math.nan
) -> list[Support]:
  """`support_from_probabilities` at every budget, in the order given."""
  return [support_from_probabilities(base_prob, trained_prob, correct, k=one, zeta=zeta, empty=empty) for one in k]


def answer_entropy(answers: Iterable[Hashable]) -> float:
  """Shannon entropy in nats of the frequencies of the final answers to one problem: what all the tokens come to in the end.

  Args:
    answers: one a sample; for no answer give a value of its own, or leave the sample out.

  Returns:
    In [0, ln(number of distinct answers)], and 0 with no answer.

  Limits: low by about (distinct - 1) / (2 n) nats, so compare models at equal numbers of samples.

  >>> round(answer_entropy(['7', '7', '8', '9']), 6)     # 1.5 ln 2
  1.039721
  """
  effective = diversity.effective_answers(diversity.answer_counts(answers))
  return math.log(effective) if effective > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class EntropyChange:
  """Change of token-level and answer-level entropy, trained minus base, nats.

  Attributes:
    token: mean over the generated tokens.
    answer: mean over problems of the entropy of final answers.
    num_samples: of every problem, in both models.
  """

  token: float
  answer: float
  num_samples: int

  @property
  def decoupled(self) -> bool:
    """Whether the tokens became more uncertain while the answers became fewer."""
    return self.token > 0 > self.answer


def entropy_change(
  base_token_entropy: float,
  trained_token_entropy: float,
  base_answers: Sequence[Sequence[Hashable]],
  trained_answers: Sequence[Sequence[Hashable]],
) -> EntropyChange:
  """Token-level against answer-level entropy of two models on the same problems.

  Args:
    base_token_entropy, trained_token_entropy: nats, `policy.token_entropy` of the responses.
    base_answers, trained_answers: [problems][samples], the final answers; the same number of samples everywhere, because the answer
      entropy depends on it.

  >>> entropy_change(.44, .52, [['7', '8'], ['1', '2']], [['7', '7'], ['1', '1']]).decoupled
  True
  """
  sizes = {len(one) for one in (*base_answers, *trained_answers)}
  if len(base_answers) != len(trained_answers) or len(sizes) != 1 or not base_answers:
    raise UserError(
      f'support: {len(base_answers)} and {len(trained_answers)} problems with {sorted(sizes)} answers; '
      'give both models the same problems and the same number of samples for each.'
    )

  def mean(problems: Sequence[Sequence[Hashable]]) -> float:
    return float(np.mean([answer_entropy(one) for one in problems]))

  token = trained_token_entropy - base_token_entropy
  return EntropyChange(token, mean(trained_answers) - mean(base_answers), sizes.pop())


def trace_perplexity(logp_BxT: jax.Array, mask_BxT: jax.Array) -> jax.Array:
  """exp(-sum_it m_it ln p_it / N): perplexity of traces that the model did not write, such as a stronger model's solutions.

  Args:
    logp_BxT: float32, of the traces' tokens under the model, at temperature 1.
    mask_BxT: bool.

  Returns:
    float32 scalar >= 1; merge `policy.monte_carlo_entropy` over slices instead, and take exp last.

  Gradient: flows.

  >>> round(float(trace_perplexity(jnp.log(jnp.array([[.5, .125]])), jnp.ones((1, 2), bool))), 5)
  4.0
  """
  return jnp.exp(policy.monte_carlo_entropy(logp_BxT, mask_BxT).compute())


def tilted(logits_xV: jax.Array, reward_xV: jax.Array, *, beta: float = 1.0) -> jax.Array:
  """ln pi of pi ~ q e^(beta R): the KL projection, where reward moves a base distribution at the least KL(pi || q).

  Args:
    logits_xV: [..., V], of q, may hold -inf.
    reward_xV: [..., V].
    beta: the inverse of the KL coefficient.

  Returns:
    [..., V], -inf where q is: what the base cannot say is not learnt. Ratios among answers of equal reward are those of q.

  Gradient: flows.
  Limits: q at beta = 0 and for equal rewards. The entropy may rise: see the example.
  Reference: arXiv 2507.14843.

  >>> pi = jnp.exp(tilted(jnp.log(jnp.array([.9, .1])), jnp.array([0., 1.])))
  >>> [round(x, 3) for x in pi.tolist()], [round(float(categorical.entropy(jnp.log(p))), 3) for p in (jnp.array([.9, .1]), pi)]
  ([0.768, 0.232], [0.325, 0.542])
  """
  return categorical.log_probs(categorical.log_probs(logits_xV) + beta * reward_xV)


def _bools(name: str, values: ArrayLike) -> Bools:
  array = np.asarray(values)
  if array.dtype != np.bool_:
    raise UserError(f'support: {name} holds {array.dtype}; give True or False for every answer, such as counts > 0.')
  return array
