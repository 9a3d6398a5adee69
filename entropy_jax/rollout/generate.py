"""Sampling responses: one compiled loop of fixed shapes over the cached policy, which stops when every row has ended."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from entropy_jax.models.policy import Cache, Policy
from entropy_jax.ops import categorical
from entropy_jax.types import Params, UserError, VocabStat


@struct.dataclass
class Rollout:
  """B sampled responses of at most T tokens; slots after the end hold pad_id, False and 0."""

  tokens_BxT: jax.Array  # int32
  mask_BxT: jax.Array  # bool, sampled tokens, end of sequence included
  logp_BxT: jax.Array  # float32, under the sampling distribution (logits over the temperature)
  entropy_BxT: jax.Array  # float32, of the sampling distribution
  logp1_BxT: jax.Array  # float32, at temperature 1
  entropy1_BxT: jax.Array  # float32, at temperature 1
  finished_B: jax.Array  # bool, met the end of sequence within T tokens
  stats: Mapping[str, jax.Array] = struct.field(default_factory=dict)  # name -> [B, T] float32, of the sampling distribution


def row_keys(key: jax.Array, sequence_B: jax.Array) -> jax.Array:
  """A key of its own for every sequence: what it draws does not depend on which rows stand beside it, or on which device."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)


def sample(
  logits_BxV: jax.Array,
  key_B: jax.Array,
  *,
  temperature: float | jax.Array = 1.0,
  adjust: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """One token a row by the Gumbel trick, argmax_j (z_j / temperature + g_j), or argmax_j z_j at temperature 0.

  Args:
    logits_BxV: [B, V], may hold -inf.
    key_B: PRNG keys, one a row; unused at temperature 0.
    temperature: >= 0; a Python 0 is greedy, whose distribution is certain: log-prob and entropy 0.
    adjust: a function logits_BxV -> logits_BxV (`methods.samplers`) of the logits over the temperature (of the logits when greedy),
      from whose result the token is drawn; None for what came in.

  Returns:
    (token_B int32, logp_B, entropy_B of softmax(z / temperature), logp1_B, entropy1_B at temperature 1). The distribution that `adjust`
    made is reported nowhere: with it the token is drawn from another distribution than the one that its log-prob belongs to.
  """
  change = (lambda x: x) if adjust is None else adjust
  z = logits_BxV.astype(jnp.float32)
  if isinstance(temperature, (int, float)) and temperature == 0:
    token = jnp.argmax(change(z), axis=-1).astype(jnp.int32)
    logp1, entropy1 = categorical.token_log_prob_and_entropy(z, token)
    return token, jnp.zeros_like(logp1), jnp.zeros_like(entropy1), logp1, entropy1
  scaled = z / temperature
  noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, z.shape[1:], jnp.float32))(key_B)
  token = jnp.argmax(change(scaled) + noise_BxV, axis=-1).astype(jnp.int32)
  logp, entropy = categorical.token_log_prob_and_entropy(scaled, token)
  if isinstance(temperature, (int, float)) and temperature == 1:
    return token, logp, entropy, logp, entropy
  return token, logp, entropy, *categorical.token_log_prob_and_entropy(z, token)


