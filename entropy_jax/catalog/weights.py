"""The methods of the room weights, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import weights

_DAPO = 'Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476'
_ENTROPY_MECHANISM = 'Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617'
_ENTROPY_DYNAMICS = 'On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models, arXiv 2602.03392'
_STEER = 'Hao et al., Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, arXiv 2510.10150'

TABLE = (
  Entry(
    weights.top_entropy,
    'w = N / K on the K = max(1, ceil(keep N)) tokens of largest entropy, else 0',
    'Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning, '
    'arXiv 2506.01939',
  ),
  Entry(
    weights.clip_cov,
    'w = 0 on K = max(1, floor(fraction N)) random tokens with cov_low < (A - mean A) (lp - mean lp) < cov_high, else 1',
    _ENTROPY_MECHANISM + ', Eq. 10-12',
    example={'fraction': 0.2, 'low_quantile': 0.5, 'high_quantile': 1.0},
  ),
  Entry(
    weights.drop_truncated,
    'w = 0 on responses that ran out of length, else 1',
    _DAPO,
  ),
  Entry(
    weights.off_policy_sequence_mask,
    'w = 1 where A >= 0 or mean_t(ln pi_sampler - ln pi) <= threshold, else 0',
    'DeepSeek-AI, DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models, arXiv 2512.02556',
    example={'threshold': 0.05},
  ),
  Entry(
    weights.sampler_importance,
    'w = min(pi_old / pi_sampler, maximum)',
    'TRL documentation, vLLM importance sampling correction',
    example={'maximum': 1.2},
  ),
  Entry(
    weights.clip_b,
    'w = 0 where A < 0 and S - mean S < -mu std S, S = p (H + ln p), else N / #kept',
    _ENTROPY_DYNAMICS,
    example={'mu': 0.5},
  ),
  Entry(
    weights.clip_v,
    'w = 0 on the max(1, floor(max_fraction N)) largest D > mu std D with A < 0, D = E[S] - S, else N / #kept',
    _ENTROPY_DYNAMICS,
    example={'mu': 0.5, 'max_fraction': 0.2},
  ),
  Entry(
    weights.steer,
    'w = max(exp(-k |Omega|), minimum), Omega = (A / pi_old) pi (1 - pi) (ln pi + H), k = -ln(minimum) / max(max |Omega|, floor)',
    _STEER,
    example={'minimum': 0.2},
  ),
  Entry(
    weights.steer_discriminator,
    'steer with Omega = r A (S - E[S]), the exact first-order entropy change',
    _STEER + '; ' + _ENTROPY_DYNAMICS + ', Theorem 3.3',
    example={'minimum': 0.2},
  ),
  Entry(
    weights.entropy_sft,
    'w = N / K on the K = max(1, floor(keep N)) tokens of largest -ln pi - entropy_scale H, else 0',
    'Wang et al., Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex Instruction Following, '
    'arXiv 2508.03178',
  ),
  Entry(
    weights.self_imitation_warmup,
    'w = (1 - cos(pi t / num_updates)) / 2, then 1, on replayed responses, 1 on fresh ones',
    'Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement Learning, '
    'arXiv 2509.22601',
    example={'num_updates': 4.0},
  ),
)
