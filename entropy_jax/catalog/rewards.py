"""The methods of the room rewards, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import rewards

_DAPO = 'Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476'

TABLE = (
  Entry(
    rewards.soft_overlong,
    'R - factor clip((n - (max_length - buffer)) / buffer, 0, 1)',
    _DAPO,
    example={'max_length': 6, 'buffer': 3},
  ),
  Entry(
    rewards.kl_in_reward,
    'r_t = -coef (ln pi_old - ln pi_ref)_t, added to the dense rewards',
    'Ouyang et al., Training language models to follow instructions with human feedback, arXiv 2203.02155',
    example={'coef': 0.1},
  ),
)
