"""What is asked, and what is right? One generator for each task, in English and Chinese."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from examples.tiny.pictures import (
    COLORS,
    SHAPES,
    Pixels,
    Shape,
    add_noise,
    draw_cells,
    draw_shapes,
    draw_table,
    draw_text,
    pale,
    place_boxes,
    random_font,
)

ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Digits and capitals without I and O, which some fonts draw like 1 and 0."""
ITEMS = (
    *("TEA", "MILK", "RICE", "BREAD", "EGGS", "FISH", "SALT", "SUGAR", "COFFEE", "JUICE", "APPLE", "PEAR"),
    *("CAKE", "SOUP", "BEEF", "PORK", "BEANS", "CORN", "HAM", "PASTA", "PLUM", "TUNA", "WATER", "BUTTER"),
)


@dataclass(frozen=True)
class Medium:
    """A picture (one frame) or a video (several)."""

    kind: str
    frames: tuple[Pixels, ...]


@dataclass(frozen=True)
class Sample:
    task: str
    media: tuple[Medium, ...]
    prompt: str
    answer: str
    in_words: str = ""
    """What the media show, in words: the text-only warm-up asks the same question about them."""

    def without_media(self) -> "Sample":
        """The same question about words."""
        return Sample(self.task, (), f"{self.in_words}\n{self.prompt}", self.answer)

    def messages(self) -> list[dict[str, Any]]:
        """The question in the chat format of Hugging Face."""
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


def _ask(name: str, rng: Generator, *words: str) -> tuple[str, bool]:
    """One of the prompts, filled in, and whether it is Chinese."""
    chinese = bool(rng.random() < 0.5)
    prompts = PROMPTS[name][chinese]
    prompt = prompts[rng.integers(len(prompts))]
    return prompt.format(*(_word(word, chinese) for word in words)), chinese


def _word(word: str, chinese: bool) -> str:
    return CHINESE.get(word, word) if chinese else word


def random_code(rng: Generator, shortest: int, longest: int) -> str:
    length = int(rng.integers(shortest, longest + 1))
    return "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), length))


def _lengths(longest: int, level: float) -> tuple[int, int]:
    """How many characters a text may have: 2 to `longest` in the end, one at level 0."""
    return (2, longest) if level == 1 else (1, 1 + round((longest - 1) * level))


def _spacing(rng: Generator, level: float) -> int:
    """Pixels between characters: none in the end, half a visual token's width at most."""
    return int(rng.integers(0, 1 + round(14 * (1 - level))))


def _picture(pixels: Pixels) -> Medium:
    return Medium("image", (pixels,))


