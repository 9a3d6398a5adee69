"""A process to be killed: the tiny run of the loop's tests, slowed down so that there is time to hit it.

    python -m tests.chaos.tiny_victim WORKDIR [forgetful]     # forgetful: what it learns depends on the process, so that a kill shows
"""

import os
import sys
import time

from tests.training import tiny_run


def main(workdir, how=''):
  def body(state, batch, key):
    time.sleep(0.01)
    scale = 1.0 + os.getpid() % 97 * 1e-3 if how == 'forgetful' else 1.0
    return tiny_run.step(state, {'x': batch['x'] * scale}, key)

  def evaluate(state, key):
    time.sleep(0.02)
    return tiny_run.evaluate(state, key)

  tiny_run.run(workdir, num_steps=60, body=body, evaluate=evaluate, checkpoint_every=3)


if __name__ == '__main__':
  main(*sys.argv[1:])
