"""The reader of compiled programs on programs written by hand: every number is known."""

from __future__ import annotations

import textwrap

import pytest

from mmjax.plan import hlo, hlo_text

CYCLES = 'backend_config={{"window_config":{{"estimated_cycles":"{}","x":["1"]}}}}'


def cycles(n: int) -> str:
    return CYCLES.format(n)


def program(entry: str, *others: str) -> str:
    """A module of an entry and other computations."""
    parts = [textwrap.dedent(part).strip("\n") for part in (*others, entry)]
    return 'HloModule jit_f, is_scheduled=true\n\nFileNames\n1 "f.py"\n\n' + "\n\n".join(parts)


def scan(turns: int, inside: str, limit: str | None = None) -> str:
    """A loop as TPU prints it: the condition alone knows the turns."""
    body = f"""
%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %one = s32[]{{:T(128)}} constant(1)
  %p = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %x = f32[8,128]{{1,0:T(8,128)S(1)}} get-tuple-element(%p), index=1
  %next = s32[]{{:T(128)}} add(%i, %one)
{textwrap.indent(textwrap.dedent(inside).strip(), "  ")}
  ROOT %out = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) tuple(%next, %y)
}}"""
    condition = f"""
%cond (q: (s32[], f32[8,128])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant({turns})
  %q = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%q), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%j, {limit or "%n"}), direction=LT
}}"""
    entry = f"""
ENTRY %main (a: f32[8,128]) -> f32[8,128] {{
  %zero = s32[]{{:T(128)}} constant(0)
  %a = f32[8,128]{{1,0:T(8,128)}} parameter(0), metadata={{op_name="a"}}
  %start = s32[]{{:T(128)}} copy(%zero)
  %before = f32[8,128]{{1,0:T(8,128)S(1)}} copy(%a), {cycles(1000)}
  %state = (s32[]{{:T(128)}}, f32[8,128]{{1,0:T(8,128)S(1)}}) tuple(%start, %before)
  %loop = (s32[], f32[8,128]{{1,0:T(8,128)S(1)}}) while(%state), condition=%cond, body=%body
  ROOT %end = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%loop), index=1
}}"""
    return program(entry, body, condition)


def test_what_another_thread_of_the_chip_runs_ends_where_it_ends():
    """The closing line of a computation of the SparseCores names their thread."""
    other = """
    %other (u: f32[8]) -> f32[8] {
      ROOT %u = f32[8]{0} parameter(0)
    }, execution_thread="sparsecore"
    """
    fused = """
    %fused (v: f32[8]) -> f32[8] {
      ROOT %v = f32[8]{0} parameter(0)
    }"""
    entry = """
    ENTRY %main (a: f32[8]) -> f32[8] {
      %a = f32[8]{0} parameter(0)
      ROOT %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
    }"""
    parsed = hlo_text.parse(program(entry, other, fused))
    assert set(parsed.computations) == {"other", "fused", "main"}
    hlo.read(program(entry, other, fused))


def test_a_loop_counts_its_turns_and_a_fusion_counts_once():
    fused = """
    %fused (u: f32[8,128]) -> f32[8,128] {
      %u = f32[8,128]{1,0:T(8,128)} parameter(0)
      ROOT %t = f32[8,128]{1,0:T(8,128)} tanh(%u), backend_config={"estimated_cycles":"77"}
    }
    """
    text = scan(6, f"%y = f32[8,128]{{1,0}} fusion(%x), kind=kLoop, calls=%fused, {cycles(10)}")
    reading = hlo.read(text.replace("%body (", textwrap.dedent(fused) + "\n%body (", 1))
    assert reading.cycles == 1000 + 6 * 10
    assert (reading.kernels, reading.collectives, reading.unknown_loops) == ({}, {}, 0)


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ("%known_trip_count", 9),  # what the back end says goes first
        ("constant(2)", 4),  # the counter begins at 2
        ("direction=LE", 7),
        ("s32[]{:T(128)} constant(2)\n", 3),  # it grows by 2
    ],
)
def test_turns_of_a_loop_follow_its_start_step_and_direction(given, turns):
    text = scan(6, f"%y = f32[8,128]{{1,0}} tanh(%x), {cycles(10)}")
    if given == "%known_trip_count":
        says = 'backend_config={"known_trip_count":{"n":"9"},"known_induction_variable":{}}'
        text = text.replace("body=%body\n", f"body=%body, {says}\n")
    elif given == "direction=LE":
        text = text.replace("direction=LT", given)
    elif given == "constant(2)":
        text = text.replace("constant(0)", given)
    else:
        text = text.replace("s32[]{:T(128)} constant(1)\n", given)
    assert hlo.read(text).cycles == 1000 + turns * 10


