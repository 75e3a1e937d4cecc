"""Costs read from compiled programs. Oracles: counts by hand, and XLA's own where there is no loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.ahead.hlo import Collective, Module, kernel_flops
from launch.ahead.hlo_text import Instruction, Shape, device_groups, parse


def cost(function, *arguments, trips=lambda _: 1.0):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return Module(text, ("data",), (1,), trips).cost()


def ones(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_costs_two_flops_a_multiply_add():
    assert cost(lambda a, b: a @ b, ones(30, 50), ones(50, 70)).flops == 2 * 30 * 50 * 70


def test_a_scanned_body_counts_once_for_each_trip():
    """XLA's own analysis would see one of the twelve."""

    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    found = cost(layers, ones(16, 32), ones(12, 32, 32))
    assert found.flops == 12 * 2 * 16 * 32 * 32


def test_nested_loops_multiply():
    def layers(x, kernels):
        def twice(x, kernel):
            return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ kernel), x), None

        return jax.lax.scan(twice, x, kernels)[0]

    assert cost(layers, ones(16, 32), ones(3, 32, 32)).flops == 3 * 5 * 2 * 16 * 32 * 32


def test_a_loop_whose_count_only_the_data_know_is_asked_for():
    def loop(x, kernel, count):
        with jax.named_scope("some_rows"):
            return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ kernel), x)

    asked = []

    def trips(instruction):
        asked.append("some_rows" in instruction.attributes)
        return 7.0

    count = jax.ShapeDtypeStruct((), jnp.int32)
    found = cost(loop, ones(16, 32), ones(32, 32), count, trips=trips)
    assert asked == [True]
    assert found.flops == 7 * 2 * 16 * 32 * 32


# How the TPU compiler writes the product of [8, 64] and a matrix that is split over 16 devices by rows: the
# parts are passed round, and each iteration multiplies with two of them.
PASSED_ROUND = """HloModule passed_round

%condition (p: (f32[8,32], s32[])) -> pred[] {
  %p = (f32[8,32]{1,0}, s32[]) parameter(0)
  %bound = s32[] constant(16)
  %index = s32[] get-tuple-element(%p), index=1
  ROOT %compare = pred[] compare(%index, %bound), direction=LT
}

%body (q: (f32[8,32], s32[])) -> (f32[8,32], s32[]) {
  %q = (f32[8,32]{1,0}, s32[]) parameter(0)
  %two = s32[] constant(2)
  %sum = f32[8,32]{1,0} get-tuple-element(%q), index=0
  %old = s32[] get-tuple-element(%q), index=1
  %new = s32[] add(%old, %two)
  %rows = f32[8,4]{1,0} constant({...})
  %part = f32[4,32]{1,0} constant({...})
  %first = f32[8,32]{1,0} dot(%rows, %part), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %second = f32[8,32]{1,0} dot(%rows, %part), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %both = f32[8,32]{1,0} add(%first, %second)
  %total = f32[8,32]{1,0} add(%sum, %both)
  ROOT %tuple = (f32[8,32]{1,0}, s32[]) tuple(%total, %new)
}

ENTRY %main (a: (f32[8,32], s32[])) -> (f32[8,32], s32[]) {
  %a = (f32[8,32]{1,0}, s32[]) parameter(0)
  ROOT %while = (f32[8,32]{1,0}, s32[]) while(%a), condition=%condition, body=%body
}
"""


def test_a_product_whose_operand_is_passed_round_is_as_dear_as_the_whole():
    found = Module(PASSED_ROUND, ("data",), (1,), lambda _: 1.0).cost()
    assert found.flops == 2 * 8 * 64 * 32


# How the TPU compiler sends a gradient between slices: by way of the hosts.
BETWEEN_SLICES = """HloModule between_slices

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %go = token[] after-all()
  %send = (f32[256]{0}, u32[], token[]) send(%a, %go), ATTRIBUTES
  %sent = token[] send-done(%send)
  %recv = (f32[256]{0}, u32[], token[]) recv(%go), ATTRIBUTES
  %received = (f32[256]{0}, token[]) recv-done(%recv)
  ROOT %sum = f32[256]{0} get-tuple-element(%received), index=0
}
""".replace("ATTRIBUTES", 'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}')


