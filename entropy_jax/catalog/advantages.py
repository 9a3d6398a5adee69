"""The methods of the room advantages, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import advantages

_REINFORCE_PP = 'Hu et al., REINFORCE++, arXiv 2501.03262'
_SPEAR = (
  'Qin et al., Learn the Ropes, Then Trust the Wins: Self-imitation with Progressive Exploration for Agentic Reinforcement Learning, '
  'arXiv 2509.22601'
)

TABLE = (
  Entry(
    advantages.grpo,
    'A = (R - mean_g R) / (std_g R + epsilon)',
    'Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300',
  ),
  Entry(
    advantages.dr_grpo,
    'A = R - mean_g R',
    'Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783',
  ),
  Entry(
    advantages.rloo,
    'A_i = R_i - mean_{j != i} R_j',
    'Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs, arXiv 2402.14740',
  ),
  Entry(
    advantages.opo,
    'A = R - sum_g n R / sum_g n',
    'Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585',
  ),
  Entry(
    advantages.gpg,
    'A = B / #(R != 0) (R - mean_g R)',
    'Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546',
  ),
  Entry(
    advantages.grpo_pass_at_k,
    'A = (R_1st - R_2nd) / (std_g R + epsilon) for the best response of the group, 0 for the others',
    'Tang et al., Optimizing Language Models for Inference Time Objectives using Reinforcement Learning, arXiv 2503.19595',
  ),
  Entry(
    advantages.reinforce_plus_plus,
    'A = whiten over tokens of G_t = r_t + discount G_{t+1}',
    _REINFORCE_PP,
  ),
  Entry(
    advantages.reinforce_plus_plus_baseline,
    'A = whiten over tokens of R - mean_g R',
    _REINFORCE_PP,
  ),
  Entry(
    advantages.remax,
    'A_t = sum_{s >= t} r_s - R(greedy response)',
    'Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models, '
    'arXiv 2310.10505',
  ),
  Entry(
    advantages.gae,
    'A_t = d_t + discount trace A_{t+1}, d_t = r_t + discount V_{t+1} - V_t',
    'Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv 1506.02438',
  ),
  Entry(
    advantages.optimal_token_baseline,
    'A_it = G_it - sum_g G_t W_t / sum_g W_t, W_t = sum_{j <= t} (1 - 2 pi_j + sum_v pi_v^2)',
    'Li et al., The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078',
  ),
  Entry(
    advantages.unit,
    'A = 1 on every valid token',
    'Maximum likelihood of the given responses',
  ),
  Entry(
    advantages.qae,
    'A = (R - Q_K(R)) / (std_g R + epsilon), Q_K = inf{x : F_g(x) >= K}',
    'Quantile Advantage Estimation for Entropy-Safe Reasoning, Eq. 2-5',
    example={'quantile': 0.6},
  ),
  Entry(
    advantages.canon,
    'A = mu (R - mean of the other half) + (1 - mu) (R - mean of the own half), halves of the group by entropy or length',
    'Conditional Advantage Estimation (CANON), Eq. 5-8',
    example={'schedule': 'cosine', 'alpha': 0.9, 'beta': 0.1},
  ),
  Entry(
    advantages.edge_grpo,
    'A = GRPO mean_g(h) / h, h the mean entropy of the response',
    'EDGE-GRPO: Entropy-Driven GRPO with Guided Error Correction for Advantage Diversity',
  ),
  Entry(
    advantages.seed_grpo,
    'A = (R - mean_g R) (1 - alpha SE / ln G), SE = -(1 / K) sum_c ln p_c over clusters of equal answers',
    'Chen et al., SEED-GRPO: Semantic Entropy Enhanced GRPO for Uncertainty-Aware Policy Optimization, arXiv 2505.12346, Eq. 1-9',
    example={'alpha': 1.0},
  ),
  Entry(
    advantages.ucas,
    'A_it = GRPO exp(-+ beta z_i) - token_penalty u_it, z the confidence in the group, u the logit over [0, 1]; >= 0 where R is above',
    'Uncertainty-aware Advantage Shaping (UCAS)',
  ),
  Entry(
    advantages.riskpo,
    'A = tail_weight -(q_a - R)^+ + clip(R, q_a, q_b) - q_b, R the reward of one response each of several prompts',
    'RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training',
    example={'bundle': 2},
  ),
  Entry(
    advantages.tlga,
    'A = (R - mu) / (sigma + epsilon), mu and sigma over the tokens of the group; GRPO in a group with some |A| >= limit',
    "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature (HAPO)",
  ),
  Entry(
    advantages.pshw,
    'A = (R - mean_g R) (1 + slope (1 - mean_g R)), R in {-1, 1}',
    'Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning, section 6.2',
  ),
  Entry(
    advantages.self_imitation,
    'A = max(R - P50(mean rewards of the last groups), 0)',
    _SPEAR,
  ),
  Entry(
    advantages.self_imitation_replay,
    'A = max(R - P50(mean rewards of the last fresh groups), 0) on replayed responses, else as it was',
    _SPEAR,
  ),
  Entry(
    advantages.empg,
    'A g(H) + clarity f(H_next), minus its mean over steps; g = exp(-sharpness Hn) / mean, f = exp(-clarity_sharpness Hn), Hn = minmax H',
    'Wang et al., Harnessing Uncertainty: Entropy-Modulated Policy Gradients for Long-Horizon LLM Agents, arXiv 2509.09265, Eq. 7-12',
  ),
  Entry(
    advantages.hicra,
    'A + amplify |A| on planning tokens',
    'Wang et al., Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning, arXiv 2509.03646',
  ),
  Entry(
    advantages.progrpo,
    'A + coef (c(q) - c(o|q)) where the group has a correct response, c = exp(mean ln pi) over the least probable tokens',
    'Li et al., Back to Basics: Revisiting Exploration in Reinforcement Learning for LLM Reasoning via Generative Probabilities (ProGRPO), '
    'arXiv 2602.05281',
    confirmed=False,
    example={'coef': 1.0},
  ),
  Entry(
    advantages.ear_res,
    'A (2 - H / mean_g H), H the mean token entropy of the response',
    'Liu et al., ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning via Entropy Mechanism, Adv-Res',
  ),
  Entry(
    advantages.ear_clip,
    'clip(A, -bound, bound)',
    'Liu et al., ETTRL: Balancing Exploration and Exploitation in LLM Test-Time Reinforcement Learning via Entropy Mechanism, Adv-Clip',
    example={'bound': 0.5},
  ),
  Entry(
    advantages.echo_shaping,
    'A (1 + strength clip(entropy_scale H + confidence_scale (1 - C), -bound, bound))',
    'Zhao et al., ECHO: Entropy-Confidence Hybrid Optimization for Test-Time Reinforcement Learning, arXiv 2602.02150',
    example={'num': 2, 'additive': 0.1},
  ),
  Entry(
    advantages.agentic_aepo,
    'A (1 + strength z(H)), z over the tokens of the group',
    'Dong et al., Agentic Entropy-Balanced Policy Optimization, arXiv 2510.14545',
    confirmed=False,
  ),
  Entry(
    advantages.imitate,
    'A = 1 on the tokens of imitated responses',
    'Wang et al., Arbitrary Entropy Policy Optimization: Entropy Is Controllable in Reinforcement Fine-tuning, arXiv 2510.08141',
  ),
  Entry(
    advantages.prime,
    'whiten over tokens of G_t = sum_{s >= t} process rloo(dense)_s + outcome rloo(R)_s',
    'Cui et al., Process Reinforcement through Implicit Rewards (PRIME), arXiv 2502.01456',
  ),
)
