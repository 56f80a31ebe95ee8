"""`python -m wanlab`, and the program `wanlab`."""

from wanlab.cli import stopping


def main() -> None:
    """Run one command and exit. A signal is obeyed from the first import on."""
    stopping.install()
    try:
        from wanlab.cli.app import main as run
    except BaseException:
        if stopping.received():
            stopping.quit()
        raise
    run()


if __name__ == "__main__":
    main()
