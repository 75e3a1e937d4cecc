"""Working directories as a run leaves them, at the stages at which a report may be asked for."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = (4, 8, 16, 32, 64)
LENGTH = 64

VERSES = """
In the beginning, God created the heavens and the earth. The earth was formless and empty.
Darkness was on the surface of the deep and God’s Spirit was hovering over the surface of the
waters. God said, “Let there be light,” and there was light. God saw the light, and saw that it
was good. God divided the light from the darkness. God called the light “day”, and the darkness
he called “night”. There was evening and there was morning, the first day. He said to them, “Go
out of the city, and don’t turn aside to the right hand or to the left, for the people of the
land have done evil in my sight.” The king answered and said to the men who stood before him,
“Bring the vessels of silver and of gold into the house of Yahweh.” It happened in those days
that the children of Israel went up from Egypt, every man to his own tribe and to his own house.
"""

Workdir = Callable[..., Path]


def words(rng: random.Random, count: int) -> list[str]:
    pool = VERSES.split()
    start = rng.randrange(len(pool) - 12)
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += pool[start : start + rng.randrange(3, 9)]
        start = rng.randrange(len(pool) - 12)
    return chosen[:count]


def qualities(scale: float, entropy: float) -> dict[str, Any]:
    """A teacher's curve as measured for 512 text units, times `scale`."""
    perplexity = dict(zip(STEPS, (330.0, 243.0, 184.0, 164.0, 155.0), strict=True))
    result = {}
    for steps, base in perplexity.items():
        value = base * scale ** (1.6 if steps < 32 else 0.7)
        result[str(steps)] = {
            "gen_ppl": value,
            "gen_ppl_low": value * 0.965,
            "gen_ppl_high": value * 1.036,
            "entropy": entropy + 0.35 / steps,
            "nfe": steps * (1 - math.exp(-LENGTH / steps)),
        }
    return result


def results(rounds: int, log_ratio: float = -0.06) -> dict[str, Any]:
    entries = []
    for number in range(1, rounds + 1):
        change = log_ratio * number
        entries.append(
            {
                "round": number,
                "dt": 2.0**number / 128,
                "num_distill_steps": 2,
                "divergence": "kl-bwd",
                "teacher_divergence": 0.2351,
                "student_divergence": 0.2351 - 0.0081 * (0.3 + 0.12 * number),
                "floor": 0.2270,
                "gain_share": 0.3 + 0.12 * number,
                "steps": qualities(math.exp(change / 1.6), 3.66 - 0.02 * number),
                "paired": {
                    str(steps): {
                        "log_ratio": change * (1.0 if steps < 32 else 0.45),
                        "low": change * (1.0 if steps < 32 else 0.45) - 0.024,
                        "high": change * (1.0 if steps < 32 else 0.45) + 0.023,
                    }
                    for steps in STEPS
                },
                "params_digest": "0" * 64,
            }
        )
    return {
        "teacher": {"steps": qualities(1.0, 3.67), "val_ppl": 50.8},
        "rounds": entries,
        "baseline_ar": {"gen_ppl": 31.4, "entropy": 3.61, "val_ppl": 23.7, "nfe": 64},
        "data": {"entropy": 3.68, "gen_ppl": 23.7, "count": 512},
        "num_texts": 512,
        "length": LENGTH,
        "data_info": {"train_sequences": 16_384, "validation_sequences": 871},
        "timing": {
            "data": 11.2,
            "teacher": 251.0,
            "judge": 64.0,
            "distill": 138.4,
            "evaluate": 52.9,
        },
    }


def coupled(log_ratios: dict[int, float]) -> dict[str, Any]:
    """What results.json has on a noise-coupled student, by calls; the teacher's perplexity is 80 / calls."""

    def quality(gen_ppl: float, entropy: float) -> dict[str, Any]:
        return {"gen_ppl": gen_ppl, "entropy": entropy}

    return {
        "calls": {
            str(calls): {
                "teacher": quality(80 / calls, 3.68),
                "argmax": quality(44 / calls, 3.61),
                "drawn": quality(60 / calls, 3.7),
                "matched": quality(80 / calls * math.exp(ratio), 3.68)
                | {"log_ratio": ratio, "low": ratio - 0.05, "high": ratio + 0.05},
            }
            for calls, ratio in log_ratios.items()
        }
    }


