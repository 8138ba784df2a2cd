"""Reads `quantization_config` of a checkpoint's `config.json`: whose layouts are read, and whose are refused."""

from collections.abc import Callable, Mapping

from export.errors import UserError
from export.files.checks import is_whole
from export.models.keys import refuse_unread
from export.models.section import Section
from export.quantization.compressed_config import read_compressed_tensors
from export.quantization.scheme import LayerGroup, LayerScheme, Scheme

_MAKE_OWN = "Start from the unquantized checkpoint, and let `qv-export export --quantize int4` make it small."

_REFUSED: Mapping[str, str] = {
    "bitsandbytes": "its 4-bit codes are places in a table, which no engine multiplies by",
    "bitsandbytes_4bit": "its 4-bit codes are places in a table, which no engine multiplies by",
    "bitsandbytes_8bit": "it keeps columns of outliers apart, which no engine multiplies by",
    "fp8": "its scales are those of blocks of 128 x 128, which engines expand to 16 bits at every call",
    "fbgemm_fp8": "its activations have a bound of their own, which no engine knows",
    "mxfp4": "engines expand it to 16 bits at every call",
    "gguf": "its blocks are llama.cpp's own",
    "hqq": "its layout is not read here",
    "aqlm": "its codes are places in tables of vectors, which no engine multiplies by",
    "vptq": "its codes are places in tables of vectors, which no engine multiplies by",
}


def read_scheme(section: Section, source: str) -> Scheme | None:
    """How a checkpoint is quantized; None where the section is empty.

    Args:
        section: of the key `quantization_config`; takes what does not fit as problems.
        source: what to call the file in an error.

    Raises:
        UserError: a tool whose layout is not read here, with the way out.
    """
    if not section.content:
        return None
    method = section.get("quant_method")
    if method is None and (section.get("load_in_4bit") or section.get("load_in_8bit")):
        method = "bitsandbytes"
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise _refused(method, source)
    scheme = reader(section)
    refuse_unread(section, inert=_INERT)
    return scheme


def _refused(method: object, source: str) -> UserError:
    reason = _REFUSED.get(method) if isinstance(method, str) else None
    known = f"{reason}. " if reason else f"those of {', '.join(sorted(_READERS))} are read. "
    return UserError(
        f"{source}: the weights are quantized (quant_method {method if method is not None else 'unknown'!r:.80}): "
        f"{known}{_MAKE_OWN}"
    )


def _read_awq(section: Section) -> Scheme:
    """AutoAWQ's, by Transformers' names or by those of its own file."""
    bits = section.integer("bits", section.integer("w_bit", 4))
    group_size = section.get("group_size", section.get("q_group_size", 128))
    if bits != 4:
        section.problem(f"bits is {bits}: AWQ is read in 4 bits. {_MAKE_OWN}")
    version = section.get("version", "gemm")
    if not (isinstance(version, str) and version.lower() == "gemm"):
        section.problem(f"version is {version!r:.80}: AWQ's layout gemm is read. {_MAKE_OWN}")
    section.one_of("backend", ("autoawq", "auto", "llm-awq") if version == "gemm" else ("autoawq",))
    section.one_of("zero_point", (True,))
    layer = LayerScheme("awq", 4, group_size=_group_size(section, group_size))
    ignored = tuple(f"part:{name}" for name in _names(section, "modules_to_not_convert"))
    return Scheme("AWQ", (LayerGroup(("Linear",), layer),), ignored)


def _read_gptq(section: Section) -> Scheme:
    """AutoGPTQ's and GPTQModel's. `desc_act` and `static_groups` show in each layer's own order of columns."""
    bits = section.integer("bits", 4)
    if bits not in {4, 8}:
        section.problem(f"bits is {bits}: GPTQ is read in 4 and 8 bits. {_MAKE_OWN}")
        bits = 4
    section.one_of("checkpoint_format", ("gptq", "gptq_v2"))
    section.one_of("format", ("gptq", "gptq_v2"))
    section.one_of("is_marlin_format", (False,))
    section.one_of("pack_dtype", ("int32",))
    second = "gptq_v2" in {section.get("checkpoint_format"), section.get("format")}
    layer = LayerScheme(
        "gptq",
        bits,
        group_size=_group_size(section, section.get("group_size", 128)),
        is_symmetric=section.flag("sym", True),
        are_zeros_less_one=not second,
    )
    return Scheme(
        "GPTQ", (LayerGroup(("Linear",), layer),), _left_out_by_rules(section, section.section("dynamic"))
    )


