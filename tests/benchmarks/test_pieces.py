import numpy as np

from benchmarks.gpu_proof.pieces import join, split


def test_files_come_back_from_their_pieces_as_they_were(tmp_path):
    wheels, pieces, back = (tmp_path / name for name in ("wheels", "pieces", "back"))
    wheels.mkdir()
    sizes = {"a.whl": 0, "b.whl": 99, "c.whl": 100, "d.whl": 101, "e.whl": 350}
    for name, size in sizes.items():
        (wheels / name).write_bytes(np.random.default_rng(size).bytes(size))
    written = split(wheels, pieces, most_bytes=100)
    assert [len([1 for name, _ in written if name.startswith(wheel)]) for wheel in sizes] == [1, 1, 1, 2, 4]
    assert max(size for _, size in written) <= 100
    assert join(pieces, back) == []
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        path.name: path.read_bytes() for path in wheels.iterdir()
    }


def test_a_piece_that_is_missing_or_was_changed_is_named_and_nothing_half_is_left(tmp_path):
    wheels, pieces, back = (tmp_path / name for name in ("wheels", "pieces", "back"))
    wheels.mkdir()
    for name in ("a.whl", "b.whl", "c.whl"):
        (wheels / name).write_bytes(bytes(range(200)))
    split(wheels, pieces, most_bytes=100)
    (pieces / "a.whl.01").unlink()
    (pieces / "b.whl.00").write_bytes(bytes(100))
    missing, changed = join(pieces, back)
    assert "a.whl lacks a.whl.01" in missing
    assert "b.whl is not what was cut" in changed
    assert [path.name for path in back.iterdir()] == ["c.whl"]
