import pytest

pytest.importorskip("triton", reason="PTX comes from Triton: pip install 'qv-export[dev]'")

from plugins.cached_attention import kernel as cached_attention_kernel
from plugins.cached_attention import tensorrt_plugin as cached_attention_plugin
from plugins.patch_attention import kernel as patch_attention_kernel
from plugins.patch_attention import tensorrt_plugin as patch_attention_plugin
from plugins.rotary import kernel as rotary_kernel
from plugins.rotary import tensorrt_plugin as rotary_plugin
from plugins.tensorrt import ptx

# Sizes and targets are shared with the other tests where they can be: Triton caches what it has compiled.
MROPE_OF_7B, VISION = (28, 4, 128), (16, 16, 80)


def compile_rotary(architecture, driver="13.0", sizes=MROPE_OF_7B, element="bf16", tile=0):
    return rotary_plugin.compile_kernel(element, *sizes, rotary_kernel.TILES[tile], architecture, driver)


def compile_attention(architecture, driver="13.0", element="bf16", tile=0, head_dim=80):
    choices = patch_attention_kernel.tiles(head_dim, 4 if element == "fp32" else 2)
    return patch_attention_plugin.compile_kernel(element, 16, head_dim, choices[tile], architecture, driver)


def compile_cached(architecture, element="bf16", tile=0, sizes=(12, 2, 128)):
    choices = cached_attention_kernel.tiles(4 if element == "fp32" else 2)
    return cached_attention_plugin.compile_kernel(element, *sizes, choices[tile], architecture, "13.0")


def compile_combine(architecture):
    return cached_attention_plugin.compile_combine("bf16", 12, 128, architecture, "13.0")


@pytest.mark.parametrize("architecture", ptx.ARCHITECTURES)
def test_our_kernels_assemble_without_spills_for_every_architecture(architecture):
    makers = (compile_rotary, compile_attention, compile_cached, compile_combine)
    for kernel in (make(architecture) for make in makers):
        resources = ptx.assemble(kernel, architecture)
        assert resources.spill_bytes == 0
        assert 0 < resources.registers * kernel.threads_per_block <= 65_536  # a block must fit
        assert 0 < resources.shared_bytes <= ptx.MAX_LAUNCH_SHARED_BYTES


def test_every_rotary_tile_fits_and_moves_16_bytes_at_a_time():
    for sizes, tile in [*((MROPE_OF_7B, i) for i in range(len(rotary_kernel.TILES))), (VISION, 0)]:
        kernel = compile_rotary(90, sizes=sizes, tile=tile)
        assert ptx.assemble(kernel, 90).spill_bytes == 0
        heads = rotary_kernel.TILES[tile].heads
        assert kernel.ptx.count("ld.global.v4") == kernel.ptx.count("st.global.v4") == 2 * heads
        assert ".local" not in kernel.ptx  # what tl.sin's range reduction would need


def test_every_attention_tile_fits_and_multiplies_80_channels_not_128():
    for tile, shape in enumerate(patch_attention_kernel.tiles(80, 2)):
        kernel = compile_attention(90, tile=tile)
        assert ptx.assemble(kernel, 90).spill_bytes == 0
        assert kernel.shared_bytes <= ptx.MAX_LAUNCH_SHARED_BYTES
        # Two products (scores, values) of queries x keys x 80, written out twice: whole blocks and the tail.
        # One instruction makes 16 x 8 x 16 in one warp.
        expected = 2 * 2 * shape.queries * shape.keys * 80 // (16 * 8 * 16) // shape.num_warps
        assert kernel.ptx.count("mma.sync") == expected


@pytest.mark.parametrize("tile", range(4))
def test_every_cached_attention_tile_fits_without_spills_and_copies_16_bytes_at_a_time(tile):
    kernel = compile_cached(90, tile=tile)
    for architecture in (89, 90, 120):
        assert ptx.assemble(kernel, architecture).spill_bytes == 0
    assert kernel.shared_bytes <= ptx.MAX_LAUNCH_SHARED_BYTES
    # Keys and values go to shared memory while the block before is multiplied.
    shape = cached_attention_kernel.tiles(2)[tile]
    copies = 2 * shape.keys * 128 * 2 // 16 // (32 * shape.num_warps)
    assert kernel.ptx.count("cp.async.cg.shared.global") >= copies
    assert "mma.sync" in kernel.ptx


@pytest.mark.parametrize(("element", "sizes"), [("fp32", (12, 2, 128)), ("fp16", (16, 16, 80))])
def test_cached_attention_of_other_dtypes_and_head_sizes_fits_without_spills(element, sizes):
    kernel = compile_cached(80, element, sizes=sizes)
    assert ptx.assemble(kernel, 80).spill_bytes == 0
    assert kernel.shared_bytes <= ptx.MAX_LAUNCH_SHARED_BYTES


@pytest.mark.parametrize(("element", "head_dim"), [("fp32", 80), ("fp32", 128), ("bf16", 128), ("fp16", 80)])
def test_other_dtypes_and_head_sizes_fit_and_hardly_spill(element, head_dim):
    kernel = compile_attention(80, element=element, head_dim=head_dim)
    assert ptx.assemble(kernel, 80).spill_bytes <= 40
    assert kernel.shared_bytes <= ptx.MAX_LAUNCH_SHARED_BYTES


def test_the_isa_version_is_what_the_driver_asked_for_loads():
    for driver, isa in {"12.0": 80, "13.0": ptx.NEWEST_ISA}.items():
        assert ptx.isa_and_target(compile_rotary(90, driver).ptx) == (isa, "sm_89")
    assert ptx.isa_and_target(compile_attention(80, "12.0").ptx) == (ptx.OLDEST_ISA, "sm_80")
    assert [ptx.isa_for_driver(version) for version in ("12.5", "12.6", "12.9", "13.0", "13.4")] == [
        *(85, 85, 88, 90, 94)
    ]
    for wrong in ("11.8", "13", "new"):
        with pytest.raises(ValueError, match=r"12\.0 or newer"):
            ptx.isa_for_driver(wrong)


def test_no_architecture_specific_code_is_made():
    for architecture, target in {
        80: "sm_80",
        86: "sm_86",
        87: "sm_86",
        89: "sm_89",
        90: "sm_89",
        120: "sm_89",
    }.items():
        text = compile_attention(architecture).ptx
        assert ptx.isa_and_target(text)[1] == target
        assert "wgmma" not in text
        assert "tcgen05" not in text


def test_hidden_parameters_are_stripped_and_the_text_names_no_file():
    for kernel, scalar in ((compile_rotary(80), 5), (compile_attention(80), 5)):
        types = ptx.parameter_types(kernel.ptx)
        assert types == ["u32" if i == scalar else "pointer" for i in range(len(types))]
        assert ".loc" not in kernel.ptx
        assert ".file" not in kernel.ptx


def test_a_hidden_parameter_that_is_read_is_not_stripped():
    text = compile_rotary(80).ptx
    with pytest.raises(RuntimeError, match="reads its hidden parameter qv_rotary_param_7"):
        ptx.strip_parameters(text, keep=7)


def test_an_architecture_that_is_too_old_is_refused():
    with pytest.raises(ValueError, match="no PTX for sm_75"):
        compile_rotary(75)


def test_ptxas_is_quoted_when_it_refuses():
    kernel = ptx.CompiledKernel("broken", ".version 8.0\n.target sm_80\n.nonsense\n", 4, 0)
    with pytest.raises(RuntimeError, match="ptxas refuses broken for sm_80"):
        ptx.assemble(kernel, 80)
