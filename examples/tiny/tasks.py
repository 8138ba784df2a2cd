"""The tasks: one generator of questions with answers for each, in English and Chinese."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from examples.tiny.pictures import (
    COLORS,
    SHAPES,
    Box,
    Noise,
    Pixels,
    Scene,
    Shape,
    grid_scene,
    page_scene,
    pale,
    place_boxes,
    random_font,
    set_line,
    shapes_scene,
    table_scene,
    text_scene,
)

ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Digits and capitals without I and O, which some fonts draw like 1 and 0."""
CHARACTERS = ALPHABET + "."
ITEMS = (
    *("TEA", "BREAD", "EGGS", "SALT", "SUGAR", "APPLE", "PEAR", "CAKE", "BEEF", "BEANS", "HAM", "PASTA"),
    *("PLUM", "TUNA", "WATER", "BUTTER", "JAM", "NUTS", "LAMB", "CREAM", "CHEESE", "GRAPE", "LEEK", "DATES"),
)
"""Goods that the alphabet can spell."""


@dataclass(frozen=True)
class Medium:
    """A picture (one scene) or a video (one scene for each temporal step)."""

    kind: str
    scenes: tuple[Scene, ...]

    @property
    def frames(self) -> list[Pixels]:
        """Both frames of a video's temporal step show the same."""
        repeats = 1 if self.kind == "image" else 2
        return [scene.pixels for scene in self.scenes for _ in range(repeats)]


@dataclass(frozen=True)
class Turn:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """Pictures or a video, and one question or several about them. The first question is the one that is judged."""

    task: str
    media: tuple[Medium, ...]
    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> str:
        return self.turns[0].prompt

    @property
    def answer(self) -> str:
        return self.turns[0].answer

    def messages(self) -> list[dict[str, Any]]:
        """The first question in the chat format of Hugging Face."""
        content: list[dict[str, Any]] = []
        for medium in self.media:
            images = [Image.fromarray(frame) for frame in medium.frames]
            if medium.kind == "image":
                content.append({"type": "image", "image": images[0]})
            else:
                content.append({"type": "video", "video": images})
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.prompt}]}]


CHINESE = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "black": "黑色",
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "1": "一",
    "2": "二",
    "3": "三",
    "left": "向左",
    "right": "向右",
    "up": "向上",
    "down": "向下",
}

PROMPTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "read": (
        ("What does the text say?", "Read the text in the picture.", "What is written here?"),
        ("图中写的是什么？", "请读出图片中的文字。", "上面写着什么？"),
    ),
    "receipt": (
        ("How much is {}?", "What is the price of {}?", "What does {} cost?"),
        ("{}多少钱？", "{}的价格是多少？", "请问{}的价钱是多少？"),
    ),
    "table": (
        ("What stands next to {}?", "What is the value of {}?", "Which value is in row {}?"),
        ("{}旁边是什么？", "{}的值是多少？", "{}这一行的值是什么？"),
    ),
    "count": (
        ("How many {} shapes are there?", "Count the {} shapes.", "How many shapes are {}?"),
        ("有多少个{}的图形？", "请数一数{}的图形。", "图中有几个{}图形？"),
    ),
    "box": (
        ("Where is the {} {}?", "Give the box of the {} {}.", "Find the {} {}."),
        ("{}的{}在哪里？", "请框出{}的{}。", "找到{}的{}。"),
    ),
    "pictures": (
        ("What does picture {} say?", "Read the text in picture {}.", "What is written in picture {}?"),
        ("第{}张图片写着什么？", "请读出第{}张图片中的文字。", "第{}张图里写的是什么？"),
    ),
    "pictures_color": (
        ("What color is the shape in picture {}?", "Which color does picture {} show?"),
        ("第{}张图片里的图形是什么颜色？", "第{}张图是什么颜色的？"),
    ),
    "direction": (
        ("Which way does the square move?", "In which direction does the square go?"),
        ("正方形往哪个方向移动？", "方块向哪边移动？"),
    ),
    "first": (
        ("Which text comes first?", "What is the first text in the video?"),
        ("最先出现的文字是什么？", "视频中第一个文字是什么？"),
    ),
    "last": (
        ("Which text comes last?", "What is the last text in the video?"),
        ("最后出现的文字是什么？", "视频中最后一个文字是什么？"),
    ),
}


