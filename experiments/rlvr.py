"""Reinforcement learning with verifiable rewards of a language model from a Hugging Face folder, with any objective of METHODS.md.

Questions with answers in; out of them a trained model, what its entropy did meanwhile, and how many more held-out questions it answers:
pass@k, maj@k and avg@k before and after, with intervals over questions. Criteria are code, in entropy_jax/analysis/rlvr.py.

    python -m experiments.rlvr --config=configs/rlvr_gsm8k.py:tiny --workdir=DIR                # all of it, made on the spot, on a CPU
    python -m experiments.rlvr --config=configs/rlvr_gsm8k.py --workdir=DIR --config.model.folder=FOLDER --config.data.data_dir=TFDS
    ... --config.objective="grpo + clip_higher + top_entropy(0.2)"                              # see entropy_jax/compose.py
    ... --config.data.train.source=my.jsonl --config.data.evaluation.source=held_out.parquet    # your own questions

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, DIR/provenance.json, and for every seed DIR/seed_K with metrics.jsonl,
evaluations/, samples.jsonl and export/, a folder that `transformers` loads. The same command on the same DIR goes on where it stopped.
"""

import pathlib
import time
from typing import Any

import jax

from configs.rlvr_gsm8k import RANGES
from entropy_jax.analysis import rlvr_report
from entropy_jax.data import countdown_folder
from entropy_jax.parallel import processes
from entropy_jax.training import app, ranges, rlvr, rlvr_run


def main(config: Any, workdir: pathlib.Path) -> None:
  """Trains whatever is not done yet, then writes claims, figures and the report."""
  started, plain = time.monotonic(), app.resolve(config)
  with processes.agreed():
    plan = validate(config, jax.device_count(), jax.process_count())
    if plain['example']['write']:
      made = {key: value for key, value in plain['example'].items() if key != 'write'}
      countdown_folder.write(workdir / 'example', seed=plain['seed'], **made)
  with processes.agreed():
    material = rlvr.read(plain, workdir)
    if jax.process_index() == 0:
      for note in (*plan.warnings, *rlvr.notes(material)):
        print(f'note: {note}')
  rlvr_run.train(plain, plan, material, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in rlvr_report.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any, device_count: int = 1, process_count: int = 1) -> rlvr.Plan:
  """Every mistake that the config alone can hold; reads no file, compiles nothing.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  return rlvr.plan(plain, device_count, process_count)


if __name__ == '__main__':
  app.run(main)