def test_what_is_sent_between_slices_counts_by_itself():
    found = Module(BETWEEN_SLICES, ("data",), (8,), lambda _: 1.0, slices=4).cost()
    what = Collective("all-reduce", ("slices",), 4)
    assert found.data == {what: 1024}
    assert found.sent == {what: 2 * 3 / 4 * 1024}
    assert found.count == {what: 1}


def test_of_a_condition_the_dearer_branch_counts():
    def choose(x, kernel, flag):
        return jax.lax.cond(flag, lambda x: jnp.tanh(x @ kernel) @ kernel, lambda x: x @ kernel, x)

    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    assert cost(choose, ones(16, 32), ones(32, 32), flag).flops == 2 * 2 * 16 * 32 * 32


def test_a_scanned_block_reads_its_own_layer_not_all():
    """Traffic of 12 layers of one matrix each: about one reading of all matrices, not twelve."""

    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    kernels = 12 * 256 * 256 * 4
    found = cost(layers, ones(8, 256), ones(12, 256, 256))
    assert kernels <= found.bytes <= 4 * kernels


def test_traffic_is_what_xla_itself_counts_where_there_is_no_loop():
    def layer(x, kernel):
        return jnp.tanh(x @ kernel).sum(axis=0), x.T

    compiled = jax.jit(layer).lower(ones(64, 128), ones(128, 256)).compile()
    found = Module(compiled.as_text(), ("data",), (1,), lambda _: 1.0).cost()
    assert found.bytes == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.02)


def test_traffic_by_operation_of_the_source():
    """A gradient through a scan of eight rematerialised layers: each pass names its scopes."""

    @functools.partial(jax.checkpoint, prevent_cse=True)
    def layer(x, kernel):
        with jax.named_scope("mix"):
            return jnp.tanh(jnp.cos(x) @ kernel), None

    def loss(x, kernels):
        with jax.named_scope("layers"):
            return jax.lax.scan(layer, x, kernels)[0].sum()

    found = cost(jax.grad(loss, argnums=1), ones(16, 32), ones(8, 32, 32))
    products = {name: size for name, size in found.traffic.items() if "dot_general" in name}
    assert set(products) == {
        "layers/mix/dot_general",
        "layers/mix/dot_general (recomputed)",
        "layers/mix/dot_general (backward)",
    }
    # [16, 32] and [32, 32] in, [16, 32] out, in each of eight iterations; the kernel is a slice of all eight.
    once = 8 * 4 * (2 * 16 * 32 + 32 * 32)
    assert once <= products["layers/mix/dot_general"] <= 2 * once
    assert sum(found.traffic.values()) == found.bytes


UNNAMED = """HloModule m

ENTRY %main (p0: f32[100]) -> f32[100] {
  %p0 = f32[100]{0} parameter(0)
  %a = f32[100]{0} negate(%p0), metadata={op_name="jit(f)/jvp(scope)/neg"}
  %b = (f32[100]{0:S(1)}, f32[100]{0}, u32[]{:S(2)}) copy-start(%a)
  %c = f32[100]{0:S(1)} copy-done(%b)
  %d = f32[900]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %kernel.2 = f32[100]{0} custom-call(%c), custom_call_target="tpu_custom_call"
}
"""


def test_copies_count_with_what_they_copy_kernels_by_name_and_reserving_is_free():
    """By hand: `neg` reads and writes, its copy reads (the chip's own memory is free), the kernel writes."""
    found = Module(UNNAMED, ("data",), (1,), lambda _: 1.0).cost()
    assert {k: v for k, v in found.traffic.items() if v} == {"scope/neg": 1200, "kernel": 400}


