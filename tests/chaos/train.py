"""``jobs.train`` as it is, but its workers keep a ledger of the rows that they train on."""

from jobs.cli.conventions import run_program
from tests.chaos.ledger import main

if __name__ == "__main__":
    run_program(main)
