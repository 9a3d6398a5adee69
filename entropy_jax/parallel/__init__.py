"""The same numbers on any number of devices: pmap (replicated parameters), fsdp (sharded parameters), plain jit.

Losses and methods are written for the whole batch and know nothing of this folder. A training body compiles its functions through a
`Parallel`; `training.step` reads a `Split`. `make` is the door.
"""

from entropy_jax.parallel import mesh, pmapped
from entropy_jax.parallel.parallel import ROWS, STATE, WHOLE, Parallel, apart, check_rows
from entropy_jax.transform import nearest
from entropy_jax.types import UserError

MODES = {'pmap': pmapped.make, 'fsdp': mesh.fsdp, 'jit': mesh.plain}

__all__ = ['MODES', 'ROWS', 'STATE', 'WHOLE', 'Parallel', 'check_rows', 'make']


def make(name: str = 'pmap', num_devices: int = 0) -> Parallel:
  """The parallel mode of this name on the first num_devices devices.

  Args:
    name: 'pmap', 'fsdp', or 'jit', which is one device whatever there is.
    num_devices: 0 for all.
  """
  if name not in MODES:
    raise UserError(f'config.parallel={name!r} is not one of {", ".join(MODES)}.{nearest(str(name), list(MODES))}')
  mode = MODES[name](num_devices)
  return mode._replace(compile=apart(mode.compile))
