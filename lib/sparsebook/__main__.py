"""``python -m sparsebook`` is the command ``sparsebook``."""

from sparsebook.cli import main

if __name__ == "__main__":
    main()
