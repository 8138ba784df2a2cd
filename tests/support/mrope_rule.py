"""M-RoPE ids by the paper's words, computed token by token.

Written apart from the processor, from the Qwen2-VL paper (arXiv 2409.12191, section 2.1) and the behaviour of
Transformers 4.57.6: slow loops over single tokens, no shared code, so that an error in one is no error in the other.
"""

import numpy as np


def position_ids_by_the_paper(kinds, grids, merge_size=2):
    """Position ids of a prompt, and the delta for decoding.

    Args:
        kinds: one letter a token: "t" text, "i" image, "v" video. A picture's or video's tokens stand together.
        grids: (t, h, w) in patches for each picture and video, in order of appearance.

    Returns:
        int64 [3, S] and an integer.
    """
    rows: list[tuple[int, int, int]] = []
    highest = -1
    pending = iter(grids)
    token = 0
    while token < len(kinds):
        if kinds[token] == "t":
            highest += 1
            rows.append((highest, highest, highest))
            token += 1
            continue
        steps, height, width = next(pending)
        start = highest + 1
        for t in range(steps):
            for h in range(height // merge_size):
                for w in range(width // merge_size):
                    rows.append((start + t, start + h, start + w))
                    highest = max(highest, start + t, start + h, start + w)
                    token += 1
    return np.array(rows, dtype=np.int64).reshape(-1, 3).T, highest + 1 - len(kinds)
