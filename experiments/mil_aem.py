"""Attention-entropy maximisation (AEM) for multiple-instance learning: what lambda, the weight of the entropy, does to what is learnt.

Gated attention pooling is trained on few bags at every lambda of the config, held constant and annealed, beside mean pooling, from several
seeds: on bags of digits, and on the drawn bags of the method card. Criteria are code, in entropy_jax/analysis/mil_aem.py.

    python -m experiments.mil_aem --config=configs/mil_aem.py --workdir=DIR     # or :tiny

Leaves DIR/report.html (open it), DIR/claims.json, DIR/figures/, and a run folder a seed with all settings: DIR/TASK/seed_K. The same
command on the same DIR goes on where it stopped.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.mil_aem import DIGIT_TASKS, RANGES, TASKS
from entropy_jax.analysis import mil_aem, mil_runs
from entropy_jax.data import bag_kinds, digits, examples
from entropy_jax.data.bag_kinds import InstanceBags
from entropy_jax.models import mil
from entropy_jax.parallel import processes
from entropy_jax.training import app, bag_learners, optimizers, ranges, sweeps, tables
from entropy_jax.training.bag_learners import Setting, Splits
from entropy_jax.training.files import write_atomically
from entropy_jax.training.writers import METRICS
from entropy_jax.types import UserError

VALIDATION_SHARE = 0.25  # of the images of the training split, which no training bag has
DIGIT_FEATURES = 64


def main(config: Any, workdir: pathlib.Path) -> None:
  """Runs whatever of the study is not done yet, then writes claims, figures and the report."""
  started = time.monotonic()
  with processes.agreed():
    models = validate(config)
  run_study(config, models, workdir)
  with processes.agreed():  # so that the others wait for the report
    if jax.process_index() == 0:
      for claim in mil_aem.report(workdir, seconds=time.monotonic() - started):
        print(f'{claim.verdict:>16}  {claim.id}: {claim.value:.3g} [{claim.interval[0]:.3g}, {claim.interval[1]:.3g}]  ({claim.criterion})')
      print(f'report: {workdir / "report.html"}')


def validate(config: Any) -> dict[str, mil.MilConfig]:
  """Every mistake that the config can hold; compiles nothing.

  Returns:
    task -> its model, of the tasks that are run.

  Raises:
    UserError: key, value and what is allowed.
  """
  plain = app.resolve(config)
  ranges.check(plain, RANGES)
  ranges.check_launch(plain)
  run = [task for task in TASKS if plain[task]['num_steps']]
  if not run:
    raise UserError(f'config: num_steps=0 of {", ".join(TASKS)} leaves nothing to run; give one of them at least 1.')
  if 0.0 not in plain['coefs']:
    raise UserError(f'config: coefs={plain["coefs"]} has no 0, which all others are compared with; add it.')
  if len(plain['coefs']) > mil_runs.MOST_COEFS:
    raise UserError(f'config: coefs has {len(plain["coefs"])}; a figure can tell {mil_runs.MOST_COEFS} apart, so give at most that.')
  models = {}
  for task in run:
    settings = plain[task]
    if settings['num_steps'] % plain['log_every']:
      given = f'log_every={plain["log_every"]} does not divide {task}.num_steps={settings["num_steps"]}'
      raise UserError(f'config: {given}; give a divisor.')
    features = DIGIT_FEATURES if task in DIGIT_TASKS else settings['num_features']
    with ranges.naming(task):
      widths = (settings['width'],) * settings['depth']
      models[task] = mil.MilConfig(num_features=features, widths=widths, attention_width=plain['attention_width'])
      if settings['batch_size'] > settings['num_train']:
        raise UserError(f'batch_size={settings["batch_size"]} is more than num_train={settings["num_train"]}; give at most that.')
      draw(task, settings, seed=plain['seed'], num_seeds=1)  # it checks what it is given, and takes less than a second
  with ranges.naming('optimizer'):
    make_optimizer(plain, plain[run[0]]['num_steps'])
  return models


def make_optimizer(plain: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
  """AdamW of the config, for a run of so many updates."""
  given = dict(plain['optimizer'])
  return optimizers.make_optimizer('adamw', given.pop('learning_rate'), num_steps=num_steps, **given)


def draw_gaussian(settings: Mapping[str, Any], *, seed: int) -> Splits:
  """The bags of one seed, each split drawn anew; the kinds of the test bags are alike."""
  about = {name: settings[name] for name in ('size', 'num_features', 'shift', 'num_kinds', 'min_targets', 'max_targets')}
  found = []
  for i, name in enumerate(Splits._fields):
    share = 0.0 if name == 'test' else settings['first_share']
    found.append(bag_kinds.gaussian_bags(num_bags=settings[f'num_{name}'], seed=_seed_of(seed, i), first_share=share, **about))
  return Splits(*found)


def _seed_of(seed: int, i: int) -> int:
  """The seed of the bags of the i-th split."""
  return len(Splits._fields) * seed + i


@functools.cache
def _images() -> dict[str, digits.Digits]:
  """The images that the bags of each split are made of; no two splits share one."""
  whole = digits.read()
  train, test = (digits.split(whole, name) for name in digits.SPLIT_ENDS)
  cut = round((1.0 - VALIDATION_SHARE) * len(train.label_R))
  part = lambda chosen: digits.Digits(train.image_RxHxWxC[chosen], train.label_R[chosen])
  return {'train': part(slice(cut)), 'validation': part(slice(cut, None)), 'test': test}


def draw_digits(settings: Mapping[str, Any], *, seed: int) -> Splits:
  """The bags of one seed, pixels in [-1, 1], each split drawn anew; the kinds of the test bags are alike."""
  about = {name: settings[name] for name in ('kinds', 'min_size', 'max_size', 'min_targets', 'max_targets')}
  found = []
  for i, (name, images) in enumerate(_images().items()):
    share = 0.0 if name == 'test' else settings['first_share']
    of_split = {'num_bags': settings[f'num_{name}'], 'seed': _seed_of(seed, i), 'first_share': share}
    bags = bag_kinds.digit_kind_bags(images.label_R, **of_split, **about)
    drawn = bag_kinds.with_images(bags, images.image_RxHxWxC)
    found.append(drawn._replace(instances_BxKxF=(drawn.instances_BxKxF / (digits.MAX_LEVEL / 2) - 1.0).astype(np.float32)))
  return Splits(*found)


def draw(task: str, settings: Mapping[str, Any], *, seed: int, num_seeds: int) -> tuple[Splits, jax.Array]:
  """The bags of every seed, arrays [R, B, ...], and the rows of every update's batch, row_RxNxB."""
  make = draw_digits if task in DIGIT_TASKS else draw_gaussian
  splits = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *[make(settings, seed=seed + k) for k in range(num_seeds)])
  bags = examples.Examples({'row': np.arange(settings['num_train'])})
  about = {'batch_size': settings['batch_size'], 'num_steps': settings['num_steps']}
  return splits, jnp.asarray(np.stack([examples.scan_rows(bags, seed=seed + k, **about) for k in range(num_seeds)]))


