"""The parts of a benchmark, in order. Apart from what measures, since `--help` names them."""

SECTIONS = ("preprocessing", "vision", "prefill", "decode", "serving", "memory")
