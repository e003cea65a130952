"""`python -m rmadapter` is the command line."""

from rmadapter.cli.main import main

main()
