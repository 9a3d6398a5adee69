import jax.numpy as jnp
import numpy as np

from entropy_jax.data import examples, source_bytes
from entropy_jax.training import byte_batches


class TestTraining:
  def test_rows_of_the_training_files_in_the_order_of_their_seed(self):
    found = byte_batches.training(length=33, num_steps=3, batch_size=2, seed=5, num_seeds=2)
    assert found.inputs.shape == found.target_BxT.shape == (2, 3, 2, 32) and found.inputs.dtype == jnp.int32 and bool(found.mask_BxT.all())
    rows = source_bytes.chunks(source_bytes.split_files(source_bytes.read(), 'train'), 33)
    for r in range(2):
      index = examples.scan_rows(examples.Examples({'row': rows}), batch_size=2, seed=5 + r, num_steps=3)
      np.testing.assert_array_equal(found.inputs[r], rows[index][..., :-1])
      np.testing.assert_array_equal(found.target_BxT[r], rows[index][..., 1:])


class TestHeldOut:
  def test_rows_of_other_files(self):
    found = byte_batches.held_out(length=33, num_rows=4, seed=0)
    assert found.inputs.shape == (4, 32) and bool(found.mask_BxT.all())
    row = bytes(np.asarray(found.inputs[1]).tolist())
    split = lambda name: b''.join(bytes([0]) + file.content for file in source_bytes.split_files(source_bytes.read(), name))
    assert row in split('test') and row not in split('train')
