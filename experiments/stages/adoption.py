"""Models from elsewhere that a run takes for its teacher or judge, instead of training them."""

from typing import Any

from experiments.stages.context import Run
from experiments.stages.workdir import is_delivered
from sdtt_jax.config import differences, require, to_mapping
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.load import is_on_hub, load, load_denoiser, load_network
from sdtt_jax.networks.base import Network
from sdtt_jax.networks.kinds import kind_of, network_of


def check(run: Run, stage: str) -> None:
    """Checks what can be known of a model, before the data are prepared and without its parameters.

    The `checkpoint` of the stage "teacher" or "judge" names it; one that has been taken is not needed again.

    Raises:
      ConfigError: there is no model there, it is of another kind or size, or its texts were of another kind.
    """
    checkpoint = getattr(run.config, stage).checkpoint
    if not checkpoint or is_delivered(run.workdir.stage(stage)):
        return
    try:
        if is_on_hub(checkpoint):
            return  # the hub is not asked yet
        model = load_network(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"config.{stage}.checkpoint={checkpoint}: {error}") from None
    if stage == "judge":
        _ = run.judge  # refuses a denoiser
    else:
        # The size of the vocabulary is known only once the data are prepared.
        config, vocab_size = run.config, model.config.vocab_size
        wanted = run.denoiser if config.published else network_of(config.denoiser(vocab_size))
        _check_sizes(run, checkpoint, network_of(model.config), wanted)
    _check_texts(run, stage, model.facts)


def check_vocabulary(run: Run) -> None:
    """Checks that the judge that `judge.checkpoint` names is causal, of the run's vocabulary and texts."""
    checkpoint = run.config.judge.checkpoint
    if not checkpoint or is_delivered(run.workdir.judge):
        return
    _ = run.judge  # refuses a denoiser
    model = load_network(checkpoint)
    _check_texts(run, "judge", model.facts)
    if model.text_tokenizer.digest != run.tokenizer.digest:
        raise ConfigError(
            f"config.judge.checkpoint={checkpoint} has another vocabulary than the run; take a causal model "
            "with its tokenizer, or leave it out to have one trained."
        )


def adopt_teacher(run: Run, checkpoint: str) -> None:
    """Delivers an existing teacher, after checking that sizes, texts and vocabulary are those of the run."""
    model = load_denoiser(checkpoint, mesh=run.mesh)
    _check_sizes(run, checkpoint, model.denoiser, run.denoiser)
    _check_texts(run, "teacher", model.facts)
    if model.text_tokenizer.digest != run.tokenizer.digest:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} was trained with another vocabulary than "
            "config.tokenizer and config.data give; begin in another --workdir, with its own (of a run: "
            "--config.tokenizer.kind=file, and sentencepiece.model or tokenizers.json of its tokenizer/ as "
            "--config.tokenizer.file)."
        )
    run.log(f"  taken from {checkpoint}")
    params = run.shortened(model.params)
    run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher", source=checkpoint)


def adopt_judge(run: Run, checkpoint: str) -> None:
    """Delivers an existing judge."""
    check_vocabulary(run)
    run.log(f"  taken from {checkpoint}")
    has, length = run.judge.config.length, run.config.data.length
    if has < length:
        run.log(
            f"  its context is {has} tokens: it scores texts of {length} in windows, and as the baseline "
            "it writes beyond what it has learnt"
        )
    params = load(checkpoint, mesh=run.mesh).params
    run.deliver(run.workdir.judge, run.judge, params, stage="judge", source=checkpoint)


def _check_texts(run: Run, stage: str, facts: dict[str, Any]) -> None:
    """Checks that a model was trained on texts of the kind that this run has, as far as its facts say it.

    The copy that is delivered is read as a model of this run's texts ever after.
    """
    name = f"config.{stage}.checkpoint={getattr(run.config, stage).checkpoint}"
    every = facts.get("every", 1)
    require(
        every == 1,
        f"{name} models only one token in {every}, for mode=skeleton; give another model.",
    )
    stored = {"normalize": "normalize", "sequences": "sequences", "wrap": "begins_with_bos"}
    ours = {field: getattr(run.config.data, field) for field in stored}
    # Published configs do not say all of them, and earlier versions did not store them.
    theirs = {field: facts.get(fact, ours[field]) for field, fact in stored.items()}
    lines = differences(theirs, ours, "data.")
    require(
        not lines,
        f"{name} was trained on texts of another kind; give these fields the same values (the checkpoint's "
        "first):\n  " + "\n  ".join(lines),
    )


def _check_sizes(run: Run, checkpoint: str, network: Network, wanted: Network) -> None:
    """Checks that an existing teacher's network is of the kind and sizes that the config asks for."""
    if (kind := kind_of(network)) != (right := kind_of(wanted)):
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} is a {kind} model; the first teacher must be a {right}."
        )
    # Numerics may differ, and the length of a base: it has no position embeddings, or enough of them. The
    # vocabularies themselves are compared once the run has its own.
    free: dict[str, Any] = {"compute_dtype": "", "remat": "", "unroll": 0, "vocab_size": 0}
    free |= {"length": 0} if run.base is not None else {}
    lines = differences(to_mapping(network.config) | free, to_mapping(wanted.config) | free)
    if lines:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} is not the network that config.model and config.data "
            "ask for; give these fields the same values (the checkpoint's first):\n  "
            + "\n  ".join(lines)
        )
