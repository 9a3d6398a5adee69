"""What the interventions study found of each line, small enough to be committed: METHODS.md shows it beside the method.

`experiments.interventions` writes it as comparison.json of its folder; docs/comparison.json is the copy that `make docs` reads.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from entropy_jax.analysis.claims import Claim
from entropy_jax.analysis.forest import Effect
from entropy_jax.analysis.predictions import Prediction

FILE = 'comparison.json'


def comparison(
  differences: Mapping[str, Mapping[str, tuple[Effect, str]]],
  claims: Iterable[Claim],
  predictions: Sequence[Prediction],
  lines: Mapping[str, str],
) -> dict[str, Any]:
  """The record of a study.

  Args:
    differences: setting -> method -> (entropy at matched success minus GRPO's, verdict in a word).
    claims: judged, with the ids that the predictions give.
    predictions: what was predicted.
    lines: method -> objective.

  Returns:
    method -> {objective, entropy: setting -> {value, interval, verdict}, claims: [{statement, setting, verdict}]}; a value that is not
    finite, because the success was not reached, is null.
  """
  whose = {prediction.id(setting): (prediction.method, setting) for prediction in predictions for setting in prediction.settings}
  found: dict[str, Any] = {method: {'objective': line, 'entropy': {}, 'claims': []} for method, line in lines.items()}
  number = lambda x: round(x, 4) if math.isfinite(x) else None
  for setting, methods in differences.items():
    for method, (difference, verdict) in methods.items():
      interval = [number(end) for end in difference.interval]
      found[method]['entropy'][setting] = {'value': number(difference.value), 'interval': interval, 'verdict': verdict}
  for claim in claims:
    method, setting = whose[claim.id]
    found[method]['claims'].append({'statement': claim.statement, 'setting': setting, 'verdict': claim.verdict})
  return found


def write(file: pathlib.Path, found: Mapping[str, Any]) -> None:
  """The record as JSON, keys in the study's order."""
  file.write_text(json.dumps(found, indent=1) + '\n')
