"""Decoders: how a generation chooses which positions a network call reveals, and which it masks again.

A decoder is a set of options and some pure functions, one row of `DECODERS`:

* `plan` decides which call reveals which position before the first network call. At each call the head
  then runs only at that call's positions.
* `pick` chooses among the masked positions by what the network predicts there. No more calls are made once
  nothing is masked, so a generation may take fewer than it is allowed.
* `redo` masks revealed positions again, so that a later call can correct them.
* `step` makes its own calls, possibly also of another model, a `Helper`.

`SamplerConfig.mode` names a decoder and its options: "confidence", or
"confidence:score=margin,threshold=0.9".

It may use what `diffusion` may use, but not the sampler.
"""

import ast
import contextlib
import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdtt_jax.config import choose, from_mapping, nearest, number, require
from sdtt_jax.diffusion.decoders.base import Decoder, first_hitting_plan, no_plan
from sdtt_jax.diffusion.decoders.blocks import (
    Blocks,
    block_plan,
    check_blocks,
    no_blocks_yet,
    write_block,
)
from sdtt_jax.diffusion.decoders.confident import (
    Confidence,
    EntropyBounded,
    bounded_pick,
    confident_pick,
)
from sdtt_jax.diffusion.decoders.doubting import doubting_step, nothing_written
from sdtt_jax.diffusion.decoders.energy import Energy, energy_step
from sdtt_jax.diffusion.decoders.learnt import (
    Learnt,
    call_temperature,
    check_learnt,
    learnt_plan,
)
from sdtt_jax.diffusion.decoders.planned import FirstHitting, Grid, grid_plan
from sdtt_jax.diffusion.decoders.refine import Refine, check_rounds, draft_plan, refine_step
from sdtt_jax.diffusion.decoders.remasking import Remdm, remask_chances, remdm_plan
from sdtt_jax.diffusion.decoders.skeleton import (
    Skeleton,
    check_skeleton,
    skeleton_plan,
    skeleton_step,
)
from sdtt_jax.diffusion.decoders.speculative import Speculative, speculate
from sdtt_jax.diffusion.decoders.staged import Staged, staged_step
from sdtt_jax.diffusion.decoders.stopping import Stop, parse_stop
from sdtt_jax.tables import Rows


class Mode(NamedTuple):
    """A parsed mode; `SamplerConfig.mode` is its text."""

    text: str
    name: str  # the key in `DECODERS`
    decoder: Decoder
    options: Any  # a `decoder.options`
    stop: Stop | None  # from `stop=`, which ends a text before the calls are used up; None: never

    def __str__(self) -> str:
        return self.text

    @property
    def only_plans(self) -> bool:
        """Whether the decoder does no more than follow the plan that it makes before the first call.

        Examples:
          >>> [parse_mode(text).only_plans for text in ("grid", "confidence", "grid:stop=eos:1")]
          [True, False, False]
        """
        decoder = self.decoder
        more = decoder.pick, decoder.redo, decoder.step, decoder.temperature, self.stop
        return all(part is None for part in more)

    def with_options(self, options: Mapping[str, Any]) -> str:
        """The text with further options, by name; those that it gives itself are kept.

        Examples:
          >>> mode = parse_mode("learnt:temperatures=1/,stop=eos:1")
          >>> mode.with_options({"counts": "1/3", "temperatures": "0.9"})
          'learnt:counts=1/3,temperatures=1/,stop=eos:1'
        """
        _, words, stop = _split(self.text)
        words = {**options, **words, **({} if stop is None else {"stop": stop})}
        return f"{self.name}:" + ",".join(f"{option}={word}" for option, word in words.items())


def parse_mode(text: str) -> Mode:
    """The decoder that a mode names, its options, and what ends a text.

    Args:
      text: a name in `DECODERS`, then after a colon `name=value` options with commas, of which `stop=` is as
        in `stopping.Stop`.

    Raises:
      ConfigError: naming what is unknown or out of range.

    Examples:
      >>> parse_mode("confidence:score=margin,threshold=0.9").options
      Confidence(score='margin', threshold=0.9, order_temperature=0.0)
      >>> parse_mode("remdm:eta=0.1,stop=stable:2+eos:1").stop
      Stop(filled=False, stable=2, entropy=0.0, eos=1, bos=-1)
    """
    return _parsed(str(text), DECODERS.get(str(text).partition(":")[0]))


@functools.cache
def _parsed(text: str, row: Decoder | None) -> Mode:
    name, words, stop = _split(text)
    decoder = row or DECODERS[name]
    types = typing.get_type_hints(decoder.options)
    known = [field.name for field in dataclasses.fields(decoder.options)] + ["stop"]
    for word in words:
        hint = nearest(word, known) or f"known fields: {', '.join(known)}."
        require(word in known, f"mode {name} has no field {word!r}; {hint}")
    fields = {
        field: word if types.get(field) is str else _literal(word) for field, word in words.items()
    }
    options: Any = from_mapping(decoder.options, fields, f"mode {name}")
    ends = None if stop is None else parse_stop(stop, picks=decoder.pick is not None)
    return Mode(text, name, decoder, options, ends)


def _literal(word: str) -> Any:
    """The number (also nan or inf) or truth value that a word spells; else the word."""
    for read in (ast.literal_eval, float):
        with contextlib.suppress(ValueError, SyntaxError):
            return number(read, word)
    return word


def _split(text: str) -> tuple[str, dict[str, str], str | None]:
    """Name, options and `stop=` of a mode, as they are written."""
    name, colon, rest = text.partition(":")
    choose("mode", name, DECODERS)
    fields: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        field, equals, value = (word.strip() for word in part.partition("="))
        require(
            bool(field and equals and value),
            f"mode={text!r}: {part!r} is not of the form name=value, as in confidence:score=margin.",
        )
        require(
            field not in fields,
            f"mode={text!r} gives {field!r} twice; give it once"
            + (", with '+' between predicates." if field == "stop" else "."),
        )
        fields[field] = value
    stop = fields.pop("stop", None)
    return name, fields, stop


DECODERS: Rows[Decoder] = Rows(
    {
        "grid": Decoder(Grid, grid_plan, timed=True),
        "first-hitting": Decoder(FirstHitting, first_hitting_plan),
        "learnt": Decoder(Learnt, learnt_plan, check=check_learnt, temperature=call_temperature),
        "confidence": Decoder(Confidence, no_plan, confident_pick),
        "entropy-bounded": Decoder(EntropyBounded, no_plan, bounded_pick),
        "remdm": Decoder(Remdm, remdm_plan, redo=remask_chances, timed=True),
        "remdm-confidence": Decoder(
            Remdm,
            no_plan,
            step=doubting_step,
            begin=nothing_written,
            timed=True,
            finishes=False,
        ),
        "speculative": Decoder(Speculative, no_plan, step=speculate, helper=("causal", "denoiser")),
        "blocks": Decoder(
            Blocks, block_plan, step=write_block, begin=no_blocks_yet, check=check_blocks
        ),
        "refine": Decoder(Refine, draft_plan, step=refine_step, check=check_rounds, finishes=False),
        "staged": Decoder(Staged, first_hitting_plan, step=staged_step, helper=("denoiser",)),
        "skeleton": Decoder(
            Skeleton, skeleton_plan, step=skeleton_step, check=check_skeleton, helper=("causal",)
        ),
        "energy": Decoder(Energy, first_hitting_plan, step=energy_step, helper=("causal",)),
    }
)
