"""What a run of reinforcement learning with verifiable rewards reads: the tokenizer, prompts with their references, rewards, solutions.

All of it is read and held against the lengths of the config before anything compiles. A row of a batch carries `index_B`, its place among
the questions, by which rewards find the reference.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_jax.data import answer_verifier, examples, hub_tokenizer, math_answers, questions, rewards
from entropy_jax.data.hub_tokenizer import HubTokenizer
from entropy_jax.data.tokenizers import in_rows
from entropy_jax.training import ranges
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

Rows = Mapping[str, np.ndarray]
Scored = tuple[np.ndarray, dict[str, float]]  # reward_B, and what is counted or added up over the batch


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Questions as the model sees them.

  Attributes:
    rows: their tokens, all of one length.
    texts: R prompts, special tokens spelt out.
    references: R answers.
    digest: of the source, the prompts and the tokenizer.
    num_left_out: questions whose prompt is longer than the length.
  """

  rows: examples.Examples
  texts: tuple[str, ...]
  references: tuple[str, ...]
  digest: str
  num_left_out: int

  def __len__(self) -> int:
    return len(self.texts)


def place(workdir: Path, name: str) -> str:
  """The path that a name in a config stands for: of what is there under the workdir, else as it stands."""
  return os.fspath(workdir / name) if (workdir / name).exists() else name


def read_tokenizer(folder: str, stop_tokens: str | None) -> HubTokenizer:
  """The folder's tokenizer, which also stops at these tokens, separated by blanks."""
  tokenizer = hub_tokenizer.load(folder)
  more = []
  for text in (stop_tokens or '').split():
    found = tokenizer.table.token_to_id(text)
    if found is None:
      known = [str(token) for token in tokenizer.table.get_added_tokens_decoder().values()]
      raise UserError(f'config: sampling.stop_tokens={stop_tokens!r}: the tokenizer has no token {text!r}.{nearest(text, known)}')
    more.append(found)
  return dataclasses.replace(tokenizer, stop_ids=tuple(dict.fromkeys([*tokenizer.stop_ids, *more])))


def prompt_texts(asked: Sequence[str], tokenizer: HubTokenizer, data: Mapping[str, Any]) -> tuple[str, ...]:
  """Every question in the template and, if the config says so, that in the folder's chat template."""
  with ranges.naming('data.template'):
    texts = questions.Questions(tuple(asked), ('',) * len(asked)).prompts(data['template'])
  if not data['chat']:
    if data['system'] is not None:
      raise UserError(f'config: data.system={data["system"]!r} needs data.chat=True; set it, or write the text into data.template.')
    return texts
  before = [] if data['system'] is None else [{'role': 'system', 'content': data['system']}]
  with ranges.naming('data.chat'):
    return tuple(tokenizer.chat([*before, {'role': 'user', 'content': text}]) for text in texts)


def _encode(tokenizer: HubTokenizer, data: Mapping[str, Any]) -> Callable[[str], list[int]]:
  """Chat templates spell out the beginning of sequence themselves."""
  return functools.partial(tokenizer.encode, bos=tokenizer.bos_id is not None and not data['chat'])


def read_prompts(part: str, data: Mapping[str, Any], tokenizer: HubTokenizer, workdir: Path) -> Prompts:
  """The questions of data.PART, 'train' or 'evaluation', as prompts.

  Raises:
    UserError: no such set or file, a wrong column, no prompt that fits.
  """
  given = data[part]
  with ranges.naming(f'data.{part}'):
    source = place(workdir, given['source'])
    columns = {'question': given['question'], 'answer': given['answer']}
    found = questions.load(source, split=given['split'], data_dir=place(workdir, data['data_dir']), limit=given['limit'], **columns)
  texts = prompt_texts(found.questions, tokenizer, data)
  with ranges.naming('data.prompt_length'):
    rows, kept = questions.tokenised(texts, _encode(tokenizer, data), pad_id=tokenizer.pad_id, length=data['prompt_length'])
  digest = hashlib.sha256(' '.join([found.digest, tokenizer.digest, rows.digest]).encode()).hexdigest()
  own = tuple(texts[row] for row in kept)
  return Prompts(rows, own, found.take(kept).references, digest, len(texts) - len(kept))


