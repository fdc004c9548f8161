"""`python -m mmtrackers.cli`: the command line, for `accelerate launch -m`."""

from . import main

if __name__ == "__main__":
    main()
