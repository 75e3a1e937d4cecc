"""A text that appears in the terminal as it is denoised."""

import time
from collections.abc import Callable, Iterable

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from experiments.cli.tables import Terminal
from sdtt_jax.data import Tokenizer
from sdtt_jax.diffusion.sampler import SamplerState
from sdtt_jax.reporting.palette import counted

NEW, KNOWN, MASKED = "bold green", "", "bright_black"


def frame(tokens: np.ndarray, before: np.ndarray | None, tokenizer: Tokenizer) -> Text:
    """One state of one text: masks dim, what changed since the state `before` (if any) bright."""
    text = Text()
    changed = tokens != before if before is not None else np.zeros(tokens.shape, bool)
    for token, piece, new in zip(tokens, tokenizer.pieces(tokens), changed, strict=True):
        style = MASKED if token == tokenizer.mask_id else NEW if new else KNOWN
        text.append(piece, style)
    return text


def watch(
    states: Iterable[SamplerState],
    tokenizer: Tokenizer,
    num_steps: int,
    pause: float,
    console: Console | None = None,
    row: int = 0,
    finish: Callable[[np.ndarray], np.ndarray] = lambda tokens: tokens,
) -> SamplerState:
    """Shows one text of each state, in place of the one before it, and returns the last state.

    If standard output is not a terminal, only the last state is written. Each state is shown for at least
    `pause` seconds. The line below the text names the step out of `num_steps`, the sampler's. At the end,
    `finish` is applied to the last tokens, `[batch, length]` int32 (it may cut texts at EOS), and the result
    stays on the screen.
    """
    console = console or Terminal()
    before: np.ndarray | None = None
    with Live(console=console, auto_refresh=False) as live:
        for index, state in enumerate(states):
            began = time.monotonic()
            tokens = np.asarray(state.x)[row]
            step = min(index, num_steps)
            masked = int((tokens == tokenizer.mask_id).sum())
            calls = counted(int(state.nfe), "network call")
            line = f"step {step} of {num_steps}, {calls}, {counted(masked, 'token')} masked"
            live.update(
                Group(frame(tokens, before, tokenizer), Text(line, MASKED), ""), refresh=True
            )
            before = tokens
            if console.is_interactive:
                time.sleep(max(0.0, pause - (time.monotonic() - began)))
        text = finish(np.asarray(state.x))[row]
        live.update(Group(frame(text, text, tokenizer), Text(line, MASKED), ""), refresh=True)
    return state
