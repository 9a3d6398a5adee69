"""The methods of the room surrogates, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import surrogates

_GSPO = 'Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071'
_PPO = 'Schulman et al., Proximal Policy Optimization Algorithms, arXiv 1707.06347'

TABLE = (
  Entry(
    surrogates.reinforce,
    'A ln pi',
    'Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992',
  ),
  Entry(
    surrogates.importance,
    'A r, r = pi / pi_old',
    _PPO + ', Eq. 6',
  ),
  Entry(
    surrogates.ppo_clip,
    'min(r A, clip(r, 1 - low, 1 + high) A)',
    _PPO + ', Eq. 7',
    example={'high': 0.28, 'dual_clip': 3.0},
  ),
  Entry(
    surrogates.gspo,
    'min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean_t ln r)',
    _GSPO,
    example={'low': 0.03, 'high': 0.04},
  ),
  Entry(
    surrogates.gspo_token,
    'gspo with ln s_t = lp - sg(lp) + sg(mean_t ln r)',
    _GSPO,
    example={'low': 0.03, 'high': 0.04},
  ),
  Entry(
    surrogates.gmpo,
    'mean_t(A) exp(mean_t c_t), c_t = ln r clipped to [-low, high] on the side that the sign of A pushes to',
    'Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673',
    example={'low': 0.1, 'high': 0.1},
  ),
  Entry(
    surrogates.cispo,
    'sg(clip(r, 1 - low, 1 + high)) A ln pi',
    'MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585',
  ),
  Entry(
    surrogates.sapo,
    'A (4 / tau) sigmoid(tau (r - 1)), tau by the sign of A',
    'Gao et al., Soft Adaptive Policy Optimization, arXiv 2511.20347',
  ),
  Entry(
    surrogates.vespo,
    'sg(phi(w)) A ln pi, phi(w) = exp(lambda) w^k exp(-lambda w), w = prod_t r',
    'VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training, arXiv 2602.10693',
  ),
  Entry(
    surrogates.hapo_clip,
    'ppo_clip with low (1 - alpha h) for h <= 0, high (1 + alpha h) for h > 0, and A (1 + beta h) outside (h > 0) or inside (h <= 0) the '
    'neutral zone; h in [-1, 1] the log-entropy around its quantile',
    "Liu et al., From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature, arXiv 2509.16591",
    confirmed=False,
    example={'quantile': 0.5},
  ),
  Entry(
    surrogates.echo_clip,
    'ppo_clip with low = high = minimum + (maximum - minimum) sigmoid(kappa (1 - C)), C the confidence at the end of the response',
    'Zhao et al., ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning, arXiv 2602.02150',
    example={'window': 2, 'num': 1},
  ),
  Entry(
    surrogates.agentic_aepo_clip,
    'min(r A, clip(r, 1 - low, U) A), U = (1 + high) r / sg(r)',
    'Dong et al., Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545',
  ),
)
