"""`python -m latentsync` and the `latentsync` command."""

from latentsync.cli import main

if __name__ == "__main__":
    main()
