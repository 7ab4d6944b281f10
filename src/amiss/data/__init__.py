"""Finding, reading and checking images. numpy and Pillow only: the line runtime uses this too."""

from amiss.data.doctor import check
from amiss.data.findings import Finding, Findings
from amiss.data.geometry import (
    Geometry,
    ResizeMode,
    inner_roi,
    resize_image,
    resize_mask,
    restore_map,
)
from amiss.data.images import (
    load_array,
    read_image,
    read_mask,
    write_bytes_atomic,
    write_png,
)
from amiss.data.index import LAYOUTS, Dataset, index
from amiss.data.stream import Batch, ImageStream, digest
from amiss.data.window import Window, parse_window

__all__ = [
    "LAYOUTS",
    "Batch",
    "Dataset",
    "Finding",
    "Findings",
    "Geometry",
    "ImageStream",
    "ResizeMode",
    "Window",
    "check",
    "digest",
    "index",
    "inner_roi",
    "load_array",
    "parse_window",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
    "restore_map",
    "write_bytes_atomic",
    "write_png",
]
