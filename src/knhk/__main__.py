"""`python -m knhk` is the command `knhk`."""

from knhk.cli.main import main

if __name__ == "__main__":
    main()
