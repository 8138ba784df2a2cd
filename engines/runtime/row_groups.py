"""Divides the rows of a step into groups that go through a decoder's stages one behind the other."""

from collections.abc import Iterator
from dataclasses import replace

from export.inputs import DecoderInputs


def row_groups(
    inputs: DecoderInputs, most: int, *, fewest_rows: int = 1
) -> Iterator[tuple[int, DecoderInputs]]:
    """Neighbouring rows of a call without images, in groups of nearly equal size.

    Args:
        inputs: of the call.
        most: groups.
        fewest_rows: of a group, unless the call has fewer.

    Yields:
        The first row's index and the call of the group.
    """
    num_rows = len(inputs.token_ids)
    num_groups = max(min(most, num_rows // fewest_rows), 1)
    for i in range(num_groups):
        rows = slice(i * num_rows // num_groups, (i + 1) * num_rows // num_groups)
        yield (
            rows.start,
            inputs
            if num_groups == 1
            else replace(
                inputs,
                token_ids=inputs.token_ids[rows],
                position_ids=inputs.position_ids[:, rows],
                write_index=inputs.write_index[rows],
                kv_lengths=inputs.kv_lengths[rows],
                logits_index=inputs.logits_index[rows],
            ),
        )