def metrics(rounds: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    plan = [("teacher", 0, 900, 6.2, 2.4), ("judge", 0, 450, 6.2, 3.1)]
    plan += [("distill", r, 150, 0.26 * r, 0.22 * r) for r in range(1, rounds + 1)]
    lines = []
    for stage, number, steps, first, last in plan:
        for step in range(5, steps + 1, 5):
            mean = last + (first - last) * math.exp(-6 * step / steps)
            lines.append(
                {
                    "stage": stage,
                    "round": number,
                    "step": step,
                    "loss": mean * math.exp(rng.gauss(0, 0.04)),
                    "grad_norm": 1.0,
                    "lr": 0.02,
                    "tokens_per_second": 12_400.0,
                    "seconds": 0.33 * step,
                }
            )
    return lines


def samples(rounds: int) -> dict[str, Any]:
    rng = random.Random(2)

    def texts(count: int = 6) -> list[str]:
        return [" ".join(words(rng, 38)) for _ in range(count)]

    pieces = [" " + word for word in words(rng, LENGTH)]
    order = rng.sample(range(LENGTH), LENGTH)
    frames = []
    for step in range(9):
        known = set(order[: LENGTH * step // 8])
        frames.append([p if i in known else None for i, p in enumerate(pieces)])
    by_steps = {str(k): texts() for k in (4, 8, 16)}
    result: dict[str, Any] = {
        "length": LENGTH,
        "steps": [4, 8, 16],
        "texts": {"teacher": by_steps, "data": texts(), "autoregressive": texts()},
        "animation": {"title": "teacher, 8 steps", "frames": frames},
    }
    if rounds:
        result["texts"]["student"] = {str(k): texts() for k in (4, 8, 16)}
        result["animation"]["title"] = "student, 8 steps"
    return result


FIELDS = {
    "seed": 0,
    "data": {"corpus": "web_bible", "length": 64, "tokenizer": {"kind": "sentencepiece"}},
    "model": {"num_layers": 4, "embed": 128, "heads": 4, "time_conditioned": False},
    "teacher": {"num_steps": 900, "batch_size": 64, "optimizer": {"name": "muon", "lr": 0.02}},
    "distill": {"num_distill_steps": 2, "divergence": "kl-bwd", "dts": [0.015625, 0.03125]},
}

CONFIG = {"config": FIELDS, "config_file": "experiments/configs/demo.py"}


@pytest.fixture
def make_workdir(tmp_path: Path) -> Workdir:
    """Writes a working directory; `change_*` edit the files' contents before they are written."""

    def make(
        *,
        rounds: int = 3,
        log_ratio: float = -0.06,
        coupled_log_ratios: dict[int, float] | None = None,
        idlm_log_ratios: dict[int, float] | None = None,
        evaluated: bool = True,
        change_results: Callable[[dict[str, Any]], object] | None = None,
        change_samples: Callable[[dict[str, Any]], object] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Path:
        directory = tmp_path / "run"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config or CONFIG), encoding="utf-8")
        lines = "".join(json.dumps(line) + "\n" for line in metrics(rounds))
        (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
        if evaluated:
            measured, drawn = results(rounds, log_ratio), samples(rounds)
            if coupled_log_ratios:
                measured["coupled"] = coupled(coupled_log_ratios)
            if idlm_log_ratios:
                measured["coupled_idlm"] = coupled(idlm_log_ratios)
            if change_results:
                change_results(measured)
            if change_samples:
                change_samples(drawn)
            (directory / "results.json").write_text(json.dumps(measured), encoding="utf-8")
            (directory / "samples.json").write_text(json.dumps(drawn), encoding="utf-8")
        return directory

    return make