NESTED = """HloModule m

%bitcast_fusion (p0: f32[8,100]) -> f32[800] {
  %p0 = f32[8,100]{1,0} parameter(0)
  ROOT %b = f32[800]{0} bitcast(%p0)
}

%outer (p0: f32[8,100], p1: f32[8,100]) -> f32[800] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %p1 = f32[8,100]{1,0} parameter(1)
  %all = f32[800]{0} fusion(%p0), kind=kLoop, calls=%bitcast_fusion
  %some = f32[800]{0} fusion(%p1), kind=kLoop, calls=%bitcast_fusion
  %slice = f32[50]{0} slice(%some), slice={[0:50]}
  %wide = f32[800]{0} broadcast(%slice), dimensions={0}
  ROOT %sum = f32[800]{0} add(%all, %wide)
}

ENTRY %main (p0: f32[8,100], p1: f32[8,100]) -> f32[800] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %p1 = f32[8,100]{1,0} parameter(1)
  ROOT %f = f32[800]{0} fusion(%p0, %p1), kind=kLoop, calls=%outer
}
"""


def test_an_operand_that_passes_an_inner_fusion_is_read_as_far_as_it_is_used():
    """By hand: all 800 of one operand, 50 of the other, 800 written."""
    assert Module(NESTED, ("data",), (1,), lambda _: 1.0).cost().bytes == 4 * (800 + 50 + 800)


CONVOLUTION = """HloModule m

ENTRY %main (p0: f32[2,4,16,8], p1: f32[4,8,5]) -> f32[2,4,16,5] {{
  %p0 = {left} parameter(0)
  %p1 = {right} parameter(1)
  ROOT %c = {out} convolution(%p0, %p1), {attributes}
}}
"""


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "expected"),
    [
        # A plain matrix product, [16, 8] @ [8, 5].
        ("f32[16,8]", "f32[8,5]", "f32[16,5]", "dim_labels=bf_io->bf", 2 * 16 * 8 * 5),
        # Four independent products [16, 8] @ [8, 5]: the batch is a window of which one tap of four counts.
        (
            "f32[4,16,8]",
            "f32[4,8,5]",
            "f32[4,16,5]",
            "window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            4 * 2 * 16 * 8 * 5,
        ),
        # A window of 3 over 10 places without padding.
        (
            "f32[2,10,8]",
            "f32[3,8,5]",
            "f32[2,8,5]",
            "window={size=3}, dim_labels=b0f_0io->b0f",
            2 * 2 * 8 * 3 * 8 * 5,
        ),
        # Padded by one on both sides: the first and the last place meet two taps.
        (
            "f32[2,10,8]",
            "f32[3,8,5]",
            "f32[2,10,5]",
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            2 * 2 * 28 * 8 * 5,
        ),
    ],
)
def test_convolutions_count_the_taps_that_meet_an_element(left, right, out, attributes, expected):
    text = CONVOLUTION.format(left=left, right=right, out=out, attributes=attributes)
    assert Module(text, ("data",), (1,), lambda _: 1.0).cost().flops == expected


@pytest.mark.parametrize("dims", [(3, 12, 256, 64), (12, 256, 64)], ids=["batch", "batch of one"])
def test_attention_kernels_count_with_and_without_a_batch(dims):
    """Two products of `[length, length]` per head; the compiler leaves a batch of one out of the shapes."""

    def instruction(name, opcode, shape, operands=()):
        return Instruction(name, opcode, (shape,), operands, "", "", False)

    small = instruction("blocks", "parameter", Shape("s32", (12, 2, 2)))
    query = instruction("query", "parameter", Shape("f32", dims))
    call = instruction("splash_mha_fwd.1", "custom-call", query.shapes[0], ("blocks", "query"))
    flops = kernel_flops(call, {"blocks": small, "query": query})
    assert flops == 2 * 2 * np.prod(dims[:-2]) * 256 * 256 * 64


