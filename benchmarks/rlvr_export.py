"""The exported model of a run of experiments.rlvr in `transformers`: the same answers to held-out questions, greedily, as ours gives.

    python -m benchmarks.rlvr_export RUN [--questions=128]

Needs the extra `bench` (transformers, torch). RUN is the workdir of a finished run; of its seed 0 the folder export/ is read by both, in
float32, and the texts that they write to each question are compared, and the logits over prompts and answers.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks import versus_transformers as versus
from entropy_jax.data import hub_tokenizer
from entropy_jax.models import hub
from entropy_jax.models.transformer import transformer_policy
from entropy_jax.rollout.generate import generate
from entropy_jax.training import rlvr, rlvr_run


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('run', type=Path)
  parser.add_argument('--questions', type=int, default=128)
  given = parser.parse_args(argv)
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  config = json.loads((given.run / 'config.json').read_text())
  folder = rlvr_run.export_folder(config, given.run / 'seed_0')
  if folder is None:
    sys.exit('the run has no export: give one whose config.export.folder is not None')
  prompts, length = rlvr.read(config, given.run).evaluation, config['sampling']['response_length']
  asked = {name: x[: given.questions] for name, x in prompts.rows.fields.items()}
  tokens, mask = asked['prompt_tokens_BxP'], asked['prompt_mask_BxP']

  tokenizer = hub_tokenizer.load(folder)
  shape, params = hub.load(folder, max_length=tokens.shape[1] + length)
  policy = transformer_policy(shape)
  how = {'num_tokens': length, 'temperature': 0, 'stop_ids': tokenizer.stop_ids, 'pad_id': tokenizer.pad_id}
  ours = jax.jit(functools.partial(generate, policy, **how))(params, tokens, mask, jax.random.key(0))
  answers = tokenizer.decode_batch(np.asarray(ours.tokens_BxT))

  model, words = versus.read(folder), transformers.AutoTokenizer.from_pretrained(folder)
  real = torch.from_numpy(mask.astype(np.int64))
  with torch.no_grad():
    out = model.generate(torch.from_numpy(tokens).long(), attention_mask=real, max_new_tokens=length, do_sample=False)
  theirs = _texts(words, out[:, tokens.shape[1] :].tolist(), tokenizer.stop_ids)

  whole, seen = np.concatenate([tokens, ours.tokens_BxT], axis=1), np.concatenate([mask, ours.mask_BxT], axis=1)
  difference = np.asarray(jax.jit(policy.logits)(params, whole, seen)) - versus.their_logits(model, whole, seen)
  worst, same = float(np.abs(difference)[seen].max()), sum(a == b for a, b in zip(answers, theirs, strict=True))
  print(f'| question | ours | transformers |\n|---|---|---|\n| {prompts.texts[0]!r} | {answers[0]!r} | {theirs[0]!r} |')
  print(json.dumps({'benchmark': 'rlvr_export', 'folder': str(folder), 'questions': len(answers), 'same': same, 'difference': worst}))
  sys.exit(0 if same == len(answers) and worst <= versus.LIMIT else 1)


def _texts(words: Any, rows: Sequence[list[int]], stop_ids: Sequence[int]) -> list[str]:
  """What stands before the first stop token of each row."""
  ends = [next((n for n, i in enumerate(row) if i in stop_ids), len(row)) for row in rows]
  return words.batch_decode([row[:end] for row, end in zip(rows, ends, strict=True)], skip_special_tokens=False)


if __name__ == '__main__':
  main()
