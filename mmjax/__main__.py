"""`python -m mmjax` is `mmjax`."""

import sys

from mmjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
