"""The stage that measures: texts from every model, judged; gain of every round; samples to look at."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.stages.context import Run
from experiments.stages.training import round_teacher
from experiments.stages.workdir import final, read_json, write_json
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.rounds import round_dt
from sdtt_jax.errors import UserError
from sdtt_jax.evaluation import generation, likelihood
from sdtt_jax.evaluation.batches import map_batches
from sdtt_jax.evaluation.gain import FLOORED, measure_gain
from sdtt_jax.keys import purpose_key, purpose_seed
from sdtt_jax.parallel import processes
from sdtt_jax.paths import write_bytes

SHOWN_STEPS = (4, 8, 16)
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Texts of one model at one number of steps.

    Attributes:
      tokens: `[texts, length]` int32.
      nll: `[texts]`, nats per token under the judge.
      nfe: mean network calls per batch.
    """

    tokens: np.ndarray
    nll: np.ndarray
    nfe: float


def evaluate(run: Run) -> None:
    """Writes results.json and samples.json; every finished item is kept in evaluation/."""
    rounds = _delivered_rounds(run)
    judge = run.delivered(run.workdir.judge, run.judge, "evaluate")
    folders = {"teacher": run.workdir.teacher} | {
        f"round_{n:02d}": run.workdir.round(n) for n in rounds
    }
    scored: dict[str, dict[int, Scored]] = {}
    for name, folder in folders.items():
        params = run.delivered(folder, run.denoiser, "evaluate")
        scored[name] = {n: _texts(run, name, params, judge, n) for n in _steps(run)}
    results: Record = {
        "teacher": {"steps": _table(run, scored["teacher"])} | _teacher_facts(run),
        "rounds": [
            _round_record(run, n, scored[f"round_{n:02d}"], scored["teacher"]) for n in rounds
        ],
        "baseline_ar": _baseline(run, judge),
        "data": _data_facts(run, judge),
        "num_texts": run.config.evaluation.num_texts,
        "length": run.config.data.length,
        "data_info": dataclasses.asdict(run.info),
    }
    last = f"round_{rounds[-1]:02d}" if rounds else None
    write_json(run.workdir.samples, _samples(run, scored["teacher"], scored.get(last or "")))
    write_json(run.workdir.results, results)


def add_timing(run: Run) -> None:
    """Puts the seconds of each stage into results.json."""
    if run.workdir.results.exists() and run.workdir.timing.exists():
        timing = read_json(run.workdir.timing)
        write_json(run.workdir.results, read_json(run.workdir.results) | {"timing": timing})


def is_evaluated(run: Run) -> bool:
    """Whether results.json speaks of the parameters that are there now."""
    if not (run.workdir.results.exists() and run.workdir.samples.exists()):
        return False
    results = read_json(run.workdir.results)
    return [record["round"] for record in results["rounds"]] == _delivered_rounds(run)


def _delivered_rounds(run: Run) -> list[int]:
    numbers = range(1, run.config.distill.num_rounds + 1)
    return [n for n in numbers if final(run.workdir.round(n)).exists()]


def _steps(run: Run) -> list[int]:
    shown = [n for n in SHOWN_STEPS if n <= run.config.data.length]
    return sorted({*run.config.evaluation.num_steps, *shown})


def _texts(run: Run, name: str, params: Any, judge: Any, num_steps: int) -> Scored:
    config = run.config.evaluation
    path = run.workdir.evaluation / f"{name}_{num_steps:04d}.npz"
    digest = params_digest(params)
    stored = _stored(path, digest, config.num_texts)
    if processes.agree(stored is not None):
        return _seen(stored, path)
    tokens, nfe = generation.sample_texts(
        run.diffusion,
        params,
        # One key for all models, so that they are compared text by text.
        purpose_key(run.config.seed, "evaluate.texts", num_steps),
        num_texts=config.num_texts,
        length=run.config.data.length,
        batch_size=config.batch_size,
        config=SamplerConfig(num_steps=num_steps, time_grid=config.time_grid),
    )
    nll = likelihood.judge_texts(run.judge, judge, tokens, run.tokenizer.bos_id, config.batch_size)
    run.say(
        f"  {name.replace('_', ' ')}, {num_steps} steps: generative perplexity {np.exp(nll.mean()):.2f}, "
        f"entropy {generation.unigram_entropy(tokens).mean():.3f}, {nfe:.1f} network calls"
    )
    if processes.is_first():
        content = io.BytesIO()
        np.savez(content, tokens=tokens, nll=nll, nfe=nfe, digest=np.array(digest))
        write_bytes(path, content.getvalue())
    return Scored(tokens, nll, nfe)


