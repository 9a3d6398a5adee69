"""What the paper of each intervention says of entropy, as criteria: written from the method cards before the study was run.

A prediction that this project adds to a paper's own (an expected null, an identity) says so in place of the paper. Each one is tested in
the setting that its card names, at matched success and paired by seed, and its verdict is whatever comes out.
"""

from typing import NamedTuple

from entropy_jax.analysis.claims import Above, Below, Criterion, Null
from entropy_jax.catalog import CATALOG

OURS = 'Prediction of this project'
FORK_1, FORK_4 = 'fork_tokens/epochs_1', 'fork_tokens/epochs_4'
SUM_1, SUM_4 = 'mod_sum/epochs_1', 'mod_sum/epochs_4'
HELD = 1.4  # nats: the target of every controller among the lines

# Metric of a prediction -> what it is, in words. The first five are read where the matched success is first reached.
METRICS = {
  'entropy': 'entropy (nats a token) at matched success',
  'fork': 'entropy at the forks (nats a token) at matched success',
  'answers': 'entropy of the answers given that they are correct (nats) at matched success',
  'rollouts': 'rollouts until the matched success is reached',
  'pass_at_16': 'pass@16 at matched success',
  'final_success': 'success after training',
  'final_entropy': 'entropy (nats a token) after training',
  'pass_at_16_change': 'pass@16 after training minus before',
  'relative_fall': 'relative fall of entropy over training',
  'target_error': f'distance of the mean entropy of the last fifth of training from the target of {HELD:g} nats',
}


class Prediction(NamedTuple):
  """One testable sentence.

  Attributes:
    method: of the config's lines.
    claim: what the paper, or this project, says.
    metric: of METRICS.
    criterion: what its 95 % interval over seeds must satisfy.
    settings: TASK/epochs_N in which it is tested.
    against: method whose value of the same seed is subtracted; None for the value itself.
    entry: name in the catalog whose reference is the paper; '' for a prediction of this project.
  """

  method: str
  claim: str
  metric: str
  criterion: Criterion
  settings: tuple[str, ...]
  against: str | None = 'grpo'
  entry: str = ''

  @property
  def paper(self) -> str:
    return CATALOG[self.entry].reference if self.entry else OURS

  def id(self, setting: str) -> str:
    """Unique: who says what of which method in which setting."""
    against = '' if self.against in (None, 'grpo') else f'_over_{self.against}'
    return f'{setting}/{self.method}_{self.metric}{against}{"" if self.entry else "_ours"}'


def _keeps(method: str, entry: str, threshold: float, *settings: str, metric: str = 'entropy', name: str = '') -> Prediction:
  where = {'fork': ' at the forks', 'answers': ' of correct answers'}.get(metric, '')
  return Prediction(method, f'{name or method} keeps more entropy{where} than GRPO.', metric, Above(threshold), settings, entry=entry)


