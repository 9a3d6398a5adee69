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
  Entry(
    rewards.tool_use,
    'R + mu(t) min(maximum, per_call n), n the steps of the trajectory, mu = (1 + cos(pi t / num_rollouts)) / 2, then 0',
    'Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement Learning, '
    'arXiv 2509.22601',
    example={'per_call': 0.5, 'num_rollouts': 4.0},
  ),
  Entry(
    rewards.pear,
    'min(1, score - max(0, H_think - answer H_answer)) if correct, else wrong',
    'Huang et al., PEAR: Phase Entropy Aware Reward for Efficient Reasoning, Eq. 5-9',
    example={'threshold': 0.0},
  ),
  Entry(
    rewards.ares,
    'R - lambda g(N - N*) if wrong, g = max(0, D) easy, |D| medium, max(0, -D) hard; N windows of high entropy',
    'Chen et al., ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457, section 3.2',
    example={'width': 1, 'percentile': 0.5, 'initial': 0.0},
  ),
  Entry(
    rewards.empo,
    'R_i = n_c(i) / G, the share of the group with the same answer',
    'Zhang et al., Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning Incentivization (EMPO), arXiv 2504.05812',
  ),
  Entry(
    rewards.ttrl,
    'R_i = 1[a_i = mode(a_1 .. a_N)]',
    'Zuo et al., TTRL: Test-Time Reinforcement Learning, arXiv 2504.16084',
  ),
  Entry(
    rewards.implicit_prm,
    'r_t = beta (ln pi_phi - ln pi_ref)_t, added to the dense rewards',
    'Yuan et al., Free Process Rewards without Process Labels, arXiv 2412.01981',
    example={'beta': 0.5},
  ),
)