def all_settings(plain: Mapping[str, Any]) -> tuple[list[str], Setting]:
  """The names of the settings, and the settings, arrays [K]."""
  named = mil_runs.setting_names(plain['coefs'], annealed=plain['annealed'])
  rows = [Setting(coef, float(annealed), 1.0) for coef, annealed in named.values()] + [Setting(0.0, 0.0, 0.0)]
  return [*named, mil_runs.MEAN_POOLING], jax.tree.map(lambda *x: jnp.asarray(x, jnp.float32), *rows)


def program(model: mil.MilConfig, log_every: int, tx: optax.GradientTransformation) -> Callable[..., tuple[sweeps.Curves, jax.Array]]:
  """(key_R, splits of every seed, row_RxNxB, settings) -> Curves [R, K] and the attention weights of the first seed's test bags [K]."""
  fresh = mil.bag_classifier(model)

  def run(key_R: jax.Array, splits_R: Splits, row_RxNxB: jax.Array, setting_K: Setting) -> tuple[sweeps.Curves, jax.Array]:
    def one(index: jax.Array, setting: Setting) -> sweeps.Curves:
      splits, row_NxB = jax.tree.map(lambda x: x[index], (splits_R, row_RxNxB))
      learner = bag_learners.bag_learner(model, splits.train, setting)
      return sweeps.train(
        learner, learner.init(key_R[index]), bag_learners.updates(row_NxB, setting), splits, tx=tx, log_every=log_every
      )

    curves = sweeps.over_runs(one, row_RxNxB.shape[0], setting_K, at_a_time=sweeps.runs_at_a_time())
    shown = jax.tree.map(lambda x: x[0, : mil_runs.NUM_SHOWN], splits_R.test)
    weight = lambda params, setting: bag_learners.attention(fresh, params, shown, setting)
    return curves._replace(params=()), jax.vmap(weight)(sweeps.of_seed(curves.params, 0), setting_K)

  return jax.jit(run, compiler_options=sweeps.compiler_options())


