import pytest

from plugins.registry import known_plugins
from plugins.tensorrt.report import EmbeddedKernel, embedded_kernels, report

pytest.importorskip("triton", reason="PTX comes from Triton: pip install 'qv-export[dev]'")


def test_the_report_names_kernels_of_every_plugin_for_every_architecture(tmp_path):
    engine = tmp_path / "vision.plan"
    engine.write_bytes(b"no kernel in here")
    found = report(engine)
    by_plugin = {
        name: [k.architecture for k in found.kernels if k.plugin == name]
        for name in (plugin.partition("/")[0] for plugin in known_plugins())
    }
    assert len(by_plugin) == 4
    for architectures in by_plugin.values():
        assert architectures == ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
    assert all(kernel.spill_bytes == 0 for kernel in found.kernels)
    assert found.packages["triton"]
    assert found.registration
    assert found.engine_kernels == ()
    assert (found.gpu is None) == any("driver" in problem for problem in found.problems)


def test_without_an_engine_nothing_is_said_about_one():
    assert report().engine_kernels is None


def test_a_missing_engine_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        report(tmp_path / "none.plan")


def test_kernels_of_ours_are_found_in_an_engines_bytes():
    from plugins.patch_attention import kernel as attention_kernel
    from plugins.patch_attention import tensorrt_plugin as attention
    from plugins.rotary import kernel as rotary_kernel
    from plugins.rotary import tensorrt_plugin as rotary

    tile = attention_kernel.tiles(80, 2)[0]
    ours = [
        rotary.compile_kernel("bf16", 28, 4, 128, rotary_kernel.TILES[0], 90, "12.0"),
        attention.compile_kernel("bf16", 16, 80, tile, 80, "13.0"),
    ]
    foreign = ".version 8.0\n.target sm_90\n.visible .entry somebody_elses(\n)"
    engine = b"\x00\xff".join([foreign.encode(), *(kernel.ptx.encode() for kernel in ours), b"\x00"])
    assert embedded_kernels(engine) == (
        EmbeddedKernel("qv_rotary", "sm_89", "8.0"),
        EmbeddedKernel("qv_patch_attention", "sm_80", "8.7"),
    )
