"""Modes as text: what `parse_mode` reads and refuses. Oracle: options written out by hand."""

import pytest

from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("confidnce", "mode='confidnce' is unknown .did you mean 'confidence'"),
        ("confidence:score=top", "score='top' is unknown"),
        ("grid:foo=1", "mode grid has no field 'foo'; known fields: stop"),
        ("confidence:scor=top", "mode confidence has no field 'scor'; did you mean 'score'"),
        ("confidence:treshold=0.5", "no field 'treshold'; did you mean 'threshold'"),
        ("confidence:0.5", "'0.5' is not of the form name=value"),
        ("grid:eta=1", "no field 'eta'"),
        ("remdm:eta=2", "eta must lie in"),
        ("remdm:eta=nan", "eta must lie in .*, not nan"),
        ("remdm:eta=-inf", "eta must lie in .*, not -inf"),
        ("remdm:stop=stable", "'stable' must be 'stable' with a number"),
        ("remdm:stop=filled:1", "'filled:1' must be 'filled' alone"),
        ("remdm:stop=eos:1+steady:2", "stop='steady' is unknown"),
        ("remdm:stop=entropy:0.5", "'entropy' is for decoders that read every masked"),
        ("remdm:stop=eos:1+eos:2", "has 'eos' twice"),
        ("remdm:stop=eos:1/0+filled+eos:2", "has 'eos' twice"),
        ("remdm:stop=stable:0", "'stable:0' would never stop a text; take a number above 0"),
        ("confidence:stop=entropy:0", "'entropy:0' would never stop a text"),
        ("confidence:stop=entropy:1e-46", "'entropy:1e-46' would never stop a text"),
        (
            "grid:stop=eos:1,stop=filled",
            "gives 'stop' twice; give it once, with '.' between predicates",
        ),
        ("confidence:score=margin,score=entropy", "gives 'score' twice; give it once[.]"),
        ("entropy-bounded:bound=much", "bound"),
        ("staged:until=0.7/0.3", "until='0.7/0.3' must be shares from 0 to 1, rising"),
        ("staged:until=half", "until='half' must be shares"),
        ("staged:until=1.5", "until='1.5' must be shares"),
        # A call that was forgotten is no call less.
        ("learnt:counts=1//2", "counts='1//2' must be whole numbers with '/' between them"),
        ("learnt:counts=1/2,temperatures=/0.9", "temperatures='/0.9' must be positive numbers"),
        # Python's own notation, 1_0 for 10, which may be a slip for 1.0.
        ("learnt:counts=1/2,temperatures=1_0", "temperatures='1_0' must be positive numbers"),
        ("learnt:counts=1_0/2", "counts='1_0/2' must be whole numbers"),
        ("staged:until=0.2_5", "until='0.2_5' must be shares"),
        ("confidence:threshold=0.9_5", "threshold must be of type float, not '0.9_5'"),
        ("grid:stop=stable:1_0", "'stable:1_0' must be 'stable' with a number"),
    ],
)
def test_a_mode_that_is_none_is_refused_by_name(mode, said):
    with pytest.raises(ConfigError, match=said):
        SamplerConfig(4, mode=mode)


@pytest.mark.parametrize(
    ("mode", "counts", "scales"),
    [
        ("learnt:counts=64", (64,), ()),
        ("learnt:counts=64/", (64,), ()),
        ("learnt:counts=1/2,temperatures=0.9", (1, 2), (0.9,)),
    ],
)
def test_a_word_that_looks_like_a_number_is_one_only_where_the_option_is(mode, counts, scales):
    options = parse_mode(mode).options
    assert (options.tokens, options.scales) == (counts, scales)
    assert parse_mode("confidence:threshold=0.5").options.threshold == 0.5
