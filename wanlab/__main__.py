"""`python -m wanlab`."""

from wanlab.cli.app import main

main()