def _stored(path: Path, digest: str, num_texts: int) -> Scored | None:
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = Scored(file["tokens"], file["nll"], float(file["nfe"]))
            same = str(file["digest"]) == digest and len(found.tokens) == num_texts
    except (ValueError, KeyError, OSError):
        return None
    return found if same else None


def _seen(found: Any, path: Path) -> Any:
    """What process 0 has found, which the others must find too."""
    if found is None:
        raise UserError(f"Process {jax.process_index()} does not see {path}, but process 0 does.")
    return found


def _quality(run: Run, tokens: np.ndarray, nll: np.ndarray) -> Record:
    interval = generation.perplexity(nll, seed=run.config.seed)
    return {
        "gen_ppl": interval.value,
        "gen_ppl_low": interval.low,
        "gen_ppl_high": interval.high,
        "entropy": float(generation.unigram_entropy(tokens).mean()),
    }


def _table(run: Run, scored: dict[int, Scored]) -> Record:
    return {str(n): _quality(run, s.tokens, s.nll) | {"nfe": s.nfe} for n, s in scored.items()}


def _held_out(run: Run, limit: int) -> np.ndarray:
    """Held-out sequences spread evenly over the split: `[limit, length]` (0: all of them)."""
    size = len(run.validation_split)
    count = min(limit or size, size)
    return run.validation_split.gather(np.arange(count) * size // count)


def _teacher_facts(run: Run) -> Record:
    params = run.delivered(run.workdir.teacher, run.denoiser, "evaluate")
    tokens = _held_out(run, run.config.evaluation.validation_sequences)
    key = purpose_key(run.config.seed, "evaluate.nelbo")
    bound = likelihood.nelbo_texts(
        run.diffusion, params, tokens, key, run.config.evaluation.batch_size
    )
    return {"val_ppl": float(np.exp(bound.mean())), "params_digest": params_digest(params)}


def _round_record(
    run: Run, number: int, scored: dict[int, Scored], teacher: dict[int, Scored]
) -> Record:
    config = run.config.distill
    params = run.delivered(run.workdir.round(number), run.denoiser, "evaluate")
    paired = {
        str(n): generation.paired_log_ratio(scored[n].nll, teacher[n].nll, seed=run.config.seed)
        for n in scored
    }
    return {
        "round": number,
        "dt": round_dt(config, number),
        "num_distill_steps": config.num_distill_steps,
        "divergence": config.divergence,
        "steps": _table(run, scored),
        "paired": {
            n: {"log_ratio": p.value, "low": p.low, "high": p.high} for n, p in paired.items()
        },
        "params_digest": params_digest(params),
    } | _gain(run, number, params)


def _gain(run: Run, number: int, params: Any) -> Record:
    config, settings = run.config.distill, run.config.evaluation
    if config.divergence not in FLOORED:
        return {"gain_share": None}
    path = run.workdir.evaluation / f"gain_{number:02d}.json"
    digest = params_digest(params)
    stored = read_json(path) if path.exists() else {}
    if processes.agree(stored.get("params_digest") == digest):
        return _seen(stored.get("gain"), path)
    gain = measure_gain(
        run.diffusion,
        params,
        run.delivered(round_teacher(run, number), run.denoiser, "evaluate"),
        _held_out(run, settings.gain_sequences),
        round_dt(config, number),
        purpose_key(run.config.seed, "evaluate.gain", number),
        config,
        num_trajectories=settings.gain_trajectories,
        batch_size=settings.batch_size,
    )
    record = {
        "gain_share": gain.share,
        "teacher_divergence": gain.teacher,
        "student_divergence": gain.student,
        "floor": gain.floor,
    }
    run.say(
        f"  round {number}: divergence from the targets {gain.teacher:.5f} (teacher) to "
        f"{gain.student:.5f} (student), floor {gain.floor:.5f}: gain share {gain.share:.2f}"
    )
    write_json(path, {"params_digest": digest, "gain": record})
    return record


def _autoregressive_texts(run: Run, judge: Any, count: int) -> np.ndarray:
    """`[count, length]` int32, sampled with a KV cache."""
    key = purpose_key(run.config.seed, "evaluate.baseline")
    texts = generation.proceed(run.judge, run.config.data.length, key)
    bos = np.full((count, 1), run.tokenizer.bos_id, np.int32)
    return map_batches(texts, judge, bos, run.config.evaluation.batch_size)[0][:, 1:]


def _baseline(run: Run, judge: Any) -> Record:
    config = run.config.evaluation
    tokens = _autoregressive_texts(run, judge, config.num_texts)
    score = functools.partial(
        likelihood.judge_texts,
        run.judge,
        judge,
        bos_id=run.tokenizer.bos_id,
        batch_size=config.batch_size,
    )
    held_out = _held_out(run, config.validation_sequences)
    record = _quality(run, tokens, score(tokens)) | {
        "val_ppl": float(np.exp(score(held_out).mean())),
        "nfe": run.config.data.length,
    }
    run.say(
        f"  autoregressive: generative perplexity {record['gen_ppl']:.2f}, entropy "
        f"{record['entropy']:.3f}, {record['nfe']} network calls, validation {record['val_ppl']:.2f}"
    )
    return record


def _data_facts(run: Run, judge: Any) -> Record:
    config = run.config.evaluation
    tokens = _held_out(run, config.num_texts)
    nll = likelihood.judge_texts(run.judge, judge, tokens, run.tokenizer.bos_id, config.batch_size)
    return _quality(run, tokens, nll) | {"count": len(tokens)}


def _samples(run: Run, teacher: dict[int, Scored], student: dict[int, Scored] | None) -> Record:
    """Texts to look at, and one generation state by state."""
    count, tokenizer = run.config.evaluation.show_texts, run.tokenizer
    shown = [n for n in SHOWN_STEPS if n in teacher]

    def decode(tokens: np.ndarray) -> list[str]:
        return [tokenizer.decode(row) for row in tokens[:count]]

    judge = run.delivered(run.workdir.judge, run.judge, "evaluate")
    texts: Record = {
        "teacher": {str(n): decode(teacher[n].tokens) for n in shown},
        "data": decode(_held_out(run, count)),
        "autoregressive": decode(_autoregressive_texts(run, judge, count)),
    }
    if student is not None:
        texts["student"] = {str(n): decode(student[n].tokens) for n in shown}
    last = max(_delivered_rounds(run), default=0)
    folder = run.workdir.round(last) if last else run.workdir.teacher
    num_steps = 8
    states = generation.sample_states(
        run.diffusion,
        run.delivered(folder, run.denoiser, "evaluate"),
        purpose_key(run.config.seed, "evaluate.animation"),
        run.config.data.length,
        SamplerConfig(num_steps=num_steps, time_grid=run.config.evaluation.time_grid),
    )
    mask = run.denoiser.mask_id
    frames = [
        [
            None if token == mask else piece
            for token, piece in zip(row, tokenizer.pieces(row), strict=True)
        ]
        for row in processes.to_host(states)
    ]
    who = f"student of round {last}" if last else "teacher"
    return {
        "length": run.config.data.length,
        "steps": shown,
        "texts": texts,
        "animation": {"title": f"{who}, {num_steps} steps", "frames": frames},
        "seed": purpose_seed(run.config.seed, "evaluate.texts"),
    }
