"""`python -m wanlab`, and the program `wanlab`."""

import os


def main() -> None:
    """Run one command and exit. A signal is obeyed from the first import on."""
    try:
        from wanlab.cli import stopping
    except KeyboardInterrupt:  # nobody has said yet how to end well
        os.write(2, b"wanlab: stopped\n")
        os._exit(130)
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
