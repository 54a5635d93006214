"""`python -m patchscopes` is the `patchscopes` command."""

from patchscopes.cli import main

if __name__ == "__main__":
    main()
