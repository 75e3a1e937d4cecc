"""The losses that stages train with, in the form that the training step takes: a `LossFn`.

Each function closes over a model and a frozen config and returns
`loss(params, context, batch, key) -> Loss`, with `batch: [batch, length]` int32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdtt_jax.causal.nll import causal_loss
from sdtt_jax.config import require
from sdtt_jax.diffusion.denoiser import MaskedDiffusion, WithInputs
from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.diffusion.nelbo import NelboConfig, denoising_terms, masked_batch
from sdtt_jax.distillation.alpha import AlphaConfig, alpha_terms
from sdtt_jax.distillation.coupled import CoupledDistillConfig, coupled_terms
from sdtt_jax.distillation.coupled_idlm import CoupledIdlmConfig, coupled_idlm_terms
from sdtt_jax.distillation.divergence import kl_fwd
from sdtt_jax.distillation.idlm import IdlmConfig, idlm_terms
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.mixture import MixtureConfig, mixture_terms
from sdtt_jax.distillation.mmd import Features, MmdConfig, mmd_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.trajectories import (
    Teacher,
    Trajectories,
    make_trajectories,
    noise_shown,
    trajectory_noise,
)
from sdtt_jax.keys import numbered_keys
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.exiting import EXIT_PARAMS, agreement_logits, layer_by_layer
from sdtt_jax.networks.lora import LoraConfig, with_adapters
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.ops.sequences import Sequences, arrange, number_counted
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.training.step import Loss, LossFn, Mean
from sdtt_jax.typing import Key, Logits, Tokens, Tree

# What the frozen parameters under adapters, or under exits, are called in the context.
BASE = "base"


def arranged(
    loss_of: Callable[[MaskedDiffusion], LossFn],
    diffusion: MaskedDiffusion,
    sequences: Sequences | None,
) -> LossFn:
    """A loss that finds in each batch's tokens where its texts, prompts and padding are.

    Args:
      loss_of: makes a model's loss, for example `functools.partial(teacher_loss, config=config)`.
      diffusion: the model.
      sequences: how the batches were packed; None: all positions are alike.
    """
    if sequences is None:
        return loss_of(diffusion)

    def loss(params: Tree, context: Tree, batch: Tree, key: Key) -> Loss:
        tokens = batch["tokens"] if isinstance(batch, dict) else batch
        model = diffusion.within(arrange(tokens, sequences))
        return loss_of(model)(params, context, batch, key)

    return loss


def lora_loss(loss: LossFn, config: LoraConfig) -> LossFn:
    """A loss in which only a network's adapters are trained.

    The context holds the frozen parameters, `base`, and what `loss` reads. Its `teacher_params`, if any,
    are adapters of the same base, so that teacher and student share one copy of it.

    Args:
      loss: the loss as a function of all parameters.
      config: the adapters' config.
    """

    def adapted(adapters: Tree, context: Tree, batch: Tree, key: Key) -> Loss:
        base, rest = _held(context, BASE), {name: x for name, x in context.items() if name != BASE}
        if "teacher_params" in rest:
            rest["teacher_params"] = with_adapters(base, rest["teacher_params"], config)
        return loss(with_adapters(base, adapters, config), rest, batch, key)

    return adapted


def _held(context: Tree, name: str = "teacher_params") -> Any:
    """What a context holds under a name, by default the teacher's parameters."""
    held = context if isinstance(context, Mapping) else {}
    require(
        name in held,
        f"This loss reads `{name}` from the context, which holds {', '.join(held) or 'nothing'}; "
        "`next_round(…).context` has teacher_params and dt, and of adapters `base` is the frozen network.",
    )
    return held[name]


