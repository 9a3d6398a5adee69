"""Step time of each parallel mode over plain jit, in one run and in pairs; on one device a mode must cost next to nothing.

    python -m benchmarks.parallel [--num_devices=1] [--rounds=15]

A step is a whole reinforcement step of the countdown study (generate, verify, update, score) with its transformer, and a supervised step
of its warm start. In every round each mode makes one step in a new order; a ratio is of two steps of the same round, so that what else
the machine does meets both.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from configs.entropy_mechanism import get_config
from entropy_jax import catalog, parallel
from entropy_jax.data import tokenizers
from entropy_jax.models import presets, transformer
from entropy_jax.training import language, optimizers

PROMPT, RESPONSE = 13, 11


def rows_of(tokenizer: tokenizers.CharacterTokenizer, num_rows: int) -> dict[str, np.ndarray]:
  """Random problems and answers; what they say is no matter here."""
  rng = np.random.default_rng(0)
  rows = {f'{part}_tokens_Bx{axis}': rng.integers(3, tokenizer.vocab_size, (num_rows, length), np.int32) for part, axis, length in PARTS}
  return rows | {f'{part}_mask_Bx{axis}': np.ones((num_rows, length), bool) for part, axis, length in PARTS}


PARTS = (('prompt', 'P', PROMPT), ('response', 'T', RESPONSE))


def steps(mode: str, num_devices: int) -> dict[str, Callable[[], Any]]:
  """name -> a function that makes one step of this mode and waits for it."""
  layout, config = parallel.make(mode, num_devices), get_config().countdown
  tokenizer = tokenizers.CharacterTokenizer(tokenizers.COUNTDOWN_ALPHABET)
  policy = transformer.transformer_policy(presets.preset(config.model_preset, vocab_size=tokenizer.vocab_size, **config.model.to_dict()))
  tx, key = optimizers.make_optimizer('adam', 1e-4, max_grad_norm=1.0), jax.random.key(0)
  rng = np.random.default_rng(1)
  reinforcement = catalog.build(config.objective.to_dict())
  imitation = catalog.build({'advantages': [{'name': 'unit'}], 'surrogates': [{'name': 'reinforce'}]})

  def one(body: language.Body, objective: Any, num_sequences: int, num_rows: int) -> Callable[[], Any]:
    example = language.example_batch(num_sequences, PROMPT, RESPONSE)
    state = [language.initial_state(layout, policy, None, key, tx, objective, example)]
    rows = rows_of(tokenizer, num_rows)

    def step() -> Any:
      state[0] = jax.block_until_ready(body(state[0], rows, key)[0])

    return step

  verify = lambda answers, rows: (rng.integers(0, 2, len(answers)).astype(np.float32), {})
  body = language.reinforcement_body(
    layout,
    policy,
    reinforcement,
    tx,
    verify=verify,
    decode=tokenizer.decode_batch,
    group_size=config.group_size,
    num_tokens=RESPONSE,
    stop_ids=(tokenizers.EOS,),
  )
  size = config.warm_start.batch_size
  return {
    'reinforcement': one(body, reinforcement, config.num_prompts * config.group_size, config.num_prompts),
    'supervised': one(language.supervised_body(layout, policy, imitation, tx), imitation, size, size),
  }


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--num_devices', type=int, default=1)
  parser.add_argument('--rounds', type=int, default=15)
  given = parser.parse_args(argv)
  modes = {'jit': steps('jit', 1), 'pmap': steps('pmap', given.num_devices), 'fsdp': steps('fsdp', given.num_devices)}
  rng, device = np.random.default_rng(2), jax.devices()[0]
  print(f'{device.platform} ({device.device_kind}), {given.rounds} rounds')
  for name in modes['jit']:
    for step in modes.values():
      for _ in range(2):  # compiles, then warms up
        step[name]()
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(given.rounds):
      for mode in rng.permutation(list(modes)):
        started = time.perf_counter()
        modes[mode][name]()
        seconds[mode].append(time.perf_counter() - started)
    print(f'{name}: jit {np.median(seconds["jit"]) * 1e3:.1f} ms')
    for mode in ('pmap', 'fsdp'):
      ratio = np.array(seconds[mode]) / np.array(seconds['jit'])
      low, high = np.quantile(ratio, [0.25, 0.75])
      print(f'  {mode} x {given.num_devices} over jit: median ratio {np.median(ratio):.3f}, middle half {low:.3f} to {high:.3f}')


if __name__ == '__main__':
  main()