def test_an_attention_kernel_whose_queries_keys_and_values_are_one_array():
    """Five products of `[256, 256]` for each of 12 heads of 64 and each of two sequences."""
    table, qkv = Shape("f32", (256, 128)), Shape("bf16", (3, 2, 256, 768))
    operands = {
        name: Instruction(name, "parameter", (shape,), (), "", "", False)
        for name, shape in (("cos", table), ("qkv", qkv))
    }
    call = Instruction(
        "packed_attention_backward.3", "custom-call", (qkv,), ("cos", "qkv"), "", "", False
    )
    assert kernel_flops(call, operands) == 5 * 2 * 2 * 12 * 256 * 256 * 64


def test_groups_of_devices_in_each_notation():
    np.testing.assert_array_equal(
        device_groups("replica_groups={{0,1},{2,3}}", 4), [[0, 1], [2, 3]]
    )
    np.testing.assert_array_equal(
        device_groups("replica_groups=[2,4]<=[8]", 8), [[0, 1, 2, 3], [4, 5, 6, 7]]
    )
    np.testing.assert_array_equal(
        device_groups("replica_groups=[4,2]<=[2,4]T(1,0)", 8), [[0, 4], [1, 5], [2, 6], [3, 7]]
    )
    np.testing.assert_array_equal(
        device_groups("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, dimensions={1}", 8),
        [[0, 2], [1, 3], [4, 6], [5, 7]],
    )
    np.testing.assert_array_equal(
        device_groups("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 8),
        [[0, 1, 2, 3], [4, 5, 6, 7]],
    )
    np.testing.assert_array_equal(
        device_groups("source_target_pairs={{0,1},{1,0}}", 2), [[0, 1], [1, 0]]
    )
    np.testing.assert_array_equal(device_groups("replica_groups={}", 3), [[0, 1, 2]])


EXCHANGE = """HloModule m

ENTRY %main (p0: f32[100]) -> f32[100] {{
  %p0 = f32[100]{{0:T(128)}} parameter(0)
  ROOT %r = {shape} {kind}(%p0), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""


@pytest.mark.parametrize(
    ("kind", "shape", "groups", "axes", "sent"),
    [
        ("all-reduce", "f32[100]", "replica_groups=[2,4]<=[8]", ("fsdp", "model"), 400 * 2 * 3 / 4),
        ("all-reduce", "f32[100]", "replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",), 400),
        ("all-gather", "f32[200]", "replica_groups=[4,2]<=[8]", ("model",), 400),
        ("reduce-scatter", "f32[50]", "replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",), 200),
        ("collective-permute", "f32[100]", "source_target_pairs={{0,4},{4,0}}", ("data",), 400),
    ],
)
def test_collectives_by_axis_and_bytes(kind, shape, groups, axes, sent):
    """A mesh 2 × 2 × 2: device = 4 data + 2 fsdp + model."""
    text = EXCHANGE.format(kind=kind, shape=shape, groups=groups)
    found = Module(text, ("data", "fsdp", "model"), (2, 2, 2), lambda _: 1.0).cost()
    (what,) = found.sent
    assert (what.kind, what.axes) == (kind, axes)
    assert found.data[what] == 400
    assert found.sent[what] == pytest.approx(sent)
    assert isinstance(what, Collective)


def test_a_group_of_one_exchanges_nothing():
    text = EXCHANGE.format(kind="all-reduce", shape="f32[100]", groups="replica_groups={{0},{1}}")
    assert not Module(text, ("data",), (2,), lambda _: 1.0).cost().sent


def test_layouts_tuples_and_nested_parentheses_parse():
    text = """HloModule m

%body (arg: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  ROOT %arg = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
}

ENTRY %main.1 (x: bf16[8,128]) -> bf16[] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %y.2 = bf16[] custom-call(%x), custom_call_target="f(x)", metadata={op_name="a(b)/c"}
}
"""
    computations, entry = parse(text)
    assert entry == "main.1"
    assert computations["body"]["arg"].shapes == (
        Shape("s32", ()),
        Shape("bf16", (8, 128), off_chip=False),
    )
    assert computations["main.1"]["y.2"].operands == ("x",)
    assert computations["main.1"]["x"].bytes == 8 * 128 * 2
