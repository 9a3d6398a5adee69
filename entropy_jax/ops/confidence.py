"""How sure the policy was of a token, in the three senses that the paper and the code of ECHO give to the word.

Methods read it as `old_confidence_BxT`: from the vocabulary statistic of `confidence_stats`, or, for 'sampled', from what the lift
remembers (`init=no_state, remember=sampled_confidence`), so that no row is scored for it.
"""

import jax
import jax.numpy as jnp

from entropy_jax.ops import masked, vocabulary
from entropy_jax.types import Metrics, Planned, PyTree, UserError, VocabStat

FORMS = 'meanprob | deepconf | sampled'


def confidence_stats(form: str, num: int) -> tuple[VocabStat, ...]:
  """The vocabulary statistics of the behaviour policy that confidence needs, called confidence@FORM,NUM.

  Args:
    form: 'meanprob', the mean of the num largest probabilities; 'deepconf', minus the mean of their logarithms; 'sampled', the
      probability of the sampled token, which needs none.
    num: whole, at least 1.

  Raises:
    UserError: num is no integer.

  >>> [stat.name for form in ('deepconf', 'sampled') for stat in confidence_stats(form, 5)]
  ['confidence@deepconf,5']
  """
  if not isinstance(num, int):
    raise UserError(f'confidence: num={num!r} is no number of tokens; give an integer of at least 1.')
  if form == 'sampled':
    return ()
  made = vocabulary.top_mean_probability_stat if form == 'meanprob' else vocabulary.deepconf_confidence_stat
  return (made(num, of='behaviour')._replace(name=f'confidence@{form},{num}'),)


def no_state() -> PyTree:
  """What `sampled_confidence` carries from update to update: nothing."""
  return {}


def sampled_confidence(state: PyTree, old_logp_BxT: jax.Array, *, confidence: str = 'meanprob') -> tuple[Planned, PyTree, Metrics]:
  """exp(ln pi_old) in the place of a statistic of the whole row, for confidence='sampled'; nothing for the other forms."""
  return ({'old_confidence_BxT': jnp.exp(jnp.minimum(old_logp_BxT, 0.0))} if confidence == 'sampled' else {}), state, {}


def tail_mean(value_BxT: jax.Array, mask_BxT: jax.Array, window: float) -> jax.Array:
  """Mean of the last min(window, length) valid tokens of every sequence, 0 for an empty one, [B].

  >>> x, mask = jnp.array([[1., 2., 9., 4.], [5., 9., 9., 9.]]), jnp.array([[True, True, False, True], [True, False, False, False]])
  >>> tail_mean(x, mask, 2).tolist()
  [3.0, 5.0]
  """
  still_to_come_BxT = jnp.cumsum(mask_BxT[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]  # valid tokens from here on
  return masked.mean(value_BxT, mask_BxT & (still_to_come_BxT <= window), axis=1)
