"""What models say, score and write, by every decoder; `tests/test_flags.py` runs it with JAX's flags."""

import functools
import sys
import traceback
from types import SimpleNamespace

import numpy as np

from sdtt_jax.diffusion.decoders import DECODERS
from sdtt_jax.keys import seed_key
from sdtt_jax.networks import CausalConfig, CausalNetwork, Denoiser, DenoiserConfig
from tests.worlds import as_causal, as_model, noisy_params

LENGTH = 8
SIZES = {"vocab_size": 11, "length": LENGTH, "num_layers": 1, "embed_dim": 8, "num_heads": 2}
OPTIONS = {
    "confidence": ":score=margin",
    "learnt": ":counts=3/2/2/1,temperatures=0.9",
    "remdm": ":eta=0.5",
    "blocks": ":length=4,start=prompt",
    "refine": ":window=4",
    "skeleton": ":every=4",
}
MORE = ("blocks:length=4,cache=dual,score=entropy,threshold=0.5", "grid:stop=eos:1")


def main() -> None:
    denoiser, network = Denoiser(DenoiserConfig(**SIZES)), CausalNetwork(CausalConfig(**SIZES))
    model = as_model(denoiser, noisy_params(denoiser, 0))
    tokenizer = SimpleNamespace(bos_id=0, eos_id=1, digest="", encode_part=lambda _: np.zeros(0))
    judge, key = as_causal(network, noisy_params(network, 1), tokenizer), seed_key(3)
    tokens = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH) % 11
    helpers = {"causal": judge, "denoiser": model}
    calls = {
        "log_probs": lambda: model.log_probs(np.where(tokens % 2, tokens, model.mask_id)),
        "score": lambda: model.score(tokens, key),
        "causal sample": lambda: judge.sample(key, 2, 4),
        "causal log_probs": lambda: judge.log_probs(tokens),
        "causal score": lambda: judge.score(tokens),
    }
    for mode in (*(name + OPTIONS.get(name, "") for name in DECODERS), *MORE):
        accepted = DECODERS[mode.split(":")[0]].helper
        helper = helpers[accepted[0]] if accepted else None
        calls[mode] = functools.partial(model.sample, key, 2, 4, mode=mode, helper=helper)
    for name, call in calls.items():
        try:
            call()
        except Exception:
            sys.stderr.write(f"{name}:\n{traceback.format_exc()}\n")


if __name__ == "__main__":
    main()
