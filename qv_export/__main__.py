"""The entry point of `qv-export` and of `python -m qv_export`: first the signals, then everything else."""

from qv_export.process import ExitCode, leave, prepare


def main() -> None:
    """Run the command line of this process and exit."""
    prepare()
    try:
        from qv_export.cli import main as run

        run()
    except KeyboardInterrupt:  # while the commands were imported
        leave(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
