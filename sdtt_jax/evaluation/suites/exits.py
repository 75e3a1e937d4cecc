"""The suite "exits": a threshold of early exits with a guarantee, calibrated on held-out text.

The threshold is stored with the checkpoint, where `early_exit` finds it by its bound, and so are the exits
if they are trained first.
"""

from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.evaluation.exits import (
    EXITS_FILE,
    calibrate,
    check_exits,
    store_exits,
    train_exits,
    with_exits,
)
from sdtt_jax.evaluation.record import Arrays, Json, Record
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import held_out, held_out_name, require_held_out, training_texts
from sdtt_jax.evaluation.unknown import log_unknown
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.learnt import not_stored, store_fitted
from sdtt_jax.model.masked import Model
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import check_batch_size


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    model, settings = subject.denoiser("exits"), subject.settings
    check_exits(model)
    require_held_out(subject)
    if settings.exit_training_steps:
        training_texts(model, "exit_training_text", settings.exit_training_text, subject.data, 1)
        if model.mesh is not None:
            check_batch_size(settings.batch_size, model.mesh)


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; a finished item is not computed again."""
    settings, model = subject.settings, subject.denoiser("exits")
    tokens, batch_size = held_out(subject), settings.batch_size
    log_unknown(record, model.tokenizer, tokens, "held-out text")
    bound, failure = settings.exit_bound, settings.exit_failure
    inputs = subject.inputs(model, [tokens]) | {"failure": failure}
    # What a stored threshold holds for.
    kind = {} if model.sequences is None else {"sequences": model.sequences.kind}
    exits, measured, how = None, model, "untrained"
    if steps := settings.exit_training_steps:
        exits, how = _trained(subject, model, record), f"trained, {steps} steps"
        measured = with_exits(model, exits)
        kind["exits"] = params_digest(exits)
    source = {"source": held_out_name(subject)}

    def compute() -> Json:
        key = purpose_key(settings.seed, "evaluate.exits")
        found = calibrate(
            measured, tokens, key, bound=bound, failure=failure, batch_size=batch_size
        )
        facts = {"kind": "diffusion", "bound": bound, "failure": failure, "num_texts": len(tokens)}
        layers = {"num_layers": model.config.num_layers}
        return facts | found._asdict() | layers | source | {"exits": how}

    name = f"exits/{'trained_' if exits else ''}bound_{bound}"
    result = record.item(name, inputs | kind, compute, source)
    record.log(
        f"  {result['layers']:.2f} of {result['num_layers']} layers on average, and "
        f"{result['disagreement']:.4f} of the likeliest tokens change"
    )
    if why := not_stored(model, tokens.shape[1], "promise is"):
        record.log(f"  not stored for --early_exit: {why}")
    elif model.folder is not None and processes.is_first():
        entry = {name: result[name] for name in ("threshold", "failure")} | kind
        if exits:
            store_exits(model, exits)
        path = store_fitted(model, EXITS_FILE, {str(bound): entry})
        record.log(f"  written to {path}: --early_exit={bound} uses it")


def _trained(subject: Subject, model: Model, record: Record) -> Arrays:
    """The trained exits; those of an earlier call that asked for the same are reused."""
    settings, steps = subject.settings, subject.settings.exit_training_steps
    size, name = settings.batch_size, settings.exit_training_text
    texts = training_texts(model, "exit_training_text", name, subject.data, steps * size)

    def compute() -> Arrays:
        return train_exits(model, texts, settings.seed, num_steps=steps, batch_size=size)

    inputs = subject.inputs(model, [texts], "training_texts") | {"steps": steps}
    if model.sequences is not None:
        inputs["sequences"] = model.sequences.kind
    return record.part("exits", inputs, "trained", compute)