def teacher_loss(diffusion: MaskedDiffusion, config: NelboConfig) -> LossFn:
    """The NELBO in nats per token (MDLM, arXiv 2406.07524), or the mean over masked tokens.

    Args:
      diffusion: the model to train.
      config: `weighting` "nelbo" or "even", and how times are drawn.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        del context
        terms = denoising_terms(diffusion, params, batch, key, config)
        tokens = number_counted(batch, diffusion.free)
        masked = terms.masked.sum().astype(jnp.float32)
        if config.weighting == "nelbo":
            return Loss(terms.total, tokens, {"masked_share": masked / tokens})
        bound = (terms.nll * terms.weight[:, None]).sum()
        # The loss is a mean over masked tokens, the bound one over all.
        return Loss(terms.total, masked, {"nelbo": Mean(bound, tokens)})

    return loss


def adaptation_loss(diffusion: MaskedDiffusion, config: NelboConfig) -> LossFn:
    """`teacher_loss` of a causal network that is turned into a denoiser (DiffuGPT, arXiv 2410.17891).

    Edges to later positions are opened at random, differently in every batch. The batch is
    `{"tokens": [batch, length] int32, "open": [batch] float32}`, where `open` is the share of those edges
    that are open in each text. Where it is 1, the network computes the same as under `teacher_loss`.

    Args:
      diffusion: the model to train, whose network is a `LlamaDenoiser`.
      config: as for `teacher_loss`.
    """
    denoiser = diffusion.denoiser

    def loss(params: Tree, context: Tree, batch: Tree, key: Key) -> Loss:
        tokens, share = batch["tokens"], batch["open"]
        key_edges, key = jax.random.split(key)
        uniform = jax.random.uniform(key_edges, (*tokens.shape, tokens.shape[1]), jnp.float32)
        opened: Any = WithInputs(denoiser, {"edges": uniform < share[:, None, None]})
        found = teacher_loss(dataclasses.replace(diffusion, denoiser=opened), config)
        total, weight, metrics = found(params, context, tokens, key)
        return Loss(total, weight, metrics | {"open_share": share.mean()})

    return loss


def open_share(step: int, annealing: int) -> float:
    """The share of edges to later positions that are open at a training step; it grows linearly to 1.

    Args:
      step: the step, counted from 0.
      annealing: steps until all edges are open; with 0 they are open from the first step on.
    """
    return min(step / annealing, 1.0) if annealing else 1.0


def judge_loss(
    network: CausalNetwork, bos_id: int, sequences: Sequences | None = None, every: int = 1
) -> LossFn:
    """Next-token negative log-likelihood in nats per token.

    Args:
      network: the causal network to train.
      bos_id: the token before the first one of every text.
      sequences: how the batches were packed; None: each is one text.
      every: n; only tokens 0, n, 2 n, … of a sequence are learnt, each in its role in the whole sequence.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        del context, key
        batch = jnp.asarray(as_rows(batch, network.config.vocab_size))
        # BOS and EOS say where texts and prompts end, so they are read before tokens are left out.
        arrangement = arrange(batch, sequences)
        if every > 1:
            batch, arrangement = jax.tree.map(lambda x: x[:, ::every], (batch, arrangement))
        total = causal_loss(network, params, batch, bos_id, arrangement)
        free = None if arrangement is None else arrangement.free
        return Loss(total, number_counted(batch, free), {})

    return loss


def distill_loss(diffusion: MaskedDiffusion, config: DistillConfig) -> LossFn:
    """SDTT's divergence per masked token (arXiv 2410.21035, algorithm 1), in nats for the KL divergences.

    The context holds `teacher_params` and `dt: [] float32`.

    Args:
      diffusion: the network and schedule that student and teacher share.
      config: divergence, teacher steps and trajectories.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        total, count = distillation_terms(
            diffusion, params, _held(context), batch, _held(context, "dt"), key, config
        )
        return Loss(total, count, {})

    return loss


def alpha_loss(diffusion: MaskedDiffusion, config: AlphaConfig) -> LossFn:
    """The Tsallis loss of the tokens that a call reveals, without a teacher; at alpha = 0 in nats per token.

    The arguments are those of `alpha_terms`.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        del context
        return Loss(*alpha_terms(diffusion, params, batch, key, config), {})

    return loss


def mixture_loss(
    diffusion: MaskedDiffusion, teacher: MaskedDiffusion, config: MixtureConfig
) -> LossFn:
    """The mixture's cross-entropy on what the teacher's calls reveal, in nats per token.

    The arguments are those of `mixture_terms`; the context holds `teacher_params`.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        fixed = _held(context)
        return Loss(*mixture_terms(diffusion, params, teacher, fixed, batch, key, config), {})

    return loss


def mmd_loss(diffusion: MaskedDiffusion, features: Features, config: MmdConfig) -> LossFn:
    """A loss whose gradient is the discrepancy's policy gradient, averaged over texts.

    Only the metric `reward` shows progress. The arguments are those of `mmd_terms`; the context holds
    `teacher_params`, the parameters of `features`.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        fixed = _held(context)
        total, reward = mmd_terms(diffusion, params, fixed, features, batch, key, config)
        return Loss(total, jnp.float32(len(batch)), {"reward": reward})

    return loss


