"""`python -m models <command>`: weights, the model repository, demo training and the table of papers."""

from models.cli import main

if __name__ == "__main__":
    main()