def test_a_loop_without_known_end_counts_once_and_is_told():
    given = "%z = s32[]{:T(128)} get-tuple-element(%q), index=1\n  ROOT %less"
    text = scan(6, f"%y = f32[8,128]{{1,0}} tanh(%x), {cycles(10)}", limit="%z")
    reading = hlo.read(text.replace("ROOT %less", given))
    assert (reading.cycles, reading.unknown_loops) == (1010, 1)


def test_a_limit_that_a_loop_carries_along_is_followed_to_its_start():
    text = """
    %body (p: (s32[], s32[])) -> (s32[], s32[]) {
      %p = (s32[], s32[]) parameter(0)
      %i = s32[] get-tuple-element(%p), index=0
      %n = s32[] get-tuple-element(%p), index=1
      %both = (s32[], s32[]) fusion(%i), kind=kLoop, calls=%adds
      %next = s32[] get-tuple-element(%both), index=1
      %work = f32[8] iota(), iota_dimension=0, backend_config={"estimated_cycles":"5"}
      ROOT %out = (s32[], s32[]) tuple(%next, %n)
    }

    %adds (u: s32[]) -> (s32[], s32[]) {
      %u = s32[] parameter(0)
      %one = s32[] constant(1)
      %v = s32[] add(%one, %u)
      ROOT %t = (s32[], s32[]) tuple(%u, %v)
    }

    %compares (a: s32[], b: s32[]) -> pred[] {
      %a = s32[] parameter(0)
      %b = s32[] parameter(1)
      ROOT %less = pred[] compare(%b, %a), direction=GT
    }

    %cond (q: (s32[], s32[])) -> pred[] {
      %q = (s32[], s32[]) parameter(0)
      %j = s32[] get-tuple-element(%q), index=0
      %m = s32[] get-tuple-element(%q), index=1
      ROOT %go = pred[] fusion(%j, %m), kind=kLoop, calls=%compares
    }

    ENTRY %main () -> (s32[], s32[]) {
      %zero = s32[] constant(0)
      %many = s32[] constant(12)
      %state = (s32[], s32[]) tuple(%zero, %many)
      ROOT %loop = (s32[], s32[]) while(%state), condition=%cond, body=%body
    }
    """
    reading = hlo.read(textwrap.dedent(text))
    assert (reading.cycles, reading.unknown_loops) == (60, 0)


def test_of_a_conditional_the_dearest_branch_counts():
    branch = """
    %{0} (p: (f32[8])) -> (f32[8]) {{
      %p = (f32[8]) parameter(0)
      %v = f32[8] get-tuple-element(%p), index=0
      %w = f32[8] tanh(%v), backend_config={{"estimated_cycles":"{1}"}}
      ROOT %t = (f32[8]) tuple(%w)
    }}"""
    entry = """
    ENTRY %main (c: s32[], x: f32[8]) -> (f32[8]) {
      %c = s32[] parameter(0)
      %x = f32[8] parameter(1)
      %t = (f32[8]) tuple(%x)
      ROOT %out = (f32[8]) conditional(%c, %t, %t), branch_computations={%short, %long}
    }"""
    branches = branch.format("short", 10), branch.format("long", 30)
    assert hlo.read(program(entry, *branches)).cycles == 30