def read_solutions(config: Mapping[str, Any], tokenizer: HubTokenizer, workdir: Path) -> examples.Examples:
  """Prompts with solutions to be imitated, from the file of `warm_start`; those that do not fit the lengths are left out.

  Raises:
    UserError: no such file or column, or nothing that fits.
  """
  start, data, length = config['warm_start'], config['data'], config['sampling']['response_length']
  with ranges.naming('warm_start.source'):
    if start['source'] is None:
      raise UserError(f'None leaves nothing to imitate in num_steps={start["num_steps"]}; give a file, or num_steps=0.')
    source = place(workdir, start['source'])
    found = questions.load(source, question=start['question'], answer=start['solution'], whole=True)
  prompts = [_encode(tokenizer, data)(text) for text in prompt_texts(found.questions, tokenizer, data)]
  solutions = [tokenizer.encode(text, eos=True) for text in found.references]
  fits = [row for row in range(len(found)) if len(prompts[row]) <= data['prompt_length'] and len(solutions[row]) <= length]
  if len(fits) < start['batch_size']:
    raise UserError(
      f'config: warm_start.batch_size={start["batch_size"]} is more than the {len(fits)} rows of {start["source"]} that fit '
      f'data.prompt_length and sampling.response_length; give fewer, or longer lengths.'
    )
  cut = lambda ids, size, side: in_rows([ids[row] for row in fits], [''] * len(fits), size, side=side, pad_id=tokenizer.pad_id)
  prompt, response = cut(prompts, data['prompt_length'], 'left'), cut(solutions, length, 'right')
  return examples.Examples({
    'prompt_tokens_BxP': prompt.tokens,
    'prompt_mask_BxP': prompt.mask,
    'response_tokens_BxT': response.tokens,
    'response_mask_BxT': response.mask,
  })


def verifier_of(config: Mapping[str, Any]) -> answer_verifier.AnswerVerifier | None:
  """The verifier that the config asks for."""
  given = {key: value for key, value in config['verifier'].items() if key != 'enabled'}
  forms = [form.strip() for form in given.pop('forms').split(',') if form.strip()]
  with ranges.naming('verifier'):
    return answer_verifier.AnswerVerifier(forms=forms, **given) if config['verifier']['enabled'] else None


def check_rewards(config: Mapping[str, Any]) -> None:
  """Refuses rewards that cannot be summed, and a success that is none of them."""
  given, success = config['rewards'], config['evaluation']['success']
  if success not in given:
    raise UserError(f'config: evaluation.success={success!r} is none of the rewards {", ".join(given)}.{nearest(success, list(given))}')
  weights = [value['weight'] if isinstance(value, Mapping) else value for value in given.values()]
  if not any(weights):
    raise UserError('config: rewards: all weights are 0, which leaves nothing to train on; give one of them another.')
  if not config['verifier']['enabled'] and 'accuracy' in given:
    raise UserError('config: verifier.enabled=False, and rewards.accuracy is that of its verdict; enable it, or leave the reward out.')


def scorer(total: rewards.RewardSum, prompts: Prompts) -> Callable[[Sequence[str], Rows], Scored]:
  """(completions, rows of their prompts) -> rewards, and what they count: a `Verify` of training.language.

  Means of single rewards become sums, which are divided by the size of the batch with everything else that is counted.
  """

  def verify(completions: Sequence[str], rows: Rows) -> Scored:
    places = rows['index_B'].tolist()
    finished_B = rows.get('finished_B')
    asked, references = [prompts.texts[i] for i in places], [prompts.references[i] for i in places]
    reward_B, metrics = total(completions, references, prompts=asked, finished_B=finished_B)
    counted = ('reward/parsed', 'reward/timed_out', 'reward/rejected')
    return reward_B, {name: value if name in counted else value * len(completions) for name, value in metrics.items()}

  return verify


def success_of(total: rewards.RewardSum, name: str, prompts: Prompts) -> Callable[[Sequence[str], Rows], Scored]:
  """As `scorer`, 1 where the reward of this name is at least 1 and 0 elsewhere."""
  alone = scorer(rewards.RewardSum({name: dataclasses.replace(total.parts[name], weight=1.0)}, total.verifier), prompts)

  def verify(completions: Sequence[str], rows: Rows) -> Scored:
    reward_B, counts = alone(completions, rows)
    return (reward_B >= 1).astype(np.float32), counts

  return verify


def answers_of(verifier: answer_verifier.AnswerVerifier | None) -> Callable[[Sequence[str]], list[str | None]]:
  """Completions -> what they vote for, equal where answers are and None where there is none. Without a verifier it is the whole text."""
  if verifier is None:
    return lambda completions: [text.strip() or None for text in completions]
  return lambda completions: [math_answers.key(text) if text else None for text in verifier.answers(completions)]