def _left_out_by_rules(section: Section, rules: Section) -> tuple[str, ...]:
    """GPTQModel's rules by pattern: `-:` leaves layers out, any other would store them otherwise."""
    others = sorted(rule for rule in rules.content if not rule.startswith("-:"))
    if others:
        section.problem(f"dynamic: layers with settings of their own are not read ({', '.join(others):.200})")
    return tuple(f"re:{rule.removeprefix('-:')}" for rule in rules.content if rule.startswith("-:"))


def _read_auto_round(section: Section) -> Scheme:
    """Intel's AutoRound, as far as it packs as GPTQ does."""
    packing = section.get("packing_format", section.get("backend", "auto_round:gptq"))
    if not (isinstance(packing, str) and packing.startswith("auto_round") and "gptq" in packing):
        section.problem(
            f"packing_format is {packing!r:.80}: AutoRound's auto_round:gptq is read. {_MAKE_OWN}"
        )
    section.one_of("data_type", ("int",))
    section.one_of("sym", (True,))
    section.one_of("act_bits", (16, 32))
    bits = section.integer("bits", 4)
    if bits not in {4, 8}:
        section.problem(f"bits is {bits}: AutoRound is read in 4 and 8 bits. {_MAKE_OWN}")
        bits = 4
    extra = section.section("extra_config")
    rules = {name: extra.section(name) for name in extra.content}
    whole = [name for name, rule in rules.items() if rule.get("bits") in {16, 32}]
    if others := sorted(rules.keys() - set(whole)):
        section.problem(
            f"extra_config: layers with settings of their own are not read ({', '.join(others):.200})"
        )
    layer = LayerScheme(
        "gptq",
        bits,
        group_size=_group_size(section, section.get("group_size", 128)),
        is_symmetric=True,
        are_zeros_less_one=True,
    )
    return Scheme("AutoRound", (LayerGroup(("Linear",), layer),), tuple(whole))


def _group_size(section: Section, value: object) -> int | None:
    """None: one scale for all inputs, which tools write as -1."""
    if value == -1:
        return None
    if is_whole(value) and value > 0:
        return value
    section.problem(f"group_size must be a positive integer or -1, found {value!r:.80}")
    return None


def _names(section: Section, key: str) -> list[str]:
    value = section.get(key, [])
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    section.problem(f"{key} must be a list of names of modules, found {value!r:.80}")
    return []


_READERS: Mapping[str, Callable[[Section], Scheme]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
    "auto-round": _read_auto_round,
    "intel/auto-round": _read_auto_round,
    "compressed-tensors": read_compressed_tensors,
}

# How a tool found the codes, or how its own kernels run: the stored numbers mean the same.
_INERT = frozenset(
    {
        # AutoAWQ
        "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config",
        # AutoGPTQ, GPTQModel
        "damp_percent", "damp_auto_increment", "desc_act", "static_groups", "true_sequential", "dataset", "tokenizer",
        "model_seqlen", "block_name_to_quantize", "module_name_preceding_first_block", "batch_size", "pad_token_id",
        "use_exllama", "disable_exllama", "use_cuda_fp16", "max_input_length", "cache_block_outputs",
        "modules_in_block_to_quantize", "model_name_or_path", "model_file_base_name", "lm_head", "meta",
        "act_group_aware", "hyb_act", "mse", "parallel_packing",
        # compressed-tensors
        "quantization_status", "global_compression_ratio", "version",
        # AutoRound
        "autoround_version", "iters", "lr", "minmax_lr", "low_gpu_mem_usage", "low_cpu_mem_usage", "nsamples", "seqlen",
        "scale_dtype", "train_bs", "enable_quanted_input", "enable_minmax_tuning", "enable_norm_bias_tuning",
        "gradient_accumulate_steps", "to_quant_block_names", "quant_block_list", "amp", "act_data_type", "act_dynamic",
        "act_group_size", "act_sym", "not_use_best_mse", "sampler", "dynamic_max_gap", "super_bits", "super_group_size",
    }
)  # fmt: skip
