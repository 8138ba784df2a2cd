"""What does `python -m qv_export` do? The same as `qv-export`."""

from qv_export.cli import main

main()
