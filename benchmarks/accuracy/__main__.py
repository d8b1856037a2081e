"""`python benchmarks/accuracy NAME --data DIR`: see command.py."""

import sys

from command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