GATHER = (
    "all-gather(%{0}), channel_id=2, replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}, "
    'frontend_attributes={{{{chain_id="0"}}}}, metadata={{op_name="jit(f)/while/body/convert"}}'
)


CLONE = """
%fused_{0} (v: bf16[1,128], w: bf16[8,128]) -> bf16[8,128] {{
  %v = bf16[1,128]{{1,0}} parameter(0)
  %w = bf16[8,128]{{1,0}} parameter(1)
  %all-gather.{0} = bf16[8,128]{{1,0:T(8,128)(2,1)}} {1}
  ROOT %c = bf16[8,128]{{1,0}} custom-call(%all-gather.{0}), custom_call_target="{2}"
}}
"""
CLONES = "".join(
    CLONE.format(number, GATHER.format("v"), target)
    for number, target in enumerate(["AsyncCollectiveStart", "Other", "AsyncCollectiveDone"])
)


def test_clones_in_async_fusions_are_one_collective_times_the_turns():
    text = scan(
        5,
        f"""
        %part = bf16[1,128]{{1,0}} slice(%x), slice={{[0:1], [0:128]}}
        %start = bf16[8,128]{{1,0}} fusion(%part, %x), kind=kCustom, calls=%fused_0
        %mid = bf16[8,128]{{1,0}} fusion(%part, %x), kind=kOutput, calls=%fused_1, {cycles(100)}
        %y = bf16[8,128]{{1,0}} fusion(%part, %x), kind=kCustom, calls=%fused_2
        """,
    )
    reading = hlo.read(text.replace("\n%body (", CLONES + "\n%body (", 1))
    size = 5 * 8 * 128 * 2
    assert reading.collectives == {"all-gather": hlo.Collective(5, size, {"bf16": size})}
    assert reading.cycles == 1000 + 5 * 100


def test_a_collective_that_spans_a_loop_counts_once():
    text = scan(5, "%y = bf16[8,128]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused_1")
    start = "%start = bf16[8,128]{1,0} fusion(%a, %a), kind=kCustom, calls=%fused_0\n  %state ="
    text = text.replace("%state =", start, 1).replace("\n%body (", CLONES + "\n%body (", 1)
    size = 8 * 128 * 2
    assert hlo.read(text).collectives == {"all-gather": hlo.Collective(1, size, {"bf16": size})}


def test_combined_collectives_that_share_a_channel_count_each():
    fused = """
    %all-reduce-scatter.{0} (a: {1}[64,4]) -> {1}[8,4] {{
      %a = {1}[64,4]{{1,0}} parameter(0)
      %r = ({1}[64,4]{{1,0}}, {1}[64,4]{{1,0}}) all-reduce(%a, %a), channel_id=1, to_apply=%sum
      %e = {1}[64,4]{{1,0}} get-tuple-element(%r), index=1
      ROOT %o = {1}[8,4]{{1,0}} dynamic-slice(%e, %a, %a), dynamic_slice_sizes={{8,4}}
    }}"""
    entry = """
    ENTRY %main (a: f32[64,4], b: bf16[64,4]) -> f32[8,4] {
      %a = f32[64,4]{1,0} parameter(0)
      %b = bf16[64,4]{1,0} parameter(1)
      %c = bf16[8,4]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.2
      ROOT %d = f32[8,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
    }"""
    text = program(entry, fused.format(1, "f32"), fused.format(2, "bf16"))
    sizes = {"f32": 2 * 64 * 4 * 4, "bf16": 2 * 64 * 4 * 2}
    assert hlo.read(text).collectives == {"reduce-scatter": hlo.Collective(2, 3072, sizes)}