def run_study(config: Any, models: Mapping[str, mil.MilConfig], workdir: pathlib.Path) -> None:
  """Every task: one compiled program for all its settings and seeds, two tasks at a time; tasks of equal shapes share theirs."""
  plain = app.resolve(config)
  num_seeds, log_every = plain['num_seeds'], plain['log_every']
  names, setting_K = all_settings(plain)
  file = lambda task, k: workdir / task / f'seed_{k}' / METRICS
  missing = {task: [k for k in range(num_seeds) if not file(task, k).exists()] for task in models}
  todo = [task for task in models if missing[task] or not (workdir / task / mil_runs.EXAMPLES).exists()]
  programs: dict[Any, Callable[..., Any]] = {}
  for task in todo:
    shape = models[task], plain[task]['num_steps']
    if shape not in programs:
      programs[shape] = program(models[task], log_every, make_optimizer(plain, plain[task]['num_steps']))
  key_R = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(plain['seed']), k))(jnp.arange(num_seeds))

  def run(task: str) -> None:
    splits, row_RxNxB = draw(task, plain[task], seed=plain['seed'], num_seeds=num_seeds)
    curves, weight = jax.device_get(programs[models[task], plain[task]['num_steps']](key_R, splits, row_RxNxB, setting_K))
    for k in missing[task]:
      sweeps.write_seed(file(task, k), sweeps.of_seed(curves, k), {}, names, log_every=log_every)
    if jax.process_index() == 0:
      shown = jax.tree.map(lambda x: np.asarray(x[0, : mil_runs.NUM_SHOWN]), splits.test)
      write_atomically(workdir / task / mil_runs.EXAMPLES, json.dumps(example_bags(names, shown, weight)) + '\n')

  tables.two_at_a_time(run, todo, f'{len(names)} settings, {num_seeds} seeds, task')


def example_bags(names: list[str], bags: InstanceBags, weight_KxBxN: np.ndarray) -> dict[str, Any]:
  """What a figure needs of a few bags: instances, targets, labels, and the attention weights of every setting; ready for JSON."""
  rounded = lambda x: np.round(np.asarray(x, np.float64), 6).tolist()
  return {
    'instances_BxNxF': rounded(bags.instances_BxKxF),
    'mask_BxN': np.asarray(bags.mask_BxK).tolist(),
    'is_target_BxN': np.asarray(bags.is_target_BxK).tolist(),
    'label_B': np.asarray(bags.label_B).tolist(),
    'weight': {name: rounded(weight) for name, weight in zip(names, weight_KxBxN)},
  }


if __name__ == '__main__':
  app.run(main)
