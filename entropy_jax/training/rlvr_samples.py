"""Responses of a policy to a few questions, token by token, as lines of JSON that a report shows in colours."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropy_jax.data.hub_tokenizer import HubTokenizer
from entropy_jax.data.tokenizers import SPECIAL_CHARACTER
from entropy_jax.methods.advantages.group import grpo_advantage
from entropy_jax.ops import covariance
from entropy_jax.rollout.generate import Rollout
from entropy_jax.training.files import write_atomically
from entropy_jax.types import Params

Rows = Mapping[str, np.ndarray]
Draw = Callable[[Params, Rows, jax.Array], Rollout]
Verify = Callable[[Sequence[str], Rows], tuple[np.ndarray, Mapping[str, float]]]


def token_texts(tokens: Sequence[int], tokenizer: HubTokenizer) -> list[str]:
  """Each token's own text, special tokens spelt out; a replacement character for an id without a token."""
  known = lambda i: tokenizer.table.id_to_token(i) is not None
  return [tokenizer.table.decode([i], skip_special_tokens=False) if known(i) else SPECIAL_CHARACTER for i in tokens]


def records(
  sampled: Rollout, rows: Rows, prompts: Sequence[str], verify: Verify, tokenizer: HubTokenizer, *, group_size: int, shown: int
) -> list[dict[str, Any]]:
  """What is written of each response that is shown.

  Args:
    sampled: group_size responses to each row, as numpy arrays.
    rows: of the prompts, with index_B.
    prompts: texts, by index.
    verify: (texts, rows of their prompts) -> rewards and counts.
    group_size: responses to a prompt in succession, among which the advantage (GRPO's) is taken.
    shown: responses of each prompt that are written: those of the highest reward and of the lowest in turn.

  Covariances are those of all responses that were sampled, whether they are shown or not.
  """
  repeated = {name: np.repeat(x, group_size, axis=0) for name, x in rows.items()} | {'finished_B': np.asarray(sampled.finished_B)}
  reward_B = np.asarray(verify(tokenizer.decode_batch(np.asarray(sampled.tokens_BxT)), repeated)[0])
  group_B = np.arange(len(reward_B)) // group_size
  advantage_B = np.asarray(jax.jit(grpo_advantage)(reward_B, group_B))
  advantage_BxT = np.broadcast_to(advantage_B[:, None], sampled.mask_BxT.shape)
  score_BxT = np.asarray(jax.jit(covariance.token_covariance)(sampled.logp_BxT, advantage_BxT, sampled.mask_BxT))
  found = []
  for group, place in enumerate(rows['index_B'].tolist()):
    ranked = sorted(range(group * group_size, (group + 1) * group_size), key=lambda b: (-reward_B[b], b))
    best_and_worst = [b for pair in zip(ranked, reversed(ranked)) for b in pair][:shown]
    for b in dict.fromkeys(best_and_worst):
      real_T = sampled.mask_BxT[b]
      found.append({
        'prompt': prompts[place],
        'tokens': token_texts(sampled.tokens_BxT[b][real_T].tolist(), tokenizer),
        'entropy': [round(float(x), 6) for x in sampled.entropy_BxT[b][real_T]],
        'covariance': [round(float(x), 6) for x in score_BxT[b][real_T]],
        'advantage': float(advantage_B[b]),
        'reward': float(reward_B[b]),
        'finished': bool(sampled.finished_B[b]),
      })
  return found


def write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
  """Lines of JSON, replaced at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in found))


def read(path: Path) -> list[dict[str, Any]]:
  """What `write` wrote."""
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
