"""The methods of the room advantages, in the order of METHODS.md."""

from entropy_jax.catalog.entry import Entry
from entropy_jax.methods import advantages

_REINFORCE_PP = 'Hu et al., REINFORCE++, arXiv 2501.03262'

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
)
