"""`python -m rmadapter` is the command line."""

from rmadapter.cli import main

main()