def idlm_loss(diffusion: MaskedDiffusion, config: IdlmConfig) -> LossFn:
    """The sum of the student's and the fake's losses, in nats per token; the metrics hold each of the two.

    The arguments and the parameters are those of `idlm_terms`; the context holds `teacher_params`.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        fixed = _held(context)
        terms = idlm_terms(diffusion, params, fixed, batch, key, config)
        return _student_and_fake(*terms, number_counted(batch, diffusion.free))

    return loss


def coupled_idlm_loss(
    student: MaskedDiffusion, diffusion: MaskedDiffusion, config: CoupledIdlmConfig
) -> LossFn:
    """`idlm_loss` of a student that sees noise; only the shape of the batch matters.

    The arguments and the parameters are those of `coupled_idlm_terms`.
    """

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        shape, fixed = batch.shape, _held(context)
        terms = coupled_idlm_terms(student, diffusion, params, fixed, shape, key, config)
        return _student_and_fake(*terms, jnp.float32(batch.size))

    return loss


def _student_and_fake(student: jax.Array, fake: jax.Array, count: jax.Array) -> Loss:
    each = {"student_loss": student / count, "fake_loss": fake / count}
    return Loss(student + fake, count, jax.lax.stop_gradient(each))


def coupled_loss(
    diffusion: MaskedDiffusion,
    teacher: MaskedDiffusion,
    config: CoupledDistillConfig,
    round: int,
    noise_key: Key,
    length: int,
) -> LossFn:
    """Cross-entropy on the tokens that the teacher's trajectories end in, in nats per reached token.

    The batch holds `"index": [batch]` int32, the numbers of the trajectories, whose noise is drawn with
    `fold_in(noise_key, index)`. It also holds their ends, `"tokens": [batch, length]` int32, unless the
    teacher makes them on the spot. In hindsight `tokens` are the texts, and the batch also holds their noise,
    unless the teacher infers it on the spot. For anything made on the spot, and for soft targets, the context
    holds `teacher_params`.

    Args:
      diffusion: the student; it sees noise.
      teacher: the teacher, perhaps another network.
      config: one-shot or in rounds.
      round: counted from 1.
      noise_key: the key of the noise of all trajectories of the round.
      length: tokens in a sequence.
    """

    # The key is kept as NumPy words and wrapped again while tracing: a device array would become a constant
    # of the step, which compiling fetches to the host, and the training loop forbids that.
    words, impl = jax.device_get(jax.random.key_data(noise_key)), jax.random.key_impl(noise_key)

    def trajectories_of(context: Tree, batch: Tree) -> Trajectories:
        tokens = batch.get("tokens")
        if "noise" in batch:
            return Trajectories(batch["noise"], tokens)
        all_noise = jax.random.wrap_key_data(words, impl=impl)
        keys = numbered_keys(all_noise, batch["index"])
        alone = config.independent
        if tokens is not None and not config.hindsight:
            noise = trajectory_noise(diffusion, keys, length)
            return Trajectories(noise_shown(diffusion, noise, keys, independent=alone), tokens)
        made_by, calls = Teacher(teacher, _held(context)), config.trajectory(round)
        return make_trajectories(diffusion, made_by, keys, length, calls, tokens, independent=alone)

    def loss(params: Tree, context: Tree, batch: Tree, key: Key) -> Loss:
        trajectories = trajectories_of(context, batch)
        soft = Teacher(teacher, _held(context)) if config.soft_weight else None
        return Loss(*coupled_terms(diffusion, params, trajectories, key, config, round, soft), {})

    return loss


def exits_loss(diffusion: MaskedDiffusion, sequences: Sequences | None = None) -> LossFn:
    """KL(last layer ‖ exit) of a frozen network's exits, in nats per masked token and exit.

    The cross-entropy between exp(-KL) and each exit's prediction of it is added. The parameters are those of
    the exits; the context holds the network's, as `base`. The last layer's exit is not trained, so the
    output of the whole network does not change.

    Args:
      diffusion: the model, whose network is a `Denoiser`.
      sequences: how the batches were packed; None: all positions are alike.
    """
    network: Any = diffusion.denoiser

    def compare(logits: Logits, last: jax.Array, head: Tree) -> jax.Array:
        ours, theirs = (
            masked_log_probs(x, network.mask_id) for x in (logits, network.logits(head, last))
        )
        return kl_fwd(ours, theirs, network.mask_id + 1)

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        base, arrangement = context[BASE], arrange(batch, sequences)
        segments = None if arrangement is None else arrangement.segments
        model, config = diffusion.within(arrangement), NelboConfig(weighting="even")
        t, _, x_t = masked_batch(model, batch, key, config)
        sigma, head = diffusion.schedule.sigma(t), network.head_params(base)
        states, _ = layer_by_layer(network, base | {EXIT_PARAMS: params}, x_t, sigma, segments)
        # Texts first, so that on a mesh every device keeps its own.
        states = jnp.moveaxis(states, 0, 1)
        exits = states.shape[1] - 1

        def of_all(x: jax.Array) -> jax.Array:
            each = jnp.broadcast_to(x[:, None], (len(x), exits, *x.shape[1:]))
            return each.reshape(-1, *x.shape[1:])

        masked = (x_t == network.mask_id).astype(jnp.float32)
        early = states[:, :-1].reshape(-1, *states.shape[2:])
        rows, last = of_all(masked), of_all(states[:, -1])
        total, kl = weighted_loss(network, head, compare, early, rows, last, (head,))

        agrees = jax.lax.stop_gradient(jnp.exp(-kl))
        seen = jax.lax.stop_gradient(jnp.moveaxis(states[:, :-1], 1, 0))
        logits = jax.vmap(agreement_logits, (None, 0, 0))(
            params, jnp.arange(exits, dtype=jnp.int32), seen
        )
        said = optax.sigmoid_binary_cross_entropy(
            jnp.moveaxis(logits, 0, 1).reshape(agrees.shape), agrees
        )
        count = rows.sum()
        return Loss(total + (said * rows).sum(), count, {"kl": total / jnp.maximum(count, 1)})

    return loss
