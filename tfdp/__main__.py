"""`python -m tfdp VERB` is `tfdp VERB`."""

from tfdp.cli import main

if __name__ == "__main__":
    main()
