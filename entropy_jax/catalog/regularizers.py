"""The methods of the room regularizers, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import regularizers

_ENTROPY_MECHANISM = 'Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617'

_LP_REG = 'Huang et al., Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward'
_EPO = 'Xu et al., EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning'

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
  Entry(
    regularizers.lp_reg,
    'coef KL(proxy || pi) where pi(o) < the fraction-quantile, A < 0 and proxy(o) > 0; proxy = sg(pi) above threshold max pi, renormalised',
    _LP_REG + ', Eq. 5-6',
    example={'fraction': 0.5},
  ),
  Entry(
    regularizers.lp_reg_released,
    'coef k3(ln pi, t), t = ln proxy(o), on the K = floor(fraction n) least probable of the n tokens with A < 0 that have ln pi < t',
    _LP_REG + ', released code',
    example={'fraction': 0.7},
  ),
  Entry(
    regularizers.siren,
    'coef (h - anchor)^2, h = mean over sequences of the nucleus entropy of their tokens above its 0.8-quantile; anchor = first h',
    'Jiang et al., Rethinking Entropy Regularization in Large Reasoning Models (SIREN), released code',
    example={'coef': 1.0, 'anchor': 0.1},
  ),
  Entry(
    regularizers.aent,
    '-c H^c, H^c without the floor(clamp V) least probable tokens; c <- clip(c - step (min(0, H^c - low) + max(0, H^c - high)))',
    'Shen, On Entropy Control in LLM-RL Algorithms (AEnt), author\'s recipe',
    example={'coef': 0.2, 'adaptive': True, 'low': 0.9, 'high': 1.0, 'step': 0.1, 'maximum': 1.0},
  ),
  Entry(
    regularizers.ter,
    'coef |mean H - target|',
    'Confucius3-Math technical report, section 6.1, Eq. 1',
    example={'coef': 0.1},
  ),
  Entry(
    regularizers.t1,
    '-entropy_coef H + kl_coef k(ln pi - ln pi_ref), pi_ref a moving average of the policy',
    'Hou et al., Advancing Language Model Reasoning through Reinforcement Learning and Inference Scaling (T1)',
    confirmed=False,
    example={'entropy_coef': 0.1, 'kl_coef': 0.1},
  ),
  Entry(
    regularizers.epo,
    '-coef (H - smoothing w_k alpha 1[not low h_u < H < high h_u]), h_u the past mean entropy of turn u; the band has no gradient',
    _EPO + ', released code',
    example={'coef': 0.1, 'max_turns': 3},
  ),
  Entry(
    regularizers.epo_smooth,
    '-coef (H - smoothing w_k (relu(low h_u - H) + relu(H - high h_u))); ours, not the paper\'s',
    'the band of ' + _EPO,
    example={'coef': 0.1, 'max_turns': 3, 'epochs': 2.0},
  ),
  Entry(
    regularizers.tea_rl,
    '-coef w H, w = clip(10 softmax_t((A - mean A) (lp - mean lp)), 0, 5)',
    'Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking (TEA-RL), released code',
    example={'coef': 0.1, 'detach': False},
  ),
  Entry(
    regularizers.edge_grpo_entropy,
    'coef A (ln h - sg ln h), h the mean entropy of the response: the gradient through h that released EDGE-GRPO does not stop',
    'EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity, released code',
  ),
  Entry(
    regularizers.ares_kl,
    'coef beta_d rho_t k3(ln pi - ln pi_ref), rho = relief inside windows of high entropy, else 1',
    'Chen et al., ARES: Multimodal Adaptive Reasoning via Difficulty-Aware Token-Level Entropy Shaping, arXiv 2510.08457, section 3.2',
    confirmed=False,
    example={'coef': 0.1, 'width': 2, 'percentile': 0.5},
  ),
  Entry(
    regularizers.model_based_entropy,
    '-c H, c = ((target - h) / horizon - drift) / response, both estimated from the entropy ledger of the updates before',
    'This library, on Lemma 1 of Cui et al., arXiv 2505.22617',
    example={'target': 1.0, 'initial': 0.1},
  ),
)
