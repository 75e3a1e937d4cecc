"""Old names, and what they are called now. A rename adds one row here.

Using an old name raises an error that gives the new one: for a module when it is imported, for a flag from
the command that had it.
"""

import importlib.abc
import sys
from collections.abc import Sequence

# Old module -> new module.
MODULES = {
    "sdtt_jax.categorical": "sdtt_jax.ops.categorical",
    "sdtt_jax.configs": "sdtt_jax.config",
    "sdtt_jax.data.gpt2": "sdtt_jax.data.tokenizer",
    "sdtt_jax.data.ids": "sdtt_jax.data.tokenizer_base",
    "sdtt_jax.data.named": "sdtt_jax.data.corpora",
    "sdtt_jax.diffusion.choices": "sdtt_jax.diffusion.decoders.filling",
    "sdtt_jax.diffusion.filling": "sdtt_jax.diffusion.decoders.filling",
    "sdtt_jax.diffusion.masking": "sdtt_jax.diffusion.forward",
    "sdtt_jax.diffusion.planned": "sdtt_jax.diffusion.shared_program",
    "sdtt_jax.diffusion.retrieval": "sdtt_jax.networks.retrieval",
    "sdtt_jax.evaluation.batches": "sdtt_jax.model.batches",
    "sdtt_jax.evaluation.bounds": "sdtt_jax.diffusion.estimators",
    "sdtt_jax.evaluation.budget": "sdtt_jax.evaluation.suites.budget",
    "sdtt_jax.evaluation.diversity": "sdtt_jax.evaluation.quality",
    "sdtt_jax.evaluation.generation": "sdtt_jax.evaluation.suites.generation",
    "sdtt_jax.evaluation.latency": "sdtt_jax.evaluation.suites.latency",
    "sdtt_jax.evaluation.judging": "sdtt_jax.evaluation.judge",
    "sdtt_jax.evaluation.exit_training": "sdtt_jax.evaluation.exits",
    "sdtt_jax.evaluation.exact_round": "sdtt_jax.laboratory.optimum",
    "sdtt_jax.evaluation.exact_student": "sdtt_jax.laboratory.student",
    "sdtt_jax.evaluation.exact_world": "sdtt_jax.laboratory.world",
    "sdtt_jax.fused": "sdtt_jax.ops.head_loss",
    "sdtt_jax.interchange.causal": "sdtt_jax.model.causal",
    "sdtt_jax.interchange.hub_gpt2": "sdtt_jax.interchange.tables.gpt2",
    "sdtt_jax.interchange.loaded": "sdtt_jax.model.base",
    "sdtt_jax.interchange.loading": "sdtt_jax.interchange.load",
    "sdtt_jax.interchange.model": "sdtt_jax.model.masked",
    "sdtt_jax.interchange.placing": "sdtt_jax.interchange.layouts",
    "sdtt_jax.interchange.prompts": "sdtt_jax.model.prompts",
    "sdtt_jax.interchange.published": "sdtt_jax.interchange.layouts",
    "sdtt_jax.interchange.reference": "sdtt_jax.interchange.tables.reference",
    "sdtt_jax.interchange.tensors": "sdtt_jax.interchange.safetensors",
    "sdtt_jax.laboratory.masks": "sdtt_jax.laboratory.others",
    "sdtt_jax.laboratory.noisy_orders": "sdtt_jax.laboratory.orders",
    "sdtt_jax.laboratory.turns": "sdtt_jax.laboratory.student",
    "sdtt_jax.model.tokens": "sdtt_jax.ops.tokens",
    "sdtt_jax.models": "sdtt_jax.networks",
    "sdtt_jax.models.attention_kernels": "sdtt_jax.networks.attention.kernels",
    "sdtt_jax.models.attention_platforms": "sdtt_jax.networks.attention.dispatch",
    "sdtt_jax.models.autoregressive": "sdtt_jax.networks.causal",
    "sdtt_jax.models.causal_nll": "sdtt_jax.causal.nll",
    "sdtt_jax.models.decoding": "sdtt_jax.causal.sampler",
    "sdtt_jax.networks.attention.packed": "sdtt_jax.networks.attention.packed_kernel",
    "sdtt_jax.ops.packed": "sdtt_jax.ops.sequence_kinds",
    "sdtt_jax.processes": "sdtt_jax.parallel.processes",
    "sdtt_jax.reporting.chart_parts": "sdtt_jax.reporting.layout",
    "sdtt_jax.reporting.charts": "sdtt_jax.reporting.run_figures",
    "sdtt_jax.reporting.loss_charts": "sdtt_jax.reporting.run_figures",
    "sdtt_jax.reporting.round_charts": "sdtt_jax.reporting.run_figures",
    "sdtt_jax.reporting.svg": "sdtt_jax.reporting.drawing and sdtt_jax.reporting.scales",
    "sdtt_jax.rows": "sdtt_jax.ops.rows",
    "sdtt_jax.training.checkpoint": "sdtt_jax.checkpoints.store",
    "sdtt_jax.training.integrity": "sdtt_jax.checkpoints.digests",
    "sdtt_jax.training.progress": "sdtt_jax.progress",
    "sdtt_jax.training.replicas": "sdtt_jax.parallel.replicas",
    "sdtt_jax.training.seal": "sdtt_jax.checkpoints.metadata",
    "sdtt_jax.training.sharding": "sdtt_jax.parallel.mesh and sdtt_jax.parallel.placement",
    "experiments.benchmark_cases": "experiments.benchmarking.cases",
    "experiments.benchmark_config": "experiments.configs.benchmark",
    "experiments.benchmark_data": "experiments.benchmarking.data",
    "experiments.benchmark_flops": "sdtt_jax.networks.flops",
    "experiments.benchmark_report": "experiments.benchmarking.report",
    "experiments.benchmark_suites": "experiments.benchmarking.suites",
    "experiments.benchmark_worker": "experiments.benchmarking.worker",
    "experiments.benchmarking.flops": "sdtt_jax.networks.flops",
    "experiments.benchmarking.race": "experiments.benchmarking.report",
    "experiments.cli.lines": "experiments.cli.output",
    "experiments.context": "experiments.stages.context",
    "experiments.devices": "experiments.cli.devices",
    "experiments.evaluating": "sdtt_jax.evaluation",
    "experiments.evaluating.compare": "experiments.cli.compare",
    "experiments.evaluating.harness": "sdtt_jax.evaluation.harness",
    "experiments.evaluating.output": "sdtt_jax.evaluation.record",
    "experiments.evaluating.texts": "sdtt_jax.evaluation.texts",
    "experiments.evaluation_stage": "experiments.stages.evaluation",
    "experiments.lease": "experiments.stages.lease",
    "experiments.mirror": "experiments.stages.mirror",
    "experiments.naive": "experiments.benchmarking.naive",
    "experiments.replay": "experiments.stages.replay",
    "experiments.terminal": "experiments.cli.app",
    "experiments.training_stages": "experiments.stages.training",
    "experiments.watching": "experiments.cli.watch",
    "experiments.workdir": "experiments.stages.workdir",
    "launch.ahead.chips": "launch.accelerators and launch.ahead.topologies",
    "launch.ahead.one_round": "launch.ahead.distiller_flops",
    "launch.ahead.published": "launch.ahead.networks",
    "launch.chaos": "tools.chaos",
    "launch.faults": "tools.faults",
    "launch.fits": "tools.fits",
    "launch.floors": "tools.floors",
    "launch.pods.accelerators": "launch.accelerators",
    "launch.remat_table": "experiments.benchmark and launch.compile",
    "tools.remat_table": "experiments.benchmark and launch.compile",
    "tools.turns": "experiments.benchmark",
}