MAX_TURNS = 3
"""Questions about the same pictures in training: more to learn from pictures that are encoded once."""


def _ask(kind: str, rng: Generator, answer: str, *words: str) -> Turn:
    """One of the prompts, filled in; what has a Chinese word is answered in the prompt's language."""
    chinese = bool(rng.random() < 0.5)
    prompts = PROMPTS[kind][chinese]
    prompt = prompts[rng.integers(len(prompts))]
    if chinese:
        words = tuple(CHINESE.get(word, word) for word in words)
        answer = CHINESE.get(answer, answer) if answer.isalpha() else answer
    return Turn(prompt.format(*words), answer)


def random_code(rng: Generator, shortest: int, longest: int) -> str:
    return _spell(ALPHABET, rng, shortest, longest)


def _spell(alphabet: str, rng: Generator, shortest: int, longest: int) -> str:
    length = int(rng.integers(shortest, longest + 1))
    return "".join(alphabet[i] for i in rng.integers(0, len(alphabet), length))


def _random_codes(number: int, rng: Generator, shortest: int, longest: int) -> list[str]:
    """Codes that differ from one another."""
    codes: dict[str, None] = {}
    while len(codes) < number:
        codes[random_code(rng, shortest, longest)] = None
    return list(codes)


def _picture(scene: Scene) -> Medium:
    return Medium("image", (scene,))


