"""The methods of the room weights, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import weights

_DAPO = 'Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476'
_ENTROPY_MECHANISM = 'Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617'

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
)