# Old name in a module that is still there -> what took its place.
NAMES = {
    "experiments.settings.JudgeSize": "sdtt_jax.networks.CausalConfig",
    "experiments.settings.ModelSize": "sdtt_jax.networks.DenoiserConfig",
}

# Old flag -> new flag, without the dashes.
FLAGS: dict[str, str] = {
    "judge_precision": "judge_compute_dtype",
    "latency_steps": "num_steps",
    "num_samples": "num_maskings",
    "precision": "compute_dtype",
}


def missing_name(module: str, name: str) -> Exception:
    """The error that a module's `__getattr__` raises for a name that the module does not have."""
    now = NAMES.get(f"{module}.{name}")
    if now is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    # `from module import name` would swallow an AttributeError's message.
    return ImportError(f"{module}.{name} is now {now}.")


class _MovedModules(importlib.abc.MetaPathFinder):
    """The last finder, asked when no other finds a module: it raises an error for modules that have moved."""

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: object = None) -> None:
        if name not in MODULES:
            return
        inner = [
            f"{old} is now {new}" for old, new in MODULES.items() if old.startswith(f"{name}.")
        ]
        # Without `name=`: `from package import module` would swallow the message.
        raise ModuleNotFoundError("; ".join([f"{name} is now {MODULES[name]}", *inner]) + ".")


sys.meta_path.append(_MovedModules())