PREDICTIONS = (
  # Clips and weights.
  Prediction('clip_higher', 'Raising the upper clip bound raises the entropy.', 'entropy', Above(0.02), (FORK_4,), entry='ppo_clip'),
  Prediction('clip_higher', 'Expected null of tables: clip-higher changes nothing.', 'entropy', Null(0.05), (FORK_4, SUM_4)),
  _keeps('clip_cov', 'clip_cov', 0.05, FORK_4, SUM_4, name='Clip-Cov'),
  _keeps('clip_b', 'clip_b', 0.05, FORK_4, SUM_4, name='Clip_B'),
  _keeps('clip_v', 'clip_v', 0.0, FORK_4, SUM_4, name='Clip_V'),
  _keeps('steer', 'steer', 0.0, FORK_4, SUM_4, name='STEER'),
  Prediction('steer', 'Expected null: weights of 0.8 to 1 are too mild to show.', 'entropy', Null(0.05), (FORK_4,)),
  Prediction('steer_strong', 'A smaller least weight keeps more entropy.', 'entropy', Above(0.0), (FORK_4,), 'steer', 'steer'),
  Prediction(
    'top_entropy', 'The tokens of high entropy carry the learning: the top 20 % succeed where the bottom 80 % do not.', 'final_success',
    Above(0.2), (FORK_4,), 'bottom_entropy', 'top_entropy',
  ),
  _keeps('hapo_clip', 'hapo_clip', 0.0, FORK_4, metric='fork', name="HAPO's adaptive clip"),
  _keeps('echo', 'echo_clip', 0.0, SUM_4, name='ECHO'),
  _keeps('agentic_aepo', 'agentic_aepo', 0.0, FORK_4, name='Agentic AEPO'),
  # Regularizers.
  _keeps('kl_cov_1', 'kl_cov', 0.0, FORK_4, SUM_4, name='KL-Cov'),
  _keeps('kl_cov_5', 'kl_cov', 0.05, FORK_4, SUM_4, name='KL-Cov with coefficient 5'),
  Prediction('kl_cov_5', 'A larger coefficient of KL-Cov keeps more entropy.', 'entropy', Above(0.0), (FORK_4,), 'kl_cov_1', 'kl_cov'),
  Prediction('kl_cov_5', 'Identity: with one update a rollout KL-Cov does nothing.', 'entropy', Null(0.001), (FORK_1,), 'importance'),
  _keeps('lp_reg', 'lp_reg', 0.0, FORK_4, name='Lp-Reg'),
  Prediction('lp_reg', 'Expected null of tables: Lp-Reg protects rare tokens, which weigh little.', 'entropy', Null(0.05), (FORK_4,)),
  _keeps('siren', 'siren', 0.05, FORK_4, SUM_4, name='SIREN'),
  _keeps('aent', 'aent', 0.05, FORK_4, SUM_4, name='AEnt'),
  _keeps('entropy_bonus', 'entropy_bonus', 0.0, FORK_4, SUM_4, name='The entropy bonus'),
  Prediction('entropy_bonus_strong', 'A strong bonus costs success.', 'final_success', Below(0.0), (FORK_4,)),
  _keeps('adaptive_entropy', 'adaptive_entropy', 0.0, FORK_4, name='The adaptive bonus'),
  Prediction('ter', 'TER holds the entropy at its target.', 'target_error', Below(0.15), (FORK_4,), None, 'ter'),
  Prediction('model_based_entropy', 'The ledger controller holds the entropy at its target.', 'target_error', Below(0.15), (FORK_4,), None),
  Prediction('epo', 'Identity: released EPO is the entropy bonus.', 'entropy', Null(0.02), (FORK_4, SUM_4), 'entropy_bonus'),
  _keeps('epo', 'epo', 0.0, SUM_4, name='EPO'),
  _keeps('tea_rl', 'tea_rl', 0.0, FORK_4, SUM_4, name='TEA-RL'),
  # Advantages and rewards.
  Prediction('qae_06', 'A higher quantile keeps more entropy.', 'answers', Above(0.0), (SUM_4,), 'qae_04', 'qae'),
  _keeps('qae_06', 'qae', 0.0, SUM_4, name='QAE with K = 0.6'),
  Prediction('qae_04', 'Expected null: on-policy, QAE is GRPO but for its step size.', 'entropy', Null(0.05), (SUM_1,)),
  Prediction('canon_intra', 'Comparing within halves keeps entropy.', 'entropy', Above(0.0), (SUM_1, SUM_4), 'dr_grpo', 'canon'),
  Prediction('canon_inter', 'Comparing between halves spends entropy.', 'entropy', Below(0.0), (SUM_1, SUM_4), 'dr_grpo', 'canon'),
  _keeps('edge_grpo', 'edge_grpo', 0.0, SUM_4, name='EDGE-GRPO'),
  Prediction('empg', 'EMPG sharpens: less entropy than GRPO.', 'entropy', Below(0.0), (SUM_4,)),
  Prediction('seed_grpo', 'Expected null: with alpha 0.02 the factor is within 2 % of 1.', 'entropy', Null(0.05), (SUM_4,), 'dr_grpo'),
  Prediction('seed_grpo_strong', 'Weighing uncertain prompts less is slower.', 'rollouts', Above(0.0), (SUM_4,), 'dr_grpo', 'seed_grpo'),
  _keeps('ucas', 'ucas', 0.05, SUM_4, name='UCAS'),
  _keeps('ucas', 'ucas', 0.0, SUM_4, metric='answers', name='UCAS'),
  _keeps('riskpo', 'riskpo', 0.05, SUM_4, name='RiskPO'),
  Prediction('riskpo', 'The price of RiskPO is speed.', 'rollouts', Above(0.0), (SUM_4,)),
  Prediction('hicra', 'HICRA reaches the success sooner.', 'rollouts', Below(0.0), (FORK_4, SUM_4), 'dr_grpo', 'hicra'),
  _keeps('progrpo', 'progrpo', 0.0, SUM_4, metric='answers', name='ProGRPO'),
  Prediction('progrpo_strong', 'More diverse with a larger coefficient.', 'answers', Above(0.0), (SUM_4,), 'progrpo', 'progrpo'),
  Prediction('pear', 'PEAR lowers the entropy of the thinking.', 'entropy', Below(0.0), (SUM_4,), entry='pear'),
  _keeps('ear_res', 'ear_res', 0.0, SUM_4, name='Adv-Res'),
  _keeps('ear_clip', 'ear_clip', 0.0, SUM_4, name='Adv-Clip'),
  # Without labels.
  Prediction('ttrl', 'Majority votes drive the entropy to zero.', 'relative_fall', Above(0.8), (SUM_4,), None, 'ttrl'),
  Prediction('empo', 'Minimising answer entropy narrows pass@16.', 'pass_at_16_change', Below(0.0), (SUM_4,), None, 'empo'),
)  # fmt: skip

_LENGTH = 'every response of a table has the same length and none is truncated'
_REFERENCE = 'there is no reference policy'
_REPLAY = 'nothing is replayed or added to be imitated'
_SAMPLER = 'the policy that samples is the one that is trained'
_EQUAL = 'with responses of one length it is dr_grpo but for a factor on the learning rate'
# Methods of the catalog that no line has -> why they cannot act, or cannot differ, on a table.
EXCLUDED = {
  'soft_overlong': _LENGTH,
  'drop_truncated': _LENGTH,
  'tool_use': 'every response has the same number of steps, so that all of a group earn the same',
  'kl_in_reward': _REFERENCE,
  'kl': _REFERENCE,
  'adaptive_kl': _REFERENCE,
  't1': _REFERENCE,
  'ares_kl': _REFERENCE,
  'implicit_prm': 'there is no process model',
  'prime': 'there are no process rewards',
  'remax': 'there is no greedy response',
  'gae': 'there is no critic',
  'self_imitation': _REPLAY,
  'self_imitation_replay': _REPLAY,
  'self_imitation_warmup': _REPLAY,
  'imitate': _REPLAY,
  'off_policy_sequence_mask': _SAMPLER,
  'sampler_importance': _SAMPLER,
  'unit': 'it is for supervised learning, which no reward enters',
  'entropy_sft': 'it is for supervised learning, which no reward enters',
  'rloo': _EQUAL,
  'opo': _EQUAL,
  'gpg': _EQUAL,
  'reinforce_plus_plus_baseline': _EQUAL,
  'gspo_token': 'its gradient is that of gspo where all tokens of a response have one advantage',
}