def generate(
  policy: Policy,
  params: Params,
  prompt_tokens_BxP: jax.Array,
  prompt_mask_BxP: jax.Array,
  key: jax.Array,
  *,
  num_tokens: int,
  temperature: float | jax.Array = 1.0,
  eos_id: int | None = None,
  pad_id: int = 0,
  sequence_B: jax.Array | None = None,
  adjust: Callable[[jax.Array], jax.Array] | None = None,
  stats: Sequence[VocabStat] = (),
) -> Rollout:
  """Samples up to num_tokens tokens for each prompt; token t of sequence i uses the key fold_in(fold_in(key, i), t).

  Args:
    policy: the policy; only `start` and `step` are used.
    params: its parameters.
    prompt_tokens_BxP: int32, padded on the left.
    prompt_mask_BxP: bool.
    key: PRNG key.
    num_tokens: T >= 1.
    temperature: >= 0 of the sampling distribution softmax(z / temperature); a Python 0 is greedy.
    eos_id: the token after which a row ends; None for none (every row has T tokens).
    pad_id: what stands after the end.
    sequence_B: int32, which sequence of the whole batch each row is; None numbers the rows. Rows may be cut over devices or come in
      another order, and each samples the same response.
    adjust: as `sample`; local to each row.
    stats: what else is asked of the rows of logits, which are at hand here and cost another forward pass later; each fn called with float32
      logits over the temperature (with the logits where it is 0).

  Returns:
    A `Rollout`, whose log-probs, entropies and stats do not see `adjust`.

  Gradient: none is defined (the loop has no fixed length); score the tokens with `score` instead.
  Limits: the same result for any later stop of the loop: ended rows write nothing.
  """
  if num_tokens < 1:
    raise UserError(f'num_tokens is {num_tokens!r}: give the number of response tokens, at least 1.')
  if isinstance(temperature, (int, float)) and not temperature >= 0:
    raise UserError(f'temperature is {temperature!r}: give 0 for greedy or a positive number.')
  if prompt_tokens_BxP.shape != prompt_mask_BxP.shape or prompt_tokens_BxP.shape[1] < 1:
    raise UserError(
      f'prompt tokens have shape {prompt_tokens_BxP.shape} and their mask {prompt_mask_BxP.shape}: give both [B, P], P >= 1.'
    )
  B = prompt_tokens_BxP.shape[0]
  key_B = row_keys(key, jnp.arange(B, dtype=jnp.int32) if sequence_B is None else sequence_B)
  cache, logits_BxV = policy.start(params, prompt_tokens_BxP, prompt_mask_BxP, num_tokens)
  # Buffers are [T, B], so that each step writes one contiguous row.
  zeros = jnp.zeros((num_tokens, B), jnp.float32)
  empty = Rollout(
    tokens_BxT=jnp.full((num_tokens, B), pad_id, jnp.int32),
    mask_BxT=jnp.zeros((num_tokens, B), bool),
    logp_BxT=zeros,
    entropy_BxT=zeros,
    logp1_BxT=zeros,
    entropy1_BxT=zeros,
    finished_B=jnp.zeros(B, bool),
    stats={stat.name: zeros for stat in stats},
  )
  divisor = 1.0 if isinstance(temperature, (int, float)) and temperature == 0 else temperature

  def record(out: Rollout, t: jax.Array | int, logits_BxV: jax.Array) -> Rollout:
    active = ~out.finished_B
    key_now_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, t)
    token, *values = sample(logits_BxV, key_now_B, temperature=temperature, adjust=adjust)
    token = jnp.where(active, token, pad_id)
    logp, entropy, logp1, entropy1 = (jnp.where(active, x, 0.0) for x in values)
    said = {stat.name: jnp.where(active, stat.fn(logits_BxV.astype(jnp.float32) / divisor), 0.0) for stat in stats}
    return Rollout(
      tokens_BxT=out.tokens_BxT.at[t].set(token),
      mask_BxT=out.mask_BxT.at[t].set(active),
      logp_BxT=out.logp_BxT.at[t].set(logp),
      entropy_BxT=out.entropy_BxT.at[t].set(entropy),
      logp1_BxT=out.logp1_BxT.at[t].set(logp1),
      entropy1_BxT=out.entropy1_BxT.at[t].set(entropy1),
      finished_B=out.finished_B if eos_id is None else out.finished_B | (active & (token == eos_id)),
      stats={name: out.stats[name].at[t].set(x) for name, x in said.items()},
    )

  # The first token comes from the prompt's logits; each turn then reads the last token and samples the next, so that no
  # step of the model is wasted on the last token.
  Carry = tuple[jax.Array, Cache, Rollout]

  def unfinished(carry: Carry) -> jax.Array:
    t, _, out = carry
    # Without an end of sequence the condition is the same for all seeds of a vmapped run, and no carried array needs a select.
    return t < num_tokens if eos_id is None else (t < num_tokens) & ~jnp.all(out.finished_B)

  def turn(carry: Carry) -> Carry:
    t, cache, out = carry
    cache, logits_BxV = policy.step(params, cache, out.tokens_BxT[t - 1])
    return t + 1, cache, record(out, t, logits_BxV)

  _, _, out = jax.lax.while_loop(unfinished, turn, (jnp.int32(1), cache, record(empty, 0, logits_BxV)))
  return jax.tree.map(lambda x: x.T, out)
