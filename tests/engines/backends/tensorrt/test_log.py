from engines.backends.tensorrt.log import BuildLog, PhaseTree


def test_warnings_that_differ_in_names_and_numbers_are_one_with_a_count():
    log = BuildLog()
    for name in ("node_of_q", "node_of_k"):
        log.add_warning(
            f"ImporterContext.hpp:501: A node named {name} already exists, it will not be queryable."
        )
    for name in ("token_ids", "write_index", "kv_lengths"):
        log.add_warning(f"ModelImporter.cpp:1071: Make sure input {name} has Int64 binding.")
    log.add_warning("Something else.")
    assert [(warning.message, warning.count) for warning in log.warnings] == [
        ("A node named node_of_q already exists, it will not be queryable.", 2),
        ("Make sure input token_ids has Int64 binding.", 3),
        ("Something else.", 1),
    ]


def test_device_memory_is_picked_out_of_the_log():
    log = BuildLog()
    for line in (
        "Total Activation Memory: 42274304 bytes",
        "Total Activation Memory: 8228352 bytes",
        "Total Weights Memory: 4134528 bytes",
        "Engine generation completed in 1.8 seconds.",
    ):
        log.add_information(line)
    assert log.activation_bytes == [42_274_304, 8_228_352]
    assert log.weights_bytes == 4_134_528


def test_nested_phases_become_one_fraction_that_never_falls():
    told: list[tuple[str, float]] = []
    phases = PhaseTree(lambda phase, fraction: told.append((phase, fraction)))
    phases.start("Building", 2)
    phases.start("Optimizing", 4)
    phases.step("Optimizing", 1)  # two of four quarters of the first half
    phases.finish("Optimizing")
    phases.step("Building", 0)
    phases.start("Timing", 2)
    phases.step("Timing", 0)
    phases.finish("Building")
    assert told == [
        ("Building", 0.0),
        ("Optimizing", 0.0),
        ("Optimizing", 0.25),
        ("Building", 0.25),
        ("Building", 0.5),
        ("Timing", 0.5),
        ("Timing", 0.75),
        ("Building engine", 0.75),
    ]
