import numpy as np
import torch

from examples.tiny.contents import (
    AFTER,
    BEFORE,
    INSIDE,
    LINE_END,
    NEIGHBOURS,
    SLOTS,
    THINGS,
    Codebook,
    contents_of_scene,
)
from examples.tiny.pictures import Glyph, Noise, Scene, Shape, load_font, set_line
from examples.tiny.tasks import CHARACTERS, make_sample

QUIET = Noise(0, 0, 0, 0)
FONT = load_font("DejaVuSans", 20)


END = THINGS[LINE_END]


def test_a_token_is_told_of_the_character_whose_middle_it_holds():
    glyphs = (Glyph("A", 8, 2, FONT), Glyph("7", 60, 30, FONT))
    contents = contents_of_scene(Scene((84, 56), (255,) * 3, QUIET, glyphs), (2, 3))
    first = contents.things[:, 0]
    assert first.tolist() == [THINGS["A"], 0, 0, 0, 0, THINGS["7"]]
    assert not contents.things[:, 1:INSIDE].any()
    assert np.isnan(contents.edges[:, 0]).tolist() == [thing == 0 for thing in first]


def test_two_characters_of_a_token_stand_in_reading_order_and_the_surplus_is_dropped():
    glyphs, width = set_line("1J.7", load_font("DejaVuSans", 8), 0)
    scene = Scene((56, 28), (255,) * 3, QUIET, tuple(glyphs))
    assert width < 28
    contents = contents_of_scene(scene, (1, 2))
    assert contents.things.tolist() == [[THINGS["1"], THINGS["J"], END, THINGS["."]], [0] * SLOTS]


def test_a_token_is_told_what_stands_left_and_right_of_its_characters():
    glyphs = (
        *set_line("AB", FONT, 14, 7, 2)[0],
        *set_line("C", FONT, 14, 150, 2)[0],
        *set_line("XY", FONT, 14, 7, 30)[0],
    )
    contents = contents_of_scene(Scene((224, 56), (255,) * 3, QUIET, glyphs), (2, 8))
    at = {int(row[0]): (row[BEFORE], row[AFTER]) for row in contents.things if row[0]}
    a, b, c, x, y = (THINGS[character] for character in "ABCXY")
    assert at == {
        a: (END, b),
        b: (a, c),
        c: (b, END),
        x: (END, y),
        y: (x, END),
    }  # C is far away and in B's line


def test_edges_are_shares_of_the_picture():
    scene = Scene((60, 120), (255,) * 3, QUIET, shapes=(Shape("red", "circle", (30, 0, 60, 30)),))
    contents = contents_of_scene(scene, (4, 2))
    assert contents.things[:, 0].tolist() == [0, THINGS["red", "circle"], *[0] * 6]
    np.testing.assert_allclose(contents.edges[1], [0.5, 0, 1, 0.25], atol=1e-6)


def test_characters_of_a_line_have_the_same_upper_and_lower_edges():
    glyphs = set_line("A.J", FONT, 20, 7, 2)[0]
    edges = contents_of_scene(Scene((112, 28), (255,) * 3, QUIET, tuple(glyphs)), (1, 4)).edges
    left, top, right, bottom = edges[~np.isnan(edges[:, 0])].T
    assert len(left) == 3
    assert len(set(top)) == len(set(bottom)) == 1
    assert (np.diff(left) > 0).all()
    assert (left < right).all()


def test_a_shape_is_told_how_many_have_its_color():
    shapes = (
        Shape("red", "circle", (2, 2, 20, 20)),
        Shape("blue", "square", (32, 2, 42, 12)),
        Shape("red", "square", (44, 14, 54, 24)),
    )
    contents = contents_of_scene(Scene((84, 28), (255,) * 3, QUIET, shapes=shapes), (1, 3))
    one, two = THINGS["1"], THINGS["2"]
    assert contents.things.tolist() == [
        [THINGS["red", "circle"], 0, two, two],
        [THINGS["blue", "square"], THINGS["red", "square"], one, two],
        [0] * SLOTS,
    ]


def test_codes_of_characters_are_orthogonal_and_read_back_right():
    codebook = Codebook(192)
    generator = torch.Generator().manual_seed(0)
    things = torch.randint(0, len(CHARACTERS) + 1, (50, SLOTS), generator=generator)
    things[:25, 0] = len(THINGS)  # a shape
    edges = torch.rand(50, 4, generator=generator)
    codes = codebook.embeddings(things, edges)
    loss, right = codebook.loss(codes, things, edges)
    assert right.all()
    worse, wrong = codebook.loss(codes.roll(1, 0), things, edges)
    assert worse > loss + 1
    assert not wrong.all()
    inside = codebook.things[:INSIDE, 1 : 1 + len(CHARACTERS)]
    beside = codebook.things[INSIDE:, 1 : 1 + len(NEIGHBOURS)]
    flat = torch.cat([inside.flatten(0, 1), beside.flatten(0, 1)])
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), atol=1e-5, rtol=0)


def test_a_token_without_a_shape_has_no_edges_in_its_code():
    codebook = Codebook(192)
    nothing = codebook.embeddings(torch.zeros(1, SLOTS, dtype=torch.int64), torch.full((1, 4), torch.nan))
    torch.testing.assert_close(nothing[0], codebook.mark)


def test_most_tokens_of_a_page_show_something():
    scenes = [make_sample("page", (0, i)).media[0].scenes[0] for i in range(20)]
    written = [scene for scene in scenes if scene.glyphs]
    grids = [(max(1, round(scene.size[1] / 28)), max(1, round(scene.size[0] / 28))) for scene in written]
    shares = [(contents_of_scene(*pair).things[:, 0] > 0).mean() for pair in zip(written, grids, strict=True)]
    assert len(written) > 10
    assert np.mean(shares) > 0.6