def test_an_asynchronous_collective_counts_at_its_start_by_its_whole_array():
    wrapped = """
    %wrapped (v: f32[64,4]) -> f32[8,4] {
      %v = f32[64,4]{1,0} parameter(0)
      ROOT %s = f32[8,4]{1,0} reduce-scatter(%v), channel_id=3, dimensions={0}, to_apply=%sum
    }"""
    entry = """
    ENTRY %main (a: bf16[2,4], b: f32[3,4], c: f32[64,4]) -> f32[8,4] {
      %a = bf16[2,4]{1,0} parameter(0)
      %b = f32[3,4]{1,0} parameter(1)
      %c = f32[64,4]{1,0} parameter(2)
      %gs = ((bf16[2,4], f32[3,4]), (bf16[16,4], f32[24,4])) all-gather-start(%a, /*index=1*/%b)
      %gd = (bf16[16,4]{1,0}, f32[24,4]{1,0}) all-gather-done(%gs)
      %rs = f32[64,4]{1,0} all-reduce-start(f32[64,4]{1,0} %c), channel_id=1, to_apply=%sum
      %rd = f32[64,4]{1,0} all-reduce-done(%rs)
      %ps = (f32[3,4]{1,0}, f32[3,4]{1,0}, u32[], u32[]) collective-permute-start(%b), channel_id=4
      %pd = f32[3,4]{1,0} collective-permute-done(%ps)
      %t = (f32[3,4]{1,0}, f32[3,4]{1,0}) all-to-all(%b, %pd), channel_id=9
      %ss = ((f32[64,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(%c), calls=%wrapped
      %su = ((f32[64,4]{1,0}), f32[8,4]{1,0}, u32[]) async-update(%ss), calls=%wrapped
      ROOT %sd = f32[8,4]{1,0} async-done(%su), calls=%wrapped
    }"""
    gathered = {"bf16": 16 * 4 * 2, "f32": 24 * 4 * 4}
    assert hlo.read(program(entry, wrapped)).collectives == {
        "all-gather": hlo.Collective(1, sum(gathered.values()), gathered),
        "all-reduce": hlo.Collective(1, 1024, {"f32": 1024}),
        "all-to-all": hlo.Collective(1, 96, {"f32": 96}),
        "collective-permute": hlo.Collective(1, 48, {"f32": 48}),
        "reduce-scatter": hlo.Collective(1, 1024, {"f32": 1024}),
    }


@pytest.mark.parametrize(
    ("how", "kind"),
    [("fused", "reduce-scatter"), ("named", "reduce-scatter"), ("later", "all-reduce")],
)
def test_a_reduce_scatter_that_prints_as_an_all_reduce_is_recognised(how, kind):
    reduce = "f32[64,4]{1,0} all-reduce(%a), channel_id=1, to_apply=%sum"
    cut = "%o = f32[8,4]{1,0} dynamic-slice(%r, %a, %a), dynamic_slice_sizes={8,4}"
    if how == "named":
        reduce += ', metadata={op_name="jit(f)/shard_map/psum_scatter"}'
    fused = f"""
    %all-reduce-scatter.1 (a: f32[64,4]) -> f32[8,4] {{
      %a = f32[64,4]{{1,0}} parameter(0)
      %r = {reduce}
      ROOT {cut}
    }}"""
    inside = f"%r = {reduce}\n  ROOT {cut}"
    if how == "fused":
        inside = "ROOT %o = f32[8,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1"
    head = "ENTRY %main (a: f32[64,4]) -> f32[8,4] {\n  %a = f32[64,4]{1,0} parameter(0)\n"
    entry = f"{head}  {inside}\n}}"
    parts = (fused,) if how == "fused" else ()
    reading = hlo.read(program(entry, *parts))
    assert reading.collectives == {kind: hlo.Collective(1, 1024, {"f32": 1024})}


def kernel(name: str, target: str, path: str, config: str = "") -> str:
    return (
        f'%{name} = f32[8,128]{{1,0}} custom-call(%x), custom_call_target="{target}", '
        f'metadata={{op_name="{path}"}}, backend_config={{"custom_call_config":{{{config}}}}}'
    )


