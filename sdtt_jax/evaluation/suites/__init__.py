"""The suites of an evaluation: each measures a subject and puts what it finds into a record.

A new suite is a module here, whose function `suite(subject, record)` computes items `NAME/…` of the record,
and a row in the table below. It may use every measure of sdtt_jax.evaluation.
"""

from collections.abc import Callable
from typing import NamedTuple

from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import (
    budget,
    cloze,
    exits,
    frontier,
    generation,
    given,
    latency,
    likelihood,
    schedule,
)
from sdtt_jax.evaluation.texts import require_held_out


class ReportTable(NamedTuple):
    """How a report lays out items of a record."""

    title: str  # of the table
    items: str  # the rows are the items whose names begin with this and a slash
    # Head and cell of each column, as in "texts {num_texts} | nats {nelbo:4}". Braces name a field of an
    # item: "{who}" is the model or setting, and a number is shown with its interval if it has one. ":4" asks
    # for four digits and no interval, ":ms" for milliseconds, ":bits" for bits where the field has nats,
    # ":reached" for "not reached" where it has none, ":bound" for "≤" in front of bounds. Columns without any
    # value are left out.
    row: str

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Head and cell of each column."""
        split = (column.partition("{") for column in self.row.split(" | "))
        return [(head.strip(), brace + cell) for head, brace, cell in split]


class Suite(NamedTuple):
    """One row of the table of suites."""

    # `run(subject, record)`, of a subject that `check` accepts; finished items are not computed again.
    run: Callable[[Subject, Record], None]
    help: str  # what it measures, for a command's help
    tables: tuple[ReportTable, ...]  # of the report
    compares: bool = True  # whether it may use the judge or the baseline
    # Raises an error for a subject that it cannot measure; called before the first of several suites runs.
    check: Callable[[Subject], None] = lambda _: None


TEXTS = (
    "texts {who} | calls {nfe} | tokens {scored_tokens} | perplexity {gen_ppl} | "
    "of the median text {gen_ppl_median:3} | entropy {entropy} | distinct-2 {distinct_2} | "
    "self-BLEU {self_bleu} | repeated 4-grams {repeated_4gram_rate} | MAUVE {mauve}"
)

SUITES: dict[str, Suite] = {
    "generation": Suite(
        generation.suite,
        "generative perplexity with entropy, self-BLEU, distinct n-grams, repetition, MAUVE, calls",
        (
            ReportTable("Generated texts", "generation/unconditional", TEXTS),
            ReportTable("Continued prompts", "generation/prompted", TEXTS),
        ),
        check=generation.check,
    ),
    "judge": Suite(
        given.suite,
        "scores any texts under the judge (--texts)",
        (ReportTable("Given texts", "judge", TEXTS),),
        check=given.check,
    ),
    "likelihood": Suite(
        likelihood.suite,
        "bounds on the perplexity of held-out text by several estimators; the causal model's exact value",
        (
            ReportTable(
                "Likelihood of held-out text",
                "likelihood",
                "estimator {who} | text {num_texts} × {length}, {source} | perplexity {perplexity:bound} | "
                "bits per token {bits_per_token:4} | masking error {masking_error:bits}",
            ),
        ),
        check=require_held_out,
    ),
    "frontier": Suite(
        frontier.suite,
        "perplexity at the entropy of real text, from several --temperatures, for each of --modes",
        (
            ReportTable(
                "Perplexity at the entropy of real text",
                "frontier/matched",
                "decoder {mode} | steps {num_steps} | calls {nfe} | perplexity {gen_ppl:reached} | "
                "temperature {temperature}",
            ),
            ReportTable(
                "Lowest clean number of calls: perplexity within 5 % of the checkpoint's best",
                "frontier/clean",
                "decoder {mode} | calls {clean_calls} | perplexity {gen_ppl} | best {best}",
            ),
        ),
        check=frontier.check,
    ),
    "schedule": Suite(
        schedule.suite,
        "how many tokens each of --num_steps calls should reveal, and at which temperature; stored for "
        "--mode=learnt",
        (
            ReportTable(
                "Learnt schedules: nats of a text above one token per call",
                "schedule",
                "calls {num_steps} | learnt {gap:4} | even counts {even_gap:4}",
            ),
        ),
        compares=False,
        check=schedule.check,
    ),
    "exits": Suite(
        exits.suite,
        "the threshold of early exits that keeps to --exit_bound; stored for --early_exit",
        (
            ReportTable(
                "Early exits, on the calibration texts",
                "exits",
                "exits {exits} | likeliest tokens that may change {bound:3} | that change {disagreement:3} | "
                "layers {layers:3} | of {num_layers} | texts {num_texts}",
            ),
        ),
        compares=False,
        check=exits.check,
    ),
    "budget": Suite(
        budget.suite,
        "whether the number of calls that a prompt needs can be predicted from it (--num_prompts)",
        (
            ReportTable(
                "Calls chosen by prompt, on prompts outside the fit",
                "budget",
                "nats that may be lost {delta:2} | steps {steps:3} | nats lost {excess:3} | "
                "same steps for all {fixed_steps} | nats lost {fixed_excess:3}",
            ),
        ),
        check=budget.check,
    ),
    "lambada": Suite(
        cloze.suite,
        "last words of texts, or multiple choice (--task, --task_file): perplexity and accuracy",
        (
            ReportTable(
                "Last words and choices",
                "lambada",
                "task {task} | how {who} | texts {num_texts} | perplexity {perplexity} | "
                "accuracy {accuracy} | by character {accuracy_normalised}",
            ),
        ),
        check=cloze.check,
    ),
    "latency": Suite(
        latency.suite,
        "seconds and tokens per second against a causal model of the same size with a key-value cache",
        (
            ReportTable(
                "Latency",
                "latency",
                "what {who} | batch {batch} | seconds {seconds} | tokens/s {tokens_per_second} | "
                "ms per call {seconds_per_call:ms} | calls {nfe} | compile s {compile_s}",
            ),
        ),
        check=lambda subject: subject.check_samplers(subject.settings.num_steps),
    ),
}
