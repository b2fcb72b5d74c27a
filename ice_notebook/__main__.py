"""`python -m ice_notebook COMMAND …`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] != ["join"]:
        sys.exit("usage: python -m ice_notebook join HOST:PORT")
    from ice_notebook.nodes.join import main

    sys.exit(main(sys.argv[2:]))
