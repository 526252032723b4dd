"""`python -m genaid_server.cli`: the command where its script is not on the PATH."""

from genaid_server.cli.main import run

run()