def _pick(rng: Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _some_of(number: int, rng: Generator) -> list[int]:
    """Up to MAX_TURNS of `number` things, in random order."""
    return [int(i) for i in rng.permutation(number)[:MAX_TURNS]]


# --- the tasks ----------------------------------------------------------------------------------------


def read(rng: Generator) -> Sample:
    """Text of 2 to 8 letters and digits, on a tight strip or somewhere on a larger canvas."""
    text = random_code(rng, 2, 8)
    font = random_font(rng, 24, 40)
    draw, canvas = rng.random(), None
    if draw > 0.7:
        widest, highest = (900, 100) if draw > 0.97 else (220, 112)
        canvas = (int(rng.integers(56, widest + 1)), int(rng.integers(28, highest + 1)))
    scene = text_scene(text, rng, font, canvas, int(rng.integers(2, 8)))
    return Sample("read", (_picture(scene),), (_ask("read", rng, text),))


def receipt(rng: Generator) -> Sample:
    """A receipt of 2 to 4 rows, asked by item, or a table of codes, asked by the code at the left."""
    number = int(rng.integers(2, 5))
    if rng.random() < 0.6:
        kind = "receipt"
        names = _random_items(number, rng)
        values = [f"{rng.integers(0, 30)}.{rng.integers(0, 100):02}" for _ in names]
    else:
        kind = "table"
        names = _random_codes(number, rng, 2, 3)
        values = [random_code(rng, 2, 4) for _ in names]
    return _table("receipt", kind, names, values, rng)


def _random_items(number: int, rng: Generator) -> list[str]:
    return [str(name) for name in rng.choice(ITEMS, number, replace=False)]


def _table(task: str, kind: str, names: list[str], values: list[str], rng: Generator) -> Sample:
    turns = [_ask(kind, rng, values[i], names[i]) for i in _some_of(len(names), rng)]
    scene = table_scene(list(zip(names, values, strict=True)), rng)
    return Sample(task, (_picture(scene),), tuple(turns))


def _canvas(rng: Generator, smallest: int, largest: int) -> tuple[int, int]:
    width, height = (int(side) for side in rng.integers(smallest, largest + 1, 2))
    return width, height


def count(rng: Generator) -> Sample:
    """0 to 6 shapes of the asked colour among up to 3 others."""
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    size = _canvas(rng, 84, 150)
    asked, others = int(rng.integers(0, 7)), int(rng.integers(0, 4))
    boxes = place_boxes(max(asked + others, 1), size, (18, 26), rng, gap=8)
    wanted = [colors[0]] * asked + [str(color) for color in rng.choice(colors[1:3], max(others, 1 - asked))]
    shapes = [Shape(color, _pick(rng, SHAPES), box) for color, box in zip(wanted, boxes, strict=False)]
    turns = []
    for i in _some_of(3, rng) if rng.random() < 0.3 else (0, 1, 2)[:MAX_TURNS]:
        number = sum(shape.color == colors[i] for shape in shapes)
        turns.append(_ask("count", rng, str(number), colors[i]))
    return Sample("count", (_picture(shapes_scene(size, shapes, rng)),), tuple(turns))


def format_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """The family's notation: corners on a grid of 0 to 1000 (Qwen2-VL paper, section 2.2), here rounded to tens."""
    x1, x2 = (10 * round(x * 100 / size[0]) for x in box[::2])
    y1, y2 = (10 * round(y * 100 / size[1]) for y in box[1::2])
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def box(rng: Generator) -> Sample:
    """1 to 3 shapes that differ in colour or kind; one is asked for."""
    size = _canvas(rng, 84, 126)
    return _find("box", size, place_boxes(int(rng.integers(1, 4)), size, (30, 64), rng), rng)


def _find(task: str, size: tuple[int, int], boxes: list[Box], rng: Generator) -> Sample:
    """Shapes that differ in colour or kind, one in each box; up to two are asked for."""
    pairs = rng.permutation([(color, kind) for color in COLORS for kind in SHAPES])
    shapes = [Shape(str(color), str(kind), at) for (color, kind), at in zip(pairs, boxes, strict=False)]
    asked = [shapes[i] for i in _some_of(len(shapes), rng)[:2]]
    turns = [_ask("box", rng, format_box(shape.box, size), shape.color, shape.kind) for shape in asked]
    return Sample(task, (_picture(shapes_scene(size, shapes, rng)),), tuple(turns))


def pictures(rng: Generator) -> Sample:
    """Two or three pictures, one asked for by its number."""
    number = int(rng.integers(2, 4))
    if rng.random() < 0.75:
        kind = "pictures"
        answers = [random_code(rng, 2, 4) for _ in range(number)]
        scenes = [
            text_scene(text, rng, random_font(rng, 24, 34), spacing=int(rng.integers(2, 8)))
            for text in answers
        ]
    else:
        kind = "pictures_color"
        answers = [str(color) for color in rng.choice(list(COLORS), number)]
        scenes = [_one_shape(color, rng) for color in answers]
    turns = [_ask(kind, rng, answers[i], str(i + 1)) for i in _some_of(number, rng)]
    return Sample("pictures", tuple(map(_picture, scenes)), tuple(turns))


def _one_shape(color: str, rng: Generator) -> Scene:
    size = _canvas(rng, 40, 84)
    (at,) = place_boxes(1, size, (20, 34), rng)
    return shapes_scene(size, [Shape(color, _pick(rng, SHAPES), at)], rng)


DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def direction(rng: Generator) -> Sample:
    """A square that moves steadily over 2 to 4 temporal steps, by 32 pixels or more."""
    steps = int(rng.integers(2, 5))
    way = str(_pick(rng, list(DIRECTIONS)))
    dx, dy = DIRECTIONS[way]
    side = int(rng.integers(18, 29))
    along, across = int(rng.integers(72, 127)), int(rng.integers(42, 85))
    size = (along, across) if dx else (across, along)
    span = int(rng.integers(32, along - side + 1))
    start, place = int(rng.integers(0, along - side - span + 1)), int(rng.integers(0, across - side + 1))
    color, background, noise = str(_pick(rng, list(COLORS))), pale(rng), Noise.random(rng)
    scenes = []
    for step in range(steps):
        moved = span * step // (steps - 1)
        at = start + (moved if dx + dy > 0 else span - moved)
        x, y = (at, place) if dx else (place, at)
        shape = Shape(color, "square", (x, y, x + side, y + side))
        scenes.append(Scene(size, background, noise, shapes=(shape,)))
    return Sample("direction", (Medium("video", tuple(scenes)),), (_ask("direction", rng, way),))


def order(rng: Generator) -> Sample:
    """Two or three texts, each shown for one or two temporal steps; the first or the last is asked for."""
    texts = _random_codes(int(rng.integers(2, 4)), rng, 2, 3)
    font, spacing = random_font(rng, 24, 32), int(rng.integers(2, 7))
    widest = max(set_line(text, font, spacing)[1] for text in texts)
    canvas = (int(widest) + int(rng.integers(8, 28)), int(font.size) + int(rng.integers(4, 24)))
    scenes: list[Scene] = []
    for text in texts:
        scene = text_scene(text, rng, font, canvas, spacing)
        scenes += [scene] * int(rng.integers(1, 3))
    turns = [
        _ask(which, rng, texts[0 if which == "first" else -1]) for which in rng.permutation(["first", "last"])
    ]
    return Sample("order", (Medium("video", tuple(scenes)),), tuple(turns))


SQUARE = 28
"""Pixels along each side of one visual token."""


def page(rng: Generator) -> Sample:
    """A picture full of characters, or now and then of shapes, about which nothing is asked: for stage 1 alone."""
    size = _canvas(rng, 56, 140)
    if rng.random() < 0.2:
        boxes = place_boxes(int(rng.integers(3, 9)), size, (18, 44), rng)
        shapes = [Shape(str(_pick(rng, list(COLORS))), str(_pick(rng, SHAPES)), at) for at in boxes]
        return Sample("page", (_picture(shapes_scene(size, shapes, rng)),), (Turn("", ""),))
    if rng.random() < 0.4:
        squares = (int(rng.integers(2, 6)), int(rng.integers(1, 5)))
        return Sample("page", (_picture(grid_scene(squares, SQUARE, CHARACTERS, rng)),), (Turn("", ""),))
    return Sample("page", (_picture(page_scene(size, CHARACTERS, rng)),), (Turn("", ""),))


# --- drills: asked in training alone, for what tasks need and seldom show ---------------------------------


def echo(rng: Generator) -> Sample:
    """Text of few different characters: what comes next depends on more than the last one."""
    few = random_code(rng, 2, 4)
    text = _spell(few, rng, 3, 8)
    scene = text_scene(text, rng, random_font(rng, 24, 40), spacing=int(rng.integers(2, 8)))
    return Sample("echo", (_picture(scene),), (_ask("read", rng, text),))


def ledger(rng: Generator) -> Sample:
    """A receipt or table whose values have few different characters: the row decides, and not what was just read."""
    number = int(rng.integers(2, 5))
    if rng.random() < 0.7:
        kind, digits = "receipt", rng.choice(range(1, 10), int(rng.integers(2, 5)), replace=False)
        few, names = "".join(map(str, digits)), _random_items(number, rng)
        values = [f"{_spell(few, rng, 1, 2)}.{_spell(few, rng, 2, 2)}" for _ in names]
    else:
        kind, few = "table", random_code(rng, 2, 4)
        names = _random_codes(number, rng, 2, 3)
        values = [_spell(few, rng, 2, 4) for _ in names]
    return _table("ledger", kind, names, values, rng)


def crowd(rng: Generator) -> Sample:
    """2 to 4 shapes: the asked one must be told from the others, where most of `box` shows one alone."""
    size = _canvas(rng, 112, 154)
    return _find("crowd", size, place_boxes(int(rng.integers(2, 5)), size, (30, 56), rng), rng)


TASKS: dict[str, Callable[[Generator], Sample]] = {
    task.__name__: task for task in (read, receipt, count, box, pictures, direction, order)
}
"""What the model is judged by."""
GENERATORS = {**TASKS, "page": page, "echo": echo, "ledger": ledger, "crowd": crowd}


def make_sample(task: str, seed: tuple[int, ...]) -> Sample:
    """A sample that depends on the task's name and the seed alone."""
    return GENERATORS[task](np.random.default_rng([list(GENERATORS).index(task), *seed]))