def _pick(rng: Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# --- the tasks ----------------------------------------------------------------------------------------


def read(rng: Generator, level: float) -> Sample:
    """Text of 2 to 8 letters and digits, on a tight strip or somewhere on a larger canvas.

    At low levels most texts have one character in each visual token's square: a picture that reads like text.
    """
    if rng.random() >= level:
        text = random_code(rng, *_lengths(8, 0.4 + 0.5 * level))
        return _asked_to_read(text, draw_cells(text, rng), rng)
    text = random_code(rng, *_lengths(8, level))
    draw = rng.random() * (0.75 + 0.25 * level)
    font = random_font(rng, 16, 28 if draw < 0.85 else 64)
    canvas = None
    if draw > 0.75:
        wide = draw > 0.92
        canvas = (int(rng.integers(56, 900 if wide else 240)), int(rng.integers(28, 100 if wide else 160)))
    return _asked_to_read(text, draw_text(text, rng, font, canvas, _spacing(rng, level)), rng)


def _asked_to_read(text: str, pixels: Pixels, rng: Generator) -> Sample:
    prompt, _ = _ask("read", rng)
    return Sample("read", (_picture(pixels),), prompt, text, text)


def receipt(rng: Generator, level: float) -> Sample:
    """A receipt, asked by item, or a table of random codes, asked by the code at the left."""
    number = int(rng.integers(1 if level < 1 else 2, 3 + round(4 * level)))
    if rng.random() < 0.6:
        kind = "receipt"
        names = [str(name) for name in rng.choice(ITEMS, number, replace=False)]
        values = [f"{rng.integers(0, 30)}.{rng.integers(0, 100):02}"[: 1 + round(4 * level)] for _ in names]
    else:
        kind = "table"
        names = list(dict.fromkeys(random_code(rng, *_lengths(3, level)) for _ in range(number)))
        values = [random_code(rng, *_lengths(4, level)) for _ in names]
    asked = int(rng.integers(len(names)))
    prompt, _ = _ask(kind, rng, names[asked])
    rows = list(zip(names, values, strict=True))
    in_words = "\n".join(" ".join(row) for row in rows)
    return Sample("receipt", (_picture(draw_table(rows, rng)),), prompt, values[asked], in_words)


def _canvas(rng: Generator, smallest: int, largest: int) -> tuple[int, int]:
    width, height = (int(side) for side in rng.integers(smallest, largest + 1, 2))
    return width, height


def count(rng: Generator, level: float) -> Sample:
    """0 to 6 shapes of the asked colour among up to 4 others."""
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    size = _canvas(rng, 84, 168)
    most = 2 + round(4 * level)
    asked, others = int(rng.integers(0, most + 1)), int(rng.integers(0, most - 1))
    boxes = place_boxes(max(asked + others, 1), size, (12, 24), rng)
    wanted = [colors[0]] * asked + [str(color) for color in rng.choice(colors[1:], max(others, 1 - asked))]
    shapes = [Shape(color, _pick(rng, SHAPES), box) for color, box in zip(wanted, boxes, strict=False)]
    number = sum(shape.color == colors[0] for shape in shapes)
    prompt, _ = _ask("count", rng, colors[0])
    pixels = add_noise(draw_shapes(size, shapes, pale(rng)), rng)
    in_words = " ".join(shape.color for shape in shapes)
    return Sample("count", (_picture(pixels),), prompt, str(number), in_words)


def format_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """The family's notation: corners on a grid of 0 to 1000 (Qwen2-VL paper, section 2.2)."""
    x1, x2 = (round(x * 1000 / size[0]) for x in box[::2])
    y1, y2 = (round(y * 1000 / size[1]) for y in box[1::2])
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def box(rng: Generator, level: float) -> Sample:
    """1 to 4 shapes that differ in colour or kind; one is asked for."""
    size = _canvas(rng, 70, 168)
    boxes = place_boxes(int(rng.integers(1, 2 + round(3 * level))), size, (20, 56), rng)
    pairs = rng.permutation([(color, kind) for color in COLORS for kind in SHAPES])
    shapes = [Shape(str(color), str(kind), at) for (color, kind), at in zip(pairs, boxes, strict=False)]
    asked = shapes[int(rng.integers(len(shapes)))]
    prompt, _ = _ask("box", rng, asked.color, asked.kind)
    pixels = add_noise(draw_shapes(size, shapes, pale(rng)), rng)
    in_words = "\n".join(f"{shape.color} {shape.kind} {format_box(shape.box, size)}" for shape in shapes)
    return Sample("box", (_picture(pixels),), prompt, format_box(asked.box, size), in_words)


def pictures(rng: Generator, level: float) -> Sample:
    """Two or three pictures, one asked for by its number."""
    number = int(rng.integers(2, 4))
    asked = int(rng.integers(number))
    if rng.random() < 0.75:
        answers = [random_code(rng, *_lengths(4, level)) for _ in range(number)]
        media = [_picture(_draw_code(text, rng, level)) for text in answers]
        prompt, _ = _ask("pictures", rng, str(asked + 1))
        return Sample("pictures", tuple(media), prompt, answers[asked], "\n".join(answers))
    answers = [str(color) for color in rng.choice(list(COLORS), number)]
    media = [_picture(_one_shape(color, rng)) for color in answers]
    prompt, chinese = _ask("pictures_color", rng, str(asked + 1))
    return Sample("pictures", tuple(media), prompt, _word(answers[asked], chinese), "\n".join(answers))


def _draw_code(text: str, rng: Generator, level: float) -> Pixels:
    if rng.random() >= level:
        return draw_cells(text, rng)
    return draw_text(text, rng, random_font(rng, 16, 28), spacing=_spacing(rng, level))


def _one_shape(color: str, rng: Generator) -> Pixels:
    size = _canvas(rng, 28, 84)
    (at,) = place_boxes(1, size, (16, 24), rng)
    return add_noise(draw_shapes(size, [Shape(color, _pick(rng, SHAPES), at)], pale(rng)), rng)


DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def direction(rng: Generator, level: float) -> Sample:
    """A square that jumps 2 or 3 times. Both frames of a temporal step are alike, so only their order tells."""
    steps = int(rng.integers(3, 5))
    size = _canvas(rng, 56, 84)
    side = int(rng.integers(12, 21))
    way = _pick(rng, list(DIRECTIONS))
    dx, dy = DIRECTIONS[way]
    room = (size[0] if dx else size[1]) - side
    widest = max(room // (steps - 1), 7)
    jump = int(rng.integers(6 + round((widest - 6) * (1 - level)), widest + 1))
    span = min(jump * (steps - 1), room)
    along = int(rng.integers(0, room - span + 1))
    across = int(rng.integers(0, (size[1] if dx else size[0]) - side + 1))
    background, color = pale(rng), _pick(rng, list(COLORS))
    frames: list[Pixels] = []
    for step in range(steps):
        moved = along + (span * step // (steps - 1) if dx + dy > 0 else span - span * step // (steps - 1))
        x, y = (moved, across) if dx else (across, moved)
        image = draw_shapes(size, [Shape(color, "square", (x, y, x + side, y + side))], background)
        frames += [add_noise(image, rng)] * 2
    prompt, chinese = _ask("direction", rng)
    return Sample("direction", (Medium("video", tuple(frames)),), prompt, _word(way, chinese), way)


def order(rng: Generator, level: float) -> Sample:
    """Two or three texts, each shown for one or two temporal steps; the first or the last is asked for."""
    in_cells = bool(rng.random() >= level)
    shortest, longest = _lengths(3, level)
    length = int(rng.integers(shortest, longest + 1))
    texts = [
        random_code(rng, length, length) if in_cells else random_code(rng, shortest, longest)
        for _ in range(int(rng.integers(2, 4)))
    ]
    font = random_font(rng, 16, 24)
    widest = max(int(font.getbbox(text)[2]) for text in texts)
    canvas = (widest + int(rng.integers(6, 24)), int(font.size) + int(rng.integers(8, 24)))
    canvas = (max(canvas[0], 28), max(canvas[1], 28))
    frames: list[Pixels] = []
    for text in texts:
        frame = draw_cells(text, rng) if in_cells else _fit(draw_text(text, rng, font, canvas), canvas)
        frames += [frame] * (2 * int(rng.integers(1, 3)))
    which = _pick(rng, ("first", "last"))
    prompt, _ = _ask(which, rng)
    answer = texts[0 if which == "first" else -1]
    return Sample("order", (Medium("video", tuple(frames)),), prompt, answer, "\n".join(texts))


def _fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Frames of one video share a size; a text that stands out of the canvas made its frame larger."""
    if pixels.shape[1::-1] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size))


TASKS: dict[str, Callable[[Generator, float], Sample]] = {
    task.__name__: task for task in (read, receipt, count, box, pictures, direction, order)
}


def make_sample(task: str, seed: tuple[int, ...], level: float = 1.0) -> Sample:
    """A sample that depends on the task's name, the seed and the level alone; level 0 is easiest, 1 the task itself."""
    return TASKS[task](np.random.default_rng([list(TASKS).index(task), *seed]), level)
