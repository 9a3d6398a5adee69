"""A model to be trained and its data, made on the spot: what a user brings as a Hugging Face folder and JSON lines, for countdown.

The model is a Qwen2 decoder with random weights, the tokenizer is trained on the problems' own texts, with Qwen's special tokens and chat
template. Problems are split by `countdown.split_of`, so that no held-out problem is seen in training in any order of its numbers.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from entropy_jax.data import countdown, hub_tokenizer
from entropy_jax.models import hub
from entropy_jax.models.presets import preset
from entropy_jax.models.transformer import transformer_policy

MODEL, TRAIN, HELD_OUT, SOLUTIONS = 'model', 'train.jsonl', 'held_out.jsonl', 'solutions.jsonl'
VOCAB_SIZE = 272  # 256 bytes, 3 special tokens, and room for the words of the chat template


def write(
  folder: str | os.PathLike[str],
  *,
  num_numbers: int = 2,
  max_number: int = 50,
  max_target: int = 99,
  num_solutions: int = 2,
  model: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> None:
  """Makes FOLDER/model, a folder with all that `transformers` reads, and train.jsonl, held_out.jsonl and solutions.jsonl beside it.

  Args:
    folder: comes into being at once, when all of it is written; left as it is where it is there already.
    num_numbers, max_number, max_target: of the problems, see `countdown.enumerate_problems`.
    num_solutions: at most so many of each training problem's answers stand in solutions.jsonl, a line each, chosen at random.
    model: fields of `DecoderConfig` that replace those of the preset study_tiny.
    seed: of the weights and the choice of solutions.

  The columns are question, answer (of the first two: the problem itself, which the reward `countdown` reads) and solution. All processes
  of a run call it, and process 0 writes.
  """
  folder = Path(folder)
  if folder.exists():
    return
  problems = countdown.enumerate_problems(num_numbers=num_numbers, max_number=max_number, max_target=max_target)
  texts = {problem: countdown.prompt_text(*problem) for problem in problems}
  answers = [answer for given in problems.values() for answer in given]
  # The template's words more often than any pair of signs, so that each becomes a token.
  words = ['user\n', 'assistant\n'] * (2 * len(answers)) + [*texts.values(), *answers]
  tokenizer = hub_tokenizer.train(words, vocab_size=VOCAB_SIZE)
  sizes = {'vocab_size': VOCAB_SIZE, 'qkv_bias': True, 'max_length': 128}
  decoder = dataclasses.replace(preset('study_tiny'), **(sizes | dict(model or {})))
  params = jax.jit(transformer_policy(decoder).init)(jax.random.key(seed))
  partial = folder.with_name(folder.name + '.partial')
  if jax.process_index() == 0:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
  ids = {'eos_token_id': tokenizer.eos_id, 'pad_token_id': tokenizer.pad_id}
  hub.save(partial / MODEL, decoder, params, keys=ids)
  if jax.process_index() > 0:
    return
  hub_tokenizer.save(partial / MODEL, tokenizer)
  train = countdown.split_problems(problems, 'train')
  held_out = [problem for problem in problems if problem not in train]
  ask = lambda problem: {'question': texts[problem], 'answer': texts[problem]}
  _write_lines(partial / TRAIN, map(ask, train))
  _write_lines(partial / HELD_OUT, map(ask, _shuffled(held_out, seed)))
  rng = np.random.default_rng(seed)
  solved = [
    {'question': texts[problem], 'solution': answers[row]}
    for problem, answers in train.items()
    for row in rng.permutation(len(answers))[:num_solutions]
  ]
  _write_lines(partial / SOLUTIONS, solved)
  partial.rename(folder)


def _shuffled(problems: Sequence[countdown.Problem], seed: int) -> list[countdown.Problem]:
  """In an order in which the first few are as good a sample as any."""
  return [problems[row] for row in np.random.default_rng(seed).permutation(len(problems))]


def _write_lines(path: Path, records: Iterable[Mapping[str, str]]) -> None:
  path.write_text(''.join(json.dumps(record) + '\n' for record in records), encoding='utf-8')
