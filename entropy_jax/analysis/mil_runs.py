"""The folder of the AEM study as arrays by task and setting, [R, C] over seeds and measures, and the choices that validation bags make."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_jax.analysis import runs
from entropy_jax.training.sweeps import column

MEAN_POOLING = 'mean_pooling'
EXAMPLES = 'examples.json'
NUM_SHOWN = 4  # test bags whose attention is kept
MOST_COEFS = 7  # that a figure can tell apart beside mean pooling
SPLITS = ('train', 'validation', 'test')
MEASURES = ('loss', 'accuracy', 'auc', 'entropy', 'relative_entropy', 'instance_auc', 'instances_per_target')


def setting_names(coefs: Sequence[float], *, annealed: bool) -> dict[str, tuple[float, bool]]:
  """Name -> (lambda, whether it is annealed) of every setting with attention: lambda growing, the constant ones first.

  >>> list(setting_names((1.0, 0.0), annealed=True))
  ['aem_0', 'aem_1', 'annealed_1']
  """
  ordered = sorted(coefs)
  found = {f'aem_{coef:g}': (coef, False) for coef in ordered}
  return found | ({f'annealed_{coef:g}': (coef, True) for coef in ordered if coef > 0} if annealed else {})


@dataclasses.dataclass(frozen=True)
class Bagged:
  """One task.

  Attributes:
    task: its name.
    coef_K: lambda of the constant settings, growing from 0.
    has_annealed: whether each above 0 has been annealed too.
    log_step_C: updates made before each measure.
    measured: setting -> 'SPLIT/NAME' -> [R, C].
    examples: what is kept of a few test bags, see the experiment.
  """

  task: str
  coef_K: np.ndarray
  has_annealed: bool
  log_step_C: np.ndarray
  measured: Mapping[str, Mapping[str, np.ndarray]]
  examples: Mapping[str, Any]

  @property
  def constant(self) -> list[str]:
    """The settings of coef_K."""
    return list(setting_names(self.coef_K.tolist(), annealed=False))

  @property
  def annealed(self) -> list[str]:
    """The annealed settings, of coef_K[1:]; empty without them."""
    return [name.replace('aem_', 'annealed_') for name in self.constant[1:]] if self.has_annealed else []

  @property
  def plain(self) -> str:
    """Attention pooling with lambda = 0."""
    return self.constant[0]

  def final(self, setting: str, name: str) -> np.ndarray:
    """A measure at the end of training, [R]."""
    return self.measured[setting][name][:, -1]

  def grid(self, name: str) -> np.ndarray:
    """A measure at the end of training of all constant settings, [K, R]."""
    return np.stack([self.final(setting, name) for setting in self.constant])

  def chosen(self) -> np.ndarray:
    """Which lambda each seed's validation bags choose, [R] places in coef_K: the best AUC and, among equals, the lowest loss."""
    return _best(self.grid('validation/auc'), self.grid('validation/loss'))

  def at_choice(self, name: str) -> np.ndarray:
    """A measure of each seed at the lambda that it chooses, [R]."""
    choice_R = self.chosen()
    return self.grid(name)[choice_R, np.arange(choice_R.size)]

  def stopped_early(self, setting: str, name: str) -> np.ndarray:
    """A measure of a setting at the step that each seed's validation bags choose as `chosen` does, [R]."""
    measured = self.measured[setting]
    step_R = _best(measured['validation/auc'].T, measured['validation/loss'].T)
    return measured[name][np.arange(step_R.size), step_R]


def _best(auc_KxR: np.ndarray, loss_KxR: np.ndarray) -> np.ndarray:
  """The place of the largest AUC in every column and, among equals, of the smallest loss."""
  equal = auc_KxR == auc_KxR.max(axis=0)
  return np.argmin(np.where(equal, loss_KxR, np.inf), axis=0)


def load(workdir: pathlib.Path) -> dict[str, Bagged]:
  """The tasks of a finished study, by name."""
  config, found = runs.load_config(workdir), {}
  coefs = sorted(config['coefs'])
  names = [*setting_names(coefs, annealed=config['annealed']), MEAN_POOLING]
  for task in ('gaussian', 'digits', 'digit_kinds'):
    num_steps = config[task]['num_steps']
    if not num_steps:
      continue
    step_C = np.arange(config['log_every'], num_steps + 1, config['log_every'])
    seeds = [runs.load_metrics(workdir / task / f'seed_{k}') for k in range(config['num_seeds'])]
    measured = {
      name: {
        f'{split}/{key}': np.stack([seed[column(name, f'{split}/{key}')][step_C] for seed in seeds]) for split in SPLITS for key in MEASURES
      }
      for name in names
    }
    examples = json.loads((workdir / task / EXAMPLES).read_text())
    found[task] = Bagged(task, np.array(coefs), config['annealed'], step_C, measured, examples)
  return found
