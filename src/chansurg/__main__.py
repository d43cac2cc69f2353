"""``python -m chansurg`` is the command ``chansurg``."""

from chansurg.cli import main

if __name__ == "__main__":
    main()