def test_kernels_go_by_their_names_with_the_flops_of_their_cost_estimates():
    cost = '"body":"TUzv","cost_estimate":{"transcendentals":"3","flops":"12345"}'
    splash = "jit(f)/while/body/closed_call/transpose(jvp(splash_dq))/pallas_call"
    ragged = "jit(f)/ragged_dot_general/ragged-dot-none"
    lines = [
        kernel("splash_dq.4", "tpu_custom_call", splash, cost),
        kernel("ragged.1", "tpu_custom_call", ragged),
        kernel("fast.2", "__gpu$xla.gpu.triton", "jit(f)/vmap(fast)/pallas_call"),
        kernel("cudnn.2", "__cudnn$fmhaSoftmax", "jit(f)/dot_product_attention"),
        kernel("odd.17", "tpu_custom_call", ""),
        kernel("y", "ConcatBitcast", ""),
    ]
    assert hlo.read(scan(7, "\n".join(lines))).kernels == {
        "splash_dq": hlo.Kernel(7, 7 * 12345),
        "ragged-dot-none": hlo.Kernel(7, 0),
        "fast": hlo.Kernel(7, 0),
        "cudnn$fmhaSoftmax": hlo.Kernel(7, 0),
        "odd": hlo.Kernel(7, 0),
    }


def test_estimated_seconds_are_cycles_and_kernels_at_a_share_of_the_peak():
    reading = hlo.Reading(3e9, {"k": hlo.Kernel(2, 120e12)}, {})
    assert reading.estimated_seconds(1.5e9, 200e12) == pytest.approx(2 + 1)
    assert reading.estimated_seconds(1.5e9, 200e12, 1.0) == pytest.approx(2 + 0.6)


def test_arrays_are_those_that_exist_whole_largest_first():
    text = scan(
        3,
        """
        %big = bf16[64,64,4] fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="scores"}
        %pair = (bf16[64,64,4]{2,1,0}, s4[64,64]{1,0}) sort(%big, %big), dimensions={0}
        %y = f32[8,128]{1,0} reduce(%big), to_apply=%sum
        """,
    )
    fused = """
    %fused (u: f32[8,128]) -> bf16[64,64,4] {
      %u = f32[8,128]{1,0} parameter(0)
      %huge = f32[1024,1024]{1,0} broadcast(%u), dimensions={0,1}
      ROOT %t = bf16[64,64,4]{2,1,0} reduce(%huge), to_apply=%sum
    }
    """
    found = hlo.arrays(text.replace("%body (", textwrap.dedent(fused) + "\n%body (", 1), 4096)
    assert found == (
        hlo.Array("bf16", (64, 64, 4), 64 * 64 * 4 * 2, 2, "scores"),
        hlo.Array("f32", (8, 128), 4096, 3, "a"),  # the parameter, its copy, the loop's result
    )


def test_shapes_of_any_dtype_and_space():
    text = (
        "(s4[3]{0}, f8e4m3fn[2,2]{1,0:T(8,128)S(1)}, /*index=2*/pred[], (token[], bf16[5,0]{1,0}))"
    )
    found = hlo_text.shapes(text)
    assert [(s.dtype, s.bytes) for s in found] == [
        ("s4", 2), ("f8e4m3fn", 4), ("pred", 1), ("token", 0), ("bf16", 0)
    ]  # fmt: skip
    assert [s.space for s in found] == [0, 1, 0, 0, 0]


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.read("module @jit_f { func.func public @main() }")


def test_attributes_of_a_kernel_may_span_lines():
    call = 'custom-call(%x), custom_call_target="tpu_custom_call"'
    text = f"""HloModule jit_f

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %first.1 = f32[8]{{0}} {call}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 256}}"
}}}}, metadata={{op_name="jit(f)/first"}}
  ROOT %second.1 = f32[8]{{0}} {call}, metadata={{op_name="jit(f)/second"}}
}}
"""
    assert set(hlo.read(text).kernels) == {"first", "second"}
