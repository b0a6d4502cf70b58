"""``python -m xpconv``: the command line."""

from xpconv.cli import main

if __name__ == "__main__":
    main()
