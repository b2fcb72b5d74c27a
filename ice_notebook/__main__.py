"""`python -m ice_notebook`: the command line."""

from ice_notebook.ui.command import main

if __name__ == "__main__":
    main()
