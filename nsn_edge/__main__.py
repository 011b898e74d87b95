"""`python -m nsn_edge` is `nsn-edge`."""

from nsn_edge.cli import entry_point

entry_point()
