from benchmarks.structure import ROOT, counts_of_command, names_with_two_owners, size_of_product
from tests.support.bundles import shared_bundle


def test_the_way_of_a_command_is_counted(tmp_path_factory):
    bundle = shared_bundle(tmp_path_factory, {"dtype": "float32"})
    counts = counts_of_command(ROOT, ["inspect", str(bundle)])
    assert counts["files"] > 5
    assert counts["digests"] >= 2, "both graphs are compared with the manifest"
    assert counts["json"] >= 1


def test_a_tree_has_lines_and_names(tmp_path):
    for package, names in (("export", "def one(): ...\ndef two(): ...\n"), ("engines", "def one(): ...\n")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "module.py").write_text(names)
    assert size_of_product(tmp_path) == (2, 3)
    assert names_with_two_owners(tmp_path) == ["one"]


def test_what_the_files_of_every_target_call_alike_has_one_owner(tmp_path):
    for folder in ("engines/backends/a", "engines/backends/b", "engines/serving/a", "engines/serving/b"):
        (tmp_path / folder).mkdir(parents=True)
        name = "backend" if "backends" in folder else "server"
        (tmp_path / folder / "module.py").write_text(f"def open_{name}(): ...\n")
    (tmp_path / "engines/backends/b/other.py").write_text("def open_elsewhere(): ...\n")
    (tmp_path / "engines/backends/a/module.py").write_text(
        "def open_backend(): ...\ndef open_elsewhere(): ...\n"
    )
    assert names_with_two_owners(tmp_path) == ["open_elsewhere", "open_server"]
    assert names_with_two_owners(tmp_path, ()) == ["open_backend", "open_elsewhere", "open_server"]
