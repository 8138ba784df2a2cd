"""What quantizing changed, product by product, and which of them stay as they are for it.

Written into the bundle by the export that quantized, and read by whoever shows it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from export.errors import UserError
from export.files.checks import is_count
from export.files.json_fields import Check, dataclass_from_json
from export.files.json_object import read_json_object

REPORT_FILE = "quantization.json"


@dataclass(frozen=True)
class ProductError:
    """One product whose weight was quantized."""

    name: str
    """Published, of its weight: `model.layers.0.mlp.up_proj.weight`."""
    scheme: str
    """A name of `export.quantization.make.SCHEMES`."""
    error: Annotated[float, Check("a size", lambda value: value >= 0)]
    """Size of the product's error beside the product's own, 0.05 for 5 percent: the root of the mean squares, on the
    inputs that were seen in calibration. Where `is_seen` is not set, of the weight's error beside the weight.
    """
    is_seen: bool
    weight_bytes: Annotated[int, Check("a count", is_count)]
    """Before it was quantized."""
    is_kept: bool
    """Whether it stays as it was, for its error."""


@dataclass(frozen=True)
class QuantizationReport:
    """Every product that was quantized, or would have been, in the order of the model."""

    products: tuple[ProductError, ...]

    @property
    def worst(self) -> list[ProductError]:
        """The largest error first."""
        return sorted(self.products, key=lambda product: -product.error)

    @property
    def kept_share(self) -> float:
        """Of the weights' bytes, those that stay as they were."""
        kept = sum(product.weight_bytes for product in self.products if product.is_kept)
        return kept / sum(product.weight_bytes for product in self.products)

    def sentence(self) -> str:
        """Such as "70 products, error 2.1% in the middle, at most 8.3% (model.layers.4.mlp.down_proj)"."""
        worst = self.worst
        kept = sum(product.is_kept for product in worst)
        said = (
            f"{len(worst)} products, error {worst[len(worst) // 2].error:.1%} in the middle, at most "
            f"{worst[0].error:.1%} ({worst[0].name.removesuffix('.weight')})"
        )
        if kept:
            said += f"; the worst {kept} stay as they were, {self.kept_share:.1%} of the bytes"
        return said

    def write(self, directory: Path) -> None:
        """Write `REPORT_FILE`."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (directory / REPORT_FILE).write_text(text, encoding="utf-8")


def read_report(directory: Path) -> QuantizationReport | None:
    """A bundle's report; None: nothing of it was quantized by an export.

    Raises:
        UserError: a file that no export wrote.
    """
    path = directory / REPORT_FILE
    if not path.exists():
        return None
    report = dataclass_from_json(QuantizationReport, read_json_object(path), str(path))
    if not report.products:
        raise UserError(f"{path} names no product.", "Export the checkpoint again.")
    return report


def worst_within(products: Sequence[ProductError], share: float) -> set[str]:
    """Names of the products with the largest errors, as many as have this share of the weights' bytes together.

    Raises:
        UserError: not even one has so little.
    """
    room = share * sum(product.weight_bytes for product in products)
    kept: set[str] = set()
    for product in sorted(products, key=lambda product: -product.error):
        if product.weight_bytes <= room:
            kept.add(product.name)
            room -= product.weight_bytes
    if not kept:
        total = sum(product.weight_bytes for product in products)
        least = min(product.weight_bytes for product in products) / total
        raise UserError(
            f"--keep-worst {share:.3%} of the weights keeps none: the smallest of {len(products)} products has "
            f"{least:.3%}.",
            "Give a larger share, or leave it out.",
        )
    return kept
