"""The methods of the room regularizers, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import regularizers

_ENTROPY_MECHANISM = 'Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617'

TABLE = (
  Entry(
    regularizers.entropy_bonus,
    '-coef H',
    'Williams and Peng, Function Optimization Using Connectionist Reinforcement Learning Algorithms, 1991',
    example={'coef': 0.1},
  ),
  Entry(
    regularizers.adaptive_entropy,
    '-c H, c = a if the last update saw H <= target, else 0; a moves by +-step',
    'He et al., Skywork Open Reasoner 1 Technical Report, arXiv 2505.22312',
    example={'target': 10.0, 'initial': 0.5},
  ),
  Entry(
    regularizers.kl,
    'coef k(d), d = ln pi - ln pi_ref; k1 = d, absolute = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1',
    'Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300',
    example={'coef': 0.1, 'bias_correction': True},
  ),
  Entry(
    regularizers.adaptive_kl,
    'c k(d); c <- c (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)',
    'Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, section 2.2',
    example={'target': 0.1, 'horizon': 100.0, 'initial': 0.1},
  ),
  Entry(
    regularizers.kl_cov,
    'coef |ln r| on the K = max(1, floor(fraction N)) tokens of largest (A - mean A) (lp - mean lp), else 0',
    _ENTROPY_MECHANISM + ', Eq. 13-14',
    example={'fraction': 0.2},
  ),
)
