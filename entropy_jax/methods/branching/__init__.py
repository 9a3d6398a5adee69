"""What is done to responses after they were sampled and before they are rewarded: continued, corrected or branched."""

from entropy_jax.methods.branching.guided_correction import (
  Corrected,
  Correction,
  append_tokens,
  as_prompt,
  choose_correction,
  guided_correction,
  needs_correction,
)

__all__ = [
  'Corrected',
  'Correction',
  'append_tokens',
  'as_prompt',
  'choose_correction',
  'guided_correction',
  'needs_correction',
]
