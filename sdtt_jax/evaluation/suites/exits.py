"""The suite "exits": the threshold of early exits that keeps a promise, calibrated on held-out text.

It is stored beside the checkpoint, where `early_exit` finds it by its bound.
"""

from sdtt_jax.evaluation.exits import EXITS, calibrate, check_exits
from sdtt_jax.evaluation.record import Json, Record, digest_of
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import held_out, held_out_name
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.learnt import store_fitted
from sdtt_jax.parallel import processes


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; a finished item is not computed again."""
    settings, model = subject.settings, subject.denoiser("exits")
    check_exits(model)
    tokens = held_out(subject)
    bound, failure = settings.exit_bound, settings.exit_failure
    inputs = {"model": model.fingerprint, "texts": digest_of([tokens]), "failure": failure}
    inputs |= {name: getattr(settings, name) for name in ("seed", "batch_size")}

    def compute() -> Json:
        found = calibrate(
            model,
            tokens,
            purpose_key(settings.seed, "evaluate.exits"),
            bound=bound,
            failure=failure,
            batch_size=settings.batch_size,
        )
        facts = {"kind": "diffusion", "bound": bound, "failure": failure, "num_texts": len(tokens)}
        source = {"num_layers": model.config.num_layers, "source": held_out_name(subject)}
        return facts | found._asdict() | source

    result = record.item(f"exits/bound_{bound}", inputs, compute)
    record.log(
        f"  {result['layers']:.2f} of {result['num_layers']} layers on average, and "
        f"{result['disagreement']:.4f} of the likeliest tokens change"
    )
    if model.folder is not None and processes.is_first():
        entry = {name: result[name] for name in ("threshold", "failure")}
        path = store_fitted(model, EXITS, {str(bound): entry})
        record.log(f"  written to {path}: --early_exit={bound} takes it")
